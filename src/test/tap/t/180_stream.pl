# How the stream is carried: frames that hold several transactions, and compression.
# What can go wrong: a frame is held back while nobody decodes on, so that a commit
# that waits for a synchronous subscriber hangs; a keepalive overtakes a held frame,
# and its transactions are confirmed without having been sent; a held frame is not
# sent again after a crash; compressor and decompressor do not have the same history
# (after a restart, an error, a large row, a streamed transaction); a publisher that
# cannot compress; a large transaction that waits in files of the publisher, a system call
# or two for each change, or is sent in parts although that is not wanted.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/..";

use KrahoDB::Nodes;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $publisher = krahodb_node('publisher',
	conf => "logical_decoding_work_mem = 64kB\nwal_writer_delay = 10ms\n");
my $subscriber = krahodb_node('subscriber');
my @nodes = ($publisher, $subscriber);

sub sql { return $publisher->safe_psql('postgres', join("\n", @_)); }

# The payloads that a walsender has sent; pg_recvlogical puts a line end behind each.
sub split_frames
{
	my ($bytes) = @_;
	my @frames;
	my $position = 0;
	while ($position < length $bytes)
	{
		my @messages;
		die 'not a frame' if substr($bytes, $position++, 1) ne 'F';
		while (substr($bytes, $position, 1) ne "\n")
		{
			my $length = unpack 'N', substr($bytes, $position, 4);
			push @messages, substr($bytes, $position + 4, $length);
			$position += 4 + $length;
		}
		$position++;
		push @frames, \@messages;
	}
	return @frames;
}

sql('CREATE TABLE t (id int PRIMARY KEY, v text)', '; CREATE TABLE other (id int)',
	'; CREATE PUBLICATION pub FOR TABLE t');
$subscriber->safe_psql('postgres', 'CREATE TABLE t (id int PRIMARY KEY, v text)');
sql('CREATE DATABASE elsewhere');
$publisher->safe_psql('elsewhere', 'CREATE TABLE e (id int)');

# ---- many transactions, few frames ------------------------------------------------

sql("SELECT pg_create_logical_replication_slot('slot', 'krahodb_output')");
my $count = 2000;
sql(qq{DO \$\$ BEGIN
	FOR i IN 1..$count LOOP
		INSERT INTO t VALUES (i, 'row ' || i);
		IF i % 7 = 0 THEN INSERT INTO other VALUES (i); END IF;
		COMMIT;
	END LOOP;
END \$\$});
my %options = (proto_version => 1, publication_names => 'pub', krahodb => 1);
my $list = join ', ', map { "'$_', '$options{$_}'" } sort keys %options;
my $limit = $PostgreSQL::Test::Utils::timeout_default;
{
	my $lsn = sql('SELECT pg_current_wal_insert_lsn()');
	my @each = map { [ split_frames(pack('H*', $_) . "\n") ]->[0] } split /\n/,
	  sql("SELECT encode(data, 'hex') FROM pg_logical_slot_peek_binary_changes('slot', NULL, NULL, $list)");
	my @frames = split_frames(scalar $publisher->pg_recvlogical_upto('postgres', 'slot', $lsn, $limit, %options));
	is(scalar(@each), $count, 'to the SQL functions each transaction is a write');
	cmp_ok(scalar(@frames), '<', $count / 20, 'a walsender with a backlog sends them together');
	cmp_ok(scalar(grep { length(join '', @$_) > 70000 } @frames), '==', 0, '... in frames of limited size');
	ok(join('', map { @$_ } @frames) eq join('', map { @$_ } @each), '... the same messages');
}
sql("SELECT pg_drop_replication_slot('slot')", '; TRUNCATE t');

# ---- nothing is held while the walsender waits --------------------------------------

my $connstr = connstr($publisher);
$subscriber->safe_psql('postgres',
	"CREATE SUBSCRIPTION sub CONNECTION '$connstr' PUBLICATION pub WITH (streaming = on)");
$subscriber->wait_for_subscription_sync($publisher, 'sub');
$publisher->append_conf('postgresql.conf', "synchronous_standby_names = 'sub'\n");
reload_settings($publisher);

# Each commit waits until it has been applied.  Others write what is not sent, so that
# the log nearly always goes on behind a commit, but nothing to send comes.
sub synchronous_commits
{
	my ($name, $database, $table) = @_;
	my $writer;
	if ($database)
	{
		$writer = $publisher->background_psql($database, timeout => $limit);
		$writer->query_safe("SET synchronous_commit = off");
		$writer->query_until(qr/started/, qq{\\echo started
			DO \$\$ BEGIN FOR i IN 1..30000 LOOP INSERT INTO $table VALUES (1); COMMIT; END LOOP; END \$\$;\n});
	}
	sql(qq{SET statement_timeout = '${limit}s';
		SET synchronous_commit = remote_apply;
		DO \$\$ BEGIN FOR i IN 1..200 LOOP INSERT INTO t VALUES (i, '$name'); COMMIT; END LOOP; END \$\$});
	is($subscriber->safe_psql('postgres', "SELECT count(*) FROM t WHERE v = '$name'"), 200,
		"synchronous commits return: $name");
	$writer->quit if $writer;
	sql("SET synchronous_commit = local; DELETE FROM t");
	return;
}

