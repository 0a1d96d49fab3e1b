# What goes wrong here: a node joins by a copy while contributions to merged columns are on
# their way.  Those that the copy contains come once more by the stream of their own
# node, and must not be counted twice; those that it does not contain must be.

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
	on($node, 'CREATE TABLE c (id int PRIMARY KEY, n int, v text)');
	on($node, 'ALTER TABLE c REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta)');
	on($node, 'CREATE PUBLICATION pub FOR TABLE c');
}
subscribe($a, $m, 'copy_data = false');
subscribe($m, $a, 'copy_data = false');
on($a, 'INSERT INTO c SELECT g, 1 FROM generate_series(1, 4) g');
wait_streams(2, @streams);
my $now = on($m, 'SELECT clock_timestamp()');
on($m, 'SELECT txid_current()');
$m->poll_query_until('postgres', "SELECT horizon > '$now' FROM krahodb.horizon_state()")
  or die 'the horizon does not move';

# n listens to a from here on; the horizon of m stays where it is
subscribe($n, $a, 'copy_data = false, enabled = false');
my $holder = $m->background_psql('postgres');
isnt($holder->query_safe('SELECT krahodb.hold_horizon()'), '0', 'the horizon of m is held');

# in the copy: of another row, of this one, followed by another change, and of a row that goes
on($a, 'UPDATE c SET n = n + 10');
on($a, "UPDATE c SET n = n + 10, v = 'twice' WHERE id = 2");
wait_streams(1, [ $a, name($m, $a) ]);
on($m, 'UPDATE c SET n = n + 100 WHERE id = 3');
on($m, 'DELETE FROM c WHERE id = 4');

# and what m applies when the copy has begun, but not its snapshot
arm_fault($n, 'copy_horizon_held=wait');
$n->reload;
subscribe($n, $m, 'copy_data = true');
$m->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query ~ 'table_versions' AND state = 'idle' AND backend_type = 'walsender'})
  or die 'the copy does not begin';
on($a, 'UPDATE c SET n = n + 20 WHERE id = 1');
wait_streams(1, [ $a, name($m, $a) ]);

# not in the copy
pause_subscription($m, name($m, $a));
on($a, 'UPDATE c SET n = n + 1000 WHERE id <= 2');
disarm_fault($n);
$n->reload;
$n->wait_for_subscription_sync($m, name($n, $m));
is(on($n, "SELECT string_agg(id || ' ' || n, ', ' ORDER BY id) FROM c"), '1 31, 2 21, 3 111', 'copied');
$holder->quit;

subscribe($_, $n, 'copy_data = false') foreach ($a, $m);
resume($n, $a);
wait_streams(1, [ $a, name($n, $a) ]);
resume($m, $a);
on($a, 'UPDATE c SET n = n + 10000 WHERE id = 3');
wait_streams(2, @streams);
is(is_equal_on(\@nodes, "SELECT string_agg(id || ' ' || n, ', ' ORDER BY id) FROM c", 'the same on all nodes'),
	'1 1031, 2 1021, 3 10111', 'each change counts once');

done_testing();
