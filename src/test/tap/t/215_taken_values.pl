# What goes wrong here: unique values that are taken while somebody still has them.  In an
# exclusion constraint one row may be in the way of more rows than are looked at at once:
# all of the older ones have to go, on each node.

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::PausedMesh;
use PostgreSQL::Test::Utils;
use Test::More;

my $mesh = KrahoDB::PausedMesh->new(
	names => [qw(n1 n2 n3)],
	publications => 'mesh',
	schema => q{
	CREATE EXTENSION krahodb;
	CREATE TABLE busy (id int PRIMARY KEY, during int4range, v text, EXCLUDE USING gist (during WITH &&)) WITH (fillfactor = 40);
	CREATE PUBLICATION mesh FOR TABLE busy;
});
my @compare = map { "SELECT t.* FROM $_ t ORDER BY t.*" } qw(busy);

# ---- more rows in the way than are looked at at once -------------------------------------

my $rows = 200;
my $new = int $rows / 3;

$mesh->pause;
$mesh->on(
	2 => "INSERT INTO busy SELECT g, int4range(g, g + 1), 'old' FROM generate_series(1, $rows) g",
	1 => "INSERT INTO busy VALUES (1000, int4range(1, $rows + 1), 'all of them')",
	3 => "INSERT INTO busy VALUES (2000, int4range(1001, 1001 + $rows), 'before')",
	2 => "UPDATE busy SET v = 'new' WHERE id % 3 = 0",
	1 => "INSERT INTO busy SELECT 1000 + g, int4range(1000 + g, 1001 + g), 'new' FROM generate_series(1, $rows) g");
$mesh->deliver(qw(31 32 21 23 12 13));
$mesh->all_equal('many rows in the way', @compare);
is($mesh->rows('SELECT count(*) FILTER (WHERE id < 1000), count(*) FILTER (WHERE id > 1000), count(*) FROM busy'),
	"$new|$rows|@{[$rows + $new]}", 'what is older has gone');
is($mesh->node(2)->safe_psql('postgres', "SELECT count(DISTINCT r->>'id') FROM krahodb.conflict_log, jsonb_path_query(local_row, '\$[*]') r WHERE \"table\" = 'busy' AND r->>'v' = 'old'"),
	$rows - $new, 'and all of it has been reported');

is($mesh->errors, 0, 'nothing stopped replication');
$mesh->stop;
done_testing();
