# Keys of rows that have to be fetched, where the two sides have them otherwise: other types, other
# lengths, other settings, another encoding.
# What goes wrong here: the key as this side has it is not the one that the writer has: the row is not found
# there, and the subscription stands still.

use strict;
use warnings;
use utf8;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

# Money is sent as text by lc_monetary, so both sides have the same; one with a decimal comma, if the machine has it.
my $locale = 'C';
my $locales = PostgreSQL::Test::Utils::tempdir();
if (system("localedef -i da_DK -f UTF-8 $locales/da_DK.utf8 >/dev/null 2>&1") == 0)
{
	$ENV{LOCPATH} = $locales;
	$locale = 'da_DK.utf8';
}

my $a = krahodb_node('a', conf => <<"EOS");
lc_monetary = '$locale'
timezone = 'Asia/Tokyo'
datestyle = 'SQL, DMY'
intervalstyle = sql_standard
bytea_output = escape
extra_float_digits = -5
EOS
my $b = krahodb_node('b', conf => <<"EOS");
lc_monetary = '$locale'
timezone = 'America/New_York'
datestyle = 'German'
intervalstyle = iso_8601
bytea_output = hex
extra_float_digits = 0
EOS

# Name: type at a, type at b, value.
my %keys = (
	same => [ 'int', 'int', '1' ],
	padded => [ 'text', 'char(8)', q{'abc'} ],
	padded_varchar => [ 'varchar(10)', 'char(8)', q{'abc'} ],
	from_char => [ 'char(8)', 'text', q{'abc'} ],
	longer => [ 'char(3)', 'char(8)', q{'abc'} ],
	wide => [ 'int', 'bigint', '17' ],
	as_text => [ 'bigint', 'text', '17' ],
	rounded => [ 'numeric', 'numeric(10,2)', '1.555' ],
	scale => [ 'numeric(10,4)', 'numeric', '1.5' ],
	single => [ 'float8', 'float4', '0.12345678901234' ],
	digits => [ 'float8', 'float8', '0.1234567890123456' ],
	seconds => [ 'timestamptz', 'timestamptz(0)', q{'2026-03-29 01:30:00.6+00'} ],
	zone => [ 'timestamptz', 'timestamptz', q{'2026-03-29 01:30:00.6+00'} ],
	no_zone => [ 'timestamptz', 'timestamp', q{'2026-03-29 01:30:00.6+00'} ],
	got_zone => [ 'timestamp', 'timestamptz', q{'2026-03-29 01:30:00.6'} ],
	day => [ 'date', 'date', q{DATE '2026-02-03'} ],
	day_text => [ 'date', 'text', q{DATE '2026-02-03'} ],
	span => [ 'interval', 'interval', q{interval '-1 month 2 days 03:00:04.5'} ],
	bytes => [ 'bytea', 'bytea', q{'\x5c00ff27'::bytea} ],
	cash => [ 'money', 'money', q{1234.56::numeric::money} ],
	feeling => [ 'mood', 'mood', q{'so so'} ],
	old_domain => [ 'checked', 'text', q{'not allowed any more'} ],
	any_case => [ 'text', 'citext', q{'AbC'} ],
	any_case_there => [ 'citext', 'text', q{'AbC'} ],
	doc => [ 'jsonb', 'jsonb', q{'{"a": 1.0}'} ],
	list => [ 'float8[]', 'float8[]', q{'{0.1234567890123456}'} ],
	umlaut => [ 'text', 'varchar(20)', q{'größer'} ]);

$a->safe_psql('postgres', q{CREATE DATABASE d ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0});
$b->safe_psql('postgres', q{CREATE DATABASE d ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0});
foreach my $side (0, 1)
{
	my $sql = q{
		CREATE EXTENSION krahodb;
		CREATE EXTENSION citext;
		CREATE FUNCTION wide(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT repeat($1, 12000 / length($1))';
		CREATE TYPE mood AS ENUM ('sad', 'so so');
		CREATE DOMAIN checked AS text;};
	$sql .= "CREATE TABLE $_ (k $keys{$_}[$side] PRIMARY KEY, v text, w text);
		ALTER TABLE $_ ALTER w SET STORAGE EXTERNAL;" foreach sort keys %keys;
	($a, $b)[$side]->safe_psql('d', "$sql CREATE PUBLICATION p FOR ALL TABLES");
}
$b->safe_psql('d', sprintf("CREATE SUBSCRIPTION b_a CONNECTION '%s' PUBLICATION p WITH (origin = none, copy_data = false)", connstr($a, 'd')));

sub on_all
{
	my ($node, $sql) = @_;

	$node->safe_psql('d', join ';', q{SET client_encoding = 'UTF8'}, map { sprintf $sql, $_, $keys{$_}[2] } sort keys %keys);
	return;
}

on_all($a, q{INSERT INTO %s VALUES (%s, 'old', wide('old'))});
$a->wait_for_catchup('b_a', 'replay', $a->lsn('insert'));
$a->safe_psql('d', q{ALTER DOMAIN checked ADD CHECK (value <> 'not allowed any more') NOT VALID});
on_all($b, q{UPDATE %s SET w = wide('b')});

my $offset = -s $b->logfile;
on_all($a, q{UPDATE %s SET v = 'a'});
$b->poll_query_until('d', 'SELECT (SELECT apply_error_count > 0 FROM pg_stat_subscription_stats) OR '
	  . join(' AND ', map { "(SELECT v = 'a' FROM $_)" } sort keys %keys));
my @failed = slurp_file($b->logfile, $offset) =~ /ERROR:  .*\n.*DETAIL:  .*/g;
is("@failed", '', 'all of them were found') or BAIL_OUT('the subscription stands still');
is($b->safe_psql('d', "SELECT v, left(w, 3), length(w) FROM $_"), 'a|old|12000', "key $_") foreach sort keys %keys;
is($b->safe_psql('d', 'SELECT fetched = ' . keys(%keys) . ' FROM krahodb.fetch_stats'), 't', 'all of them were fetched');

$_->stop foreach $a, $b;
done_testing();
