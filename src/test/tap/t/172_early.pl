# Large transactions that are applied while they arrive (streaming with lanes).
#
# What goes wrong here: such a transaction is rolled back, wholly or in part, after it has
# been applied here; an earlier one waits for it, which waits for its turn; it needs what an
# earlier one has not done yet; it fails; it is prepared, skipped; its file is not where it
# is to be; settings and tables change under it; it, its leader, the server and the
# connection are killed at each step.

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

my $conf = "restart_after_crash = off\nlogical_decoding_work_mem = 64kB\ndeadlock_timeout = 100ms\nmax_prepared_transactions = 5";
my $publisher = krahodb_node('publisher', conf => $conf);
my $subscriber = krahodb_node('subscriber', conf => "$conf\nlog_min_messages = debug1");

sub on_publisher { return $publisher->safe_psql('postgres', $_[0]); }
sub on_subscriber { return $subscriber->safe_psql('postgres', $_[0]); }

sub check_equal
{
	my ($name) = @_;

	$publisher->wait_for_catchup('sub');
	is_equal_on([ $publisher, $subscriber ],
		"SELECT count(*), sum(hashtextextended(t::text, 0)) FROM $_ t", "$name: $_")
	  foreach qw(big item);
	return;
}

sub early { return on_subscriber("SELECT $_[0] FROM krahodb.lanes WHERE lane = 0"); }

sub wait_for
{
	my ($query, $what) = @_;

	$subscriber->poll_query_until('postgres', $query) or die "no $what";
	return;
}

# A transaction of the publisher that goes on; quit() it after its end.
sub begin
{
	my ($sql) = @_;
	my $session = $publisher->background_psql('postgres');

	$session->query_safe('BEGIN');
	$session->query_safe($sql);
	return $session;
}

# Its changes have been applied as far as they have come.
sub wait_until_applied
{
	wait_for("SELECT state = 'waiting for the stream' FROM krahodb.lanes l WHERE lane = 0 AND EXISTS
		(SELECT FROM pg_locks k WHERE k.pid = l.pid AND relation = 'big'::regclass AND mode = 'RowExclusiveLock')",
		'transaction that is applied early');
	return;
}

sub finish
{
	my ($session, $command) = @_;

	$session->query_safe($command);
	$session->quit;
	return;
}

# The worker knows that no table is being synchronised.
sub wait_until_ready
{
	my $ready = 0;

	for (1 .. 200)
	{
		on_publisher('INSERT INTO item VALUES (1000) ON CONFLICT (id) DO UPDATE SET u = NULL');
		$publisher->wait_for_catchup('sub');
		return if $ready;		# what it has done since has made it look
		$ready = on_subscriber("SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'") eq '0';
	}
	die 'tables are not ready';
}

# Log of the subscriber from here on.
sub log_end { return -s $subscriber->logfile; }

sub wait_for_reason
{
	my ($reason, $start) = @_;

	$subscriber->wait_for_log(qr/streamed transaction \d+ is applied (?:again|when it has ended): $reason/, $start);
	return;
}

# A session at the subscriber that holds something until it ends.
sub hold
{
	my ($sql) = @_;
	my $session = $subscriber->background_psql('postgres', on_error_stop => 0);

	$session->query_safe("BEGIN; $sql");
	return $session;
}

my $n = 0;

# So many rows that they are streamed.
sub rows
{
	$n++;
	return "INSERT INTO big SELECT i, $n, repeat('x', 50) FROM generate_series($n * 10000 + 1, $n * 10000 + 3000) i";
}

# Have a process that is there when the next transaction comes.
sub start_process
{
	my $idle;

	wait_until_ready();
	$idle = begin(rows());
	wait_until_applied();
	finish($idle, 'ROLLBACK');
	return;
}

# ---- set up ---------------------------------------------------------------------------

$_->safe_psql('postgres', <<'EOS') foreach $publisher, $subscriber;
CREATE TABLE big (id int PRIMARY KEY, n int, t text);
CREATE TABLE item (id int PRIMARY KEY, u int);
CREATE TABLE new (id int PRIMARY KEY);
EOS
on_subscriber('CREATE UNIQUE INDEX ON item (u)');
on_publisher('CREATE PUBLICATION pub FOR TABLE big, item');
on_subscriber('CREATE EXTENSION krahodb');
my $create = "CREATE SUBSCRIPTION sub CONNECTION '" . connstr($publisher) . "' PUBLICATION pub WITH ";
on_subscriber("$create (apply_workers = 2, streaming = on)");
$subscriber->wait_for_subscription_sync($publisher, 'sub');

