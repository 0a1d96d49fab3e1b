# The record of conflicts.  What can go wrong: a row is missing, or is there for a
# transaction that was not committed; it is lost by a crash or lacks on a standby;
# a subscriber FOR ALL TABLES or a decoding tool sees the relations that hold it,
# also when they are emptied; readers hold up the apply worker; somebody reads rows
# of a table that he may not read.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $status = "wal_receiver_status_interval = 1s\n";
my $writer = krahodb_node('writer');
my $node = krahodb_node('node', conf => $status);
my $definition = q{
	CREATE TABLE item (id int PRIMARY KEY, code text UNIQUE, note text, big text);
	ALTER TABLE item ALTER big SET STORAGE EXTERNAL;
};

# STABLE names: the relations that hold the log
my $relations = join ', ', map { "'krahodb.conflict_log_$_'::regclass" } 1 .. 4;

sub sql { return $node->safe_psql('postgres', join("\n", @_)); }

sub wait_applied { wait_streams(1, [ $writer, 'sub' ]); return; }

# "local" first, then "remote", which is the later one; neither has seen the other.
sub conflict
{
	my ($local, $remote) = @_;

	sql('ALTER SUBSCRIPTION sub DISABLE');
	$node->poll_query_until('postgres',
		'SELECT count(*) = 0 FROM pg_stat_subscription WHERE pid IS NOT NULL')
	  or die 'timed out waiting for the worker to stop';
	sql($local);
	$writer->safe_psql('postgres', $remote);
	sql('ALTER SUBSCRIPTION sub ENABLE');
	wait_applied();
	return;
}

