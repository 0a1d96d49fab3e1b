# The output plugin krahodb_output.  To a client that does not ask for more it is
# pgoutput: two slots, one of each plugin, decode the same log, and what comes out
# must be equal byte for byte, LSNs included.  To a KrahoDB subscriber the same
# messages come in frames behind a handshake.  What can go wrong: a message more or
# less (BEGIN of an empty transaction, a schema sent again), another form of a
# value, a row filter that sees another row, a frame that keeps its last message
# back, options that are taken in silence.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/..";

use KrahoDB::Nodes;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = krahodb_node('publisher',
	conf => "logical_decoding_work_mem = 64kB\n");
my @plugins = ('pgoutput', 'krahodb_output');

sub sql { return $node->safe_psql('postgres', join("\n", @_)); }

# Slots are named after their plugins.
sub create_slots
{
	my ($two_phase) = @_;
	foreach my $plugin (@plugins)
	{
		sql("SELECT pg_create_logical_replication_slot('$plugin', '$plugin', false, $two_phase)");
	}
	return;
}

sub drop_slots { sql("SELECT pg_drop_replication_slot('$_')") foreach @plugins; return; }

# Both slots step over what there is.
sub step
{
	my $lsn = sql('SELECT pg_current_wal_insert_lsn()');
	sql("SELECT pg_replication_slot_advance('$_', '$lsn')") foreach @plugins;
	return;
}

sub option_list
{
	my (%options) = @_;
	return join(', ', map { "'$_', '$options{$_}'" } sort keys %options);
}

# The writes of a slot: "lsn xid hex" each.
sub changes
{
	my ($plugin, %options) = @_;
	my $list = option_list(proto_version => 1, %options);
	return split /\n/, sql("SET bytea_output = hex;",
		"SELECT lsn, xid, encode(data, 'hex') FROM pg_logical_slot_peek_binary_changes('$plugin', NULL, NULL, $list);");
}

sub payloads { return map { (split /\|/, $_, -1)[2] } @_; }

# Split frames (hex) into messages (hex); dies of a malformed frame.
sub unframe
{
	my @messages;
	foreach my $hex (@_)
	{
		my $frame = pack 'H*', $hex;
		die 'not a frame' if substr($frame, 0, 1) ne 'F';
		my $position = 1;
		die 'empty frame' if $position == length $frame;
		while ($position < length $frame)
		{
			my $length = unpack 'N', substr($frame, $position, 4);
			die 'bad length' if $length == 0 || $position + 4 + $length > length $frame;
			push @messages, unpack('H*', substr($frame, $position + 4, $length));
			$position += 4 + $length;
		}
	}
	return @messages;
}

# The types of messages, as a string.
sub types { return join '', map { chr hex substr($_, 0, 2) } @_; }

# Equal bytes in pgoutput's protocol, and the same messages in frames (with the
# option binary both send the same form of each value).  Returns the types.
sub check_equal
{
	my ($name, %options) = @_;
	my @expected = changes('pgoutput', %options);
	my @got = changes('krahodb_output', %options);
	is(join("\n", @got), join("\n", @expected), "$name: as pgoutput");

	@expected = payloads(changes('pgoutput', %options, binary => 'true'));
	@got = unframe(payloads(changes('krahodb_output', %options, binary => 'true', krahodb => 1)));
	is(types(shift @got), 'H', "$name: handshake first") if @expected;
	is(join("\n", @got), join("\n", @expected), "$name: the same messages in frames");
	return types(@expected);
}

# ---- options ----------------------------------------------------------------

create_slots('false');
sql('CREATE TABLE t (id int PRIMARY KEY, v text)',
	'; CREATE PUBLICATION pub FOR TABLE t; INSERT INTO t VALUES (0);');

sub decode_error
{
	my ($plugin, $list) = @_;
	my ($result, $stdout, $stderr) = $node->psql('postgres',
		"SELECT count(*) FROM pg_logical_slot_peek_binary_changes('$plugin', NULL, NULL" .
		  ($list eq '' ? '' : ", $list") . ')');
	return $result == 0 ? '' : (split /\n/, $stderr)[0] =~ s/^psql:<stdin>:\d+: //r;
}

foreach my $list (
	'',
	"'proto_version', '1'",
	"'proto_version', 'x', 'publication_names', 'pub'",
	"'proto_version', '-1', 'publication_names', 'pub'",
	"'proto_version', '0', 'publication_names', 'pub'",
	"'proto_version', '4', 'publication_names', 'pub'",
	"'proto_version', '99999999999999999999999', 'publication_names', 'pub'",
	"'proto_version', '1', 'proto_version', '1', 'publication_names', 'pub'",
	"'proto_version', '1', 'publication_names', 'pub', 'publication_names', 'pub'",
	"'proto_version', '1', 'publication_names', 'pub,'",
	"'proto_version', '1', 'publication_names', ''",
	"'proto_version', '1', 'publication_names', 'nowhere'",
	"'proto_version', '1', 'publication_names', 'pub', 'binary', 'maybe'",
	"'proto_version', '1', 'publication_names', 'pub', 'binary', 'on', 'binary', 'on'",
	"'proto_version', '1', 'publication_names', 'pub', 'messages', '2'",
	"'proto_version', '1', 'publication_names', 'pub', 'streaming', 'on'",
	"'proto_version', '2', 'publication_names', 'pub', 'two_phase', 'on'",
	"'proto_version', '2', 'publication_names', 'pub', 'streaming', 'parallel'")
{
	my $expected = decode_error('pgoutput', $list);
	isnt($expected, '', "options ($list) are refused by pgoutput");
	is(decode_error('krahodb_output', $list), $expected, '... and with the same error here');
}

