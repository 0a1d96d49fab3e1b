# Crashes of the subscriber and of the publisher at every moment of a transaction.
#
# What goes wrong here: the process that applies is killed, with kill -9, before,
# in and after each step of a transaction; so is the whole server, on either side.
# Progress must be exact: a change that is lost or applied twice shows in tables
# without keys, where nothing else would notice.  Ordinary, streamed and two-phase
# transactions, from a stock publisher and from a KrahoDB one.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/..";

use IPC::Run;
use KrahoDB::Nodes;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $conf = "logical_decoding_work_mem = 64kB\nrestart_after_crash = off";
my $publisher;
my $subscriber;

# ---- what is replicated -------------------------------------------------------

# Rows of "event" are numbered by a sequence, so each is unique at the publisher.
my $schema = <<'EOF';
CREATE TABLE event (id bigint, what text);
CREATE TABLE counter (id int PRIMARY KEY, n bigint);
EOF

# One round: small transactions, a rolled back subtransaction, a large (streamed)
# one with rolled back subtransactions, prepared ones of both sizes and ends.
my $round = 0;

sub run_workload
{
	my $n = ++$round;
	my $sql = '';

	foreach my $i (1 .. 5)
	{
		$sql .= <<EOF;
INSERT INTO event VALUES (nextval('event_id'), 'small');
UPDATE counter SET n = n + 1 WHERE id = 1;
EOF
	}
	$sql .= <<EOF;
BEGIN;
INSERT INTO event SELECT nextval('event_id'), 'several' FROM generate_series(1, 10);
SAVEPOINT s;
INSERT INTO event SELECT nextval('event_id'), 'rolled back' FROM generate_series(1, 10);
ROLLBACK TO s;
UPDATE counter SET n = n + 1 WHERE id = 2;
COMMIT;
BEGIN;
INSERT INTO event SELECT nextval('event_id'), repeat('streamed', 10) FROM generate_series(1, 1000);
SAVEPOINT s;
INSERT INTO event SELECT nextval('event_id'), repeat('rolled back', 10) FROM generate_series(1, 1000);
ROLLBACK TO s;
SAVEPOINT s2;
INSERT INTO event SELECT nextval('event_id'), repeat('in a subtransaction', 10) FROM generate_series(1, 1000);
RELEASE s2;
UPDATE counter SET n = n + 1 WHERE id = 3;
COMMIT;
BEGIN;
INSERT INTO event VALUES (nextval('event_id'), 'prepared');
PREPARE TRANSACTION 'small$n';
BEGIN;
INSERT INTO event SELECT nextval('event_id'), repeat('streamed and prepared', 10) FROM generate_series(1, 1000);
PREPARE TRANSACTION 'large$n';
BEGIN;
INSERT INTO event VALUES (nextval('event_id'), 'prepared, to be rolled back');
PREPARE TRANSACTION 'back$n';
INSERT INTO event VALUES (nextval('event_id'), 'while others are prepared');
COMMIT PREPARED 'large$n';
ROLLBACK PREPARED 'back$n';
COMMIT PREPARED 'small$n';
INSERT INTO event VALUES (nextval('event_id'), 'last');
EOF
	$publisher->safe_psql('postgres', $sql);
	return;
}

my $summary = <<'EOF';
SELECT count(*), count(DISTINCT id), sum(id), md5(string_agg(id || what, ',' ORDER BY id)),
  (SELECT string_agg(id || ':' || n, ' ' ORDER BY id) FROM counter)
FROM event
EOF

sub check_equal
{
	my ($name) = @_;

	$publisher->wait_for_catchup('sub');
	is($subscriber->safe_psql('postgres', $summary),
		$publisher->safe_psql('postgres', $summary), $name);
	is( $subscriber->safe_psql('postgres', 'SELECT count(*) FROM pg_prepared_xacts'),
		'0', '... and nothing stays prepared');
	return;
}

# ---- dying ----------------------------------------------------------------------

sub apply_worker
{
	return $subscriber->safe_psql('postgres',
		"SELECT pid FROM pg_stat_subscription WHERE subname = 'sub' AND relid IS NULL AND pid IS NOT NULL"
	);
}

# The process that reaches the point kills itself with SIGKILL; the server then
# goes down as it would by a crash.
sub check_fault
{
	my ($fault) = @_;
	my $logstart = -s $subscriber->logfile;

	arm_fault($subscriber, "$fault=kill");
	reload_settings($subscriber);

	# the server may be gone before the answer comes
	$subscriber->psql('postgres',
		'SELECT pg_terminate_backend(pid) FROM pg_stat_subscription WHERE pid IS NOT NULL')
	  if $fault =~ /^launcher/;
	run_workload();
	wait_until_down($subscriber);
	disarm_fault($subscriber);
	ok( slurp_file($subscriber->logfile, $logstart) =~ /fault point "\w+" reached: kill/,
		"$fault: reached");
	$subscriber->start;
	check_equal("$fault: nothing lost, nothing twice");
	return;
}

