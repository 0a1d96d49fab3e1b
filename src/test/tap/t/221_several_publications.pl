# What goes wrong here: one publication publishes a partitioned table as a whole, another one a
# partition of it, and somebody subscribes to both.  Changes come as those of the whole table.
# Rows that are copied for the partition as well come twice: where the tables are partitioned
# alike the copy fails for good.  Or one publishes a table, and another one all columns of it, by
# name: that is the same, also if there are columns that were dropped.  Where nothing is copied, the
# publisher's horizon is held all the same, for as long as the worker is there.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $publisher = krahodb_node('publisher');
my $subscriber = krahodb_node('subscriber');
my $peer = krahodb_node('peer');

$_->safe_psql('postgres', q{
	CREATE EXTENSION krahodb;
	CREATE TABLE whole (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
	CREATE TABLE part PARTITION OF whole FOR VALUES FROM (0) TO (10);
	CREATE TABLE rest PARTITION OF whole DEFAULT}) foreach $publisher, $subscriber;
$publisher->safe_psql('postgres', q{
	CREATE PUBLICATION as_whole FOR TABLE whole WITH (publish_via_partition_root);
	CREATE PUBLICATION as_part FOR TABLE part;
	INSERT INTO whole VALUES (1, 'copied'), (11, 'copied')});

$peer->safe_psql('postgres', 'CREATE EXTENSION krahodb; CREATE PUBLICATION nothing');
$publisher->safe_psql('postgres', "CREATE SUBSCRIPTION peer CONNECTION '" . connstr($peer) . "' PUBLICATION nothing WITH (origin = none)");

foreach my $options ('origin = any', 'origin = none')
{
	my $offset = -s $subscriber->logfile;

	$subscriber->safe_psql('postgres', 'TRUNCATE whole');
	arm_fault($subscriber, 'sync_before_syncwait=wait');
	reload_settings($subscriber);
	$subscriber->safe_psql('postgres', "CREATE SUBSCRIPTION sub CONNECTION '" . connstr($publisher)
		  . "' PUBLICATION as_whole, as_part WITH ($options)");
	$subscriber->wait_for_log(qr/(?:fault point "sync_before_syncwait" reached.*){2}/s, $offset);
	wait_horizon($publisher);
	disarm_fault($subscriber);
	reload_settings($subscriber);
	$subscriber->wait_for_subscription_sync($publisher, 'sub');
	is_equal_on([ $publisher, $subscriber ], 'SELECT * FROM whole ORDER BY id', "copied ($options)");
	$publisher->safe_psql('postgres', "INSERT INTO whole VALUES (2, 'streamed'); UPDATE whole SET v = '$options' WHERE id <> 2");
	$publisher->wait_for_catchup('sub');
	is_equal_on([ $publisher, $subscriber ], 'SELECT * FROM whole ORDER BY id', "streamed ($options)");
	is($subscriber->safe_psql('postgres', 'SELECT sync_error_count FROM pg_stat_subscription_stats'), '0',
		"nothing has failed ($options)");
	$subscriber->safe_psql('postgres', 'DROP SUBSCRIPTION sub');
	$publisher->safe_psql('postgres', 'DELETE FROM whole WHERE id = 2');
}

# By itself the partition is copied.
$subscriber->safe_psql('postgres', 'TRUNCATE whole');
$subscriber->safe_psql('postgres', "CREATE SUBSCRIPTION sub CONNECTION '" . connstr($publisher) . "' PUBLICATION as_part");
$subscriber->wait_for_subscription_sync($publisher, 'sub');
is($subscriber->safe_psql('postgres', 'SELECT id FROM whole'), '1', 'a partition that is published by itself is copied');

$subscriber->safe_psql('postgres', 'DROP SUBSCRIPTION sub');

# ---- a root that gets another name --------------------------------------------------------

$subscriber->safe_psql('postgres', 'TRUNCATE whole; CREATE TABLE renamed (LIKE whole)');
$publisher->safe_psql('postgres', 'TRUNCATE whole');
$subscriber->safe_psql('postgres', "CREATE SUBSCRIPTION sub CONNECTION '" . connstr($publisher) . "' PUBLICATION as_whole");
$subscriber->wait_for_subscription_sync($publisher, 'sub');
$publisher->safe_psql('postgres', "INSERT INTO whole VALUES (1, 'before'); ALTER TABLE whole RENAME TO renamed; INSERT INTO renamed VALUES (2, 'after')");
$publisher->wait_for_catchup('sub');
is($subscriber->safe_psql('postgres', 'SELECT * FROM whole'), '1|before', 'nothing comes to the table that has the old name here');
$subscriber->safe_psql('postgres', 'ALTER SUBSCRIPTION sub REFRESH PUBLICATION');
$subscriber->wait_for_subscription_sync($publisher, 'sub');
is_equal_on([ $publisher, $subscriber ], 'SELECT * FROM renamed ORDER BY id', 'it comes to the one that has the new one');
$subscriber->safe_psql('postgres', 'DROP SUBSCRIPTION sub');

# ---- a list of all columns, and none ------------------------------------------------------

$publisher->safe_psql('postgres', q{
	CREATE TABLE shrunk (id int PRIMARY KEY, gone int, v text);
	ALTER TABLE shrunk DROP gone;
	CREATE PUBLICATION listed FOR TABLE shrunk (id, v);
	CREATE PUBLICATION unlisted FOR TABLE shrunk;
	INSERT INTO shrunk VALUES (1, 'copied')});
$subscriber->safe_psql('postgres', 'CREATE TABLE shrunk (id int PRIMARY KEY, v text)');
$subscriber->safe_psql('postgres', "CREATE SUBSCRIPTION sub CONNECTION '" . connstr($publisher) . "' PUBLICATION listed, unlisted");
$subscriber->wait_for_subscription_sync($publisher, 'sub');
$publisher->safe_psql('postgres', "INSERT INTO shrunk VALUES (2, 'streamed')");
$publisher->wait_for_catchup('sub');
is($subscriber->safe_psql('postgres', 'SELECT * FROM shrunk ORDER BY id'), "1|copied\n2|streamed",
	'a list of all columns is no list');

done_testing();
