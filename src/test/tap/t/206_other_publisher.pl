# What goes wrong here: what is known of a publisher is taken for true of another one, to
# which ALTER SUBSCRIPTION leads now, or the same connection string from time to time; or a publisher that has less than what was applied of
# it is streamed from a place that it has not come to.  And the horizon worker is replaced
# while the horizon is only in memory.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my ($p, $q, $n) = my @nodes = map { krahodb_node($_) } qw(p q n);

foreach my $node (@nodes)
{
	$node->safe_psql('postgres', 'CREATE EXTENSION krahodb; CREATE TABLE t (id int PRIMARY KEY, v text); CREATE PUBLICATION pub FOR TABLE t');
}

# ---- no peers: the horizon is not in its file --------------------------------------------

$n->poll_query_until('postgres', 'SELECT horizon IS NOT NULL FROM krahodb.horizon_state()') or die;
my $before = $n->safe_psql('postgres', 'SELECT horizon FROM krahodb.horizon_state()');
$n->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'krahodb horizon'");
$n->safe_psql('postgres', q{CREATE SUBSCRIPTION none CONNECTION 'dbname=none' PUBLICATION pub WITH (connect = false, origin = none)});
$n->poll_query_until('postgres', 'SELECT count(*) = 1 FROM krahodb.horizon') or die;
$n->stop('immediate');
$n->start;
is($n->safe_psql('postgres', "SELECT horizon >= '$before' FROM krahodb.horizon_state()"), 't',
	'the horizon does not go back with the first peer');
$n->safe_psql('postgres', 'ALTER SUBSCRIPTION none SET (slot_name = NONE); DROP SUBSCRIPTION none');

# ---- another connection ------------------------------------------------------------------

# q's log is far ahead, so that p's positions come before it
$q->safe_psql('postgres', 'SELECT pg_switch_wal(), txid_current(); SELECT pg_switch_wal()') foreach 1 .. 2;
$q->safe_psql('postgres', q{SELECT pg_create_logical_replication_slot('s', 'krahodb_output')});
$n->safe_psql('postgres', sprintf(
		"CREATE SUBSCRIPTION s CONNECTION '%s' PUBLICATION pub WITH (copy_data = false, origin = none)", connstr($p)));
$p->safe_psql('postgres', q{INSERT INTO t VALUES (1, 'p')});
wait_streams(1, [ $p, 's' ]);
wait_horizon($n);

# Have the subscription lead to another server, where a transaction is running: nothing more can be
# learnt of it.
sub lead_to
{
	my ($node, $connstr) = @_;
	my $pid = $n->safe_psql('postgres', q{SELECT pid FROM pg_stat_subscription WHERE subname = 's'});
	my $session = $node->background_psql('postgres');

	$session->query_safe('BEGIN; SELECT txid_current()');
	$node->safe_psql('postgres', 'SELECT txid_current()');
	$n->safe_psql('postgres', "ALTER SUBSCRIPTION s CONNECTION '$connstr'");
	$n->poll_query_until('postgres',
		"SELECT pid <> $pid AND latest_end_lsn IS NOT NULL FROM pg_stat_subscription WHERE subname = 's'")
	  or die 'no new worker';
	$n->safe_psql('postgres', 'SELECT txid_current()');
	$n->poll_query_until('postgres', "SELECT state = 'transaction on peer' FROM krahodb.horizon")
	  or die $n->safe_psql('postgres', 'SELECT h.*, now() FROM krahodb.horizon h');
	return $session;
}

my $session = lead_to($p, connstr($p) . ' connect_timeout=20');
is($n->safe_psql('postgres', 'SELECT applied_until IS NOT NULL FROM krahodb.horizon'), 't',
	'what is known of a publisher stays, whatever the connection string');
$session->query_safe('COMMIT');
$session->quit;
wait_horizon($n);

$session = lead_to($q, connstr($q));
is($n->safe_psql('postgres', 'SELECT applied_until IS NULL, received_until IS NULL FROM krahodb.horizon'), 't|t',
	'it is not taken for what is known of another one');
