# What goes wrong here: an index is built anew CONCURRENTLY.  It has no entries for rows
# that were deleted before, and dead versions of rows that remain are not in it either, but
# those are what an older change that is still on its way is compared with.  The deletion
# is forgotten on this node, and on no other.

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::PausedMesh;
use PostgreSQL::Test::Utils;
use Test::More;

my $mesh = KrahoDB::PausedMesh->new(
	names => [qw(n1 n2)],
	publications => 'pub',
	schema => q{
		CREATE EXTENSION krahodb;
		CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE, v text);
		CREATE UNIQUE INDEX t_v ON t (lower(v)) WHERE id >= 40;
		CREATE TABLE r (id int PRIMARY KEY, u int UNIQUE, v text, w int);
		CREATE UNIQUE INDEX r_v ON r (lower(v)) WHERE id >= 40;
		CREATE TABLE m (id int PRIMARY KEY, n int);
		ALTER TABLE m REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta);
		CREATE FUNCTION wide(text) RETURNS text IMMUTABLE LANGUAGE sql AS $$SELECT $1 || string_agg(md5($1 || g), '') FROM generate_series(1, 66) g$$;
		CREATE TABLE k (id text PRIMARY KEY, v text);
		ALTER TABLE k ALTER id SET STORAGE EXTERNAL;
		CREATE TABLE x (id int PRIMARY KEY, hi text);
		ALTER TABLE x ALTER hi SET STORAGE EXTERNAL, REPLICA IDENTITY FULL, ALTER hi SET (krahodb.merge = max);
		CREATE PUBLICATION pub FOR TABLE t, m, r, k, x});
my ($first, $second) = $mesh->nodes;

# Writes here, an index that is rebuilt, and what is written elsewhere before them.
sub rebuilt
{
	my ($name, %params) = @_;

	$mesh->on(1 => $params{base});
	$mesh->settle;
	$mesh->pause;
	$mesh->on(2 => $params{older}, 1 => $params{newer});
	$first->safe_psql('postgres', $_) foreach @{ $params{rebuild} };
	$mesh->deliver('12', '21');
	is($first->safe_psql('postgres', $params{query}), $params{expected}, "$name: here");
	is($second->safe_psql('postgres', $params{query}), $params{expected}, "$name: elsewhere");
	return;
}

rebuilt('a deletion, REINDEX CONCURRENTLY',
	base => q{INSERT INTO t VALUES (1, NULL, 'old')},
	older => q{UPDATE t SET v = 'lost' WHERE id = 1},
	newer => q{DELETE FROM t WHERE id = 1},
	rebuild => ['REINDEX INDEX CONCURRENTLY t_pkey'],
	query => 'SELECT * FROM t WHERE id = 1',
	expected => '');

rebuilt('a claim, REINDEX CONCURRENTLY',
	base => q{INSERT INTO t VALUES (10, NULL, 'old')},
	older => q{INSERT INTO t VALUES (11, 100, 'lost')},
	newer => q{UPDATE t SET u = 100 WHERE id = 10; UPDATE t SET u = 101, v = 'new' WHERE id = 10},
	rebuild => ['REINDEX INDEX CONCURRENTLY t_u_key'],
	query => 'SELECT * FROM t WHERE id IN (10, 11)',
	expected => '10|101|new');

# Of what ALTER TABLE has written anew claims are in records.
rebuilt('a recorded claim, REINDEX CONCURRENTLY',
	base => q{INSERT INTO r VALUES (10, NULL, 'old', 1)},
	older => q{INSERT INTO r VALUES (11, 100, 'lost', 2)},
	newer => q{UPDATE r SET u = 100 WHERE id = 10; UPDATE r SET u = 101, v = 'new' WHERE id = 10},
	rebuild => [ 'ALTER TABLE r ALTER w TYPE bigint', 'REINDEX INDEX CONCURRENTLY r_u_key' ],
	query => 'SELECT id, u, v FROM r WHERE id IN (10, 11)',
	expected => '10|101|new');

rebuilt('a recorded claim in an index on an expression, REINDEX CONCURRENTLY and ALTER TABLE',
	base => q{INSERT INTO r VALUES (40, NULL, 'old', 1)},
	older => q{INSERT INTO r VALUES (41, NULL, 'Same', 2)},
	newer => q{UPDATE r SET v = 'sAme' WHERE id = 40; UPDATE r SET v = 'other' WHERE id = 40},
	rebuild => [ 'ALTER TABLE r ALTER w TYPE numeric', 'REINDEX TABLE CONCURRENTLY r', 'ALTER TABLE r ALTER w TYPE text' ],
	query => 'SELECT id, v FROM r WHERE id IN (40, 41)',
	expected => '40|other');

