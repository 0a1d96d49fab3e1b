# Applied changes that meet local transactions on the same rows.
#
# What goes wrong here: the worker does not wait for a local transaction that is
# changing the row, and decides on a state that never becomes true; it sees a row as
# missing that is only being changed; or a deadlock with a local transaction stops
# the subscription.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/..";

use IPC::Run;
use KrahoDB::Nodes;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $publisher = krahodb_node('publisher');
my $subscriber = krahodb_node('subscriber',
	conf => "deadlock_timeout = 10ms\nwal_retrieve_retry_interval = 1h");

# ---- local sessions ---------------------------------------------------------------

# A psql that stays, for a local transaction.
sub session
{
	my %self = (in => '', out => '');
	my $timer = IPC::Run::timer($PostgreSQL::Test::Utils::timeout_default);

	$self{run} = IPC::Run::start(
		[ 'psql', '-X', '-q', '-A', '-t', '-d', $subscriber->connstr('postgres') ],
		'<', \$self{in}, '>', \$self{out}, '2>&1', $timer);
	return \%self;
}

# Begin to execute; the answer comes with finish_sql.
sub start_sql
{
	my ($session, $sql) = @_;

	$session->{in} .= "$sql;\n\\echo done\n";
	$session->{run}->pump_nb;
	return;
}

sub finish_sql
{
	my ($session) = @_;

	$session->{run}->pump until $session->{out} =~ s/^(.*?)done\n//s;
	return $1;
}

sub execute
{
	my ($session, $sql) = @_;

	start_sql($session, $sql);
	return finish_sql($session);
}

my $local = session();
my $local_pid = execute($local, 'SELECT pg_backend_pid()') + 0;

# ---- waiting ----------------------------------------------------------------------

# Or one of its lanes.
sub worker_waits
{
	$subscriber->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_stat_activity
		 WHERE backend_type IN ('logical replication worker', 'logical replication lane') AND wait_event_type = 'Lock'")
	  or die 'the worker does not wait for a lock';
	return;
}

sub row { return $subscriber->safe_psql('postgres', "SELECT t FROM tab WHERE id = $_[0]"); }

# A change here and one there, on the same row; ours is first and open when theirs
# arrives, then ends so.  Returns what the row is after that.
sub meet
{
	my ($id, $ours, $theirs, $end) = @_;

	execute($local, "BEGIN; $ours");
	$publisher->safe_psql('postgres', $theirs);
	worker_waits();
	execute($local, $end);
	$publisher->wait_for_catchup('sub');
	return row($id);
}

# ---- set up -----------------------------------------------------------------------

$publisher->safe_psql('postgres', <<'EOF');
CREATE TABLE tab (id int PRIMARY KEY, t text, u int UNIQUE);
INSERT INTO tab SELECT i, 'initial' FROM generate_series(1, 20) i;
CREATE PUBLICATION pub FOR TABLE tab;
EOF
$subscriber->safe_psql('postgres', 'CREATE TABLE tab (id int PRIMARY KEY, t text, u int UNIQUE)');
$subscriber->safe_psql('postgres',
	"CREATE SUBSCRIPTION sub CONNECTION '" . connstr($publisher)
	  . "' PUBLICATION pub WITH (disable_on_error = true)");
$subscriber->wait_for_subscription_sync($publisher, 'sub');

# ---- a plain subscription -----------------------------------------------------------

is( meet(1, "UPDATE tab SET t = 'ours' WHERE id = 1",
		"UPDATE tab SET t = 'theirs' WHERE id = 1", 'COMMIT'),
	'theirs', 'update against update: applied to what the local one left');
is( meet(2, "UPDATE tab SET t = 'ours' WHERE id = 2",
		"UPDATE tab SET t = 'theirs' WHERE id = 2", 'ROLLBACK'),
	'theirs', '... which may be nothing');
is( meet(3, "UPDATE tab SET u = 3 WHERE id = 3",
		"UPDATE tab SET t = 'theirs' WHERE id = 3", 'COMMIT'),
	'theirs', '... or a row in another place');
is( meet(4, 'DELETE FROM tab WHERE id = 4',
		"UPDATE tab SET t = 'theirs' WHERE id = 4", 'COMMIT'),
	'', 'update against delete: the row is missing');
is( meet(5, 'DELETE FROM tab WHERE id = 5',
		"UPDATE tab SET t = 'theirs' WHERE id = 5", 'ROLLBACK'),
	'theirs', '... unless the delete is rolled back');