synchronous_commits('alone');
synchronous_commits('another database writes', 'elsewhere', 'e');
synchronous_commits('a table that is not published is written', 'postgres', 'other');

# Transactions that are not sent, behind one that is held, are answered for.
sql("SET synchronous_commit = remote_apply; INSERT INTO t VALUES (1, 'x'); INSERT INTO other VALUES (1)");
pass('a transaction of which nothing is published waits for nothing');

$publisher->adjust_conf('postgresql.conf', 'synchronous_standby_names', undef);
reload_settings($publisher);

# ---- nothing overtakes a held frame ---------------------------------------------------

# With this the frame is held for good: only what would overtake it brings it out.
arm_fault($publisher, 'output_hold=skip');
$publisher->restart;
$subscriber->wait_for_subscription_sync($publisher, 'sub');
sql("INSERT INTO t VALUES (2, 'held')");
$subscriber->poll_query_until('postgres', 'SELECT EXISTS (SELECT FROM t WHERE id = 2)')
  or die 'a keepalive overtook a held frame';
pass('a keepalive comes behind the held frame');
sql("BEGIN; INSERT INTO t VALUES (3, 'held'); PREPARE TRANSACTION 'p'; COMMIT PREPARED 'p'");
sql("INSERT INTO t VALUES (4, 'held')");
$publisher->stop;
$publisher->start;
$subscriber->poll_query_until('postgres', 'SELECT count(*) = 2 FROM t WHERE id IN (3, 4)')
  or die 'rows are lost by a shutdown';
pass('... and so does the end of a stream: nothing is lost by a shutdown');
disarm_fault($publisher);

# The walsender dies with a held frame.
arm_fault($publisher, 'output_held=kill');
reload_settings($publisher);
# (the server may be down before the answer comes)
$publisher->psql('postgres', "INSERT INTO t VALUES (5, 'killed')");
wait_until_down($publisher);
disarm_fault($publisher);
start_after_kill($publisher);
$subscriber->poll_query_until('postgres', 'SELECT EXISTS (SELECT FROM t WHERE id = 5)')
  or die 'a held frame was lost';
pass('a frame that was held when the walsender died is sent again');

# ---- compression ---------------------------------------------------------------------

sub worker_restarted
{
	my ($change) = @_;
	my $pid = $subscriber->safe_psql('postgres',
		"SELECT pid FROM pg_stat_subscription WHERE subname = 'sub' AND relid IS NULL");
	$subscriber->safe_psql('postgres', $change);
	$subscriber->poll_query_until('postgres',
		"SELECT EXISTS (SELECT FROM pg_stat_subscription WHERE subname = 'sub' AND relid IS NULL AND pid <> $pid)")
	  or die 'the worker was not restarted';
	return;
}

my $everything = 'SELECT count(*), md5(string_agg(t::text, \',\' ORDER BY id)) FROM t';

foreach my $compression ('lz4', 'ZSTD', 'off', 'lz4')
{
	worker_restarted("ALTER SUBSCRIPTION sub SET (compression = $compression)");
	sql(qq{
		TRUNCATE t;
		DO \$\$ BEGIN
			FOR i IN 1..1000 LOOP
				INSERT INTO t VALUES (i, 'value ' || i);
				UPDATE t SET v = v || '.' WHERE id = i - i % 10;
				COMMIT;
			END LOOP;
		END \$\$;
		INSERT INTO t SELECT g, repeat(md5(g::text), 3) FROM generate_series(2001, 12000) g;
		INSERT INTO t SELECT 13000, string_agg(md5(g::text), '') FROM generate_series(1, 300000) g;
		BEGIN; INSERT INTO t SELECT g, 'undone' FROM generate_series(20000, 22000) g; ROLLBACK;
		INSERT INTO t VALUES (13001, repeat('x', 5000000)), (13002, 'small');
		DELETE FROM t WHERE id % 3 = 0;});
	wait_streams(1, [ $publisher, 'sub' ]);
	is_equal_on(\@nodes, $everything, "compression $compression");
}
my $log = -s $subscriber->logfile;
$publisher->restart('immediate');
sql("INSERT INTO t SELECT g, 'after' FROM generate_series(30000, 30100) g");
$subscriber->poll_query_until('postgres', 'SELECT count(*) = 101 FROM t WHERE v = \'after\'')
  or die 'no stream after a crash';
