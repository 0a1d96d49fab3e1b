# What goes wrong here: two nodes that write to a table get a new column one after the
# other.  In between, one node writes to it, and the other, which does not have it yet,
# changes the same row later.  The later row wins on both, but it has no value of the
# column to send: each node keeps its own (doc/conflicts.md, "Not guaranteed").  Rows that
# nobody else changed meanwhile are equal, and so is the row when it is written once more.

use strict;
use warnings;

use KrahoDB::Nodes;
use Test::More;

my ($a, $b) = map { krahodb_node($_) } qw(a b);
my $rows = 'SELECT id, v, c FROM t ORDER BY id';

foreach my $node ($a, $b)
{
	$node->safe_psql('postgres', 'CREATE EXTENSION krahodb; CREATE TABLE t (id int PRIMARY KEY, v text); CREATE PUBLICATION p FOR TABLE t');
}

sub subscribe
{
	my ($sub, $pub, $name) = @_;

	$sub->safe_psql('postgres',
		sprintf("CREATE SUBSCRIPTION %s CONNECTION '%s' PUBLICATION p WITH (origin = none, copy_data = false)",
			$name, connstr($pub)));
	$sub->wait_for_subscription_sync($pub, $name);
	return;
}

sub subscriptions
{
	my ($do) = @_;

	$b->safe_psql('postgres', "ALTER SUBSCRIPTION a_to_b $do");
	$a->safe_psql('postgres', "ALTER SUBSCRIPTION b_to_a $do");
	return;
}

my @streams = ([ $a, 'a_to_b' ], [ $b, 'b_to_a' ]);

subscribe($b, $a, 'a_to_b');
subscribe($a, $b, 'b_to_a');
$a->safe_psql('postgres', "INSERT INTO t VALUES (1, 'old'), (2, 'old'), (3, 'old')");
wait_streams(2, @streams);

subscriptions('DISABLE');
$a->safe_psql('postgres', 'ALTER TABLE t ADD COLUMN c int DEFAULT 1');
$a->safe_psql('postgres', 'UPDATE t SET c = 5 WHERE id IN (1, 2)');
$b->safe_psql('postgres', "UPDATE t SET v = 'later' WHERE id IN (1, 3)");
$b->safe_psql('postgres', 'ALTER TABLE t ADD COLUMN c int DEFAULT 1');
subscriptions('ENABLE');
wait_streams(2, @streams);

is_equal_on([ $a, $b ], 'SELECT id, v FROM t ORDER BY id', 'the columns that both had');
is_equal_on([ $a, $b ], 'SELECT * FROM t WHERE id > 1 ORDER BY id', 'rows that one node changed');
is( join(' ', map { $_->safe_psql('postgres', 'SELECT c FROM t WHERE id = 1') } $a, $b),
	'5 1', 'the new column of the row that both changed is as each node had it');

$a->safe_psql('postgres', 'UPDATE t SET c = c WHERE id = 1');
wait_streams(2, @streams);
is(is_equal_on([ $a, $b ], $rows, 'written once more'),
	"1|later|5\n2|old|5\n3|later|1", 'as it was written');

done_testing();
