# What goes wrong here: a node joins by a copy in ranges that dies in the middle, and rows change
# at the publisher before it goes on: of ranges that are done, that are not, and of keys that
# were deleted.  What merged columns consist of has come with each attempt, and must count once.

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::Streams;
use PostgreSQL::Test::Utils;
use Test::More;

my ($a, $m, $n) = my @nodes =
  map { krahodb_node($_, conf => "krahodb.copy_range_size = 64kB\nkrahodb.copy_workers_per_table = 1\n") } qw(a m n);

foreach my $node (@nodes)
{
	on($node, 'CREATE EXTENSION krahodb; CREATE TABLE t (id int PRIMARY KEY, n int, pad text) WITH (fillfactor = 50)');
	on($node, 'ALTER TABLE t REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta); CREATE PUBLICATION pub FOR TABLE t');
}
subscribe($a, $m, 'copy_data = false');
subscribe($m, $a, 'copy_data = false');
on($a, "INSERT INTO t SELECT g, 1, repeat('x', 100) FROM generate_series(1, 6000) g");
wait_streams(2, @streams);
wait_horizon($m);

# ---- two attempts ------------------------------------------------------------------------------

subscribe($n, $a, 'copy_data = false, enabled = false');
pause_subscription($m, name($m, $a));
pause_subscription($a, name($a, $m));

# rows in the first and last ranges (where they stay: pages have room), and some that will be dead: at the first attempt, at the second
my $rows = '(1, 2, 10, 11, 5990, 5991)';
my $dead = '(3, 4, 5980)';
on($a, "UPDATE t SET n = NULL WHERE id IN $rows; UPDATE t SET n = 50 WHERE id IN $rows");
on($m, "UPDATE t SET n = n + 5 WHERE id IN $rows OR id IN $dead OR id = 5");
on($m, "DELETE FROM t WHERE id IN $dead");

my $offset = -s $n->logfile;
arm_fault($n, 'copy_range_after_commit@6=wait');
reload_settings($n);
subscribe($n, $m, 'copy_data = true');
$n->wait_for_log(qr/fault point "copy_range_after_commit" reached: wait/, $offset);
cmp_ok(on($n, 'SELECT count(*) FROM t'), '>', 100, 'some ranges are copied');
cmp_ok(on($n, 'SELECT count(*) FROM t'), '<', 5900, 'but not all');
on($m, 'UPDATE t SET n = n + 7 WHERE id IN (1, 10, 20, 5990)');
on($m, 'DELETE FROM t WHERE id = 5');
on($a, "UPDATE t SET n = n + 100 WHERE id IN $dead OR id = 5");
on($n, q{SELECT pg_terminate_backend(pid) FROM pg_stat_subscription WHERE relid = 't'::regclass});
disarm_fault($n);
reload_settings($n);
$n->wait_for_subscription_sync($m, name($n, $m));
like(slurp_file($n->logfile, $offset), qr/copied in \d+ ranges, [1-9]\d* of which are here/, 'the copy has gone on');

# ---- all arrives -------------------------------------------------------------------------------

subscribe($_, $n, 'copy_data = false') foreach ($a, $m);
my $changed = "SELECT string_agg(id || ' ' || n, ', ' ORDER BY id) FROM t WHERE n <> 1";
my $expected = '1 62, 2 55, 3 106, 4 106, 5 106, 10 62, 11 55, 20 8, 5980 106, 5990 62, 5991 55';
resume($n, $a);
wait_streams(1, [ $a, name($n, $a) ]);
is(on($n, $changed), $expected, 'on the node that has joined');
resume($m, $a);
resume($a, $m);
wait_streams(2, @streams);
is(is_equal_on(\@nodes, $changed, 'the same on all nodes'), $expected, 'each change counts once');
is_equal_on(\@nodes, 'SELECT count(*), sum(n) FROM t', 'and nothing else has changed');

done_testing();
