# What goes wrong here: three nodes change the same counters, maxima and minima while
# nothing passes between them, and then the streams come in several orders.  Nobody's
# change may be lost or counted twice: not that of a write that loses, or came to
# a row that is deleted, or whose row was inserted twice; not after VACUUM, nor when a
# server was killed in between.

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::PausedMesh;
use PostgreSQL::Test::Utils;
use Test::More;

my $mesh = KrahoDB::PausedMesh->new(
	names => [qw(n1 n2 n3)],
	publications => 'mesh',
	schema => q{
	CREATE EXTENSION krahodb;
	CREATE DOMAIN price AS numeric(12,2) CHECK (VALUE < 1000000);
	CREATE TABLE m (gone text, id int PRIMARY KEY, v text, n int, big bigint DEFAULT 0,
		amount price DEFAULT 10, hi int DEFAULT 10, lo text DEFAULT 'm');
	ALTER TABLE m DROP COLUMN gone;
	ALTER TABLE m REPLICA IDENTITY FULL,
		ALTER n SET (krahodb.merge = delta), ALTER big SET (krahodb.merge = delta),
		ALTER amount SET (krahodb.merge = delta), ALTER hi SET (krahodb.merge = max),
		ALTER lo SET (krahodb.merge = min);
	CREATE TABLE part (id int, r int, v text, n int, PRIMARY KEY (id, r)) PARTITION BY LIST (r);
	CREATE TABLE part_2 (n int, v text, r int NOT NULL, id int NOT NULL);
	ALTER TABLE part_2 REPLICA IDENTITY FULL;
	ALTER TABLE part ATTACH PARTITION part_2 FOR VALUES IN (2);
	ALTER TABLE part REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta);
	CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1);
	CREATE TABLE small (id int PRIMARY KEY, n smallint);
	ALTER TABLE small REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta);
	CREATE TABLE uniq (id int PRIMARY KEY, u int UNIQUE DEFERRABLE INITIALLY DEFERRED, n int);
	ALTER TABLE uniq REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta);
	CREATE PUBLICATION mesh FOR TABLE m, part, small, uniq;
});
my @nodes = $mesh->nodes;
my @compare = map { "SELECT t.* FROM $_ t ORDER BY t.*" } qw(m part small uniq);

# ---- writes that know nothing of each other ----------------------------------------

# Keys are %d<digits>: each order of arrival has keys of its own.
my @base = (
	q{INSERT INTO m SELECT %d000 + g, 'old', 100 FROM generate_series(1, 40) g},
	q{UPDATE m SET n = NULL WHERE id IN (%d008, %d009)},
	q{BEGIN; UPDATE m SET n = n + 6 WHERE id = %d021; SAVEPOINT a; DELETE FROM m WHERE id = %d021; RELEASE a;
		INSERT INTO m VALUES (%d021, 'old', 50); COMMIT},
	q{INSERT INTO part SELECT %d000 + g, 1, 'old', 100 FROM generate_series(1, 9) g},
	q{INSERT INTO uniq SELECT %d000 + g, %d000 + g, 100 FROM generate_series(1, 9) g});

