# What goes wrong here: a peer is away, a row is deleted meanwhile and vacuumed, and
# then an older update of it arrives.  The deleted row must have been kept, or the
# update brings it back; and it must not be kept for longer than needed.

use strict;
use warnings;

use IPC::Run;
use KrahoDB::Nodes;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

sub slot_count
{
	my ($node) = @_;
	return $node->safe_psql('postgres',
		"SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'krahodb_horizon'");
}

sub xmin_of
{
	my ($node) = @_;
	return $node->safe_psql('postgres',
		"SELECT xmin FROM pg_replication_slots WHERE slot_name = 'krahodb_horizon'");
}

# How many deleted rows VACUUM (FREEZE) of t had to leave.
sub kept_by_vacuum
{
	my ($node, $table) = @_;
	my ($status, undef, $messages) = $node->psql('postgres', 'VACUUM (FREEZE, VERBOSE) ' . ($table // 't'));
	die "VACUUM failed: $messages" if $status != 0;
	my ($kept) = $messages =~ /tuples: .* (\d+) are dead but not yet removable/;
	die "unexpected messages: $messages" if !defined $kept;
	return $kept;
}

sub wait_state
{
	my ($node, $state, $name) = @_;
	my $found = $node->poll_query_until('postgres', "SELECT state = '$state' FROM krahodb.horizon");
	ok($found, $name) or diag($node->safe_psql('postgres', 'SELECT * FROM krahodb.horizon'));
	return;
}

sub horizon { return $_[0]->safe_psql('postgres', "SELECT $_[1] FROM krahodb.horizon"); }

sub subscribe
{
	my ($node, $from, $options) = @_;
	$node->safe_psql('postgres', sprintf(
			"CREATE SUBSCRIPTION %s_from_%s CONNECTION '%s' PUBLICATION p WITH (copy_data = false%s)",
			$node->name, $from->name, connstr($from), $options));
	return;
}

my @nodes = map { krahodb_node($_) } qw(a b c);
my ($a, $b, $c) = @nodes;
foreach my $node (@nodes)
{
	$node->safe_psql('postgres', 'CREATE EXTENSION krahodb');
	$node->safe_psql('postgres', 'CREATE TABLE t (id int PRIMARY KEY, v text)');
	$node->safe_psql('postgres', 'CREATE PUBLICATION p FOR TABLE t');
}

# ---- a server with plain subscriptions -----------------------------------------

subscribe($c, $a, '');
$c->poll_query_until('postgres', 'SELECT horizon IS NOT NULL FROM krahodb.horizon_state()')
  or die 'no round was made';
$c->poll_query_until('postgres', 'SELECT count(*) = 1 FROM pg_stat_subscription WHERE pid IS NOT NULL');
is(slot_count($c), 0, 'a plain server holds no slot');
is(horizon($c, 'count(*)'), 0, 'and has no peers to wait for');

# ---- a first peer that is disabled: nobody starts a worker for it -----------------

sub soon_held
{
	my ($name) = @_;
	my $since = time;

	$c->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_replication_slots WHERE slot_name = 'krahodb_horizon' AND active");
	cmp_ok(time - $since, '<', 30, $name);
	return;
}

subscribe($c, $b, ', origin = none, enabled = false');
soon_held('rows are kept for a subscription that is created disabled');
$c->safe_psql('postgres', 'DROP SUBSCRIPTION c_from_b');
$c->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_replication_slots WHERE slot_name = 'krahodb_horizon'") or die;
pause_subscription($c, 'c_from_a');
$c->safe_psql('postgres', 'ALTER SUBSCRIPTION c_from_a SET (conflict_resolution = last_update_wins)');
soon_held('and for a disabled one that resolves conflicts from now on');
$c->safe_psql('postgres', 'DROP SUBSCRIPTION c_from_a');

# ---- two nodes ------------------------------------------------------------------

subscribe($a, $b, ', origin = none');
subscribe($b, $a, ', origin = none');
my @streams = ([ $a, 'b_from_a' ], [ $b, 'a_from_b' ]);
$_->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_replication_slots WHERE slot_name = 'krahodb_horizon' AND active")
  or die 'no slot' foreach ($a, $b);
wait_state($a, 'ok', 'the peer answers, and its changes are here');
is(horizon($a, 'reason IS NULL'), 't', 'nothing to say about it');
wait_horizon($a);
pass('the horizon moves');

$a->safe_psql('postgres', "INSERT INTO t SELECT i, 'first' FROM generate_series(1, 20) i");
wait_streams(2, @streams);

# ---- a disabled subscription ------------------------------------------------------

sub late_update
{
	my ($id, $cut, $heal, $name) = @_;

	$cut->();
	$b->safe_psql('postgres', "UPDATE t SET v = 'older' WHERE id = $id");
	$a->safe_psql('postgres', "DELETE FROM t WHERE id = $id");
	my $kept = kept_by_vacuum($a);
	cmp_ok($kept, '>=', 1, "$name: the deleted row is kept");
	$heal->();
	wait_streams(2, @streams);
	is($a->safe_psql('postgres', "SELECT count(*) FROM t WHERE id = $id"), 0,
		"$name: the older update does not bring it back");
	is($b->safe_psql('postgres', "SELECT count(*) FROM t WHERE id = $id"), 0, "$name: on neither node");
	wait_horizon($a);
	is(kept_by_vacuum($a), 0, "$name: then the row is removed");
	return;
}

late_update(
	1,
	sub {
		pause_subscription($a, 'a_from_b');
	},
	sub {
		wait_state($a, 'disabled', 'a disabled subscription holds the horizon');
		$a->safe_psql('postgres', 'ALTER SUBSCRIPTION a_from_b ENABLE');
	},
	'disabled');
like(slurp_file($a->logfile), qr/conflict=update_deleted/, 'the deleted row was found');

# ---- a walsender that hangs --------------------------------------------------------

my $walsender;
late_update(
	2,
	sub {
		$walsender = $b->safe_psql('postgres', "SELECT pid FROM pg_stat_replication WHERE application_name = 'a_from_b'");
		kill 'STOP', $walsender;
	},
	sub {
		wait_state($a, 'applying', 'what it has not sent holds the horizon');
		like(horizon($a, 'reason'), qr{waiting until the subscription has applied everything before \w+/\w+}, 'and how far it is');
		kill 'CONT', $walsender;
	},
	'hanging walsender');

# ---- a transaction that runs for long there ---------------------------------------

my $session = $b->background_psql('postgres');
$session->query_safe('BEGIN');
$session->query_safe('SELECT txid_current()');
$a->safe_psql('postgres', 'DELETE FROM t WHERE id = 3');
wait_state($a, 'transaction on peer', 'a transaction there holds the horizon');
like(horizon($a, 'reason'), qr/a transaction older than \d+ is running or prepared/, 'and which one');
cmp_ok(kept_by_vacuum($a), '>=', 1, 'the deleted row is kept');
$session->query_safe('COMMIT');
wait_horizon($a);
is(kept_by_vacuum($a), 0, 'until it has ended');

# It may be committing at this moment, with a time from before, and nothing that has begun later has ended.
pause_subscription($b, 'b_from_a');
$session->query_safe('BEGIN');
$session->query_safe('SELECT txid_current()');
$a->safe_psql('postgres', 'SELECT txid_current()');
wait_state($a, 'transaction on peer', 'one with the newest id there holds the horizon, too');
$session->query_safe('COMMIT');
$session->quit;
$b->safe_psql('postgres', 'ALTER SUBSCRIPTION b_from_a ENABLE');
wait_horizon($a);

# ---- a peer that is down, and a crash here ----------------------------------------

$b->safe_psql('postgres', "ALTER SUBSCRIPTION b_from_a DISABLE");
$a->safe_psql('postgres', 'ALTER SUBSCRIPTION a_from_b DISABLE');
$b->safe_psql('postgres', "UPDATE t SET v = 'older' WHERE id = 4");
$a->safe_psql('postgres', 'DELETE FROM t WHERE id = 4');
$b->stop;
$a->safe_psql('postgres', 'ALTER SUBSCRIPTION a_from_b ENABLE');
wait_state($a, 'unreachable', 'a peer that is down holds the horizon');
# first it may be that of the connection that was open
ok($a->poll_query_until('postgres', "SELECT reason ~ 'connection to server' FROM krahodb.horizon"), 'with the error');
like(slurp_file($a->logfile), qr/publisher of subscription "a_from_b" does not answer: /, 'which is in the log, too');
is($a->safe_psql('postgres', 'SET ROLE pg_monitor; SELECT reason ~ \'connection\' FROM krahodb.horizon'), 't', 'monitoring sees it');
$a->safe_psql('postgres', 'CREATE ROLE nobody');
is($a->safe_psql('postgres', 'SET ROLE nobody; SELECT reason FROM krahodb.horizon'), '<insufficient privilege>', 'others do not');

my $before = xmin_of($a);
$a->kill9;
start_after_kill($a);
$a->poll_query_until('postgres', "SELECT active FROM pg_replication_slots WHERE slot_name = 'krahodb_horizon'")
  or die 'the slot was not taken again';
cmp_ok(xmin_of($a), '<=', $before, 'after a crash the horizon is not newer');
cmp_ok(kept_by_vacuum($a), '>=', 1, 'the deleted row is kept after a crash');
$a->restart;
cmp_ok(xmin_of($a), '<=', $before, 'nor after a restart');
cmp_ok(kept_by_vacuum($a), '>=', 1, 'the deleted row is kept after a restart');
$b->start;
$b->safe_psql('postgres', "ALTER SUBSCRIPTION b_from_a ENABLE");
wait_streams(2, @streams);
is($a->safe_psql('postgres', 'SELECT count(*) FROM t WHERE id = 4'), 0, 'the older update does not bring it back');
wait_horizon($a);
is(kept_by_vacuum($a), 0, 'then the row is removed');

# ---- table synchronisation ----------------------------------------------------------

$_->safe_psql('postgres', 'CREATE TABLE copied (id int PRIMARY KEY)') foreach ($a, $b);
$a->safe_psql('postgres', 'INSERT INTO copied VALUES (1)');    # in the way
$b->safe_psql('postgres', 'CREATE PUBLICATION p2 FOR TABLE copied');
$a->safe_psql('postgres', 'ALTER TABLE copied ADD CHECK (id < 10)');
$b->safe_psql('postgres', 'INSERT INTO copied VALUES (11)');
$a->safe_psql('postgres', 'ALTER SUBSCRIPTION a_from_b ADD PUBLICATION p2 WITH (copy_data = true)');
wait_state($a, 'copying tables', 'table synchronisation holds the horizon');
$b->safe_psql('postgres', 'DELETE FROM copied');
$a->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_subscription_rel WHERE srsubstate <> 'r'") or die;
wait_horizon($a);
wait_state($a, 'ok', 'until it is finished');

# ---- bloat -------------------------------------------------------------------------

$_->safe_psql('postgres', 'CREATE TABLE busy (id int PRIMARY KEY, n int)') foreach ($a, $b);
$a->safe_psql('postgres', 'INSERT INTO busy SELECT i, 0 FROM generate_series(1, 1000) i');
my $script = $a->basedir . '/update.sql';
append_to_file($script, "\\set id random(1, 1000)\nUPDATE busy SET n = n + 1 WHERE id = :id;\n");
my ($out, $err) = ('', '');
my $load = IPC::Run::start(
	[ 'pgbench', '-n', '-T', $PostgreSQL::Test::Utils::timeout_default, '-c', '2', '-f', $script, '-p', $a->port, '-h', $a->host, 'postgres' ],
	'>', \$out, '2>', \$err);
my $start = time;
$a->poll_query_until('postgres', 'SELECT sum(n) > 500 FROM busy') or die 'nothing is written';
wait_horizon($a);
$load->kill_kill;
my $seconds = time - $start;
my $updates = $a->safe_psql('postgres', 'SELECT sum(n) FROM busy');
my $kept = kept_by_vacuum($a, 'busy');
diag(sprintf '%d updates in %.1f s, of the dead rows %d (%.1f s of updates) are kept',
	$updates, $seconds, $kept, $seconds * $kept / $updates);
cmp_ok($kept, '<=', $updates - 500, 'with all peers up, dead rows go while others are made');

# ---- a peer that stays away ---------------------------------------------------------

wait_horizon($a);
wait_state($a, 'ok', 'a peer that is idle is not away');
$b->stop;
$a->append_conf('postgresql.conf', "krahodb.max_retention = '5s'");
reload_settings($a);
$a->safe_psql('postgres', 'DELETE FROM t WHERE id = 5');
wait_state($a, 'stale', 'a peer that stays away becomes stale');
$a->wait_for_log(qr/WARNING: .*subscription "a_from_b" is stale and takes no changes any more/);
wait_horizon($a);
is(kept_by_vacuum($a), 0, 'the horizon moves on without it');
$a->wait_for_log(qr/ERROR: .*subscription "a_from_b" is stale and does not take changes/);

$a->restart;
$b->start;
$b->safe_psql('postgres', "UPDATE t SET v = 'older' WHERE id = 6");
my $offset = -s $a->logfile;
$a->wait_for_log(qr/subscription "a_from_b" is stale and does not take changes/, $offset);
wait_state($a, 'stale', 'it is after a restart');
$a->safe_psql('postgres', 'ALTER SUBSCRIPTION a_from_b SET (update_missing = skip)');
like($a->safe_psql('postgres', "SELECT label FROM pg_seclabels WHERE objtype = 'subscription'"), qr/stale_since/, 'and after a change of options');
my ($status, undef, $error) = $a->psql('postgres', "SECURITY LABEL FOR krahodb ON SUBSCRIPTION a_from_b IS NULL");
like($error, qr/cannot remove the mark of a stale subscription/, 'a label cannot take it back');
($status, undef, $error) = $a->psql('postgres', "ALTER SUBSCRIPTION a_from_b SET (stale_since = 1)");
like($error, qr/unrecognized subscription parameter: "stale_since"/, 'it is not an option');
($status, undef, $error) = $a->psql('postgres', "SET ROLE nobody; SELECT krahodb.accept_stale_peer('a_from_b')");
like($error, qr/must be owner of subscription/, 'others cannot take it back');

$a->append_conf('postgresql.conf', "krahodb.max_retention = '1h'");
reload_settings($a);
$a->safe_psql('postgres', "SELECT krahodb.accept_stale_peer('a_from_b')");
wait_streams(2, @streams);
wait_state($a, 'ok', 'it counts again when it has been accepted');
is($a->safe_psql('postgres', 'SELECT v FROM t WHERE id = 6'), 'older', 'its changes come');
($status, undef, $error) = $a->psql('postgres', "SELECT krahodb.accept_stale_peer('a_from_b')");
like($error, qr/subscription "a_from_b" is not stale/, 'only a stale one can be accepted');

# by the WAL that is written meanwhile
$a->append_conf('postgresql.conf', "krahodb.max_retention_size = '4MB'");
reload_settings($a);
wait_horizon($a);
$a->safe_psql('postgres', 'ALTER SUBSCRIPTION a_from_b DISABLE');
$a->safe_psql('postgres', 'SELECT txid_current()');
wait_state($a, 'disabled', 'not stale at once');
$a->safe_psql('postgres', "CREATE TABLE wal AS SELECT repeat('x', 1000) FROM generate_series(1, 10000)");
wait_state($a, 'stale', 'too much WAL makes it stale as well');
$a->append_conf('postgresql.conf', "krahodb.max_retention_size = -1");
reload_settings($a);
$a->safe_psql('postgres', "SELECT krahodb.accept_stale_peer('a_from_b')");
$a->safe_psql('postgres', 'ALTER SUBSCRIPTION a_from_b ENABLE');
wait_horizon($a);

# ---- a peer that passes changes on --------------------------------------------------

# c gets from a what a gets from b.
subscribe($c, $a, ', conflict_resolution = last_update_wins');
wait_horizon($c);
wait_state($c, 'ok', 'a hub whose own peers are up holds nothing');
$a->safe_psql('postgres', 'ALTER SUBSCRIPTION a_from_b DISABLE');
$c->safe_psql('postgres', 'SELECT txid_current()');
wait_state($c, 'peer waits for others', 'what the hub lacks holds the horizon');
# the hub writes nothing, so its stream does not move either
$c->append_conf('postgresql.conf', "krahodb.max_retention = '4s'");
reload_settings($c);
$c->poll_query_until('postgres', "SELECT state = 'stale' OR state = 'peer waits for others' AND since < clock_timestamp() - interval '6 s' FROM krahodb.horizon");
is(horizon($c, 'state'), 'peer waits for others', 'that does not make the hub stale');
$c->append_conf('postgresql.conf', "krahodb.max_retention = '1h'");
reload_settings($c);
$a->safe_psql('postgres', 'ALTER SUBSCRIPTION a_from_b ENABLE');
wait_horizon($c);
$c->safe_psql('postgres', 'DROP SUBSCRIPTION c_from_a');

# ---- the end -------------------------------------------------------------------------

$c->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_replication_slots") or die;
pass('the slot goes with the last subscription that resolves conflicts');

$c->append_conf('postgresql.conf', 'max_replication_slots = 1');
$c->restart;
$c->safe_psql('postgres', "SELECT pg_create_physical_replication_slot('other')");
subscribe($c, $a, ', origin = none');
$c->wait_for_log(qr/deleted rows are not kept for resolving conflicts because all replication slots are in use/);
$c->safe_psql('postgres', "SELECT pg_drop_replication_slot('other')");
ok($c->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_replication_slots WHERE slot_name = 'krahodb_horizon'"),
	'a slot that is missing is created once there is room');
$c->safe_psql('postgres', 'DROP SUBSCRIPTION c_from_a');

$_->stop foreach @nodes;
done_testing();
