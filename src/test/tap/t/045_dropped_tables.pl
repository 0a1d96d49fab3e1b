# Tables that come and go at the subscriber, while one worker goes on for months.
# What goes wrong here: what the worker has made of a table is kept when it is dropped.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $publisher = krahodb_node('publisher', conf => "fsync = off\nlog_statement = none\n");
my $subscriber = krahodb_node('subscriber', conf => "fsync = off\nlog_statement = none\nmax_locks_per_transaction = 256\n");

$publisher->safe_psql('postgres', 'CREATE TABLE event (day int, id int, PRIMARY KEY (day, id)); CREATE PUBLICATION pub FOR TABLE event');
$subscriber->safe_psql('postgres',
	"CREATE TABLE event (day int, id int, PRIMARY KEY (day, id)) PARTITION BY LIST (day); CREATE SUBSCRIPTION sub CONNECTION '"
	  . connstr($publisher) . "' PUBLICATION pub");
$subscriber->wait_for_subscription_sync($publisher, 'sub');

# A hundred partitions are written to and dropped.
my $day = 0;
sub a_hundred_days
{
	my $first = $day + 1;
	my $last = $day += 100;
	my $each = sub { return "DO \$\$ BEGIN FOR i IN $first..$last LOOP EXECUTE format('$_[0]', i); END LOOP; END \$\$"; };

	$subscriber->safe_psql('postgres', $each->('CREATE TABLE event_%1$s PARTITION OF event FOR VALUES IN (%1$s)'));
	$publisher->safe_psql('postgres', "INSERT INTO event SELECT i, 1 FROM generate_series($first, $last) i");
	$publisher->wait_for_catchup('sub');
	$subscriber->safe_psql('postgres', $each->('DROP TABLE event_%1$s'));
	return;
}

sub memory
{
	my $logstart = -s $subscriber->logfile;
	my $total = qr/Grand total: (\d+) bytes/;

	$subscriber->safe_psql('postgres',
		"SELECT pg_log_backend_memory_contexts(pid) FROM pg_stat_subscription WHERE relid IS NULL");
	$subscriber->wait_for_log($total, $logstart);
	slurp_file($subscriber->logfile, $logstart) =~ $total;
	return $1;
}

a_hundred_days() for 1 .. 4;
my $before = memory();
a_hundred_days() for 1 .. 6;
my $growth = memory() - $before;
note "$growth bytes";
cmp_ok($growth, '<', 4 * 1024 * 1024, 'the worker does not keep what it has made of dropped tables');

done_testing();
