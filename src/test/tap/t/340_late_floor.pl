# What goes wrong here: an apply worker has looked how far copies have brought the changes of
# its node, and knows of records of the table.  Then its stream stands still, and a copy from a member brings what
# that has already heard of the node.  The worker must notice, or applies it again.

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
	on($node, 'CREATE TABLE t (id int PRIMARY KEY, n int); CREATE TABLE held (id int PRIMARY KEY)');
	on($node, 'ALTER TABLE t REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta)');
	on($node, 'CREATE PUBLICATION pub FOR TABLE t' . ($node == $a ? ', held' : ''));
}
subscribe($a, $m, 'copy_data = false');
subscribe($m, $a, 'copy_data = false');
on($a, 'INSERT INTO t SELECT g, 1 FROM generate_series(1, 3) g');
wait_streams(2, @streams);

# Records of the table, and a look at how far it was copied.
subscribe($n, $a, 'copy_data = false');
wait_streams(1, [ $a, name($n, $a) ]);
on($a, 'DELETE FROM t WHERE id = 3');
on($a, 'INSERT INTO t VALUES (4, 1)');
wait_streams(1, [ $a, name($n, $a) ]);
is(on($n, 'SELECT string_agg(id::text, $$,$$) FROM t'), '4', 'what n has by the stream');
my $worker = q{SELECT pid FROM pg_stat_subscription WHERE subname = 'n_from_a' AND relid IS NULL};
my $pid = on($n, $worker);

my $session = $n->background_psql('postgres');
$session->query_safe('BEGIN; LOCK TABLE held');
on($a, 'INSERT INTO held VALUES (1)');
on($a, 'UPDATE t SET n = n + 8 WHERE id = 1');
$n->poll_query_until('postgres', "SELECT count(*) > 0 FROM pg_locks WHERE relation = 'held'::regclass AND NOT granted")
  or die 'the worker is not held up';
wait_streams(1, [ $a, name($m, $a) ]);
wait_horizon($m);
subscribe($n, $m, 'copy_data = true');
$n->wait_for_subscription_sync($m, name($n, $m));
is(on($n, 'SELECT n FROM t WHERE id = 1'), 9, 'the copy has it');
$session->query_safe('COMMIT');
$session->quit;
wait_streams(2, @streams);

is(on($n, $worker), $pid, 'by the same process');
is(is_equal_on(\@nodes, q{SELECT string_agg(concat_ws(' ', id, n), ', ' ORDER BY id) FROM t}, 'joined'),
	'1 9, 2 1, 4 1', 'each change is applied once');

done_testing();
