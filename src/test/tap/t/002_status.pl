# "krahodb status" shows the subscriptions of a database and how far initial copies are.
# What can go wrong: a copy that goes on for hours and says nothing; JSON that is none,
# for odd names or missing values; an exit code that says that all is well while a
# subscription has no worker; a database without the extension.

use strict;
use warnings;

use File::Spec;
use IPC::Run;
use JSON::PP;
use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $pub = krahodb_node('pub');
my $sub = krahodb_node('sub', conf => <<'EOC');
krahodb.copy_range_size = 64kB
krahodb.copy_workers_per_table = 2
krahodb.copy_rate_limit = 100kB
EOC

# Exit code, stdout and stderr of krahodb status.
sub status
{
	my ($connstr, @options) = @_;
	my ($stdout, $stderr) = ('', '');

	IPC::Run::run([ 'krahodb', 'status', @options, $connstr ],
		'<', File::Spec->devnull, '>', \$stdout, '2>', \$stderr);
	return ($? >> 8, $stdout, $stderr);
}

my $connstr = $sub->connstr('postgres');
my ($exit, $out, $err) = status($connstr);
is("$exit$out$err", '0', 'no subscriptions: nothing to say');
($exit, $out) = status($connstr, '--json');
is_deeply(decode_json($out), { command => 'status', ok => JSON::PP::true, subscriptions => [], copies => [] }, '... in JSON');

# ---- a copy that goes on -------------------------------------------------------------

foreach my $node ($pub, $sub)
{
	$node->safe_psql('postgres', 'CREATE TABLE big (id int PRIMARY KEY, pad text); CREATE TABLE "odd ""name" (id int PRIMARY KEY)');
}
$pub->safe_psql('postgres', q{
	INSERT INTO big SELECT g, repeat('x', 500) FROM generate_series(1, 60000) g;
	CREATE PUBLICATION p FOR TABLE big;
	CREATE PUBLICATION odd FOR TABLE "odd ""name"});
$sub->safe_psql('postgres', "CREATE SUBSCRIPTION s CONNECTION '" . connstr($pub) . "' PUBLICATION p");

$sub->poll_query_until('postgres', "SELECT bool_and(srsubstate = 'd') FROM pg_subscription_rel") or die 'no copy begins';
($exit, $out, $err) = status($connstr);
like($out, qr/^copy s public\.big \.\.\. copying$/m, 'without the extension: which table is copied');
like($err, qr/^krahodb: warning: how far copies are is known only with the extension/, '... and a warning');
$sub->safe_psql('postgres', 'CREATE EXTENSION krahodb');
$sub->poll_query_until('postgres', 'SELECT count(*) = 1 FROM krahodb.copy_progress WHERE ranges_done > 0') or die 'nothing is copied';

{
	local $ENV{PGOPTIONS} = '-c intervalstyle=iso_8601';
	($exit, $out, $err) = status($connstr);
}
is("$exit$err", '0', 'a copy is no failure');
like($out, qr/^subscription s \.\.\. applying$/m, 'the subscription');
like($out, qr{^copy s public\.big \.\.\. copying, \d+\.\d %, \d+ \w+ at \d+ \w+/s, (?:\d+ days? )?\d\d:\d\d:\d\d left$}m,
	'the copy, with share, size, rate and time that is left');

($exit, $out) = status($connstr, '--json');
my $answer = decode_json($out);
my ($copy) = @{ $answer->{copies} };
is_deeply([ map { $copy->{$_} } qw(subscription schema table state) ], [ qw(s public big copying) ], 'the same in JSON');
cmp_ok($copy->{percent}, '<', 100, '... percent');
cmp_ok($copy->{$_}, '>', 0, "... $_") foreach qw(workers bytes rows bytes_per_second remaining_seconds elapsed_seconds);
is($answer->{subscriptions}[0]{state}, 'applying', '... the subscription');
cmp_ok($answer->{subscriptions}[0]{pid}, '>', 0, '... with its process');

$sub->adjust_conf('postgresql.conf', 'krahodb.copy_rate_limit', '0');
reload_settings($sub);
$sub->poll_query_until('postgres', "SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel")
  or die 'the copy is not finished';
($exit, $out) = status($connstr);
is("$exit$out", "0subscription s ... applying\n", 'the copy is finished');

# ---- what does not work ----------------------------------------------------------------

$sub->safe_psql('postgres', 'CREATE SUBSCRIPTION "odd ""name" CONNECTION \'' . connstr($pub) . '\' PUBLICATION odd WITH (enabled = false, slot_name = odd)');
pause_subscription($sub, 's');
($exit, $out) = status($connstr);
is($exit, 0, 'disabled subscriptions are no failure');
like($out, qr/^subscription s \.\.\. disabled$/m, '... and shown as such');
($exit, $out) = status($connstr, '--json');
$answer = decode_json($out);
is_deeply([ map { $_->{name} } @{ $answer->{subscriptions} } ], [ 'odd "name', 's' ], 'odd names');
is_deeply([ map { $_->{pid} } @{ $answer->{subscriptions} } ], [ undef, undef ], '... and null');
is($answer->{copies}[0]{state}, 'waiting', 'a table that is not copied yet');
is_deeply([ map { $answer->{copies}[0]{$_} } qw(workers percent rows bytes bytes_per_second elapsed_seconds remaining_seconds) ],
	[ (undef) x 7 ], '... of which nothing is known');

# A view of that name can be anybody's, where the extension is not.
$sub->safe_psql('postgres', 'CREATE DATABASE other');
$sub->safe_psql('other', 'CREATE SCHEMA krahodb; CREATE VIEW krahodb.copy_progress AS SELECT 1 / 0 AS subscription');
($exit, $out, $err) = status($sub->connstr('other'));
is("$exit$out$err", '0', 'a view of the same name in a database without the extension is not asked');

# A server that was started without the library: the view is there, and does not answer.
$sub->append_conf('postgresql.conf', "shared_preload_libraries = ''\nmax_logical_replication_workers = 0");
$sub->restart;
($exit, $out, $err) = status($connstr);
is($exit, 0, 'a server that has not loaded KrahoDB');
like($out, qr/^copy odd "name public\.odd "name \.\.\. waiting$/m, '... has subscriptions and copies');
like($err, qr/^krahodb: warning: how far copies are is known only by a server that has loaded KrahoDB$/, '... and a warning');

$sub->append_conf('postgresql.conf', "shared_preload_libraries = 'krahodb'");
$sub->restart;
$sub->safe_psql('postgres', 'ALTER SUBSCRIPTION s ENABLE');
($exit, $out) = status($connstr);
is($exit, 3, 'an enabled subscription without a worker: exit code 3');
like($out, qr/^subscription s \.\.\. no worker$/m, '... and which one');
($exit, $out) = status($connstr, '--json');
ok(!decode_json($out)->{ok}, '... in JSON');

$sub->stop;
($exit, $out, $err) = status($connstr);
is("$exit$out", '2', 'a stopped server: exit code 2');
like($err, qr/^krahodb: error: .*failed/, '... and the reason on stderr');

$pub->stop;
done_testing();
