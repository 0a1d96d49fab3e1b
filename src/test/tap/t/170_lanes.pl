# Parallel lanes (apply_workers): several processes apply, and the result is that of one.
#
# What goes wrong here: transactions that depend on each other meet in different lanes, in
# the wrong order; an earlier one waits for a later one, or for a local session that does;
# lanes, the leader and the server are killed at each step; errors happen in lanes; lanes
# are to vanish with their subscription.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/..";

use IPC::Run;
use KrahoDB::Nodes;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Each test says what it wants.
delete $ENV{KDB_TEST_APPLY_WORKERS};

my $conf = "restart_after_crash = off\nlogical_decoding_work_mem = 64kB\ndeadlock_timeout = 100ms";
my $publisher = krahodb_node('publisher', conf => $conf);
my $subscriber = krahodb_node('subscriber', conf => $conf);

my $schema = <<'EOF';
CREATE TABLE item (id int PRIMARY KEY, n int, u int UNIQUE, t text);
CREATE TABLE event (id bigint, what text);
CREATE TABLE full_row (id int, n int);
ALTER TABLE full_row REPLICA IDENTITY FULL;
EOF
my @tables = qw(item event full_row);

sub on_publisher { return $publisher->safe_psql('postgres', $_[0]); }
sub on_subscriber { return $subscriber->safe_psql('postgres', $_[0]); }

sub check_equal
{
	my ($name, @only) = @_;

	$publisher->wait_for_catchup('sub');
	is_equal_on([ $publisher, $subscriber ],
		"SELECT count(*), sum(hashtextextended(t::text, 0)) FROM $_ t", "$name: $_")
	  foreach @only ? @only : @tables;
	return;
}

sub lanes { return on_subscriber("SELECT $_[0] FROM krahodb.lanes"); }

sub wait_for
{
	my ($query, $what) = @_;

	$subscriber->poll_query_until('postgres', $query) or die "no $what";
	return;
}

# Lanes are started by the first transactions, and there are as many as work asks for.
sub have_lanes
{
	my ($n) = @_;
	my $until = time + $PostgreSQL::Test::Utils::timeout_default;

	while (time < $until)
	{
		on_publisher(join '', map { "INSERT INTO event VALUES ($_, 'wake up');\n" } 1 .. 100);
		$publisher->wait_for_catchup('sub');
		return if lanes("count(*) FILTER (WHERE pid IS NOT NULL AND state <> 'starting')") >= $n;
	}
	die "there are not $n lanes";
}

# A session at the subscriber that holds something until it ends.
sub hold
{
	my ($sql) = @_;
	my $session = $subscriber->background_psql('postgres');

	$session->query_safe("BEGIN; $sql");
	return $session;
}

# Each statement is a transaction of its own.
sub each_transaction { return on_publisher(join "\n", map { "$_;" } @_); }

sub repeated { return on_subscriber('SELECT sum(repeated) FROM krahodb.lanes'); }

# ---- set up ---------------------------------------------------------------------------

$_->safe_psql('postgres', $schema) foreach $publisher, $subscriber;
on_publisher('CREATE PUBLICATION pub FOR ALL TABLES');
on_subscriber('CREATE EXTENSION krahodb');
on_subscriber("CREATE SUBSCRIPTION sub CONNECTION '" . connstr($publisher)
	  . "' PUBLICATION pub WITH (apply_workers = 3, streaming = on, two_phase = on)");
$subscriber->wait_for_subscription_sync($publisher, 'sub');
is(on_subscriber('SELECT apply_workers FROM krahodb.subscriptions'), '3', 'the view shows the option');

have_lanes(3);
is(lanes('string_agg(lane::text, \',\' ORDER BY lane)'), '1,2,3', 'three lanes');
is(on_subscriber("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'logical replication lane'"),
	'3', '... as processes');
is(on_subscriber("SELECT count(*) FROM pg_stat_subscription WHERE subname = 'sub'"), '1', '... but one worker');

# The origin is in use though nothing is applied.
wait_for("SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'logical replication worker' AND wait_event = 'LogicalApplyMain'",
	'worker that waits');
