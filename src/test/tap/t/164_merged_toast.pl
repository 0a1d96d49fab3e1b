# What goes wrong here: what a merged column has been is read from old versions of the
# row, and its out-of-line values are gone.  The table that holds them is vacuumed by
# itself, so they may go before the versions that point to them.

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
		CREATE TABLE w (id int PRIMARY KEY, top text COLLATE "C");
		ALTER TABLE w ALTER top SET STORAGE EXTERNAL;
		ALTER TABLE w REPLICA IDENTITY FULL, ALTER top SET (krahodb.merge = max);
		CREATE PUBLICATION pub FOR TABLE w});
my $node = $mesh->node(1);

sub wide { return "repeat('$_[0]', 3000)"; }

$mesh->on(1 => "INSERT INTO w VALUES (1, @{[wide('a')]}), (2, @{[wide('a')]})",
	1 => "UPDATE w SET top = @{[wide('b')]}",
	1 => "UPDATE w SET top = @{[wide('c')]}",
	1 => 'DELETE FROM w WHERE id = 2');
$mesh->settle;
wait_horizon($node);
my $toast = $node->safe_psql('postgres', q{SELECT reltoastrelid::regclass FROM pg_class WHERE relname = 'w'});
$node->safe_psql('postgres', "VACUUM $toast");

$mesh->pause;
$mesh->on(
	2 => "UPDATE w SET top = @{[wide('e')]}",
	1 => "UPDATE w SET top = @{[wide('d')]}",
	1 => "INSERT INTO w VALUES (2, @{[wide('g')]}); DELETE FROM w WHERE id = 2",
	2 => "INSERT INTO w VALUES (2, @{[wide('f')]})");
$mesh->deliver('12', '21');
$mesh->all_equal('rows', 'SELECT * FROM w ORDER BY id');
is($node->safe_psql('postgres', 'SELECT id, left(top, 1) FROM w ORDER BY id'), "1|e\n2|f", 'the greatest');

is($mesh->errors, 0, 'no error');
$mesh->stop;
done_testing();
