# Large transactions that are sent in parts, with the settings that a subscription has by
# default.
#
# What can go wrong: a subtransaction that was rolled back stays, since the publisher had it
# in a file of its own; the subscriber goes back to the definition of a table that came with
# the first part; the subscriber, which applies the whole file at the end, is taken for dead
# meanwhile; the writer had seen what it overwrites, but that is told as a conflict; parts of
# several transactions, changes of tables and unfinished rows between them.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/..";

use KrahoDB::Nodes;
use KrahoDB::PausedMesh;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $conf = "logical_decoding_work_mem = 64kB\nwal_writer_delay = 10ms\nmax_prepared_transactions = 5\n";
my $publisher = krahodb_node('publisher', conf => $conf);
my $subscriber = krahodb_node('subscriber', conf => $conf);
my @nodes = ($publisher, $subscriber);

sub on_publisher { return $publisher->safe_psql('postgres', join "\n", @_); }
sub on_subscriber { return $subscriber->safe_psql('postgres', join "\n", @_); }

# A transaction of the publisher, of which a part has been sent.
sub begin_parts
{
	my ($sql) = @_;
	my $session = $publisher->background_psql('postgres');

	on_publisher("SELECT pg_stat_reset_replication_slot('sub')");
	$session->query_safe('BEGIN');
	$session->query_safe($sql);
	$publisher->poll_query_until('postgres',
		"SELECT stream_count > 0 FROM pg_stat_replication_slots WHERE slot_name = 'sub'")
	  or die 'nothing is sent';
	return $session;
}

sub finish
{
	my ($session, @sql) = @_;

	$session->query_safe($_) foreach @sql;
	$session->quit;
	return;
}

foreach my $node (@nodes)
{
	$node->safe_psql('postgres', q{
		CREATE TABLE t (id int PRIMARY KEY, v text);
		ALTER TABLE t ALTER v SET STORAGE EXTERNAL;
		CREATE TABLE other (id int PRIMARY KEY, v text);
		CREATE TABLE c (id int PRIMARY KEY, a int, b int);
		CREATE TABLE made (id int);
	});
}
on_subscriber('ALTER TABLE t ADD w int');
on_publisher('DROP TABLE made', '; CREATE PUBLICATION pub FOR ALL TABLES WITH (publish_via_partition_root = true)');
my $connstr = connstr($publisher);
on_subscriber("CREATE SUBSCRIPTION sub CONNECTION '$connstr' PUBLICATION pub WITH (disable_on_error = on)");
$subscriber->wait_for_subscription_sync($publisher, 'sub');

# ---- a subtransaction that was in a file -------------------------------------------------

# The publisher cannot send half a row: with more than 4096 pieces of one it reads the
# subtransaction back from its file in several goes, and forgets that it is being sent.
my $session = begin_parts(q{
	INSERT INTO t VALUES (1, 'stays');
	SAVEPOINT s;
	INSERT INTO t VALUES (2, repeat('x', 10000000))});
finish($session, 'ROLLBACK TO s', "INSERT INTO t VALUES (3, 'stays')", 'COMMIT');
wait_streams(1, [ $publisher, 'sub' ]);
is(on_subscriber('SELECT string_agg(id::text, \',\' ORDER BY id) FROM t'), '1,3',
	'a subtransaction with a very large row is rolled back');

# ---- an apply that takes longer than the publisher waits for an answer ---------------------

on_publisher("ALTER SYSTEM SET wal_sender_timeout = '2s'");
reload_settings($publisher);
on_subscriber(q{
	CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
	DECLARE start timestamptz := clock_timestamp();
	BEGIN
		WHILE clock_timestamp() < start + interval '1 ms' LOOP END LOOP;
		RETURN NEW;
	END $$;
	CREATE TRIGGER slow BEFORE INSERT ON other FOR EACH ROW EXECUTE FUNCTION slow();
	ALTER TABLE other ENABLE ALWAYS TRIGGER slow;});