my ($status, $out, $error) = $subscriber->psql('postgres', "SELECT pg_replication_origin_advance('pg_' || oid, '0/1') FROM pg_subscription");
like($error, qr/replication origin with ID \d+ is already active/, 'nobody can advance the origin');

# ---- dependencies -----------------------------------------------------------------------

each_transaction(map { "INSERT INTO item VALUES ($_, 0, $_)" } 1 .. 100);
each_transaction(map { my $id = 1 + $_ % 3; "UPDATE item SET n = (n * 2 + $_) % 1000 WHERE id = $id" } 1 .. 300);
each_transaction(map { my $id = 1 + $_ % 50;
	("DELETE FROM item WHERE id = $id", "INSERT INTO item VALUES ($id, $_, $id)") } 1 .. 200);
check_equal('transactions on the same keys');

each_transaction(map { my $to = 1000 + $_; my $from = $_ == 1 ? 60 : $to - 1;
	"UPDATE item SET id = $to WHERE id = $from" } 1 .. 200);
check_equal('a key that moves on and on');

# Old unique values are not in the stream, so nothing tells that these belong together.
each_transaction(map { ('UPDATE item SET u = -1 WHERE id = 70', 'UPDATE item SET u = 70 WHERE id = 71',
	'UPDATE item SET u = 71 WHERE id = 70', 'UPDATE item SET u = -1 WHERE id = 70',
	'UPDATE item SET u = 71 WHERE id = 71', 'UPDATE item SET u = 70 WHERE id = 70') } 1 .. 50);
check_equal('unique values that go through a third one');

each_transaction(map { ("INSERT INTO full_row VALUES (1, $_)", "UPDATE full_row SET n = n + 1 WHERE n % 3 = $_ % 3",
	'DELETE FROM full_row WHERE n % 5 = 0') } 1 .. 60);
check_equal('rows without a key');

each_transaction(map { ("INSERT INTO item VALUES (5000 + $_)", 'TRUNCATE full_row',
	"INSERT INTO full_row VALUES ($_, $_)") } 1 .. 20);
check_equal('TRUNCATE in between');

# ---- what is not for lanes ----------------------------------------------------------------

on_publisher($_) foreach
	"INSERT INTO event SELECT i, repeat('streamed', 10) FROM generate_series(1, 3000) i",
	"BEGIN; INSERT INTO item VALUES (6000); PREPARE TRANSACTION 'p'",
	'UPDATE item SET n = 1 WHERE id = 100',
	"COMMIT PREPARED 'p'",
	'UPDATE item SET n = 2 WHERE id = 6000',
	"BEGIN; INSERT INTO event VALUES (7, repeat('large', 300000)); UPDATE item SET n = n + 1; COMMIT",
	'UPDATE item SET n = n + 1 WHERE id = 100';
check_equal('streamed, prepared and large transactions');

each_transaction(map { "UPDATE item SET n = n + 1 WHERE id = $_" } 80 .. 99);
$_->safe_psql('postgres', 'ALTER TABLE item ADD COLUMN added int') foreach $subscriber, $publisher;
each_transaction(map { ("UPDATE item SET added = $_ WHERE id = $_", "INSERT INTO item (id, added) VALUES (7000 + $_, $_)") } 80 .. 99);
check_equal('a table that changes');
have_lanes(2);

# ---- tables here that change, triggers ----------------------------------------------------

on_subscriber(<<'EOF');
CREATE TABLE sums (total bigint);
INSERT INTO sums VALUES (0);
CREATE FUNCTION add_up() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	UPDATE public.sums SET total = (total * 3 + new.n) % 1000003;
	RETURN new;
END $$;
CREATE TRIGGER add_up BEFORE UPDATE ON item FOR EACH ROW EXECUTE FUNCTION add_up();
ALTER TABLE item ENABLE ALWAYS TRIGGER add_up;
EOF
each_transaction(map { "UPDATE item SET n = $_ WHERE id = 1 + $_ % 40" } 1 .. 200);
check_equal('a trigger');
my $total = 0;
$total = ($total * 3 + $_) % 1000003 foreach 1 .. 200;
is(on_subscriber('SELECT total FROM sums'), $total, '... saw the transactions in their order');
on_subscriber('DROP TRIGGER add_up ON item; CREATE INDEX ON item (n)');
each_transaction(map { "UPDATE item SET n = -$_ WHERE id = 1 + $_ % 40" } 1 .. 100);
check_equal('a new index');

