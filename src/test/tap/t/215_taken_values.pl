# What goes wrong here: unique values that are taken while somebody still has them.  In a
# deferrable key an older row may keep its value while a transaction is applied, since the
# same transaction mostly writes it again; but not for longer, as whoever changes it here
# would make two rows with one value last.  And in an exclusion constraint one row may be in
# the way of more rows than are looked at at once: all of the older ones have to go, on
# each node.

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
	CREATE TABLE d (id int PRIMARY KEY, u int UNIQUE DEFERRABLE INITIALLY DEFERRED, v text, big text);
	ALTER TABLE d ALTER big SET STORAGE EXTERNAL;
	CREATE TABLE m (id int PRIMARY KEY, u int UNIQUE DEFERRABLE, n int);
	ALTER TABLE m REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta);
	CREATE TABLE parts (id int, p int, u int, v text, PRIMARY KEY (id, p)) PARTITION BY LIST (p);
	CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1);
	ALTER TABLE parts_1 ADD UNIQUE (u) DEFERRABLE;
	CREATE TABLE busy (id int PRIMARY KEY, during int4range, v text, EXCLUDE USING gist (during WITH &&)) WITH (fillfactor = 40);
	CREATE PUBLICATION mesh FOR TABLE d, m, busy, parts WITH (publish_via_partition_root);
});
my @compare = map { "SELECT t.* FROM $_ t ORDER BY t.*" } qw(d m busy parts);

sub conflicts
{
	return join ' ', map { $_->safe_psql('postgres', 'SELECT count(*) FROM krahodb.conflict_log') } $mesh->nodes;
}

# ---- deferrable keys: at the end of the transaction ------------------------------------

$mesh->on(1 => q{
	INSERT INTO d VALUES (1, 1, 'old'), (2, 2, 'old'), (5, 5, 'old');
	INSERT INTO parts VALUES (1, 1, 1, 'old'), (2, 1, 2, 'old'), (5, 1, 5, 'old');
	INSERT INTO m VALUES (1, 1, 0)});
$mesh->settle;
$mesh->on(
	1 => "BEGIN; UPDATE d SET u = 3 - u, v = 'exchanged' WHERE id < 3; UPDATE parts SET u = 3 - u WHERE id < 3; COMMIT");
$mesh->all_equal('exchanged', @compare);
$mesh->on(
	2 => "BEGIN; UPDATE d SET u = 3 - u, v = 'and back' WHERE id < 3; UPDATE parts SET u = 3 - u WHERE id < 3; COMMIT");
$mesh->all_equal('exchanged by another node', @compare);
is(conflicts(), '0 0 0', 'an exchange is no conflict');

# n2 takes the value away from row 5, and n3 does not know.
$mesh->pause;
$mesh->on(2 => 'UPDATE d SET u = 6 WHERE id = 5; UPDATE parts SET u = 6 WHERE id = 5');
$mesh->deliver('12');
$mesh->on(1 => q{INSERT INTO d VALUES (9, 5, 'taken'); INSERT INTO parts VALUES (9, 1, 5, 'taken')});
$mesh->deliver('31');
is($mesh->node(3)->safe_psql('postgres', 'SELECT id FROM d WHERE u = 5; SELECT id FROM parts WHERE u = 5'), "9\n9",
	'two rows with one value are not left behind');
$mesh->on(3 => q{UPDATE d SET v = 'edited' WHERE id = 5; UPDATE parts SET v = 'edited' WHERE id = 5});
$mesh->deliver(qw(32 23 13 21));
$mesh->all_equal('a value that was given away elsewhere', @compare);
is($mesh->rows('SELECT id, u FROM d WHERE id > 4 ORDER BY id'), "5|6\n9|5", 'both rows are there');

# The row that has kept its value is changed here before the transaction ends.
$mesh->on(1 => q{INSERT INTO d VALUES (20, 20, 'old'), (21, 21, 'old')});
$mesh->settle;
$mesh->pause;
my $log = -s $mesh->node(2)->logfile;
arm_fault($mesh->node(2), 'apply_change@2=wait');
reload_settings($mesh->node(2));
$mesh->release('21');
$mesh->on(1 => 'BEGIN; UPDATE d SET u = 21 WHERE id = 20; UPDATE d SET u = 20 WHERE id = 21; COMMIT');
$mesh->node(2)->wait_for_log(qr/fault point "apply_change" reached: wait/, $log);
$mesh->on(2 => q{UPDATE d SET v = 'mine' WHERE id = 21});
disarm_fault($mesh->node(2));
reload_settings($mesh->node(2));
$mesh->deliver(qw(21 12 13 23 31 32));
$mesh->all_equal('a value that was kept, and the row changed', @compare);
is($mesh->rows('SELECT id, u, v FROM d WHERE id > 19'), '21|21|mine', 'the later one has the value');

# A row that has to be fetched is what another transaction has left.
$mesh->on(1 => q{INSERT INTO d SELECT g, g, 'old', repeat('x', 9000) FROM generate_series(30, 31) g});
$mesh->settle;
$mesh->pause;
$mesh->on(
	3 => q{UPDATE d SET v = 'lost' WHERE id = 30},
	1 => q{UPDATE d SET v = 'lost' WHERE id = 30},
	2 => q{BEGIN; UPDATE d SET u = 31, v = 'new' WHERE id = 30; UPDATE d SET u = 30 WHERE id = 31; COMMIT});
$mesh->deliver(qw(12 31));
is($mesh->node(3)->safe_psql('postgres', 'SELECT id FROM d WHERE u = 31'), '30', 'a fetched row has its value alone');
$mesh->deliver(qw(32 13 23 21));
$mesh->all_equal('a fetched row', @compare);
is($mesh->rows('SELECT id, u, v, length(big) FROM d WHERE id > 29 ORDER BY id'), "30|31|new|9000\n31|30|old|9000",
	'exchanged, with large values');

# A row of n2 that a change of n1 was merged into is no row of n1.
$mesh->pause;
$mesh->on(
	1 => 'UPDATE m SET n = n + 1 WHERE id = 1',
	2 => 'UPDATE m SET u = 5 WHERE id = 1',
	1 => 'INSERT INTO m VALUES (2, 5, 10)');
$mesh->deliver(qw(32 31 21 12 13 23));
$mesh->all_equal('a row that was merged', @compare);
is($mesh->rows('SELECT id, u, n FROM m ORDER BY id'), '2|5|10', 'the later one has the value');

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
