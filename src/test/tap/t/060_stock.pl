# What goes wrong here: a server without KrahoDB at the other end.  It must be
# able to subscribe to KrahoDB and to be subscribed to, with all that it knows of
# (row filters, column lists, binary, streaming, two-phase, FOR ALL TABLES), and it
# must never see a relation of KrahoDB's; so must tools that read pgoutput and
# test_decoding.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $conf = "logical_decoding_work_mem = 64kB\n";
my $stock = stock_node('stock', conf => $conf);
my $kraho = krahodb_node('kraho', conf => $conf);

is($stock->safe_psql('postgres', 'SHOW shared_preload_libraries'), '',
	'one server is stock PostgreSQL');
like($kraho->safe_psql('postgres', 'SHOW shared_preload_libraries'),
	qr/krahodb/, 'the other one is KrahoDB');
my $extension = $kraho->safe_psql('postgres',
	"SELECT count(*) FROM pg_available_extensions WHERE name = 'krahodb'");
$kraho->safe_psql('postgres', 'CREATE EXTENSION krahodb') if $extension;

my $plugin = "SELECT plugin FROM pg_replication_slots WHERE slot_type = 'logical' AND NOT temporary";

# ---- both directions, one after the other ------------------------------------------

sub both
{
	my ($sql) = @_;
	$_->safe_psql('postgres', $sql) foreach $stock, $kraho;
	return;
}