is( meet(6, "UPDATE tab SET t = 'ours' WHERE id = 6",
		'DELETE FROM tab WHERE id = 6', 'COMMIT'),
	'', 'delete against update');
is( meet(31, "INSERT INTO tab VALUES (31, 'ours')",
		"INSERT INTO tab VALUES (31, 'theirs')", 'ROLLBACK'),
	'theirs', 'insert against an insert that is rolled back');
is( meet(32, "INSERT INTO tab VALUES (132, 'ours', 32)",
		"INSERT INTO tab VALUES (32, 'theirs', 32)", 'ROLLBACK'),
	'theirs', '... on another unique key');

# ---- with a resolver ------------------------------------------------------------------

$subscriber->safe_psql('postgres',
	'ALTER SUBSCRIPTION sub SET (conflict_resolution = last_update_wins)');

# The local change is committed after the remote one, so its timestamp is greater.
is( meet(33, "INSERT INTO tab VALUES (33, 'ours')",
		"INSERT INTO tab VALUES (33, 'theirs')", 'COMMIT'),
	'ours', 'last_update_wins: insert against a later insert');
is( meet(34, "INSERT INTO tab VALUES (34, 'ours')",
		"INSERT INTO tab VALUES (34, 'theirs')", 'ROLLBACK'),
	'theirs', '... that is rolled back');
is( meet(7, "UPDATE tab SET t = 'ours' WHERE id = 7",
		"UPDATE tab SET t = 'theirs' WHERE id = 7", 'COMMIT'),
	'ours', '... update against a later update');
is( meet(8, 'DELETE FROM tab WHERE id = 8',
		"UPDATE tab SET t = 'theirs' WHERE id = 8", 'COMMIT'),
	'', '... update against a later delete');
is( meet(9, "UPDATE tab SET t = 'ours' WHERE id = 9",
		'DELETE FROM tab WHERE id = 9', 'COMMIT'),
	'ours', '... delete against a later update');

# ---- deadlock ---------------------------------------------------------------------------

# The worker has changed row 11 and is about to change row 10, which a local
# transaction has changed that waits for row 11.  That one does not look for
# deadlocks, so the worker finds it and gives way.
my $lanes = ($ENV{KDB_TEST_APPLY_WORKERS} || 1) > 1;

sub check_deadlock
{
	my ($name) = @_;
	my $logstart = -s $subscriber->logfile;

	execute($local, "SET deadlock_timeout = '1h'");
	arm_fault($subscriber, 'apply_change@2=wait');
	reload_settings($subscriber);
	execute($local, "BEGIN; UPDATE tab SET t = 'ours' WHERE id = 10");
	$publisher->safe_psql('postgres',
		"BEGIN; UPDATE tab SET t = '$name' WHERE id = 11; UPDATE tab SET t = '$name' WHERE id = 10; COMMIT");
	$subscriber->wait_for_log(qr/fault point "apply_change" reached: wait/, $logstart);
	start_sql($local, "UPDATE tab SET t = 'ours' WHERE id = 11");
	$subscriber->poll_query_until('postgres',
		"SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $local_pid")
	  or die 'the local transaction does not wait';
	disarm_fault($subscriber);
	reload_settings($subscriber);
	# A lane repeats without a word what may not have been at its turn.
	$subscriber->wait_for_log(qr/tries again .*: deadlock detected/, $logstart)
	  if !$lanes;
	finish_sql($local);
	execute($local, 'COMMIT');
	$publisher->wait_for_catchup('sub');
	is($subscriber->safe_psql('postgres',
			"SELECT subenabled FROM pg_subscription WHERE subname = 'sub'"),
		't', "$name: disable_on_error does not disable the subscription");
	return;
}

# Started again at once, not after wal_retrieve_retry_interval, which is an hour here.
$subscriber->safe_psql('postgres',
	'ALTER SUBSCRIPTION sub SET (conflict_resolution = apply_remote)');
check_deadlock('deadlock');
is(row(10) . ' ' . row(11), 'deadlock deadlock', '... and the transaction is applied');

# Lanes are not new processes then, and go on counting how often they were at the fault point.
if (!$lanes)
{
	check_deadlock('another deadlock');
	is(row(10) . ' ' . row(11), 'another deadlock another deadlock', '... each time');
}

$local->{in} .= "\\q\n";
$local->{run}->finish;
$subscriber->stop;
$publisher->stop;
done_testing();
