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
$_->safe_psql('postgres', 'CREATE TABLE acl (id int PRIMARY KEY, one aclitem, a aclitem[], v int2vector[])') foreach $publisher, $subscriber;
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

# ---- types that have no binary form ----------------------------------------------------

on_publisher(q{INSERT INTO acl SELECT 1, a[1], a, '{1 2,3}' FROM acldefault('r', 'pg_monitor'::regrole) a});
$publisher->wait_for_catchup('sub');
is_equal_on([ $publisher, $subscriber ], 'SELECT * FROM acl', 'privileges');

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