sub log_rows
{
	my ($columns, $where) = @_;
	return sql("SELECT $columns FROM (SELECT * FROM krahodb.conflict_log ORDER BY time) l WHERE " . ($where // 'true'));
}

$writer->safe_psql('postgres', $definition);
$writer->safe_psql('postgres', 'CREATE PUBLICATION pub FOR TABLE item');
$writer->safe_psql('postgres',
	"INSERT INTO item SELECT g, 'c' || g, 'start' FROM generate_series(1, 10) g");
sql($definition);
sql(sprintf(
		q{CREATE SUBSCRIPTION sub CONNECTION '%s' PUBLICATION pub WITH (origin = none)},
		connstr($writer)));
$node->wait_for_subscription_sync($writer, 'sub');

# ---- without the extension ---------------------------------------------------

conflict("UPDATE item SET note = 'node' WHERE id = 1",
	"UPDATE item SET note = 'writer' WHERE id = 1");
is(sql('SELECT note FROM item WHERE id = 1'), 'writer', 'a conflict is resolved without the extension');
sql('CREATE EXTENSION krahodb');
is(sql('SELECT subscription, schema, "table", type, applied, skipped, errors, last_time <= now() FROM krahodb.conflict_stats'),
	'sub|public|item|update_origin_differs|1|0|0|t',
	'it was counted');
is(log_rows('count(*)'), '0', 'and is not in the log');

# ---- who else decodes ----------------------------------------------------------

my $reader = stock_node('reader', conf => $status);
my $member = krahodb_node('member', conf => $status);
sql('CREATE PUBLICATION everything FOR ALL TABLES');
foreach my $plugin (qw(test_decoding pgoutput krahodb_output))
{
	sql("SELECT pg_create_logical_replication_slot('$plugin', '$plugin')");
}
foreach my $subscriber ($reader, $member)
{
	$subscriber->safe_psql('postgres', $definition);
	$subscriber->safe_psql('postgres',
		sprintf("CREATE SUBSCRIPTION from_node_%s CONNECTION '%s' PUBLICATION everything",
			$subscriber->name, connstr($node)));
	$subscriber->wait_for_subscription_sync($node, 'from_node_' . $subscriber->name);
}
my @streams = map { [ $node, 'from_node_' . $_->name ] } ($reader, $member);

# ---- each kind of outcome --------------------------------------------------------

# The worker is the same one as before CREATE EXTENSION.
my $pid = sql("SELECT pid FROM pg_stat_subscription WHERE subname = 'sub'");
sql("UPDATE item SET note = 'node' WHERE id = 2");
$writer->safe_psql('postgres', "UPDATE item SET note = 'writer' WHERE id = 2");
wait_applied();
is(sql("SELECT pid FROM pg_stat_subscription WHERE subname = 'sub'"), $pid, 'no restart');
is( log_rows(q{subscription, schema, "table", type, resolution, outcome, key, local_row ->> 'note',
		remote_row ->> 'note', applied_row, local_origin, local_time < remote_time, local_node <> remote_node,
		remote_lsn > '0/0', time <= now()}),
	'sub|public|item|update_origin_differs|last_update_wins|applied|{"id": 2}|node|writer|'
	  . '{"id": 2, "big": null, "code": "c2", "note": "writer"}||t|t|t|t',
	'an update that is applied');
is(sql('SELECT xmin FROM item WHERE id = 2'),
	sql('SELECT xmin FROM (' . join(' UNION ALL ', map { "SELECT xmin, * FROM krahodb.conflict_log_$_" } 1 .. 4) . ') l'),
	'its record is of the same transaction');

# The change is older than what is here.
sql('TRUNCATE item', "; INSERT INTO item VALUES (1, 'a', 'node'), (2, 'b', 'node')");
$writer->safe_psql('postgres', 'TRUNCATE item');
wait_applied();
sql("INSERT INTO item VALUES (1, 'a', 'node'), (2, 'b', 'node')");
sql('ALTER TABLE item SET (krahodb.conflict_resolution = keep_local)');
$writer->safe_psql('postgres', "INSERT INTO item VALUES (1, 'x', 'writer')");
wait_applied();
is( log_rows(q{outcome, resolution, local_row ->> 'note', remote_row, applied_row},
		"outcome = 'skipped'"),
	'skipped|keep_local|node|{"id": 1, "big": null, "code": "x", "note": "writer"}|',
	'a change that is skipped');
sql('ALTER TABLE item RESET (krahodb.conflict_resolution)');

# Several rows in the way; a large value.
$writer->safe_psql('postgres', "INSERT INTO item VALUES (3, 'b', 'writer', repeat('x', 20000))");
wait_applied();
is( log_rows(q{type, outcome, key, local_row ->> 'id', length(remote_row ->> 'big'), length(applied_row ->> 'big')},
		"type = 'insert_exists' AND outcome = 'applied'"),
	'insert_exists|applied|{"id": 3}|2|20000|20000',
	'a unique value that another row holds');
sql("INSERT INTO item VALUES (4, 'd', 'node'), (5, 'e', 'node')");
$writer->safe_psql('postgres', "DELETE FROM item; INSERT INTO item VALUES (4, 'e', 'writer')");
wait_applied();
is( log_rows(q{jsonb_typeof(local_row), outcome}, "type = 'insert_exists' AND key @> '{\"id\": 4}'"),
	"object|applied\nobject|applied",
	'one row for each conflict of a change');

# An administrator may have made indexes to search the log, of any kind; one of them has failed.
sql(qq{CREATE INDEX ON krahodb.conflict_log_$_ ((key ->> 'id')); CREATE INDEX ON krahodb.conflict_log_$_ ("time") WHERE outcome = 'error'})
  foreach 1 .. 4;
isnt($node->psql('postgres', 'CREATE UNIQUE INDEX CONCURRENTLY failed ON krahodb.conflict_log_1 (subid)'), 0, 'an index that cannot be unique');
is(sql("SELECT indisready FROM pg_index WHERE indexrelid = 'krahodb.failed'::regclass"), 'f', 'is left unfinished');

# An update does not send unchanged values that are stored out of line: they are fetched.
$writer->safe_psql('postgres', 'CREATE EXTENSION krahodb');
$writer->safe_psql('postgres', "INSERT INTO item VALUES (6, 'f', 'writer', repeat('y', 20000))");
wait_applied();
sql("UPDATE item SET note = 'node' WHERE id = 6");
$writer->safe_psql('postgres', "UPDATE item SET note = 'writer 2' WHERE id = 6");
wait_applied();
is( log_rows(q{length(local_row ->> 'big'), length(remote_row ->> 'big'), remote_row - 'big'},
		"key @> '{\"id\": 6}'"),
	'20000|20000|{"id": 6, "code": "f", "note": "writer 2"}',
	'remote_row has what was sent and what was fetched');
is( sql(q{SET enable_seqscan = off;},
		q{SELECT count(*) FROM krahodb.conflict_log_1 WHERE key ->> 'id' = '6';},
		q{SELECT count(*) FROM krahodb.conflict_log_1 WHERE outcome = 'error'}),
	"1\n0", 'an index on an expression has its record, one of other records has not');
sql('DROP INDEX krahodb.failed');

# ---- errors ------------------------------------------------------------------------

sql('ALTER SUBSCRIPTION sub SET (update_origin_differs = error)');
sql("UPDATE item SET note = 'node' WHERE id = 4");
$writer->safe_psql('postgres', "UPDATE item SET note = 'writer 2' WHERE id = 4");
$node->poll_query_until('postgres',
	"SELECT errors >= 3 FROM krahodb.conflict_stats WHERE type = 'update_origin_differs'")
  or die 'timed out waiting for errors';
is(log_rows('outcome, resolution, local_row IS NOT NULL, applied_row', "outcome = 'error'"),
	'error|error|t|', 'an error is in the log, once however often it is tried');
sql('ALTER SUBSCRIPTION sub SET (disable_on_error = true)');
$node->poll_query_until('postgres', "SELECT NOT subenabled FROM pg_subscription WHERE subname = 'sub'")
  or die 'timed out waiting for the subscription to be disabled';
is(log_rows('count(*)', "outcome = 'error'"), '1', 'disable_on_error: no second row of the same transaction');
sql("UPDATE item SET note = 'node 2' WHERE id = 4");
sql('ALTER SUBSCRIPTION sub SET (disable_on_error = false, update_origin_differs = default)',
	'; ALTER SUBSCRIPTION sub ENABLE');
wait_applied();

# A transaction that fails later leaves neither rows nor counts.
my $before = log_rows('count(*)');
my $counted = sql('SELECT sum(applied + skipped) FROM krahodb.conflict_stats');
sql("UPDATE item SET note = 'node' WHERE id IN (4, 6)", '; ALTER TABLE item ADD CHECK (note <> \'bad\')');
my $errors = sql("SELECT apply_error_count FROM pg_stat_subscription_stats WHERE subname = 'sub'");
$writer->safe_psql('postgres',
	"BEGIN; UPDATE item SET note = 'good' WHERE id = 4; UPDATE item SET note = 'bad' WHERE id = 6; COMMIT");
$node->poll_query_until('postgres',
	"SELECT apply_error_count > $errors FROM pg_stat_subscription_stats WHERE subname = 'sub'")
  or die 'timed out waiting for an error';
is(log_rows('count(*)'), $before, 'no row of a transaction that failed');
is(sql('SELECT sum(applied + skipped) FROM krahodb.conflict_stats'), $counted, 'and no count');
sql('ALTER TABLE item DROP CONSTRAINT item_note_check');
wait_applied();
is(log_rows('count(*)'), $before + 2, 'rows once it succeeds');

# ---- nobody sees it ----------------------------------------------------------------

sub nobody_sees_it
{
	my ($when) = @_;

	wait_streams(1, @streams);
	is(sql("SELECT string_agg(DISTINCT tablename, ',') FROM pg_publication_tables"), 'item', "$when: publications");
	foreach my $subscriber ($reader, $member)
	{
		my $name = $subscriber->name;

		is($subscriber->safe_psql('postgres', 'ALTER SUBSCRIPTION from_node_' . $name . ' REFRESH PUBLICATION;'
				  . "SELECT string_agg(srrelid::regclass::text, ',') FROM pg_subscription_rel"),
			'item', "$when: subscriber $name has no other table");
		is($subscriber->safe_psql('postgres', 'SELECT md5(string_agg(item::text, \',\' ORDER BY id)) FROM item'),
			sql('SELECT md5(string_agg(item::text, \',\' ORDER BY id)) FROM item'), "$when: $name has the rows");
		unlike(slurp_file($subscriber->logfile), qr/conflict_log/, "$when: nothing of it in the log of $name");
	}
	is( sql(q{SELECT DISTINCT split_part(data, ':', 1) FROM pg_logical_slot_get_changes('test_decoding', NULL, NULL)
		WHERE data !~ '^(BEGIN|COMMIT)' AND data !~ 'TRUNCATE'}),
		'table public.item', "$when: test_decoding");
	foreach my $plugin (qw(pgoutput krahodb_output))
	{
		is( sql(qq{SELECT count(*) > 0, count(*) FILTER (WHERE position('conflict_log'::bytea IN data) > 0)
			FROM pg_logical_slot_get_binary_changes('$plugin', NULL, NULL, 'proto_version', '1', 'publication_names', 'everything')}),
			't|0', "$when: $plugin");
	}
	return;
}
nobody_sees_it('after conflicts');

# ---- crash, standby -------------------------------------------------------------------

my $content = 'SELECT count(*), md5(string_agg(l::text, \',\' ORDER BY l::text)) FROM krahodb.conflict_log l';
my $rows = sql($content);
$node->backup('copy');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'copy', has_streaming => 1);
$standby->start;
is($standby->safe_psql('postgres', $content), $rows, 'a base backup has the log');
$node->stop('immediate');
$node->start;
is(sql($content), $rows, 'the log after a crash');
is(sql('SELECT count(*) FROM krahodb.conflict_stats'), '0', 'counters start at nothing again');

# ---- rotation ----------------------------------------------------------------------------

# Each round has a conflict; goes on until the condition holds.
my $round = 0;
my @times;

sub conflicts_until
{
	my ($condition) = @_;

	for (my $tries = 100 * $PostgreSQL::Test::Utils::timeout_default; $tries > 0; $tries--)
	{
		$round++;
		push @times, sql('SELECT extract(epoch FROM clock_timestamp())');
		sql("INSERT INTO item VALUES (100, 'r', 'node $round') ON CONFLICT (id) DO UPDATE SET note = EXCLUDED.note");
		$writer->safe_psql('postgres',
			"INSERT INTO item VALUES (100, 'r', 'writer $round') ON CONFLICT (id) DO UPDATE SET note = EXCLUDED.note");
		wait_applied();
		return if sql($condition) eq 't';
	}
	die "timed out waiting for: $condition";
}

# Rows that are older than the time to keep them go, in parts; no younger ones.
my $files = "SELECT array_agg(relfilenode ORDER BY oid) FROM pg_class WHERE oid IN ($relations)";
my $old = sql($files);
sql("ALTER SYSTEM SET krahodb.conflict_log_retention = '1s'", '; SELECT pg_reload_conf()');
conflicts_until("SELECT bool_and(a <> b) FROM unnest('$old'::oid[], ($files)) u (a, b)");
is(log_rows('count(*)', "key @> '{\"id\": 4}'"), '0', 'all parts of the log were emptied in turn');
is( sql(q[WITH young AS (SELECT now() - interval '1s' AS since)
	SELECT count(*) >= (SELECT count(*) FROM unnest('{] . join(',', @times) . q[}'::float8[]) t WHERE to_timestamp(t) > since)
	FROM young LEFT JOIN krahodb.conflict_log ON time > since GROUP BY since]),
	't', 'what is young enough is there');
nobody_sees_it('after rotation');
$node->wait_for_catchup($standby, 'replay', $node->lsn('insert'));
is($standby->safe_psql('postgres', $content), sql($content), 'the standby has the same log');
$node->stop('immediate');
$node->start;
conflicts_until("SELECT count(*) > 0 FROM krahodb.conflict_log");
nobody_sees_it('after rotation and a crash');

# A reader who does not end his transaction holds up nobody.
sql(q{BEGIN; SELECT count(*) FROM krahodb.conflict_log; PREPARE TRANSACTION 'reader'});
$old = sql($files);
conflicts_until("SELECT max(time) > min(time) + interval '2s' FROM krahodb.conflict_log");
is(sql($files), $old, 'nothing is emptied while it is being read, and applying goes on');
my ($out, $err);
$node->psql('postgres', 'SELECT krahodb.prune_conflict_log(now())', stdout => \$out, stderr => \$err);
like($err, qr/NOTICE:  \d+ parts? of the conflict log (was|were) in use/, 'prune_conflict_log says so');
is($out, '0', 'and leaves it alone');
sql("ROLLBACK PREPARED 'reader'");
conflicts_until("SELECT ($files) <> '$old'");
$rows = log_rows('count(*)');
$node->psql('postgres', 'SELECT max(krahodb.prune_conflict_log(now())) FROM krahodb.conflict_log', stdout => \$out, stderr => \$err);
like($err, qr/NOTICE:  \d+ parts? of the conflict log (was|were) in use/, 'a query that reads it cannot empty it');
unlike($err, qr/ERROR/, 'and goes on');
cmp_ok(log_rows('count(*)'), '>=', $rows, 'all rows are still there');
$node->psql('postgres', 'SET default_transaction_read_only = on; SELECT krahodb.prune_conflict_log(now())', stderr => \$err);
like($err, qr/ERROR:  cannot execute krahodb.prune_conflict_log\(\) in a read-only transaction/, 'not in a read-only transaction');
cmp_ok(sql('SELECT krahodb.prune_conflict_log(now())'), '>', 0, 'prune_conflict_log');
is(log_rows('count(*)'), '0', 'empties the log');
nobody_sees_it('after prune_conflict_log');

sql('ALTER SYSTEM SET krahodb.conflict_log_retention = 0', '; SELECT pg_reload_conf()');
$node->poll_query_until('postgres', "SELECT current_setting('krahodb.conflict_log_retention') = '0'");
sql('ALTER SUBSCRIPTION sub DISABLE', '; ALTER SUBSCRIPTION sub ENABLE');
conflicts_until("SELECT max(last_time) > now() - interval '1h' FROM krahodb.conflict_stats");
is(log_rows('count(*)'), '0', 'no log with retention 0');
sql('ALTER SYSTEM RESET krahodb.conflict_log_retention', '; SELECT pg_reload_conf()');
conflicts_until('SELECT count(*) > 0 FROM krahodb.conflict_log');

# ---- who may read ------------------------------------------------------------------------

sub as_user
{
	my ($user, $query) = @_;
	return sql("SET SESSION AUTHORIZATION $user;", $query);
}

sub refused
{
	my ($user, $query, $message, $name) = @_;
	my ($stdout, $stderr);
	$node->psql('postgres', "SET SESSION AUTHORIZATION $user; $query", stdout => \$stdout, stderr => \$stderr);
	like($stderr, qr/ERROR:  $message/, $name);
	return;
}
sql('CREATE ROLE nobody', '; CREATE ROLE watcher', '; GRANT pg_read_all_stats TO watcher');
my $count = 'SELECT count(*) > 0 FROM krahodb.conflict_log';
refused('nobody', $count, 'permission denied for view conflict_log', 'the log is not for everybody');
refused('watcher', 'SELECT * FROM krahodb.conflict_log_1', 'permission denied', 'nor what is below the view for anybody');
refused('watcher', 'SELECT krahodb.reset_conflict_stats()', 'permission denied', 'nor resetting counters');
refused('watcher', 'SELECT krahodb.prune_conflict_log(now())', 'permission denied', 'nor emptying the log');
is(as_user('nobody', 'SELECT count(*) > 0 FROM krahodb.conflict_stats'), 't', 'counters are');
is(as_user('watcher', $count), 'f', 'rows of a table that the reader may not read are hidden');
sql('GRANT SELECT (id) ON item TO watcher');
is(as_user('watcher', $count), 'f', 'also if he may read some columns');
sql('GRANT SELECT ON item TO watcher');
is(as_user('watcher', $count), 't', 'of one that he may read they are not');
sql('ALTER TABLE item ENABLE ROW LEVEL SECURITY');
is(as_user('watcher', $count), 'f', 'nor of one with row security for him');
sql('ALTER TABLE item DISABLE ROW LEVEL SECURITY');
sql(q{CREATE FUNCTION leak(jsonb) RETURNS bool LANGUAGE plpgsql COST 0.0001 AS
	$$ BEGIN RAISE NOTICE 'leaked %', $1; RETURN true; END $$});
sql('REVOKE SELECT ON item FROM watcher');
$node->psql('postgres', 'SET SESSION AUTHORIZATION watcher; SELECT * FROM krahodb.conflict_log WHERE leak(local_row)',
	stderr => \$err);
unlike($err, qr/leaked/, 'a function of the reader sees nothing of them');

sql('SELECT krahodb.reset_conflict_stats()');
is(sql('SELECT count(*) FROM krahodb.conflict_stats'), '0', 'reset_conflict_stats');
conflicts_until('SELECT count(*) > 0 FROM krahodb.conflict_stats');

# ---- dump, drop -----------------------------------------------------------------------------

my $dump = $node->basedir . '/dump.sql';
$node->command_ok([ 'pg_dump', '-f', $dump, '-d', $node->connstr('postgres'), '--no-publications', '--no-subscriptions' ],
	'pg_dump');
unlike(slurp_file($dump), qr/conflict_log/, 'a dump has nothing of the log but the extension');
sql('CREATE DATABASE restored');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, '-d', $node->connstr('restored') ], 'restore');
is($node->safe_psql('restored', 'SELECT count(*) FROM krahodb.conflict_log'), '0', 'restored empty');

