# KrahoDB::Nodes: servers for the TAP tests.
#
# Nodes are PostgreSQL::Test::Cluster objects.  krahodb_node() makes one with the
# initdb of the installation under test, stock_node() one with the engine's own,
# without KrahoDB.  Nothing here sleeps for a time: everything waits for a
# condition, until PG_TEST_TIMEOUT_DEFAULT.

package KrahoDB::Nodes;

use strict;
use warnings;

use Exporter 'import';
use File::Basename qw(dirname);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

our @EXPORT = qw(
  krahodb_node
  stock_node
  connstr
  wait_streams
  is_equal_on
  arm_fault
  disarm_fault
  reload_settings
  start_armed
  wait_until_down
  start_after_kill
  slots_of
  pause_subscription
  wait_horizon
);

my $settings = <<'EOF';
track_commit_timestamp = on
wal_retrieve_retry_interval = 10ms
max_connections = 30
max_wal_senders = 20
max_replication_slots = 20
max_worker_processes = 30
max_logical_replication_workers = 24
max_sync_workers_per_subscription = 4
max_prepared_transactions = 10
autovacuum = off
EOF

# A started KrahoDB node; %params: conf => further lines of postgresql.conf.
sub krahodb_node
{
	my ($name, %params) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init(allows_streaming => 'logical');
	$node->append_conf('postgresql.conf', $settings);
	$node->append_conf('postgresql.conf', "krahodb.test_apply_workers = $ENV{KDB_TEST_APPLY_WORKERS}")
	  if $ENV{KDB_TEST_APPLY_WORKERS};
	$node->append_conf('postgresql.conf', $params{conf}) if $params{conf};
	$node->start;
	return $node;
}

# The same without KrahoDB.
sub stock_node
{
	my ($name, %params) = @_;
	my $bindir = $ENV{KDB_ENGINE_BINDIR} || qx(pg_config --bindir);
	chomp $bindir;
	my $node = PostgreSQL::Test::Cluster->new($name,
		install_path => dirname($bindir));

	$node->init(allows_streaming => 'logical');
	$node->append_conf('postgresql.conf', $settings);
	$node->append_conf('postgresql.conf', $params{conf}) if $params{conf};
	$node->start;
	return $node;
}

# Connection string for CREATE SUBSCRIPTION.
sub connstr
{
	my ($node, $dbname) = @_;
	return $node->connstr . ' dbname=' . ($dbname || 'postgres');
}

# Wait until the streams have brought everything: pairs [publisher, subscription].
# Changes that are applied may be passed on, so this goes round once more than
# the longest way is.
sub wait_streams
{
	my ($rounds, @streams) = @_;

	foreach (1 .. $rounds)
	{
		foreach my $stream (@streams)
		{
			my ($publisher, $subscription) = @$stream;
			$publisher->wait_for_catchup($subscription, 'replay',
				$publisher->lsn('insert'));
		}
	}
	return;
}