# ---- waiting for a transaction that touched the same key ----------------------------------

have_lanes(3);
my $before = repeated();
my $session = hold('UPDATE item SET t = NULL WHERE id = 1');
each_transaction(
	'BEGIN; UPDATE item SET n = 401 WHERE id = 1; UPDATE item SET n = 402 WHERE id = 2; COMMIT',
	'UPDATE item SET n = n + 1 WHERE id = 2');
wait_for(<<'EOF', 'lane that waits for the one that touched its key');
SELECT count(*) = 1 FROM krahodb.lanes l JOIN pg_locks k ON k.pid = l.waits_for_pid AND NOT k.granted
WHERE l.state = 'waiting for an earlier transaction'
EOF
is( on_subscriber("SELECT count(*) FROM krahodb.lanes WHERE state = 'waiting for a lock' AND waits_for_pid = "
		  . $session->query_safe('SELECT pg_backend_pid()')),
	'1', 'the view says who has the lock');
$session->query_safe('COMMIT');
$session->quit;
check_equal('transactions on one key');
is(repeated(), $before, '... one after the other, without repeating');

# ---- a lane that waits for long ------------------------------------------------------------

# Nothing comes meanwhile: the publisher does not ask whether we are there, nor writes anything, and
# has been told soon that we have received all.
on_publisher('ALTER SYSTEM SET wal_sender_timeout = 0');
on_subscriber("ALTER SYSTEM SET $_") foreach "wal_receiver_timeout = '4s'", "wal_receiver_status_interval = '1s'";
reload_settings($_) foreach $publisher, $subscriber;
my $writer = on_publisher("SELECT pid FROM pg_stat_activity WHERE backend_type = 'background writer'");
kill 'STOP', $writer;
my $position = -s $subscriber->logfile;
$session = hold('UPDATE item SET t = NULL WHERE id = 1');
on_publisher('UPDATE item SET n = 403 WHERE id = 1');
wait_for("SELECT count(*) = 1 FROM krahodb.lanes WHERE state = 'waiting for a lock'", 'lane that waits for a lock');
my $now = on_subscriber('SELECT clock_timestamp()');
ok($subscriber->poll_query_until('postgres',
		"SELECT last_msg_receipt_time > '$now'::timestamptz + interval '1.5 s' FROM pg_stat_subscription WHERE subname = 'sub'"),
	'the worker asks the publisher whether it is there while a lane waits');
$session->query_safe('COMMIT');
$session->quit;
kill 'CONT', $writer;
check_equal('a long wait for a lock');
ok(!$subscriber->log_contains(qr/due to timeout/, $position), '... is not taken for a lost connection');
on_publisher('ALTER SYSTEM RESET wal_sender_timeout');
on_subscriber("ALTER SYSTEM RESET $_") foreach qw(wal_receiver_timeout wal_receiver_status_interval);
reload_settings($_) foreach $publisher, $subscriber;

# ---- giving way ---------------------------------------------------------------------------

# The first transaction waits for a local session, which then waits for the second one's row.
have_lanes(3);
my $waiting = "SELECT count(*) = 1 FROM krahodb.lanes WHERE state = 'waiting to commit'";
$before = repeated();
$session = hold('UPDATE item SET t = NULL WHERE id = 1');
each_transaction('UPDATE item SET n = 501 WHERE id = 1', 'UPDATE item SET n = 502 WHERE id = 2');
wait_for($waiting, 'lane that waits for its turn');
wait_for("SELECT count(*) = 1 FROM krahodb.lanes l JOIN pg_locks k ON k.pid = l.waits_for_pid AND NOT k.granted",
	'lane for which the other one waits');
$session->query_safe('UPDATE item SET t = NULL WHERE id = 2');
$session->query_safe('COMMIT');
$session->quit;
check_equal('a circle through a local session');
cmp_ok(repeated(), '>', $before, '... has been left by repeating a transaction');

