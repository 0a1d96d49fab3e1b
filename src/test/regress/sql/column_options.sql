--
-- KrahoDB's parameter of columns, krahodb.merge.
--
CREATE TABLE m (id int PRIMARY KEY, n int, f float8, t text, p point, b bool, num numeric(10,2), c money, i interval,
	g int GENERATED ALWAYS AS (n * 2) STORED, u int UNIQUE, x int, y int, z smallint);
CREATE UNIQUE INDEX m_x ON m ((x + 1)) WHERE y > 0;
ALTER TABLE m REPLICA IDENTITY FULL;

-- without the extension
ALTER TABLE m ALTER n SET (krahodb.merge = delta);
CREATE EXTENSION krahodb;

-- refused
ALTER TABLE m ALTER n SET (krahodb.merge = foo);
ALTER TABLE m ALTER n SET (krahodb.merge);
ALTER TABLE m ALTER n SET (krahodb.foo = delta);
ALTER TABLE m ALTER n SET (krahodb.merge = max, krahodb.merge = min);
ALTER TABLE m ALTER n SET (krahodb.merge = max, foo = 1);
ALTER TABLE m ALTER n RESET (krahodb.merge = max);
ALTER TABLE m ALTER nothing SET (krahodb.merge = max);
ALTER TABLE m ALTER ctid SET (krahodb.merge = max);
ALTER TABLE m ALTER f SET (krahodb.merge = delta);
ALTER TABLE m ALTER t SET (krahodb.merge = delta);
ALTER TABLE m ALTER p SET (krahodb.merge = max);
ALTER TABLE m ALTER g SET (krahodb.merge = delta);
ALTER TABLE m ALTER id SET (krahodb.merge = max);
ALTER TABLE m ALTER u SET (krahodb.merge = max);
ALTER TABLE m ALTER x SET (krahodb.merge = delta);
ALTER TABLE m ALTER y SET (krahodb.merge = delta);
ALTER TABLE m SET (krahodb.merge = delta);
CREATE VIEW v AS SELECT 1 AS n;
ALTER TABLE v ALTER n SET (krahodb.merge = max);
CREATE TABLE no_key (n int);
ALTER TABLE no_key REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta);
CREATE TABLE no_identity (id int PRIMARY KEY, n int);
ALTER TABLE no_identity ALTER n SET (krahodb.merge = delta);
SECURITY LABEL FOR krahodb ON COLUMN m.n IS '{"merge": "foo"}';
SECURITY LABEL FOR krahodb ON COLUMN m.n IS '{"conflict_resolution": "error"}';
SECURITY LABEL FOR krahodb ON COLUMN v.n IS '{"merge": "max"}';
SECURITY LABEL FOR krahodb ON COLUMN m.t IS '{"merge": "delta"}';
SECURITY LABEL FOR krahodb ON COLUMN m.g IS '{"merge": "max"}';
SECURITY LABEL FOR krahodb ON COLUMN m.ctid IS '{"merge": "max"}';
TABLE krahodb.columns;

-- set; with the engine's and with other subcommands
ALTER TABLE m ALTER n SET (krahodb.merge = DELTA, n_distinct = 5), ALTER f SET (krahodb.merge = 'max'), ADD COLUMN added int,
	ALTER added SET (krahodb.merge = min), SET (krahodb.conflict_resolution = last_update_wins, fillfactor = 90);
ALTER TABLE m ALTER num SET (krahodb.merge = delta), ALTER c SET (krahodb.merge = delta), ALTER i SET (krahodb.merge = delta),
	ALTER z SET (krahodb.merge = delta), ALTER t SET (krahodb.merge = min), ALTER b SET (krahodb.merge = max);
TABLE krahodb.columns;
SELECT attname FROM pg_attribute WHERE attrelid = 'm'::regclass AND 'n_distinct=5' = ANY (attoptions);
TABLE krahodb.tables;
ALTER TABLE m ALTER f SET (krahodb.merge = last_update), ALTER b SET (krahodb.merge = default), ALTER t RESET (krahodb.merge);
ALTER TABLE m ALTER c SET (krahodb.merge = max), ALTER c RESET (krahodb.merge);
ALTER TABLE m RENAME z TO zz;
ALTER TABLE m DROP COLUMN i;
ALTER TABLE m ALTER num TYPE numeric(20,2);
TABLE krahodb.columns;
SELECT objname, label FROM pg_seclabels WHERE objtype = 'column' ORDER BY 1;

