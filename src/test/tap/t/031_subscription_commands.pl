# What goes wrong here: a subscription that is made although its publisher cannot
# do what it asks for, one that fails and leaves a slot behind, and an option that
# is changed while a worker goes on with the old one.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $pub = krahodb_node('pub');
my $sub = krahodb_node('sub');
my $stock = stock_node('stock');

foreach my $node ($pub, $sub, $stock)
{
	$node->safe_psql('postgres', 'CREATE TABLE t (a int PRIMARY KEY, b text)');
	$node->safe_psql('postgres', 'CREATE PUBLICATION p FOR TABLE t');
}
$sub->safe_psql('postgres', 'CREATE EXTENSION krahodb');

# CREATE SUBSCRIPTION s must fail, and leave nothing on either side.
sub create_fails
{
	my ($publisher, $options, $error, $name, $keeps_slots) = @_;
	my $connstr = connstr($publisher);
	my (undef, undef, $stderr) = $sub->psql('postgres',
		"CREATE SUBSCRIPTION s CONNECTION '$connstr' PUBLICATION p WITH ($options)");

	like($stderr, $error, $name);
	is(slots_of($publisher), $keeps_slots || '', "$name: no slot");
	is($sub->safe_psql('postgres', q{
			SELECT (SELECT count(*) FROM pg_subscription), (SELECT count(*) FROM pg_shseclabel),
				(SELECT count(*) FROM pg_replication_origin)}),
		'0|0|0', "$name: nothing here");
	return;
}

# ---- what the publisher is ----------------------------------------------------

create_fails($stock, 'filter_origins = 2, replication_origin_id = 7',
	qr/the publisher cannot filter changes by replication origin.*needs a KrahoDB server.*HINT/s,
	'filter_origins on a stock publisher');
create_fails($stock, 'origin = none',
	qr/the publisher cannot filter changes by replication origin.*or PostgreSQL 16 or later/s,
	'origin = none on a stock publisher');

$pub->append_conf('postgresql.conf', "output_plugin_libraries = 'pgoutput'");
reload_settings($pub);
$pub->poll_query_until('postgres', "SELECT current_setting('output_plugin_libraries') = 'pgoutput'")
  or die 'setting not in effect';
create_fails($pub, 'origin = any',
	qr/does not allow output plugin "krahodb_output".*HINT:.*output_plugin_libraries = 'pgoutput, test_decoding, krahodb_output'/s,
	'a publisher that does not allow the plugin');
$pub->safe_psql('postgres', 'CREATE ROLE replicator LOGIN REPLICATION; GRANT SELECT ON t TO replicator');
my (undef, undef, $refused) = $sub->psql('postgres',
	"CREATE SUBSCRIPTION s CONNECTION '" . connstr($pub) . " user=replicator' PUBLICATION p");
like($refused, qr/does not allow output plugin "krahodb_output".*HINT:.*output_plugin_libraries = /s,
	'the same for a role that may not read the setting');
$pub->adjust_conf('postgresql.conf', 'output_plugin_libraries', "'pgoutput, krahodb_output'");
reload_settings($pub);
$pub->poll_query_until('postgres', "SELECT current_setting('output_plugin_libraries') ~ 'krahodb'")
  or die 'setting not in effect';

$pub->safe_psql('postgres', "SELECT pg_create_logical_replication_slot('by_hand', 'pgoutput')");
create_fails($pub, "filter_origins = 2, slot_name = 'by_hand', create_slot = false",
	qr/replication slot "by_hand" cannot filter changes by replication origin/,
	'a slot of another plugin', 'by_hand');

# Without a filter that slot is as good as any.
my $pub_connstr = connstr($pub);
$sub->safe_psql('postgres', qq{
	CREATE SUBSCRIPTION s CONNECTION '$pub_connstr' PUBLICATION p
		WITH (slot_name = 'by_hand', create_slot = false)});
$sub->wait_for_subscription_sync($pub, 's');
$pub->safe_psql('postgres', "INSERT INTO t VALUES (1, 'by hand')");
$pub->wait_for_catchup('s');
is($sub->safe_psql('postgres', 'SELECT b FROM t'), 'by hand', 'a slot of pgoutput on a KrahoDB publisher');

# Asked for later, the filter stops the worker with an error that says why.
my $offset = -s $sub->logfile;
$sub->safe_psql('postgres', 'ALTER SUBSCRIPTION s SET (origin = none)');
ok($sub->wait_for_log(qr/ERROR:  replication slot "by_hand" cannot filter changes/, $offset),
	'the worker refuses a filter that its slot cannot do');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION s');
