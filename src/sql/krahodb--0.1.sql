/* krahodb--0.1.sql: views and functions of KrahoDB; the server works without them. */

-- complain if the script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION krahodb" to load this file. \quit

-- The schema may have been there before, with operators of somebody's own.  So operands
-- have the very types that the engine's operators are for: no other one fits better.

-- What is in effect for each subscription of this database, defaults filled in.
-- A resolver "engine" means what PostgreSQL does without KrahoDB.
CREATE FUNCTION subscription_options(
	OUT subid oid,
	OUT origin text,
	OUT filter_origins integer[],
	OUT replication_origin_id integer,
	OUT compression text,
	OUT run_as_owner boolean,
	OUT apply_workers integer,
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
		o.compression,
		o.run_as_owner,
		o.apply_workers,
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

-- Columns whose values are merged.
CREATE FUNCTION column_options(
	OUT relid oid,
	OUT attnum smallint,
	OUT merge text,
	OUT inherited_from oid)
RETURNS SETOF record
LANGUAGE C STRICT STABLE
AS 'MODULE_PATHNAME', 'krahodb_column_options';

CREATE VIEW columns AS
	SELECT
		n.nspname AS schema,
		c.relname AS "table",
		a.attname AS "column",
		o.merge,
		o.inherited_from::pg_catalog.regclass AS inherited_from
	FROM krahodb.column_options() o
	JOIN pg_catalog.pg_class c ON c.oid = o.relid
	JOIN pg_catalog.pg_attribute a ON a.attrelid = o.relid AND a.attnum = o.attnum
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

-- Processes that apply beside a subscription's worker (apply_workers).  waits_for is the
-- earliest transaction that a lane waits for, and the lane that has it.  For locks of
-- other sessions see the view.
CREATE FUNCTION lane_states(
	OUT subid oid,
	OUT lane integer,
	OUT pid integer,
	OUT state text,
	OUT since timestamptz,
	OUT remote_xid xid,
	OUT waits_for_xid xid,
	OUT waits_for_pid integer,
	OUT applied bigint,
	OUT repeated bigint)
RETURNS SETOF record
LANGUAGE C STRICT VOLATILE
AS 'MODULE_PATHNAME', 'krahodb_lane_states';

CREATE VIEW lanes AS
	SELECT
		s.subname AS subscription,
		l.lane,
		l.pid,
		CASE WHEN b.pid IS NOT NULL THEN 'waiting for a lock' ELSE l.state END AS state,
		l.since,
		l.remote_xid,
		l.waits_for_xid,
		COALESCE(b.pid, l.waits_for_pid) AS waits_for_pid,
		l.applied,
		l.repeated
	FROM krahodb.lane_states() l
	JOIN pg_catalog.pg_subscription s ON s.oid = l.subid
	LEFT JOIN LATERAL (
		SELECT p AS pid
		FROM pg_catalog.unnest(pg_catalog.pg_blocking_pids(l.pid)) p
		WHERE l.state = 'applying'
		LIMIT 1) b ON true
	ORDER BY s.subname, l.lane;

-- The state that a key has here, for subscribers that have to fetch a row because a
-- change did not contain all of it.  Tables are named as the stream names them.
-- writer is the transaction that is being applied there, own that the state is what it
-- has left; written_at (microseconds) and written_by (a node) are the version.  Needs
-- SELECT on the columns.
CREATE FUNCTION row_state(
	schema text,
	"table" text,
	key_columns text[],
	key_values text[],
	columns text[],
	publications text[],
	writer xid,
	OUT node bigint,
	OUT state text,
	OUT own boolean,
	OUT written_at bigint,
	OUT written_by bigint,
	OUT row_values text[])
RETURNS record
LANGUAGE C STRICT VOLATILE
AS 'MODULE_PATHNAME', 'krahodb_row_state';

-- Rows that this server's apply workers have fetched from publishers since the server
-- started, and fetches that failed.
CREATE FUNCTION fetch_state(
	OUT fetched bigint,
	OUT fetch_ms double precision,
	OUT failed bigint)
RETURNS record
LANGUAGE C STRICT VOLATILE
AS 'MODULE_PATHNAME', 'krahodb_fetch_state';

CREATE VIEW fetch_stats AS SELECT * FROM krahodb.fetch_state();

-- Conflicts since the server started, per subscription, table and type.  What was
-- dropped is not shown.  There is room for some thousands; the rest is counted in
-- rows of which subscription, schema and table are NULL.
CREATE FUNCTION conflict_counters(
	OUT subid oid,
	OUT relid oid,
	OUT type text,
	OUT applied bigint,
	OUT skipped bigint,
	OUT errors bigint,
	OUT last_time timestamptz)
RETURNS SETOF record
LANGUAGE C STRICT VOLATILE
AS 'MODULE_PATHNAME', 'krahodb_conflict_counters';

CREATE VIEW conflict_stats AS
	SELECT
		s.subname AS subscription,
		n.nspname AS schema,
		c.relname AS "table",
		k.type,
		k.applied,
		k.skipped,
		k.errors,
		k.last_time
	FROM krahodb.conflict_counters() k
	LEFT JOIN pg_catalog.pg_subscription s ON s.oid = k.subid
	LEFT JOIN pg_catalog.pg_class c ON c.oid = k.relid
	LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
	WHERE k.subid = 0::oid OR (s.oid IS NOT NULL AND c.oid IS NOT NULL);

-- The identity of this database as a node, as it stands in row versions.
CREATE FUNCTION node_identity()
RETURNS numeric
LANGUAGE SQL STABLE
AS $$ SELECT pg_catalog.split_part(pg_catalog.current_setting('krahodb.node'), '/', 1)::pg_catalog.numeric $$;

-- For copies of a server that cannot be noticed (storage snapshots): all databases of
-- this server are other nodes from its next start on.
CREATE FUNCTION reset_node_identity()
RETURNS void
LANGUAGE C STRICT VOLATILE
AS 'MODULE_PATHNAME', 'krahodb_reset_node_identity';
REVOKE ALL ON FUNCTION reset_node_identity() FROM PUBLIC;

-- Counters of this database, and those for the rest, start at nothing again.
CREATE FUNCTION reset_conflict_stats()
RETURNS void
LANGUAGE C STRICT VOLATILE
AS 'MODULE_PATHNAME', 'krahodb_reset_conflict_stats';
REVOKE ALL ON FUNCTION reset_conflict_stats() FROM PUBLIC;

-- The record of each conflict.  The server writes it into materialized views, in
-- turns, because these are never published; it refuses to refresh them.
-- The server knows the columns in this order.
CREATE TYPE conflict_record AS (
	"time" timestamptz,
	subid oid,
	subscription text,
	relid oid,
	schema text,
	"table" text,
	type text,
	resolution text,
	outcome text,
	key jsonb,
	local_row jsonb,
	remote_row jsonb,
	applied_row jsonb,
	local_time timestamptz,
	local_node numeric,
	local_origin text,
	local_xid xid,
	remote_time timestamptz,
	remote_node numeric,
	remote_xid xid,
	remote_lsn pg_lsn);

CREATE MATERIALIZED VIEW conflict_log_1 USING heap AS
	SELECT (NULL::krahodb.conflict_record).* WHERE false;
CREATE INDEX ON conflict_log_1 ("time");
CREATE INDEX ON conflict_log_1 (subid, remote_lsn);
CREATE MATERIALIZED VIEW conflict_log_2 USING heap AS
	SELECT (NULL::krahodb.conflict_record).* WHERE false;
CREATE INDEX ON conflict_log_2 ("time");
CREATE INDEX ON conflict_log_2 (subid, remote_lsn);
CREATE MATERIALIZED VIEW conflict_log_3 USING heap AS
	SELECT (NULL::krahodb.conflict_record).* WHERE false;
CREATE INDEX ON conflict_log_3 ("time");
CREATE INDEX ON conflict_log_3 (subid, remote_lsn);
CREATE MATERIALIZED VIEW conflict_log_4 USING heap AS
	SELECT (NULL::krahodb.conflict_record).* WHERE false;
CREATE INDEX ON conflict_log_4 ("time");
CREATE INDEX ON conflict_log_4 (subid, remote_lsn);

-- A reader sees the conflicts of tables of which he may read all rows; a superuser
-- also those of tables that were dropped.  The privileges are those of whoever runs
-- the query; what he may not see no function of his own gets to see either.
CREATE VIEW conflict_log WITH (security_barrier) AS
	SELECT
		l."time",
		l.subscription,
		l.schema,
		l."table",
		l.type,
		l.resolution,
		l.outcome,
		l.key,
		l.local_row,
		l.remote_row,
		l.applied_row,
		l.local_time,
		l.local_node,
		l.local_origin,
		l.local_xid,
		l.remote_time,
		l.remote_node,
		l.remote_xid,
		NULLIF(l.remote_lsn, '0/0') AS remote_lsn
	FROM (
		SELECT * FROM krahodb.conflict_log_1
		UNION ALL SELECT * FROM krahodb.conflict_log_2
		UNION ALL SELECT * FROM krahodb.conflict_log_3
		UNION ALL SELECT * FROM krahodb.conflict_log_4
	) l
	WHERE CASE WHEN pg_catalog.has_table_privilege(l.relid, 'SELECT')
		THEN NOT pg_catalog.row_security_active(l.relid)
		ELSE (SELECT r.rolsuper FROM pg_catalog.pg_roles r WHERE r.rolname = CURRENT_USER)
		END;

-- Discards those parts of the log (it has four) in which everything is older.
-- Returns how many.
CREATE FUNCTION prune_conflict_log(before timestamptz)
RETURNS integer
LANGUAGE C STRICT VOLATILE
AS 'MODULE_PATHNAME', 'krahodb_prune_conflict_log';
REVOKE ALL ON FUNCTION prune_conflict_log(timestamptz) FROM PUBLIC;

-- Versions, claims and contributions to merged columns (in "claimed") that the heap does not show, until the retention horizon has
-- passed them; kept as the conflict log is.  The server knows the columns in this order.
CREATE TYPE version_record AS (
	stamp timestamptz,
	relid oid,
	hash bigint,
	kind "char",
	index oid,
	key bytea,
	claimed bytea,
	"time" timestamptz,
	node bigint,
	shown_time timestamptz,
	shown_node bigint);

CREATE MATERIALIZED VIEW version_records_1 USING heap AS
	SELECT (NULL::krahodb.version_record).* WHERE false;
CREATE INDEX ON version_records_1 (stamp);
CREATE INDEX ON version_records_1 (relid, hash);
CREATE MATERIALIZED VIEW version_records_2 USING heap AS
	SELECT (NULL::krahodb.version_record).* WHERE false;
CREATE INDEX ON version_records_2 (stamp);
CREATE INDEX ON version_records_2 (relid, hash);
CREATE MATERIALIZED VIEW version_records_3 USING heap AS
	SELECT (NULL::krahodb.version_record).* WHERE false;
CREATE INDEX ON version_records_3 (stamp);
CREATE INDEX ON version_records_3 (relid, hash);
CREATE MATERIALIZED VIEW version_records_4 USING heap AS
	SELECT (NULL::krahodb.version_record).* WHERE false;
CREATE INDEX ON version_records_4 (stamp);
CREATE INDEX ON version_records_4 (relid, hash);

GRANT USAGE ON SCHEMA krahodb TO PUBLIC;
GRANT SELECT ON subscriptions, tables, columns, clock, lanes, fetch_stats, conflict_stats TO PUBLIC;
GRANT SELECT ON conflict_log TO pg_read_all_stats;

-- The retention horizon: until when all changes of all nodes have come, here and to all
-- peers, and which peer it waits for.  One row for each subscription of the server that resolves
-- conflicts.  xmin is the oldest transaction whose deleted rows vacuum keeps.
CREATE FUNCTION horizon_state(OUT horizon timestamptz, OUT xmin xid)
RETURNS record
LANGUAGE C STRICT VOLATILE
AS 'MODULE_PATHNAME', 'krahodb_horizon_state';

CREATE FUNCTION horizon_peers(
	OUT subid oid,
	OUT state text,
	OUT since timestamptz,
	OUT applied_until timestamptz,
	OUT received_until timestamptz,
	OUT reason text)
RETURNS SETOF record
LANGUAGE C STRICT VOLATILE
AS 'MODULE_PATHNAME', 'krahodb_horizon_peers';

-- For subscribers that copy a table: the session holds the horizon where it is (its
-- time, in microseconds of timestamptz); and the versions of rows, dead keys and unique
-- values that are newer.
CREATE FUNCTION hold_horizon()
RETURNS bigint
LANGUAGE C STRICT VOLATILE
AS 'MODULE_PATHNAME', 'krahodb_hold_horizon';

CREATE FUNCTION release_horizon()
RETURNS void
LANGUAGE C STRICT VOLATILE
AS 'MODULE_PATHNAME', 'krahodb_release_horizon';

CREATE FUNCTION table_versions(
	"table" regclass,
	since bigint,
	OUT kind "char",
	OUT "time" bigint,
	OUT node text,
	OUT columns text[],
	OUT "values" text[])
RETURNS SETOF record
LANGUAGE C STRICT VOLATILE
AS 'MODULE_PATHNAME', 'krahodb_table_versions';

-- Of keys with anything newer: what has been contributed to their merged columns, as four
-- fields for each column: name, delta, max or min, kind of the contribution, value.
CREATE FUNCTION merged_history(
	"table" regclass,
	since bigint,
	OUT key bigint,
	OUT live boolean,
	OUT columns text[],
	OUT "values" text[],
	OUT "time" bigint,
	OUT node text,
	OUT contributed text[])
RETURNS SETOF record
LANGUAGE C STRICT VOLATILE
AS 'MODULE_PATHNAME', 'krahodb_merged_history';

CREATE VIEW horizon AS
	SELECT
		h.horizon,
		pg_catalog.clock_timestamp() - h.horizon AS lag,
		h.xmin AS oldest_kept,
		pg_catalog.age(h.xmin) AS oldest_kept_age,
		d.datname AS database,
		s.subname AS subscription,
		p.state,
		p.since,
		p.applied_until,
		p.received_until,
		p.reason
	FROM krahodb.horizon_state() h
	CROSS JOIN krahodb.horizon_peers() p
	JOIN pg_catalog.pg_subscription s ON s.oid = p.subid
	JOIN pg_catalog.pg_database d ON d.oid = s.subdbid;

GRANT SELECT ON horizon TO PUBLIC;

-- A stale subscription takes changes again, as they are: rows that were deleted
-- here while its publisher was away may come back.  Its owner may call this.
CREATE FUNCTION accept_stale_peer(subscription name)
RETURNS void
LANGUAGE C STRICT VOLATILE
AS 'MODULE_PATHNAME', 'krahodb_accept_stale_peer';

-- Initial copies: each table that is not synchronised yet, and how far its copy is.
CREATE FUNCTION copies(
	OUT subid oid,
	OUT relid oid,
	OUT started timestamptz,
	OUT workers integer,
	OUT ranges integer,
	OUT ranges_done integer,
	OUT pages bigint,
	OUT pages_done bigint,
	OUT pages_kept bigint,
	OUT rows bigint,
	OUT bytes bigint,
	OUT rows_expected bigint)
RETURNS SETOF record
LANGUAGE C STRICT VOLATILE
AS 'MODULE_PATHNAME', 'krahodb_copies';

CREATE VIEW copy_progress AS
	SELECT
		s.subname AS subscription,
		n.nspname AS schema,
		c.relname AS "table",
		CASE WHEN r.srsubstate IN ('f', 's') THEN 'catching up'
			WHEN k.subid IS NOT NULL THEN 'copying'
			ELSE 'waiting' END AS state,
		k.workers,
		k.ranges_done,
		k.ranges AS ranges_total,
		k.pages_done,
		k.pages AS pages_total,
		k.pages_kept,
		-- LEAST and GREATEST pass over NULL: nothing is known then
		COALESCE(pg_catalog.round(100.0 * k.pages_done::numeric / NULLIF(k.pages, 0::bigint)::numeric, 1),
			CASE WHEN k.rows_expected IS NOT NULL
				THEN LEAST(pg_catalog.round(100.0 * k.rows::numeric / k.rows_expected::numeric, 1), 99.9) END) AS percent,
		k.rows,
		k.bytes,
		pg_catalog.round(k.bytes::numeric / NULLIF(EXTRACT(epoch FROM pg_catalog.clock_timestamp() - k.started), 0.0))::bigint
			AS bytes_per_second,
		pg_catalog.clock_timestamp() - k.started AS elapsed,
		(pg_catalog.clock_timestamp() - k.started) *
			COALESCE((k.pages - k.pages_done)::double precision / NULLIF(k.pages_done - k.pages_kept, 0::bigint)::double precision,
				CASE WHEN k.rows_expected IS NOT NULL
					THEN GREATEST(k.rows_expected - k.rows, 0)::double precision / NULLIF(k.rows, 0::bigint)::double precision END) AS remaining
	FROM pg_catalog.pg_subscription_rel r
	JOIN pg_catalog.pg_subscription s ON s.oid = r.srsubid
	-- the database's template may have had subscriptions
	JOIN pg_catalog.pg_database d ON d.oid = s.subdbid AND d.datname = pg_catalog.current_database()
	JOIN pg_catalog.pg_class c ON c.oid = r.srrelid
	JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
	LEFT JOIN krahodb.copies() k ON k.subid = r.srsubid AND k.relid = r.srrelid
	WHERE r.srsubstate <> 'r';

GRANT SELECT ON copy_progress TO PUBLIC;

-- What views call, and other servers, whatever ALTER DEFAULT PRIVILEGES has taken from functions.
GRANT EXECUTE ON FUNCTION
	subscription_options(), table_options(), column_options(), clock_state(), lane_states(), fetch_state(),
	conflict_counters(), node_identity(), horizon_state(), horizon_peers(), copies(),
	row_state(text, text, text[], text[], text[], text[], xid), hold_horizon(), release_horizon(),
	table_versions(regclass, bigint), merged_history(regclass, bigint), accept_stale_peer(name)
	TO PUBLIC;
