--
-- The record of conflicts: what holds it, and who may do what with it.
--
CREATE EXTENSION krahodb;
CREATE ROLE regress_kdb_reader;
SET client_min_messages = warning;
CREATE PUBLICATION everything FOR ALL TABLES;
CREATE PUBLICATION its_schema FOR TABLES IN SCHEMA krahodb;
RESET client_min_messages;

-- empty, readable, never published
SELECT * FROM krahodb.conflict_log;
SELECT * FROM krahodb.conflict_stats;
SELECT relname, relkind, relispopulated FROM pg_class
	WHERE relnamespace = 'krahodb'::regnamespace AND relkind IN ('r', 'm', 'p') ORDER BY relname;
SELECT tablename FROM pg_publication_tables WHERE schemaname = 'krahodb';
DROP PUBLICATION everything, its_schema;

-- nobody writes to it
REFRESH MATERIALIZED VIEW krahodb.conflict_log_1;
REFRESH MATERIALIZED VIEW krahodb.conflict_log_1 WITH NO DATA;
SELECT count(*) FROM krahodb.conflict_log;
INSERT INTO krahodb.conflict_log_1 ("time") VALUES (now());
DELETE FROM krahodb.conflict_log_1;
TRUNCATE krahodb.conflict_log_1;
CREATE PUBLICATION p FOR TABLE krahodb.conflict_log_1;
DELETE FROM krahodb.conflict_log;

-- functions
SELECT krahodb.reset_conflict_stats();
SELECT krahodb.prune_conflict_log(now());
SET ROLE regress_kdb_reader;
SELECT krahodb.reset_conflict_stats();
SELECT krahodb.prune_conflict_log(now());
SELECT * FROM krahodb.conflict_stats;
SELECT * FROM krahodb.conflict_log;
SELECT * FROM krahodb.conflict_log_1;
RESET ROLE;
GRANT pg_read_all_stats TO regress_kdb_reader;
SET ROLE regress_kdb_reader;
SELECT * FROM krahodb.conflict_log;
SELECT * FROM krahodb.conflict_log_1;
RESET ROLE;

SHOW krahodb.conflict_log_retention;
SET krahodb.conflict_log_retention = 0;

DROP ROLE regress_kdb_reader;
DROP EXTENSION krahodb;
