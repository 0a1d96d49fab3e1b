# What goes wrong here: ALTER TABLE writes all rows of a table anew, by a transaction that
# is later than whatever was committed elsewhere meanwhile.  Its rows are not newer for that.
# A change that waits for the command, or is still on its way, must not lose to it.  But it must lose
# to what a row was before, or to a deletion that the old storage knew of.

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::PausedMesh;
use PostgreSQL::Test::Utils;
use Test::More;

# Older changes lose to what was known of rows and keys before: each in a table of its own, all at once.
# What n1 writes is older; the command is n2's.
my @cases = (
	[ 'newer rows', 'UPDATE % SET v = 1; DELETE FROM % WHERE id = 4',
		q{UPDATE % SET v = 2 WHERE id = 1; DELETE FROM % WHERE id = 2; UPDATE % SET id = 10 WHERE id = 3;
			ALTER TABLE % ALTER u TYPE bigint},
		'SELECT id, v FROM % ORDER BY id', "1|2\n5|1\n10|0" ],
	[ 'unique values, the index stays', 'UPDATE % SET u = 10 WHERE id = 1; UPDATE % SET u = 20 WHERE id = 2',
		q{INSERT INTO % VALUES (10, 10), (20, 20); UPDATE % SET u = 11 WHERE id = 10; ALTER TABLE % ALTER v TYPE numeric},
		'SELECT id, u FROM % WHERE id IN (1, 2, 10, 20) ORDER BY id', "10|11\n20|20" ],
	[ 'unique values, the index is a new one', 'UPDATE % SET u = 10 WHERE id = 1; UPDATE % SET u = 20 WHERE id = 2',
		q{INSERT INTO % VALUES (10, 10), (20, 20); UPDATE % SET u = 11 WHERE id = 10; ALTER TABLE % ALTER u TYPE numeric},
		'SELECT id, u FROM % WHERE id IN (1, 2, 10, 20) ORDER BY id', "10|11\n20|20" ],
	[ 'a partial index on an expression', 'UPDATE % SET w = 10 WHERE id = 1',
		q{INSERT INTO % (id, w) VALUES (10, -10); UPDATE % SET w = 11 WHERE id = 10; ALTER TABLE % ALTER v TYPE bigint},
		'SELECT id, w FROM % WHERE id IN (1, 10)', '10|11' ],
	[ 'an exclusion constraint', 'UPDATE % SET e = 10 WHERE id = 1',
		q{INSERT INTO % (id, e) VALUES (10, 10); UPDATE % SET e = 11 WHERE id = 10; ALTER TABLE % ALTER e TYPE bigint},
		'SELECT id, e FROM % WHERE id IN (1, 10)', '10|11' ],
	[ 'a generated column', 'UPDATE % SET x = 10 WHERE id = 1',
		q{INSERT INTO % (id, x) VALUES (10, 10); UPDATE % SET x = 11 WHERE id = 10; ALTER TABLE % ALTER v TYPE bigint},
		'SELECT id, x FROM % WHERE id IN (1, 10)', '10|11' ],
	[ 'a key that is converted', 'UPDATE % SET v = 1 WHERE id < 3',
		'UPDATE % SET v = 2 WHERE id = 1; DELETE FROM % WHERE id = 2; ALTER TABLE % ALTER id TYPE numeric',
		'SELECT id, v FROM % WHERE id < 3', '1|2' ],
	[ 'a key that is computed', 'UPDATE % SET v = 1 WHERE id < 3',
		q{UPDATE % SET v = 2 WHERE id = 1; DELETE FROM % WHERE id = 2;
			ALTER TABLE % ALTER id TYPE bigint USING (%.id * 2 + v * 0) / 2},
		'SELECT id, v FROM % WHERE id < 3', '1|2' ],
	[ 'a command within the transaction', 'UPDATE % SET v = 1; UPDATE % SET u = 20 WHERE id = 5',
		q{UPDATE % SET v = 2 WHERE id = 1;
			BEGIN; UPDATE % SET v = 2 WHERE id = 2; DELETE FROM % WHERE id = 3;
			INSERT INTO % VALUES (10, 20); UPDATE % SET u = 21 WHERE id = 10; ALTER TABLE % ALTER id TYPE bigint;
			UPDATE % SET v = 2 WHERE id = 4; ALTER TABLE % ALTER u TYPE bigint; COMMIT},
		'SELECT id, u, v FROM % ORDER BY id', "1|1|2\n2|2|2\n4|4|2\n10|21|0" ],
	[ 'twice, and rolled back', 'UPDATE % SET v = 1 WHERE id < 3; UPDATE % SET u = 20 WHERE id = 3',
		q{UPDATE % SET v = 2 WHERE id = 1; DELETE FROM % WHERE id = 2; INSERT INTO % VALUES (10, 20);
			UPDATE % SET u = 21 WHERE id = 10; ALTER TABLE % ALTER u TYPE bigint; ALTER TABLE % ALTER id TYPE bigint;
			BEGIN; ALTER TABLE % ALTER id TYPE text; ROLLBACK;
			BEGIN; SAVEPOINT s; ALTER TABLE % ALTER id TYPE text; ROLLBACK TO s; ALTER TABLE % ALTER u TYPE numeric; COMMIT},
		'SELECT id, u, v FROM % WHERE id IN (1, 2, 3, 10) ORDER BY id', "1|1|2\n10|21|0" ],
	[ 'a volatile default', 'UPDATE % SET v = 1 WHERE id = 1',
		'UPDATE % SET v = 2 WHERE id = 1; ALTER TABLE % ADD r float DEFAULT random(); ALTER TABLE % DROP r',
		'SELECT id, v FROM % WHERE id = 1', '1|2' ],
	[ 'a partition', 'UPDATE part SET v = 1',
		'UPDATE part SET v = 2; ALTER TABLE part ALTER v TYPE varchar(50), ALTER id TYPE bigint USING id + 0',
		'SELECT * FROM part', '1|1|2' ],
	[ 'a partition, whose index gets another name', 'UPDATE named SET u = 10 WHERE id = 1',
		q{INSERT INTO named VALUES (10, 1, 10, 0); UPDATE named SET u = 11 WHERE id = 10;
			ALTER TABLE named ALTER v TYPE bigint; ALTER TABLE named ALTER u TYPE bigint},
		'SELECT id, u FROM named WHERE id IN (1, 10)', '10|11' ],
	[ 'records, and types of the same form', q{UPDATE word SET v = 1 WHERE id < '3'; UPDATE word SET u = 'x' WHERE id = '3'},
		q{UPDATE word SET v = 2 WHERE id = '1'; DELETE FROM word WHERE id = '2'; INSERT INTO word VALUES ('10', 'x', 0);
			UPDATE word SET u = 'y' WHERE id = '10'; ALTER TABLE word ALTER v TYPE bigint; ALTER TABLE word ALTER id TYPE text, ALTER u TYPE text},
		'SELECT * FROM word ORDER BY id', "1|1|2\n10|y|0" ],
	[ 'a typed table', 'UPDATE typed SET v = 1', 'ALTER TYPE typed_row ALTER ATTRIBUTE v TYPE bigint CASCADE',
		'SELECT * FROM typed', '1|1' ],
	[ 'what is written after it', 'SELECT 1',
		'DELETE FROM % WHERE id = 1; ALTER TABLE % ALTER u TYPE bigint; INSERT INTO % VALUES (1, 1, 5)',
		'SELECT id, v FROM % WHERE id = 1', '1|5' ],
	[ 'what was changed after it, and locked', 'UPDATE % SET v = 1 WHERE id = 1',
		'BEGIN; ALTER TABLE % ALTER u TYPE bigint; UPDATE % SET v = 2 WHERE id = 1; COMMIT; SELECT FROM % WHERE id = 1 FOR UPDATE',
		'SELECT id, v FROM % WHERE id = 1', '1|2' ],
	[ 'what is written after it in its transaction, and locked', 'INSERT INTO % VALUES (10, 10, 1), (11, 11, 1)',
		q{BEGIN; ALTER TABLE % ALTER u TYPE bigint; INSERT INTO % VALUES (10, 10, 2), (11, 11, 2); UPDATE % SET w = 20 WHERE id = 11; COMMIT;
			SELECT FROM % FOR UPDATE},
		'SELECT id, v FROM % WHERE id IN (10, 11) ORDER BY id', "10|2\n11|2" ],
	[ 'VACUUM FULL before', 'UPDATE % SET v = 1 WHERE id < 4',
		'DELETE FROM % WHERE id = 1; UPDATE % SET id = 10 WHERE id = 2; UPDATE % SET v = 2 WHERE id = 3; VACUUM FULL %; ALTER TABLE % ALTER u TYPE bigint',
		'SELECT id, v FROM % WHERE id IN (1, 2, 3, 10) ORDER BY id', "3|2\n10|0" ],
	[ 'what arrives after it', 'DELETE FROM % WHERE id = 1; INSERT INTO % VALUES (1, 1, 5)',
		'ALTER TABLE % ALTER u TYPE bigint', 'SELECT id, v FROM % WHERE id = 1', '1|5' ]);

