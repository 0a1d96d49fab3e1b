# What goes wrong here: a node believes that nothing newer than an incoming change was
# ever committed, and does not look for what the change has lost to.  It knows the
# greatest timestamp that was committed, but not after a restart, where it finds one in the
# engine's commit timestamps; and not of the time in which no subscription resolved
# conflicts.

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

$node->stop;
$peer->stop;
done_testing();