-- a copy of the table's definition, unique indexes on expressions too, without what is KrahoDB's
CREATE TABLE copied (LIKE m INCLUDING ALL);
SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = 'copied'::regclass ORDER BY 1;
SELECT count(*) FROM krahodb.columns WHERE "table" = 'copied';
DROP TABLE copied;

-- what it needs cannot be taken away
ALTER TABLE m REPLICA IDENTITY DEFAULT;
ALTER TABLE m REPLICA IDENTITY USING INDEX m_pkey;
ALTER TABLE m ADD UNIQUE (n);
ALTER TABLE m ADD EXCLUDE USING btree (n WITH =);
CREATE UNIQUE INDEX ON m (x, n);
CREATE UNIQUE INDEX CONCURRENTLY ON m ((m.n + 1));
CREATE UNIQUE INDEX ON m (x) WHERE n IS NOT NULL;
CREATE UNIQUE INDEX ON m (g);
CREATE INDEX ON m (n);
ALTER TABLE m ALTER num TYPE float8;
ALTER TABLE m ALTER n RESET (krahodb.merge), ALTER num RESET (krahodb.merge), ALTER added RESET (krahodb.merge),
	ALTER zz RESET (krahodb.merge), REPLICA IDENTITY DEFAULT;
TABLE krahodb.columns;

-- domains
CREATE DOMAIN count AS int CHECK (VALUE >= 0);
ALTER TABLE m REPLICA IDENTITY FULL, ADD COLUMN d count, ALTER d SET (krahodb.merge = delta);
DROP TABLE m;
TABLE krahodb.columns;

-- commands on something else that give the column another type
CREATE TABLE parent (id int, n int);
CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
ALTER TABLE child REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta);
ALTER TABLE parent ALTER n TYPE text;
DROP TABLE child, parent;
CREATE TYPE pair AS (id int, n int);
CREATE TABLE typed OF pair (PRIMARY KEY (id));
ALTER TABLE typed REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta);
ALTER TYPE pair ALTER ATTRIBUTE n TYPE text CASCADE;
DROP TABLE typed;
DROP TYPE pair;

-- partitions
CREATE TABLE parted (id int, r int, n int, PRIMARY KEY (id, r)) PARTITION BY LIST (r);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
ALTER TABLE parted REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta);
ALTER TABLE parted_1 REPLICA IDENTITY FULL;
ALTER TABLE parted REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta);
ALTER TABLE parted ALTER r SET (krahodb.merge = delta);
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES IN (2) WITH (krahodb.conflict_resolution = last_update_wins);
CREATE TABLE parted_3 PARTITION OF parted FOR VALUES IN (3, 4) PARTITION BY LIST (id);
CREATE TABLE parted_3_1 (n int, id int NOT NULL, r int NOT NULL);
ALTER TABLE parted_3 ATTACH PARTITION parted_3_1 FOR VALUES IN (1);
ALTER TABLE parted_3_1 REPLICA IDENTITY FULL;
ALTER TABLE parted_3 ATTACH PARTITION parted_3_1 FOR VALUES IN (1);
ALTER TABLE parted_2 ALTER n SET (krahodb.merge = max);
CREATE SCHEMA s CREATE TABLE parted_5 PARTITION OF public.parted FOR VALUES IN (5);
SELECT * FROM krahodb.columns ORDER BY 2;
SELECT relname, relreplident FROM pg_class WHERE relname LIKE 'parted%' AND relkind IN ('r', 'p') ORDER BY 1;
ALTER TABLE parted_1 REPLICA IDENTITY DEFAULT;
ALTER TABLE parted DETACH PARTITION parted_1;
ALTER TABLE parted_1 REPLICA IDENTITY DEFAULT;
SELECT * FROM krahodb.columns WHERE "table" = 'parted_1';
DROP SCHEMA s CASCADE;
DROP TABLE parted, parted_1, no_key, no_identity;
DROP VIEW v;
DROP DOMAIN count;
DROP EXTENSION krahodb;