sub table_of_case
{
	my ($i) = @_;

	return "CREATE TABLE c$i (id int PRIMARY KEY, u int UNIQUE, v int DEFAULT 0, w int, e int, x int,
			g int UNIQUE GENERATED ALWAYS AS (x + 1) STORED, EXCLUDE (e WITH =));
		CREATE UNIQUE INDEX ON c$i (abs(w)) WHERE v < 100;
		ALTER PUBLICATION pub ADD TABLE c$i";
}

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
		CREATE TABLE named (id int, r int, u int, v int, PRIMARY KEY (id, r), UNIQUE (u, r)) PARTITION BY LIST (r);
		CREATE TABLE named_1 (id int NOT NULL, r int NOT NULL, u int, v int, CONSTRAINT odd UNIQUE (u, r));
		ALTER TABLE named ATTACH PARTITION named_1 FOR VALUES IN (1);
		CREATE TABLE word (id varchar(10) PRIMARY KEY, u varchar(10) UNIQUE, v int);
		CREATE TABLE doc (id int PRIMARY KEY, v text, w text);
		ALTER TABLE doc ALTER w SET STORAGE EXTERNAL;
		CREATE TYPE typed_row AS (id int, v int);
		CREATE TABLE typed OF typed_row (PRIMARY KEY (id));
		CREATE PUBLICATION pub FOR TABLE t, m, part, named, word, doc, typed;} . join ';', map { table_of_case($_) } 0 .. $#cases);
