# What goes wrong here: three nodes write to the same rows while nothing passes
# between them, or what one has made of another's row overtakes that row on its way
# to the third.  Then the streams come one by one, in several orders, so that each
# node sees the writes in another order.  All must end with the same rows: those of
# the greatest versions, but none whose unique value a greater version of another
# key has ever claimed.

use strict;
use warnings;

use KrahoDB::PausedMesh;
use PostgreSQL::Test::Utils;
use Test::More;

my $mesh = KrahoDB::PausedMesh->new(
	names => [qw(n1 n2 n3)],
	publications => 'mesh',
	schema => q{
		CREATE EXTENSION krahodb;
		CREATE TABLE plain (id int PRIMARY KEY, v text);
		CREATE TABLE uniq (id int PRIMARY KEY, v text, u1 int UNIQUE, u2 int UNIQUE);
		CREATE TABLE num (id numeric PRIMARY KEY, v text);
		CREATE TABLE part (id int, r int, v text, PRIMARY KEY (id, r)) PARTITION BY LIST (r);
		CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1);
		CREATE TABLE part_2 (v text, r int NOT NULL, id int NOT NULL);
		ALTER TABLE part ATTACH PARTITION part_2 FOR VALUES IN (2);
		CREATE PUBLICATION mesh FOR TABLE plain, uniq, num, part;
	});
my @compare = map { "SELECT t.* FROM $_ t ORDER BY t.*" } qw(plain uniq num part);

# ---- writes that know nothing of each other ----------------------------------------

# Keys are %d<digits>: each order of arrival has keys of its own.
my @base = (
	q{INSERT INTO plain SELECT %d000 + g, 'old' FROM generate_series(1, 40) g},
	q{INSERT INTO uniq SELECT %d000 + g, 'old', %d000 + g, %d000 + g FROM generate_series(1, 40) g},
	q{INSERT INTO num SELECT %d000 + g, 'old' FROM generate_series(1, 10) g},
	q{INSERT INTO part SELECT %d000 + g, 1, 'old' FROM generate_series(1, 20) g});

