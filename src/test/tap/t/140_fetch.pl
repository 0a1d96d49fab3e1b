# What goes wrong here: an UPDATE leaves a value alone that is stored out of line, so the
# stream does not contain it, and meanwhile another node has changed it, or the row is
# gone.  Who takes the value from the row that he happens to have ends with a row that
# nobody has written.  The row must be fetched from the writer then, and be merged as what
# it is there; but not in the ordinary case, where the row here is provably the
# one that the writer had.

use strict;
use warnings;

use KrahoDB::PausedMesh;
use PostgreSQL::Test::Utils;
use Test::More;

my $mesh = KrahoDB::PausedMesh->new(
	names => [qw(n1 n2 n3)],
	publications => 'mesh, roots',
	schema => q{
	CREATE EXTENSION krahodb;
	CREATE FUNCTION wide(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT repeat($1, 12000 / length($1))';
	CREATE TABLE doc (id int PRIMARY KEY, v text, w text, x text);
	ALTER TABLE doc ALTER w SET STORAGE EXTERNAL, ALTER x SET STORAGE EXTERNAL;
	CREATE TABLE ful (id int PRIMARY KEY, v text, w text);
	ALTER TABLE ful ALTER w SET STORAGE EXTERNAL, REPLICA IDENTITY FULL;
	CREATE TABLE "Odd ""table" ("the 'key" date, k2 numeric, v int UNIQUE, "W""ide" text, PRIMARY KEY ("the 'key", k2));
	ALTER TABLE "Odd ""table" ALTER "W""ide" SET STORAGE EXTERNAL;
	CREATE TABLE part (id int, r int, v text, w text, PRIMARY KEY (id, r)) PARTITION BY LIST (r);
	ALTER TABLE part ALTER w SET STORAGE EXTERNAL;
	CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1);
	CREATE TABLE part_2 (w text, r int NOT NULL, v text, id int NOT NULL);
	ALTER TABLE part_2 ALTER w SET STORAGE EXTERNAL;
	ALTER TABLE part ATTACH PARTITION part_2 FOR VALUES IN (2);
	CREATE TABLE root (LIKE part INCLUDING ALL) PARTITION BY LIST (r);
	CREATE TABLE root_1 PARTITION OF root FOR VALUES IN (1);
	CREATE TABLE root_2 PARTITION OF root FOR VALUES IN (2);
	CREATE TABLE half (LIKE part INCLUDING ALL) PARTITION BY LIST (r);
	CREATE TABLE half_1 PARTITION OF half DEFAULT;
	ALTER TABLE half REPLICA IDENTITY FULL;
	CREATE PUBLICATION mesh FOR TABLE doc, ful, "Odd ""table", part;
	CREATE PUBLICATION roots FOR TABLE root, half WITH (publish_via_partition_root);
	SET datestyle = 'German';});

my @row_queries = (
	'SELECT id, v, md5(w), md5(x) FROM doc ORDER BY id',
	'SELECT id, v, md5(w) FROM ful ORDER BY id',
	q{SELECT "the 'key", k2, v, md5("W""ide") FROM "Odd ""table" ORDER BY 1, 2},
	'SELECT tableoid::regclass, id, r, v, md5(w) FROM part ORDER BY id, r',
	'SELECT tableoid::regclass, id, r, v, md5(w) FROM root ORDER BY id, r',
	'SELECT id, r, v, md5(w) FROM half ORDER BY id, r');

# Rows fetched by all nodes since the last call.
my $counted = 0;

sub fetched
{
	my $sum = 0;
	$sum += $_->safe_psql('postgres', 'SELECT fetched FROM krahodb.fetch_stats') foreach $mesh->nodes;
	my $new = $sum - $counted;

	$counted = $sum;
	return $new;
}

# ---- one after the other: nothing is fetched ------------------------------------------

$mesh->on(1 => q{INSERT INTO doc SELECT g, 'old', wide('old'), wide('xxx') FROM generate_series(1, 50) g;
	INSERT INTO part SELECT g, 1 + g % 2, 'old', wide('old') FROM generate_series(1, 10) g});
