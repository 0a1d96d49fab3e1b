# What goes wrong here: a copy is interrupted, rows of it are changed here, and the
# publisher's table is being rewritten when it goes on.  The new file has as many rows in
# each range as the old one had, but others: a range that is taken for unchanged has rows
# that another one had before, and nobody copies them.

use strict;
use warnings;

use KrahoDB::Copy;
use KrahoDB::Nodes;
use Test::More;

start_nodes();

foreach my $node ($pub, $sub)
{
	$node->safe_psql('postgres', 'CREATE TABLE t (id int PRIMARY KEY, pad char(80))');
}
$pub->safe_psql('postgres', q{INSERT INTO t SELECT g, 'row' FROM generate_series(1, 20000) g; CREATE PUBLICATION t FOR TABLE t});

my $held = hold_at('copy_range_after_commit@4');
subscribe('t', 'origin = none');
$held->();
$sub->safe_psql('postgres', q{UPDATE t SET pad = 'changed' WHERE id = (SELECT max(id) FROM t)});
$sub->stop('immediate');
disarm_fault($sub);

$pub->safe_psql('postgres', 'DELETE FROM t WHERE id <= 1000');
my $rewrite = $pub->background_psql('postgres');
$rewrite->query_safe('BEGIN');
$rewrite->query_safe('CLUSTER t USING t_pkey');
my $offset = -s $sub->logfile;
$sub->start;
$pub->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_locks WHERE relation = 't'::regclass AND NOT granted})
  or die 'timed out waiting for the worker';
$rewrite->query_safe('COMMIT');
$rewrite->quit;

wait_ready();
wait_streams(1, [ $pub, 't' ]);
is_equal_on([ $pub, $sub ], 'SELECT count(*), min(id), max(id), sum(id) FROM t', 'the table was being rewritten');
is((ranges_since($offset))[1], 0, 'nothing of the old file is kept');

$sub->stop;
$pub->stop;
done_testing();