$session->query_safe(q{INSERT INTO t VALUES (2, 'q'); COMMIT});
$session->quit;
wait_streams(1, [ $q, 's' ]);
wait_horizon($n);
is($n->safe_psql('postgres', q{SELECT string_agg(v, ' ' ORDER BY id) FROM t}), 'p q', 'whose changes come');

# ---- a publisher that has less -------------------------------------------------------------

my $offset = -s $n->logfile;
$n->safe_psql('postgres', sprintf("ALTER SUBSCRIPTION s CONNECTION '%s'", connstr($p)));
$n->wait_for_log(qr/ERROR:  subscription "s" has applied its publisher's changes until \S+, but the publisher's log ends at/, $offset);
pass('its changes are not left out without a word');
$n->safe_psql('postgres', sprintf("ALTER SUBSCRIPTION s CONNECTION '%s'", connstr($q)));
$q->safe_psql('postgres', q{INSERT INTO t VALUES (3, 'q')});
wait_streams(1, [ $q, 's' ]);

# ---- a connection string that leads to two servers --------------------------------------------

# q sends the stream, as p is down; p answers what the horizon worker asks later.
$p->stop;
$session = lead_to($q, sprintf('host=%s,%s port=%d,%d dbname=postgres', $p->host, $q->host, $p->port, $q->port));
$p->start;
my $until = $n->safe_psql('postgres', 'SELECT applied_until FROM krahodb.horizon');
$q->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'krahodb horizon'});
$n->poll_query_until('postgres', "SELECT reason LIKE 'another server has answered%' FROM krahodb.horizon")
  or diag($n->safe_psql('postgres', 'SELECT * FROM krahodb.horizon'));
is($n->safe_psql('postgres', 'SELECT applied_until FROM krahodb.horizon'), $until, 'what one server answers is not taken for the other');
$session->query_safe('COMMIT');
$session->quit;

# ---- a publisher that has more ------------------------------------------------------------------

# q's slot is behind p's positions, and q's log is ahead of them.
my $lsn_of = sub { return $_[0]->safe_psql('postgres', 'SELECT pg_current_wal_insert_lsn()'); };
my $passes = sub {
	my ($node, $lsn) = @_;

	$node->safe_psql('postgres', 'SELECT txid_current(); SELECT pg_switch_wal()')
	  while $node->safe_psql('postgres', "SELECT pg_current_wal_insert_lsn() <= '$lsn'") eq 't';
	return;
};
$_->safe_psql('postgres', 'CREATE TABLE u (id int PRIMARY KEY); CREATE PUBLICATION pub_u FOR TABLE u') foreach @nodes;
$q->safe_psql('postgres', q{SELECT pg_create_logical_replication_slot('u', 'krahodb_output')});
$q->safe_psql('postgres', 'INSERT INTO u VALUES (1)');
$n->safe_psql('postgres', sprintf(
		"CREATE SUBSCRIPTION u CONNECTION '%s' PUBLICATION pub_u WITH (copy_data = false, origin = none)", connstr($p)));