# The same with a lock on a table that the local session asks for.
$session = hold('UPDATE item SET t = NULL WHERE id = 1');
each_transaction('UPDATE item SET n = 601 WHERE id = 1', "INSERT INTO event VALUES (1, 'later')");
wait_for($waiting, 'lane that waits for its turn');
$session->query_safe('LOCK TABLE event');
$session->query_safe('COMMIT');
$session->quit;
check_equal('a circle through a lock on a table');

# Two lanes: the earlier one is held until the later one has found its value taken.
on_publisher('INSERT INTO item (id, u) VALUES (301, 301), (302, 302), (303, 303)');
$publisher->wait_for_catchup('sub');
$session = hold('UPDATE item SET t = NULL WHERE id = 301');
each_transaction(
	'BEGIN; UPDATE item SET n = 1 WHERE id = 301; UPDATE item SET u = 304 WHERE id = 302; COMMIT',
	'UPDATE item SET u = 302 WHERE id = 303');
wait_for("SELECT count(*) = 1 FROM krahodb.lanes WHERE state LIKE 'waiting to%'", 'lane that waits');
$session->query_safe('COMMIT');
$session->quit;
check_equal('a unique value that an earlier transaction frees');

# ---- equal rows ------------------------------------------------------------------------------

# One of them is deleted by a transaction that is only prepared, which ends later in the stream: another
# one is as good.
on_publisher('INSERT INTO full_row VALUES (70, 70), (70, 70)');
my $one = 'DELETE FROM full_row WHERE ctid = (SELECT ctid FROM full_row WHERE id = 70 ORDER BY ctid';
on_publisher("BEGIN; $one LIMIT 1); PREPARE TRANSACTION 'equal'");
on_publisher("$one DESC LIMIT 1)");
$publisher->wait_for_catchup('sub');
is(on_subscriber('SELECT count(*) FROM full_row WHERE id = 70'), '1', 'the other one of two equal rows is deleted');
on_publisher("COMMIT PREPARED 'equal'");
check_equal('equal rows', 'full_row');

# ---- numbers that are drawn here ------------------------------------------------------------

# Who reads here by the numbers of a sequence expects them in the order of commits.
on_subscriber('ALTER TABLE event ADD COLUMN here bigserial');
have_lanes(2);
$session = hold('UPDATE item SET t = NULL WHERE id = 301');
each_transaction(
	"BEGIN; UPDATE item SET n = 2 WHERE id = 301; INSERT INTO event VALUES (1, 'drawn'), (2, 'drawn'); COMMIT",
	"INSERT INTO event VALUES (3, 'drawn')");
wait_for("SELECT count(*) = 1 FROM krahodb.lanes WHERE state = 'waiting for an earlier transaction'", 'lane that waits');
$session->query_safe('COMMIT');
$session->quit;
$publisher->wait_for_catchup('sub');
is(on_subscriber("SELECT string_agg(id::text, ',' ORDER BY here) FROM event WHERE what = 'drawn'"), '1,2,3',
	'numbers of a sequence here come in the order of the transactions');
on_subscriber('ALTER TABLE event DROP COLUMN here');

# So does a function that reads, and need not be VOLATILE for that.
on_subscriber("CREATE FUNCTION n_of() RETURNS int LANGUAGE sql STABLE AS 'SELECT n FROM public.item WHERE id = 301'");
on_subscriber('ALTER TABLE event ADD COLUMN here int DEFAULT n_of()');
have_lanes(2);
$session = hold('UPDATE item SET t = NULL WHERE id = 301');
each_transaction('UPDATE item SET n = 3 WHERE id = 301', "INSERT INTO event VALUES (4, 'read'), (5, 'read')");
wait_for("SELECT count(*) = 1 FROM krahodb.lanes WHERE state IN ('waiting for an earlier transaction', 'waiting to commit')", 'lane that waits');
$session->query_safe('COMMIT');
$session->quit;
$publisher->wait_for_catchup('sub');
is(on_subscriber("SELECT string_agg(here::text, ',') FROM event WHERE what = 'read'"), '3,3',
	'a default that is read from a table sees what earlier transactions have written');
