# What goes wrong here: a table is copied in ranges by several processes, each range in
# a transaction of its own, while its rows change, move and go; processes and servers
# die in the middle.  At the end the table must be the publisher's, row for row, and
# what had been copied and is still right must not have been copied again.

use strict;
use warnings;

use KrahoDB::Copy;
use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

start_nodes();

# Many ranges, of 8 pages each.
my $rows = 20000;
my $columns = 'id int, v int, pad text, at timestamptz';
my $fill = "SELECT g, 0, 'row ' || g || repeat('x', 80), now() FROM generate_series(1, $rows) g";

sub make_table
{
	my ($name, $constraint) = @_;

	foreach my $node ($pub, $sub)
	{
		$node->safe_psql('postgres', "CREATE TABLE $name ($columns $constraint)");
	}
	$pub->safe_psql('postgres', "INSERT INTO $name $fill; CREATE PUBLICATION $name FOR TABLE $name");
	return;
}

# Equal, and nothing is left behind.
sub check_copy
{
	my ($name, $test) = @_;

	wait_ready();
	wait_streams(1, [ $pub, $name ]);
	is_equal_on([ $pub, $sub ],
		"SELECT count(*), count(DISTINCT id), md5(string_agg(to_jsonb(t)::text, ',' ORDER BY id, to_jsonb(t)::text)) FROM $name t",
		$test);
	is($sub->safe_psql('postgres', q{SELECT count(*) FROM pg_seclabel WHERE provider = 'krahodb initial copy'}),
		'0', "$test: no marks are left");
	is($sub->safe_psql('postgres', 'SELECT count(*) FROM pg_replication_origin'), '1',
		"$test: no origins are left");
	is(slots_of($pub), $name, "$test: no slots are left");
	return;
}

# ---- several processes -------------------------------------------------------------

make_table('keyed', ', PRIMARY KEY (id)');
$pub->safe_psql('postgres', 'DELETE FROM keyed WHERE id % 7 = 0');
my $offset = -s $sub->logfile;
my $held = hold_at('copy_helper_started');
subscribe('keyed');
$held->();
is( $sub->safe_psql(
		'postgres', q{SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'krahodb copy worker'}),
	't', 'helpers run');
let_go();
check_copy('keyed', 'table with a key');
my ($nranges, $kept) = ranges_since($offset);
cmp_ok($nranges, '>', 20, 'it was copied in ranges');
is($kept, 0, 'all of them');
is( $sub->safe_psql(
		'postgres', q{
	SELECT count(DISTINCT k.xmin::text) > 20, count(DISTINCT o.roname), bool_and(o.roname = 'pg_' || s.oid)
	FROM keyed k, pg_subscription s, LATERAL pg_xact_commit_timestamp_origin(k.xmin) c
		LEFT JOIN pg_replication_origin o ON o.roident = c.roident}),
	't|1|t', 'each range is a transaction, marked with the origin of the subscription');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION keyed');

# ---- crashes -----------------------------------------------------------------------

# Between the attempts rows change in a few places: ranges that they are in, or that
# they leave, come again, the others do not.  Rows without a key show what is there
# twice or not at all.
make_table('nokey', '');
foreach my $node ($pub, $sub)
{
	$node->safe_psql('postgres', 'ALTER TABLE nokey REPLICA IDENTITY FULL');
}
my $next = $rows;
my $changes = sub {
	my ($at) = @_;

	$next += 10;
	$pub->safe_psql(
		'postgres', qq{
		INSERT INTO nokey SELECT g, 1, 'new', now() FROM generate_series($next, $next + 9) g;
		UPDATE nokey SET v = v + 1, pad = pad || 'y' WHERE id BETWEEN $at AND $at + 20;
		DELETE FROM nokey WHERE id BETWEEN $at + 30 AND $at + 50;
		UPDATE nokey SET id = id + 1000000 WHERE id = $at + 60;
	});
};