# The server is killed while the worker stands at the point.
sub check_server_kill
{
	my ($fault) = @_;
	my $logstart = -s $subscriber->logfile;

	arm_fault($subscriber, "$fault=wait");
	reload_settings($subscriber);
	run_workload();
	$subscriber->wait_for_log(qr/fault point "\w+" reached: wait/, $logstart);
	$subscriber->kill9;
	disarm_fault($subscriber);
	start_after_kill($subscriber);
	check_equal("$fault, server killed: nothing lost, nothing twice");
	return;
}

# The worker is killed at random moments of a steady load, several times.
sub check_random_kills
{
	my ($times) = @_;
	my $script = PostgreSQL::Test::Utils::tempdir . '/load.sql';
	my ($out, $err) = ('', '');

	append_to_file($script, <<'EOF') unless -e $script;
BEGIN;
INSERT INTO event VALUES (nextval('event_id'), 'load');
INSERT INTO event VALUES (nextval('event_id'), 'load');
END;
EOF
	$subscriber->append_conf('postgresql.conf', 'restart_after_crash = on');
	reload_settings($subscriber);
	my $load = IPC::Run::start(
		[ 'pgbench', '-n', '-c', '2', '-T', '600', '-f', $script, connstr($publisher) ],
		'>', \$out, '2>', \$err);
	my $seen = $subscriber->safe_psql('postgres', 'SELECT count(*) FROM event');
	foreach my $i (1 .. $times)
	{
		# when the one started last has done something
		$subscriber->poll_query_until('postgres', "SELECT count(*) > $seen FROM event")
		  or die 'the load is not applied';
		my $offset = -s $subscriber->logfile;

		# it goes on for a moment until it has noticed
		kill 'KILL', apply_worker();
		$subscriber->wait_for_log(qr/all server processes terminated/, $offset);
		$subscriber->poll_query_until('postgres',
			'SELECT NOT pg_is_in_recovery()')
		  or die 'the server did not restart';
		$seen = $subscriber->safe_psql('postgres', 'SELECT count(*) FROM event');
	}
	$load->kill_kill;
	$subscriber->append_conf('postgresql.conf', 'restart_after_crash = off');
	reload_settings($subscriber);
	check_equal("worker killed $times times under load: nothing lost, nothing twice");
	return;
}

# The publisher is killed in the middle of sending.
sub check_publisher_kill
{
	run_workload();
	$publisher->kill9;
	start_after_kill($publisher);
	$publisher->safe_psql('postgres',
		"INSERT INTO event VALUES (nextval('event_id'), 'after a crash of the publisher')");
	check_equal('publisher killed: nothing lost, nothing twice');
	return;
}

# Lanes share the transactions, so none of them comes to the n-th one for sure.  What they
# do with one does not depend on who has sent it.
my $lanes = ($ENV{KDB_TEST_APPLY_WORKERS} || 1) > 1;

# ---- the tests --------------------------------------------------------------------

sub set_up
{
	my ($kind) = @_;

	$round = 0;
	$publisher = $kind eq 'stock'
	  ? stock_node("${kind}_publisher", conf => $conf)
	  : krahodb_node("${kind}_publisher", conf => $conf);
	$subscriber = krahodb_node("${kind}_subscriber", conf => $conf);

	$publisher->safe_psql('postgres', $schema);
	$publisher->safe_psql('postgres', <<'EOF');
CREATE SEQUENCE event_id;
INSERT INTO counter SELECT i, 0 FROM generate_series(1, 3) i;
CREATE PUBLICATION pub FOR TABLE event, counter;
EOF
	$subscriber->safe_psql('postgres', $schema);
	$subscriber->safe_psql('postgres',
		"CREATE SUBSCRIPTION sub CONNECTION '" . connstr($publisher)
		  . "' PUBLICATION pub WITH (streaming = on, two_phase = on)");
	$subscriber->wait_for_subscription_sync($publisher, 'sub');
	$subscriber->poll_query_until('postgres',
		"SELECT subtwophasestate = 'e' FROM pg_subscription WHERE subname = 'sub'")
	  or die 'two_phase was not enabled';
	run_workload();
	check_equal("$kind publisher, without a crash");
	return;
}

sub run_tests
{
	my ($kind) = @_;

	note "with a $kind publisher";
	set_up($kind);

	# Commits of a round: 1 to 10 small ones, 11 of several rows, 12 streamed, 13
	# small, 14 and 16 of prepared transactions, 15 a rollback of one.  Prepares: 1
	# small, 2 streamed.
	check_fault($_)
	  foreach grep { !$lanes || !/^apply_(before|after)_commit@/ } qw(apply_begin apply_change apply_change@15 apply_change@1500
	  apply_before_commit apply_before_commit@12 apply_before_commit@14
	  apply_before_commit@15 apply_after_commit apply_after_commit@12
	  apply_after_commit@14 apply_after_commit@15
	  apply_before_prepare apply_before_prepare@2
	  apply_after_prepare apply_after_prepare@2 apply_before_feedback
	  spool_write spool_write@1500 launcher_launch);
	check_server_kill($_) foreach qw(apply_change apply_before_commit apply_after_commit apply_after_prepare);
	check_random_kills(5);
	check_publisher_kill();

	$subscriber->stop;
	$publisher->stop;
	return;
}

run_tests('stock') unless $lanes;
run_tests('krahodb');

done_testing();