$mesh->settle;
foreach my $i (1 .. 9)
{
	$mesh->on(1 + $i % 3 => "UPDATE doc SET v = 'edit $i' WHERE id <= 10; UPDATE part SET v = 'edit $i'");
	$mesh->settle;
}
# many in a row by one writer, two writers of different rows, one transaction on one row
$mesh->on(1 => join(';', map { "UPDATE doc SET v = 'a $_' WHERE id = 11" } 1 .. 20),
	2 => join(';', map { "UPDATE doc SET v = 'b $_' WHERE id = 12" } 1 .. 20),
	3 => q{BEGIN; INSERT INTO doc VALUES (51, 'new', wide('new'), wide('new'));
		UPDATE doc SET v = 'once' WHERE id = 51; UPDATE doc SET id = 52 WHERE id = 51;
		UPDATE doc SET v = 'twice' WHERE id = 52; COMMIT});
$mesh->all_equal('one after the other', @row_queries);
is($mesh->rows(q{SELECT id, v, w = wide('new') FROM doc WHERE id > 50}), '52|twice|t', 'several updates of a transaction');
is(fetched(), 0, 'nothing is fetched if writers had seen the rows');

# rows that the subscriber's own node wrote last, and the writer had seen
$mesh->on(3 => q{UPDATE doc SET w = wide('third') WHERE id = 20});
$mesh->settle;
$mesh->on(1 => q{UPDATE doc SET v = 'first' WHERE id = 20});
$mesh->settle;
$mesh->on(2 => q{UPDATE doc SET id = 60 WHERE id = 20});
$mesh->all_equal('written on three nodes', @row_queries);
is($mesh->rows(q{SELECT v, w = wide('third') FROM doc WHERE id = 60}), 'first|t', 'the row of three nodes');
is(fetched(), 0, 'nothing is fetched for that');

# a table with full identity, whose partition has not: it sends its key as if it were the row
$mesh->on(1 => q{INSERT INTO half VALUES (1, 1, 'old', wide('old')), (2, 1, 'old', NULL)});
$mesh->settle;
$mesh->on(2 => q{UPDATE half SET id = id + 10, v = 'new'});
$mesh->all_equal('another key in half a full identity', @row_queries);
is($mesh->rows(q{SELECT id, v, w = wide('old') FROM half ORDER BY id}), "11|new|t\n12|new|", 'the row has its large value');
is(fetched(), 0, 'nothing is fetched for that, either');

# ---- writes that know nothing of each other ----------------------------------------------

my @base = (
	q{INSERT INTO doc SELECT %d000 + g, 'old', wide('old'), wide('xxx') FROM generate_series(1, 40) g},
	q{INSERT INTO ful SELECT %d000 + g, 'old', wide('old') FROM generate_series(1, 10) g},
	q{INSERT INTO part SELECT %d000 + g, 1, 'old', wide('old') FROM generate_series(1, 10) g},
	q{INSERT INTO root SELECT %d000 + g, 2, 'old', wide('old') FROM generate_series(1, 10) g},
	q{INSERT INTO half SELECT %d000 + g, 2, 'old', wide('old') FROM generate_series(1, 10) g},
	q{INSERT INTO "Odd ""table" SELECT date '2020-01-31' + %d, g + 0.50, %d000 + g, wide('old') FROM generate_series(1, 10) g});

