# What goes wrong here: a row is fetched from its writer, where ALTER TABLE has written it
# anew meanwhile.  By the command's transaction it would be newer than what others have written
# before that, and that would lose to it where the row was fetched, and nowhere else.

use strict;
use warnings;

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
		CREATE PUBLICATION pub FOR TABLE doc});

$mesh->on(1 => q{INSERT INTO doc SELECT g, 'old', repeat('old', 4000) FROM generate_series(1, 2) g});
$mesh->settle;
$mesh->pause;
$mesh->on(1 => q{UPDATE doc SET w = repeat('one', 4000)},
	2 => q{UPDATE doc SET v = 'two'},
	3 => q{UPDATE doc SET v = 'three', w = repeat('thr', 4000) WHERE id = 1; DELETE FROM doc WHERE id = 2},
	2 => 'ALTER TABLE doc ALTER v TYPE varchar(99)');
$mesh->deliver('12', '13');
is($mesh->node(1)->safe_psql('postgres', 'SELECT id, v, left(w, 3) FROM doc ORDER BY id'), '1|three|thr',
	'the last update wins over the fetched row');
$mesh->deliver('21', '31', '23', '32');
$mesh->all_equal('everywhere', 'SELECT id, v, left(w, 3) FROM doc ORDER BY id');

is($mesh->errors, 0, 'no error');
$mesh->stop;
done_testing();
