/* krahodb--0.1.sql: views and functions of KrahoDB; the server works without them. */

-- complain if the script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION krahodb" to load this file. \quit

-- What is in effect for each subscription of this database, defaults filled in.
-- A resolver "engine" means what PostgreSQL does without KrahoDB.
CREATE FUNCTION subscription_options(
	OUT subid oid,
	OUT origin text,
	OUT filter_origins integer[],
	OUT replication_origin_id integer,
	OUT run_as_owner boolean,
	OUT conflict_resolution text,
	OUT insert_exists text,
	OUT update_origin_differs text,
	OUT update_exists text,
	OUT update_deleted text,
	OUT update_missing text,
	OUT delete_origin_differs text,
	OUT delete_missing text,
	OUT multiple_unique_conflicts text)
RETURNS SETOF record
LANGUAGE C STRICT STABLE
AS 'MODULE_PATHNAME', 'krahodb_subscription_options';

CREATE VIEW subscriptions AS
	SELECT
		s.subname AS subscription,
		pg_catalog.pg_get_userbyid(s.subowner) AS owner,
		s.subenabled AS enabled,
		s.subpublications AS publications,
		o.origin,
		o.filter_origins,
		o.replication_origin_id,
		o.run_as_owner,
		o.conflict_resolution,
		o.insert_exists,
		o.update_origin_differs,
		o.update_exists,
		o.update_deleted,
		o.update_missing,
		o.delete_origin_differs,
		o.delete_missing,
		o.multiple_unique_conflicts
	FROM pg_catalog.pg_subscription s
	JOIN krahodb.subscription_options() o ON o.subid = s.oid;

-- Tables with parameters of KrahoDB.  inherited_from is the partitioned table
-- that a partition has them from.
CREATE FUNCTION table_options(
	OUT relid oid,
	OUT conflict_resolution text,
	OUT inherited_from oid)
RETURNS SETOF record
LANGUAGE C STRICT STABLE
AS 'MODULE_PATHNAME', 'krahodb_table_options';

CREATE VIEW tables AS
	SELECT
		n.nspname AS schema,
		c.relname AS "table",
		o.conflict_resolution,
		o.inherited_from::pg_catalog.regclass AS inherited_from
	FROM krahodb.table_options() o
	JOIN pg_catalog.pg_class c ON c.oid = o.relid
	JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace;




-- The clock rule (krahodb.max_clock_skew): does it hold in this server, and how
-- often and how long commits and remote transactions waited for the clock since
-- the server started.  newest_commit is NULL until the first commit under the rule.
CREATE FUNCTION clock_state(
	OUT enforced boolean,
	OUT newest_commit timestamptz,
	OUT commit_waits bigint,
	OUT commit_wait_ms double precision,
	OUT apply_waits bigint,
	OUT apply_wait_ms double precision)
RETURNS record
LANGUAGE C STRICT VOLATILE
AS 'MODULE_PATHNAME', 'krahodb_clock_state';

CREATE VIEW clock AS SELECT * FROM krahodb.clock_state();

GRANT USAGE ON SCHEMA krahodb TO PUBLIC;
GRANT SELECT ON subscriptions, tables, clock TO PUBLIC;
