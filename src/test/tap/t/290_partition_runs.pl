#
# Runs of inserts into a partitioned table that comes as a whole: rows are collected for each
# partition and written together.  What goes wrong here: rows in the wrong partition, in the wrong columns, in another
# order, twice or not at all; a row that no partition takes, or one of them cannot, in the middle; triggers of one partition
# that would miss rows of another; defaults that are drawn twice; conflicts in one partition of several; rows
# for so many partitions that they are not worth collecting.
#
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use KrahoDB::Nodes;
use Test::More;

my $publisher = krahodb_node('publisher', conf => 'logical_decoding_work_mem = 64kB');
my $subscriber = krahodb_node('subscriber');

# As a whole, or a table that only the subscriber has partitions of.
$publisher->safe_psql('postgres', <<'EOS');
CREATE TABLE hashed (id int PRIMARY KEY, t text) PARTITION BY HASH (id);
CREATE TABLE hashed_all PARTITION OF hashed FOR VALUES WITH (MODULUS 1, REMAINDER 0);
CREATE TABLE many (id int PRIMARY KEY, t text) PARTITION BY RANGE (id);
CREATE TABLE many_all PARTITION OF many FOR VALUES FROM (0) TO (100000);
CREATE TABLE mixed (id int, v text, part int, n numeric, PRIMARY KEY (id, part));
CREATE TABLE watched (id int PRIMARY KEY, part int);
CREATE TABLE foreigner (id int PRIMARY KEY);
CREATE TABLE plain (id int PRIMARY KEY, t varchar(200));
CREATE PUBLICATION p FOR ALL TABLES WITH (publish_via_partition_root);
EOS
$subscriber->safe_psql('postgres', <<'EOS');
CREATE EXTENSION krahodb;
CREATE EXTENSION pg_walinspect;
CREATE TABLE hashed (id int PRIMARY KEY, t text) PARTITION BY HASH (id);
CREATE TABLE many (id int PRIMARY KEY, t text) PARTITION BY RANGE (id);
SELECT format('CREATE TABLE hashed_%s PARTITION OF hashed FOR VALUES WITH (MODULUS 8, REMAINDER %1$s)', i) FROM generate_series(0, 7) i \gexec
SELECT format('CREATE TABLE many_%s PARTITION OF many FOR VALUES FROM (%1$s) TO (%s)', i, i + 1) FROM generate_series(0, 299) i \gexec

-- other columns, in another order; below each other; a rest
CREATE SEQUENCE serial;
CREATE TABLE mixed (id int, part int, v text, n numeric, twice numeric GENERATED ALWAYS AS (n * 2) STORED,
	serial bigint DEFAULT nextval('serial'), PRIMARY KEY (id, part)) PARTITION BY LIST (part);
CREATE TABLE mixed_1 PARTITION OF mixed FOR VALUES IN (1);
CREATE TABLE mixed_2 (gone int, serial bigint, v text, id int NOT NULL, own text DEFAULT 'own', n numeric, twice numeric GENERATED ALWAYS AS (n * 2) STORED, part int NOT NULL);
ALTER TABLE mixed_2 DROP gone, DROP own;
ALTER TABLE mixed ATTACH PARTITION mixed_2 FOR VALUES IN (2);
CREATE UNIQUE INDEX mixed_2_n ON mixed_2 (n);
CREATE TABLE mixed_below (v text, part int NOT NULL, id int NOT NULL, twice numeric GENERATED ALWAYS AS (n * 2) STORED, n numeric, serial bigint) PARTITION BY RANGE (id);
CREATE TABLE mixed_low PARTITION OF mixed_below FOR VALUES FROM (0) TO (1000);
CREATE TABLE mixed_high (id int NOT NULL, n numeric CHECK (n > 0), part int NOT NULL, v text, serial bigint, twice numeric GENERATED ALWAYS AS (n * 2) STORED);
ALTER TABLE mixed_below ATTACH PARTITION mixed_high FOR VALUES FROM (1000) TO (1000000);
ALTER TABLE mixed ATTACH PARTITION mixed_below FOR VALUES IN (3);
CREATE TABLE mixed_rest PARTITION OF mixed DEFAULT;