wait_until_ready();

# ---- as it is meant to go ----------------------------------------------------------------

my $session = begin(rows());
wait_until_applied();
is(on_subscriber('SELECT count(*) FROM big'), '0', 'what is applied early is not seen');
is(early('remote_xid IS NOT NULL'), 't', 'the view shows its transaction');
$session->query_safe("UPDATE big SET n = -n WHERE id % 3 = 0");
on_publisher('INSERT INTO item VALUES (1, 1), (2, 2)');
$publisher->wait_for_catchup('sub');
is(on_subscriber('SELECT count(*) FROM item WHERE u IS NOT NULL'), '2', 'others go on meanwhile');
$session->query_safe("DELETE FROM big WHERE id % 5 = 0");
finish($session, 'COMMIT');
check_equal('inserts, updates, deletes');
is(early('applied, repeated'), '1|0', '... were applied early');
is(on_subscriber("SELECT count(*) FROM big b WHERE pg_xact_commit_timestamp(b.xmin) IS DISTINCT FROM (SELECT max(pg_xact_commit_timestamp(xmin)) FROM big)"),
	'0', '... and have one commit time');
is(on_publisher('SELECT max(pg_xact_commit_timestamp(xmin)) FROM big'),
	on_subscriber('SELECT max(pg_xact_commit_timestamp(xmin)) FROM big'), '... the publisher\'s');
is(on_subscriber("SELECT count(DISTINCT roident) FROM big, pg_xact_commit_timestamp_origin(xmin) WHERE roident > 0"),
	'1', '... and the origin of the subscription');

on_publisher(rows());
on_publisher("INSERT INTO big VALUES (-1, 0, 'small')");
check_equal('the publisher does not describe the table again');
is(early('applied, repeated'), '2|0', '... after a transaction that was applied early');

$session = begin(rows());
wait_until_applied();
my $other = begin(rows());
$session->query_safe(rows());
$other->query_safe(rows());
finish($other, 'COMMIT');
finish($session, 'COMMIT');
check_equal('two at a time');
is(early('applied, repeated'), '3|0', '... one of them early');

# ---- rolled back -------------------------------------------------------------------------

$session = begin(rows());
wait_until_applied();
finish($session, 'ROLLBACK');
wait_for("SELECT state = 'idle' AND repeated = 1 FROM krahodb.lanes WHERE lane = 0", 'end of what was rolled back');
check_equal('a rolled back transaction');

$session = begin(rows());
$session->query_safe('SAVEPOINT a');
$session->query_safe(rows());
$session->query_safe('UPDATE big SET n = 77');
$session->query_safe('SAVEPOINT b');
$session->query_safe(rows());
wait_until_applied();
$session->query_safe('ROLLBACK TO a');
$session->query_safe(rows());
finish($session, 'COMMIT');
check_equal('savepoints that are rolled back');
is(early('repeated'), '2', '... after they have been applied');

$session = begin(rows());
$session->query_safe($_) foreach 'SAVEPOINT a', rows(), 'SAVEPOINT b', rows(), 'RELEASE a';
finish($session, 'COMMIT');
check_equal('savepoints that are kept');
is(early('repeated'), '2', '... are no reason');

# ---- earlier transactions ------------------------------------------------------------------

# Only here u is unique: the later one has it for a moment, and an earlier one wants it.
my $start = log_end();
$session = begin('UPDATE item SET u = 20 WHERE id = 1; UPDATE item SET u = 10 WHERE id = 1; ' . rows());
wait_until_applied();
on_publisher('BEGIN; UPDATE item SET u = 20 WHERE id = 2; UPDATE item SET u = 2 WHERE id = 2; COMMIT');
on_publisher('INSERT INTO item VALUES (3, 3)');
wait_for('SELECT count(*) = 1 FROM item WHERE id = 3', 'earlier transaction');
finish($session, 'COMMIT');
check_equal('an earlier transaction waits for a later one');
wait_for_reason('an earlier transaction waits for it', $start);

# A lane is held up, and the later one is about a row that it is to insert.
my $before = early('repeated');
$start = log_end();
$session = hold('UPDATE item SET u = u WHERE id = 2');
on_publisher('BEGIN; UPDATE item SET u = 21 WHERE id = 2; INSERT INTO item VALUES (4, 4); COMMIT');
my $open = begin('UPDATE item SET u = 40 WHERE id = 4; ' . rows());
wait_for("SELECT repeated = $before + 1 FROM krahodb.lanes WHERE lane = 0", 'attempt that is given up');
finish($session, 'ROLLBACK');
finish($open, 'COMMIT');
check_equal('a row that an earlier transaction inserts');
wait_for_reason('a change needs all earlier transactions', $start);

