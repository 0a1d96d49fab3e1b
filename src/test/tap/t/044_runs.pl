#
# Runs of changes to one table: INSERTs that are written together, and keys in
# ascending order that are looked up along the index.  What goes wrong here: a row
# of the run that fails, triggers and defaults that could see the other rows, other
# messages in the middle, rows that are missing, moved or held by somebody.  And one
# row that is updated many times: what its indexes keep of it.
#
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use KrahoDB::Nodes;
use Test::More;

my $publisher = krahodb_node('publisher');
my $subscriber = krahodb_node('subscriber');

my $schema = <<'EOS';
CREATE TABLE plain (id int PRIMARY KEY, n int, t text);
CREATE TABLE keys (id int PRIMARY KEY, u int UNIQUE, t text);
CREATE TABLE pairs (a int, b int, n int, PRIMARY KEY (a, b));
CREATE TABLE descending (id int, n int);
CREATE UNIQUE INDEX descending_id ON descending (id DESC);
ALTER TABLE descending ALTER id SET NOT NULL, REPLICA IDENTITY USING INDEX descending_id;
CREATE TABLE named (id text PRIMARY KEY, n int);
CREATE TABLE made (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED);
CREATE TABLE watched (id int PRIMARY KEY, n int);
CREATE TABLE counted (id int PRIMARY KEY);
CREATE TABLE counted_stable (id int PRIMARY KEY);
CREATE TABLE checked (id int PRIMARY KEY);
CREATE TABLE parted (id int PRIMARY KEY, n int) PARTITION BY RANGE (id);
CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (MINVALUE) TO (500);
CREATE TABLE parted_high PARTITION OF parted FOR VALUES FROM (500) TO (MAXVALUE);
EOS
$_->safe_psql('postgres', $schema) foreach $publisher, $subscriber;
$subscriber->safe_psql('postgres', <<'EOS');
CREATE TABLE seen (rows bigint);
CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS
	$$ BEGIN INSERT INTO public.seen SELECT count(*) FROM public.watched; RETURN NULL; END $$;
CREATE TRIGGER look AFTER INSERT ON watched FOR EACH ROW EXECUTE FUNCTION look();
ALTER TABLE watched ENABLE REPLICA TRIGGER look;
CREATE FUNCTION how_many() RETURNS bigint LANGUAGE sql VOLATILE AS 'SELECT count(*) FROM public.counted';
ALTER TABLE counted ADD before bigint DEFAULT how_many();
CREATE FUNCTION how_many_stable() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT count(*) FROM public.counted_stable';
ALTER TABLE counted_stable ADD before bigint DEFAULT how_many_stable();
CREATE FUNCTION is_next(int) RETURNS bool LANGUAGE sql STABLE AS 'SELECT $1 = 1 + count(*) FROM public.checked';
ALTER TABLE checked ADD CHECK (is_next(id));
EOS
$publisher->safe_psql('postgres', 'CREATE PUBLICATION p FOR ALL TABLES');
$subscriber->safe_psql('postgres',
	"CREATE SUBSCRIPTION s CONNECTION '" . connstr($publisher) . "' PUBLICATION p");
$subscriber->wait_for_subscription_sync($publisher, 's');

my @tables = qw(plain keys pairs descending named made parted);

sub run_both
{
	my ($name, $sql) = @_;

	$publisher->safe_psql('postgres', $sql);
	$publisher->wait_for_catchup('s');
	foreach my $table (@tables)
	{
		is_equal_on([ $publisher, $subscriber ],
			"SELECT count(*), sum(hashtextextended(t::text, 0)) FROM $table t", "$name: $table");
	}
	return;
}

run_both('inserts', <<'EOS');
BEGIN;
INSERT INTO plain SELECT i, i, 'row ' || i FROM generate_series(1, 2500) i;
INSERT INTO keys SELECT i, -i, repeat('x', i % 7) FROM generate_series(1, 50) i;
INSERT INTO plain SELECT i, i, repeat(md5(i::text), 3000) FROM generate_series(2501, 2510) i;
INSERT INTO pairs SELECT i / 3, i % 3, i FROM generate_series(0, 299) i;
INSERT INTO descending SELECT i, i FROM generate_series(1, 300) i;
INSERT INTO named SELECT 'name ' || i, i FROM generate_series(1, 300) i;
INSERT INTO made SELECT i, i FROM generate_series(1, 300) i;
INSERT INTO parted SELECT i, i FROM generate_series(1, 1000) i;
INSERT INTO plain VALUES (3000, 1, NULL), (3001, 1, NULL), (3002, NULL, NULL);
COMMIT;
EOS

