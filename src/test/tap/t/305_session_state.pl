# What triggers leave in the sessions of processes that apply: temporary tables, snapshots.
#
# What goes wrong here: the engine drops temporary tables when a process exits, in a transaction that is
# committed before the process has forgotten which remote transaction it was in the middle of; a lane, which
# has no origin then, takes the server down; functions of triggers see less than they would without lanes.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/..";

use KrahoDB::Nodes;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Each test says what it wants.
delete $ENV{KDB_TEST_APPLY_WORKERS};

my $publisher = krahodb_node('publisher');
my $subscriber = krahodb_node('subscriber', conf => 'restart_after_crash = off');

sub on_publisher { return $publisher->safe_psql('postgres', $_[0]); }
sub on_subscriber { return $subscriber->safe_psql('postgres', $_[0]); }

sub wait_for
{
	my ($query, $what) = @_;

	$subscriber->poll_query_until('postgres', $query) or die "no $what";
	return;
}

sub disable
{
	on_subscriber('ALTER SUBSCRIPTION sub DISABLE');
	wait_for("SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE 'logical replication %'
		AND backend_type NOT LIKE '%launcher'", 'end of all processes');
	return;
}

# Each statement is a transaction of its own.
sub each_transaction { return on_publisher(join "\n", map { "$_;" } @_); }

$_->safe_psql('postgres', 'CREATE TABLE event (id int, seen int); CREATE TABLE held (id int PRIMARY KEY, n int)')
  foreach $publisher, $subscriber;
on_publisher('CREATE PUBLICATION pub FOR ALL TABLES');
on_subscriber(q{
	CREATE EXTENSION krahodb;
	CREATE TABLE barrier (id int PRIMARY KEY);
	INSERT INTO barrier VALUES (1);
	CREATE FUNCTION remember() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		CREATE TEMPORARY TABLE IF NOT EXISTS remembered (id int);
		INSERT INTO remembered VALUES (NEW.id);
		RETURN NEW;
	END $$;
	CREATE TRIGGER remember BEFORE INSERT ON event FOR EACH ROW EXECUTE FUNCTION remember();
	ALTER TABLE event ENABLE ALWAYS TRIGGER remember;
	CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM FROM public.barrier FOR UPDATE;
		RETURN NEW;
	END $$;
	CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON held DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW EXECUTE FUNCTION wait();
	ALTER TABLE held ENABLE ALWAYS TRIGGER wait;});
on_subscriber("CREATE SUBSCRIPTION sub CONNECTION '" . connstr($publisher) . "' PUBLICATION pub");
$subscriber->wait_for_subscription_sync($publisher, 'sub');

# ---- a worker that is ended in the middle of a commit ------------------------------------------

foreach my $workers (1, 2)
{
	my $id = 100 * $workers;

	on_subscriber("ALTER SUBSCRIPTION sub SET (apply_workers = $workers)");
	each_transaction(map { "INSERT INTO event VALUES ($id + $_)" } 1 .. 50);
	$publisher->wait_for_catchup('sub');

	my $session = $subscriber->background_psql('postgres');

	$session->query_safe('BEGIN; SELECT FROM barrier FOR UPDATE');
	on_publisher("BEGIN; INSERT INTO event VALUES ($id + 51); INSERT INTO held VALUES ($id); COMMIT");
	wait_for("SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type LIKE 'logical replication %' AND wait_event_type = 'Lock'",
		'process that waits in its commit');
	on_subscriber('ALTER SUBSCRIPTION sub DISABLE');
	on_subscriber("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'logical replication %' AND wait_event_type = 'Lock'");
	disable();
	$session->query_safe('ROLLBACK');
	$session->quit;
	on_subscriber('ALTER SUBSCRIPTION sub ENABLE');
	$publisher->wait_for_catchup('sub');
	is(on_subscriber("SELECT count(*) FROM held WHERE id = $id"), '1',
		"a transaction whose commit was in the middle comes again, with $workers");
}

# ---- lanes that have temporary tables -----------------------------------------------------------

on_subscriber('ALTER SUBSCRIPTION sub SET (apply_workers = 3)');
each_transaction(map { "INSERT INTO event VALUES (300 + $_)" } 1 .. 100);
$publisher->wait_for_catchup('sub');
disable();
is(on_subscriber('SELECT count(*) FROM event'), '202', 'lanes with temporary tables end');
is(on_subscriber("SELECT count(*) FROM pg_class WHERE relname = 'remembered'"), '0', '... and have dropped them');

# ---- locks of the session ---------------------------------------------------------------------------

# By lanes and, as it is large, by the leader.
on_subscriber(q{
	CREATE OR REPLACE FUNCTION remember() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM pg_advisory_lock(7);
		RETURN NEW;
	END $$;
	ALTER SUBSCRIPTION sub ENABLE});
each_transaction(
	(map { "INSERT INTO event VALUES (600 + $_)" } 1 .. 100),
	'INSERT INTO event SELECT i FROM generate_series(10001, 25000) i',
	(map { "INSERT INTO event VALUES (700 + $_)" } 1 .. 100));
$publisher->wait_for_catchup('sub');
is(on_subscriber('SELECT count(*) FROM event WHERE id > 600'), '15200',
	'advisory locks that a trigger leaves in its session keep no other lane waiting');
disable();

# ---- what functions see ------------------------------------------------------------------------------

foreach my $level ('repeatable read', 'serializable')
{
	$subscriber->append_conf('postgresql.conf', "default_transaction_isolation = '$level'");
	reload_settings($subscriber);
	on_subscriber(q{
		CREATE OR REPLACE FUNCTION remember() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			NEW.seen := (SELECT count(*) FROM public.event);
			RETURN NEW;
		END $$;
		TRUNCATE event;
		ALTER SUBSCRIPTION sub ENABLE});
	each_transaction(map { "INSERT INTO event VALUES ($_)" } 1 .. 100);
	$publisher->wait_for_catchup('sub');
	is(on_subscriber('SELECT count(*) FROM event WHERE seen <> id - 1'), '0', "a trigger sees what came before: $level");
	disable();
}

done_testing();
