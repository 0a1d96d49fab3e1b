# What goes wrong here: a table is copied and waits to be told how far to catch up, and the apply
# worker is replaced.  The old one had nothing to apply, so its origin has no progress, but it
# has confirmed what came: the new one begins behind that, and what was written to the table before is in
# neither stream.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my ($pub, $sub) = map { krahodb_node($_) } qw(pub sub);

$_->safe_psql('postgres', 'CREATE TABLE t (id int PRIMARY KEY)') foreach ($pub, $sub);
$pub->safe_psql('postgres', 'CREATE TABLE other (v text); INSERT INTO t VALUES (1); CREATE PUBLICATION p FOR TABLE t');
arm_fault($sub, 'sync_before_syncwait=wait');
reload_settings($sub);
my $offset = -s $sub->logfile;
$sub->safe_psql('postgres', "CREATE SUBSCRIPTION s CONNECTION '" . connstr($pub) . "' PUBLICATION p");
$sub->wait_for_log(qr/fault point "sync_before_syncwait"/, $offset);

# some log to read, from where this transaction began, so that the next walsender has nothing to say at first
my $session = $pub->background_psql('postgres');
$session->query_safe('BEGIN');
$session->query_safe('SELECT txid_current()');
$pub->safe_psql('postgres', "INSERT INTO other SELECT repeat('x', 1000) FROM generate_series(1, 60000)");
$pub->safe_psql('postgres', 'INSERT INTO t VALUES (2)');
$pub->wait_for_catchup('s', 'flush', $pub->lsn('insert'));

my $worker = q{SELECT pid FROM pg_stat_subscription WHERE relid IS NULL AND pid IS NOT NULL};
my $old = $sub->safe_psql('postgres', $worker);
kill 'STOP', $old;
disarm_fault($sub);
reload_settings($sub);
$sub->poll_query_until('postgres',
	q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'LogicalSyncStateChange'}) or die 'the table does not wait';
kill 'TERM', $old;
kill 'CONT', $old;
$sub->poll_query_until('postgres', "SELECT pid <> $old FROM ($worker) w") or die 'no new worker';
$session->query_safe('COMMIT');
$session->quit;
$sub->wait_for_subscription_sync($pub, 's');
$pub->wait_for_catchup('s', 'replay', $pub->lsn('insert'));
is($sub->safe_psql('postgres', 'SELECT string_agg(id::text, $$ $$ ORDER BY id) FROM t'), '1 2', 'nothing is left out');

done_testing();