# Other messages in the middle of a run.
run_both('runs that end', <<'EOS');
BEGIN;
INSERT INTO plain SELECT i, i, NULL FROM generate_series(4000, 4009) i;
UPDATE plain SET t = 'changed' WHERE id = 4009;
INSERT INTO plain SELECT i, i, NULL FROM generate_series(4010, 4019) i;
DELETE FROM plain WHERE id = 4019;
INSERT INTO plain VALUES (4019, 1, 'again'), (4020, 1, 'more'), (4021, 1, 'more');
INSERT INTO pairs SELECT 1000, i, i FROM generate_series(1, 10) i;
TRUNCATE pairs;
INSERT INTO pairs SELECT i / 3, i % 3, i FROM generate_series(0, 299) i;
SAVEPOINT one;
INSERT INTO plain SELECT i, i, NULL FROM generate_series(5000, 5009) i;
ROLLBACK TO one;
INSERT INTO made SELECT i, i FROM generate_series(301, 310) i;
ALTER TABLE made ALTER n SET DEFAULT 1;
INSERT INTO made SELECT i FROM generate_series(311, 320) i;
COMMIT;
EOS

# Each trigger sees the rows before its own and no other; so does a function of a default.
$publisher->safe_psql('postgres', 'INSERT INTO watched SELECT i, i FROM generate_series(1, 20) i');
$publisher->safe_psql('postgres', "INSERT INTO $_ SELECT i FROM generate_series(1, 20) i") foreach qw(counted counted_stable checked);
$publisher->wait_for_catchup('s');
is($subscriber->safe_psql('postgres', 'SELECT string_agg(rows::text, $$ $$ ORDER BY rows) FROM seen'),
	join(' ', 1 .. 20), 'a trigger sees no later rows');
is($subscriber->safe_psql('postgres', 'SELECT bool_and(before = id - 1) FROM counted'), 't',
	'a volatile default sees no later rows');
is($subscriber->safe_psql('postgres', 'SELECT bool_and(before = id - 1) FROM counted_stable'), 't',
	'a default that reads sees the earlier ones');
is($subscriber->safe_psql('postgres', 'SELECT count(*) FROM checked'), '20',
	'a CHECK constraint that reads sees the earlier ones');

# A row of the run cannot be inserted: nothing of the transaction is, and all of it
# once the row in the way is gone.
$subscriber->safe_psql('postgres', "INSERT INTO keys VALUES (500, 777, 'local')");
my $log = -s $subscriber->logfile;
$publisher->safe_psql('postgres', 'INSERT INTO keys SELECT i, 700 + i - 100, NULL FROM generate_series(101, 250) i');
$subscriber->wait_for_log(qr/duplicate key value violates unique constraint "keys_u_key"/, $log);
$subscriber->wait_for_log(qr/during message type "INSERT" for replication target relation "public.keys"/, $log);
is($subscriber->safe_psql('postgres', 'SELECT count(*) FROM keys WHERE id > 100'), '1',
	'nothing of a failed transaction');
$subscriber->safe_psql('postgres', 'DELETE FROM keys WHERE id = 500');
run_both('after the failure', 'SELECT');

# The first row of another table behind a run: the error names that table.
$subscriber->safe_psql('postgres', "INSERT INTO named VALUES ('taken', 0)");
$log = -s $subscriber->logfile;
$publisher->safe_psql('postgres', "BEGIN; INSERT INTO plain SELECT i, i, NULL FROM generate_series(6000, 6009) i; INSERT INTO named VALUES ('taken', 1); COMMIT");
$subscriber->wait_for_log(qr/duplicate key value violates unique constraint "named_pkey"/, $log);
$subscriber->wait_for_log(qr/during message type "INSERT" for replication target relation "public.named"/, $log);
$subscriber->safe_psql('postgres', "DELETE FROM named WHERE id = 'taken'");
run_both('after that failure', 'SELECT');

# Keys in order, with gaps, with missing rows, with keys that move.
$subscriber->safe_psql('postgres', 'DELETE FROM plain WHERE id % 50 = 7');
$publisher->safe_psql('postgres', 'UPDATE plain SET n = n + 1 WHERE id < 2000');
$publisher->safe_psql('postgres', 'DELETE FROM plain WHERE id % 50 = 7');
run_both('rows missing at the subscriber', <<'EOS');
UPDATE plain SET n = n + 1 WHERE id % 40 = 1;
EOS
run_both('keys in order', <<'EOS');
BEGIN;
UPDATE plain SET n = n + 1;
UPDATE plain SET n = n + 1, t = NULL WHERE id > 100;
UPDATE keys SET u = u + 10000;
UPDATE keys SET id = id + 1000000;
UPDATE pairs SET n = n + 1;
UPDATE pairs SET b = b + 10;
UPDATE descending SET n = n + 1;
UPDATE named SET n = n + 1;
UPDATE made SET n = n + 1;
UPDATE parted SET n = n + 1;
UPDATE parted SET id = 1500 - id WHERE id <= 400;
DELETE FROM plain WHERE id BETWEEN 1000 AND 1500;
DELETE FROM pairs WHERE a > 50;
DELETE FROM descending WHERE id % 2 = 0;
COMMIT;
EOS
run_both('inserted where the walk is', <<'EOS');
BEGIN;
UPDATE plain SET n = 0 WHERE id < 500;
INSERT INTO plain VALUES (1000, 0, NULL), (1001, 0, NULL), (1002, 0, NULL);
UPDATE plain SET n = n + 1 WHERE id < 1600;
UPDATE plain SET n = n + 1 WHERE id >= 500;
COMMIT;
EOS