on_subscriber('ALTER TABLE event DROP COLUMN here; DROP FUNCTION n_of()');

# ---- how many lanes work --------------------------------------------------------------------

# As often as can be, another number of them.
have_lanes(3);
arm_fault($subscriber, 'lane_slices=skip');
$subscriber->append_conf('postgresql.conf', 'log_min_messages = debug2');
reload_settings($subscriber);
my $paced = -s $subscriber->logfile;
$session = hold('UPDATE item SET t = NULL WHERE id = 1');
on_publisher(<<'EOF');
DO $$
BEGIN
	FOR i IN 1 .. 3000 LOOP
		UPDATE item SET n = (n * 2 + i) % 1000 WHERE id = 1 + i % 7;
		INSERT INTO event VALUES (i, 'paced');
		COMMIT;
	END LOOP;
END $$
EOF
$session->query_safe('COMMIT');
$session->quit;
check_equal('lanes that rest and come back');
on_publisher("INSERT INTO event VALUES (0, 'last')");
$subscriber->wait_for_log(qr/DEBUG:  [12] of 3 lanes work.*DEBUG:  3 of 3 lanes work/s, $paced);
disarm_fault($subscriber);
$subscriber->adjust_conf('postgresql.conf', 'log_min_messages', undef);
reload_settings($subscriber);

# ---- errors -------------------------------------------------------------------------------

on_subscriber('ALTER TABLE item ADD CONSTRAINT small CHECK (n < 1000)');
my $log = -s $subscriber->logfile;
each_transaction('UPDATE item SET n = 10 WHERE id = 1', 'UPDATE item SET n = 2000 WHERE id = 2',
	'UPDATE item SET n = 11 WHERE id = 3');
$subscriber->wait_for_log(qr/ERROR: .*violates check constraint "small"/, $log);
ok(slurp_file($subscriber->logfile, $log) =~ /will restart and apply the next transaction without lanes/,
	'a transaction that fails is applied without lanes');
$subscriber->wait_for_log(
	qr/CONTEXT:  processing remote data for replication origin "pg_\d+" during message type "UPDATE"/, $log);
is(on_subscriber('SELECT n FROM item WHERE id = 1'), '10', '... those before it are there');
isnt(on_subscriber('SELECT n FROM item WHERE id = 3'), '11', '... and none behind it');
on_subscriber('ALTER TABLE item DROP CONSTRAINT small');
check_equal('after an error');

have_lanes(2);
on_subscriber('ALTER TABLE item ADD CONSTRAINT small CHECK (n < 1000) NOT VALID');
on_subscriber('ALTER SUBSCRIPTION sub SET (disable_on_error = true)');
have_lanes(2);
$log = -s $subscriber->logfile;
each_transaction('UPDATE item SET n = 2001 WHERE id = 2', 'UPDATE item SET n = 12 WHERE id = 3');
wait_for("SELECT NOT subenabled FROM pg_subscription WHERE subname = 'sub'", 'subscription that disables itself');
slurp_file($subscriber->logfile, $log) =~ m{violates check constraint.*?finished at ([[:xdigit:]]+/[[:xdigit:]]+)}s or die 'no LSN in the log';
on_subscriber("ALTER SUBSCRIPTION sub SKIP (lsn = '$1')");
on_subscriber('ALTER SUBSCRIPTION sub ENABLE');
$publisher->wait_for_catchup('sub');
isnt(on_subscriber('SELECT n FROM item WHERE id = 2'), '2001', 'SKIP skips the transaction');
is(on_subscriber('SELECT n FROM item WHERE id = 3'), '12', '... and no other');
on_subscriber('ALTER TABLE item DROP CONSTRAINT small');
on_subscriber('ALTER SUBSCRIPTION sub SET (disable_on_error = false)');
on_publisher('UPDATE item SET n = 3 WHERE id = 2');
check_equal('after SKIP');