my $valid = "'proto_version', '1', 'publication_names', 'pub'";
is(decode_error('krahodb_output', $valid), '', 'valid options are taken');
foreach my $case (
	["'no_such', '1'", qr/unrecognized krahodb_output option: no_such/],
	["'datum_format', '1'", qr/option "datum_format" needs option "krahodb"/],
	["'origin', 'some'", qr/unrecognized origin value: "some"/],
	["'origin', 'any', 'origin', 'any'", qr/conflicting or redundant options/],
	["'filter_origins', ''", qr/invalid value for filter_origins: ""/],
	["'filter_origins', '0'", qr/invalid value for filter_origins: "0"/],
	["'filter_origins', '65535'", qr/invalid value for filter_origins: "65535"/],
	["'filter_origins', '4294967297'", qr/invalid value for filter_origins/],
	["'filter_origins', '1 2'", qr/invalid value for filter_origins/],
	["'filter_origins', '1,,2'", qr/invalid value for filter_origins/],
	["'filter_origins', '1,'", qr/invalid value for filter_origins/],
	["'filter_origins', '-1'", qr/invalid value for filter_origins/],
	["'filter_origins', '1x'", qr/invalid value for filter_origins/],
	["'krahodb', ''", qr/invalid krahodb protocol version ""/],
	["'krahodb', 'one'", qr/invalid krahodb protocol version "one"/],
	["'krahodb', '0'", qr/client asked for KrahoDB protocol 0 but this server speaks KrahoDB protocol 1/],
	["'krahodb', '2'", qr/client asked for KrahoDB protocol 2 but this server speaks KrahoDB protocol 1/])
{
	my ($list, $expected) = @$case;
	like(decode_error('krahodb_output', "$valid, $list"), $expected, "option $list is refused");
}
foreach my $list ("'origin', 'ANY'", "'origin', 'none'", "'filter_origins', '1'",
	"'filter_origins', ' 65534 , 1,1 '", "'krahodb', '1'")
{
	is(decode_error('krahodb_output', "$valid, $list"), '', "option $list is taken");
}

