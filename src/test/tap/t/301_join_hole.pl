# What goes wrong here: a node joins by a copy from a member that lags.  It also subscribes to
# the node that the member has not heard; but what that had committed before comes by no stream, and is
# not in the copy.  So the copy must wait for the member.

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::Streams;
use PostgreSQL::Test::Utils;
use Test::More;

my ($a, $m, $n) = my @nodes = map { krahodb_node($_) } qw(a m n);

foreach my $node (@nodes)
{
	on($node, 'CREATE EXTENSION krahodb');
	on($node, 'CREATE TABLE t (id int PRIMARY KEY, n int, v text)');
	on($node, 'ALTER TABLE t REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta)');
	on($node, 'CREATE PUBLICATION pub FOR TABLE t');
}
subscribe($a, $m, 'copy_data = false');
subscribe($m, $a, 'copy_data = false');
on($a, "INSERT INTO t SELECT g, 1, 'first' FROM generate_series(1, 3) g");
wait_streams(2, @streams);
wait_horizon($m);

pause($m, $a);
on($a, "UPDATE t SET n = n + 8; UPDATE t SET v = 'a' WHERE id = 2; DELETE FROM t WHERE id = 3");

subscribe($n, $a, 'copy_data = false, enabled = false');
on($a, 'UPDATE t SET n = n + 20');
subscribe($n, $m, 'copy_data = true');
$n->wait_for_log(qr/the publisher has not applied changes of another node yet that will not come by subscription "n_from_a"/);
is(on($n, 'SELECT count(*) FROM t'), 0, 'nothing is copied from a member that lags');
is(slots_of($m), 'a_from_m,n_from_m', 'and no slot is left there meanwhile');

resume($m, $a);
$n->wait_for_subscription_sync($m, name($n, $m));
resume($n, $a);
wait_streams(2, @streams);
is(is_equal_on(\@nodes, q{SELECT string_agg(concat_ws(' ', id, n, v), ', ' ORDER BY id) FROM t}, 'joined'),
	'1 29 first, 2 29 a', 'with all that was written');
is(on($n, 'SELECT apply_error_count + sync_error_count FROM pg_stat_subscription_stats WHERE subname = ' . q{'} . name($n, $m) . q{'}),
	0, 'to wait is no error');

# ---- an origin's id that was another subscription's ------------------------------------------

on($n, 'DROP SUBSCRIPTION ' . name($n, $_)) foreach ($a, $m);
unlike(subscribe($n, $_, 'copy_data = false, enabled = false'), qr/receive the same merged columns/, 'not taken for the former publisher')
  foreach ($m, $a);

done_testing();