$passes->($p, $lsn_of->($q));
$p->safe_psql('postgres', 'INSERT INTO u VALUES (2)');
wait_streams(1, [ $p, 'u' ]);
$passes->($q, $lsn_of->($p));
$offset = -s $n->logfile;
$n->safe_psql('postgres', sprintf("ALTER SUBSCRIPTION u CONNECTION '%s'", connstr($q)));
$n->wait_for_log(qr/ERROR:  subscription "u" has applied another server's changes until \S+, but replication slot "u" of its publisher is at/, $offset);
pass('its changes are not left out without a word either');
my ($advance) = slurp_file($n->logfile, $offset) =~ /(SELECT pg_replication_origin_advance\(.*?\)), and/;
pause_subscription($n, 'u');
$n->safe_psql('postgres', $advance);
$n->safe_psql('postgres', 'ALTER SUBSCRIPTION u ENABLE');
wait_streams(1, [ $q, 'u' ]);
is($n->safe_psql('postgres', q{SELECT string_agg(id::text, ' ' ORDER BY id) FROM u}), '1 2', 'they come if somebody says so');
$n->restart;
$q->safe_psql('postgres', 'INSERT INTO u VALUES (3)');
wait_streams(1, [ $q, 'u' ]);
is($n->safe_psql('postgres', 'SELECT count(*) FROM u'), '3', 'it is the publisher from then on');
$n->safe_psql('postgres', 'DROP SUBSCRIPTION u');

# ---- a transaction has failed that the other publisher does not have -----------------------------

# p's log is ahead of q's, where the transaction's position is far away.
$_->safe_psql('postgres', 'CREATE TABLE w (id int PRIMARY KEY); CREATE PUBLICATION pub_w FOR TABLE w') foreach @nodes;
$n->safe_psql('postgres', q{
	CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'refused'; END$$;
	CREATE TRIGGER refuse BEFORE INSERT ON w FOR EACH ROW EXECUTE FUNCTION refuse();
	ALTER TABLE w ENABLE ALWAYS TRIGGER refuse});
$q->safe_psql('postgres', q{SELECT pg_create_logical_replication_slot('w', 'krahodb_output')});
$passes->($p, $lsn_of->($q));
$p->safe_psql('postgres', 'SELECT txid_current(), pg_switch_wal()') foreach 1 .. 3;
$offset = -s $n->logfile;
$n->safe_psql('postgres', sprintf(
		"CREATE SUBSCRIPTION w CONNECTION '%s' PUBLICATION pub_w WITH (copy_data = false, origin = none, apply_workers = 2)", connstr($p)));
$p->safe_psql('postgres', 'INSERT INTO w VALUES (1)');
$n->wait_for_log(qr/ERROR:  refused/, $offset);
pause_subscription($n, 'w');
my $at = $q->safe_psql('postgres', q{SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'w'});
$n->safe_psql('postgres', sprintf("DROP TRIGGER refuse ON w; ALTER SUBSCRIPTION w CONNECTION '%s'", connstr($q)));
$n->safe_psql('postgres', "SELECT pg_replication_origin_advance('pg_' || oid, '$at') FROM pg_subscription WHERE subname = 'w'");
$n->safe_psql('postgres', 'ALTER SUBSCRIPTION w ENABLE');
$q->safe_psql('postgres', 'INSERT INTO w VALUES (2)');
wait_streams(1, [ $q, 'w' ]);
$q->safe_psql('postgres', 'INSERT INTO w VALUES (3)');
wait_streams(1, [ $q, 'w' ]);
cmp_ok($n->safe_psql('postgres', q{SELECT count(*) FROM krahodb.lanes}), '>', 0, 'lanes do not wait for it');
$n->safe_psql('postgres', 'DROP SUBSCRIPTION w');

# ---- more subscriptions than have room to be told of ----------------------------------------

$n->append_conf('postgresql.conf', "max_logical_replication_workers = 1\nmax_replication_slots = 2");
$n->restart;
foreach my $i (1 .. 3)
{
	isnt($n->safe_psql('postgres', 'SHOW krahodb.frontiers'), '0:0:0:0', 'what is known is told') if $i == 3;
	$n->safe_psql('postgres', "CREATE SUBSCRIPTION none$i CONNECTION 'dbname=none' PUBLICATION pub WITH (connect = false, origin = none)");
	$n->poll_query_until('postgres', "SELECT count(*) = least($i + 1, 3) FROM krahodb.horizon") or die;
}
ok($n->poll_query_until('postgres', "SELECT current_setting('krahodb.frontiers') = '0:0:0:0'"), 'nothing is told of some of them only');
$n->wait_for_log(qr/WARNING:  more than 3 subscriptions resolve conflicts/);
$n->safe_psql('postgres', 'ALTER SUBSCRIPTION none3 SET (slot_name = NONE); DROP SUBSCRIPTION none3');
ok($n->poll_query_until('postgres', "SELECT current_setting('krahodb.frontiers') <> '0:0:0:0'"), 'until they have room');

$_->stop foreach @nodes;
done_testing();