sub replicate
{
	my ($pub, $sub, $options) = @_;
	my $way = $pub->name . ' to ' . $sub->name . ($options ? " $options" : '');
	my $with = join(', ', $options || (), "slot_name = 's'");

	both(
		q{
		CREATE TABLE plain (id int PRIMARY KEY, t text, at timestamptz, n numeric, a int[]);
		CREATE TABLE nokey (id int, t text);
		CREATE TABLE whole (id int, t text);
		ALTER TABLE whole REPLICA IDENTITY FULL;
		CREATE TABLE filtered (id int PRIMARY KEY, region int, t text);
		ALTER TABLE filtered REPLICA IDENTITY FULL;
		CREATE TABLE columns (id int PRIMARY KEY, a int, secret text);
		CREATE TABLE generated (id int PRIMARY KEY, v int, twice int GENERATED ALWAYS AS (v * 2) STORED);
		CREATE TABLE parted (id int PRIMARY KEY, t text) PARTITION BY RANGE (id);
		CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (1000);
		CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (1000) TO (2000);
	});
	$pub->safe_psql(
		'postgres', q{
		INSERT INTO plain SELECT g, 'row ' || g, '2020-01-01 12:00+00', g / 7.0, ARRAY[g, g + 1] FROM generate_series(1, 100) g;
		INSERT INTO nokey SELECT g, 'row' FROM generate_series(1, 100) g;
		INSERT INTO whole SELECT g % 10, 'row' FROM generate_series(1, 100) g;
		INSERT INTO filtered SELECT g, g % 3, 'row' FROM generate_series(1, 99) g;
		INSERT INTO columns SELECT g, g, 'secret' FROM generate_series(1, 10) g;
		INSERT INTO generated SELECT g, g FROM generate_series(1, 10) g;
		INSERT INTO parted SELECT g * 100, 'row' FROM generate_series(1, 19) g;
		CREATE PUBLICATION p FOR TABLE plain, nokey, whole, generated, filtered WHERE (region = 1), columns (id, a);
		CREATE PUBLICATION roots FOR TABLE parted WITH (publish_via_partition_root);
	});
	$sub->safe_psql('postgres',
		sprintf("CREATE SUBSCRIPTION s CONNECTION '%s' PUBLICATION p, roots WITH (%s)",
			connstr($pub), $with));
	$sub->wait_for_subscription_sync($pub, 's');
	is($pub->safe_psql('postgres', $plugin), 'pgoutput', "$way: the slot is pgoutput's");

	$pub->safe_psql(
		'postgres', q{
		INSERT INTO plain SELECT g, 'new ' || g, now(), g / 3.0, '{}' FROM generate_series(101, 120) g;
		UPDATE plain SET t = 'changed', id = id + 1000 WHERE id <= 10;
		UPDATE plain SET t = NULL WHERE id = 50;
		DELETE FROM plain WHERE id BETWEEN 60 AND 70;
		INSERT INTO nokey VALUES (1, 'again'), (1, 'again');
		DELETE FROM whole WHERE id = 3;
		UPDATE whole SET t = 'changed' WHERE id = 4;
		INSERT INTO filtered VALUES (200, 1, 'in'), (201, 2, 'out');
		UPDATE filtered SET region = 1, t = 'moved in' WHERE id = 2;
		UPDATE filtered SET region = 2, t = 'moved out' WHERE id = 1;
		UPDATE filtered SET t = 'changed' WHERE id = 4;
		INSERT INTO columns VALUES (11, 11, 'secret');
		UPDATE columns SET a = 100, secret = 'more' WHERE id = 1;
		UPDATE generated SET v = 100 WHERE id = 1;
		INSERT INTO parted VALUES (5, 'new');
		UPDATE parted SET id = 1005 WHERE id = 5;
		DELETE FROM parted WHERE id = 1900;
	});
	# a large transaction, of which a part is rolled back
	$pub->safe_psql(
		'postgres', q{
		BEGIN;
		INSERT INTO nokey SELECT g, repeat('x', 100) FROM generate_series(1000, 3000) g;
		SAVEPOINT s;
		INSERT INTO nokey SELECT g, repeat('y', 100) FROM generate_series(3001, 5000) g;
		ROLLBACK TO s;
		INSERT INTO nokey VALUES (9999, 'after the savepoint');
		COMMIT;
	});
	# a prepared one
	$pub->safe_psql('postgres', "BEGIN; INSERT INTO plain(id, t) VALUES (5000, 'prepared'); PREPARE TRANSACTION 'one'");
	$pub->safe_psql('postgres', "BEGIN; INSERT INTO plain(id, t) VALUES (5001, 'rolled back'); PREPARE TRANSACTION 'two'");
	if (($options || '') =~ /two_phase/)
	{
		wait_streams(1, [ $pub, 's' ]);
		is($sub->safe_psql('postgres', 'SELECT count(*) FROM pg_prepared_xacts'), '2',
			"$way: prepared at the subscriber");
	}
	$pub->safe_psql('postgres', "COMMIT PREPARED 'one'");
	$pub->safe_psql('postgres', "ROLLBACK PREPARED 'two'");
	wait_streams(1, [ $pub, 's' ]);

	foreach my $table (qw(plain nokey whole generated parted))
	{
		is_equal_on([ $pub, $sub ],
			"SELECT count(*), md5(string_agg(t::text, ',' ORDER BY t::text)) FROM $table t",
			"$way: $table");
	}
	is( $sub->safe_psql('postgres', 'SELECT count(*), min(region), max(region), md5(string_agg(id || t, \',\' ORDER BY id)) FROM filtered'),
		$pub->safe_psql('postgres', 'SELECT count(*), min(region), max(region), md5(string_agg(id || t, \',\' ORDER BY id)) FROM filtered WHERE region = 1'),
		"$way: row filter");
	is( $sub->safe_psql('postgres', 'SELECT count(*), sum(a), count(secret) FROM columns'),
		'11|165|0', "$way: column list");

	$pub->safe_psql('postgres', 'TRUNCATE nokey, parted');
	wait_streams(1, [ $pub, 's' ]);
	is($sub->safe_psql('postgres', 'SELECT (SELECT count(*) FROM nokey) + (SELECT count(*) FROM parted)'),
		'0', "$way: TRUNCATE");

	# the subscriber's server dies and comes back
	$sub->stop('immediate');
	$pub->safe_psql('postgres', 'INSERT INTO nokey SELECT g FROM generate_series(1, 500) g');
	$sub->start;
	wait_streams(1, [ $pub, 's' ]);
	is_equal_on([ $pub, $sub ], 'SELECT count(*), count(DISTINCT id) FROM nokey', "$way: after a crash");

	$sub->safe_psql('postgres', 'DROP SUBSCRIPTION s');
	is($pub->safe_psql('postgres', $plugin), '', "$way: the slot is dropped");
	$pub->safe_psql('postgres', 'DROP PUBLICATION p, roots');
	both('DROP TABLE plain, nokey, whole, filtered, columns, generated, parted');
	return;
}