sql('ALTER SUBSCRIPTION sub DISABLE', '; ALTER SUBSCRIPTION sub SET (slot_name = NONE)', '; DROP SUBSCRIPTION sub');
is(sql('SELECT count(*) FROM krahodb.conflict_stats'), '0', 'counters of a dropped subscription are gone');
sql('DROP TABLE item');
is(sql($count), 't', 'a superuser still reads what was recorded of a dropped table');
is(as_user('watcher', $count), 'f', 'others do not');
sql('DROP EXTENSION krahodb');
is(sql(q{SELECT count(*) FROM pg_class WHERE relname LIKE 'conflict\_%'}), '0', 'DROP EXTENSION leaves nothing');

# Relations of these names that are not the extension's are left alone.
sql(q{CREATE SCHEMA IF NOT EXISTS krahodb}, map { "; CREATE MATERIALIZED VIEW krahodb.conflict_log_$_ AS SELECT 1 AS a" } 1 .. 4);
sql($definition);
sql(sprintf(q{CREATE SUBSCRIPTION sub CONNECTION '%s' PUBLICATION pub WITH (origin = none, create_slot = false, copy_data = false)},
		connstr($writer)));
conflicts_until('SELECT count(*) > 0 FROM item');
conflicts_until("SELECT note LIKE 'writer%' FROM item WHERE id = 100");
is(sql(join ' UNION ALL ', map { "SELECT a FROM krahodb.conflict_log_$_" } 1 .. 4), "1\n1\n1\n1",
	'relations of others are not written to');

$_->stop foreach ($standby, $reader, $member, $node, $writer);
done_testing();