# A circle with a local session is the deadlock detector's.
$session = hold('UPDATE item SET u = u WHERE id = 2');
$open = begin('UPDATE item SET u = 11 WHERE id = 1; UPDATE item SET u = 12 WHERE id = 2;' . rows());
wait_for("SELECT count(*) = 1 FROM pg_locks k JOIN krahodb.lanes l USING (pid) WHERE lane = 0 AND NOT granted", 'wait for a local session');
$session->query('UPDATE item SET u = u WHERE id = 1');
$session->query('ROLLBACK');
$session->quit;
finish($open, 'COMMIT');
check_equal('a deadlock with a local session');

# It waits for a local session, and an earlier transaction for it, which has nothing to do with that session.
$start = log_end();
my $first = hold('UPDATE item SET u = u WHERE id = 1');
$session = hold('UPDATE item SET u = u WHERE id = 2');
on_publisher('BEGIN; UPDATE item SET u = 14 WHERE id = 1; UPDATE item SET u = 15 WHERE id = 3; COMMIT');
$open = begin('UPDATE item SET u = 16 WHERE id = 3; UPDATE item SET u = 17 WHERE id = 2; ' . rows());
wait_for("SELECT count(*) = 1 FROM pg_locks k JOIN krahodb.lanes l USING (pid) WHERE lane = 0 AND NOT granted", 'wait for a local session');
finish($first, 'ROLLBACK');
wait_for('SELECT u = 15 FROM item WHERE id = 3', 'earlier transaction');
finish($session, 'ROLLBACK');
finish($open, 'COMMIT');
check_equal('an earlier transaction does not wait for a local session by way of it');
wait_for_reason('canceling statement due to lock timeout', $start);

# The local session is in the way when the transaction is rolled back: nobody waits for it.
$session = hold('UPDATE item SET u = u WHERE id = 2');
$open = begin('UPDATE item SET u = 13 WHERE id = 2;' . rows());
wait_for("SELECT count(*) = 1 FROM pg_locks k JOIN krahodb.lanes l USING (pid) WHERE lane = 0 AND NOT granted", 'wait for a local session');
finish($open, 'ROLLBACK');
on_publisher('INSERT INTO item VALUES (5, 5)');
wait_for('SELECT count(*) = 1 FROM item WHERE id = 5', 'transaction behind it');
finish($session, 'ROLLBACK');
check_equal('rolled back while it waits for a lock');

# ---- not for it ---------------------------------------------------------------------------

$start = log_end();
on_subscriber('INSERT INTO big VALUES (300001, 0, NULL)');
$n = 29;
on_publisher(rows());
$subscriber->wait_for_log(qr/ERROR: .*duplicate key value/, $start);
on_subscriber('DELETE FROM big WHERE id = 300001 AND n = 0');
check_equal('a row in the way is the worker\'s error');
like(slurp_file($subscriber->logfile, $start), qr/is applied (?:again|when it has ended): duplicate key value/, '... that was met early');

$start = log_end();
$session = begin(rows() . '; TRUNCATE item; INSERT INTO item VALUES (1, 1), (2, 2)');
finish($session, 'COMMIT');
check_equal('TRUNCATE');
wait_for_reason('a change needs all earlier', $start);

$start = log_end();
on_subscriber("ALTER TABLE item SET (krahodb.conflict_resolution = 'apply_remote')");
on_publisher('BEGIN;' . rows() . '; UPDATE item SET u = 30 WHERE id = 1; COMMIT');
check_equal('a table with resolvers');
wait_for_reason('a table has resolvers', $start);
on_subscriber('ALTER TABLE item RESET (krahodb.conflict_resolution)');

# ---- settings change ------------------------------------------------------------------------

$start = log_end();
$session = begin(rows());
wait_until_applied();
on_publisher('ALTER PUBLICATION pub ADD TABLE new');
on_subscriber('ALTER SUBSCRIPTION sub REFRESH PUBLICATION');
wait_for_reason('the apply worker has stopped it', $start);
$session->query_safe('INSERT INTO new VALUES (1)');
finish($session, 'COMMIT');
$subscriber->wait_for_subscription_sync($publisher, 'sub');
check_equal('a table is added meanwhile');
is(on_subscriber('SELECT count(*) FROM new'), '1', '... and its rows are there');
wait_until_ready();