foreach my $options ('', 'binary = true', 'streaming = true', 'two_phase = true',
	'binary = true, streaming = true, two_phase = true')
{
	replicate($stock, $kraho, $options);
	replicate($kraho, $stock, $options);
}

# ---- FOR ALL TABLES: nothing of KrahoDB's ---------------------------------------------

both('CREATE TABLE everything (id int PRIMARY KEY, t text)');
$kraho->safe_psql('postgres', 'CREATE PUBLICATION everything FOR ALL TABLES');
$stock->safe_psql('postgres',
	sprintf("CREATE SUBSCRIPTION everything CONNECTION '%s' PUBLICATION everything", connstr($kraho)));
$stock->wait_for_subscription_sync($kraho, 'everything');
is($stock->safe_psql('postgres', 'SELECT srrelid::regclass FROM pg_subscription_rel'),
	'everything', 'FOR ALL TABLES: a stock subscriber gets the user\'s tables only');
is($kraho->safe_psql('postgres', 'SELECT tablename FROM pg_publication_tables'),
	'everything', 'and pg_publication_tables lists no other');
$kraho->safe_psql('postgres', "INSERT INTO everything VALUES (1, 'one')");
wait_streams(1, [ $kraho, 'everything' ]);
is($stock->safe_psql('postgres', 'SELECT t FROM everything'), 'one', 'FOR ALL TABLES: changes arrive');

# ---- a change that came to KrahoDB goes on to a stock subscriber -------------------------

my $source = krahodb_node('source');
$source->safe_psql('postgres', 'CREATE TABLE everything (id int PRIMARY KEY, t text); CREATE PUBLICATION p FOR TABLE everything');
$kraho->safe_psql('postgres',
	sprintf("CREATE SUBSCRIPTION chain CONNECTION '%s' PUBLICATION p WITH (copy_data = false)", connstr($source)));
is($source->safe_psql('postgres', $plugin), 'krahodb_output', 'between KrahoDB servers the slot is krahodb_output\'s');
$source->safe_psql('postgres', "INSERT INTO everything VALUES (2, 'two')");
wait_streams(1, [ $source, 'chain' ], [ $kraho, 'everything' ]);
is($stock->safe_psql('postgres', 'SELECT t FROM everything ORDER BY id'), "one\ntwo", 'a chain');

# ---- readers of a stream --------------------------------------------------------------------

foreach my $reader (
	[ 'pgoutput', '-o', 'proto_version=1', '-o', 'publication_names=everything' ],
	[ 'test_decoding', '-o', 'include-xids=0', '-o', 'skip-empty-xacts=1' ])
{
	my ($name, @options) = @$reader;
	my @connection = ('pg_recvlogical', '-d', $kraho->connstr('postgres'), '-S', "read_$name");

	command_ok([ @connection, '--create-slot', '-P', $name ], "$name: slot");
	$kraho->safe_psql('postgres', "INSERT INTO everything VALUES (10, 'for $name') ON CONFLICT (id) DO UPDATE SET t = EXCLUDED.t");
	my $end = $kraho->lsn('flush');
	my ($out, $err) = ('', '');
	IPC::Run::run([ @connection, '--start', '-f', '-', '--no-loop', '-E', $end, @options ],
		'>', \$out, '2>', \$err);
	like($out, qr/for $name/, "$name: the change is read") or diag($err);
	unlike($out, qr/krahodb/, "$name: nothing of KrahoDB's");
	command_ok([ @connection, '--drop-slot' ], "$name: slot dropped");
}

$kraho->safe_psql('postgres', 'DROP SUBSCRIPTION chain');
$stock->safe_psql('postgres', 'DROP SUBSCRIPTION everything');
$_->stop foreach $source, $stock, $kraho;
done_testing();
