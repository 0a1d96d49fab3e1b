# What goes wrong here: ALTER TABLE writes all rows of a table anew, by a transaction that
# is later than whatever was committed elsewhere meanwhile.  Its rows are not newer for that.
# A change that waits for the command, or is still on its way, must not lose to it.

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::PausedMesh;
use PostgreSQL::Test::Utils;
use Test::More;

my $mesh = KrahoDB::PausedMesh->new(
	names => [qw(n1 n2)],
	publications => 'pub',
	schema => q{
		CREATE EXTENSION krahodb;
		CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE, v text);
		CREATE TABLE m (id int PRIMARY KEY, n int);
		ALTER TABLE m REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta);
		CREATE TABLE part (id int, r int, v text, PRIMARY KEY (id, r)) PARTITION BY LIST (r);
		CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1);
		CREATE TABLE doc (id int PRIMARY KEY, v text, w text);
		ALTER TABLE doc ALTER w SET STORAGE EXTERNAL;
		CREATE PUBLICATION pub FOR TABLE t, m, part, doc});
my $node = $mesh->node(2);

$mesh->on(1 => q{INSERT INTO t SELECT g, g, 'old' FROM generate_series(1, 9) g},
	1 => q{INSERT INTO m SELECT g, 100 FROM generate_series(1, 3) g},
	1 => q{INSERT INTO part VALUES (1, 1, 'old')});
$mesh->settle;

sub rewritten
{
	my ($name, $writes, $command, $query, $expected) = @_;

	$mesh->pause;
	$mesh->on(1 => $writes, 2 => $command);
	$mesh->deliver('21', '12');
	is($node->safe_psql('postgres', $query), $expected, "$name: here");
	is($mesh->rows($query), $expected, "$name: elsewhere");
	return;
}

rewritten('updates and deletions',
	q{UPDATE t SET v = 'new' WHERE id = 1; DELETE FROM t WHERE id = 2},
	'ALTER TABLE t ALTER u TYPE bigint',
	'SELECT id, v FROM t WHERE id < 3', '1|new');
rewritten('unique values',
	q{DELETE FROM t WHERE id = 3; INSERT INTO t VALUES (13, 3, 'new')},
	q{INSERT INTO t VALUES (15, 15, 'here'); ALTER TABLE t ALTER v TYPE varchar(99)},
	'SELECT id, u, v FROM t WHERE u IN (3, 15) ORDER BY id', "13|3|new\n15|15|here");
rewritten('merged columns',
	q{UPDATE m SET n = n + 1 WHERE id = 1; UPDATE m SET n = n + 2 WHERE id = 2},
	q{UPDATE m SET n = n + 10 WHERE id = 1; ALTER TABLE m ALTER n TYPE bigint},
	'SELECT * FROM m WHERE id < 3 ORDER BY id', "1|111\n2|102");
rewritten('a partition',
	q{UPDATE part SET v = 'new'},
	'ALTER TABLE part ALTER v TYPE varchar(99)',
	'SELECT * FROM part', '1|1|new');
rewritten('what has changed here since',
	q{UPDATE t SET v = 'older' WHERE id = 4},
	q{BEGIN; ALTER TABLE t ALTER id TYPE bigint; COMMIT; UPDATE t SET v = 'newer' WHERE id = 4},
	'SELECT id, v FROM t WHERE id = 4', '4|newer');
rewritten('what the same transaction has changed afterwards',
	q{UPDATE t SET v = 'older' WHERE id IN (5, 6)},
	q{BEGIN; ALTER TABLE t ALTER u TYPE numeric; UPDATE t SET v = 'newer' WHERE id = 5; COMMIT},
	'SELECT id, v FROM t WHERE id IN (5, 6) ORDER BY id', "5|newer\n6|older");

# What was not sent is not taken from a row that may be anybody's.
$mesh->on(1 => q{INSERT INTO doc VALUES (1, 'old', repeat('old', 4000))});
$mesh->settle;
$mesh->pause;
$mesh->on(2 => q{UPDATE doc SET w = repeat('two', 4000)},
	1 => q{UPDATE doc SET v = 'new'},
	2 => 'ALTER TABLE doc ALTER v TYPE varchar(99)');
$mesh->deliver('21', '12');
$mesh->all_equal('values that were not sent', 'SELECT id, v, left(w, 3) FROM doc ORDER BY id');
is($mesh->rows('SELECT v, left(w, 3) FROM doc'), 'new|old', 'the last update decides the row');

is($mesh->errors, 0, 'no error');
$mesh->stop;
done_testing();
