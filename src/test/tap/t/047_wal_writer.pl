#
# The WAL writer of a subscriber is woken now and then, not by each transaction that is applied.
#
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use KrahoDB::Nodes;
use Test::More;

my $transactions = 5000;

my $publisher = krahodb_node('publisher');
my $subscriber = krahodb_node('subscriber');

$_->safe_psql('postgres', 'CREATE TABLE t (id int PRIMARY KEY, filler text)') foreach $publisher, $subscriber;
$publisher->safe_psql('postgres', <<'EOS');
CREATE PUBLICATION p FOR ALL TABLES;
CREATE PROCEDURE many(n int) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. n LOOP
		INSERT INTO t VALUES (i, repeat('x', 1000));
		COMMIT;
	END LOOP;
END $$;
EOS

# A wake-up by the timeout would look like one that was asked for.
$subscriber->append_conf('postgresql.conf', "wal_writer_delay = '10s'");
reload_settings($subscriber);
$subscriber->safe_psql('postgres',
	"CREATE SUBSCRIPTION s CONNECTION '" . connstr($publisher) . "' PUBLICATION p");
$subscriber->wait_for_subscription_sync($publisher, 's');

my $wal_writer =
  $subscriber->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'");

# How often has it gone to sleep?
sub sleeps
{
	return slurp_file("/proc/$wal_writer/status") =~ /^voluntary_ctxt_switches:\s+(\d+)/m ? $1 : die 'no counter';
}

# Each of the transactions fills a page of WAL and more, so PostgreSQL 15 would wake it for each.
$subscriber->safe_psql('postgres', 'ALTER SUBSCRIPTION s DISABLE');
$publisher->safe_psql('postgres', "SET synchronous_commit = off; CALL many($transactions)");
my $before = sleeps();
$subscriber->safe_psql('postgres', 'ALTER SUBSCRIPTION s ENABLE');
$publisher->wait_for_catchup('s');
my $sleeps = sleeps() - $before;
note("the WAL writer slept $sleeps times");
cmp_ok($sleeps, '>', 0, 'the WAL writer is woken while transactions are applied');
cmp_ok($sleeps, '<', $transactions / 20, 'but not for each of them');

done_testing();
