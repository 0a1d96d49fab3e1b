# What goes wrong here: a walsender comes to the end of the log while its subscriber, which
# waits for a lock, does not take what is sent.  The last transactions are then still in
# the connection's buffer, and once they are gone nobody writes any more.  The walsender
# must call itself "streaming" all the same, or commits that wait for this subscriber wait
# until somebody else writes.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $a = krahodb_node('a', conf => "wal_sender_timeout = 0\n");
my $b = krahodb_node('b', conf => "wal_receiver_timeout = 0\n");

$_->safe_psql('postgres', 'CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (0)') foreach $a, $b;
$a->safe_psql('postgres', 'CREATE PUBLICATION p FOR TABLE t');
$b->safe_psql('postgres', q{CREATE SUBSCRIPTION s CONNECTION '} . connstr($a) . q{' PUBLICATION p WITH (copy_data = false)});
wait_streams(1, [ $a, 's' ]);

my $session = $b->background_psql('postgres');
my $id = 0;

# What fits into the socket is the system's business, so several sizes are tried: the last
# one or two transactions are those that may not fit.
foreach my $size (map { 40 * $_ } 1 .. 12)
{
	my ($state, $sent);

	pause_subscription($b, 's');
	$a->safe_psql('postgres', join "\n", q{UPDATE t SET v = 'first' WHERE id = 0;},
		map { $id++; "INSERT INTO t SELECT $id, string_agg(md5(($id * 1000 + g)::text), '') FROM generate_series(1, 640) g;" } 1 .. $size / 20);
	$session->query_safe('BEGIN; SELECT FROM t WHERE id = 0 FOR UPDATE');
	$b->safe_psql('postgres', 'ALTER SUBSCRIPTION s ENABLE');
	$b->poll_query_until('postgres',
		q{SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted})
	  or die 'nobody waits for the lock';
	# It has come to where it can come to: the end, or a full socket.
	$a->poll_query_until('postgres',
		q{SELECT wait_event IN ('WalSenderWaitForWAL', 'WalSenderWriteData', 'WalSenderMain') FROM pg_stat_activity WHERE backend_type = 'walsender'})
	  or die 'the walsender does not wait';
	$session->query_safe('COMMIT');
	$a->poll_query_until('postgres',
		q{SELECT replay_lsn >= pg_current_wal_insert_lsn() FROM pg_stat_replication WHERE application_name = 's'})
	  or die 'changes do not arrive';
	is($a->safe_psql('postgres', q{SELECT state FROM pg_stat_replication WHERE application_name = 's'}),
		'streaming', "after a backlog of $size kB");
}
$session->quit;

is($b->safe_psql('postgres', 'SELECT count(*) FROM t'), $id + 1, 'all rows are there');
$_->stop foreach $b, $a;
done_testing();
