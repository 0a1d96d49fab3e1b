# What goes wrong here: a node believes that nothing newer than an incoming change was
# ever committed, and does not look for what the change has lost to.  It knows the
# greatest timestamp that was committed, but not after a restart, where it finds one in the
# engine's commit timestamps; and not of the time in which no subscription resolved
# conflicts, nor of a transaction that is committing when the first one does; and the launcher, which
# has read that none does, says so behind a worker that knows better.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = krahodb_node('node');
my $peer = krahodb_node('peer');

foreach ($node, $peer)
{
	$_->safe_psql('postgres', 'CREATE EXTENSION krahodb; CREATE TABLE t (id int PRIMARY KEY, v text)');
}
$peer->safe_psql('postgres', 'CREATE PUBLICATION p FOR TABLE t');
$node->safe_psql('postgres', sprintf(
	"CREATE SUBSCRIPTION s CONNECTION '%s' PUBLICATION p WITH (origin = none, copy_data = false)", connstr($peer)));
wait_streams(1, [ $peer, 's' ]);

# ---- after a restart ------------------------------------------------------------------

# The newest local transaction by its id is not the one that was committed last.
my $offset = -s $node->logfile;
arm_fault($node, 'apply_begin=wait');
reload_settings($node);

my $late = $node->background_psql('postgres');
$late->query_safe(q{BEGIN; INSERT INTO t VALUES (1, 'newer'); DELETE FROM t WHERE id = 1});
$node->safe_psql('postgres', 'SELECT txid_current()');
$peer->safe_psql('postgres', q{INSERT INTO t VALUES (1, 'older')});
$node->wait_for_log(qr/fault point "apply_begin" reached: wait/, $offset);
$late->query_safe('COMMIT');
$late->quit;

$node->stop('immediate');
disarm_fault($node);
$node->start;
wait_streams(1, [ $peer, 's' ]);
is($node->safe_psql('postgres', 'SELECT * FROM t'), '', 'after a restart');

# ---- when the first subscription that resolves conflicts is made -------------------------

$node->safe_psql('postgres', q{INSERT INTO t VALUES (2, 'at all'); DROP SUBSCRIPTION s});
$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_replication_slots WHERE slot_name = 'krahodb_horizon'")
  or die 'the horizon is still held';
$peer->safe_psql('postgres', q{SELECT pg_create_logical_replication_slot('s', 'krahodb_output')});
$peer->safe_psql('postgres', q{INSERT INTO t VALUES (3, 'older')});
$node->safe_psql('postgres', q{INSERT INTO t VALUES (3, 'newer')});
$node->safe_psql('postgres', q{DELETE FROM t WHERE id = 3});
$node->safe_psql('postgres', sprintf(
	"CREATE SUBSCRIPTION s CONNECTION '%s' PUBLICATION p WITH (origin = none, copy_data = false, create_slot = false)",
	connstr($peer)));
wait_streams(1, [ $peer, 's' ]);
is($node->safe_psql('postgres', 'SELECT * FROM t WHERE id = 3'), '', 'with the first subscription');

# A transaction that is committing at that moment does not say so, but it has an id.
sub clock_is
{
	my ($condition) = @_;

	return $node->poll_query_until('postgres', "SELECT $condition FROM krahodb.clock");
}

$node->safe_psql('postgres', q{CREATE FUNCTION clock_mark() RETURNS bigint LANGUAGE C AS 'krahodb', 'krahodb_test_clock_mark'});
$node->safe_psql('postgres', 'DROP SUBSCRIPTION s');
clock_is('NOT enforced') or die 'the clock rule still holds';
my $session = $node->background_psql('postgres');
$session->query_safe(q{BEGIN; INSERT INTO t VALUES (4, 'committing')});
$node->safe_psql('postgres', sprintf(
		"CREATE SUBSCRIPTION s CONNECTION '%s' PUBLICATION p WITH (copy_data = false)", connstr($peer)));
wait_streams(1, [ $peer, 's' ]);
$node->safe_psql('postgres', 'ALTER SUBSCRIPTION s SET (conflict_resolution = last_update_wins)');
clock_is('enforced') or die 'the clock rule does not hold';
is($node->safe_psql('postgres', 'SELECT clock_mark()'), '0', 'nobody knows what is committed by whom came before the rule');
$session->query_safe('COMMIT');
$session->quit;
ok($node->poll_query_until('postgres', 'SELECT clock_mark() > 0'), 'until that has ended');

# ---- the launcher is late -----------------------------------------------------------------

$node->safe_psql('postgres', 'ALTER SUBSCRIPTION s SET (conflict_resolution = default)');
clock_is('NOT enforced') or die 'the clock rule still holds';
$offset = -s $node->logfile;
arm_fault($node, 'launcher_read=wait');
reload_settings($node);
$node->wait_for_log(qr/fault point "launcher_read" reached: wait/, $offset);
$node->safe_psql('postgres', 'ALTER SUBSCRIPTION s SET (conflict_resolution = last_update_wins)');
ok(clock_is('enforced'), 'the worker says that the clock rule holds');
disarm_fault($node);
reload_settings($node);
$node->poll_query_until('postgres',
	"SELECT wait_event = 'LogicalLauncherMain' FROM pg_stat_activity WHERE backend_type = 'logical replication launcher'") or die;
is($node->safe_psql('postgres', 'SELECT enforced FROM krahodb.clock'), 't', 'and the launcher does not take that back');

$node->stop;
$peer->stop;
done_testing();
