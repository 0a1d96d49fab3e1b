# What goes wrong here: the manual says something that is not true (any more).
# Every example of doc/*.md that names a node is run there, and what the page says
# that it prints is compared; KrahoDB::Manual has the rules.  And that what contrib/
# offers to copy does not work.

use strict;
use warnings;

use KrahoDB::Manual;
use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $doc = "$ENV{KDB_SRCDIR}/doc";
my $contrib = "$ENV{KDB_SRCDIR}/contrib";

# Pages whose examples must be run; one without any has lost its marks.
foreach my $page (qw(tutorial hub-and-branches options conflicts))
{
	ok((grep { $_->{node} } blocks_of("$doc/$page.md")), "$page.md has examples that are run");
}

foreach my $file (sort glob("$doc/*.md"))
{
	run_page($file) if grep { $_->{node} } blocks_of($file);
}

# ---- contrib ----------------------------------------------------------------------

my $node = krahodb_node('contrib', conf => slurp_file("$contrib/postgresql.conf"));
$node->safe_psql('postgres', 'CREATE EXTENSION krahodb');
command_ok(
	[
		'psql', '-X', '-v', 'ON_ERROR_STOP=1', '-f', "$contrib/monitoring.sql",
		$node->connstr('postgres')
	],
	'contrib/monitoring.sql on a server with contrib/postgresql.conf');
command_checks_all([ 'krahodb', 'check', $node->connstr('postgres') ],
	0, [qr/^(\w+ \.\.\. ok\n)+$/], [qr//], 'which lacks nothing');

# ---- what there is and no example shows ----------------------------------------------

my $pages = join '', map { slurp_file("$doc/$_.md") } qw(options conflicts);
my @names = split /\n/, $node->safe_psql('postgres', q{
	SELECT DISTINCT a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
	WHERE c.relnamespace = 'krahodb'::regnamespace AND c.relkind = 'v' AND a.attnum > 0
	UNION SELECT 'krahodb.' || relname FROM pg_class WHERE relnamespace = 'krahodb'::regnamespace AND relkind = 'v'
	UNION SELECT name FROM pg_settings WHERE name LIKE 'krahodb.%' AND name !~ 'test_|fault_point'});
is(join(', ', grep { $pages !~ /`\Q$_\E`/ } @names), '', 'the manual names each view, its columns, and each setting');
$node->stop;

done_testing();