$session = begin(rows());
wait_until_applied();
on_subscriber('ALTER SUBSCRIPTION sub DISABLE');
wait_for('SELECT count(*) = 0 FROM pg_stat_subscription WHERE pid IS NOT NULL', 'end of the worker');
is(on_subscriber("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'logical replication lane'"),
	'0', 'it ends before its leader');
finish($session, 'COMMIT');
on_subscriber('ALTER SUBSCRIPTION sub ENABLE');
check_equal('disabled meanwhile');

# ---- ended, killed, disconnected ----------------------------------------------------------------

$session = begin(rows());
wait_until_applied();
on_subscriber('SELECT pg_terminate_backend(pid) FROM krahodb.lanes WHERE lane = 0');
$session->query_safe(rows());
finish($session, 'COMMIT');
check_equal('the process was ended');

$session = begin(rows());
wait_until_applied();
on_publisher("SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE application_name = 'sub'");
$session->query_safe(rows());
finish($session, 'COMMIT');
check_equal('the connection was cut');

# Ended at its commit: only the origin's position says whether it was one.
foreach my $fault (qw(early_before_commit apply_before_commit apply_after_commit early_committed))
{
	start_process();
	$start = log_end();
	arm_fault($subscriber, "$fault=wait");
	reload_settings($subscriber);
	on_publisher(rows());
	$subscriber->wait_for_log(qr/fault point "\w+" reached: wait/, $start);
	disarm_fault($subscriber);
	on_subscriber("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'logical replication lane' AND pid = (SELECT pid FROM krahodb.lanes WHERE lane = 0)");
	$subscriber->reload;
	check_equal("ended at $fault");
}

foreach my $fault (qw(early_begin early_change@1000 early_before_commit apply_before_commit
	apply_after_commit early_committed spool_write@2500))
{
	start_process();
	arm_fault($subscriber, "$fault=kill");
	reload_settings($subscriber);
	on_publisher(rows());
	wait_until_down($subscriber);
	disarm_fault($subscriber);
	start_after_kill($subscriber);
	check_equal("killed at $fault");
}

# ---- who alters the subscription meanwhile ----------------------------------------------------

on_subscriber('ALTER SUBSCRIPTION sub DISABLE');
wait_for('SELECT count(*) = 0 FROM pg_stat_subscription WHERE pid IS NOT NULL', 'end of the worker');
on_subscriber('ALTER SUBSCRIPTION sub ENABLE');
wait_until_ready();
is(early('count(*)'), '0', 'there is no process yet');
my $alters = hold('ALTER SUBSCRIPTION sub SET (disable_on_error = true)');
on_publisher(rows());
check_equal('the process is started while somebody alters the subscription');
$alters->query_safe('ROLLBACK');
$alters->quit;

# ---- where the file is ------------------------------------------------------------------------

my $place = $subscriber->basedir . '/space';
mkdir $place;
on_subscriber("CREATE TABLESPACE space LOCATION '$place'");
on_subscriber('ALTER SUBSCRIPTION sub DISABLE');
wait_for('SELECT count(*) = 0 FROM pg_stat_subscription WHERE pid IS NOT NULL', 'end of the worker');
on_subscriber("ALTER SYSTEM SET temp_tablespaces = 'space'");
reload_settings($subscriber);
on_subscriber('ALTER SUBSCRIPTION sub ENABLE');
wait_until_ready();
my $placed = begin(rows());
wait_until_applied();
my @files = glob "$place/*/pgsql_tmp/*/*.changes.*";
is(scalar(@files), 1, 'the file is in the temporary tablespace');
finish($placed, 'COMMIT');
check_equal('a file in a temporary tablespace');
on_subscriber('ALTER SYSTEM RESET temp_tablespaces');
reload_settings($subscriber);

# ---- two-phase ------------------------------------------------------------------------------

on_subscriber('DROP SUBSCRIPTION sub');
on_subscriber("$create (apply_workers = 2, streaming = on, two_phase = on, copy_data = false)");
$subscriber->wait_for_subscription_sync($publisher, 'sub');
on_publisher('BEGIN;' . rows() . ";PREPARE TRANSACTION 'p'");
on_publisher("COMMIT PREPARED 'p'");
check_equal('a prepared transaction');

# ---- without --------------------------------------------------------------------------------

on_subscriber('DROP SUBSCRIPTION sub');
on_subscriber("$create (apply_workers = 2, streaming = on, conflict_resolution = last_update_wins, copy_data = false)");
$subscriber->wait_for_subscription_sync($publisher, 'sub');
on_publisher(rows());
check_equal('with resolvers');
is(early('count(*)'), '0', '... there is no such process');

$subscriber->stop;
$publisher->stop;
done_testing();