my $node = $mesh->node(2);

$mesh->on(1 => q{INSERT INTO t SELECT g, g, 'old' FROM generate_series(1, 9) g},
	1 => q{INSERT INTO m SELECT g, 100 FROM generate_series(1, 3) g},
	1 => q{INSERT INTO part VALUES (1, 1, 'old'); INSERT INTO named VALUES (1, 1, 1, 0); INSERT INTO word VALUES ('1', '1', 0), ('2', '2', 0), ('3', '3', 0); INSERT INTO typed VALUES (1, 0)},
	map { (1 => "INSERT INTO c$_ SELECT g, g, 0, g, g, g FROM generate_series(1, 5) g") } 0 .. $#cases);
$mesh->settle;
wait_horizon($_) foreach $mesh->nodes;

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

# The cases of above.  SQL for the table of case number i:
sub in_table
{
	my ($i, $sql) = @_;

	$sql =~ s/%/c$i/g;
	return $sql;
}

$mesh->pause;
foreach my $n (1, 2)
{
	$mesh->on($n => join ';', map { in_table($_, $cases[$_][$n]) } 0 .. $#cases);
}

# Nobody can tell what becomes of the keys of dead rows; nothing has changed on the other node.
my ($stdout, $stderr);
$node->psql('postgres', 'DELETE FROM t WHERE id = 9; ALTER TABLE t ALTER id TYPE bigint USING t.id + (random() * 0)::int',
	stdout => \$stdout, stderr => \$stderr);
like($stderr, qr/WARNING:  versions of rows of table "t" could not be carried over/, 'a key that cannot be computed');

# What is no error of the value ends the command, which may be tried again.
$node->psql('postgres', q{CREATE TABLE busy (id int PRIMARY KEY); INSERT INTO busy VALUES (1), (2); DELETE FROM busy WHERE id = 2;
	CREATE FUNCTION to_bigint(int) RETURNS bigint IMMUTABLE LANGUAGE plpgsql AS $$
		BEGIN IF $1 = 2 THEN RAISE 'cannot be had' USING ERRCODE = 'lock_not_available'; END IF; RETURN $1; END $$;
	ALTER TABLE busy ALTER id TYPE bigint USING to_bigint(id)}, stderr => \$stderr);
like($stderr, qr/ERROR:  cannot be had/, 'a lock that is not to be had');

# The key goes in the same command; what was read of many rows is in a file by then.
$node->psql('postgres', q{SET work_mem = '64kB'; CREATE TABLE many (id int PRIMARY KEY, v int);
	INSERT INTO many SELECT g, g FROM generate_series(1, 3000) g; ALTER TABLE many DROP CONSTRAINT many_pkey, ALTER v TYPE bigint},
	stderr => \$stderr);
is($stderr, '', 'a key that is dropped');

# What is recorded of a row grows with the commands, and is not doubled by each.
$node->safe_psql('postgres', 'CREATE TABLE again (id int PRIMARY KEY, v int); INSERT INTO again SELECT generate_series(1, 5);'
	  . 'ALTER TABLE again ALTER v TYPE bigint; ALTER TABLE again ALTER v TYPE int;' x 5);
is($node->safe_psql('postgres', q{SELECT count(*) FROM (} . join(' UNION ALL ', map { "SELECT * FROM krahodb.version_records_$_" } 1 .. 4)
	  . q{) r WHERE kind = 't' AND relid = 'again'::regclass}), 5 * 10, 'many commands');

$mesh->deliver('21', '12');
foreach my $i (0 .. $#cases)
{
	my ($name, undef, undef, $query, $expected) = @{ $cases[$i] };

	is($node->safe_psql('postgres', in_table($i, $query)), $expected, "$name: here");
	is($mesh->rows(in_table($i, $query)), $expected, "$name: elsewhere");
}

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
