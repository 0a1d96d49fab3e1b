# What goes wrong here: one transaction changes a row twice.  The first change takes a unique
# value that somebody else has taken later, so that the row is dead; the second one gives it back, and
# the row is there again.  Its value contains both changes, of which one was made
# to a dead row: that one is not to be added again when the row version has been forgotten.

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::PausedMesh;
use PostgreSQL::Test::Utils;
use Test::More;

my $mesh = KrahoDB::PausedMesh->new(
	names => [qw(n1 n2 n3)],
	publications => 'pub',
	schema => 'CREATE EXTENSION krahodb; CREATE TABLE m (id int PRIMARY KEY, u int UNIQUE, n int);
		ALTER TABLE m REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta);
		CREATE PUBLICATION pub FOR TABLE m');
my $third = $mesh->node(3);
my $row = 'SELECT n FROM m WHERE id = 1';

$mesh->on(1 => 'INSERT INTO m VALUES (1, NULL, 1), (2, NULL, 1)');
$mesh->settle;
$mesh->pause;
$mesh->on(
	2 => 'UPDATE m SET n = n + 1000 WHERE id = 1',
	1 => 'BEGIN; UPDATE m SET u = 5, n = n + 10 WHERE id = 1; UPDATE m SET u = NULL, n = n + 100 WHERE id = 1; COMMIT',
	3 => 'UPDATE m SET u = 5 WHERE id = 2');
$mesh->deliver('31');
is($third->safe_psql('postgres', $row), '111', 'both changes count');

# an older one, which leaves another version of the row, and the horizon passes the first
$mesh->deliver(qw(32 12 13 21 23));
$mesh->settle;
is(is_equal_on([ $mesh->nodes ], $row, 'it is the same on all nodes'), '1111', 'and those of others');
wait_horizon($third);

# a change that loses reads what is left
pause_subscription($third, 'n3_n2');
$mesh->on(2 => 'UPDATE m SET n = n + 10000 WHERE id = 1', 3 => 'UPDATE m SET n = n + 100000 WHERE id = 1');
$mesh->release('32');
$mesh->settle;
is(is_equal_on([ $mesh->nodes ], $row, 'behind the horizon'), '111111', 'each counts once');

# ---- a dead row's changes, and the next row of that key ----------------------------------------

# The last version of the new row that is left is one of an older change, which did nothing to it.
$mesh->on(1 => 'INSERT INTO m VALUES (3, NULL, 1)');
$mesh->settle;
$mesh->pause;
$mesh->on(
	1 => 'UPDATE m SET n = n + 1000 WHERE id = 3',
	2 => 'UPDATE m SET n = n + 3 WHERE id = 3',
	3 => 'DELETE FROM m WHERE id = 3');
$mesh->deliver('32');
$mesh->on(3 => 'INSERT INTO m VALUES (3, NULL, 50)');
$mesh->deliver(qw(31 12 13 21 23));
$mesh->settle;
$row = 'SELECT n FROM m WHERE id = 3';
is(is_equal_on([ $mesh->nodes ], $row, 'a new row'), '50', 'it begins anew');
wait_horizon($third);
pause_subscription($third, 'n3_n2');
$mesh->on(2 => 'UPDATE m SET n = n + 10000 WHERE id = 3', 3 => 'UPDATE m SET n = n + 100000 WHERE id = 3');
$mesh->release('32');
$mesh->settle;
is(is_equal_on([ $mesh->nodes ], $row, 'a new row behind the horizon'), '110050', 'what the old one was does not count');
is($mesh->errors, 0, 'no error');
$mesh->stop;
done_testing();