$offset = -s $sub->logfile;
my @crashes = (
	'copy_range_before_commit@3=kill',
	'copy_range_after_commit@5=kill',
	'copy_helper_started=kill',
	'copy_range_before_commit@4=kill',
	'sync_after_slot=kill',
	'copy_range_after_commit@2=kill',
	'sync_after_copy=kill');
my $at = 100;
foreach my $fault (@crashes)
{
	my ($name) = $fault =~ /^(\w+)/;

	arm_fault($sub, $fault);
	if ($fault eq $crashes[0])
	{
		reload_settings($sub);
		$sub->psql('postgres', "CREATE SUBSCRIPTION nokey CONNECTION '" . connstr($pub) . "' PUBLICATION nokey");
	}
	else
	{
		start_armed($sub);
	}
	wait_until_down($sub);
	$offset = $sub->wait_for_log(qr/fault point "$name" reached/, $offset);
	ok(1, "server went down at $fault");
	$changes->($at);
	$at += 2000;
}
disarm_fault($sub);
$sub->start;
check_copy('nokey', 'crashes of the subscriber');
($nranges, $kept) = ranges_since($offset);
cmp_ok($kept, '>', $nranges / 2, "most of $nranges ranges were kept: $kept");
cmp_ok($kept, '<', $nranges, 'but not all');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION nokey');

# The publisher dies, and loses the snapshot.  Writes go on while the copy does.
my $script = $pub->basedir . '/writes.sql';
append_to_file(
	$script, q{
\set k random(1, 20000)
\set n random(20001, 1000000)
BEGIN;
UPDATE nokey SET v = v + 1 WHERE ctid = (SELECT ctid FROM nokey WHERE id = :k LIMIT 1);
INSERT INTO nokey VALUES (:n, 0, 'during', now());
DELETE FROM nokey WHERE ctid = (SELECT ctid FROM nokey WHERE id = :k + 1 LIMIT 1);
COMMIT;
});
$sub->safe_psql('postgres', 'TRUNCATE nokey');
$offset = -s $sub->logfile;
$held = hold_at('copy_range_after_commit@4');
subscribe('nokey');
$held->();
$pub->stop('immediate');
$pub->start;
my ($out, $err) = ('', '');
my $writer = IPC::Run::start(
	[
		'pgbench', '-n', '-c', '2', '-t', '30', '-f', $script, '-h', $pub->host, '-p', $pub->port, 'postgres'
	],
	'>', \$out, '2>', \$err);
let_go();
ok($writer->finish, 'writes during the copy') or diag($err);
check_copy('nokey', 'crash of the publisher');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION nokey');

# ---- helpers that fail ----------------------------------------------------------------

# The copy goes on under the same snapshot: the worker does not end.
$sub->safe_psql('postgres', 'TRUNCATE keyed');
$offset = -s $sub->logfile;
$held = hold_at('copy_range_before_commit');
subscribe('keyed');
$held->();
$sub->poll_query_until('postgres',
	q{SELECT count(pg_terminate_backend(pid)) > 0 FROM pg_stat_activity WHERE backend_type = 'krahodb copy worker'})
  or die 'timed out waiting for a helper';
$pub->safe_psql('postgres', 'UPDATE keyed SET v = v + 1 WHERE id % 100 = 1');
let_go();
check_copy('keyed', 'a helper was terminated');
my @starts = slurp_file($sub->logfile, $offset) =~ /table synchronization worker for subscription "keyed", table "keyed" has started/g;
is(scalar @starts, 1, 'the synchronisation worker went on');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION keyed');

# The same when they have committed a range and not said so yet: it must not come twice.
$sub->safe_psql('postgres', 'TRUNCATE nokey');
$held = hold_at('copy_range_after_commit');
subscribe('nokey');
$held->();
$sub->poll_query_until('postgres',
	q{SELECT count(*) = 2 FROM pg_stat_activity WHERE backend_type = 'krahodb copy worker' AND wait_event_type = 'Extension'})
  or die 'timed out waiting for the helpers';
