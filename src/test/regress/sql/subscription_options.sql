--
-- KrahoDB's options of subscriptions: what is refused, what is stored, and that
-- it stays with the subscription until that is dropped.  Nothing connects here.
--
CREATE EXTENSION krahodb;
CREATE ROLE regress_kdb_owner LOGIN SUPERUSER;
CREATE ROLE regress_kdb_other LOGIN SUPERUSER;
CREATE ROLE regress_kdb_user LOGIN;

CREATE FUNCTION labels(OUT name text, OUT label text) RETURNS SETOF record
LANGUAGE sql AS $$
	SELECT objname, label FROM pg_seclabels
	WHERE provider = 'krahodb' AND objtype IN ('subscription', 'table')
	ORDER BY objname COLLATE "C"
$$;

-- values that are not valid
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, origin = foo);
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, filter_origins);
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, filter_origins = '');
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, filter_origins = '1,');
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, filter_origins = '1 2');
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, filter_origins = '-1');
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, filter_origins = '0');
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, filter_origins = 65535);
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, filter_origins = '99999999999999999999');
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, filter_origins = '1, 2, 1');
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, filter_origins = 'a long value a long value a long value a long value a long value a long value');
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, replication_origin_id = 0);
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, replication_origin_id = 65535);
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, replication_origin_id = '1, 2');
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, conflict_resolution = foo);
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, conflict_resolution = skip);
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, insert_exists = insert);
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, update_origin_differs = 1);
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, update_exists = insert);
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, update_deleted = apply_remote);
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, update_missing = last_update_wins);
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, delete_origin_differs = insert);
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, delete_missing = insert);
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, multiple_unique_conflicts = insert);
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, run_as_owner = maybe);
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, apply_workers = 0);
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, apply_workers = 65);
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, apply_workers = '2x');

-- unknown, redundant, contradictory
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, origin = none, foo = 1);
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, krahodb.origin = none);
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, origin = none, origin = none);
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, insert_exists = error, insert_exists = skip);
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, origin = none, filter_origins = 1);
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, enabled = true, origin = none);

-- others may not create subscriptions, and learn nothing of origin ids
SELECT pg_replication_origin_create('regress_kdb_origin') = 1 AS first;
SET ROLE regress_kdb_user;
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, replication_origin_id = 1);
RESET ROLE;

-- nothing of all that was stored
SELECT count(*) FROM pg_subscription;
SELECT * FROM labels();
SELECT * FROM pg_replication_origin;

-- what is stored, and what it means
SET ROLE regress_kdb_owner;
CREATE SUBSCRIPTION regress_plain CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, slot_name = NONE);
CREATE SUBSCRIPTION regress_none CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, slot_name = NONE, origin = None);
CREATE SUBSCRIPTION regress_filter CONNECTION 'dbname=none' PUBLICATION p
	WITH (replication_origin_id = 200, filter_origins = ' 102 ,7, 65534', connect = false, slot_name = NONE);
CREATE SUBSCRIPTION regress_all CONNECTION 'dbname=none' PUBLICATION p
	WITH (connect = false, slot_name = NONE, origin = any, filter_origins = none, replication_origin_id = 65534,
		  conflict_resolution = FIRST_update_wins, insert_exists = skip, update_origin_differs = apply_remote,
		  update_exists = keep_local, update_deleted = insert, update_missing = error,
		  delete_origin_differs = last_update_wins, delete_missing = error,
		  multiple_unique_conflicts = error, run_as_owner = off, apply_workers = 64, compression = ZSTD, binary = true);
RESET ROLE;
SELECT * FROM labels();
SELECT subscription, owner, enabled, origin, filter_origins, run_as_owner, conflict_resolution
	FROM krahodb.subscriptions ORDER BY subscription COLLATE "C";
SELECT * FROM krahodb.subscriptions WHERE subscription = 'regress_filter' \gx
SELECT * FROM krahodb.subscriptions WHERE subscription = 'regress_all' \gx
SELECT subbinary FROM pg_subscription WHERE subname = 'regress_all';

-- the origin ids are the wanted ones, and cannot be taken twice
SELECT s.subname, o.roident FROM pg_subscription s JOIN pg_replication_origin o ON o.roname = 'pg_' || s.oid
	WHERE s.subname IN ('regress_filter', 'regress_all') ORDER BY 2;
\set VERBOSITY terse
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, replication_origin_id = 200);
CREATE SUBSCRIPTION regress_s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false, replication_origin_id = 1);
\set VERBOSITY default
SELECT count(*) FROM pg_replication_origin WHERE roname LIKE 'krahodb%';

-- ALTER: only what is named changes; "default" takes an option back
ALTER SUBSCRIPTION regress_none SET (update_missing = skip, synchronous_commit = local);
ALTER SUBSCRIPTION regress_none SET (origin = any, filter_origins = 5);
ALTER SUBSCRIPTION regress_all SET (conflict_resolution = default, insert_exists = default, run_as_owner = true, apply_workers = 02);
ALTER SUBSCRIPTION regress_filter SET (filter_origins = none);
SELECT * FROM labels();
SELECT subsynccommit FROM pg_subscription WHERE subname = 'regress_none';
ALTER SUBSCRIPTION regress_none SET (origin = none);
ALTER SUBSCRIPTION regress_none SET (replication_origin_id = 3);
ALTER SUBSCRIPTION regress_none SET (origin = none, filter_origins = none, two_phase = true);
ALTER SUBSCRIPTION regress_none SET (origin = any, origin = any);
ALTER SUBSCRIPTION regress_none SET PUBLICATION p WITH (refresh = false, origin = none);
ALTER SUBSCRIPTION regress_missing SET (origin = none);
SET ROLE regress_kdb_user;
ALTER SUBSCRIPTION regress_none SET (origin = none);
RESET ROLE;
SELECT * FROM labels();

