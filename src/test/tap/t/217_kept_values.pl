# What goes wrong here: a row keeps a value of a deferrable key while a change is applied that claims it,
# since the writer had seen the row; but that change loses on its own key.  So nobody takes the
# value away from the row at the end of the transaction, and a change of the row which is older than
# the claim must still lose to it, although it does not touch the value: as on the nodes that
# know what had happened to the row.

use strict;
use warnings;

use KrahoDB::PausedMesh;
use Test::More;

my $mesh = KrahoDB::PausedMesh->new(
	names => [qw(n1 n2 n3 n4)],
	publications => 'mesh',
	schema => q{
	CREATE EXTENSION krahodb;
	CREATE TABLE d (id int PRIMARY KEY, u int UNIQUE DEFERRABLE INITIALLY DEFERRED, v text);
	CREATE PUBLICATION mesh FOR TABLE d});

$mesh->on(1 => q{INSERT INTO d VALUES (1, NULL, 'old'), (2, 5, 'old')});
$mesh->settle;
$mesh->pause;
$mesh->on(3 => 'UPDATE d SET u = 6 WHERE id = 2');
$mesh->deliver('13');
$mesh->on(
	4 => q{UPDATE d SET v = 'beaten' WHERE id = 2},
	1 => 'UPDATE d SET u = 5 WHERE id = 1',
	2 => q{UPDATE d SET v = 'last' WHERE id = 1});
$mesh->deliver('21');
is($mesh->node(2)->safe_psql('postgres', 'SELECT id, u FROM d ORDER BY id'), "1|\n2|5", 'the value was kept');
$mesh->deliver(qw(24 23 14 12 31 32 34 41 42 43));
$mesh->all_equal('kept, and claimed', 'SELECT d.* FROM d ORDER BY id');
is($mesh->rows('SELECT d.* FROM d'), '1||last', 'the older change has lost');
is($mesh->errors, 0, 'nothing stopped replication');
$mesh->stop;
done_testing();