$sub->safe_psql('postgres',
	q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'krahodb copy worker'});
let_go();
check_copy('nokey', 'helpers were terminated after their commit');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION nokey');

# No helper can be started at all.
$sub->safe_psql('postgres', 'TRUNCATE keyed');
arm_fault($sub, 'copy_helper_started=error');
reload_settings($sub);
subscribe('keyed');
check_copy('keyed', 'no helper gets anywhere');
let_go();
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION keyed');

# The synchronisation worker is terminated: so are its helpers, and the next one goes on.
$sub->safe_psql('postgres', 'TRUNCATE keyed');
$offset = -s $sub->logfile;
$held = hold_at('copy_range_after_commit@3');
subscribe('keyed');
$held->();
$pub->safe_psql('postgres', 'UPDATE keyed SET v = v + 1 WHERE id < 100; DELETE FROM keyed WHERE id BETWEEN 5000 AND 5100');
$sub->safe_psql('postgres',
	q{SELECT pg_terminate_backend(s.pid) FROM pg_stat_subscription s WHERE s.relid = 'keyed'::regclass});
let_go();
check_copy('keyed', 'the synchronisation worker was terminated');
($nranges, $kept) = ranges_since($offset);
cmp_ok($kept, '>', 0, 'its ranges were kept');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION keyed');

# ---- what others do between two attempts ------------------------------------------------

# Interrupt a copy when some ranges are done.  What happens then is $here, and $there
# when the copy no longer locks the table at the publisher.
sub interrupted
{
	my ($name, $options, $here, $there) = @_;

	$sub->safe_psql('postgres', "TRUNCATE $name");
	my $held = hold_at('copy_range_after_commit@4');
	subscribe($name, $options);
	$held->();
	$sub->safe_psql('postgres', $here) if $here;
	$sub->stop('immediate');
	$pub->safe_psql('postgres', $there) if $there;
	disarm_fault($sub);
	$offset = -s $sub->logfile;
	$sub->start;
	return;
}

# Another file at the publisher: rows are in other places.
$pub->safe_psql('postgres', 'DELETE FROM keyed WHERE id < 3000');
interrupted('keyed', '', '', 'VACUUM FULL keyed');
check_copy('keyed', 'the table was rewritten on the publisher');
is((ranges_since($offset))[1], 0, 'nothing is kept');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION keyed');

# Other columns.
interrupted('keyed', '', '', 'ALTER TABLE keyed DROP COLUMN v; ALTER TABLE keyed ADD COLUMN v int DEFAULT 77');
check_copy('keyed', 'a column was replaced on the publisher');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION keyed');

# Rows that were copied go here.
interrupted('keyed', '', 'DELETE FROM keyed WHERE id % 2 = 0');
check_copy('keyed', 'copied rows were deleted on the subscriber');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION keyed');
interrupted('nokey', '', 'UPDATE nokey SET v = -1 WHERE id % 2 = 0');
$sub->wait_for_log(qr/rows of table "public.nokey" were changed here before its initial copy was finished/, $offset);
$sub->safe_psql('postgres', 'TRUNCATE nokey');
check_copy('nokey', 'copied rows without a key were changed, and the table was truncated');

# The subscription is dropped, and made again: the next one goes on.
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION nokey');
interrupted('nokey', '', 'ALTER SUBSCRIPTION nokey DISABLE', 'UPDATE nokey SET v = 3 WHERE id = 50');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION nokey');
is($sub->safe_psql('postgres', 'SELECT count(*) FROM pg_replication_origin'), '0', 'no origin is left');
$offset = -s $sub->logfile;
subscribe('nokey');
check_copy('nokey', 'another subscription went on');
cmp_ok((ranges_since($offset))[1], '>', 0, 'with what was there');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION nokey');