on_publisher("INSERT INTO other SELECT g, repeat('x', 50) FROM generate_series(1, 5000) g");
wait_streams(1, [ $publisher, 'sub' ]);
is(on_subscriber('SELECT count(*) FROM other'), 5000, 'a transaction that takes long to apply');
ok(!$publisher->log_contains(qr/terminating walsender process due to replication timeout/),
	'... does not cost the connection');
is(on_subscriber('SELECT subenabled FROM pg_subscription'), 't', '... nor the subscription');
on_publisher('ALTER SYSTEM RESET wal_sender_timeout');
reload_settings($publisher);
on_subscriber('ALTER TABLE other DISABLE TRIGGER slow');

# ---- parts of several transactions -------------------------------------------------------------

my $first = begin_parts("INSERT INTO t SELECT g, 'first' FROM generate_series(1000, 2999) g");
my $second = begin_parts("INSERT INTO t SELECT g, 'second' FROM generate_series(3000, 4999) g");
my $third = begin_parts("INSERT INTO t SELECT g, 'third' FROM generate_series(5000, 6999) g");
on_publisher("INSERT INTO t VALUES (10, 'between')");
$first->query_safe('SAVEPOINT a');
$first->query_safe("UPDATE t SET v = 'undone' WHERE v = 'first'");
$second->query_safe("UPDATE t SET v = 'second time' WHERE v = 'second'");
$first->query_safe('SAVEPOINT b');
$first->query_safe("DELETE FROM t WHERE id BETWEEN 1000 AND 2999");
$first->query_safe('RELEASE b');
$first->query_safe('ROLLBACK TO a');
$first->query_safe("UPDATE t SET v = v || repeat('y', 3000) WHERE id % 7 = 0 AND v = 'first'");
$third->query_safe("INSERT INTO t SELECT g, 'third' FROM generate_series(5500, 7500) g ON CONFLICT (id) DO UPDATE SET v = 'again'");
finish($third, 'COMMIT');
finish($second, 'ROLLBACK');
finish($first, 'COMMIT');
wait_streams(1, [ $publisher, 'sub' ]);
my $rows = "SELECT count(*), sum(hashtextextended(id || '/' || v, 0)) FROM t";
is_equal_on(\@nodes, $rows, 'transactions beside each other');

# Functions with exceptions, more subtransactions than a snapshot has room for.
on_publisher(q{DO $$ BEGIN
	FOR i IN 1..600 LOOP
		BEGIN
			INSERT INTO t SELECT 20000 + i * 10 + j, 'loop' FROM generate_series(1, 9) j;
			IF i % 3 = 0 THEN RAISE 'no'; END IF;
			UPDATE t SET v = 'looped' WHERE id = 20000 + i * 10 + 1;
		EXCEPTION WHEN raise_exception THEN NULL;
		END;
	END LOOP; END $$});
wait_streams(1, [ $publisher, 'sub' ]);
is_equal_on(\@nodes, $rows, 'many subtransactions');

# ---- tables that change on the way ---------------------------------------------------------------

$first = begin_parts("INSERT INTO t SELECT g, 'ddl' FROM generate_series(30000, 31999) g");
finish($first,
	'SAVEPOINT a', 'ALTER TABLE t ADD x int', "INSERT INTO t SELECT g, 'ddl', 1 FROM generate_series(32000, 33999) g",
	'ROLLBACK TO a',
	"INSERT INTO t SELECT g, 'ddl' FROM generate_series(34000, 35999) g",
	'ALTER TABLE t ADD w int',
	"INSERT INTO t SELECT g, 'ddl', g FROM generate_series(36000, 37999) g",
	'CREATE TABLE made AS SELECT g AS id FROM generate_series(1, 3000) g',
	'TRUNCATE other', "INSERT INTO other SELECT g, 'new' FROM generate_series(1, 1000) g",
	'COMMIT');
