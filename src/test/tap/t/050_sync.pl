# What goes wrong here: the server dies at each moment of a table's initial
# synchronisation, while rows keep coming.  A row that is copied and streamed
# would be there twice, one that falls between the two would be missing; tables
# without keys show both.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $timeout = $PostgreSQL::Test::Utils::timeout_default;
my $pub = krahodb_node('pub');
my $sub = krahodb_node('sub');
my $pub_connstr = connstr($pub);

# ---- crashes -----------------------------------------------------------------

# In the order in which a synchronisation passes them.  Those of an applied
# transaction are the synchronisation worker's: until the table is synchronised
# the apply worker leaves its changes out.
my @faults = qw(
  sync_after_slot
  sync_before_copy
  sync_after_copy
  sync_after_finishedcopy
  apply_before_commit
  apply_after_commit
  sync_before_syncdone
  sync_before_slot_drop
  sync_after_slot_drop
  sync_after_syncdone
);

# On the way to these the worker is held up until the apply worker has passed
# all that was written, so that there is something to catch up with.
my %catches_up = map { $_ => 1 }
  qw(apply_before_commit apply_after_commit sync_before_syncdone sync_before_slot_drop);

sub crash_everywhere
{
	my ($name, $options) = @_;
	my $next = 1;

	foreach my $node ($pub, $sub)
	{
		$node->safe_psql('postgres', "CREATE TABLE $name (id int, t text)");
	}
	my $more_rows = sub {
		foreach (1 .. 3)
		{
			$pub->safe_psql('postgres',
				"INSERT INTO $name SELECT g, 'row ' || g FROM generate_series($next, $next + 9) g"
			);
			$next += 10;
		}
	};
	$more_rows->();
	$pub->safe_psql('postgres', "CREATE PUBLICATION $name FOR TABLE $name");

	my $offset = -s $sub->logfile;
	foreach my $fault (@faults)
	{
		arm_fault($sub, $catches_up{$fault} ? 'sync_before_syncwait=wait' : "$fault=kill");
		if ($fault eq $faults[0])
		{
			reload_settings($sub);
			$sub->psql('postgres',
				"CREATE SUBSCRIPTION $name CONNECTION '$pub_connstr' PUBLICATION $name $options"
			);
		}
		else
		{
			start_armed($sub);
		}
		if ($catches_up{$fault})
		{
			$sub->wait_for_log(qr/fault point "sync_before_syncwait"/, $offset);
			$more_rows->();
			wait_streams(1, [ $pub, $name ]);
			arm_fault($sub, "$fault=kill");
			reload_settings($sub);
		}
		wait_until_down($sub);
		$offset = $sub->wait_for_log(qr/fault point "$fault" reached/, $offset);
		ok(1, "$name: server went down at $fault");
		$more_rows->();
	}
	disarm_fault($sub);
	$sub->start;

	$sub->poll_query_until('postgres',
		"SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel")
	  or die "timed out waiting for the table to be ready";
	$more_rows->();
	wait_streams(1, [ $pub, $name ]);
	is_equal_on([ $pub, $sub ],
		"SELECT count(*), count(DISTINCT id), sum(id), md5(string_agg(t, ',' ORDER BY id)) FROM $name",
		"$name: nothing lost, nothing twice");

	is(slots_of($pub), $name, "$name: only the subscription's slot is left");
	is( $sub->safe_psql(
			'postgres', "SELECT count(*) FROM pg_replication_origin"),
		'1',
		"$name: only the subscription's origin is left");
	$sub->safe_psql('postgres', "DROP SUBSCRIPTION $name");
	return;
}

crash_everywhere('plain', '');
crash_everywhere('resolving',
	"WITH (origin = none, conflict_resolution = last_update_wins)");