# Transactions before it that change nothing here come again with the one that fails: it is that one which
# is applied without lanes.  (They look for a row in many, so that there are lanes again before all are done;
# and the publisher does not hear that nothing is to be done for them.)
on_publisher('INSERT INTO full_row SELECT 0, g FROM generate_series(1, 10000) g');
on_publisher('INSERT INTO full_row VALUES (311, 0); INSERT INTO item (id, n) VALUES (312, 1)');
$publisher->wait_for_catchup('sub');
on_subscriber('DELETE FROM full_row WHERE id = 311; UPDATE item SET u = -1 WHERE id = 1');
have_lanes(2);
$subscriber->append_conf('postgresql.conf', 'wal_receiver_status_interval = 0');
reload_settings($subscriber);
$log = -s $subscriber->logfile;
on_publisher('DO $$ BEGIN FOR i IN 1 .. 600 LOOP UPDATE full_row SET n = i WHERE id = 311; COMMIT; END LOOP; END $$');
on_publisher('UPDATE item SET u = -1 WHERE id = 312');
$subscriber->wait_for_log(qr/ERROR: .*duplicate key value/, $log);
is(scalar(() = slurp_file($subscriber->logfile, $log) =~ /will restart and apply the next transaction without lanes/g), 1,
	'a failure behind transactions without effect is the worker\'s at once');
on_subscriber('UPDATE item SET u = NULL WHERE id = 1');
$subscriber->adjust_conf('postgresql.conf', 'wal_receiver_status_interval', undef);
reload_settings($subscriber);
on_publisher('DELETE FROM full_row WHERE id IN (0, 311)');
on_publisher('UPDATE item SET u = NULL WHERE id = 1; DELETE FROM item WHERE id = 312');
check_equal('behind the failure');

# A conflict that is resolved by an error is found by a lane, but is the worker's: it is tried
# and counted once.
on_publisher('INSERT INTO item (id, n) VALUES (310, 1)');
$publisher->wait_for_catchup('sub');
on_subscriber("DELETE FROM item WHERE id = 310; ALTER TABLE item SET (krahodb.conflict_resolution = 'error')");
on_subscriber('ALTER SUBSCRIPTION sub SET (disable_on_error = true)');
have_lanes(2);
$log = -s $subscriber->logfile;
on_publisher('UPDATE item SET n = 2 WHERE id = 310');
wait_for("SELECT NOT subenabled FROM pg_subscription WHERE subname = 'sub'", 'subscription that disables itself');
is(on_subscriber('SELECT sum(errors) FROM krahodb.conflict_stats'), '1', 'a conflict that is an error is one');
like(slurp_file($subscriber->logfile, $log), qr/will restart and apply the next transaction without lanes/, '... found by a lane');
unlike(slurp_file($subscriber->logfile, $log), qr/tries again/, '... and not tried again');
on_subscriber('ALTER TABLE item RESET (krahodb.conflict_resolution)');
on_subscriber('ALTER SUBSCRIPTION sub SET (disable_on_error = false)');
on_subscriber('ALTER SUBSCRIPTION sub ENABLE');
on_publisher('DELETE FROM item WHERE id = 310');
check_equal('after a conflict');

# ---- a lane that is ended --------------------------------------------------------------------

have_lanes(2);
on_subscriber('SELECT pg_terminate_backend(pid) FROM krahodb.lanes WHERE lane = 1');
each_transaction(map { "UPDATE item SET n = n + 1 WHERE id = 1 + $_ % 40" } 1 .. 100);
check_equal('a lane was ended');

# ---- a lane that is late -----------------------------------------------------------------------

# It has committed, and is held up before it takes the next one, until its entry in the table
# of transactions is another one's, of more bytes.
have_lanes(3);
$log = -s $subscriber->logfile;
arm_fault($subscriber, 'apply_after_commit=wait');
reload_settings($subscriber);
on_publisher("INSERT INTO event VALUES (1, 'late')");
$subscriber->wait_for_log(qr/fault point "apply_after_commit" reached: wait/, $log);
my $late = lanes('string_agg(pid::text, \',\') FILTER (WHERE remote_xid IS NOT NULL)');
kill('STOP', $late) or die "cannot stop process $late";
disarm_fault($subscriber);
reload_settings($subscriber);
on_publisher(join '', map { "INSERT INTO event VALUES ($_, repeat('wide', 100));\n" } 1 .. 1100);
check_equal('a lane that is late', 'event');
kill('CONT', $late);
wait_for("SELECT count(*) = 0 FROM krahodb.lanes WHERE pid = $late AND remote_xid IS NOT NULL", 'lane that goes on');
have_lanes(3);
is(lanes("count(*) FILTER (WHERE pid = $late)"), '1', '... is still there');
unlike(slurp_file($subscriber->logfile, $log), qr/ERROR/, '... and has made no error');