# Somebody holds a row in the middle, and changes it.
my $session = $subscriber->background_psql('postgres');
$session->query_safe("BEGIN; UPDATE plain SET t = 'local' WHERE id = 300");
$publisher->safe_psql('postgres', 'UPDATE plain SET n = n + 100 WHERE id < 900');
$subscriber->poll_query_until('postgres',
	"SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted")
  or die 'nobody waits for the row';
$session->query_safe('COMMIT');
$session->quit;
$publisher->wait_for_catchup('s');
is($subscriber->safe_psql('postgres', 'SELECT count(*) FROM plain WHERE id < 900 AND n < 100'), '0',
	'the row that was held has the change, too');
$publisher->safe_psql('postgres', "UPDATE plain SET t = 'one' WHERE id = 300");
run_both('all', 'DELETE FROM plain');

# One row, many versions that are not HOT: indexes on what has not changed do not keep them.
$_->safe_psql('postgres', <<'EOS') foreach $publisher, $subscriber;
CREATE TABLE versions (id int PRIMARY KEY, fixed int, moving int UNIQUE, t text);
CREATE INDEX versions_fixed ON versions (fixed);
CREATE UNIQUE INDEX versions_expression ON versions ((id + 0));
CREATE UNIQUE INDEX versions_partial ON versions (fixed) WHERE moving % 2 = 0;
EOS
$subscriber->safe_psql('postgres', 'ALTER SUBSCRIPTION s REFRESH PUBLICATION');
$subscriber->wait_for_subscription_sync($publisher, 's');
$publisher->safe_psql('postgres', <<'EOS');
INSERT INTO versions SELECT i, i, -i, repeat('x', 100) FROM generate_series(1, 20) i;
DO $$ BEGIN FOR i IN 1 .. 5000 LOOP UPDATE versions SET moving = i WHERE id = 7; COMMIT; END LOOP; END $$;
EOS
push @tables, 'versions';
run_both('many versions', "UPDATE versions SET moving = 20000 + id, fixed = NULLIF(fixed, 5)");
cmp_ok($subscriber->safe_psql('postgres', "SELECT pg_relation_size('versions_fixed') / 8192"), '<=', 4,
	'an index on a column that has not changed stays small');
foreach my $condition ('id = 7', 'fixed = 7', 'id + 0 = 7', 'moving = 20007')
{
	is($subscriber->safe_psql('postgres', "SET enable_seqscan = off; SELECT string_agg(id::text, ' ') FROM versions WHERE $condition"),
		'7', "the row is found by $condition");
}
is($subscriber->safe_psql('postgres', 'SET enable_seqscan = off; SELECT count(*) FROM versions WHERE moving % 2 = 0 AND fixed > 0'),
	'10', 'and by the partial index');

# What changes is looked for.
$subscriber->safe_psql('postgres', "INSERT INTO versions VALUES (1000, 1000, 30000, 'local')");
$log = -s $subscriber->logfile;
$publisher->safe_psql('postgres', 'UPDATE versions SET moving = 30000 WHERE id = 7');
$subscriber->wait_for_log(qr/duplicate key value violates unique constraint "versions_moving_key"/, $log);
$subscriber->safe_psql('postgres', 'DELETE FROM versions WHERE id = 1000');
run_both('after a taken key', 'SELECT');

# Two tables there, which are one and its partition here, in one transaction.
$publisher->safe_psql('postgres', q{
	CREATE TABLE whole (id int, n int);
	CREATE TABLE whole_low (id int);
	ALTER TABLE whole REPLICA IDENTITY FULL;
	ALTER TABLE whole_low REPLICA IDENTITY FULL});
$subscriber->safe_psql('postgres', q{
	CREATE TABLE whole (id int, n int DEFAULT 9) PARTITION BY RANGE (id);
	CREATE TABLE whole_low PARTITION OF whole FOR VALUES FROM (0) TO (100)});
$subscriber->safe_psql('postgres', 'ALTER SUBSCRIPTION s REFRESH PUBLICATION');
$subscriber->wait_for_subscription_sync($publisher, 's');
$publisher->safe_psql('postgres', 'INSERT INTO whole_low VALUES (1), (2), (3)');
$publisher->safe_psql('postgres', q{
	BEGIN;
	DELETE FROM whole_low WHERE id = 1;
	INSERT INTO whole VALUES (50, 5);
	DELETE FROM whole_low WHERE id = 2;
	COMMIT});
$publisher->wait_for_catchup('s');
is($subscriber->safe_psql('postgres', 'SELECT string_agg(id::text, \' \' ORDER BY id) FROM whole'), '3 50',
	'changes of a partition between those of its root');

$subscriber->stop;
$publisher->stop;
done_testing();