is_equal_on(\@nodes, $everything, 'a compressed stream begins anew after a crash');
ok(!$subscriber->log_contains(qr/invalid frame/, $log), '... without an error');

# Tables that are copied later stream what came meanwhile in the same way.
sql('CREATE TABLE late (id int PRIMARY KEY)', '; INSERT INTO late SELECT generate_series(1, 1000)',
	'; ALTER PUBLICATION pub ADD TABLE late');
$subscriber->safe_psql('postgres', 'CREATE TABLE late (id int PRIMARY KEY); ALTER SUBSCRIPTION sub REFRESH PUBLICATION');
sql('INSERT INTO late SELECT generate_series(1001, 2000)');
$subscriber->wait_for_subscription_sync($publisher, 'sub');
is_equal_on(\@nodes, 'SELECT count(*), sum(id) FROM late', 'a table copied under compression');

# Two-phase, compressed.
$subscriber->safe_psql('postgres', 'DROP SUBSCRIPTION sub; TRUNCATE t, late');
sql('TRUNCATE t, late');
$subscriber->safe_psql('postgres',
	"CREATE SUBSCRIPTION sub CONNECTION '$connstr' PUBLICATION pub WITH (streaming = on, two_phase = on, compression = zstd)");
$subscriber->wait_for_subscription_sync($publisher, 'sub');
sql(q{BEGIN; INSERT INTO t SELECT g, 'prepared' FROM generate_series(1, 3000) g; PREPARE TRANSACTION 'large';},
	q{BEGIN; INSERT INTO t VALUES (4000, 'prepared'); PREPARE TRANSACTION 'small';},
	q{COMMIT PREPARED 'large'; ROLLBACK PREPARED 'small'; INSERT INTO t VALUES (4001, 'end');});
wait_streams(1, [ $publisher, 'sub' ]);
is_equal_on(\@nodes, $everything, 'prepared transactions in a compressed stream');
is($subscriber->safe_psql('postgres', 'SELECT count(*) FROM t'), 3001, '... with all rows');

# ---- who cannot compress ----------------------------------------------------------------

my ($result, $stdout, $stderr) = $subscriber->psql('postgres', 'ALTER SUBSCRIPTION sub SET (compression = gzip)');
like($stderr, qr/invalid value for parameter "compression": "gzip".*Valid values are "off", "lz4" and "zstd"/s,
	'other values are refused');
foreach my $case (
	["'compression', 'gzip'", qr/unrecognized compression value: "gzip"/],
	["'compression', 'lz4', 'compression', 'lz4'", qr/conflicting or redundant options/])
{
	sql("SELECT pg_create_logical_replication_slot('slot', 'krahodb_output')");
	($result, $stdout, $stderr) = $publisher->psql('postgres',
		"SELECT * FROM pg_logical_slot_peek_binary_changes('slot', NULL, NULL, $list, $case->[0])");
	like($stderr, $case->[1], "the plugin refuses $case->[0]");
	sql("SELECT pg_drop_replication_slot('slot')");
}

my $stock = stock_node('stock');
$stock->safe_psql('postgres', 'CREATE TABLE t (id int PRIMARY KEY, v text); CREATE PUBLICATION pub FOR TABLE t');
my $stock_connstr = connstr($stock);
$subscriber->safe_psql('postgres', 'DROP SUBSCRIPTION sub; TRUNCATE t');
($result, $stdout, $stderr) = $subscriber->psql('postgres',
	"CREATE SUBSCRIPTION sub CONNECTION '$stock_connstr' PUBLICATION pub WITH (compression = lz4)");
like($stderr, qr/the publisher cannot compress the stream.*needs a KrahoDB server as publisher/s,
	'CREATE SUBSCRIPTION says that a stock publisher cannot compress');
is($stock->safe_psql('postgres', 'SELECT count(*) FROM pg_replication_slots'), 0, '... before anything is made there');

$publisher->safe_psql('postgres', "SELECT pg_create_logical_replication_slot('plain', 'pgoutput')");
($result, $stdout, $stderr) = $subscriber->psql('postgres',
	"CREATE SUBSCRIPTION sub CONNECTION '$connstr' PUBLICATION pub WITH (compression = lz4, create_slot = false, slot_name = plain)");
like($stderr, qr/the stream of replication slot "plain" cannot be compressed/, '... and that a slot of pgoutput cannot');