my @concurrent = (
	# sums
	1 => q{UPDATE m SET n = n + 1, v = 'lost' WHERE id = %d001},
	2 => q{UPDATE m SET n = n + 2, v = 'lost' WHERE id = %d001},
	3 => q{UPDATE m SET n = n + 4, v = 'new' WHERE id = %d001},
	1 => q{BEGIN; UPDATE m SET n = n + 1 WHERE id = %d002; UPDATE m SET n = n + 1 WHERE id = %d002; COMMIT},
	2 => q{BEGIN; UPDATE m SET n = n + 10 WHERE id = %d002; SAVEPOINT a;
		UPDATE m SET n = n + 1000 WHERE id = %d002; ROLLBACK TO a;
		UPDATE m SET n = n + 20 WHERE id = %d002; COMMIT},
	3 => q{UPDATE m SET n = n - 5 WHERE id = %d002},
	1 => q{UPDATE m SET amount = amount + 1.25, big = big + 9000000000000000000 WHERE id = %d003},
	2 => q{UPDATE m SET amount = amount - 0.75, big = big - 9000000000000000000 WHERE id = %d003},
	3 => q{UPDATE m SET amount = amount + 100, big = big + 1 WHERE id = %d003},
	# maxima and minima; one that is lowered is an assignment
	1 => q{UPDATE m SET hi = 20, lo = 'k' WHERE id = %d004},
	2 => q{UPDATE m SET hi = 30, lo = 'c' WHERE id = %d004},
	3 => q{UPDATE m SET hi = 25, lo = 'z' WHERE id = %d004},
	1 => q{UPDATE m SET hi = 5 WHERE id = %d005},
	2 => q{UPDATE m SET hi = 7 WHERE id = %d005},
	3 => q{UPDATE m SET hi = 50 WHERE id = %d005},
	1 => q{UPDATE m SET hi = 50 WHERE id = %d006},
	2 => q{UPDATE m SET hi = 7 WHERE id = %d006},
	3 => q{UPDATE m SET v = 'new' WHERE id = %d006},
	3 => q{UPDATE m SET hi = 3 WHERE id = %d015},
	1 => q{UPDATE m SET hi = 20 WHERE id = %d015},
	2 => q{UPDATE m SET hi = 15 WHERE id = %d015},
	1 => q{UPDATE m SET hi = 20 WHERE id = %d016},
	3 => q{UPDATE m SET hi = 3 WHERE id = %d016},
	2 => q{UPDATE m SET hi = 15 WHERE id = %d016},
	2 => q{UPDATE m SET hi = 15 WHERE id = %d017},
	3 => q{UPDATE m SET hi = 3 WHERE id = %d017},
	1 => q{UPDATE m SET hi = NULL WHERE id = %d017},
	2 => q{UPDATE m SET hi = 14 WHERE id = %d017},
	# to and from NULL
	1 => q{UPDATE m SET n = NULL WHERE id = %d007},
	2 => q{UPDATE m SET n = n + 5 WHERE id = %d007},
	1 => q{UPDATE m SET n = 3 WHERE id = %d008},
	2 => q{UPDATE m SET n = 5 WHERE id = %d008},
	3 => q{UPDATE m SET n = 9 WHERE id = %d008},
	3 => q{UPDATE m SET n = n + 1 WHERE id = %d008},
	3 => q{UPDATE m SET n = 9 WHERE id = %d009},
	3 => q{UPDATE m SET n = n + 1 WHERE id = %d009},
	1 => q{UPDATE m SET n = 3 WHERE id = %d009},
	2 => q{UPDATE m SET n = 5 WHERE id = %d009},
	3 => q{UPDATE m SET n = n + 100 WHERE id = %d009},
	# deletions
	1 => q{DELETE FROM m WHERE id = %d010},
	2 => q{UPDATE m SET n = n + 5 WHERE id = %d010},
	3 => q{UPDATE m SET n = n + 7 WHERE id = %d010},
	2 => q{UPDATE m SET n = n + 5 WHERE id = %d011},
	1 => q{DELETE FROM m WHERE id = %d011},
	3 => q{UPDATE m SET n = n + 7 WHERE id = %d011},
	2 => q{UPDATE m SET n = n + 5 WHERE id = %d012},
	3 => q{UPDATE m SET n = n + 7 WHERE id = %d012},
	1 => q{DELETE FROM m WHERE id = %d012},
	3 => q{UPDATE m SET n = n + 3 WHERE id = %d013},
	1 => q{BEGIN; DELETE FROM m WHERE id = %d013; INSERT INTO m VALUES (%d013, 'again', 0); COMMIT},
	2 => q{UPDATE m SET n = n + 5 WHERE id = %d013},
	# inserted twice, and changed since
	1 => q{INSERT INTO m VALUES (%d101, 'lost', 1)},
	2 => q{INSERT INTO m VALUES (%d101, 'lost', 10)},
	1 => q{UPDATE m SET n = n + 5, v = 'new' WHERE id = %d101},
	3 => q{INSERT INTO m VALUES (%d102, 'lost', 1)},
	3 => q{UPDATE m SET n = n + 1 WHERE id = %d102},
	1 => q{INSERT INTO m VALUES (%d102, 'new', 10)},
	1 => q{INSERT INTO m VALUES (%d103, 'lost', 7)},
	2 => q{BEGIN; INSERT INTO m VALUES (%d103, 'a', 1); UPDATE m SET n = n + 1 WHERE id = %d103;
		DELETE FROM m WHERE id = %d103; INSERT INTO m VALUES (%d103, 'new', 50);
		UPDATE m SET n = n + 1 WHERE id = %d103; COMMIT},
	2 => q{BEGIN; INSERT INTO m VALUES (%d104, 'a', 1); UPDATE m SET n = n + 1 WHERE id = %d104; COMMIT},
	3 => q{INSERT INTO m VALUES (%d104, 'lost', 7)},
	1 => q{BEGIN; INSERT INTO m VALUES (%d104, 'b', 60); UPDATE m SET n = n + 1 WHERE id = %d104;
		UPDATE m SET n = n + 1 WHERE id = %d104; COMMIT},
	2 => q{UPDATE m SET n = n + 100 WHERE id = %d104},
	# inserted again by the transaction that has changed it, with savepoints
	2 => q{UPDATE m SET n = n + 4, v = 'lost' WHERE id = %d021},
	1 => q{UPDATE m SET v = 'new' WHERE id = %d021},
	# another key
	1 => q{UPDATE m SET id = %d218 WHERE id = %d018},
	2 => q{UPDATE m SET n = n + 5 WHERE id = %d018},
	2 => q{UPDATE m SET n = n + 5 WHERE id = %d019},
	1 => q{UPDATE m SET id = %d219, n = n + 1 WHERE id = %d019},
	# partitions
	1 => q{UPDATE part SET n = n + 1 WHERE id = %d001},
	2 => q{UPDATE part SET n = n + 2 WHERE id = %d001},
	3 => q{UPDATE part SET n = n + 4 WHERE id = %d001},
	1 => q{UPDATE part SET r = 2, n = n + 1 WHERE id = %d002},
	2 => q{UPDATE part SET n = n + 5 WHERE id = %d002},
	2 => q{UPDATE part SET r = 2 WHERE id = %d003; UPDATE part SET n = n + 2 WHERE id = %d003},
	3 => q{UPDATE part SET r = 2 WHERE id = %d003; UPDATE part SET n = n + 4 WHERE id = %d003},
	# rows that lose a unique value, and exchange some, count on
	1 => q{UPDATE uniq SET n = n + 1, u = %d901 WHERE id = %d001},
	2 => q{INSERT INTO uniq VALUES (%d101, %d901, 1)},
	3 => q{UPDATE uniq SET n = n + 2, u = NULL WHERE id = %d001},
	2 => q{UPDATE uniq SET n = n + 4 WHERE id IN (%d002, %d003)},
	1 => q{UPDATE uniq SET n = n + 16 WHERE id IN (%d002, %d003)},
	3 => q{BEGIN; UPDATE uniq SET n = n + 1 WHERE id = %d003;
		UPDATE uniq SET u = CASE id WHEN %d002 THEN %d003 ELSE %d002 END, n = n + 8
		WHERE id IN (%d002, %d003); COMMIT});