# Marks go with their table.
interrupted('nokey', '', 'ALTER SUBSCRIPTION nokey DISABLE');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION nokey; DROP TABLE nokey');
is($sub->safe_psql('postgres', 'SELECT count(*) FROM pg_seclabel'), '0', 'no mark outlives its table');

# ---- conflicts --------------------------------------------------------------------------

# Both sides write, the subscriber also to rows that have just been copied, and the copy
# is interrupted: the later change must win on both, a deletion too.
$_->safe_psql('postgres', 'CREATE EXTENSION krahodb') foreach ($pub, $sub);
make_table('shared', ', PRIMARY KEY (id)');
my $sub_connstr = connstr($sub);
$sub->safe_psql('postgres', 'CREATE PUBLICATION shared FOR TABLE shared');
$sub->safe_psql('postgres', "INSERT INTO shared SELECT g, -5, 'here before', now() FROM generate_series(500, 600) g");
$pub->safe_psql('postgres',
	"CREATE SUBSCRIPTION shared_back CONNECTION '$sub_connstr' PUBLICATION shared WITH (origin = none)");
$pub->wait_for_subscription_sync($sub, 'shared_back');
my $held_both = hold_at('copy_range_after_commit@6');
subscribe('shared', 'origin = none');
$held_both->();
my $ids = join ',', split /\n/, $sub->safe_psql('postgres', 'SELECT id FROM shared WHERE id NOT BETWEEN 500 AND 600 ORDER BY id LIMIT 200');
my @ids = split /,/, $ids;
cmp_ok(scalar @ids, '>=', 100, 'rows are there before the copy is complete');
my ($updated, $deleted, $gone) =
  map { join ',', @ids[ $_ .. $_ + 19 ] } (0, 20, 40);
$pub->safe_psql('postgres', "UPDATE shared SET v = 1 WHERE id IN ($deleted)");
$sub->safe_psql('postgres', "UPDATE shared SET v = 2 WHERE id IN ($updated, $gone); DELETE FROM shared WHERE id IN ($deleted)");
$pub->safe_psql('postgres', "UPDATE shared SET v = 3 WHERE id = $ids[0]; DELETE FROM shared WHERE id IN ($gone) OR id BETWEEN 15000 AND 15100");
$pub->safe_psql('postgres', "UPDATE shared SET id = id + 1000000 WHERE id = $ids[70]; DELETE FROM shared WHERE id = $ids[71]");
$sub->stop('immediate');
disarm_fault($sub);
$offset = -s $sub->logfile;
$sub->start;
wait_ready();
wait_streams(2, [ $pub, 'shared' ], [ $sub, 'shared_back' ]);
is_equal_on([ $pub, $sub ],
	"SELECT count(*), md5(string_agg(t::text, ',' ORDER BY id)) FROM shared t", 'both sides wrote, and the copy was interrupted');
is( $sub->safe_psql('postgres', "SELECT v, count(*) FROM shared WHERE id IN ($updated, $deleted, $gone) GROUP BY v ORDER BY v"),
	"2|19\n3|1", 'the later changes are there');
is($sub->safe_psql('postgres', 'SELECT count(*), count(*) FILTER (WHERE v = -5) FROM shared WHERE id BETWEEN 500 AND 600'),
	'101|101', 'so are the rows that were there before');
$pub->safe_psql('postgres', 'DROP SUBSCRIPTION shared_back');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION shared');

# ---- kinds of tables ------------------------------------------------------------------

