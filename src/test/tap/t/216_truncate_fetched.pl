# What goes wrong here: a change leaves out a large value, and its row has to be fetched; at the
# publisher the table was truncated since, but something older is known of the key: a
# record of an earlier death, which TRUNCATE leaves where it is, or a row that an older
# change of a third node has made since. That is not what the change has left, and no reason
# to stop for good: the row was truncated.  Nor is a TRUNCATE that was being applied when
# the change was committed: its version is an older one, and so is its transaction.

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
	CREATE TABLE doc (id int PRIMARY KEY, v text, w text);
	ALTER TABLE doc ALTER w SET STORAGE EXTERNAL;
	CREATE PUBLICATION mesh FOR TABLE doc});

# n1 gets a deletion before what it has deleted, and so has a record of it.
$mesh->pause;
$mesh->on(3 => q{INSERT INTO doc VALUES (1, 'first', 'x')});
$mesh->deliver('23');
$mesh->on(2 => 'DELETE FROM doc');
$mesh->deliver(qw(12 13 21 31 32));
$mesh->on(1 => q{INSERT INTO doc SELECT g, 'second', repeat('x', 9000) FROM generate_series(1, 2) g});
$mesh->settle;

$mesh->pause;
$mesh->on(
	3 => q{UPDATE doc SET v = 'third', w = 'y' WHERE id = 2},
	2 => q{UPDATE doc SET v = 'other'},
	1 => q{UPDATE doc SET v = 'gone'; TRUNCATE doc});
$mesh->deliver('13');
is($mesh->rows('SELECT v FROM doc'), 'third', 'an older change that came after TRUNCATE');
my $log = -s $mesh->node(2)->logfile;
$mesh->release('21');
$mesh->on(1 => q{INSERT INTO doc VALUES (3, 'new', 'z')});
$mesh->node(2)->poll_query_until('postgres', 'SELECT count(*) = 1 FROM doc WHERE id = 3') or diag('the new row does not arrive');
is($mesh->node(2)->safe_psql('postgres', 'SELECT * FROM doc'), '3|new|z', 'truncated there, too');
unlike(slurp_file($mesh->node(2)->logfile, $log), qr/ERROR/, 'without an error');
is($mesh->node(2)->safe_psql('postgres', 'SELECT sum(fetched) > 1 FROM krahodb.fetch_stats'), 't', 'rows were fetched');

$mesh->deliver(qw(23 31 32 12));

$mesh->on(1 => q{INSERT INTO doc VALUES (4, 'old', repeat('x', 9000))});
$mesh->settle;
wait_horizon($mesh->node(3));
$mesh->pause;
$log = -s $mesh->node(3)->logfile;
arm_fault($mesh->node(3), 'apply_change@2=wait');
reload_settings($mesh->node(3));
$mesh->on(
	2 => q{UPDATE doc SET v = 'other' WHERE id = 4},
	1 => q{BEGIN; UPDATE doc SET v = 'last', w = 'w' WHERE id = 3; TRUNCATE doc; COMMIT});
$mesh->release('31');
$mesh->node(3)->wait_for_log(qr/fault point "apply_change" reached: wait/, $log);
$mesh->on(3 => q{UPDATE doc SET v = 'mine' WHERE id = 4});
disarm_fault($mesh->node(3));
reload_settings($mesh->node(3));
$mesh->deliver('31');
is($mesh->node(3)->safe_psql('postgres', 'SELECT count(*) FROM doc'), '0', 'truncated behind a change');
$log = -s $mesh->node(2)->logfile;
$mesh->release('23');
$mesh->on(3 => q{INSERT INTO doc VALUES (5, 'new', 'z')});
$mesh->node(2)->poll_query_until('postgres', 'SELECT count(*) = 1 FROM doc WHERE id = 5') or diag('the new row does not arrive');
is($mesh->node(2)->safe_psql('postgres', 'SELECT count(*) FROM doc WHERE id = 4'), '0', 'dead as the writer left it');
unlike(slurp_file($mesh->node(2)->logfile, $log), qr/ERROR/, 'without an error');
$mesh->deliver(qw(21 12 13 32));
is($mesh->errors, 0, 'nothing stopped replication');
$mesh->stop;
done_testing();
