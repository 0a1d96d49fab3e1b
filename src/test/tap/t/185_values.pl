# Values on their way from one server to the other.
# What goes wrong here: a value that ends where a buffer does, and the byte behind it;
# settings of the subscriber's sessions that say how text is to be read and written;
# constraints of domains that change; generated columns that depend on no column.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $publisher = krahodb_node('publisher', conf => "logical_decoding_work_mem = 64kB\ntimezone = 'UTC'\n");
my $subscriber = krahodb_node('subscriber', conf => <<'EOC');
timezone = 'Asia/Tokyo'
datestyle = 'SQL, DMY'
intervalstyle = 'iso_8601'
extra_float_digits = 0
bytea_output = 'escape'
EOC

sub on_publisher { return $publisher->safe_psql('postgres', join("\n", @_)); }
sub on_subscriber { return $subscriber->safe_psql('postgres', join("\n", @_)); }

$_->safe_psql('postgres', <<'EOS') foreach $publisher, $subscriber;
CREATE TABLE wide (id int PRIMARY KEY, t text);
CREATE TABLE word (id int PRIMARY KEY, t text, v varchar, j jsonb);
EOS
on_subscriber("ALTER DATABASE postgres SET client_encoding = 'LATIN1'");
on_publisher("INSERT INTO word SELECT 1, w, w, jsonb_build_object('k', w) FROM CAST(U&'\\00e9' AS text) w");
my $values = "'2026-02-03 23:00:00.5+00', '2026-02-03', '1 mon -2 days', 0.1::float8 + 0.2, 0.1::float8 + 0.2, '\\x00ff', '{2026-02-03 23:00:00+00}', '2026-02-03 23:00:00+00'";
on_publisher('CREATE TABLE other_type (id int PRIMARY KEY, a timestamptz, b date, c interval, d float8, e float8, f bytea, g timestamptz[], h timestamptz);
	ALTER TABLE other_type REPLICA IDENTITY FULL', "; INSERT INTO other_type VALUES (1, $values)");
on_subscriber('CREATE DOMAIN exactly AS float8;
	CREATE TABLE other_type (id bigint, a timestamp, b text, c varchar, d numeric, e exactly, f text, g text, h date)');
on_publisher('CREATE TABLE thing (id int PRIMARY KEY, v int); CREATE TABLE constant (id int PRIMARY KEY)');
on_subscriber('CREATE DOMAIN small AS int CHECK (value < 100)',
	'; CREATE TABLE constant (id int PRIMARY KEY, c int NOT NULL GENERATED ALWAYS AS (42) STORED,
		t bool GENERATED ALWAYS AS (tableoid > 0) STORED)',
	'; CREATE TABLE thing (id int PRIMARY KEY, v int, twice small GENERATED ALWAYS AS (v * 2) STORED, d small DEFAULT 60)');
on_publisher('CREATE TABLE number (id int PRIMARY KEY, s int2, i int4, l int8, o oid, f float4, d float8, z timestamptz, t timestamp, p timestamp(6))');
on_subscriber('CREATE TABLE number (id int PRIMARY KEY, s int2, i int4, l int8, o oid, f float4, d float8, z timestamptz, t timestamp, p timestamp(0))');
on_publisher('CREATE TABLE string (id int PRIMARY KEY, t varchar(9), v varchar(9), c char(3), w char(3), n char(3), u varchar)');
on_subscriber('CREATE TABLE string (id int PRIMARY KEY, t text, v varchar(6), c char(3), w char(6), n char(2), u varchar)');
# The same types, as text for another type, and a domain that converts.
on_publisher('CREATE TABLE document (id int PRIMARY KEY, j jsonb, t jsonb, d jsonb, k jsonb);
	ALTER TABLE document ALTER j SET STORAGE EXTERNAL');
on_subscriber(q{CREATE DOMAIN object AS jsonb CHECK (jsonb_typeof(value) <> 'number' OR value < '100');
	CREATE TABLE document (id int PRIMARY KEY, j jsonb, t text, d object, k json)});
on_publisher('CREATE TABLE by_document (j jsonb, n int); ALTER TABLE by_document REPLICA IDENTITY FULL');
on_subscriber('CREATE TABLE by_document (j jsonb, n int)');
$_->safe_psql('postgres', 'CREATE TABLE acl (id int PRIMARY KEY, one aclitem, a aclitem[], v int2vector[], i int2vector, o oidvector)') foreach $publisher, $subscriber;
on_publisher('CREATE PUBLICATION pub FOR ALL TABLES');
on_subscriber("CREATE SUBSCRIPTION sub CONNECTION '" . connstr($publisher)
	  . "' PUBLICATION pub WITH (streaming = on, compression = lz4)");
$subscriber->wait_for_subscription_sync($publisher, 'sub');

# ---- values that end where a buffer does -------------------------------------------

# Each row is one byte longer than the one before, from before the first size of the
# buffer on in which a streamed transaction's file is read.
on_publisher("INSERT INTO wide SELECT i, repeat('x', 8100 + i) FROM generate_series(1, 300) i");
$publisher->wait_for_catchup('sub');
is(on_subscriber("SELECT count(*), bool_and(t = repeat('x', 8100 + id)) FROM wide"), '300|t',
	'rows of all lengths come by a streamed transaction');

# ---- types that have no binary form, or none for all of their values -------------------

on_publisher(q{INSERT INTO acl SELECT 1, a[1], a, '{1 2,3}', '1', '2 3' FROM acldefault('r', 'pg_monitor'::regrole) a;
	INSERT INTO acl VALUES (2, NULL, NULL, ARRAY['', '1']::int2vector[], '', '')});
$publisher->wait_for_catchup('sub');
is_equal_on([ $publisher, $subscriber ], 'SELECT * FROM acl ORDER BY id', 'privileges, vectors');

on_publisher("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'");
$publisher->safe_psql('latin', 'CREATE TABLE named (id int PRIMARY KEY, n name, a name[]); CREATE PUBLICATION pub FOR ALL TABLES');
on_subscriber('CREATE TABLE named (id int PRIMARY KEY, n name, a name[])');
on_subscriber("CREATE SUBSCRIPTION latin CONNECTION '" . connstr($publisher, 'latin') . "' PUBLICATION pub");
$subscriber->wait_for_subscription_sync($publisher, 'latin');
$publisher->safe_psql('latin', 'INSERT INTO named SELECT 1, n::name, ARRAY[n]::name[] FROM CAST(repeat(chr(233), 63) AS text) n');
$publisher->wait_for_catchup('latin');
is(on_subscriber("SELECT n = repeat(U&'\\00e9', 31), a[1] = n FROM named"), 't|t', 'a name that is longer in the encoding here');
on_subscriber('DROP SUBSCRIPTION latin');

# ---- client_encoding ----------------------------------------------------------------

my $words = "SELECT id, encode(t::bytea, 'hex'), encode(v::bytea, 'hex'), encode((j->>'k')::bytea, 'hex') FROM word ORDER BY id";
foreach my $id (2, 3)
{
	on_publisher("INSERT INTO word SELECT $id, t, v, j FROM word WHERE id = 1");
	$publisher->wait_for_catchup('sub');
	on_subscriber('ALTER SUBSCRIPTION sub SET (binary = true)');
}
is(on_subscriber($words), on_publisher($words),
	'text is not taken for what client_encoding says, in the initial copy and in the stream');

# ---- columns of other types ---------------------------------------------------------

my $others = 'SELECT a, b, c, d, e::float4, e = 0.1::float8 + 0.2, f, g, h FROM other_type ORDER BY id';
on_publisher("INSERT INTO other_type VALUES (2, $values)");
$publisher->wait_for_catchup('sub');
my ($copied, $streamed) = split /\n/, on_subscriber("SET datestyle = ISO; $others");
is($copied, '2026-02-03 23:00:00.5|2026-02-03|1 mon -2 days|0.30000000000000004|0.3|t|\x00ff|{"2026-02-03 23:00:00+00"}|2026-02-03',
	'values for columns of other types are read from the text of the publisher by the initial copy');
is($streamed, $copied, '... and by the stream');

# Without a key here a row is found by all that was copied or streamed.
on_publisher('UPDATE other_type SET id = id + 10');
$publisher->wait_for_catchup('sub');
is(on_subscriber('SELECT id FROM other_type ORDER BY id'), "11\n12", '... and so rows are found by all of their values');

# ---- numbers and strings ------------------------------------------------------------

# An UPDATE comes with a key that is read alike; the second row is as the publisher has it.
on_publisher(q{INSERT INTO number VALUES (-2147483648, -32768, -2147483648, -9223372036854775808, 4294967295, 'NaN', '-Infinity', '-infinity', '4713-11-24 BC', '2026-01-01 00:00:00.7'),
	(2147483647, 32767, 2147483647, 9223372036854775807, 0, 1e-45, -0.0::float8, '294276-12-31 23:59:59.999999+00', 'infinity', '2026-01-01'), (0, -1, -1, -1, 1, -0.0::float4, 5e-324, '2000-01-01 00:00:00+00', '1999-12-31 23:59:59.999999', NULL)},
	q{; UPDATE number SET l = l, id = 7 WHERE id = 0});
$publisher->wait_for_catchup('sub');
is(on_subscriber('SET extra_float_digits = 1; SET datestyle = ISO; SET timezone = UTC; SELECT * FROM number ORDER BY id'),
	on_publisher('SELECT id, s, i, l, o, f, d, z, t, p::timestamp(0) FROM number ORDER BY id'),
	'the least and the greatest numbers');

on_publisher(q{INSERT INTO string VALUES (1, U&'\00e9\20ac', U&'\00e9\00e9\20ac\20ac\20ac\20ac', U&'\00e9\20acx', U&'\00e9', 'ab', ''),
	(2, '', 'abcdef', 'abc', 'abc', U&'\20ac\20ac', repeat('x', 3000)), (3, NULL, 'abcdef   ', 'a', '', '', ' ')});
$publisher->wait_for_catchup('sub');
is(on_subscriber("SET client_encoding = UTF8; SELECT id, t, v || '.', octet_length(c), octet_length(w), rtrim(n), octet_length(n), u = CASE id WHEN 2 THEN repeat('x', 3000) ELSE trim(u) END
	FROM string WHERE id < 3 ORDER BY id"),
	on_publisher("SELECT id, t, v || '.', octet_length(c), octet_length(w) + 3, rtrim(n), octet_length(n) - 1, true FROM string WHERE id < 3 ORDER BY id"),
	'strings in columns of other lengths');
is(on_subscriber("SELECT v || '.', c = 'a', octet_length(n), u || '.' FROM string WHERE id = 3"), 'abcdef.|t|2| .',
	'blanks at the end are cut off as an assignment does');
my $position = -s $subscriber->logfile;
on_publisher("INSERT INTO string (id, v) VALUES (4, 'abcdefg')");
ok($subscriber->wait_for_log(qr/ERROR:  value too long for type character varying\(6\)/, $position), 'a string that is too long is an error');
on_subscriber('ALTER TABLE string ALTER v TYPE varchar(9)');
$publisher->wait_for_catchup('sub');
is(on_subscriber('SELECT v FROM string WHERE id = 4'), 'abcdefg', '... until the column is longer');

# ---- jsonb, which is sent as it is kept ----------------------------------------------

my $documents = 'SELECT id, j::text, t, d::text, k::jsonb::text FROM document ORDER BY id';
on_publisher(q{INSERT INTO document SELECT g, j, j, j, j FROM unnest(ARRAY[
	'null', 'true', '"word"', '-12.50e-3', '[]', '{}', '[[[]], {"a": {"b": [{}, null]}}]',
	'{"a": 1, "aa": [1.0, 1.00, 1e300], "": "", "\u00e9": "\u20ac"}', NULL]::jsonb[]) WITH ORDINALITY AS u(j, g);
	INSERT INTO document (id, j) SELECT 100, jsonb_agg(jsonb_build_object('n', g, 'text', repeat('x', g % 50))) FROM generate_series(1, 3000) g;
	INSERT INTO document (id, j) SELECT 101, jsonb_object_agg(g, g / 7.0) FROM generate_series(1, 3000) g;
	INSERT INTO document (id, j) SELECT 102, (repeat('[', 900) || repeat(']', 900))::jsonb;
	UPDATE document SET id = 103 WHERE id = 101; UPDATE document SET t = '[1]' WHERE id = 100});
$publisher->wait_for_catchup('sub');
is(on_subscriber("SET client_encoding = UTF8; $documents"), on_publisher($documents), 'documents of all kinds, in columns of other types, large ones, deep ones');
is(on_subscriber(q{SELECT count(*) FROM document WHERE j @> '{"a": 1}' OR j @> '[{"n": 2999}]' OR j ->> '2900' > '414'}), '3', '... can be looked into');
on_publisher(q{INSERT INTO by_document VALUES ('{"a": [1.0]}', 1), ('{"b": 2}', 2); UPDATE by_document SET n = 3 WHERE n = 1; DELETE FROM by_document WHERE n = 2});
$publisher->wait_for_catchup('sub');
is(on_subscriber('SELECT * FROM by_document'), '{"a": [1.0]}|3', '... and rows are found by them');
$position = -s $subscriber->logfile;
on_publisher(q{INSERT INTO document (id, d) VALUES (104, '100')});
ok($subscriber->wait_for_log(qr/ERROR:  value for domain public.object violates check constraint/, $position), '... and a domain is asked');
on_publisher(q{UPDATE document SET d = '1' WHERE id = 104});
on_subscriber('ALTER DOMAIN object DROP CONSTRAINT object_check');
$publisher->wait_for_catchup('sub');

# ---- domains that change ------------------------------------------------------------

# A worker has written to the table, and goes on.
sub domain_refuses
{
	my ($v, $constraint, $alter) = @_;
	my $offset = -s $subscriber->logfile;

	on_publisher("INSERT INTO thing VALUES ($v, $v)");
	ok($subscriber->wait_for_log(qr/value for domain public.small violates check constraint "$constraint"/, $offset),
		"$constraint of a domain counts from the next transaction on");
	on_subscriber($alter);
	$publisher->wait_for_catchup('sub');
	return;
}

on_publisher('INSERT INTO thing VALUES (1, 1)');
$publisher->wait_for_catchup('sub');
on_subscriber('ALTER DOMAIN small ADD CONSTRAINT of_generated CHECK (value < 70)');
domain_refuses(40, 'of_generated', 'ALTER DOMAIN small DROP CONSTRAINT of_generated');
on_subscriber('UPDATE thing SET d = 1', '; ALTER DOMAIN small ADD CONSTRAINT of_default CHECK (value <> 60)');
domain_refuses(2, 'of_default', 'ALTER DOMAIN small DROP CONSTRAINT of_default');
is(on_subscriber('SELECT * FROM thing ORDER BY id'), "1|1|2|1\n2|2|4|60\n40|40|80|1", '... and all rows are there at the end');

# ---- generated columns ----------------------------------------------------------------

on_publisher('INSERT INTO constant VALUES (1)', '; INSERT INTO constant VALUES (2), (3)',
	'; UPDATE constant SET id = 4 WHERE id = 3');
$publisher->wait_for_catchup('sub');
is(on_subscriber('SELECT * FROM constant ORDER BY id'), "1|42|t\n2|42|t\n4|42|t",
	'generated columns that depend on no column are computed');

done_testing();