foreach my $node ($pub, $sub)
{
	$node->safe_psql(
		'postgres', q{
		CREATE TABLE parted (id int, t text, extra int, "Weird Name" int) PARTITION BY RANGE (id);
		CREATE SCHEMA "S p";
		CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (5000);
		CREATE TABLE "S p"."P 2" PARTITION OF parted FOR VALUES FROM (5000) TO (15000) PARTITION BY LIST (id);
		CREATE TABLE parted_2 PARTITION OF "S p"."P 2" DEFAULT;
		CREATE TABLE parted_3 PARTITION OF parted FOR VALUES FROM (15000) TO (100000);
		CREATE TABLE fired (id int PRIMARY KEY, t text);
		CREATE TABLE plainly (id int, t text, r regclass);
	});
}
$pub->safe_psql(
	'postgres', q{
	INSERT INTO parted SELECT g, repeat('t', 60), g, g FROM generate_series(1, 20000) g;
	CREATE PUBLICATION parted FOR TABLE parted (id, t, "Weird Name") WHERE (id % 3 = 0 AND "Weird Name" > 0) WITH (publish_via_partition_root);
	INSERT INTO fired SELECT g, repeat('t', 60) FROM generate_series(1, 5000) g;
	CREATE PUBLICATION fired FOR TABLE fired;
	INSERT INTO plainly SELECT g, repeat('t', 60), 'parted' FROM generate_series(1, 5000) g;
	CREATE PUBLICATION plainly FOR TABLE plainly;
});
$offset = -s $sub->logfile;
subscribe('parted');
wait_ready();
is_equal_on([ $pub, $sub ],
	q{SELECT tableoid::regclass, count(*), count(DISTINCT id), sum("Weird Name") FROM parted WHERE id % 3 = 0 GROUP BY 1 ORDER BY 1},
	'partitioned table');