my @concurrent = (
	# delete and update, both orders, with two writers and with three
	1 => q{DELETE FROM plain WHERE id = %d001},
	2 => q{UPDATE plain SET v = 'new' WHERE id = %d001},
	2 => q{UPDATE plain SET v = 'lost' WHERE id = %d002},
	1 => q{DELETE FROM plain WHERE id = %d002},
	2 => q{DELETE FROM plain WHERE id IN (%d003, %d004)},
	1 => q{UPDATE plain SET v = 'lost' WHERE id = %d003},
	3 => q{DELETE FROM plain WHERE id = %d003},
	3 => q{DELETE FROM plain WHERE id = %d004},
	1 => q{UPDATE plain SET v = 'new' WHERE id = %d004},
	# inserts of one key, deleted again by one of the writers
	1 => q{INSERT INTO plain VALUES (%d101, 'lost')},
	3 => q{INSERT INTO plain VALUES (%d101, 'lost too')},
	2 => q{INSERT INTO plain VALUES (%d101, 'new')},
	3 => q{INSERT INTO plain VALUES (%d102, 'deleted')},
	2 => q{INSERT INTO plain VALUES (%d102, 'old')},
	3 => q{DELETE FROM plain WHERE id = %d102},
	# the key's image does not matter
	1 => q{UPDATE num SET id = id + 0.00, v = 'lost' WHERE id = %d001},
	2 => q{DELETE FROM num WHERE id = %d001},
	2 => q{DELETE FROM num WHERE id = %d002},
	1 => q{UPDATE num SET id = id + 0.000, v = 'new' WHERE id = %d002},
	# a unique value, by insert and by update
	1 => q{INSERT INTO uniq VALUES (%d101, 'lost', %d901)},
	2 => q{INSERT INTO uniq VALUES (%d102, 'new', %d901)},
	2 => q{UPDATE uniq SET u1 = %d902, v = 'lost' WHERE id = %d001},
	1 => q{UPDATE uniq SET u1 = %d902, v = 'new' WHERE id = %d002},
	3 => q{UPDATE uniq SET v = 'not in the way' WHERE id = %d003},
	# one row against two
	1 => q{INSERT INTO uniq VALUES (%d111, 'lost', %d911)},
	2 => q{INSERT INTO uniq VALUES (%d112, 'lost', NULL, %d912)},
	3 => q{INSERT INTO uniq VALUES (%d113, 'new', %d911, %d912)},
	3 => q{INSERT INTO uniq VALUES (%d123, 'lost', %d921, %d922)},
	2 => q{INSERT INTO uniq VALUES (%d122, 'new', NULL, %d922)},
	1 => q{INSERT INTO uniq VALUES (%d121, 'new', %d921)},
	# chains: the last beats the second, which has beaten the first
	1 => q{INSERT INTO uniq VALUES (%d131, 'lost', %d931)},
	2 => q{INSERT INTO uniq VALUES (%d132, 'lost', %d931, %d932)},
	3 => q{INSERT INTO uniq VALUES (%d133, 'new', NULL, %d932)},
	3 => q{INSERT INTO uniq VALUES (%d141, 'lost', %d941)},
	1 => q{INSERT INTO uniq VALUES (%d142, 'lost', %d941, %d942)},
	2 => q{INSERT INTO uniq VALUES (%d143, 'new', NULL, %d942)},
	# what a loser has claimed counts
	3 => q{INSERT INTO uniq VALUES (%d151, 'lost', %d951)},
	1 => q{UPDATE uniq SET u1 = %d951, v = 'lost' WHERE id = %d004},
	2 => q{UPDATE uniq SET v = 'new' WHERE id = %d004},
	# a row that was in the way comes back as a newer one
	1 => q{INSERT INTO uniq VALUES (%d161, 'old', %d961)},
	2 => q{INSERT INTO uniq VALUES (%d162, 'new', %d961)},
	1 => q{UPDATE uniq SET u1 = %d962, v = 'new' WHERE id = %d161},
	# the key changes here, the row there
	1 => q{UPDATE plain SET id = %d201 WHERE id = %d011},
	2 => q{UPDATE plain SET v = 'new' WHERE id = %d011},
	2 => q{UPDATE plain SET v = 'lost' WHERE id = %d012},
	1 => q{UPDATE plain SET id = %d202 WHERE id = %d012},
	# the key changes on two nodes
	2 => q{UPDATE plain SET id = %d203 WHERE id = %d013},
	3 => q{UPDATE plain SET id = %d204 WHERE id = %d013},
	3 => q{UPDATE plain SET id = %d205, v = 'lost' WHERE id = %d014},
	2 => q{UPDATE plain SET id = %d205, v = 'new' WHERE id = %d015},
	# the new key is inserted elsewhere
	1 => q{UPDATE plain SET id = %d206, v = 'lost' WHERE id = %d016},
	2 => q{INSERT INTO plain VALUES (%d206, 'new')},
	3 => q{INSERT INTO plain VALUES (%d207, 'lost')},
	1 => q{UPDATE plain SET id = %d207, v = 'new' WHERE id = %d017},
	1 => q{DELETE FROM plain WHERE id = %d018},
	3 => q{UPDATE plain SET id = %d208 WHERE id = %d018},
	# to another partition, and against that
	1 => q{UPDATE part SET r = 2, v = 'moved' WHERE id = %d001},
	2 => q{UPDATE part SET v = 'new' WHERE id = %d001},
	2 => q{UPDATE part SET v = 'lost' WHERE id = %d002},
	1 => q{UPDATE part SET r = 2, v = 'moved' WHERE id = %d002},
	3 => q{DELETE FROM part WHERE id = %d003},
	2 => q{UPDATE part SET r = 2, v = 'moved' WHERE id = %d003},
	2 => q{UPDATE part SET v = 'lost' WHERE id = %d004},
	3 => q{DELETE FROM part WHERE id = %d004},
	3 => q{DELETE FROM part WHERE id = %d005},
	2 => q{UPDATE part SET v = 'new' WHERE id = %d005},
	# more than one write of a transaction
	1 => q{BEGIN; UPDATE plain SET v = 'a' WHERE id = %d021; DELETE FROM plain WHERE id = %d021;
		INSERT INTO plain VALUES (%d021, 'lost'); COMMIT},
	2 => q{BEGIN; DELETE FROM plain WHERE id = %d021; INSERT INTO plain VALUES (%d021, 'new');
		UPDATE plain SET v = v || 'er' WHERE id = %d021; COMMIT},
	3 => q{BEGIN; UPDATE uniq SET u1 = -u1 WHERE id IN (%d021, %d022);
		UPDATE uniq SET u1 = CASE id WHEN %d021 THEN %d022 ELSE %d021 END, v = 'new'
		WHERE id IN (%d021, %d022); COMMIT},
	2 => q{UPDATE uniq SET v = 'newer' WHERE id = %d022});