# ---- crashes ----------------------------------------------------------------------------------

my $workload = join '', map {
	my $id = 1 + $_ % 9;
	"INSERT INTO event VALUES ($_, 'crash');\nUPDATE item SET n = n + 1 WHERE id = $id;\n"
} 1 .. 150;

foreach my $fault (qw(lane_begin lane_begin@20 lane_before_turn@7 lane_at_turn lane_at_turn@8
	lane_committed lane_committed@9 lane_end@10 leader_before_append leader_before_append@30
	apply_change@25 apply_after_commit@5))
{
	have_lanes(2);
	arm_fault($subscriber, "$fault=kill");
	reload_settings($subscriber);
	on_publisher($workload);
	wait_until_down($subscriber);
	disarm_fault($subscriber);
	start_after_kill($subscriber);
	check_equal("killed at $fault");
}

# Without the checkpoint where that would wait for a commit.
foreach my $fault (qw(lane_before_turn lane_at_turn lane_end))
{
	have_lanes(2);
	my $start = -s $subscriber->logfile;
	arm_fault($subscriber, "$fault=wait");
	reload_settings($subscriber);
	on_publisher($workload);
	$subscriber->wait_for_log(qr/fault point "\w+" reached: wait/, $start);
	on_subscriber('CHECKPOINT');
	$subscriber->kill9;
	disarm_fault($subscriber);
	start_after_kill($subscriber);
	check_equal("server killed at $fault, behind a checkpoint");
}

# An error in a lane: the transaction is repeated or taken back.
foreach my $fault (qw(lane_before_turn lane_at_turn apply_change@40))
{
	have_lanes(2);
	my $start = -s $subscriber->logfile;
	arm_fault($subscriber, "$fault=error");
	reload_settings($subscriber);
	on_publisher($workload);
	$subscriber->wait_for_log(qr/LOG:  subscription|will restart and apply the next transaction without lanes/, $start);
	disarm_fault($subscriber);
	reload_settings($subscriber);
	check_equal("error at $fault");
}

# ---- the end --------------------------------------------------------------------------------------

have_lanes(2);
$session = hold('UPDATE item SET t = NULL WHERE id = 1');
each_transaction('UPDATE item SET n = 901 WHERE id = 1', 'UPDATE item SET n = 902 WHERE id = 2');
wait_for($waiting, 'lane that waits for its turn');
on_subscriber('ALTER SUBSCRIPTION sub DISABLE');
wait_for('SELECT count(*) = 0 FROM pg_stat_subscription WHERE pid IS NOT NULL', 'end of the worker');
is(on_subscriber("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'logical replication lane'"),
	'0', 'lanes end before their leader');
isnt(on_subscriber('SELECT n FROM item WHERE id = 2'), '902', '... and nothing of theirs is committed');
$session->query_safe('COMMIT');
$session->quit;

on_subscriber('ALTER SUBSCRIPTION sub SET (apply_workers = 1)');
on_subscriber('ALTER SUBSCRIPTION sub ENABLE');
check_equal('without lanes again');
is(lanes('count(*)'), '0', '... there are none');

# Lanes that are about to begin, and wait for what DROP SUBSCRIPTION locks.
my $worker = "FROM pg_stat_activity WHERE backend_type = 'logical replication worker'";
my $old = on_subscriber("SELECT pid $worker");
on_subscriber('ALTER SUBSCRIPTION sub SET (apply_workers = 2)');
wait_for("SELECT count(*) = 1 $worker AND pid <> $old AND wait_event = 'LogicalApplyMain'", 'worker with the new setting');
$log = -s $subscriber->logfile;
$session = hold('LOCK TABLE pg_subscription');
on_publisher("INSERT INTO event VALUES (1, 'first')");
wait_for("SELECT count(*) = 2 FROM pg_stat_activity WHERE backend_type = 'logical replication lane' AND wait_event_type = 'Lock'",
	'lanes that begin');
