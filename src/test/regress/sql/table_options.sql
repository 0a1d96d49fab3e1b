--
-- KrahoDB's parameters of tables, in name space "krahodb".
--
CREATE EXTENSION krahodb;
CREATE ROLE regress_kdb_user LOGIN;
CREATE TABLE plain (a int PRIMARY KEY, b text);

-- without FOR, the provider is that of others
SECURITY LABEL ON TABLE plain IS '{"conflict_resolution": "error"}';

-- refused
ALTER TABLE plain SET (krahodb.foo = 1);
ALTER TABLE plain SET (krahodb.conflict_resolution = foo);
ALTER TABLE plain SET (krahodb.conflict_resolution = skip);
ALTER TABLE plain SET (krahodb.conflict_resolution);
ALTER TABLE plain SET (krahodb.conflict_resolution = error, krahodb.conflict_resolution = error);
ALTER TABLE plain SET (foo.conflict_resolution = error);
ALTER TABLE plain SET (krahodb.conflict_resolution = error, foo = 1);
ALTER TABLE plain RESET (krahodb.foo);
ALTER TABLE plain RESET (krahodb.conflict_resolution = error);
ALTER TABLE plain ALTER COLUMN b SET (krahodb.merge = 'max');
ALTER TABLE missing SET (krahodb.conflict_resolution = error);
ALTER TABLE IF EXISTS missing SET (krahodb.conflict_resolution = error);
ALTER INDEX plain_pkey SET (krahodb.conflict_resolution = error);
CREATE VIEW a_view AS SELECT 1 AS a;
ALTER VIEW a_view SET (krahodb.conflict_resolution = error);
ALTER TABLE a_view SET (krahodb.conflict_resolution = error);
ALTER TABLE pg_class SET (krahodb.conflict_resolution = error);
CREATE TEMP TABLE temporary (a int) WITH (krahodb.conflict_resolution = error);
CREATE TEMP TABLE temporary (a int);
ALTER TABLE temporary SET (krahodb.conflict_resolution = error);
CREATE MATERIALIZED VIEW matview WITH (krahodb.conflict_resolution = error) AS SELECT 1 AS a;
CREATE TABLE refused (a int) WITH (krahodb.foo = 1);
CREATE TABLE refused (a int) WITH (krahodb.conflict_resolution = error, foo = 1);
SET ROLE regress_kdb_user;
ALTER TABLE plain SET (krahodb.conflict_resolution = error);
RESET ROLE;
BEGIN READ ONLY;
ALTER TABLE plain SET (krahodb.conflict_resolution = error);
ROLLBACK;
TABLE krahodb.tables;

-- set, change, reset; together with the engine's and with other subcommands
ALTER TABLE plain SET (krahodb.conflict_resolution = last_update_wins);
TABLE krahodb.tables;
ALTER TABLE plain SET (krahodb.conflict_resolution = ERROR, fillfactor = 50), ADD COLUMN c int;
SELECT reloptions FROM pg_class WHERE relname = 'plain';
TABLE krahodb.tables;
ALTER TABLE plain SET (krahodb.conflict_resolution = keep_local), RESET (krahodb.conflict_resolution, fillfactor);
SELECT reloptions FROM pg_class WHERE relname = 'plain';
TABLE krahodb.tables;
ALTER TABLE plain RESET (krahodb.conflict_resolution);
ALTER TABLE plain SET (krahodb.conflict_resolution = first_update_wins);
ALTER TABLE plain SET (krahodb.conflict_resolution = default);
TABLE krahodb.tables;
BEGIN;
ALTER TABLE plain SET (krahodb.conflict_resolution = keep_local);
SELECT mode FROM pg_locks WHERE relation = 'plain'::regclass AND pid = pg_backend_pid();
ROLLBACK;
TABLE krahodb.tables;