my @expected = (
	[ q{SELECT id %% 1000, v FROM plain WHERE id IN (%d001, %d002, %d003, %d004) ORDER BY id},
		"1|new\n4|new", 'deletes and updates' ],
	[ q{SELECT id %% 1000, v FROM plain WHERE id IN (%d101, %d102) ORDER BY id},
		'101|new', 'inserts of one key' ],
	[ q{SELECT id::int %% 1000, v FROM num WHERE id IN (%d001, %d002) ORDER BY id},
		'2|new', 'numeric keys' ],
	[ q{SELECT id %% 1000, v FROM uniq WHERE id / 1000 = %d AND id %% 1000 BETWEEN 101 AND 170 ORDER BY id},
		"102|new\n113|new\n121|new\n122|new\n133|new\n143|new\n161|new\n162|new", 'unique values' ],
	[ q{SELECT id %% 1000, v FROM uniq WHERE id IN (%d001, %d002, %d003, %d004) ORDER BY id},
		"2|new\n3|not in the way\n4|new", 'updates of unique values' ],
	[ q{SELECT id %% 1000, v FROM plain WHERE id / 1000 = %d AND id %% 1000 IN (11, 12, 13, 14, 15, 16, 17, 18, 201, 202, 203, 204, 205, 206, 207, 208) ORDER BY id},
		"11|new\n201|old\n202|old\n203|old\n204|old\n205|new\n206|new\n207|new\n208|old", 'updates of keys' ],
	[ q{SELECT id %% 1000, r, v FROM part WHERE id IN (%d001, %d002, %d003, %d004, %d005) ORDER BY id, r},
		"1|1|new\n1|2|moved\n2|2|moved\n3|2|moved\n5|1|new", 'partitions' ],
	[ q{SELECT v FROM plain WHERE id = %d021}, 'newer', 'several writes of a transaction' ]);

$mesh->deliver_in_orders(
	orders => [ [qw(31 32 21 23 12 13)], [qw(32 31 23 21 13 12)], [qw(21 32 13 31 12 23)] ],
	base => \@base,
	writes => \@concurrent,
	compare => \@compare,
	expected => \@expected);

# ---- overtaken on the way to the third node ------------------------------------------

$mesh->pause;
$mesh->on(1 => q{
	INSERT INTO plain SELECT 10000 + g, 'inserted' FROM generate_series(1, 10) g;
	INSERT INTO num VALUES (10001.0, 'inserted');
	INSERT INTO uniq VALUES (10001, 'inserted', 10001), (10002, 'inserted', 10002);
	INSERT INTO part VALUES (10001, 1, 'inserted'), (10002, 1, 'inserted')});
$mesh->deliver('21');
$mesh->on(2 => q{UPDATE plain SET v = 'updated' WHERE id = 10001},
	2 => q{DELETE FROM plain WHERE id IN (10002, 10003, 10004)},
	2 => q{INSERT INTO plain VALUES (10003, 'again')},
	2 => q{UPDATE num SET id = 10001.000 WHERE id = 10001},
	2 => q{DELETE FROM num WHERE id = 10001},
	2 => q{DELETE FROM uniq WHERE id = 10001; INSERT INTO uniq VALUES (10011, 'new', 10001)},
	2 => q{UPDATE uniq SET id = 10012 WHERE id = 10002},
	2 => q{UPDATE part SET r = 2 WHERE id = 10001; DELETE FROM part WHERE id = 10002});
$mesh->deliver('12');
$mesh->on(1 => q{INSERT INTO plain VALUES (10004, 'again')},
	1 => q{UPDATE plain SET v = 'again' WHERE id = 10001},
	1 => q{DELETE FROM plain WHERE id = 10003});

$mesh->deliver('32');
is( $mesh->node(3)->safe_psql('postgres',
		q{SELECT id, v FROM plain WHERE id / 10000 = 1 ORDER BY id}),
	"10001|updated\n10003|again",
	'the third node knows only what overtook the rest');

# What was deleted there stays until the retention horizon lets VACUUM remove it; what
# was never there stands in the version records.
my $retained = $mesh->node(3)->safe_psql('postgres',
	"SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'krahodb_horizon' AND xmin IS NOT NULL");
$mesh->node(3)->safe_psql('postgres', "VACUUM FREEZE $_") foreach qw(plain uniq part), ('num') x $retained;
$mesh->deliver(qw(31 23 13));
$mesh->all_equal('overtaken', @compare);
is( $mesh->rows(q{SELECT id, v FROM plain WHERE id BETWEEN 10001 AND 10004 ORDER BY id}),
	"10001|again\n10004|again",
	'overtaken: rows');
is($mesh->rows(q{SELECT count(*) FROM num WHERE id = 10001}), '0', 'overtaken: numeric key');
is( $mesh->rows(q{SELECT id, v FROM uniq WHERE id / 10000 = 1 ORDER BY id}),
	"10011|new\n10012|inserted",
	'overtaken: unique values');
is( $mesh->rows(q{SELECT id, r, v FROM part WHERE id / 10000 = 1 ORDER BY id}),
	'10001|2|inserted',
	'overtaken: partitions');

# ---- what that leaves behind -----------------------------------------------------------

isnt( $mesh->node(3)->safe_psql('postgres',
		'SELECT ' . join ' + ', map { "(SELECT count(*) FROM krahodb.version_records_$_)" } 1 .. 4),
	'', 'version records can be read');
is($mesh->errors, 0, 'no conflict stopped replication');
$mesh->stop;
done_testing();
