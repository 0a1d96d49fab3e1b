# What goes wrong here: a copy in ranges begins again with its old slot, because rows were changed
# here meanwhile.  The rows that come then have in them what the publisher did between the attempts,
# and the stream from the old slot brings that again: it must not be added to merged columns twice, and must be
# added to rows that stay as they are here.

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::Streams;
use PostgreSQL::Test::Utils;
use Test::More;

my ($m, $n) = my @nodes =
  map { krahodb_node($_, conf => "krahodb.copy_range_size = 64kB\nkrahodb.copy_workers_per_table = 1\n") } qw(m n);

foreach my $node (@nodes)
{
	on($node, 'CREATE EXTENSION krahodb; CREATE TABLE t (id int PRIMARY KEY, n int, pad text) WITH (fillfactor = 50)');
	on($node, 'ALTER TABLE t REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta); CREATE PUBLICATION pub FOR TABLE t');
}
on($m, "INSERT INTO t SELECT g, 1, repeat('x', 100) FROM generate_series(1, 6000) g");
subscribe($m, $n, 'copy_data = false');
wait_horizon($m);
pause($m, $n);
my $end_copy = q{SELECT pg_terminate_backend(pid) FROM pg_stat_subscription WHERE relid = 't'::regclass};

# ---- three attempts ------------------------------------------------------------------------------

my $offset = -s $n->logfile;
arm_fault($n, 'copy_range_after_commit@6=wait');
reload_settings($n);
subscribe($n, $m, 'copy_data = true');
$n->wait_for_log(qr/fault point "copy_range_after_commit" reached: wait/, $offset);

# 1 to 20 are here, the others are not
on($m, 'UPDATE t SET n = n + 7 WHERE id IN (1, 10, 20, 5990)');
on($m, 'BEGIN; UPDATE t SET n = n + 100 WHERE id = 5991; UPDATE t SET n = n + 1000 WHERE id = 5991; COMMIT');
on($m, "INSERT INTO t VALUES (7001, 10, 'new'); UPDATE t SET n = n + 3 WHERE id = 7001");
on($m, 'UPDATE t SET n = n + 5 WHERE id IN (3, 5980); DELETE FROM t WHERE id IN (3, 5980)');
on($m, 'UPDATE t SET id = 7002, n = n + 2 WHERE id = 5970; UPDATE t SET n = n + 4 WHERE id = 7002');
on($m, 'BEGIN; UPDATE t SET id = 7003 WHERE id = 5971; UPDATE t SET n = n + 4 WHERE id = 7003; COMMIT');
on($m, 'BEGIN; UPDATE t SET n = NULL WHERE id = 5972; UPDATE t SET n = 50 WHERE id = 5972; UPDATE t SET n = n + 3 WHERE id = 5972; COMMIT');
on($n, 'UPDATE t SET n = n + 20 WHERE id IN (1, 2)');

# the second attempt does not show one that is not committed yet, though later ones are
my $open = $m->background_psql('postgres');
$open->query_safe('BEGIN; UPDATE t SET n = n + 9 WHERE id IN (11, 5992)');
on($m, 'UPDATE t SET n = n + 6 WHERE id IN (12, 5993)');
$offset = -s $n->logfile;
on($n, $end_copy);
$n->wait_for_log(qr/fault point "copy_range_after_commit" reached: wait/, $offset);
like(slurp_file($n->logfile, $offset), qr/copied in \d+ ranges, [1-9]\d* of which are here/, 'the copy has gone on');
$open->query_safe('COMMIT');
$open->quit;

# and it is cut off as well
on($m, 'UPDATE t SET n = n + 40 WHERE id IN (1, 10, 12, 5993, 5994)');
on($n, 'UPDATE t SET n = n + 60 WHERE id IN (1, 10)');
$offset = -s $n->logfile;
disarm_fault($n);
reload_settings($n);
on($n, $end_copy);
$n->wait_for_subscription_sync($m, name($n, $m));
like(slurp_file($n->logfile, $offset), qr/copied in \d+ ranges, [1-9]\d* of which are here/, 'and once more');

# ---- all arrives -------------------------------------------------------------------------------

my $changed = "SELECT string_agg(id || ' ' || n, ', ' ORDER BY id) FROM t WHERE n <> 1";
my $expected = '1 128, 2 21, 10 108, 11 10, 12 47, 20 8, 5972 53, 5990 8, 5991 1101, 5992 10, 5993 47, 5994 41, 7001 13, 7002 7, 7003 5';
wait_streams(1, [ $m, name($n, $m) ]);
is(on($n, $changed), $expected, 'each change counts once on the node that has joined');
resume($m, $n);
wait_streams(2, @streams);
is(is_equal_on(\@nodes, $changed, 'the same on all nodes'), $expected, 'and everywhere');

# what comes later counts
on($m, 'UPDATE t SET n = n + 30 WHERE id IN (1, 10, 5990, 7001)');
on($n, 'UPDATE t SET n = n + 300 WHERE id IN (1, 10, 5991, 7001)');
wait_streams(2, @streams);
is(is_equal_on(\@nodes, $changed, 'still the same'), '1 458, 2 21, 10 438, 11 10, 12 47, 20 8, 5972 53, 5990 38, 5991 1401, 5992 10, 5993 47, 5994 41, 7001 343, 7002 7, 7003 5',
	'what comes later counts');
is_equal_on(\@nodes, 'SELECT count(*), sum(n) FROM t', 'and nothing else has changed');

done_testing();