-- CREATE TABLE
CREATE TABLE created (a int) WITH (krahodb.conflict_resolution = apply_remote, fillfactor = 60);
CREATE TABLE created_as WITH (krahodb.conflict_resolution = apply_remote) AS SELECT 1 AS a;
CREATE TABLE IF NOT EXISTS plain (a int) WITH (krahodb.conflict_resolution = apply_remote);
CREATE TABLE IF NOT EXISTS plain WITH (krahodb.conflict_resolution = apply_remote) AS SELECT 1 AS a;
CREATE TABLE plain (a int) WITH (krahodb.conflict_resolution = apply_remote);
CREATE SCHEMA other CREATE TABLE created (a serial) WITH (krahodb.conflict_resolution = error);
SELECT reloptions FROM pg_class WHERE relname = 'created' AND reloptions IS NOT NULL;
SELECT * FROM krahodb.tables ORDER BY 1, 2;

-- a new table is made where an unqualified name goes, whatever hides it later
CREATE TEMP TABLE hidden (a int);
CREATE TABLE public.hidden (a int) WITH (krahodb.conflict_resolution = error);
SELECT * FROM krahodb.tables WHERE "table" = 'hidden';

-- partitions have their partitioned table's unless they have their own
CREATE TABLE parted (a int) PARTITION BY RANGE (a) WITH (krahodb.conflict_resolution = keep_local);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (1) TO (10);
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (10) TO (20)
	PARTITION BY RANGE (a) WITH (krahodb.conflict_resolution = error);
CREATE TABLE parted_2_1 PARTITION OF parted_2 FOR VALUES FROM (10) TO (20);
SELECT * FROM krahodb.tables WHERE "table" LIKE 'parted%' ORDER BY 2;
ALTER TABLE parted_2 RESET (krahodb.conflict_resolution);
SELECT * FROM krahodb.tables WHERE "table" LIKE 'parted%' ORDER BY 2;
ALTER TABLE parted DETACH PARTITION parted_2;
SELECT * FROM krahodb.tables WHERE "table" LIKE 'parted%' ORDER BY 2;

-- event triggers see the command
CREATE FUNCTION tell() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE NOTICE '% %', tg_event, tg_tag;
END $$;
CREATE EVENT TRIGGER regress_start ON ddl_command_start EXECUTE FUNCTION tell();
CREATE EVENT TRIGGER regress_end ON ddl_command_end EXECUTE FUNCTION tell();
ALTER TABLE plain SET (krahodb.conflict_resolution = error);
CREATE TABLE told (a int) WITH (krahodb.conflict_resolution = error);
DROP EVENT TRIGGER regress_start;
DROP EVENT TRIGGER regress_end;

-- labels, as pg_dump writes them
SECURITY LABEL FOR krahodb ON TABLE plain IS '{"conflict_resolution": "apply_remote"}';
SELECT * FROM krahodb.tables WHERE "table" = 'plain';
SECURITY LABEL FOR krahodb ON TABLE plain IS '{"conflict_resolution": "skip"}';
SECURITY LABEL FOR krahodb ON TABLE plain IS '{"krahodb.conflict_resolution": "error"}';
SECURITY LABEL FOR krahodb ON TABLE plain IS 'x';
SECURITY LABEL FOR krahodb ON TABLE temporary IS '{"conflict_resolution": "error"}';
SECURITY LABEL FOR krahodb ON VIEW a_view IS '{"conflict_resolution": "error"}';
SECURITY LABEL FOR krahodb ON TABLE plain IS NULL;
SELECT * FROM krahodb.tables WHERE "table" = 'plain';

-- rename, owner and DROP
ALTER TABLE created RENAME TO renamed;
ALTER TABLE renamed OWNER TO regress_kdb_user;
SELECT * FROM krahodb.tables WHERE "table" = 'renamed';
DROP VIEW a_view;
DROP TABLE plain, renamed, created_as, told, parted, parted_2, temporary, hidden, public.hidden;
DROP SCHEMA other CASCADE;
SELECT count(*) FROM pg_seclabel;

DROP FUNCTION tell();
DROP EXTENSION krahodb;
DROP SCHEMA krahodb;
DROP ROLE regress_kdb_user;