# The publisher dies while the table is copied, and while it catches up.
foreach my $fault (qw(sync_before_copy sync_after_finishedcopy))
{
	my $offset = -s $sub->logfile;

	$pub->safe_psql('postgres', 'TRUNCATE plain; INSERT INTO plain SELECT g FROM generate_series(1, 100) g');
	$sub->safe_psql('postgres', 'TRUNCATE plain');
	arm_fault($sub, "$fault=wait");
	reload_settings($sub);
	$sub->safe_psql('postgres',
		"CREATE SUBSCRIPTION plain CONNECTION '$pub_connstr' PUBLICATION plain");
	$sub->wait_for_log(qr/fault point "$fault"/, $offset);
	$pub->safe_psql('postgres', 'INSERT INTO plain SELECT g FROM generate_series(101, 200) g');
	$pub->stop('immediate');
	$pub->start;
	disarm_fault($sub);
	reload_settings($sub);
	$sub->wait_for_subscription_sync($pub, 'plain');
	is_equal_on([ $pub, $sub ],
		"SELECT count(*), count(DISTINCT id), sum(id) FROM plain",
		"publisher crashed at $fault");
	$sub->safe_psql('postgres', "DROP SUBSCRIPTION plain");
}

# ---- a table that takes long to catch up ----------------------------------------

# The publisher does not take the apply worker, which waits for it, for dead, nor the
# worker the publisher, which had no reason to say anything.
my $logged = -s $sub->logfile;
$sub->safe_psql('postgres', 'TRUNCATE plain');
arm_fault($sub, 'sync_before_syncwait=wait');
$pub->safe_psql('postgres', "ALTER SYSTEM SET wal_sender_timeout = '10s'");
$sub->safe_psql('postgres', "ALTER SYSTEM SET wal_receiver_timeout = '3s'");
reload_settings($_) foreach $pub, $sub;
$sub->safe_psql('postgres', "CREATE SUBSCRIPTION plain CONNECTION '$pub_connstr' PUBLICATION plain");
$sub->wait_for_log(qr/fault point "sync_before_syncwait"/, $logged);
my $bgwriter = $pub->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'background writer'");
kill 'STOP', $bgwriter;
wait_streams(1, [ $pub, 'plain' ]);
arm_fault($sub, 'sync_before_syncdone=wait');
reload_settings($sub);
$sub->wait_for_log(qr/fault point "sync_before_syncdone"/, $logged);
my $since = $pub->safe_psql('postgres', 'SELECT clock_timestamp()');
ok($pub->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_stat_replication WHERE application_name = 'plain' AND reply_time > '$since'::timestamptz + interval '4 s'"),
	'the apply worker answers while a table catches up');
disarm_fault($sub);
reload_settings($sub);
$sub->wait_for_subscription_sync($pub, 'plain');
kill 'CONT', $bgwriter;
is_equal_on([ $pub, $sub ], 'SELECT count(*), sum(id) FROM plain', 'a table that took long to catch up');
$since = $sub->safe_psql('postgres', 'SELECT clock_timestamp()');
$sub->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_subscription WHERE last_msg_receipt_time > '$since'::timestamptz + interval '1 s'")
  or die 'nothing comes';
ok(!$sub->log_contains(qr/logical replication worker due to timeout/, $logged), '... and goes on with the same connection');
$pub->safe_psql('postgres', 'ALTER SYSTEM RESET wal_sender_timeout');
$sub->safe_psql('postgres', 'ALTER SYSTEM RESET wal_receiver_timeout');
reload_settings($_) foreach $pub, $sub;
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION plain');

# ---- writes during the copy of several tables ----------------------------------

foreach my $node ($pub, $sub)
{
	$node->safe_psql(
		'postgres', q{
		CREATE TABLE nokey1 (id bigint, v int);
		CREATE TABLE nokey2 (id bigint, v int);
		CREATE TABLE key1 (id int PRIMARY KEY, v int);
		CREATE TABLE key2 (id int PRIMARY KEY, v int, big text);
	});
}
$pub->safe_psql(
	'postgres', q{
	INSERT INTO nokey1 SELECT g, g FROM generate_series(1, 5000) g;
	INSERT INTO nokey2 SELECT g, g FROM generate_series(1, 5000) g;
	INSERT INTO key1 SELECT g, g FROM generate_series(1, 5000) g;
	INSERT INTO key2 SELECT g, g, repeat(md5(g::text), 100) FROM generate_series(1, 500) g;
	CREATE SEQUENCE ids START 10000;
	CREATE PUBLICATION several FOR TABLE nokey1, nokey2, key1, key2;
});

