# What goes wrong here: a row is fetched from its writer, where ALTER TABLE has written it
# anew meanwhile.  By the command's transaction it would be newer than what others have written
# before that, and that would lose to it where the row was fetched, and nowhere else.  And if its
# version was forgotten, an older change would win there, and whoever fetches the row would find it older
# than the change that it is fetched for.
#
# Then version records of three nodes' writes, which must outlive the command.

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::PausedMesh;
use PostgreSQL::Test::Utils;
use Test::More;

my $mesh = KrahoDB::PausedMesh->new(
	names => [qw(n1 n2 n3)],
	publications => 'pub',
	schema => q{
		CREATE EXTENSION krahodb;
		CREATE TABLE doc (id int PRIMARY KEY, v text, w text);
		ALTER TABLE doc ALTER w SET STORAGE EXTERNAL;
		CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE, v text);
		CREATE TABLE s (id varchar(9) PRIMARY KEY, u varchar(9) UNIQUE, v text);
		CREATE TABLE m (id int PRIMARY KEY, n int, v text);
		ALTER TABLE m REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta);
		CREATE PUBLICATION pub FOR TABLE doc, t, s, m});

$mesh->on(1 => q{INSERT INTO doc SELECT g, 'old', repeat('old', 4000) FROM generate_series(1, 4) g},
	1 => q{INSERT INTO t SELECT g, g, 'old' FROM generate_series(1, 9) g; INSERT INTO s TABLE t; INSERT INTO m VALUES (1, 100, 'old')});
$mesh->settle;
wait_horizon($_) foreach $mesh->nodes;
$mesh->pause;
$mesh->on(1 => q{UPDATE doc SET w = repeat('one', 4000) WHERE id < 3},
	2 => q{UPDATE doc SET v = 'two' WHERE id < 3},
	3 => q{UPDATE doc SET v = 'three', w = repeat('thr', 4000) WHERE id = 1; DELETE FROM doc WHERE id = 2},
	2 => 'ALTER TABLE doc ALTER v TYPE varchar(99)');
$mesh->deliver('12', '13');
is($mesh->node(1)->safe_psql('postgres', 'SELECT id, v, left(w, 3) FROM doc WHERE id < 3'), '1|three|thr',
	'the last update wins over the fetched row');
$mesh->deliver('21', '31', '23', '32');
$mesh->all_equal('everywhere', 'SELECT id, v, left(w, 3) FROM doc ORDER BY id');

# An older change must not win where a third node fetches.
$mesh->pause;
$mesh->on(1 => q{UPDATE doc SET v = 'one' WHERE id > 2},
	2 => q{UPDATE doc SET v = 'two' WHERE id > 2},
	2 => 'ALTER TABLE doc ALTER v TYPE varchar(50)');
$mesh->deliver('21', '31', '32', '12', '13', '23');
$mesh->all_equal('older changes, and a fetch', 'SELECT id, v, left(w, 3) FROM doc ORDER BY id');
is($mesh->rows('SELECT id, v, left(w, 3) FROM doc WHERE id > 2 ORDER BY id'), "3|two|old\n4|two|old", 'the last update has won');

# A claim of a row that was superseded elsewhere; a deletion of what was deleted before; and a row that
# only gave the version of its merged column.  Table s is not rewritten, but its keys get another type.
$mesh->pause;
foreach my $t (qw(t s))
{
	$mesh->on(3 => "INSERT INTO $t VALUES (12, 500, 'three')",
		2 => "DELETE FROM $t WHERE id = '3'",
		3 => "UPDATE $t SET v = 'three' WHERE id = '3'",
		1 => "UPDATE $t SET u = 500 WHERE id = '1'; DELETE FROM $t WHERE id = '3'",
		2 => "UPDATE $t SET u = 501 WHERE id = '1'");
}
$mesh->on(1 => 'UPDATE m SET n = n + 1',
	3 => q{UPDATE m SET n = n + 10, v = 'three'},
	2 => q{UPDATE m SET n = n + 100, v = 'two'});
$mesh->deliver('21');
my $horizon = $mesh->node(2)->safe_psql('postgres', 'SELECT krahodb.hold_horizon(); SELECT krahodb.release_horizon()');
my $versions = join ' UNION ALL ', map { "SELECT DISTINCT '$_', kind, time, node, values[1]::text FROM krahodb.table_versions('$_', " . ($horizon + 0) . ')' } qw(t s);
my $before = $mesh->node(2)->safe_psql('postgres', "$versions ORDER BY 1, 2, 3, 4, 5");
$mesh->on(2 => q{ALTER TABLE t ALTER id TYPE bigint, ALTER u TYPE bigint; ALTER TABLE m ALTER v TYPE varchar(50);
	ALTER TABLE s ALTER id TYPE text; ALTER TABLE s ALTER u TYPE text});
is($mesh->node(2)->safe_psql('postgres', "$versions ORDER BY 1, 2, 3, 4, 5"), $before, 'a copy gets the same versions as before');
$mesh->deliver('23', '31', '12', '32', '13');
$mesh->all_equal('records', map { "SELECT * FROM $_ ORDER BY id" } qw(t s m));
foreach my $t (qw(t s))
{
	is($mesh->rows("SELECT id, u FROM $t WHERE id IN ('1', '3', '12') ORDER BY id"), '1|501', "what was claimed and deleted stays so: $t");
}
is($mesh->rows('SELECT * FROM m'), '1|211|two', 'a version that the heap does not show');

# All at once, and everywhere.
$mesh->pause;
foreach my $n (1 .. 3)
{
	$mesh->on($n => "UPDATE t SET v = 'by $n' WHERE id IN (4, 5); UPDATE t SET u = 600 WHERE id = 5 + $n; UPDATE t SET u = 600 + $n WHERE id = 5 + $n");
	$mesh->on($n => 'DELETE FROM t WHERE id = 5') if $n == 2;
	$mesh->on($n => 'ALTER TABLE t ALTER u TYPE numeric, ALTER id TYPE numeric');
}
$mesh->deliver('31', '13', '32', '21', '12', '23');
$mesh->all_equal('all are rewritten', 'SELECT * FROM t ORDER BY id');

is($mesh->errors, 0, 'no error');
$mesh->stop;
done_testing();
