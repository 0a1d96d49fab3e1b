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
		CREATE TABLE k (id text PRIMARY KEY, n int);
		ALTER TABLE k ALTER id SET STORAGE EXTERNAL;
		ALTER TABLE k REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta);
		CREATE PUBLICATION pub FOR TABLE w, k});
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

# The key of a dead row is out of line, and the index that finds such values lacks it since it was built anew.
$mesh->pause;
$mesh->on(1 => q{INSERT INTO k SELECT string_agg(md5(g::text), ''), 5 FROM generate_series(1, 70) g; DELETE FROM k; REINDEX TABLE CONCURRENTLY k});
is($node->safe_psql('postgres', q{SELECT length("values"[1]), contributed[4] FROM krahodb.merged_history('k', 1)}), '2240|5', 'a key that the index lacks');
$node->safe_psql('postgres', 'ALTER TABLE k ALTER n TYPE bigint');
is($node->safe_psql('postgres', q{SELECT length("values"[1]), contributed[4] FROM krahodb.merged_history('k', 1)}), '2240|5', 'and over an ALTER TABLE');

is($mesh->errors, 0, 'no error');
$mesh->stop;
done_testing();