my @concurrent = (
	# one changes the value, a later one leaves it
	1 => q{UPDATE doc SET w = wide('lost') WHERE id = %d001},
	2 => q{UPDATE doc SET v = 'new' WHERE id = %d001},
	# one leaves it, a later one changes it
	1 => q{UPDATE doc SET v = 'lost' WHERE id = %d002},
	2 => q{UPDATE doc SET w = wide('new') WHERE id = %d002},
	# each changes one of two
	3 => q{UPDATE doc SET w = wide('lost') WHERE id = %d003},
	1 => q{UPDATE doc SET x = wide('new') WHERE id = %d003},
	# three writers
	1 => q{UPDATE doc SET w = wide('lost') WHERE id = %d004},
	2 => q{UPDATE doc SET v = 'lost' WHERE id = %d004},
	3 => q{UPDATE doc SET v = 'new' WHERE id = %d004},
	3 => q{UPDATE doc SET v = 'lost' WHERE id = %d005},
	1 => q{UPDATE doc SET w = wide('lost') WHERE id = %d005},
	2 => q{UPDATE doc SET v = 'new' WHERE id = %d005},
	# deletion against it, both orders
	1 => q{DELETE FROM doc WHERE id = %d006},
	2 => q{UPDATE doc SET v = 'new' WHERE id = %d006},
	2 => q{UPDATE doc SET v = 'lost' WHERE id = %d007},
	3 => q{DELETE FROM doc WHERE id = %d007},
	# the key changes, and the value elsewhere
	1 => q{UPDATE doc SET w = wide('new') WHERE id = %d008},
	2 => q{UPDATE doc SET id = %d108 WHERE id = %d008},
	2 => q{UPDATE doc SET id = %d109, v = 'new' WHERE id = %d009},
	1 => q{UPDATE doc SET w = wide('new') WHERE id = %d009},
	3 => q{UPDATE doc SET id = %d110 WHERE id = %d010},
	1 => q{INSERT INTO doc VALUES (%d110, 'new', wide('new'), wide('new'))},
	# deleted and inserted again
	1 => q{DELETE FROM doc WHERE id = %d011; INSERT INTO doc VALUES (%d011, 'lost', wide('lost'), NULL)},
	3 => q{UPDATE doc SET v = 'new' WHERE id = %d011},
	3 => q{UPDATE doc SET v = 'lost' WHERE id = %d012},
	1 => q{DELETE FROM doc WHERE id = %d012; INSERT INTO doc VALUES (%d012, 'new', wide('new'), NULL)},
	# gone at the origin when it is fetched
	1 => q{UPDATE doc SET w = wide('lost') WHERE id = %d013},
	2 => q{UPDATE doc SET v = 'lost' WHERE id = %d013},
	2 => q{DELETE FROM doc WHERE id = %d013},
	# another one at the origin when it is fetched
	1 => q{UPDATE doc SET w = wide('lost') WHERE id = %d014},
	2 => q{UPDATE doc SET v = 'lost' WHERE id = %d014},
	2 => q{UPDATE doc SET v = 'newer' WHERE id = %d014},
	2 => q{UPDATE doc SET w = wide('newer') WHERE id = %d014},
	1 => q{UPDATE doc SET w = wide('lost') WHERE id = %d015},
	2 => q{UPDATE doc SET v = 'lost' WHERE id = %d015},
	3 => q{UPDATE doc SET w = wide('between') WHERE id = %d015},
	2 => q{UPDATE doc SET v = 'newer' WHERE id = %d015},
	# several writes of one transaction
	3 => q{UPDATE doc SET w = wide('lost') WHERE id IN (%d016, %d017, %d018)},
	2 => q{BEGIN; UPDATE doc SET v = 'a' WHERE id = %d016; UPDATE doc SET x = wide('b') WHERE id = %d016;
		UPDATE doc SET id = %d116 WHERE id = %d017; INSERT INTO doc VALUES (%d017, 'again', wide('again'), NULL);
		UPDATE doc SET v = 'twice' WHERE id = %d017;
		UPDATE doc SET v = 'c' WHERE id = %d018; DELETE FROM doc WHERE id = %d018; COMMIT},
	# NULL is sent
	1 => q{UPDATE doc SET w = wide('lost') WHERE id = %d019},
	2 => q{UPDATE doc SET w = NULL WHERE id = %d019},
	# full identity
	1 => q{UPDATE ful SET w = wide('lost') WHERE id = %d001},
	2 => q{UPDATE ful SET v = 'new' WHERE id = %d001},
	# partitions; the row moves
	1 => q{UPDATE part SET w = wide('lost') WHERE id = %d001},
	2 => q{UPDATE part SET v = 'new' WHERE id = %d001},
	1 => q{UPDATE part SET w = wide('new') WHERE id = %d002},
	2 => q{UPDATE part SET r = 2 WHERE id = %d002},
	3 => q{DELETE FROM part WHERE id = %d003},
	2 => q{UPDATE part SET v = 'new' WHERE id = %d003},
	1 => q{UPDATE root SET w = wide('lost') WHERE id = %d001},
	2 => q{UPDATE root SET v = 'new' WHERE id = %d001},
	3 => q{DELETE FROM root WHERE id = %d002},
	1 => q{UPDATE root SET v = 'new' WHERE id = %d002},
	2 => q{UPDATE root SET r = 1 WHERE id = %d003},
	1 => q{UPDATE root SET w = wide('new') WHERE id = %d003},
	1 => q{UPDATE half SET w = wide('lost') WHERE id IN (%d001, %d002)},
	2 => q{UPDATE half SET id = %d101 WHERE id = %d001; UPDATE half SET v = 'new' WHERE id = %d002},
	# names, types and a unique value
	1 => q{UPDATE "Odd ""table" SET "W""ide" = wide('lost') WHERE k2 = 1.5 AND v / 1000 = %d},
	2 => q{UPDATE "Odd ""table" SET v = -v WHERE k2 = 1.5 AND v / 1000 = %d},
	3 => q{UPDATE "Odd ""table" SET v = %d777 WHERE k2 = 2.5 AND v / 1000 = %d},
	1 => q{UPDATE "Odd ""table" SET v = %d777 WHERE k2 = 3.5 AND v / 1000 = %d},
	2 => q{UPDATE "Odd ""table" SET "W""ide" = wide('both') WHERE k2 IN (2.5, 3.5) AND v / 1000 = %d});