my $script = $pub->basedir . '/writes.sql';
append_to_file(
	$script, q{
\set k random(1, 5000)
\set n random(5001, 1000000)
BEGIN;
INSERT INTO nokey1 SELECT nextval('ids'), :k;
INSERT INTO nokey2 SELECT nextval('ids'), :k;
UPDATE key1 SET v = v + 1 WHERE id = :k;
UPDATE key2 SET v = v + 1 WHERE id = :k % 500 + 1;
INSERT INTO key1 VALUES (:n, 0) ON CONFLICT DO NOTHING;
DELETE FROM key1 WHERE id = :n - 1;
COMMIT;
});
my ($out, $err) = ('', '');
my $writer = IPC::Run::start(
	[
		'pgbench', '-n', '-c', '2', '-t', '1000', '-f', $script, '-h',
		$pub->host, '-p', $pub->port, 'postgres'
	],
	'>', \$out, '2>', \$err);
$sub->safe_psql('postgres',
	"CREATE SUBSCRIPTION several CONNECTION '$pub_connstr' PUBLICATION several");
$sub->poll_query_until('postgres',
	"SELECT count(*) = 4 AND bool_and(srsubstate = 'r') FROM pg_subscription_rel")
  or die "timed out waiting for the tables";
ok($writer->finish, 'writes during the copy') or diag($err);
wait_streams(1, [ $pub, 'several' ]);
foreach my $table (qw(nokey1 nokey2 key1 key2))
{
	is_equal_on([ $pub, $sub ],
		"SELECT count(*), count(DISTINCT id), md5(string_agg($table\::text, ',' ORDER BY id)) FROM $table",
		"$table, written to while it was copied");
}
is(slots_of($pub), 'several', 'only the slot of the subscription is left');
$sub->safe_psql('postgres', "DROP SUBSCRIPTION several");

# ---- origins: what was copied does not come back -------------------------------

# Both directions at once is only possible if the rows that were copied here
# are known to come from there.
sub no_loop
{
	my ($name, $forth_options, $back_options) = @_;
	my $sub_connstr = connstr($sub);

	foreach my $node ($pub, $sub)
	{
		$node->safe_psql('postgres',
			"CREATE TABLE $name (id int, t text); CREATE PUBLICATION $name FOR TABLE $name"
		);
	}
	$pub->safe_psql('postgres',
		"INSERT INTO $name SELECT g, 'copied' FROM generate_series(1, 100) g");
	$pub->safe_psql('postgres',
		"CREATE SUBSCRIPTION ${name}_back CONNECTION '$sub_connstr' PUBLICATION $name WITH ($back_options, copy_data = false)"
	);

	# held up when the copy is done, so that there is something to catch up
	my $offset = -s $sub->logfile;
	arm_fault($sub, 'sync_after_finishedcopy=wait');
	reload_settings($sub);
	$sub->safe_psql('postgres',
		"CREATE SUBSCRIPTION $name CONNECTION '$pub_connstr' PUBLICATION $name WITH ($forth_options)"
	);
	$sub->wait_for_log(qr/fault point "sync_after_finishedcopy"/, $offset);
	$pub->safe_psql('postgres',
		"INSERT INTO $name SELECT g, 'caught up' FROM generate_series(101, 200) g"
	);
	disarm_fault($sub);
	reload_settings($sub);
	$sub->wait_for_subscription_sync($pub, $name);
	$pub->safe_psql('postgres',
		"INSERT INTO $name SELECT g, 'streamed' FROM generate_series(201, 300) g");
	$sub->safe_psql('postgres',
		"INSERT INTO $name SELECT g, 'back' FROM generate_series(301, 400) g");
	wait_streams(3, [ $pub, $name ], [ $sub, "${name}_back" ]);

	is( is_equal_on(
			[ $pub, $sub ],
			"SELECT t, count(*) FROM $name GROUP BY t ORDER BY t",
			"$name: rows went each way once"),
		"back|100\ncaught up|100\ncopied|100\nstreamed|100",
		"$name: no row came back");

	is( $sub->safe_psql(
			'postgres', qq{
		SELECT DISTINCT t, o.roname = 'pg_' || s.oid
		FROM $name x, pg_subscription s,
			LATERAL pg_xact_commit_timestamp_origin(x.xmin) c
			LEFT JOIN pg_replication_origin o ON o.roident = c.roident
		WHERE subname = '$name' AND t <> 'back' ORDER BY t}),
		"caught up|t\ncopied|t\nstreamed|t",
		"$name: all rows have the origin of the subscription");
	is( $sub->safe_psql(
			'postgres',
			"SELECT DISTINCT extract(epoch FROM pg_xact_commit_timestamp(xmin) - '2000-01-01') < 10 * 86400 FROM $name WHERE t = 'copied'"
		),
		't',
		"$name: copied rows are older than any change");

	$sub->safe_psql('postgres', "DROP SUBSCRIPTION $name");
	$pub->safe_psql('postgres', "DROP SUBSCRIPTION ${name}_back");
	return;
}