my @expected = (
	[ q{SELECT id %% 1000, n, v FROM m WHERE id IN (%d001, %d002) ORDER BY id}, "1|107|new\n2|127|old", 'sums' ],
	[ q{SELECT amount, big FROM m WHERE id = %d003}, '110.50|1', 'sums of other types' ],
	[ q{SELECT id %% 1000, hi, lo FROM m WHERE id IN (%d004, %d005, %d006, %d015, %d016, %d017) ORDER BY id},
		"4|30|z\n5|50|m\n6|7|m\n15|20|m\n16|15|m\n17|14|m", 'maxima and minima' ],
	[ q{SELECT id %% 1000, n FROM m WHERE id IN (%d007, %d008, %d009) ORDER BY id}, "7|\n8|10\n9|105", 'to and from NULL' ],
	[ q{SELECT id %% 1000, n FROM m WHERE id IN (%d010, %d011, %d012, %d013) ORDER BY id},
		"10|112\n11|112\n13|5", 'deletions' ],
	[ q{SELECT id %% 1000, n, v FROM m WHERE id IN (%d101, %d102, %d103, %d104) ORDER BY id},
		"101|15|new\n102|10|new\n103|51|new\n104|162|a", 'inserted twice' ],
	[ q{SELECT n, v FROM m WHERE id = %d021}, '54|new', 'deleted below a savepoint, and inserted again' ],
	[ q{SELECT id %% 1000, n FROM m WHERE id IN (%d018, %d218, %d019, %d219) ORDER BY id},
		"18|105\n218|100\n219|101", 'another key' ],
	[ q{SELECT id %% 1000, r, n FROM part WHERE id IN (%d001, %d002, %d003) ORDER BY id, r},
		"1|1|107\n2|1|105\n2|2|101\n3|2|104", 'partitions' ],
	[ q{SELECT id %% 1000, u %% 1000, n FROM uniq WHERE id IN (%d001, %d101, %d002, %d003) ORDER BY id},
		"1||103\n2|3|128\n3|2|129\n101|901|1", 'unique values' ]);