is($sub->safe_psql('postgres', 'SELECT count(*), count(extra) FROM parted'), '6666|0', 'row filter and column list');
cmp_ok((ranges_since($offset))[0] // 0, '>', 3, 'partitions are copied in ranges');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION parted');

# Not in ranges: a trigger must see one command.
$sub->safe_psql(
	'postgres', q{
	CREATE TABLE fired_log (n bigint);
	CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN INSERT INTO public.fired_log SELECT count(*) FROM new; RETURN NULL; END $$;
	CREATE TRIGGER note AFTER INSERT ON fired REFERENCING NEW TABLE AS new FOR EACH STATEMENT EXECUTE FUNCTION note();
	ALTER TABLE fired ENABLE ALWAYS TRIGGER note;
});
$offset = -s $sub->logfile;
subscribe('fired');
check_copy('fired', 'table with a trigger');
is(join(',', ranges_since($offset)), '', 'it was copied as a whole');
is($sub->safe_psql('postgres', 'SELECT * FROM fired_log'), '5000', 'the trigger saw all rows at once');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION fired');

# A type that has OIDs does not come in binary format.
subscribe('plainly');
wait_ready();
is_equal_on([ $pub, $sub ], 'SELECT count(*), min(r::text), sum(id) FROM plainly', 'a type with OIDs');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION plainly');

# Nor does anything if that is what the setting says.
$sub->append_conf('postgresql.conf', 'krahodb.copy_workers_per_table = 0');
reload_settings($sub);
$sub->safe_psql('postgres', 'TRUNCATE keyed');
$offset = -s $sub->logfile;
subscribe('keyed');
check_copy('keyed', 'copy_workers_per_table = 0');
is(join(',', ranges_since($offset)), '', 'it was copied as a whole');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION keyed');
$sub->adjust_conf('postgresql.conf', 'krahodb.copy_workers_per_table', '3');

# ---- rate and progress ---------------------------------------------------------------

# All workers together keep the limit; it holds at once when it is changed.
$sub->append_conf('postgresql.conf', 'krahodb.copy_rate_limit = 200kB');
reload_settings($sub);
$sub->safe_psql('postgres', 'TRUNCATE keyed');
subscribe('keyed');
$sub->poll_query_until('postgres', q{SELECT count(*) = 1 FROM krahodb.copy_progress WHERE ranges_done > 0 AND workers = 3 AND elapsed > '2 s'})
  or die 'timed out waiting for the first range';
is( $sub->safe_psql(
		'postgres', q{
	SELECT subscription, "table", state, workers, ranges_done < ranges_total, pages_done < pages_total,
		percent BETWEEN 0.1 AND 99.9, rows > 0, remaining > '0 s',
		CASE WHEN bytes / extract(epoch FROM elapsed) / 1024 < 260 THEN 'rate holds'
			ELSE format('%s bytes in %s', bytes, elapsed) END
	FROM krahodb.copy_progress}),
	'keyed|keyed|copying|3|t|t|t|t|t|rate holds', 'progress under a rate limit');
# between two ranges a worker shows none
ok( $sub->poll_query_until(
		'postgres', q{SELECT count(*) = 3 FROM pg_stat_progress_copy WHERE relid = 'keyed'::regclass AND type = 'CALLBACK'}),
	'PostgreSQL shows the progress of each worker');
$sub->adjust_conf('postgresql.conf', 'krahodb.copy_rate_limit', '0');
reload_settings($sub);
check_copy('keyed', 'the rate limit was lifted while the copy ran');
is($sub->safe_psql('postgres', 'SELECT count(*) FROM krahodb.copy_progress'), '0', 'nothing is copied any more');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION keyed');

# What is received are rows, and an end of each range.
$sub->safe_psql('postgres', 'TRUNCATE keyed');
$held = hold_at('copy_range_after_commit@3');
subscribe('keyed');
$held->();
ok($sub->poll_query_until('postgres',
		'SELECT rows > 0 AND rows = (SELECT count(*) FROM keyed) FROM krahodb.copy_progress'), 'rows of ranges');
let_go();
check_copy('keyed', 'rows were counted');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION keyed');

# A copy as a whole counts rows, of those that statistics or a look at some pages tell of.
$sub->append_conf('postgresql.conf', 'krahodb.copy_workers_per_table = 0');
foreach my $statistics ('SELECT', 'ANALYZE keyed')
{
	my $rows = $pub->safe_psql('postgres', "$statistics; SELECT count(*) FROM keyed");

	$sub->adjust_conf('postgresql.conf', 'krahodb.copy_rate_limit', '200kB');
	reload_settings($sub);
	$sub->safe_psql('postgres', 'TRUNCATE keyed');
	subscribe('keyed');
	ok($sub->poll_query_until('postgres', qq{SELECT count(*) = 1 FROM krahodb.copy_progress
		WHERE ranges_total IS NULL AND percent BETWEEN 10 AND 90 AND remaining > '0 s' AND rows / percent * 100 / $rows BETWEEN 0.9 AND 1.1}),
		"progress of a copy as a whole, $statistics");
	$sub->adjust_conf('postgresql.conf', 'krahodb.copy_rate_limit', '0');
	reload_settings($sub);
	check_copy('keyed', 'as a whole');
	$sub->safe_psql('postgres', 'DROP SUBSCRIPTION keyed');
}
$sub->adjust_conf('postgresql.conf', 'krahodb.copy_workers_per_table', '3');
reload_settings($sub);

# ---- stock publisher ------------------------------------------------------------------

my $stock = stock_node('stock');
$stock->safe_psql('postgres', "CREATE TABLE keyed ($columns, PRIMARY KEY (id)); INSERT INTO keyed $fill; CREATE PUBLICATION stock FOR TABLE keyed");
$sub->safe_psql('postgres', 'DROP TABLE keyed');
$sub->safe_psql('postgres', "CREATE TABLE keyed ($columns, PRIMARY KEY (id))");
$offset = -s $sub->logfile;
subscribe('stock', '', from => $stock);
wait_ready();
wait_streams(1, [ $stock, 'stock' ]);
is_equal_on([ $stock, $sub ], "SELECT count(*), md5(string_agg(t::text, ',' ORDER BY id)) FROM keyed t", 'stock publisher');
cmp_ok((ranges_since($offset))[0] // 0, '>', 20, 'in ranges');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION stock');

$stock->stop;
$sub->stop;
$pub->stop;
done_testing();