no_loop('loop_none', 'origin = none', 'origin = none');
no_loop(
	'loop_ids',
	'replication_origin_id = 20, filter_origins = 10',
	'replication_origin_id = 10, filter_origins = 20');

# ---- whose rights ------------------------------------------------------------------

# A trigger is the table owner's code: with run_as_owner = false it does not get
# the rights of the subscription's owner, neither for copied rows nor for later ones.
$pub->safe_psql('postgres',
	"CREATE TABLE owned (id int PRIMARY KEY); INSERT INTO owned VALUES (1); CREATE PUBLICATION owned FOR TABLE owned");
$sub->safe_psql(
	'postgres', q{
	CREATE ROLE alice;
	CREATE TABLE owned (id int PRIMARY KEY, done_by text);
	CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN NEW.done_by := current_user; RETURN NEW; END $$;
	CREATE TRIGGER note BEFORE INSERT ON owned FOR EACH ROW EXECUTE FUNCTION note();
	ALTER TABLE owned ENABLE ALWAYS TRIGGER note;
	ALTER TABLE owned OWNER TO alice;
});
my $superuser = $sub->safe_psql('postgres', 'SELECT current_user');
foreach my $case ([ 'true', $superuser ], [ 'false', 'alice' ])
{
	my ($run_as_owner, $user) = @$case;

	$sub->safe_psql('postgres', 'TRUNCATE owned');
	$sub->safe_psql('postgres',
		"CREATE SUBSCRIPTION owned CONNECTION '$pub_connstr' PUBLICATION owned WITH (run_as_owner = $run_as_owner)");
	$sub->wait_for_subscription_sync($pub, 'owned');
	$pub->safe_psql('postgres', 'INSERT INTO owned SELECT max(id) + 1 FROM owned');
	wait_streams(1, [ $pub, 'owned' ]);
	is( $sub->safe_psql('postgres', 'SELECT count(*) > 1, string_agg(DISTINCT done_by, \',\') FROM owned'),
		"t|$user",
		"run_as_owner = $run_as_owner");
	$sub->safe_psql('postgres', 'DROP SUBSCRIPTION owned');
}

# ---- rows are there already ------------------------------------------------------