-- an option is undone with the transaction
BEGIN;
ALTER SUBSCRIPTION regress_plain SET (conflict_resolution = error);
SELECT conflict_resolution FROM krahodb.subscriptions WHERE subscription = 'regress_plain';
ROLLBACK;
SELECT conflict_resolution FROM krahodb.subscriptions WHERE subscription = 'regress_plain';
BEGIN READ ONLY;
ALTER SUBSCRIPTION regress_plain SET (conflict_resolution = error);
ROLLBACK;

-- the parse tree of a cached statement is not changed
CREATE FUNCTION alter_plain() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	ALTER SUBSCRIPTION regress_plain SET (insert_exists = error, binary = true);
END $$;
SELECT alter_plain();
ALTER SUBSCRIPTION regress_plain SET (insert_exists = default, binary = false);
SELECT alter_plain();
SELECT label, (SELECT subbinary FROM pg_subscription WHERE subname = 'regress_plain')
	FROM labels() WHERE name = 'regress_plain';

-- rename and owner change
ALTER SUBSCRIPTION regress_filter RENAME TO regress_renamed;
ALTER SUBSCRIPTION regress_renamed OWNER TO regress_kdb_other;
SELECT subscription, owner, origin, replication_origin_id FROM krahodb.subscriptions
	WHERE subscription = 'regress_renamed';

-- the view is for everybody
SET ROLE regress_kdb_user;
SELECT subscription, conflict_resolution FROM krahodb.subscriptions ORDER BY subscription COLLATE "C";
RESET ROLE;

-- labels, as pg_dump writes them
SECURITY LABEL FOR krahodb ON SUBSCRIPTION regress_plain IS '{"origin": "none", "run_as_owner": "false"}';
SELECT origin, run_as_owner, conflict_resolution FROM krahodb.subscriptions WHERE subscription = 'regress_plain';
SECURITY LABEL FOR krahodb ON SUBSCRIPTION regress_plain IS NULL;
SELECT origin, run_as_owner, conflict_resolution FROM krahodb.subscriptions WHERE subscription = 'regress_plain';
SECURITY LABEL FOR krahodb ON SUBSCRIPTION regress_plain IS '{"replication_origin_id": "77"}';
SELECT replication_origin_id FROM krahodb.subscriptions WHERE subscription = 'regress_plain';
SECURITY LABEL FOR krahodb ON SUBSCRIPTION regress_plain IS '{}';
\set VERBOSITY terse
SECURITY LABEL FOR krahodb ON SUBSCRIPTION regress_plain IS '{"replication_origin_id": "1"}';
\set VERBOSITY default
SECURITY LABEL FOR krahodb ON SUBSCRIPTION regress_plain IS '{"origin": "foo"}';
SECURITY LABEL FOR krahodb ON SUBSCRIPTION regress_plain IS '{"foo": "none"}';
SECURITY LABEL FOR krahodb ON SUBSCRIPTION regress_plain IS '{"origin": "none", "filter_origins": "1"}';
SECURITY LABEL FOR krahodb ON SUBSCRIPTION regress_plain IS '{"origin": "none", "origin": "any"}';
SECURITY LABEL FOR krahodb ON SUBSCRIPTION regress_plain IS '{"origin": 1}';
SECURITY LABEL FOR krahodb ON SUBSCRIPTION regress_plain IS '{"origin": null}';
SECURITY LABEL FOR krahodb ON SUBSCRIPTION regress_plain IS '{"origin": ["none"]}';
SECURITY LABEL FOR krahodb ON SUBSCRIPTION regress_plain IS '{"origin": {"a": "none"}}';
SECURITY LABEL FOR krahodb ON SUBSCRIPTION regress_plain IS '{"origin": "none"';
SECURITY LABEL FOR krahodb ON SUBSCRIPTION regress_plain IS '["origin"]';
SECURITY LABEL FOR krahodb ON SUBSCRIPTION regress_plain IS '"origin"';
SECURITY LABEL FOR krahodb ON SUBSCRIPTION regress_plain IS '';
\set SHOW_CONTEXT never
DO $$ BEGIN
	EXECUTE format('SECURITY LABEL FOR krahodb ON SUBSCRIPTION regress_plain IS %L',
				   '{"origin": "' || repeat('x', 1100000) || '"}');
END $$;
SELECT * FROM labels();

-- other objects have no labels of ours
SECURITY LABEL FOR krahodb ON ROLE regress_kdb_user IS '{}';
SECURITY LABEL FOR krahodb ON DATABASE regression IS '{}';

-- DROP leaves nothing
DROP SUBSCRIPTION regress_plain;
DROP SUBSCRIPTION regress_none;
DROP SUBSCRIPTION regress_renamed;
DROP SUBSCRIPTION regress_all;
SELECT pg_replication_origin_drop('regress_kdb_origin');
SELECT count(*) FROM pg_shseclabel;
SELECT count(*) FROM pg_replication_origin;

-- settings
SHOW krahodb.version;
SET krahodb.version_num = 1;
SET krahodb.foo = 1;

DROP FUNCTION alter_plain(), labels();
DROP EXTENSION krahodb;
DROP SCHEMA krahodb;
DROP ROLE regress_kdb_owner, regress_kdb_other, regress_kdb_user;