# The heap's rows of the history must survive this.
sub vacuum_and_crash
{
	my ($number, $link) = @_;
	my ($node) = map { $mesh->node($_) } split //, $link;

	return unless $number == 3 && $link =~ /21|31/;
	$node->safe_psql('postgres', "VACUUM FREEZE $_") foreach qw(m part uniq);
	$node->safe_psql('postgres', "VACUUM FULL $_") foreach qw(m part);
	$node->stop('immediate');
	$node->start;
	return;
}

$mesh->deliver_in_orders(
	orders => [ [qw(31 32 21 23 12 13)], [qw(32 31 23 21 13 12)], [qw(21 32 13 31 12 23)], [qw(12 23 31 13 21 32)] ],
	base => \@base,
	writes => \@concurrent,
	compare => \@compare,
	expected => \@expected,
	delivered => \&vacuum_and_crash);

# ---- overtaken on the way to the third node ------------------------------------------

$mesh->pause;
$mesh->on(1 => q{INSERT INTO m SELECT 10000 + g, 'inserted', 1 FROM generate_series(1, 9) g});
$mesh->deliver('21');
$mesh->on(2 => q{UPDATE m SET n = n + 1 WHERE id BETWEEN 10001 AND 10004},
	2 => q{DELETE FROM m WHERE id = 10002},
	2 => q{UPDATE m SET n = NULL WHERE id = 10003; UPDATE m SET n = 7 WHERE id = 10003});
$mesh->deliver('12');
$mesh->on(1 => q{UPDATE m SET n = n + 10 WHERE id BETWEEN 10001 AND 10004});
$mesh->deliver('32');
is( $nodes[2]->safe_psql('postgres', q{SELECT id, n FROM m WHERE id / 10000 = 1 ORDER BY id}),
	"10001|2\n10003|7\n10004|2",
	'the third node has rows of which it has not got the insert');
$mesh->on(3 => q{UPDATE m SET n = n + 100 WHERE id IN (10001, 10003)},
	3 => q{DELETE FROM m WHERE id = 10004});
$mesh->deliver(qw(31 13 23));
$mesh->all_equal('overtaken', @compare);
is( $mesh->rows(q{SELECT id, n FROM m WHERE id BETWEEN 10001 AND 10004 ORDER BY id}),
	"10001|112\n10003|117",
	'overtaken: rows');

# ---- behind the horizon ------------------------------------------------------------------

# What has been counted so far is behind it everywhere, in the heap or vacuumed, with
# records that are still there or not.
wait_horizon($_) foreach @nodes;
$nodes[1]->safe_psql('postgres', "VACUUM FREEZE $_") foreach qw(m part uniq);
$mesh->pause;
$mesh->on(1 => q{UPDATE m SET n = n + 1 WHERE id < 2000},
	2 => q{UPDATE m SET n = n + 10 WHERE id < 2000; UPDATE m SET n = n + 20 WHERE id < 2000},
	3 => q{DELETE FROM m WHERE id = 1001; UPDATE m SET n = n + 100 WHERE id < 2000 AND id <> 1001},
	1 => q{UPDATE m SET n = n + 2 WHERE id < 2000});