is($sub->safe_psql('postgres', 'SELECT count(*) FROM pg_shseclabel'), '0', 'no label left');

# ---- as a role that can do no more than replicate ------------------------------

$sub->safe_psql('postgres', qq{
	TRUNCATE t;
	CREATE SUBSCRIPTION s CONNECTION '$pub_connstr user=replicator' PUBLICATION p
		WITH (origin = none, replication_origin_id = 7)});
$sub->wait_for_subscription_sync($pub, 's');
is($pub->safe_psql('postgres', 'SELECT plugin FROM pg_replication_slots WHERE plugin IS NOT NULL'), 'krahodb_output',
	'between KrahoDB servers the slot is of KrahoDB');
is($sub->safe_psql('postgres', "SELECT replication_origin_id, conflict_resolution FROM krahodb.subscriptions"),
	'7|last_update_wins', 'the chosen origin id');

# ---- origin ids of transactions in progress ------------------------------------

my $session = $sub->background_psql('postgres', on_error_die => 1);
$session->query_safe(q{
	BEGIN;
	SET client_min_messages = error;
	CREATE SUBSCRIPTION in_progress CONNECTION 'dbname=none' PUBLICATION p
		WITH (connect = false, slot_name = NONE, replication_origin_id = 9);
});
my (undef, undef, $stderr) = $sub->psql('postgres', q{
	CREATE SUBSCRIPTION too_late CONNECTION 'dbname=none' PUBLICATION p
		WITH (connect = false, slot_name = NONE, replication_origin_id = 9)});
like($stderr, qr/replication origin id 9 is already in use/, 'an id of a transaction in progress');
$session->query_safe('ROLLBACK');
$session->quit;
$sub->safe_psql('postgres', q{
	CREATE SUBSCRIPTION in_time CONNECTION 'dbname=none' PUBLICATION p
		WITH (connect = false, slot_name = NONE, replication_origin_id = 9);
	DROP SUBSCRIPTION in_time});

# ---- options of a running subscription ------------------------------------------

# A conflict on key $key, with the local row "local"; returns what is left.
sub conflict
{
	my ($key) = @_;

	$sub->safe_psql('postgres', "INSERT INTO t VALUES ($key, 'local')");
	$pub->safe_psql('postgres', "INSERT INTO t VALUES ($key, 'remote')");
	$pub->wait_for_catchup('s');
	return $sub->safe_psql('postgres', "SELECT b FROM t WHERE a = $key");
}

is(conflict(10), 'remote', 'last_update_wins by default with origin = none');
$sub->safe_psql('postgres', 'ALTER SUBSCRIPTION s SET (conflict_resolution = keep_local)');
is(conflict(11), 'local', 'ALTER SUBSCRIPTION reaches the worker');
$sub->safe_psql('postgres', 'ALTER TABLE t SET (krahodb.conflict_resolution = apply_remote)');
is(conflict(12), 'remote', 'ALTER TABLE reaches the worker');
$sub->safe_psql('postgres', 'ALTER TABLE t RESET (krahodb.conflict_resolution)');
is(conflict(13), 'local', 'and back');
$sub->safe_psql('postgres',
	q(SECURITY LABEL FOR krahodb ON SUBSCRIPTION s IS '{"insert_exists": "apply_remote"}'));
is(conflict(14), 'remote', 'SECURITY LABEL reaches the worker');
$sub->safe_psql('postgres', q(SECURITY LABEL FOR krahodb ON TABLE t IS '{"conflict_resolution": "keep_local"}'));
is(conflict(15), 'local', 'of a table too');
(undef, undef, $stderr) = $sub->psql('postgres',
	q(SECURITY LABEL FOR krahodb ON SUBSCRIPTION s IS '{"replication_origin_id": "8"}'));
like($stderr, qr/cannot change "replication_origin_id" of a subscription/,
	'a label cannot change the origin id of a subscription in use');

# ---- copied rows of other origins -----------------------------------------------

my $sub_connstr = connstr($sub);
(undef, undef, $stderr) = $pub->psql('postgres', qq{
	CREATE SUBSCRIPTION back CONNECTION '$sub_connstr' PUBLICATION p
		WITH (origin = none, enabled = false)});
like($stderr, qr/WARNING:  subscription "back" requested copy_data with origin = NONE but might copy data that had a different origin/,
	'warning about copied data');
