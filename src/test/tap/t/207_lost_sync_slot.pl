# What goes wrong here: a copy in ranges is interrupted, rows of it are changed here, and
# before it goes on the publisher gives up the slot that its stream should begin with.  Then
# the stream can never begin, and emptying the table does not help.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $pub = krahodb_node('pub', conf => 'checkpoint_timeout = 1h');
my $sub = krahodb_node('sub', conf => 'krahodb.copy_range_size = 64kB');

foreach my $node ($pub, $sub)
{
	$node->safe_psql('postgres', 'CREATE TABLE t (id int PRIMARY KEY, v int, pad text)');
}
$pub->safe_psql('postgres', q{INSERT INTO t SELECT g, 0, repeat('x', 100) FROM generate_series(1, 20000) g; CREATE PUBLICATION s FOR TABLE t});

# interrupted when some ranges are done
my $offset = -s $sub->logfile;
arm_fault($sub, 'copy_range_after_commit@4=wait');
reload_settings($sub);
$sub->safe_psql('postgres', sprintf(
		"CREATE SUBSCRIPTION s CONNECTION '%s' PUBLICATION s WITH (origin = none)", connstr($pub)));
$sub->wait_for_log(qr/fault point "copy_range_after_commit" reached/, $offset);
$sub->safe_psql('postgres', 'DELETE FROM t WHERE id = 1; UPDATE t SET v = 1 WHERE id = 2');
$sub->stop('immediate');

# and does not get any further until the slot is lost
arm_fault($sub, 'copy_horizon_held=error');
$sub->start;
$sub->wait_for_log(qr/fault point "copy_horizon_held" reached/, $offset);
my $slot = $pub->safe_psql('postgres', "SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE '%sync%'");
$pub->safe_psql('postgres', 'SELECT txid_current(), pg_switch_wal()') foreach 1 .. 3;
my $end = $pub->lsn('insert');

# the stream's own slot must have come there, not only what is applied
foreach (1 .. 100)
{
	$pub->safe_psql('postgres', 'SELECT txid_current()');
	$pub->safe_psql('postgres', 'CHECKPOINT');
	$pub->wait_for_catchup('s', 'replay', $pub->lsn('insert'));
	last if $pub->safe_psql('postgres', "SELECT restart_lsn >= '$end' FROM pg_replication_slots WHERE slot_name = 's'") eq 't';
}
$pub->append_conf('postgresql.conf', 'max_slot_wal_keep_size = 1MB');
reload_settings($pub);
$pub->safe_psql('postgres', 'CHECKPOINT');
$pub->poll_query_until('postgres', "SELECT wal_status = 'lost' FROM pg_replication_slots WHERE slot_name = '$slot'");
is( $pub->safe_psql('postgres', "SELECT string_agg(wal_status, ' ' ORDER BY slot_name = '$slot') FROM pg_replication_slots WHERE slot_type = 'logical'"),
	'reserved lost', 'the slot is lost');

$offset = -s $sub->logfile;
disarm_fault($sub);
reload_settings($sub);
$sub->wait_for_log(qr/ERROR:  rows of table "public.t" were changed here before its initial copy was finished.*HINT:  Truncate the table here/s, $offset);
pass('what can be done is said');

# Rows that are deleted stay deleted, those of a truncated table come.
$sub->safe_psql('postgres', 'TRUNCATE t');
$sub->wait_for_subscription_sync($pub, 's');
$pub->safe_psql('postgres', 'UPDATE t SET v = 2 WHERE id = 3');
wait_streams(1, [ $pub, 's' ]);
is_equal_on([ $pub, $sub ], "SELECT count(*), md5(string_agg(t::text, ',' ORDER BY id)) FROM t", 'copied anew');
is(slots_of($pub), 's', 'no slot is left');

$sub->stop;
$pub->stop;
done_testing();