CREATE TABLE watched (id int PRIMARY KEY, part int) PARTITION BY RANGE (id);
CREATE TABLE watched_low PARTITION OF watched FOR VALUES FROM (0) TO (10);
CREATE TABLE watched_mid PARTITION OF watched FOR VALUES FROM (10) TO (12);
CREATE TABLE watched_high PARTITION OF watched FOR VALUES FROM (12) TO (100);
ALTER TABLE watched ADD serial bigint DEFAULT nextval('serial');
CREATE TABLE seen (id int, rows bigint);
CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS
	$$ BEGIN INSERT INTO public.seen SELECT NEW.id, count(*) FROM public.watched; RETURN NULL; END $$;
CREATE TRIGGER look AFTER INSERT ON watched_mid FOR EACH ROW EXECUTE FUNCTION look();
ALTER TABLE watched_mid ENABLE REPLICA TRIGGER look;

CREATE FOREIGN DATA WRAPPER nowhere;
CREATE SERVER nowhere FOREIGN DATA WRAPPER nowhere;
CREATE TABLE foreigner (id int) PARTITION BY RANGE (id);
CREATE TABLE foreigner_here PARTITION OF foreigner FOR VALUES FROM (0) TO (10);
CREATE FOREIGN TABLE foreigner_there PARTITION OF foreigner FOR VALUES FROM (10) TO (20) SERVER nowhere;
CREATE TABLE plain (id int PRIMARY KEY, t varchar(200));
EOS
$subscriber->safe_psql('postgres', "CREATE SUBSCRIPTION s CONNECTION '" . connstr($publisher) .
	"' PUBLICATION p WITH (copy_data = false)");
$subscriber->wait_for_subscription_sync($publisher, 's');

my @tables = qw(hashed many mixed watched);

sub there { return $publisher->safe_psql('postgres', $_[0]); }
sub here { return $subscriber->safe_psql('postgres', $_[0]); }

# How many records the rows that follow are written with.
my $start;

sub note_start { $start = here('SELECT pg_current_wal_insert_lsn()'); return; }

sub records
{
	here('SELECT txid_current()');	# its commit is flushed
	return here("SELECT count(*) FROM pg_get_wal_records_info('$start', pg_current_wal_flush_lsn()) WHERE resource_manager IN ('Heap', 'Heap2') AND record_type LIKE '%INSERT%'");
}

sub both
{
	my ($name, $sql) = @_;
	my %columns = (mixed => 'id, part, v, n', watched => 'id, part');

	there($sql);
	$publisher->wait_for_catchup('s');
	foreach my $table (@tables)
	{
		my $columns = $columns{$table} // 'id, t';
		is_equal_on([ $publisher, $subscriber ],
			"SELECT count(*), sum(hashtextextended(ROW($columns)::text, 0)) FROM $table", "$name: $table");
	}
	return;
}

