# What goes wrong here: a publisher that is broken, or not what it seems to be, answers questions
# beside the stream with NULL, or with things that nobody has asked for.  That may stop its
# subscription, but not the subscriber's server.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my ($pub, $sub) = map { krahodb_node($_) } qw(pub sub);

foreach my $node ($pub, $sub)
{
	$node->safe_psql('postgres', 'CREATE EXTENSION krahodb');
	$node->safe_psql('postgres', 'CREATE TABLE t (id int PRIMARY KEY, v text, w text); ALTER TABLE t ALTER w SET STORAGE EXTERNAL');
}
$pub->safe_psql('postgres', "INSERT INTO t VALUES (1, 'first', repeat('w', 5000)); CREATE PUBLICATION p FOR TABLE t");

my %functions = (
	'hold_horizon()' => 'RETURNS bigint',
	'table_versions("table" regclass, since bigint, OUT kind "char", OUT "time" bigint, OUT node text, OUT columns text[], OUT "values" text[])' =>
	  'RETURNS SETOF record',
	'row_state(schema text, "table" text, key_columns text[], key_values text[], columns text[], publications text[], writer xid,'
	  . ' OUT node bigint, OUT state text, OUT own boolean, OUT written_at bigint, OUT written_by bigint, OUT row_values text[])' =>
	  'RETURNS record');

# Functions of the extension as others would have them, and as they are.
sub replace
{
	my ($name, $body) = @_;
	my ($function) = grep { /^$name\(/ } keys %functions;
	my $language = $body ? "LANGUAGE sql AS \$\$$body\$\$" : "LANGUAGE C STRICT AS '\$libdir/krahodb', 'krahodb_$name'";

	$pub->safe_psql('postgres', "CREATE OR REPLACE FUNCTION krahodb.$function $functions{$function} $language");
	return;
}

sub refuses
{
	my ($name, $message, $do) = @_;
	my $start = -s $sub->logfile;

	$do->();
	ok($sub->wait_for_log($message, $start), $name);
	unlike(slurp_file($sub->logfile, $start), qr/terminated by signal/, '... and the server goes on');
	return;
}

# ---- the initial copy -------------------------------------------------------------------

replace('hold_horizon', 'SELECT NULL::bigint');
refuses('a horizon that is NULL', qr/ERROR:  could not receive the retention horizon from the publisher: unexpected answer/, sub {
		$sub->safe_psql('postgres', "CREATE SUBSCRIPTION s CONNECTION '" . connstr($pub) . "' PUBLICATION p WITH (origin = none)");
	});
foreach ([ 'NULL', qr/ERROR:  could not receive versions of rows from the publisher: unexpected answer/ ],
	[ "'m'", qr/ERROR:  publisher sent a version of unknown kind "m"/ ])
{
	my ($kind, $message) = @$_;

	refuses("a version of kind $kind", $message, sub {
			replace('table_versions', "SELECT $kind\::\"char\", 1::bigint, '1', '{id}'::text[], '{1}'::text[]");
			replace('hold_horizon', 'SELECT 1::bigint');
		});
}
refuses('a column without a name', qr/ERROR:  publisher sent a version of a column without a name/, sub {
		replace('table_versions', "SELECT 't'::\"char\", 1::bigint, '1', '{NULL}'::text[], '{1}'::text[]");
	});
replace('table_versions');
replace('hold_horizon');
$sub->wait_for_subscription_sync($pub, 's');
is($sub->safe_psql('postgres', 'SELECT v FROM t'), 'first', 'copied when the answers are right');

# ---- a row that is fetched ---------------------------------------------------------------

my $node = $pub->safe_psql('postgres', "SELECT CASE WHEN n > 9223372036854775807 THEN n - 18446744073709551616 ELSE n END FROM"
	  . " CAST(split_part(current_setting('krahodb.node'), '/', 1) AS numeric) n");
replace('row_state', "SELECT $node, NULL::text, NULL::bool, NULL::bigint, NULL::bigint, NULL::text[]");
$sub->safe_psql('postgres', "UPDATE t SET w = repeat('x', 5000) WHERE id = 1");
refuses('a row without a state', qr/unexpected answer to the query for a row of table "public.t" from the publisher/, sub {
		$pub->safe_psql('postgres', "UPDATE t SET v = 'later' WHERE id = 1");
	});
replace('row_state');
$pub->wait_for_catchup('s');
is($sub->safe_psql('postgres', 'SELECT v, left(w, 1) FROM t'), 'later|w', 'fetched when the answer is right');

done_testing();