my @expected = (
	[ q{SELECT id %% 1000, v, left(w, 3), left(x, 3) FROM doc WHERE id / 1000 = %d AND id %% 1000 IN (1, 2, 3, 4, 5) ORDER BY id},
		"1|new|old|xxx\n2|old|new|xxx\n3|old|old|new\n4|new|old|xxx\n5|new|old|xxx", 'updates' ],
	[ q{SELECT id %% 1000, v, left(w, 3), left(x, 3) FROM doc WHERE id / 1000 = %d AND id %% 1000 IN (6, 7, 13) ORDER BY id},
		'6|new|old|xxx', 'deletions' ],
	[ q{SELECT id %% 1000, v, left(w, 3), left(x, 3) FROM doc WHERE id / 1000 = %d AND id %% 1000 IN (8, 9, 10, 108, 109, 110) ORDER BY id},
		"9|old|new|xxx\n108|old|old|xxx\n109|new|old|xxx\n110|new|new|new", 'updates of the key' ],
	[ q{SELECT id %% 1000, v, left(w, 3), left(x, 3) FROM doc WHERE id / 1000 = %d AND id %% 1000 IN (11, 12) ORDER BY id},
		"11|new|old|xxx\n12|new|new|", 'inserted again' ],
	[ q{SELECT id %% 1000, v, left(w, 5), left(x, 3) FROM doc WHERE id / 1000 = %d AND id %% 1000 IN (14, 15) ORDER BY id},
		"14|newer|newer|xxx\n15|newer|oldol|xxx", 'a later row at the origin' ],
	[ q{SELECT id %% 1000, v, left(w, 5), left(x, 3) FROM doc WHERE id / 1000 = %d AND id %% 1000 IN (16, 17, 18, 116) ORDER BY id},
		"16|a|oldol|bbb\n17|twice|again|\n116|old|oldol|xxx", 'several writes of a transaction' ],
	[ q{SELECT id %% 1000, v, w IS NULL FROM doc WHERE id = %d019}, '19|old|t', 'NULL' ],
	[ q{SELECT id %% 1000, v, left(w, 3) FROM ful WHERE id = %d001}, '1|new|old', 'full identity' ],
	[ q{SELECT id %% 1000, r, v, left(w, 3) FROM part WHERE id / 1000 = %d AND id %% 1000 <= 3 ORDER BY id, r},
		"1|1|new|old\n2|2|old|old\n3|1|new|old", 'partitions' ],
	[ q{SELECT id %% 1000, r, v, left(w, 3) FROM root WHERE id / 1000 = %d AND id %% 1000 <= 3 ORDER BY id, r},
		"1|2|new|old\n2|2|new|old\n3|1|old|old\n3|2|old|new", 'published as the root' ],
	[ q{SELECT id %% 1000, v, left(w, 3) FROM half WHERE id / 1000 = %d AND id %% 1000 IN (1, 2, 101) ORDER BY id},
		"2|new|old\n101|old|old", 'half a full identity' ],
	[ q{SELECT k2, v %% 1000, left("W""ide", 3) FROM "Odd ""table" WHERE abs(v) / 1000 = %d AND k2 < 4 ORDER BY k2},
		"1.50|-1|old\n2.50|2|bot\n3.50|3|bot", 'odd names' ]);

$mesh->deliver_in_orders(
	orders => [ [qw(31 32 21 23 12 13)], [qw(32 31 23 21 13 12)], [qw(21 32 13 31 12 23)] ],
	base => \@base,
	writes => \@concurrent,
	compare => \@row_queries,
	expected => \@expected,
	done => sub { cmp_ok(fetched(), '>', 0, "rows were fetched, $_[0]") });

is($mesh->errors, 0, 'nothing stopped replication');
$mesh->stop;
done_testing();
