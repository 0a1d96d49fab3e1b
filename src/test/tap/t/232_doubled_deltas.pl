# Deltas of a table that comes from one node by two subscriptions.
# What goes wrong here: each counts twice, and nobody has said so.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my ($a, $b, $c) = my @nodes = map { krahodb_node($_) } qw(a b c);
$_->safe_psql('postgres', q{
	CREATE EXTENSION krahodb;
	CREATE TABLE stock (id int PRIMARY KEY, n int);
	ALTER TABLE stock REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta);
	CREATE TABLE best (id int PRIMARY KEY, n int);
	ALTER TABLE best REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = max);
	CREATE TABLE later (LIKE stock INCLUDING ALL);
	ALTER TABLE later REPLICA IDENTITY FULL;
	CREATE PUBLICATION p FOR TABLE stock, best, later;
	CREATE PUBLICATION q FOR TABLE stock, best, later;
	CREATE PUBLICATION r FOR TABLE best}) foreach @nodes;

my $warning = qr/WARNING:  subscriptions "(\w+)" and "(\w+)" receive the same merged columns from one publisher\nDETAIL:  .*: of (.*)\.\nHINT/;

# Whom and what the command warns of.
sub warned
{
	my ($sql) = @_;
	my ($status, undef, $stderr) = $b->psql('postgres', $sql);

	is($status, 0, $sql) or diag($stderr);
	return join ' ', $stderr =~ $warning;
}

sub create
{
	my ($name, $from, $publication, $more) = @_;
	return sprintf(q{CREATE SUBSCRIPTION %s CONNECTION '%s%s' PUBLICATION %s WITH (origin = none, copy_data = false)},
		$name, connstr($from), $more // '', $publication);
}

is(warned(create('one', $a, 'p')), '', 'one subscription');
is(warned(create('from_c', $c, 'p')), '', 'another one to another node');
$a->safe_psql('postgres', 'INSERT INTO stock VALUES (1, 1)');
wait_streams(1, [ $a, 'one' ]);
is(warned(create('two', $a, 'q', ' connect_timeout=30')), 'two one "public.stock"', 'another one to the same');
is(warned('DROP SUBSCRIPTION two'), '', '... that goes again');
is(warned(create('two', $a, 'r')), '', 'other columns than sums count once');
is(warned('ALTER SUBSCRIPTION two SET PUBLICATION q WITH (copy_data = false)'), 'two one "public.stock"', 'it gets other publications');
is(warned('ALTER SUBSCRIPTION two REFRESH PUBLICATION WITH (copy_data = false)'), 'two one "public.stock"', 'it is refreshed');
is(warned('ALTER TABLE later ALTER n SET (krahodb.merge = delta)'), 'one two "public.later"', 'a column is to be added up');
is(warned('ALTER TABLE best ALTER n SET (krahodb.merge = min)'), '', '... or not');

$_->stop foreach @nodes;
done_testing();