# What goes wrong here: COPY cannot resolve anything.  With conflict resolution
# the later row is to stay, whichever side it is on; without, nothing is copied.
foreach my $node ($pub, $sub)
{
	$node->safe_psql(
		'postgres', q{
		CREATE TABLE there (id int PRIMARY KEY, v text, code int UNIQUE);
		CREATE TABLE there_parted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
		CREATE TABLE there_1 PARTITION OF there_parted FOR VALUES FROM (0) TO (50);
		CREATE TABLE there_2 PARTITION OF there_parted FOR VALUES FROM (50) TO (1000);
		CREATE PUBLICATION there FOR TABLE there, there_parted WITH (publish_via_partition_root);
	});
}
sub fill
{
	my ($node, $from, $to) = @_;
	my $who = $node->name;

	$node->safe_psql('postgres',
		"INSERT INTO there SELECT g, E'$who\\t\\\\', g FROM generate_series($from, $to) g;
		 INSERT INTO there_parted SELECT g, '$who' FROM generate_series($from, $to) g");
	return;
}
fill($pub, 1, 40);
fill($sub, 31, 70);
fill($pub, 61, 100);
$pub->safe_psql('postgres', "INSERT INTO there VALUES (200, NULL, NULL), (201, '', NULL)");

my $sub_connstr = connstr($sub);
my $offset = -s $sub->logfile;
$sub->safe_psql('postgres',
	"CREATE SUBSCRIPTION there CONNECTION '$pub_connstr' PUBLICATION there");
$sub->wait_for_log(qr/duplicate key value violates unique constraint "there_pkey"/, $offset);
is($sub->safe_psql('postgres', 'SELECT count(*) FROM there'), '40',
	'plain subscription: nothing is copied over rows');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION there');

$pub->safe_psql('postgres',
	"CREATE SUBSCRIPTION there_back CONNECTION '$sub_connstr' PUBLICATION there WITH (origin = none)");
$pub->wait_for_subscription_sync($sub, 'there_back');
$sub->safe_psql('postgres',
	"CREATE SUBSCRIPTION there CONNECTION '$pub_connstr' PUBLICATION there WITH (origin = none)");
$sub->wait_for_subscription_sync($pub, 'there');
wait_streams(2, [ $pub, 'there' ], [ $sub, 'there_back' ]);
foreach my $table (qw(there there_parted))
{
	is( is_equal_on(
			[ $pub, $sub ],
			"SELECT regexp_replace(v, '[^a-z]', '', 'g') w, count(*), min(id), max(id) FROM $table WHERE id <= 100 GROUP BY w ORDER BY min(id)",
			"$table: rows on both sides"),
		"pub|70|1|100\nsub|30|31|60",
		"$table: the later rows stay");
}
is_equal_on([ $pub, $sub ],
	"SELECT md5(string_agg(t::text, ',' ORDER BY id)) FROM there t", 'all values are equal');
is($sub->safe_psql('postgres', "SELECT v IS NULL FROM there WHERE id IN (200, 201) ORDER BY id"),
	"t\nf", 'NULL and the empty string');

# A branch that is written to while it is copied to.
foreach my $node ($pub, $sub)
{
	$node->safe_psql('postgres', 'CREATE TABLE busy (id int PRIMARY KEY, v int)');
	$node->safe_psql('postgres', 'CREATE PUBLICATION busy FOR TABLE busy');
}
$pub->safe_psql('postgres', 'INSERT INTO busy SELECT g, 0 FROM generate_series(1, 2000) g');
$pub->safe_psql('postgres',
	"CREATE SUBSCRIPTION busy_back CONNECTION '$sub_connstr' PUBLICATION busy WITH (origin = none, copy_data = false)");
my $upserts = $pub->basedir . '/upserts.sql';
append_to_file(
	$upserts, q{
\set id random(1, 3000)
\set v random(1, 1000000)
INSERT INTO busy VALUES (:id, :v) ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v;
});
my @writers = map {
	my ($o, $e) = ('', '');
	IPC::Run::start(
		[
			'pgbench', '-n', '-c', '2', '-t', '1000', '-f', $upserts, '-h',
			$_->host, '-p', $_->port, 'postgres'
		],
		'>', \$o, '2>', \$e)
} $pub, $sub;
$sub->safe_psql('postgres',
	"CREATE SUBSCRIPTION busy CONNECTION '$pub_connstr' PUBLICATION busy WITH (origin = none)");
ok($_->finish, 'writes on both sides during the copy') foreach @writers;
$sub->wait_for_subscription_sync($pub, 'busy');
wait_streams(2, [ $pub, 'busy' ], [ $sub, 'busy_back' ]);
is_equal_on([ $pub, $sub ],
	"SELECT count(*), md5(string_agg(busy::text, ',' ORDER BY id)) FROM busy",
	'both sides written to during the copy');

$sub->stop;
$pub->stop;
done_testing();
