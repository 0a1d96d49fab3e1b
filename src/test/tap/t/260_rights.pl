# What goes wrong here: somebody who owns a table, or a schema, has code of his run with the
# rights of a superuser who fetches a row from that table, or asks the views of the extension.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

# Immutable as it says, but for what it does beside; it leaves a setting in the session if it can.
my $owned = q{
	CREATE FUNCTION code(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN
		RAISE LOG 'code of owner as %', current_user;
		PERFORM set_config('owner.was', 'here', false);
		RETURN $1;
	END $$;
	CREATE DOMAIN checked AS int CHECK (public.code(VALUE) > 0);
	CREATE TABLE routed (id checked NOT NULL, v int) PARTITION BY RANGE (code(id));
	CREATE TABLE routed_1 PARTITION OF routed FOR VALUES FROM (0) TO (100);
	ALTER TABLE routed_1 ADD PRIMARY KEY (id);
	INSERT INTO routed VALUES (1, 5);};

my $node = krahodb_node('node');

$node->safe_psql('postgres', qq{
	CREATE EXTENSION krahodb;
	CREATE ROLE owner;
	GRANT CREATE ON SCHEMA public TO owner;
	SET ROLE owner;
	$owned
	RESET ROLE;
	CREATE PUBLICATION pub FOR TABLE routed WITH (publish_via_partition_root);});

# ---- a row is fetched ----------------------------------------------------------------

my $offset = -s $node->logfile;

is( $node->safe_psql('postgres', q{
		SELECT state, row_values FROM krahodb.row_state('public', 'routed', '{id}', '{1}', '{id,v}', '{pub}', '3');
		SELECT coalesce(nullif(current_setting('owner.was', true), ''), 'nothing')}),
	"live|{1,5}\nnothing", 'a row, and no setting that the owner leaves behind');
my $log = slurp_file($node->logfile, $offset);
like($log, qr/LOG:  code of owner as owner$/m, 'domain and partition key are evaluated for the owner');
unlike($log, qr/LOG:  code of owner as (?!owner$)/m, '... and not for who asks');

# ---- what is known of a table's rows ------------------------------------------------------

$node->safe_psql('postgres', q{
	CREATE SCHEMA closed; CREATE TABLE closed.t (id int PRIMARY KEY); INSERT INTO closed.t VALUES (1);
	CREATE ROLE reader; GRANT SELECT ON closed.t TO reader;});
foreach my $function ('table_versions', 'merged_history')
{
	my $call = sprintf 'SELECT count(*) FROM krahodb.%s(%s, 0)', $function, $node->safe_psql('postgres', q{SELECT 'closed.t'::regclass::oid});
	my (undef, undef, $error) = $node->psql('postgres', "SET ROLE reader; $call");

	like($error, qr/ERROR:  permission denied for schema closed/, "$function: who may not look into a schema is not told of its tables");
	is($node->psql('postgres', "GRANT USAGE ON SCHEMA closed TO reader; SET ROLE reader; $call; RESET ROLE; REVOKE USAGE ON SCHEMA closed FROM reader"),
		0, '... and who may is');
}

# ---- a schema that was there before the extension ----------------------------------------

# Functions that fit a call somewhat better than the extension's would be called instead, operators instead of the engine's.
$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('other', q{
	GRANT CREATE ON DATABASE other TO owner;
	SET ROLE owner;
	CREATE SCHEMA krahodb;
	DO $do$
	DECLARE
		numbers text[] := '{smallint,int,bigint,numeric,float8,oid,interval}';
		a text;
		b text;
		operator text;
		result text;
	BEGIN
		FOREACH a IN ARRAY numbers LOOP
			FOREACH b IN ARRAY numbers LOOP
				FOREACH operator IN ARRAY '{+,-,*,/,=,<>,<,>}'::text[] LOOP
					result := CASE WHEN operator IN ('=', '<>', '<', '>') THEN 'bool' ELSE 'numeric' END;
					EXECUTE format('CREATE FUNCTION krahodb.hostile_%s(%s, %s) RETURNS %s LANGUAGE sql AS $$ SELECT NULL::%s $$',
						md5(operator), a, b, result, result);
					EXECUTE format('CREATE OPERATOR krahodb.%s (FUNCTION = krahodb.hostile_%s, LEFTARG = %s, RIGHTARG = %s)',
						operator, md5(operator), a, b);
				END LOOP;
			END LOOP;
		END LOOP;
	END $do$;});
my ($status, $out, $err) = $node->psql('other', 'CREATE EXTENSION krahodb');
like($err, qr/ERROR:  schema "krahodb" belongs to role "owner", which is not a superuser/, 'somebody else\'s schema is not used');
$node->safe_psql('other', 'ALTER SCHEMA krahodb OWNER TO CURRENT_USER; CREATE EXTENSION krahodb');
is($node->safe_psql('other', q{
		SELECT r.ev_class::regclass, d.refobjid::regoperator FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
		WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_operator'::regclass}),
	'', 'the views of the extension use no operators of the schema');
is($node->psql('other', 'ALTER SCHEMA krahodb OWNER TO owner; CREATE EXTENSION IF NOT EXISTS krahodb'), 0,
	'a schema that is given away later is no error of CREATE EXTENSION IF NOT EXISTS');

$node->stop;
done_testing();
