# What goes wrong here: a key's column gets another type while there are version records of it,
# and then the table is copied from.  Values in records are of the old type.

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::Streams;
use PostgreSQL::Test::Utils;
use Test::More;

my ($a, $m, $n) = map { krahodb_node($_) } qw(a m n);

foreach my $node ($a, $m, $n)
{
	my $type = $node == $n ? 'text' : 'int';

	on($node, "CREATE EXTENSION krahodb; CREATE TABLE t (id $type PRIMARY KEY, u $type UNIQUE, k int)");
	on($node, 'ALTER TABLE t REPLICA IDENTITY FULL, ALTER k SET (krahodb.merge = delta); CREATE PUBLICATION pub FOR TABLE t');
}
subscribe($m, $a, 'copy_data = true');
$m->wait_for_subscription_sync($a, name($m, $a));
on($a, 'INSERT INTO t SELECT g, g, 1 FROM generate_series(1, 4) g');
wait_streams(1, [ $a, 'm_from_a' ]);

# m records a death of what it has deleted before, and the claim and the sum of what has lost
pause($m, $a);
on($a, 'UPDATE t SET u = 100, k = 5 WHERE id = 2; DELETE FROM t WHERE id = 1');
on($m, 'DELETE FROM t WHERE id = 1; UPDATE t SET k = 3 WHERE id = 2');
resume($m, $a);
wait_streams(1, [ $a, 'm_from_a' ]);
on($a, 'DELETE FROM t WHERE id = 1');
my $records = join ' UNION ALL ', map { "SELECT * FROM krahodb.version_records_$_" } 1 .. 4;
is(on($m, "SELECT string_agg(DISTINCT kind::text, '' ORDER BY kind::text) ~ 'c.*m' FROM ($records) r"), 't', 'there are records');

on($m, 'ALTER TABLE t ALTER id TYPE text, ALTER u TYPE text');
wait_horizon($m);
on($m, 'SELECT count(*) FROM krahodb.table_versions(\'t\', 0)');
on($m, 'SELECT count(*) FROM krahodb.merged_history(\'t\', 0)');

# nor does who asks wait for himself, in a transaction that has written
on($m, q{BEGIN; CREATE TEMP TABLE x (i int); SAVEPOINT s; INSERT INTO x VALUES (1); ROLLBACK TO s;
	SELECT count(*) FROM krahodb.table_versions('t', 0); ROLLBACK});
subscribe($n, $m, 'copy_data = true');
$n->wait_for_subscription_sync($m, name($n, $m));
is(on($n, 'TABLE t'), on($m, 'TABLE t'), 'the table is copied');
unlike(slurp_file($m->logfile), qr/terminated by signal/, 'and the publisher has not crashed');

done_testing();
