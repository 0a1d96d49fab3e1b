# What goes wrong here: a node joins by a copy, in which merged columns are one value.  Then
# changes arrive that are older than some of what has been added up there: an INSERT of the key, a
# value to and from NULL, a maximum that was lowered; and some that bring back a row which
# was deleted.  They must be combined with the same changes as on the node that was copied from.

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::Streams;
use PostgreSQL::Test::Utils;
use Test::More;

my ($a, $m, $n) = my @nodes = map { krahodb_node($_) } qw(a m n);
my @tables = qw(t p);

# The same for both tables.
sub write_on
{
	my ($node, $sql) = @_;

	on($node, $sql =~ s/\bc\b/$_/gr) foreach @tables;
	return;
}

# Partitioned: other partitions, and other types, here and there.
foreach my $node (@nodes)
{
	my $bound = $node == $n ? 5 : 10;
	my $type = $node == $n ? 'bigint' : 'int';

	on($node, 'CREATE EXTENSION krahodb');
	on($node, "CREATE TABLE t (n $type, id int PRIMARY KEY, hi int, v text)");
	on($node, 'CREATE TABLE p (id int PRIMARY KEY, n int, hi int, v text) PARTITION BY RANGE (id)');
	on($node, "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO ($bound)");
	on($node, "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM ($bound) TO (100)");
	on($node, "ALTER TABLE $_ REPLICA IDENTITY FULL") foreach qw(t p p1 p2);
	on($node, "ALTER TABLE $_ ALTER n SET (krahodb.merge = delta), ALTER hi SET (krahodb.merge = max)") foreach @tables;
	on($node, 'CREATE PUBLICATION pub FOR TABLE t, p WITH (publish_via_partition_root = true)');
}
subscribe($a, $m, 'copy_data = false');
subscribe($m, $a, 'copy_data = false');
write_on($a, "INSERT INTO c (id, n, hi) SELECT g, 1, 10 FROM generate_series(1, 10) g");
wait_streams(2, @streams);
wait_horizon($m);

# ---- what m has and lacks when n copies from it ------------------------------------------------

subscribe($n, $a, 'copy_data = false, enabled = false');
pause_subscription($m, name($m, $a));
pause_subscription($a, name($a, $m));

write_on($a, 'INSERT INTO c (id, n, hi) VALUES (11, 100, 5)');	# loses to that of m
write_on($m, 'INSERT INTO c (id, n, hi) VALUES (11, 1, 1), (12, 1, 1)');
write_on($a, 'INSERT INTO c (id, n, hi) VALUES (12, 100, 5)');	# wins, and is followed by changes of m

write_on($a, 'UPDATE c SET n = NULL WHERE id = 1; UPDATE c SET n = 50 WHERE id = 1');
write_on($a, 'UPDATE c SET hi = 3 WHERE id = 2');
write_on($a, 'UPDATE c SET n = n + 3 WHERE id IN (3, 4)');
write_on($m, 'UPDATE c SET n = n + 5, hi = hi + 10 WHERE id IN (1, 2, 3, 5, 11, 12)');
write_on($m, 'DELETE FROM c WHERE id IN (3, 4, 5, 6)');

# a life of which nothing counts, and one that begins again
write_on($m, 'UPDATE c SET n = n + 5 WHERE id = 7; DELETE FROM c WHERE id = 7; INSERT INTO c (id, n, hi) VALUES (7, 2, 2)');
write_on($m, 'UPDATE c SET n = n + 1 WHERE id = 7');

# these bring rows back, or are newer than all in the copy
write_on($a, "UPDATE c SET n = n + 100, v = 'revived' WHERE id IN (3, 4, 5, 6)");
write_on($a, "UPDATE c SET n = n + 100, v = 'newer' WHERE id IN (7, 8)");

subscribe($n, $m, 'copy_data = true');
$n->wait_for_subscription_sync($m, name($n, $m));
is(on($n, "SELECT string_agg(id || ' ' || n || ' ' || hi, ', ' ORDER BY id) FROM $_"),
	'1 6 20, 2 6 20, 7 3 2, 8 1 10, 9 1 10, 10 1 10, 11 6 11, 12 6 11', "copied $_") foreach @tables;

# n could be copied from, too (its rows themselves are older than all)
foreach my $table (@tables)
{
	my $histories = "SELECT string_agg(h::text, ' ' ORDER BY h::text) FROM
		(SELECT live, columns, \"values\", \"time\", node, contributed FROM krahodb.merged_history('$table', %s)
			WHERE \"time\" > 200000000000000) h";
	my $since = on($m, 'SELECT krahodb.hold_horizon()');
	my $list = on($m, sprintf($histories, $since));

	like($list, qr/\(f,\{id\},\{3\},.*\(t,\{id\},\{11\},/, "histories of $table");
	is(on($n, sprintf($histories, $since)), $list, 'they are known here');
}

# ---- all arrives -------------------------------------------------------------------------------

# first what is newer than all in the copy, and loses to a change that was made here
subscribe($_, $n, 'copy_data = false') foreach ($a, $m);
pause_subscription($n, name($n, $m));
write_on($m, 'UPDATE c SET n = n + 7 WHERE id IN (1, 7, 11, 12)');
write_on($n, 'UPDATE c SET n = n + 70 WHERE id IN (1, 7, 11, 12)');
resume($n, $m);
wait_streams(1, [ $m, name($n, $m) ]);
my $sums = "SELECT string_agg(id || ' ' || n || ' ' || hi, ', ' ORDER BY id) FROM";
is(on($n, "$sums $_"), '1 83 20, 2 6 20, 7 80 2, 8 1 10, 9 1 10, 10 1 10, 11 83 11, 12 83 11',
	"$_: changes of the rows that were copied") foreach @tables;

resume($n, $a);
wait_streams(1, [ $a, name($n, $a) ]);
my $expected = join ', ', '1 132 20', '2 6 20', '3 109 20', '4 104 10', '5 106 20', '6 101 10',
  '7 180 2', '8 101 10', '9 1 10', '10 1 10', '11 83 11', '12 182 11';
is(on($n, "$sums $_"), $expected, "$_: on the node that has joined") foreach @tables;
resume($m, $a);
resume($a, $m);
wait_streams(2, @streams);
is(is_equal_on(\@nodes, "$sums $_", "$_: the same on all nodes"), $expected, "$_: each change counts once") foreach @tables;

# ---- the horizon passes it ---------------------------------------------------------------------

wait_horizon($n);
pause_subscription($n, name($n, $a));
write_on($a, 'UPDATE c SET n = n + 1000');
write_on($n, 'UPDATE c SET n = n + 10000');
resume($n, $a);
wait_streams(2, @streams);
$expected =~ s/(\d+) (\d+)(?= \d+(,|$))/"$1 " . ($2 + 11000)/ge;
is(is_equal_on(\@nodes, "$sums $_", "$_: behind the horizon"), $expected, "$_: and what follows") foreach @tables;

done_testing();