# The query has the same result on all nodes; returns it.
sub is_equal_on
{
	my ($nodes, $query, $name) = @_;
	my @results = map { $_->safe_psql('postgres', $query) } @$nodes;

	foreach my $i (1 .. $#results)
	{
		is($results[$i], $results[0],
			"$name: " . $nodes->[$i]->name . ' = ' . $nodes->[0]->name);
	}
	return $results[0];
}

# In one step: a process that waits at a fault point looks at the file now and then, and
# would go on if it found none armed in between.
sub set_fault
{
	my ($node, $setting) = @_;
	my $conf = $node->data_dir . '/postgresql.conf';
	my $text = join '', grep { !/^\s*krahodb\.fault_point\b/ } map { "$_\n" } split /\n/, slurp_file($conf);

	open my $out, '>', "$conf.new" or die "$conf: $!";
	print $out $text, $setting;
	close $out or die "$conf: $!";
	rename "$conf.new", $conf or die "$conf: $!";
	return;
}

# Arm a fault point in postgresql.conf; in effect after reload_settings or a (re)start.
sub arm_fault
{
	my ($node, $fault) = @_;

	set_fault($node, "krahodb.fault_point = '$fault'\n");
	return;
}

sub disarm_fault
{
	my ($node) = @_;

	set_fault($node, '');
	return;
}

# Reload a node's settings.  When this returns, all of its processes have been told:
# "pg_ctl reload" has only told the postmaster, and a worker may be faster than that.
# A server that goes down by an armed fault meanwhile is as good.
sub reload_settings
{
	my ($node) = @_;
	my ($running, $before) = eval { $node->psql('postgres', 'SELECT pg_conf_load_time()') };
	my $tries = 50 * $PostgreSQL::Test::Utils::timeout_default;

	return if !defined $running || $running != 0;
	PostgreSQL::Test::Utils::system_log('pg_ctl', '-D', $node->data_dir, 'reload');
	while ($tries-- > 0)
	{
		# psql() dies where psql ends before it has read the query.
		my ($status, $loaded) = eval { $node->psql('postgres', "SELECT pg_conf_load_time() > '$before'") };

		return if !defined $status || $status != 0 || $loaded eq 't';
		usleep(20_000);
	}
	die 'timed out waiting for ' . $node->name . ' to reload its settings';
}

# Start a server that may be down again, by an armed fault, before pg_ctl or we have
# looked: start() takes that for a broken test.
sub start_armed
{
	my ($node) = @_;

	local %ENV = $node->_get_env(PGAPPNAME => undef);
	PostgreSQL::Test::Utils::system_log('pg_ctl', '-w', '-D', $node->data_dir, '-l', $node->logfile,
		'-o', '--cluster-name=' . $node->name, 'start');
	$node->_update_pid(-1);
	return;
}

# Wait until a server that dies of itself is down, and let the node know.
sub wait_until_down
{
	my ($node) = @_;
	my $pidfile = $node->data_dir . '/postmaster.pid';
	my $tries = 10 * $PostgreSQL::Test::Utils::timeout_default;

	while (-e $pidfile)
	{
		die 'timed out waiting for ' . $node->name . ' to go down'
		  if $tries-- == 0;
		usleep(100_000);
	}
	$node->_update_pid(0);
	return;
}

# Start a node after kill9, once the children of the killed postmaster are gone: they
# hold its shared memory.
sub start_after_kill
{
	my ($node) = @_;
	my $tries = 10 * $PostgreSQL::Test::Utils::timeout_default;

	until ($node->start(fail_ok => 1))
	{
		die 'could not start ' . $node->name . ' again' if $tries-- == 0;
		undef $node->{_pid};	# the pid file is the killed server's
		usleep(100_000);
	}
	return;
}

# Disable a subscription and wait until its worker is gone; its slot is free then.
sub pause_subscription
{
	my ($node, $subscription) = @_;

	$node->safe_psql('postgres', "ALTER SUBSCRIPTION $subscription DISABLE");
	$node->poll_query_until('postgres',
		"SELECT NOT EXISTS (SELECT FROM pg_stat_subscription WHERE subname = '$subscription' AND pid IS NOT NULL)")
	  or die "timed out waiting for the worker of $subscription to stop";
	return;
}

# Wait until nothing is kept on a node for transactions before this moment: its horizon
# has passed it (horizon.md), and so has the slot that holds back VACUUM, whose xmin may be
# that of a candidate noted before.
sub wait_horizon
{
	my ($node) = @_;
	my $xid = $node->safe_psql('postgres', 'SELECT txid_snapshot_xmax(txid_current_snapshot())');

	# a transaction that has an id, so that there is something to move on to
	$node->safe_psql('postgres', 'SELECT txid_current()');
	$node->poll_query_until('postgres',
		"SELECT xmin::text::bigint >= $xid FROM pg_replication_slots WHERE slot_name = 'krahodb_horizon'")
	  or die 'the horizon does not move on ' . $node->name . ': '
	  . $node->safe_psql('postgres', 'SELECT * FROM krahodb.horizon');
	return;
}

# Names of the logical slots on a node.
sub slots_of
{
	my ($node) = @_;

	return $node->safe_psql('postgres',
		"SELECT string_agg(slot_name, ',' ORDER BY slot_name) FROM pg_replication_slots WHERE slot_type = 'logical'"
	);
}

1;
