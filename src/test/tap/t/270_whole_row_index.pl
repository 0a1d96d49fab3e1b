# What goes wrong here: a unique index on a function of the whole row.  It names no column, so
# whoever asks whether an update changes any of the index's columns hears of none: a value that
# is taken is an error, for ever, instead of a conflict; what a losing update claimed is not
# remembered; and a column may be merged although a unique value depends on it.  And large values
# of dead rows, which REINDEX TABLE CONCURRENTLY leaves out of their index, are part of the row.

use strict;
use warnings;

use KrahoDB::PausedMesh;
use PostgreSQL::Test::Utils;
use Test::More;

my $mesh = KrahoDB::PausedMesh->new(
	names => [qw(n1 n2)],
	publications => 'pub',
	schema => q{
		CREATE EXTENSION krahodb;
		CREATE TABLE t (id int PRIMARY KEY, a int, b int, v text, big text);
		ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
		CREATE FUNCTION sum_of(t) RETURNS int IMMUTABLE STRICT LANGUAGE plpgsql AS 'BEGIN RETURN $1.a + $1.b; END';
		CREATE UNIQUE INDEX ON t (sum_of(t));
		CREATE PUBLICATION pub FOR TABLE t});
my $rows = 'SELECT id, a, b, v FROM t ORDER BY id';

$mesh->on(1 => q{INSERT INTO t VALUES (1, 1, 0, 'old'), (2, 2, 0, 'old'), (3, 3, 0, 'old'), (4, 4, 0, 'old')});
$mesh->settle;

# Each update takes a value that a row of the other node has; the later of the two has it.
$mesh->pause;
$mesh->on(1 => q{UPDATE t SET b = 100, v = 'lost' WHERE id = 1},
	2 => q{INSERT INTO t VALUES (5, 1, 100, 'new')},
	1 => q{INSERT INTO t VALUES (6, 102, 0, 'lost')},
	2 => q{UPDATE t SET b = 100, v = 'new' WHERE id = 2});
$mesh->deliver(qw(12 21));
$mesh->all_equal('taken', $rows);
is($mesh->rows($rows), "2|2|100|new\n3|3|0|old\n4|4|0|old\n5|1|100|new", 'taken: the later ones are there');

# An update that is lost itself has taken the value from an older row.
$mesh->pause;
$mesh->on(2 => q{INSERT INTO t VALUES (7, 0, 200, 'lost')},
	1 => q{UPDATE t SET b = 197 WHERE id = 3},
	2 => q{UPDATE t SET v = 'new' WHERE id = 3});
$mesh->deliver(qw(21 12));
$mesh->all_equal('claimed', $rows);
is($mesh->rows($rows), "2|2|100|new\n3|3|0|new\n4|4|0|old\n5|1|100|new", 'claimed: the older one is gone');

# What a row has claimed whose large value is not in any index.
$mesh->on(1 => q{INSERT INTO t VALUES (8, 300, 0, 'old', repeat('x', 10000))});
$mesh->settle;
$mesh->pause;
$mesh->on(2 => q{INSERT INTO t VALUES (9, 400, 0, 'lost')},
	1 => q{UPDATE t SET b = 100 WHERE id = 8; UPDATE t SET b = 101, v = 'new', big = NULL WHERE id = 8});
$mesh->node(1)->safe_psql('postgres', 'REINDEX TABLE CONCURRENTLY t');
$mesh->deliver(qw(12 21));
$mesh->all_equal('large values', "$rows");
is($mesh->rows('SELECT id, a, b, v FROM t WHERE id > 7'), '8|300|101|new', 'claimed by a row with a large value');
is($mesh->errors, 0, 'nothing stopped replication');

my ($status, undef, $error) = $mesh->node(1)->psql('postgres',
	'ALTER TABLE t REPLICA IDENTITY FULL, ALTER b SET (krahodb.merge = delta)');
like($error, qr/cannot merge column "b" of table "t" by "delta".*depends on it/s, 'a column that it depends on is not merged');

$mesh->stop;
done_testing();
