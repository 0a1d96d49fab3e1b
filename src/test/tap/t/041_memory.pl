# Memory of an apply worker, over many transactions and in a long one.
#
# What goes wrong here: something is allocated for each transaction, or for each
# change, in a context that lives longer; or an entry is kept for each commit until
# the publisher asks.  A worker runs for months, so a few bytes each are enough to
# kill the server.  What is measured is the total of the worker's memory contexts,
# which it logs itself, and its private memory as the system sees it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/..";

use KrahoDB::Nodes;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $transactions = 200_000;
my $changes = 100_000;

my $publisher = krahodb_node('publisher',
	conf => "fsync = off\nsynchronous_commit = off\nlogical_decoding_work_mem = 1MB\nlog_statement = none\nshared_buffers = 64MB\nmax_wal_size = 4GB");
my $subscriber = krahodb_node('subscriber',
	conf => "fsync = off\nlog_statement = none\nshared_buffers = 64MB\nmax_wal_size = 4GB");

# ---- measuring ----------------------------------------------------------------

sub apply_worker
{
	return $subscriber->safe_psql('postgres',
		"SELECT pid FROM pg_stat_subscription WHERE subname = 'sub' AND relid IS NULL");
}

# kB that only the process uses; 0 where the system does not tell.
sub private_memory
{
	my ($pid) = @_;
	my $status = "/proc/$pid/status";

	return 0 unless -r $status;
	return slurp_file($status) =~ /^RssAnon:\s*(\d+) kB/m ? $1 : 0;
}

# ($bytes in contexts, $kB private) of the apply worker.
sub memory
{
	my $pid = apply_worker();
	my $logstart = -s $subscriber->logfile;
	my $total = qr/Grand total: (\d+) bytes/;

	$subscriber->safe_psql('postgres', "SELECT pg_log_backend_memory_contexts($pid)");
	$subscriber->wait_for_log($total, $logstart);
	slurp_file($subscriber->logfile, $logstart) =~ $total;
	return ($1, private_memory($pid));
}

# The second measurement is not above the first by more than that.
sub check_growth
{
	my ($name, $before, $after, $bytes, $kb) = @_;

	note sprintf '%s: contexts %d -> %d bytes, private %d -> %d kB', $name,
	  $before->[0], $after->[0], $before->[1], $after->[1];
	cmp_ok($after->[0] - $before->[0], '<=', $bytes, "$name: memory contexts do not grow");
	cmp_ok($after->[1] - $before->[1], '<=', $kb, "$name: private memory does not grow");
	return;
}

# ---- many transactions ----------------------------------------------------------

my $schema = <<'EOF';
CREATE TABLE keyed (id int PRIMARY KEY, n int, t text);
CREATE TABLE other_key (id int PRIMARY KEY, u int UNIQUE);
CREATE TABLE keyless (id int, t text);
ALTER TABLE keyless REPLICA IDENTITY FULL;
CREATE TABLE parted (id int PRIMARY KEY, t text) PARTITION BY HASH (id);
CREATE TABLE parted_0 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 1);
EOF

$publisher->safe_psql('postgres', $schema);
$publisher->safe_psql('postgres', <<'EOF');
INSERT INTO keyed SELECT i, 0, repeat('x', 100) FROM generate_series(0, 99) i;
INSERT INTO other_key SELECT i, i FROM generate_series(0, 99) i;
CREATE PUBLICATION pub FOR ALL TABLES WITH (publish_via_partition_root = true);
CREATE PROCEDURE load(first int, last int) LANGUAGE plpgsql AS $$
BEGIN
  FOR i IN first .. last LOOP
    CASE i % 8
      WHEN 0 THEN INSERT INTO keyless VALUES (i, 'x');
      WHEN 1 THEN DELETE FROM keyless;
      WHEN 2 THEN INSERT INTO parted VALUES (i, 'x');
      WHEN 3 THEN DELETE FROM parted WHERE id = i - 1;
      WHEN 4 THEN UPDATE other_key SET u = u + 100 WHERE id = i % 100;
      ELSE UPDATE keyed SET n = n + 1, t = md5(i::text) WHERE id = i % 100;
    END CASE;
    COMMIT;
  END LOOP;