on_publisher("INSERT INTO t VALUES (38000, 'behind', 3)");
wait_streams(1, [ $publisher, 'sub' ]);
is_equal_on(\@nodes, 'SELECT count(*), sum(hashtextextended(id || v, 0)), sum(w) FROM t', 'columns that are added on the way');
is_equal_on(\@nodes, 'SELECT count(*), sum(id) FROM other', 'TRUNCATE on the way');
on_subscriber('ALTER SUBSCRIPTION sub REFRESH PUBLICATION WITH (copy_data = false)');

# ---- column lists that change on the way -----------------------------------------------------------

on_subscriber('DROP SUBSCRIPTION sub', '; TRUNCATE t, other, c');
on_publisher('DROP PUBLICATION pub', '; TRUNCATE t, other, c', '; CREATE PUBLICATION pub FOR TABLE c (id, a), t');
on_subscriber("CREATE SUBSCRIPTION sub CONNECTION '$connstr' PUBLICATION pub WITH (copy_data = false)");
on_publisher('INSERT INTO c VALUES (-1, 1, 2)');
wait_streams(1, [ $publisher, 'sub' ]);
foreach my $end ('COMMIT', 'ROLLBACK')
{
	my $base = $end eq 'COMMIT' ? 10000 : 20000;

	on_publisher('ALTER PUBLICATION pub SET TABLE c (id, a), t');
	# what comes behind the rows of "c" sees to it that all of them are sent before the change
	$first = begin_parts("INSERT INTO c SELECT g, 1, 2 FROM generate_series($base + 1, $base + 1000) g;
		INSERT INTO t SELECT g, repeat('x', 100) FROM generate_series($base, $base + 2000) g");
	on_publisher("INSERT INTO t VALUES ($base + 5000, 'between')");
	wait_streams(1, [ $publisher, 'sub' ]);
	on_publisher('ALTER PUBLICATION pub SET TABLE c (id, b), t', ';', "INSERT INTO c VALUES ($base + 5000, 1, 2)");
	wait_streams(1, [ $publisher, 'sub' ]);
	finish($first, $end);
	on_publisher("INSERT INTO c VALUES ($base + 5001, 1, 2)");
	wait_streams(1, [ $publisher, 'sub' ]);
	is(on_subscriber("SELECT string_agg(concat(a, '/', b), ' ' ORDER BY id) FROM c WHERE id >= $base + 5000"), '/2 /2',
		"a column list that was changed during a large transaction, after its $end");
}
is(on_subscriber('SELECT count(*) FROM c WHERE id BETWEEN 10001 AND 11000 AND a = 1 AND b IS NULL'), 1000,
	'... whose rows have the columns of when they were sent');
on_subscriber('DROP SUBSCRIPTION sub');
$_->stop foreach @nodes;

# ---- what the writer had seen ------------------------------------------------------------------------

my $mesh = KrahoDB::PausedMesh->new(
	names => [qw(n1 n2)],
	conf => $conf,
	schema => 'CREATE EXTENSION krahodb; CREATE TABLE item (id int PRIMARY KEY, v text); CREATE PUBLICATION item FOR TABLE item',
	publications => 'item',
	options => 'conflict_resolution = last_update_wins');
my ($n1, $n2) = $mesh->nodes;
$mesh->on(1, "INSERT INTO item SELECT g, 'n1' FROM generate_series(1, 2000) g");
$mesh->settle;
$mesh->on(2, "UPDATE item SET v = 'n2'");
$mesh->settle;
$mesh->on(1, "UPDATE item SET v = 'n1 again'");
$mesh->settle;
is(scalar(() = slurp_file($_->logfile) =~ /conflict detected on relation/g), 0,
	'large updates on one node after the other are no conflicts: ' . $_->name) foreach $n1, $n2;
$mesh->all_equal('large updates', 'SELECT count(*), min(v), max(v) FROM item');

done_testing();