SKIP:
{
	skip 'this server does not restrict output plugins', 1
	  if sql("SELECT count(*) FROM pg_settings WHERE name = 'output_plugin_libraries'") eq '0';
	my ($result, $stdout, $stderr) = $node->psql('postgres',
		"SET output_plugin_libraries = 'pgoutput';
		 SELECT pg_create_logical_replication_slot('refused', 'krahodb_output')");
	like($stderr, qr/library "krahodb_output" may not be used as an output plugin/,
		'a server that does not list the plugin refuses it');
}

# ---- rows -------------------------------------------------------------------

sql(q{
	CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
	CREATE TYPE pair AS (a int, b text);
	CREATE DOMAIN positive AS int CHECK (VALUE > 0);
	CREATE TABLE types (
		id int PRIMARY KEY, c_bool bool, c_int2 int2, c_int8 int8, c_float4 float4, c_float8 float8,
		c_numeric numeric(20, 5), c_text text, c_varchar varchar(20), c_bpchar char(10), c_name name,
		c_char "char", c_bytea bytea, c_date date, c_time time, c_timetz timetz, c_timestamp timestamp,
		c_timestamptz timestamptz, c_interval interval, c_uuid uuid, c_json json, c_jsonb jsonb,
		c_inet inet, c_bit bit varying, c_point point, c_range int4range, c_multirange int4multirange,
		c_ints int[], c_texts text[], c_oid oid, c_tsvector tsvector, c_lsn pg_lsn, c_xid xid,
		c_mood mood, c_moods mood[], c_pair pair, c_positive positive,
		c_regclass regclass, c_regtypes regtype[], c_xml xml, c_money money, c_class pg_class,
		c_generated int GENERATED ALWAYS AS (id * 2) STORED, c_dropped int, c_last text);
	ALTER TABLE types DROP COLUMN c_dropped;
	CREATE TABLE toasted (id int PRIMARY KEY, big text, other text, n int);
	ALTER TABLE toasted ALTER big SET STORAGE EXTERNAL, ALTER other SET STORAGE EXTERNAL;
	CREATE TABLE full_identity (a int, big text);
	ALTER TABLE full_identity ALTER big SET STORAGE EXTERNAL;
	ALTER TABLE full_identity REPLICA IDENTITY FULL;
	CREATE TABLE index_identity (a int NOT NULL, b text);
	CREATE UNIQUE INDEX index_identity_a ON index_identity (a);
	ALTER TABLE index_identity REPLICA IDENTITY USING INDEX index_identity_a;
	CREATE TABLE no_identity (a int);
	CREATE TABLE unpublished (a int PRIMARY KEY);
	CREATE TABLE no_columns ();
	CREATE PUBLICATION rows FOR TABLE types, toasted, full_identity, index_identity, no_columns;
	CREATE PUBLICATION inserts FOR TABLE no_identity WITH (publish = 'insert');
});
step();

my $all_types = q{true, 2, 8, 1.5, -2.25, 1234.5, 'text', 'varchar', 'bpchar', 'name', 'x', '\x00ff',
	'2024-02-29', '12:34:56.789', '12:34:56+02', '2024-02-29 12:34:56', '2024-02-29 12:34:56+00', '1 month 2 days',
	'12345678-1234-1234-1234-123456789012', '{"a": 1}', '{"b": [1, null]}', '10.0.0.1/8', B'1011', '(1,2)',
	'[1,5)', '{[1,5)}', '{1,NULL,3}', '{a,NULL,"b c"}', 42, 'a cat', '0/1', '7',
	'ok', '{sad,happy}', '(1,x)', 5, 'pg_class', '{int4,text}', '<a/>', '1.50', NULL};
sql(qq{
	INSERT INTO types VALUES (1, $all_types, DEFAULT, 'last');
	INSERT INTO types (id) VALUES (2);
	UPDATE types SET c_text = NULL, c_moods = '{}' WHERE id = 1;
	UPDATE types SET id = 3 WHERE id = 1;
	DELETE FROM types WHERE id = 3;
	BEGIN; INSERT INTO unpublished VALUES (1); COMMIT;
	BEGIN; INSERT INTO unpublished VALUES (2); INSERT INTO types (id) VALUES (10), (11), (12);
	INSERT INTO no_columns DEFAULT VALUES; COMMIT;
	BEGIN; INSERT INTO types (id) VALUES (13); SAVEPOINT s; INSERT INTO types (id) VALUES (14);
	ROLLBACK TO s; INSERT INTO types (id) VALUES (15); COMMIT;
	BEGIN; INSERT INTO types (id) VALUES (16); ROLLBACK;
});
# One TYPE message for each column of a user's type: mood, mood[], pair, positive.
is(check_equal('types', publication_names => 'rows'), 'BYYYYRIC' . 'BIC' . 'BUC' x 2 . 'BDC' . 'BIIIRIC' . 'BIIC',
	'... and these are the messages');

# How this server keeps values (datum_format.h), and one that differs.
my $format = sql(q{SELECT current_setting('server_version_num')::int / 10000 || ' '})
  . (pack('L', 1) eq pack('V', 1) ? 'little-endian' : 'big-endian') . ' 8 8 ' . sql('SHOW server_encoding');
my @formats = ([undef, 'b'], [$format, 'd'], [$format =~ s/ 8 8 / 4 8 /r, 'b'], ['', 'b']);

# Framed without the option binary: built-in types in binary where that is portable, and jsonb as
# it is kept for a client that keeps it alike.
foreach my $case (@formats)
{
	my ($datum_format, $jsonb) = @$case;
	my @option = defined $datum_format ? (datum_format => $datum_format) : ();
	my @messages = unframe(payloads(changes('krahodb_output', publication_names => 'rows', krahodb => 1, @option)));
	my ($insert) = grep { types($_) eq 'I' } @messages;
	my $bytes = pack 'H*', $insert;
	my ($type, $relid, $kind, $count) = unpack 'aNan', $bytes;
	my $position = 8;
	my @columns = split /\n/, sql("SELECT attname FROM pg_attribute WHERE attrelid = 'types'::regclass
		AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum");
	my (%kind, %value);
	is($count, scalar @columns, 'generated and dropped columns are not sent');
	foreach my $column (@columns)
	{
		$kind{$column} = substr $bytes, $position, 1;
		$position++;
		next if $kind{$column} =~ /[nu]/;
		my $length = unpack 'N', substr($bytes, $position, 4);
		$value{$column} = substr $bytes, $position + 4, $length;
		$position += 4 + $length;
	}
	is($position, length $bytes, 'the row is read to its end');
	my @text = grep { $kind{$_} eq 't' } @columns;
	is_deeply(\@text, [qw(c_name c_mood c_moods c_pair c_positive c_regclass c_regtypes c_xml c_money)],
		'these are sent as text');
	is_deeply([grep { $kind{$_} eq 'n' } @columns], ['c_class'], 'the null is sent as null');
	is(unpack('N', $value{id}), 1, 'int4 in binary');
	is(unpack('H*', $value{c_int8}), '0000000000000008', 'int8 in binary');
	is(unpack('H*', $value{c_bool}), '01', 'bool in binary');
	is(unpack('H*', $value{c_float4}), '3fc00000', 'float4 in binary');
	is($value{c_bpchar}, 'bpchar    ', 'char(n) in binary');
	is($value{c_regclass}, 'pg_class', 'regclass by name');
	my @jsonb = grep { $kind{$_} eq $jsonb && $_ eq 'c_jsonb' } @columns;
	is_deeply(\@jsonb, ['c_jsonb'], 'jsonb ' . ($jsonb eq 'd' ? 'as it is kept' : 'in binary') . ' for ' . ($datum_format // 'none'));
	is(scalar(grep { $kind{$_} eq 'd' } @columns), $jsonb eq 'd' ? 1 : 0, '... and nothing else so');
}

# The handshake.
{
	my @frames = payloads(changes('krahodb_output', publication_names => 'rows', krahodb => 1));
	my ($handshake) = unframe($frames[0]);
	my ($type, $protocol, $version, $server_version, $node_id, $length, $encoding) =
	  unpack 'anNNH16na*', pack('H*', $handshake);
	is($type, 'H', 'the first message is the handshake');
	is($protocol, 1, '... with the version of the protocol');
	cmp_ok($version, '>=', 100, '... of KrahoDB');
	is($server_version, sql('SHOW server_version_num'), '... of the server');
	isnt($node_id, '0' x 16, '... the identity of the node');
	is($encoding, sql('SHOW server_encoding'), '... and the encoding');
	is($length, length $encoding, '... with its length');
	is(scalar(grep { types(unframe($_)) =~ /H/ } @frames), 1, 'there is one handshake');
	is(scalar(@frames), scalar(grep { types(unframe($_)) =~ /^H?B.*C$/ } @frames),
		'each small transaction is one frame');
}
step();

# ---- replica identities and TOAST -------------------------------------------

sql(q{
	INSERT INTO toasted VALUES (1, repeat('big', 5000), repeat('other', 5000), 1);
	UPDATE toasted SET n = 2;
	UPDATE toasted SET other = repeat('new', 5000);
	UPDATE toasted SET id = 2;
	DELETE FROM toasted;
	INSERT INTO full_identity VALUES (1, repeat('big', 5000)), (2, NULL);
	UPDATE full_identity SET a = 3 WHERE a = 1;
	DELETE FROM full_identity;
	INSERT INTO index_identity VALUES (1, 'one');
	UPDATE index_identity SET b = 'two';
	UPDATE index_identity SET a = 2;
	DELETE FROM index_identity;
	INSERT INTO no_identity VALUES (1);
	UPDATE no_identity SET a = 2;
	DELETE FROM no_identity;
});
is(check_equal('identities', publication_names => 'rows,inserts'),
	'BRICBUCBUCBUCBDC' . 'BRIICBUCBDDC' . 'BRICBUCBUCBDC' . 'BRIC', '... and these are the messages');
step();

# ---- row filters --------------------------------------------------------------

sql(q{
	CREATE TABLE filtered (id int, k text, v int, PRIMARY KEY (id, k));
	ALTER TABLE filtered ALTER k SET STORAGE EXTERNAL;
	CREATE TABLE filtered_full (id int, big text, v int);
	ALTER TABLE filtered_full ALTER big SET STORAGE EXTERNAL;
	ALTER TABLE filtered_full REPLICA IDENTITY FULL;
	CREATE PUBLICATION filter1 FOR TABLE filtered WHERE (id < 100), filtered_full WHERE (v > 10 AND big <> 'none');
	CREATE PUBLICATION filter2 FOR TABLE filtered WHERE (id > 200), filtered_full WHERE (v = -1);
	CREATE PUBLICATION filter_inserts FOR TABLE filtered WHERE (v = 7) WITH (publish = 'insert');
	CREATE PUBLICATION no_filter_deletes FOR TABLE filtered WITH (publish = 'delete');
	CREATE PUBLICATION everything FOR ALL TABLES WITH (publish = 'insert, update, delete');
});
step();
sql(q{
	INSERT INTO filtered VALUES (1, 'a', 1), (150, 'a', 1), (250, 'a', 1), (151, 'x', 7);
	UPDATE filtered SET v = 2 WHERE id = 1;
	UPDATE filtered SET v = 2 WHERE id = 150;
	UPDATE filtered SET id = 151 WHERE id = 1;
	UPDATE filtered SET id = 2 WHERE id = 151 AND k = 'a';
	UPDATE filtered SET id = 3 WHERE id = 2;
	UPDATE filtered SET id = 160 WHERE id = 150;
	DELETE FROM filtered WHERE id IN (3, 160);
	INSERT INTO filtered_full VALUES (1, repeat('big', 5000), 1), (2, NULL, 11), (3, repeat('x', 9000), 20);
	UPDATE filtered_full SET v = 11 WHERE id = 1;
	UPDATE filtered_full SET v = 12 WHERE id = 1;
	UPDATE filtered_full SET v = 9 WHERE id = 1;
	UPDATE filtered_full SET v = NULL WHERE id = 3;
	DELETE FROM filtered_full;
});
my @filter_cases = (
	['filter1', 'BRICBUCBDCBICBUCBDCBRICBICBUCBDCBDC'],
	['filter1,filter2', undef],
	['filter_inserts', 'BRIC'],
	['filter1,no_filter_deletes', undef],
	['filter1,filter_inserts', undef],
	['filter1,everything', undef]);
foreach my $case (@filter_cases)
{
	my ($names, $expected) = @$case;
	my $got = check_equal("filters ($names)", publication_names => $names);
	is($got, $expected, '... and these are the messages') if defined $expected;
}
step();

# A replica identity column that is stored out of line: the filter and an INSERT
# made of an UPDATE take it from the old row.
sql(q{
	CREATE TABLE filtered_toast (k text, v int);
	ALTER TABLE filtered_toast ALTER k SET STORAGE EXTERNAL;
	ALTER TABLE filtered_toast REPLICA IDENTITY FULL;
	CREATE PUBLICATION filter_toast FOR TABLE filtered_toast WHERE (length(k) > 3 AND v > 5);
});
step();
sql(q{
	INSERT INTO filtered_toast VALUES (repeat('long', 5000), 1);
	UPDATE filtered_toast SET v = 6;
	UPDATE filtered_toast SET v = 7;
	UPDATE filtered_toast SET v = 5;
});
is(check_equal('filter on TOAST', publication_names => 'filter_toast'), 'BRICBUCBDC',
	'... and these are the messages');
step();

# ---- column lists -------------------------------------------------------------

sql(q{
	CREATE TABLE listed (id int PRIMARY KEY, a text, b mood, c int);
	CREATE PUBLICATION list1 FOR TABLE listed (id, b);
	CREATE PUBLICATION list2 FOR TABLE listed (b, id);
	CREATE PUBLICATION list3 FOR TABLE listed (id, a, b, c);
	CREATE PUBLICATION list4 FOR TABLE listed (id, c);
	CREATE PUBLICATION list_none FOR TABLE listed;
});
step();
sql(q{
	INSERT INTO listed VALUES (1, 'a', 'ok', 1);
	UPDATE listed SET id = 2, a = 'b';
	UPDATE listed SET c = 3;
	DELETE FROM listed;
});
check_equal("column lists ($_)", publication_names => $_)
  foreach 'list1', 'list1,list2', 'list3', 'list3,list_none', 'list_none';
foreach my $names ('list1,list4', 'list4,list_none', 'list1,everything')
{
	my $list = "'proto_version', '1', 'publication_names', '$names'";
	my $expected = decode_error('pgoutput', $list);
	like($expected, qr/cannot use different column lists for table "public.listed" in different publications/,
		"different column lists ($names) are refused by pgoutput");
	is(decode_error('krahodb_output', $list), $expected, '... and here');
}
step();

# All columns that can be sent are no list (to pgoutput from 16 on).
sql(q{
	CREATE TABLE shrunk (a int PRIMARY KEY, b int, gone int, g int GENERATED ALWAYS AS (a + 1) STORED);
	ALTER TABLE shrunk DROP gone;
	CREATE PUBLICATION all_listed FOR TABLE shrunk (a, b);
	CREATE PUBLICATION none_listed FOR TABLE shrunk;
});
step();
sql('INSERT INTO shrunk VALUES (1, 2); UPDATE shrunk SET b = 3');
is(join("\n", changes('krahodb_output', publication_names => 'all_listed,none_listed')),
	join("\n", changes('pgoutput', publication_names => 'none_listed')),
	'a list of all columns but those that are never sent is the same as none');
step();

# ---- partitions -----------------------------------------------------------------

sql(q{
	CREATE TABLE root (a int, b text, c int, PRIMARY KEY (a)) PARTITION BY RANGE (a);
	CREATE TABLE middle PARTITION OF root FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (a);
	CREATE TABLE leaf_same PARTITION OF middle FOR VALUES FROM (0) TO (50);
	CREATE TABLE leaf_other (gone int, c int, b text, a int NOT NULL);
	ALTER TABLE leaf_other DROP COLUMN gone;
	ALTER TABLE middle ATTACH PARTITION leaf_other FOR VALUES FROM (50) TO (100);
	CREATE TABLE leaf_root PARTITION OF root FOR VALUES FROM (100) TO (200);
	CREATE PUBLICATION via_root FOR TABLE root WHERE (a <> 60) WITH (publish_via_partition_root);
	CREATE PUBLICATION via_middle FOR TABLE middle WITH (publish_via_partition_root);
	CREATE PUBLICATION via_columns FOR TABLE root (a, c) WITH (publish_via_partition_root);
	CREATE PUBLICATION by_leaf FOR TABLE root;
	CREATE PUBLICATION one_leaf FOR TABLE leaf_other WHERE (a > 55);
	CREATE PUBLICATION all_via_root FOR ALL TABLES WITH (publish_via_partition_root);
	CREATE PUBLICATION all_by_leaf FOR ALL TABLES;
	CREATE PUBLICATION schema_via_root FOR TABLES IN SCHEMA public WITH (publish_via_partition_root);
});
step();
sql(q{
	INSERT INTO root VALUES (1, 'one', 1), (51, 'other', 2), (60, 'sixty', 3), (101, 'root', 4);
	UPDATE root SET b = b || '!';
	UPDATE root SET a = 61 WHERE a = 60;
	UPDATE root SET a = 60 WHERE a = 61;
	UPDATE root SET a = 102 WHERE a = 51;
	DELETE FROM root WHERE a > 50;
	TRUNCATE root;
	TRUNCATE leaf_other, leaf_root;
	TRUNCATE t, types RESTART IDENTITY CASCADE;
});
check_equal("partitions ($_)", publication_names => $_)
  foreach 'via_root', 'via_middle', 'via_columns', 'by_leaf', 'one_leaf', 'all_via_root', 'all_by_leaf',
  'schema_via_root', 'via_root,via_middle', 'via_middle,by_leaf', 'one_leaf,via_root', 'one_leaf,by_leaf',
  'via_middle,all_via_root', 'by_leaf,one_leaf,via_middle,via_root';
step();

# ---- changes of definition between and within transactions ---------------------

sql(q{
	CREATE TABLE defined (id int PRIMARY KEY, a int);
	CREATE PUBLICATION defined FOR TABLE defined;
});
step();
sql(q{
	INSERT INTO defined VALUES (1, 1);
	ALTER TABLE defined ADD COLUMN b text DEFAULT 'filled';
	UPDATE defined SET a = 2;
	BEGIN; INSERT INTO defined VALUES (2, 2, 'two'); ALTER TABLE defined RENAME b TO c;
	ALTER TABLE defined ALTER a TYPE bigint; INSERT INTO defined VALUES (3, 3, 'three'); COMMIT;
	ALTER PUBLICATION defined SET TABLE defined (id, c) WHERE (id > 2);
	INSERT INTO defined VALUES (0, 4, 'four'), (4, 4, 'four');
	ALTER PUBLICATION defined SET (publish = 'insert');
	UPDATE defined SET a = 5 WHERE id = 4;
	ALTER PUBLICATION defined DROP TABLE defined;
	INSERT INTO defined VALUES (5, 5, 'five');
	ALTER PUBLICATION defined ADD TABLES IN SCHEMA public;
	INSERT INTO defined VALUES (6, 6, 'six');
	ALTER TABLE defined REPLICA IDENTITY FULL;
	ALTER PUBLICATION defined SET (publish = 'update, delete');
	UPDATE defined SET a = 7 WHERE id = 6;
	CREATE TABLE rewritten AS SELECT g AS id, 'x' AS v FROM generate_series(1, 3) g;
	ALTER TYPE mood ADD VALUE 'great';
	CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1';
	DELETE FROM defined WHERE id = 6;
	ALTER PUBLICATION defined RENAME TO renamed;
	ALTER PUBLICATION renamed RENAME TO defined;
	DELETE FROM defined;
});
check_equal('definitions', publication_names => 'defined');
step();
sql('ALTER PUBLICATION pub RENAME TO pub2; INSERT INTO t VALUES (100)');
is(decode_error('krahodb_output', $valid), 'ERROR:  publication "pub" does not exist',
	'a publication that is gone is an error');
sql('ALTER PUBLICATION pub2 RENAME TO pub');
step();

# A schema gets another name, which says nothing of its tables (pgoutput does it from 16 on).
sql('CREATE SCHEMA one; CREATE TABLE one.moved (id int PRIMARY KEY); CREATE PUBLICATION moved FOR TABLE one.moved');
step();
sql('INSERT INTO one.moved VALUES (1); ALTER SCHEMA one RENAME TO two; INSERT INTO two.moved VALUES (2)');
is(join(' ', map { /^52.{8}((?:..)*?)00/ ? pack('H*', $1) : () }
		payloads(changes('krahodb_output', publication_names => 'moved'))),
	'one two', 'a schema that is renamed is sent by its new name');
step();

# More relations than the cache keeps before it looks for stale ones.
sql(q{DO $$ BEGIN
	FOR i IN 1..600 LOOP
		EXECUTE format('CREATE TABLE many%s (id int PRIMARY KEY)', i);
		EXECUTE format('INSERT INTO many%s VALUES (1), (2)', i);
		IF i % 3 = 0 THEN EXECUTE format('DROP TABLE many%s', i - 1); END IF;
		INSERT INTO t VALUES (1000 + i);
	END LOOP;
END $$});
sql('INSERT INTO many1 VALUES (3); INSERT INTO many600 VALUES (3); INSERT INTO many4 VALUES (3)');
check_equal('many relations', publication_names => 'all_by_leaf');
sql(q{DO $$ BEGIN FOR i IN 1..600 LOOP EXECUTE format('DROP TABLE IF EXISTS many%s', i); END LOOP; END $$});
step();

# ---- logical messages and origins -----------------------------------------------

sql(q{
	SELECT pg_logical_emit_message(true, 'prefix', 'transactional');
	BEGIN; INSERT INTO t VALUES (200); SELECT pg_logical_emit_message(false, 'now', 'first');
	SELECT pg_logical_emit_message(true, 'in', 'order'); INSERT INTO t VALUES (201); COMMIT;
	BEGIN; SELECT pg_logical_emit_message(false, 'lost?', 'no'); SELECT pg_logical_emit_message(true, 'lost', 'yes'); ROLLBACK;
	INSERT INTO unpublished VALUES (3);
});
is(check_equal('messages', publication_names => 'pub', messages => 'true'), 'BMCMBRIMICM',
	'... and these are the messages');
is(check_equal('no messages', publication_names => 'pub'), 'BRIIC', '... and none without the option');
{
	my @frames = payloads(changes('krahodb_output', publication_names => 'pub', messages => 'true', krahodb => 1));
	is(join(' ', map { types(unframe($_)) } @frames), 'HBMC M BRIMIC M', 'a message outside of transactions is sent at once');
}
step();

my %origin = map { $_ => sql("SELECT pg_replication_origin_create('$_')") } 'first', 'second';
foreach my $origin ('first', 'second')
{
	sql("SELECT pg_replication_origin_session_setup('$origin'); BEGIN;
		SELECT pg_replication_origin_xact_setup('0/1234', '2024-01-01 00:00:00+00');
		INSERT INTO t VALUES (300 + $origin{$origin}); COMMIT;
		SELECT pg_logical_emit_message(false, '$origin', '');");
}
sql('INSERT INTO t VALUES (310)');
my %with_messages = (publication_names => 'pub', messages => 'true');
is(check_equal('origins', %with_messages), 'BORICMBOICMBIC', '... and these are the messages');

# What is left of "BORICMBOICMBIC" by filters.
foreach my $case (
	[{ origin => 'any' }, 'BORICMBOICMBIC'],
	[{ origin => 'none' }, 'BRIC'],
	[{ filter_origins => $origin{first} }, 'BORICMBIC'],
	[{ filter_origins => "65534, $origin{second}, 9" }, 'BORICMBIC'],
	[{ filter_origins => "$origin{second},$origin{first}" }, 'BRIC'],
	[{ filter_origins => '60000' }, 'BORICMBOICMBIC'],
	[{ filter_origins => $origin{first}, origin => 'none' }, 'BRIC'],
	[{ filter_origins => $origin{first}, origin => 'any' }, 'BORICMBIC'])
{
	my ($options, $expected) = @$case;
	my @got = payloads(changes('krahodb_output', %with_messages, %$options));
	is(types(@got), $expected, 'origins filtered by ' . option_list(%$options));
	@got = unframe(payloads(changes('krahodb_output', %with_messages, %$options, krahodb => 1)));

	# What was filtered has been seen (130_seen.pl).
	$expected =~ s/^B/BV/ if $expected ne 'BORICMBOICMBIC';
	is(types(@got), "H$expected", '... and in frames');
}
{
	my @got = payloads(changes('krahodb_output', %with_messages, filter_origins => $origin{first}));
	like(join("\n", @got), qr/^4f[0-9a-f]{16}@{[unpack 'H*', "second"]}00$/m, 'the other origin is not filtered');
	unlike(join("\n", @got), qr/@{[unpack 'H*', "first"]}/, '... and this one is');
}
sql('SELECT pg_replication_origin_drop(o) FROM unnest(ARRAY[\'first\', \'second\']) o');
is(check_equal('dropped origins', %with_messages), 'BORICMBOICMBIC', '... are named as they were then');
step();

# ---- streamed transactions --------------------------------------------------------

sql(q{
	BEGIN; INSERT INTO types (id, c_text, c_mood) SELECT g, repeat('x', 100), 'ok' FROM generate_series(1001, 3000) g;
	UPDATE types SET c_text = NULL WHERE id > 2000; COMMIT;
	INSERT INTO types (id) VALUES (3001);
	BEGIN; INSERT INTO types (id, c_text) SELECT g, repeat('y', 100) FROM generate_series(4001, 5000) g;
	SAVEPOINT s; INSERT INTO types (id, c_text) SELECT g, repeat('y', 100) FROM generate_series(5001, 6000) g;
	ROLLBACK TO s; SELECT pg_logical_emit_message(true, 'streamed', 'message');
	TRUNCATE t; INSERT INTO t SELECT generate_series(1, 2000); COMMIT;
	BEGIN; INSERT INTO types (id, c_text) SELECT g, repeat('z', 100) FROM generate_series(7001, 8000) g; ROLLBACK;
	INSERT INTO t VALUES (5000);
	BEGIN; INSERT INTO unpublished SELECT generate_series(10, 3000); COMMIT;
	INSERT INTO types (id) VALUES (3002);
});
my %streaming = (publication_names => 'rows,pub', proto_version => 2, streaming => 'true', messages => 'true');
my $streamed = check_equal('streaming', %streaming);
like($streamed, qr/S[YR]*I+E.*c.*BI.*S.*A.*c/, '... and these are the messages');
check_equal('not streaming', publication_names => 'rows,pub', proto_version => 2, messages => 'true');
{
	my @frames = payloads(changes('krahodb_output', %streaming, krahodb => 1));
	my @types = map { types(unframe($_)) } @frames;
	is(scalar(grep { !/[ECcAM]$/ } @types), 0, 'each block that is streamed ends its frame')
	  or diag join "\n", grep { !/[ECcAM]$/ } @types;
}
step();

# Two transactions at once whose blocks alternate; one is rolled back.
{
	my ($first, $second) = map { $node->background_psql('postgres') } 1 .. 2;
	$first->query_safe("BEGIN; INSERT INTO types (id, c_text) SELECT g, repeat('a', 100) FROM generate_series(10001, 11000) g");
	$second->query_safe("BEGIN; INSERT INTO types (id, c_text) SELECT g, repeat('b', 100) FROM generate_series(20001, 21000) g");
	$first->query_safe("INSERT INTO types (id, c_text) SELECT g, repeat('a', 100) FROM generate_series(11001, 12000) g");
	$second->query_safe("INSERT INTO t VALUES (7000)");
	$first->query_safe("COMMIT");
	like(check_equal('in progress', %streaming), qr/S[YR]*I+E.*S[YR]*I+E.*c/, '... and these are the messages');
	sql('INSERT INTO types (id) VALUES (21002)');
	$second->query_safe("ROLLBACK");
	sql('INSERT INTO types (id) VALUES (21003)');
	check_equal('rolled back', %streaming);
	$_->quit foreach $first, $second;
}
step();

# ---- large transactions in frames ---------------------------------------------

sql("BEGIN; TRUNCATE t; INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 20000) g;
	INSERT INTO t VALUES (30000, repeat('x', 3000000)); INSERT INTO t VALUES (30001); COMMIT;");
check_equal('a large transaction', publication_names => 'pub');
{
	my @frames = payloads(changes('krahodb_output', publication_names => 'pub', krahodb => 1));
	my @lengths = map { length($_) / 2 } @frames;
	my @large = grep { $_ > 3000000 } @lengths;
	is(scalar(@large), 1, 'the large row is in one frame');
	is(scalar(grep { $_ < 64 * 1024 } @lengths), 1, 'only the last frame is smaller than the limit');
	is(scalar(grep { $_ > 66 * 1024 } @lengths), 1, 'only the one with the large row is much larger');
	is(types(unframe(@frames)), 'HBRT' . 'I' x 20002 . 'C', 'no message is missing');

	# The same through a walsender.
	my $lsn = sql('SELECT pg_current_wal_insert_lsn()');
	my $stdout = $node->pg_recvlogical_upto('postgres', 'krahodb_output', $lsn,
		$PostgreSQL::Test::Utils::timeout_default,
		proto_version => 1, publication_names => 'pub', krahodb => 1);
	my $expected = join '', map { pack('H*', $_) . "\n" } @frames;
	is(length($stdout), length($expected), 'a walsender sends as much');
	ok($stdout eq $expected, '... and the same frames');
}
step();

# ---- two-phase commit -----------------------------------------------------------

drop_slots();
create_slots('true');
sql(q{
	BEGIN; INSERT INTO types (id) VALUES (30001); PREPARE TRANSACTION 'one';
	INSERT INTO types (id) VALUES (30002);
	COMMIT PREPARED 'one';
	BEGIN; INSERT INTO unpublished VALUES (30001); PREPARE TRANSACTION 'empty';
	COMMIT PREPARED 'empty';
	BEGIN; INSERT INTO types (id) VALUES (30003); PREPARE TRANSACTION 'undone';
	ROLLBACK PREPARED 'undone';
	BEGIN; INSERT INTO types (id, c_text) SELECT g, repeat('x', 100) FROM generate_series(40001, 41000) g;
	PREPARE TRANSACTION 'large';
	COMMIT PREPARED 'large';
	BEGIN; INSERT INTO types (id, c_text) SELECT g, repeat('x', 100) FROM generate_series(41001, 42000) g;
	PREPARE TRANSACTION 'large, undone';
	INSERT INTO types (id) VALUES (30004);
	ROLLBACK PREPARED 'large, undone';
	INSERT INTO types (id) VALUES (30005);
});
my %two_phase = (publication_names => 'rows', proto_version => 3, two_phase => 'true');
like(check_equal('two-phase commit', %two_phase),
	qr/^b[YR]+IPBICKbPKb(I)?PrbI{1000}PKb(I{1000})?PBICrBIC$/, '... and these are the messages');
like(check_equal('two-phase commit, streamed', %two_phase, streaming => 'true'),
	qr/^b[YR]+IP.*S[YR]+I+E.*pK/, '... and these are the messages');
sql(q{SELECT pg_replication_origin_create('third'); SELECT pg_replication_origin_session_setup('third');
	BEGIN; SELECT pg_replication_origin_xact_setup('0/4321', '2024-01-01 00:00:00+00');
	INSERT INTO types (id) VALUES (50001); PREPARE TRANSACTION 'origin'; COMMIT PREPARED 'origin';
	BEGIN; INSERT INTO types (id, c_text) SELECT g, repeat('x', 100) FROM generate_series(51001, 52000) g; COMMIT;});
like(check_equal('two-phase commit with an origin', %two_phase, streaming => 'true'), qr/bOIPKSO[YR]+I+E/,
	'... and these are the messages');
{
	my @frames = payloads(changes('krahodb_output', %two_phase, origin => 'none', streaming => 'true', krahodb => 1));
	unlike(types(unframe(@frames)), qr/O/, 'origin none filters prepared transactions too');
}
drop_slots();
sql(q{SELECT pg_replication_origin_drop('third')});

$node->stop;
done_testing();