END $$;
EOF
$subscriber->safe_psql('postgres', $schema);
$subscriber->safe_psql('postgres',
	"CREATE SUBSCRIPTION sub CONNECTION '" . connstr($publisher)
	  . "' PUBLICATION pub WITH (streaming = on)");
$subscriber->wait_for_subscription_sync($publisher, 'sub');

my $contents = <<'EOF';
SELECT (SELECT md5(string_agg(k::text, ',' ORDER BY id)) FROM keyed k),
  (SELECT md5(string_agg(k::text, ',' ORDER BY id)) FROM other_key k),
  (SELECT count(*) FROM keyless), (SELECT count(*) FROM parted)
EOF

sub run_load
{
	my ($first, $last) = @_;

	$publisher->safe_psql('postgres', "CALL load($first, $last)");
	$publisher->wait_for_catchup('sub');
	return;
}

my $pid = apply_worker();
my $warm = $transactions / 10;
run_load(1, $warm);
my @before = memory();
run_load($warm + 1, $transactions);
my @after = memory();
is(apply_worker(), $pid, "one worker applied $transactions transactions");
check_growth("$transactions transactions", \@before, \@after, 64 * 1024, 1024);
is_equal_on([ $publisher, $subscriber ], $contents, 'the rows');
my ($there, $here) = map { $_->safe_psql('postgres', "SELECT pg_relation_size('keyed')") } $publisher, $subscriber;
cmp_ok($here, '<=', 2 * $there, 'the file of a table whose rows are updated again and again does not grow');

# ---- one long transaction -------------------------------------------------------

# Measured at two changes of it, where the worker is made to wait.
sub memory_at
{
	my ($change) = @_;
	my $logstart = -s $subscriber->logfile;

	arm_fault($subscriber, "apply_change\@$change=wait");
	reload_settings($subscriber);
	return $logstart;
}

sub check_long_transaction
{
	my ($name, $sql) = @_;
	my $early = int($changes / 10);
	my $late = $changes - $early;
	my $reached = qr/fault point "apply_change" reached: wait/;

	my $logstart = memory_at($early);
	$publisher->safe_psql('postgres', $sql);
	$subscriber->wait_for_log($reached, $logstart);
	my @first = memory();
	$logstart = memory_at($late);
	$subscriber->wait_for_log($reached, $logstart);
	my @second = memory();
	disarm_fault($subscriber);
	reload_settings($subscriber);
	$publisher->wait_for_catchup('sub');
	check_growth("$name, change $early to $late", \@first, \@second, 64 * 1024, 1024);
	return;
}

sub restart_worker
{
	my $old = apply_worker();

	$subscriber->safe_psql('postgres', "SELECT pg_terminate_backend($old)");
	$subscriber->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_stat_subscription
		 WHERE subname = 'sub' AND pid <> $old")
	  or die 'no new worker';
	return;
}

my %statement = (
	inserts => "INSERT INTO keyed SELECT 1000 + i, i, 'x' FROM generate_series(1, $changes) i",
	updates => "UPDATE keyed SET n = n + 1, t = 'y' || id WHERE id > 1000",
	deletes => 'DELETE FROM keyed WHERE id > 1000');

foreach my $resolver ('', 'last_update_wins')
{
	foreach my $streamed ('off', 'on')
	{
		$subscriber->safe_psql('postgres', "ALTER SUBSCRIPTION sub SET (streaming = $streamed)");
		$subscriber->safe_psql('postgres',
			"ALTER SUBSCRIPTION sub SET (conflict_resolution = '$resolver')")
		  if $resolver;
		foreach my $kind (qw(inserts updates deletes))
		{
			restart_worker();
			check_long_transaction(
				"$changes $kind, streaming $streamed, " . ($resolver || 'no resolver'),
				$statement{$kind});
		}
	}
}
is_equal_on([ $publisher, $subscriber ], $contents, 'the rows');

$subscriber->stop;
$publisher->stop;
done_testing();