# What fails is told as if each row went by itself, and nothing of the transaction is here.
sub refused
{
	my ($name, $table, $sql, $error, $counted) = @_;
	my $log = -s $subscriber->logfile;
	my $count = 'SELECT count(*) FROM ' . ($counted // $table);
	my $before = here($count);

	there($sql);
	$subscriber->wait_for_log($error, $log);
	$subscriber->wait_for_log(qr/CONTEXT:  processing remote data for replication origin "pg_\d+" during message type "INSERT" for replication target relation "public.$table" in transaction \d+, finished at/, $log);
	is(here($count), $before, "$name: nothing of the transaction is here");
	return;
}

# ---- rows, by partition ------------------------------------------------------------------

my $mixed = "INSERT INTO mixed SELECT i, 'row ' || i, 1 + i % 5, CASE WHEN i % 7 > 0 THEN i END FROM generate_series";

note_start();
both('rows', <<"EOS");
BEGIN;
INSERT INTO hashed SELECT i, 'row ' || i FROM generate_series(1, 2500) i;
INSERT INTO many SELECT i % 100 * 3, 'row ' || i FROM generate_series(0, 99) i;
$mixed(1, 2500) i;
COMMIT;
EOS
cmp_ok(records(), '<', 700, 'they are written page by page');
is(here('SELECT count(DISTINCT tableoid) FROM hashed'), '8', 'in all partitions');
is(here('SELECT count(*), count(DISTINCT serial), bool_and(twice IS NOT DISTINCT FROM n * 2) FROM mixed'), '2500|2500|t', 'what only the subscriber has');
is(here('SELECT bool_and(serial = rank) FROM (SELECT serial, rank() OVER (ORDER BY id) FROM mixed) x'), 't', 'defaults are drawn in the order of the rows');
is(here('SELECT tableoid::regclass, count(*) FROM mixed GROUP BY tableoid ORDER BY tableoid::regclass::text COLLATE "C"'),
	"mixed_1|500\nmixed_2|500\nmixed_high|300\nmixed_low|200\nmixed_rest|1000", 'partitions of all kinds');

# In parts, large ones, others in the middle.
both('other changes', <<"EOS");
BEGIN;
INSERT INTO hashed SELECT i, repeat('x', i % 300) FROM generate_series(3000, 3200) i;
UPDATE hashed SET t = 'changed' WHERE id % 10 = 0;
INSERT INTO hashed SELECT i, repeat(md5(i::text), CASE WHEN i % 20 = 5 THEN 3000 ELSE 1 END) FROM generate_series(4000, 4100) i;
DELETE FROM hashed WHERE id % 10 = 1;
INSERT INTO hashed SELECT i, NULL FROM generate_series(5001, 5011) i;
INSERT INTO mixed SELECT i, NULL, 1 + i % 5, i FROM generate_series(5001, 5011) i;
UPDATE mixed SET part = 1 WHERE id > 5005;
INSERT INTO plain VALUES (1, 'x'), (2, 'x');
SAVEPOINT one;
INSERT INTO mixed SELECT i, NULL, 1 + i % 5, i FROM generate_series(6000, 6010) i;
ROLLBACK TO one;
INSERT INTO mixed SELECT i, NULL, 1 + i % 5, i FROM generate_series(6005, 6020) i;
ALTER TABLE mixed ALTER v SET DEFAULT 'x';
INSERT INTO mixed (id, part, n) SELECT i, 1 + i % 5, i FROM generate_series(6021, 6050) i;
TRUNCATE many;
INSERT INTO many SELECT i, 'again' FROM generate_series(0, 299) i;
COMMIT;
EOS

# More partitions than are collected for, and hardly two rows for one.
foreach my $order (qw(ascending scattered))
{
	my $by = $order eq 'scattered' ? 'ORDER BY md5(i::text)' : '';

	both("$order, many partitions", "BEGIN; DELETE FROM many; INSERT INTO many SELECT i, '$order' FROM generate_series(0, 299) i $by; INSERT INTO hashed SELECT i FROM generate_series(7000, 7100) i; DELETE FROM hashed WHERE id >= 7000; COMMIT");
}

# ---- what cannot be written ----------------------------------------------------------------

here('ALTER TABLE mixed DETACH PARTITION mixed_rest');
refused('no partition', 'mixed', "$mixed(10000, 10050) i",
	qr/ERROR:  no partition of relation "mixed" found for row\n.*DETAIL:  Partition key of the failing row contains \(part\) = \(4\)\./);
here('ALTER TABLE mixed ATTACH PARTITION mixed_rest DEFAULT');
both('with a partition', 'SELECT');

refused('no partition, below', 'mixed', 'INSERT INTO mixed SELECT CASE i WHEN 32 THEN 2000000 ELSE 70000 + i END, NULL, 1 + i % 3, 70000 + i FROM generate_series(1, 50) i',
	qr/ERROR:  no partition of relation "mixed_below" found for row/);
here('CREATE TABLE mixed_top PARTITION OF mixed_below FOR VALUES FROM (1000000) TO (3000000)');
both('with a partition below', 'SELECT');

refused('a check of a partition', 'mixed', 'INSERT INTO mixed SELECT 20000 + i, NULL, 1 + i % 3, CASE i WHEN 32 THEN 0 ELSE 20000 + i END FROM generate_series(1, 50) i',
	qr/ERROR:  new row for relation "mixed_high" violates check constraint "mixed_high_n_check"/);
here('ALTER TABLE mixed_high DROP CONSTRAINT mixed_high_n_check');
both('without the check', 'SELECT');

here("INSERT INTO mixed VALUES (-1, 2, 'local', 30031)");
refused('a taken key', 'mixed', 'INSERT INTO mixed SELECT 30000 + i, NULL, 1 + i % 3, 30000 + i FROM generate_series(1, 50) i',
	qr/ERROR:  duplicate key value violates unique constraint "mixed_2_n"\n.*DETAIL:  Key \(n\)=\(30031\) already exists\./);
here('DELETE FROM mixed WHERE id = -1');
both('after the taken key', 'SELECT');

refused('a foreign partition', 'foreigner', 'INSERT INTO foreigner SELECT generate_series(8, 12)',
	qr/ERROR:  foreign-data wrapper "nowhere" has no handler/, 'foreigner_here');
here('DROP FOREIGN TABLE foreigner_there; CREATE TABLE foreigner_there PARTITION OF foreigner FOR VALUES FROM (10) TO (20)');
$publisher->wait_for_catchup('s');
is(here('SELECT count(*) FROM foreigner'), '5', 'one that is foreign no more');

# Behind a run, the row that fails names its own table.
here("INSERT INTO plain VALUES (100, 'local')");
refused('another table', 'plain', "BEGIN; $mixed(40000, 40010) i; INSERT INTO plain VALUES (100, 'x'); COMMIT",
	qr/ERROR:  duplicate key value violates unique constraint "plain_pkey"/);
here('DELETE FROM plain WHERE id = 100');
both('after the other table', 'SELECT');

# ---- triggers ------------------------------------------------------------------------------------

my $serial = here("SELECT nextval('serial')");
both('triggers of a partition', 'INSERT INTO watched SELECT i, i FROM generate_series(1, 20) i');
is(here('SELECT * FROM seen ORDER BY id'), "10|10\n11|11", 'they see all that came before, and no other row');
is(here("SELECT bool_and(serial = id + $serial) FROM watched"), 't', 'each row has drawn one number');

# ---- conflicts -----------------------------------------------------------------------------------

sub conflicts
{
	return here(q{SELECT string_agg(c, ', ' ORDER BY c COLLATE "C") FROM (SELECT type || ' ' || "table" || ' ' || count(*) AS c FROM krahodb.conflict_log GROUP BY type, "table") x});
}

here('ALTER SUBSCRIPTION s SET (conflict_resolution = apply_remote); ALTER TABLE mixed_1 SET (krahodb.conflict_resolution = keep_local)');
note_start();
both('new rows, with resolvers', "$mixed(50000, 52499) i");
cmp_ok(records(), '<', 700, 'they are written page by page');
is(conflicts(), '', 'and no conflict');

here("INSERT INTO mixed SELECT i, 1 + i % 5, 'local', i FROM generate_series(60100, 60109) i; INSERT INTO mixed VALUES (-1, 2, 'holds', 60156)");
there("$mixed(60000, 60200) i");
$publisher->wait_for_catchup('s');
is(here('SELECT tableoid::regclass, id FROM mixed WHERE v IN ($$local$$, $$holds$$) ORDER BY id'), "mixed_1|60100\nmixed_1|60105",
	'each partition by its own option');
is(here('SELECT count(*), sum(twice) - 2 * sum(n) FROM mixed WHERE id BETWEEN 60000 AND 60200'), '201|0', 'all rows are there');
is(conflicts(), 'insert_exists mixed_1 2, insert_exists mixed_2 3, insert_exists mixed_high 2, insert_exists mixed_rest 4', 'conflicts are those of the partitions');

$_->stop foreach $publisher, $subscriber;
done_testing();
