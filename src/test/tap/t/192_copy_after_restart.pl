# What goes wrong here: a node that others join from is killed while one of its peers is
# down, and the peer stays down.  Whoever copies a table must be told of which nodes all
# is in it.  That must not wait for the peer, and must still be right: what is in the copy
# comes once more by the peer's own stream when it is back.

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::Streams;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($p, $down, $up, $n) = my @nodes = map { krahodb_node($_) } qw(p down up n);

foreach my $node (@nodes)
{
	on($node, 'CREATE EXTENSION krahodb');
	on($node, 'CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE c (id int PRIMARY KEY, n int)');
	on($node, 'ALTER TABLE c REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta)');
	on($node, 'CREATE PUBLICATION pub FOR TABLE t, c');
}
foreach my $pair ([ $p, $down ], [ $down, $p ], [ $p, $up ], [ $up, $p ], [ $up, $down ], [ $down, $up ])
{
	subscribe(@$pair, 'copy_data = false');
}
on($down, 'INSERT INTO c SELECT g, 1 FROM generate_series(1, 2) g');
on($down, "INSERT INTO t VALUES (1, 'first')");
wait_streams(2, @streams);

# n listens to the one that will be down, but does not apply anything yet
subscribe($n, $down, 'copy_data = false, enabled = false');

# what p has applied and forgotten
on($down, "INSERT INTO t VALUES (2, 'gone')");
wait_streams(1, [ $down, name($p, $down) ]);
on($p, 'DELETE FROM t WHERE id = 2');
wait_streams(1, [ $p, name($down, $p) ], [ $p, name($up, $p) ]);
wait_horizon($p);
on($p, 'VACUUM (FREEZE) t');

# and what is newer than its horizon
on($down, 'UPDATE c SET n = n + 10');
on($down, "UPDATE t SET v = 'second'");
wait_streams(1, [ $down, name($p, $down) ]);
$down->stop('immediate');
on($p, 'UPDATE c SET n = n + 100 WHERE id = 2; CHECKPOINT');
on($p, "SELECT pg_switch_wal()");

$p->kill9;
start_after_kill($p);
subscribe($n, $p, 'copy_data = true');
$n->wait_for_subscription_sync($p, name($n, $p));
is(on($n, "SELECT string_agg(id || ' ' || n, ', ' ORDER BY id) FROM c"), '1 11, 2 111', 'copied after a crash');
is(on($p, "SELECT state FROM krahodb.horizon WHERE subscription = '" . name($p, $down) . "'"), 'unreachable', 'without the peer');

# a clean restart, and a horizon worker that fails
foreach ($p, $n)
{
	on($_, 'CREATE TABLE later (id int PRIMARY KEY); CREATE TABLE last (id int PRIMARY KEY)');
}
on($p, 'INSERT INTO later SELECT generate_series(1, 5); INSERT INTO last SELECT generate_series(1, 6)');
on($p, 'ALTER PUBLICATION pub ADD TABLE later');
$p->restart;
on($n, 'ALTER SUBSCRIPTION ' . name($n, $p) . ' REFRESH PUBLICATION');
$n->wait_for_subscription_sync($p, name($n, $p));
is(on($n, 'SELECT count(*) FROM later'), 5, 'copied after a restart');

my $worker = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'krahodb horizon'};
my $pid = on($p, $worker);
on($p, "SELECT pg_terminate_backend($pid)");
$p->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'krahodb horizon' AND pid <> $pid")
  or die 'no other horizon worker';
on($p, 'ALTER PUBLICATION pub ADD TABLE last');
on($n, 'ALTER SUBSCRIPTION ' . name($n, $p) . ' REFRESH PUBLICATION');
$n->wait_for_subscription_sync($p, name($n, $p));
is(on($n, 'SELECT count(*) FROM last'), 6, 'and when the horizon worker was replaced');

# the peer is back
$down->start;
subscribe($_, $n, 'copy_data = false') foreach ($p, $down, $up);
subscribe($n, $up, 'copy_data = false');
resume($n, $down);
on($down, 'UPDATE c SET n = n + 1000 WHERE id = 1');
wait_streams(2, @streams);
is(is_equal_on(\@nodes, "SELECT string_agg(id || ' ' || n, ', ' ORDER BY id) FROM c", 'the same on all nodes'),
	'1 1011, 2 111', 'each change counts once');
is(is_equal_on(\@nodes, "SELECT string_agg(t::text, ' ' ORDER BY id) FROM t", 'rows'), '(1,second)', 'what was deleted does not come back');

done_testing();
