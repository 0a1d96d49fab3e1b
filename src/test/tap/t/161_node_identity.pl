# What goes wrong here: a server is copied, and the copy takes itself for the node that
# it is a copy of; or a standby takes over and is taken for another node.

use strict;
use warnings;

use File::Path qw(rmtree);
use KrahoDB::Nodes;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::RecursiveCopy;
use PostgreSQL::Test::Utils;
use Test::More;

sub identity { return (split m{/}, $_[0]->safe_psql($_[1] // 'postgres', 'SHOW krahodb.node'))[0]; }

# A file copy of a stopped server.
sub copy_of
{
	my ($name, $from) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	PostgreSQL::Test::RecursiveCopy::copypath($from->data_dir, $node->data_dir);
	chmod 0700, $node->data_dir;
	$node->append_conf('postgresql.conf', 'port = ' . $node->port);
	return $node;
}

sub copy_by_backup
{
	my ($name, $from, %params) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init_from_backup($from, 'backup', %params);
	return $node;
}

my $a = krahodb_node('a');
$a->safe_psql('postgres', 'CREATE EXTENSION krahodb');
$a->safe_psql('postgres', 'CREATE TABLE t (id int PRIMARY KEY, v text)');
$a->safe_psql('postgres', "INSERT INTO t SELECT i, 'before' FROM generate_series(1, 20) i");
$a->safe_psql('postgres', 'CREATE PUBLICATION p FOR TABLE t');

# ---- the same node ----------------------------------------------------------------

my $identity = identity($a);
like($identity, qr/^[1-9]\d*$/, 'a database has an identity');
is($a->safe_psql('postgres', 'SELECT krahodb.node_identity()'), $identity, 'and a function that tells it');
$a->restart;
is(identity($a), $identity, 'it survives a restart');
$a->kill9;
start_after_kill($a);
is(identity($a), $identity, 'and a crash');
$a->safe_psql('template1', 'CREATE DATABASE other TEMPLATE postgres');
isnt(identity($a, 'other'), $identity, 'a database that is made from it has another one');
$a->safe_psql('postgres', 'DROP DATABASE other');

# ---- copies -------------------------------------------------------------------------

$a->backup('backup');
my $b = copy_by_backup('b', $a);
$b->start;
isnt(identity($b), $identity, 'a base backup that is started is another node');
like(slurp_file($b->logfile), qr/new node identities\n.*The data directory is a copy/, 'and says why');
my $of_b = identity($b);
$b->restart;
is(identity($b), $of_b, 'and stays that one');

my $restored = copy_by_backup('restored', $a);
$restored->append_conf('postgresql.conf', "restore_command = 'false'");
$restored->append_conf('recovery.signal', '');
$restored->start;
isnt(identity($restored), $identity, 'so is one that is recovered from an archive');
$restored->stop('immediate');

# ---- standbys -------------------------------------------------------------------------

my $standby = copy_by_backup('standby', $a, has_streaming => 1);
$standby->start;
is(identity($standby), $identity, 'a standby is the same node');
$standby->restart;
is(identity($standby), $identity, 'also when it is restarted');
$standby->promote;
$standby->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()');
is(identity($standby), $identity, 'and when it is promoted');
$standby->restart;
is(identity($standby), $identity, 'and afterwards');
$standby->stop('immediate');

my $detached = copy_by_backup('detached', $a, has_streaming => 1);
$detached->start;
$detached->stop;
unlink $detached->data_dir . '/standby.signal';
$detached->start;
isnt(identity($detached), $identity, 'a standby that goes its own way without promotion is another node');
$detached->stop('immediate');

# ---- the original and its copy replicate -------------------------------------------------

sub subscribe
{
	my ($node, $from) = @_;
	$node->safe_psql('postgres', sprintf(
			"CREATE SUBSCRIPTION %s_from_%s CONNECTION '%s' PUBLICATION p WITH (copy_data = false, origin = none)",
			$node->name, $from->name, connstr($from)));
	return [ $from, $node->name . '_from_' . $from->name ];
}

my @streams = (subscribe($a, $b), subscribe($b, $a));

# each in the row of the other's concurrent change, and in rows from before
pause_subscription($a, 'a_from_b');
pause_subscription($b, 'b_from_a');
foreach my $id (1 .. 10)
{
	my ($first, $second) = $id % 2 ? ($a, $b) : ($b, $a);
	$first->safe_psql('postgres', "UPDATE t SET v = 'first' WHERE id = $id");
	$second->safe_psql('postgres',
		$id % 3 ? "UPDATE t SET v = 'second' WHERE id = $id" : "DELETE FROM t WHERE id = $id");
}
$a->safe_psql('postgres', 'ALTER SUBSCRIPTION a_from_b ENABLE');
$b->safe_psql('postgres', 'ALTER SUBSCRIPTION b_from_a ENABLE');
wait_streams(2, @streams);
is(is_equal_on([ $a, $b ], 'SELECT count(*) FILTER (WHERE v = \'second\'), count(*) FROM t', 'conflicts'),
	'7|17', 'the later writes have won');
is_equal_on([ $a, $b ], 'SELECT string_agg(t::text, \' \' ORDER BY id) FROM t', 'all rows');

# the copy knows who wrote the rows that it was born with
pause_subscription($b, 'b_from_a');
$a->safe_psql('postgres', "UPDATE t SET v = 'a' WHERE id = 20");
$b->safe_psql('postgres', "UPDATE t SET v = 'b' WHERE id = 20");
$b->safe_psql('postgres', 'ALTER SUBSCRIPTION b_from_a ENABLE');
wait_streams(2, @streams);
is($b->safe_psql('postgres', "SELECT local_node = krahodb.node_identity(), remote_node = $identity FROM krahodb.conflict_log ORDER BY time DESC LIMIT 1"),
	't|t', 'versions name the right nodes');
is_equal_on([ $a, $b ], 'SELECT v FROM t WHERE id = 20', 'the row');

# ---- a copy that cannot be noticed --------------------------------------------------------

$a->stop;
my $twin = copy_of('twin', $a);
$a->start;
rmtree($twin->data_dir . '/krahodb');	# as if it were another server's first start
$twin->append_conf('postgresql.conf', 'max_logical_replication_workers = 0');
$twin->start;
is(identity($twin), $identity, 'a twin');
my ($status, undef, $stderr) = $twin->psql('postgres',
	sprintf("CREATE SUBSCRIPTION s CONNECTION '%s' PUBLICATION p WITH (copy_data = false, origin = none)", connstr($a)));
isnt($status, 0, 'it cannot subscribe to its original');
like($stderr, qr/the publisher has the node identity of this database/, 'which is said');

my $c = krahodb_node('c');
$c->safe_psql('postgres', 'CREATE TABLE t (id int PRIMARY KEY, v text)');
subscribe($c, $a);
$c->wait_for_subscription_sync($a, 'c_from_a');
subscribe($c, $twin);
$c->wait_for_log(qr/subscriptions "c_from_twin" and "c_from_a" are two servers with the same node identity/);
pass('nobody can subscribe to both');

$twin->safe_psql('postgres', 'SELECT krahodb.reset_node_identity()');
$twin->restart;
isnt(identity($twin), $identity, 'after a reset it is another node');
$twin->safe_psql('postgres', "INSERT INTO t VALUES (100, 'twin')");
wait_streams(1, [ $twin, 'c_from_twin' ]);
is($c->safe_psql('postgres', 'SELECT v FROM t WHERE id = 100'), 'twin', 'and both streams are applied');

done_testing();