$subscriber->safe_psql('postgres', "CREATE SUBSCRIPTION sub CONNECTION '$stock_connstr' PUBLICATION pub");
$subscriber->wait_for_subscription_sync($stock, 'sub');
$log = -s $subscriber->logfile;
worker_restarted('ALTER SUBSCRIPTION sub SET (compression = lz4)');
$stock->safe_psql('postgres', "INSERT INTO t VALUES (1, 'stock')");
$stock->wait_for_catchup('sub');
is($subscriber->safe_psql('postgres', 'SELECT v FROM t'), 'stock', 'a stream that cannot be compressed goes on');
ok($subscriber->log_contains(qr/the stream of replication slot "sub" is not compressed/, $log), '... and the log says so');
$subscriber->safe_psql('postgres', 'DROP SUBSCRIPTION sub');

# ---- large transactions without streaming = on --------------------------------------------

$subscriber->safe_psql('postgres', 'TRUNCATE t');
sql('TRUNCATE t');
$subscriber->safe_psql('postgres',
	"CREATE SUBSCRIPTION sub CONNECTION '$connstr' PUBLICATION pub WITH (copy_data = false)");
is($subscriber->safe_psql('postgres', 'SELECT substream FROM pg_subscription'), 'f', 'the subscription says streaming = off');

# Has the publisher sent the transaction in parts, or kept it in files?  A walsender that
# has just begun may have kept some that the subscriber has already.
sub way_of_large
{
	my ($first) = @_;

	sql("SELECT pg_stat_reset_replication_slot('sub')");
	sql("INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series($first, $first + 4999) i");
	$publisher->wait_for_catchup('sub');
	$publisher->poll_query_until('postgres',
		"SELECT stream_txns + spill_txns > 0 FROM pg_stat_replication_slots WHERE slot_name = 'sub'")
	  or die 'the transaction was not large';
	is($subscriber->safe_psql('postgres', 'SELECT count(*), sum(id) FROM t'),
		sql('SELECT count(*), sum(id) FROM t'), 'all rows are there');
	return sql("SELECT CASE WHEN stream_txns > 0 THEN 'parts' ELSE 'files' END FROM pg_stat_replication_slots WHERE slot_name = 'sub'");
}

# The worker starts again with the settings as they are.
sub restarted_with
{
	my ($name, $value) = @_;

	$subscriber->safe_psql('postgres', 'ALTER SUBSCRIPTION sub DISABLE');
	$subscriber->poll_query_until('postgres',
		'SELECT count(*) = 0 FROM pg_stat_subscription WHERE pid IS NOT NULL') or die 'still at work';
	$subscriber->append_conf('postgresql.conf', "$name = $value");
	$subscriber->reload;
	$subscriber->poll_query_until('postgres', "SELECT setting = '$value' FROM pg_settings WHERE name = '$name'")
	  or die 'not set';
	$subscriber->safe_psql('postgres', 'ALTER SUBSCRIPTION sub ENABLE');
	return;
}

is(way_of_large(1), 'parts', 'a large transaction is sent in parts');
restarted_with('temp_file_limit', '100000');
is(way_of_large(10001), 'files', '... not where temporary files have a limit');
restarted_with('temp_file_limit', '-1');
restarted_with('krahodb.stream_in_progress', 'off');
is(way_of_large(20001), 'files', '... nor if that is switched off');
$subscriber->safe_psql('postgres', 'ALTER SUBSCRIPTION sub SET (streaming = on)');
$subscriber->poll_query_until('postgres',
	"SELECT count(*) = 1 FROM pg_stat_subscription WHERE pid IS NOT NULL AND latest_end_lsn IS NOT NULL")
  or die 'not at work';
is(way_of_large(30001), 'parts', '... but for a subscription that asks for it');

# ---- a transaction that takes long here -----------------------------------------------------

# The publisher hears of the worker meanwhile, or it would give it up after wal_sender_timeout.
$subscriber->safe_psql('postgres', <<'EOS');
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM count(*) FROM generate_series(1, 700000); RETURN new; END $$;
CREATE TRIGGER slow BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION slow();
ALTER TABLE t ENABLE ALWAYS TRIGGER slow;
EOS
foreach my $case ([ 'in parts', 40001, 1500 ], [ 'in one frame', 50001, 10 ])
{
	my ($name, $first, $length) = @$case;
	my $replied = 'SELECT reply_time FROM pg_stat_replication';

	sql("INSERT INTO t SELECT i, repeat('x', $length) FROM generate_series($first, $first + 99) i");
	$subscriber->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'logical replication worker' AND backend_xid IS NOT NULL")
	  or die 'not being applied';
	my $before = sql($replied);
	$publisher->poll_query_until('postgres', "SELECT reply_time > '$before' FROM pg_stat_replication") or die 'no reply';
	is($subscriber->safe_psql('postgres', "SELECT count(*) FROM t WHERE id >= $first"), 0,
		"a slow transaction, $name: the worker reports before its end");
	$publisher->wait_for_catchup('sub');
}

done_testing();