on_subscriber("SELECT pg_terminate_backend(pid) $worker");
wait_for("SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'logical replication lane'", 'end of the lanes');
$session->query_safe('COMMIT');
$session->quit;
check_equal('lanes were ended when they were about to begin');
unlike(slurp_file($subscriber->logfile, $log), qr/canceling statement/, '... without a message');
have_lanes(2);
on_subscriber('DROP SUBSCRIPTION sub');
# (a worker is still shown for a moment when its place is free)
wait_for("SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type IN ('logical replication lane', 'logical replication worker')",
	'end of all processes after DROP SUBSCRIPTION');
is(on_subscriber('SELECT count(*) FROM pg_replication_origin_status'), '0', '... and no origin');

# No shared memory.
$log = -s $subscriber->logfile;
arm_fault($subscriber, 'lane_memory=error');
reload_settings($subscriber);
on_subscriber('TRUNCATE item, event, full_row');
on_subscriber("CREATE SUBSCRIPTION sub CONNECTION '" . connstr($publisher)
	  . "' PUBLICATION pub WITH (apply_workers = 2)");
$subscriber->wait_for_subscription_sync($publisher, 'sub');
on_publisher($workload) for (1 .. 3);
check_equal('no shared memory for lanes');
my @said = slurp_file($subscriber->logfile, $log) =~ /subscription "sub" applies with 0 of 2 lanes\n.*error at fault point "lane_memory"/g;
is(scalar @said, 1, '... which is said once');
disarm_fault($subscriber);
reload_settings($subscriber);

# No more of it for relations, one after lanes have been started: the first transaction of a table goes on without.
on_subscriber('ALTER SUBSCRIPTION sub DISABLE');
wait_for('SELECT count(*) = 0 FROM pg_stat_subscription WHERE pid IS NOT NULL', 'end of the worker');
on_subscriber('ALTER SUBSCRIPTION sub SET (disable_on_error = true)');
on_subscriber('ALTER SUBSCRIPTION sub ENABLE');
have_lanes(2);
$log = -s $subscriber->logfile;
arm_fault($subscriber, 'lane_relation=error');
reload_settings($subscriber);
$_->safe_psql('postgres', 'CREATE TABLE later (id int PRIMARY KEY)') foreach $publisher, $subscriber;
on_subscriber('ALTER SUBSCRIPTION sub REFRESH PUBLICATION WITH (copy_data = false)');
on_publisher("BEGIN; INSERT INTO event VALUES (1, 'later'); INSERT INTO later VALUES (1); INSERT INTO event VALUES (2, 'later'); COMMIT");
on_publisher($workload);
check_equal('no shared memory for a relation', @tables, 'later');
$subscriber->wait_for_log(qr/subscription "sub" applies with 0 of 2 lanes\n.*error at fault point "lane_relation"/, $log);
is(lanes('count(*)'), 0, '... goes on without lanes');
disarm_fault($subscriber);
on_subscriber('DROP SUBSCRIPTION sub');

# No room for as many as are asked for.
$subscriber->append_conf('postgresql.conf', 'max_worker_processes = 5');
$subscriber->restart;
$log = -s $subscriber->logfile;
on_subscriber('TRUNCATE item, event, full_row, later');
on_subscriber("CREATE SUBSCRIPTION sub CONNECTION '" . connstr($publisher)
	  . "' PUBLICATION pub WITH (apply_workers = 8)");
$subscriber->wait_for_subscription_sync($publisher, 'sub');
for (1 .. 50)
{
	on_publisher($workload);
	last if slurp_file($subscriber->logfile, $log) =~ /applies with \d of 8 lanes/;
}
$subscriber->wait_for_log(qr/LOG:  subscription "sub" applies with \d of 8 lanes/, $log);
check_equal('fewer lanes than asked for');

$subscriber->stop;
$publisher->stop;
done_testing();