$mesh->deliver(qw(32 31 21 13 12 23));
$mesh->all_equal('behind the horizon', @compare);
is( $mesh->rows(q{SELECT id % 1000, n FROM m WHERE id IN (1001, 1002, 1007, 1008, 1011, 1104) ORDER BY id}),
	"1|140\n2|260\n7|\n8|143\n11|245\n104|295",
	'behind the horizon: sums');

# ---- the row that has come of it is on record ------------------------------------------

$mesh->pause;
$mesh->on(1 => q{UPDATE m SET n = n + 1 WHERE id = 10001},
	2 => q{UPDATE m SET n = n + 2 WHERE id = 10001});
$mesh->deliver(qw(12 21));
is( $nodes[0]->safe_psql('postgres', q{
		SELECT resolution, outcome, local_row ->> 'n', remote_row ->> 'n', applied_row ->> 'n' FROM krahodb.conflict_log
		WHERE type = 'update_origin_differs' AND key ->> 'id' = '10001' ORDER BY time DESC LIMIT 1}),
	'last_update_wins|applied|113|114|115',
	'a winner is combined with the row here');
is( $nodes[1]->safe_psql('postgres', q{
		SELECT outcome, local_row ->> 'n', remote_row ->> 'n', applied_row ->> 'n' FROM krahodb.conflict_log
		WHERE type = 'update_origin_differs' AND key ->> 'id' = '10001' ORDER BY time DESC LIMIT 1}),
	'skipped|114|113|115',
	'and a loser');
$mesh->deliver(qw(31 32 13 23));
$mesh->all_equal('on record', @compare);

# ---- no room ---------------------------------------------------------------------------

$mesh->on(1 => q{INSERT INTO small VALUES (1, 32000)});
$mesh->settle;
$mesh->pause;
$mesh->on(1 => q{UPDATE small SET n = n + 500}, 2 => q{UPDATE small SET n = n + 600});
my $log = -s $nodes[0]->logfile;
$nodes[0]->safe_psql('postgres', 'ALTER SUBSCRIPTION n1_n2 ENABLE');
$nodes[0]->wait_for_log(qr/merged value of column "n" of table "public.small" is out of range for type smallint/, $log);
$mesh->on(1 => q{UPDATE small SET n = n - 10000}, 2 => q{UPDATE small SET n = n - 5000});
$mesh->deliver(qw(12 21 31 32 13 23));
$mesh->all_equal('no room', @compare);
is($mesh->rows('SELECT n FROM small'), '18100', 'no room: all changes count in the end');

# ---- dump and restore ------------------------------------------------------------------

my $dump = $nodes[0]->basedir . '/dump.sql';
my $columns = $nodes[0]->safe_psql('postgres', 'SELECT * FROM krahodb.columns ORDER BY 1, 2, 3');
isnt($columns, '', 'merged columns are shown');
$nodes[0]->command_ok([ 'pg_dump', '--no-subscriptions', '-f', $dump, $nodes[0]->connstr('postgres') ], 'dump');
$nodes[0]->safe_psql('postgres', 'CREATE DATABASE restored');
$nodes[0]->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $nodes[0]->connstr('restored') ], 'restore');
is($nodes[0]->safe_psql('restored', 'SELECT * FROM krahodb.columns ORDER BY 1, 2, 3'),
	$columns, 'restored columns are merged');

# ---- a publisher that does not send old values --------------------------------------------

$mesh->pause;
$nodes[1]->safe_psql('postgres', q{
	ALTER TABLE small ALTER n RESET (krahodb.merge);
	ALTER TABLE small REPLICA IDENTITY DEFAULT;
	UPDATE small SET n = 1});
$log = -s $nodes[0]->logfile;
$nodes[0]->safe_psql('postgres', 'ALTER SUBSCRIPTION n1_n2 ENABLE');
$nodes[0]->wait_for_log(qr/publisher did not send the old values of merged columns of table "public.small"/, $log);
$nodes[0]->safe_psql('postgres', q{ALTER TABLE small ALTER n RESET (krahodb.merge)});
$nodes[1]->wait_for_catchup('n1_n2', 'replay', $nodes[1]->lsn('insert'));
is($mesh->rows('SELECT n FROM small'), '1', 'without the setting it is assigned');

$mesh->stop;
done_testing();