rebuilt('a history, REINDEX CONCURRENTLY',
	base => q{INSERT INTO m VALUES (1, 100)},
	older => q{UPDATE m SET n = n + 1 WHERE id = 1},
	newer => q{UPDATE m SET n = n + 10 WHERE id = 1; UPDATE m SET n = n + 100 WHERE id = 1},
	rebuild => ['REINDEX TABLE CONCURRENTLY m'],
	query => 'SELECT * FROM m WHERE id = 1',
	expected => '1|211');

rebuilt('a history that has ended, REINDEX CONCURRENTLY',
	base => q{INSERT INTO m VALUES (2, 100)},
	older => q{UPDATE m SET n = n + 1 WHERE id = 2},
	newer => q{UPDATE m SET n = n + 10 WHERE id = 2; DELETE FROM m WHERE id = 2},
	rebuild => ['REINDEX TABLE CONCURRENTLY m'],
	query => 'SELECT * FROM m WHERE id = 2',
	expected => '');

rebuilt('inserts of one transaction, REINDEX CONCURRENTLY',
	base => q{SELECT 1},
	older => q{INSERT INTO t SELECT g, g, 'older' FROM generate_series(20, 29) g},
	newer => q{INSERT INTO t VALUES (25, NULL, 'newer'), (30, 28, 'newer'); DELETE FROM t WHERE id IN (25, 30)},
	rebuild => ['REINDEX TABLE CONCURRENTLY t'],
	query => 'SELECT id FROM t WHERE id BETWEEN 20 AND 30 ORDER BY id',
	expected => join "\n", 20 .. 24, 26, 27, 29);

rebuilt('a claim in an index on an expression that is made anew',
	base => q{INSERT INTO t VALUES (40, NULL, 'old')},
	older => q{INSERT INTO t VALUES (41, NULL, 'Same')},
	newer => q{UPDATE t SET v = 'sAme' WHERE id = 40; UPDATE t SET v = 'other' WHERE id = 40},
	rebuild => [ q{CREATE UNIQUE INDEX CONCURRENTLY t_v_new ON t (lower(v)) WHERE id >= 40}, 'DROP INDEX t_v',
		'ALTER INDEX t_v_new RENAME TO t_v' ],
	query => 'SELECT id, v FROM t WHERE id IN (40, 41)',
	expected => '40|other');

# The index of the large values is built anew, too.
rebuilt('a deletion, with a key out of line',
	base => q{INSERT INTO k VALUES (wide('a'), 'old')},
	older => q{UPDATE k SET v = 'lost' WHERE id = wide('a')},
	newer => q{DELETE FROM k WHERE id = wide('a')},
	rebuild => ['REINDEX TABLE CONCURRENTLY k'],
	query => 'SELECT v FROM k',
	expected => '');

rebuilt('a deletion, with a key out of line, in a table that is rewritten after that',
	base => q{INSERT INTO k VALUES (wide('b'), 'old')},
	older => q{UPDATE k SET v = 'lost' WHERE id = wide('b')},
	newer => q{DELETE FROM k WHERE id = wide('b')},
	rebuild => ['REINDEX TABLE CONCURRENTLY k', q{ALTER TABLE k ALTER v TYPE text USING v || ''}],
	query => 'SELECT v FROM k',
	expected => '');

rebuilt('a history of values out of line',
	base => q{INSERT INTO x VALUES (1, wide('a'))},
	older => q{UPDATE x SET hi = wide('c') WHERE id = 1},
	newer => q{UPDATE x SET hi = wide('b') WHERE id = 1},
	rebuild => ['REINDEX TABLE CONCURRENTLY x'],
	query => 'SELECT id, left(hi, 1), hi = wide(left(hi, 1)) FROM x',
	expected => '1|c|t');

rebuilt('a deletion, plain REINDEX',
	base => q{INSERT INTO t VALUES (2, NULL, 'old')},
	older => q{UPDATE t SET v = 'lost' WHERE id = 2},
	newer => q{DELETE FROM t WHERE id = 2},
	rebuild => ['REINDEX TABLE t'],
	query => 'SELECT * FROM t WHERE id = 2',
	expected => '');

rebuilt('a deletion, VACUUM FULL and CLUSTER',
	base => q{INSERT INTO t VALUES (3, NULL, 'old')},
	older => q{UPDATE t SET v = 'lost' WHERE id = 3},
	newer => q{DELETE FROM t WHERE id = 3},
	rebuild => ['VACUUM FULL t', 'CLUSTER t USING t_pkey'],
	query => 'SELECT * FROM t WHERE id = 3',
	expected => '');

$mesh->stop;
done_testing();