like($stderr, qr/subscribes to a publication \("p"\) that contains tables/, 'with the publication');
$pub->safe_psql('postgres', 'DROP SUBSCRIPTION back');
(undef, undef, $stderr) = $pub->psql('postgres', qq{
	CREATE SUBSCRIPTION back CONNECTION '$sub_connstr' PUBLICATION p
		WITH (origin = none, copy_data = false)});
unlike($stderr, qr/WARNING/, 'no warning without copy_data');
$sub->safe_psql('postgres', 'CREATE TABLE t2 (a int PRIMARY KEY)');
$pub->safe_psql('postgres', 'CREATE TABLE t2 (a int PRIMARY KEY)');
$sub->safe_psql('postgres', 'ALTER PUBLICATION p ADD TABLE t2');
(undef, undef, $stderr) = $pub->psql('postgres', 'ALTER SUBSCRIPTION back REFRESH PUBLICATION');
unlike($stderr, qr/WARNING/, 'no warning for a table that nobody else writes to');

# Somebody else writes to a partition; what is published is the whole table, the partition
# below that partition, or another partition.
$pub->safe_psql('postgres', q{
	CREATE TABLE half (a int PRIMARY KEY);
	CREATE TABLE whole (a int PRIMARY KEY);
	CREATE TABLE quarter (a int PRIMARY KEY);
	CREATE TABLE other_half (a int PRIMARY KEY);
	CREATE PUBLICATION half FOR TABLE half});
$sub->safe_psql('postgres', qq{
	CREATE TABLE whole (a int PRIMARY KEY) PARTITION BY RANGE (a);
	CREATE TABLE half PARTITION OF whole FOR VALUES FROM (0) TO (2) PARTITION BY RANGE (a);
	CREATE TABLE quarter PARTITION OF half FOR VALUES FROM (0) TO (1);
	CREATE TABLE other_half PARTITION OF whole FOR VALUES FROM (2) TO (4);
	CREATE PUBLICATION whole FOR TABLE whole WITH (publish_via_partition_root);
	CREATE PUBLICATION quarter FOR TABLE quarter;
	CREATE PUBLICATION other_half FOR TABLE other_half;
	CREATE SUBSCRIPTION half CONNECTION '$pub_connstr' PUBLICATION half WITH (enabled = false)});
foreach my $case ([ whole => 1 ], [ quarter => 1 ], [ other_half => 0 ])
{
	my ($publication, $warns) = @$case;

	(undef, undef, $stderr) = $pub->psql('postgres', qq{
		CREATE SUBSCRIPTION $publication CONNECTION '$sub_connstr' PUBLICATION $publication
			WITH (origin = none, enabled = false)});
	is($stderr =~ /WARNING:  subscription "$publication" requested copy_data with origin = NONE/ ? 1 : 0, $warns,
		"a partition that somebody else writes to, and \"$publication\" is copied");
	$pub->safe_psql('postgres', "DROP SUBSCRIPTION $publication");
}
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION half');

# ---- without commit timestamps ---------------------------------------------------

$sub->append_conf('postgresql.conf', 'track_commit_timestamp = off');
$sub->restart;
(undef, undef, $stderr) = $sub->psql('postgres', 'ALTER SUBSCRIPTION s SET (conflict_resolution = last_update_wins)');
like($stderr, qr/WARNING:  conflicts of subscription "s" cannot be detected.*"track_commit_timestamp" is off/s,
	'warning without commit timestamps');
(undef, undef, $stderr) = $sub->psql('postgres',
	'ALTER SUBSCRIPTION s SET (origin = any, conflict_resolution = default, insert_exists = default)');
unlike($stderr, qr/WARNING/, 'no warning if nothing needs them');

# ---- with a setting that lets vacuum pass the horizon ------------------------------

$sub->append_conf('postgresql.conf', "track_commit_timestamp = on\nold_snapshot_threshold = 1h");
my $log_offset = -s $sub->logfile;
$sub->restart;
(undef, undef, $stderr) = $sub->psql('postgres', 'ALTER SUBSCRIPTION s SET (conflict_resolution = last_update_wins)');
like($stderr, qr/WARNING:  deleted rows are not kept for resolving conflicts of subscription "s".*"old_snapshot_threshold" lets vacuum/s,
	'warning with old_snapshot_threshold');
$sub->wait_for_log(qr/WARNING:.*deleted rows are not kept for resolving conflicts because "old_snapshot_threshold" is set/, $log_offset);
(undef, undef, $stderr) = $sub->psql('postgres', 'ALTER SUBSCRIPTION s SET (conflict_resolution = default)');
unlike($stderr, qr/WARNING/, 'no warning if no deleted rows are needed');

done_testing();
