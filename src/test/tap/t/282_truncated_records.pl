# What goes wrong here: TRUNCATE takes a table's rows, dead ones too, and leaves what version
# records say of deletions, unique values and merged columns.  Whatever is written afterwards, with the same
# keys and values and in any order of arrival, must end as in a table that never had anything.

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::PausedMesh;
use Test::More;

my @orders = ([qw(32 31 12 13 23)], [qw(13 12 23 31 32)]);
my @numbers = (1 .. @orders);
my @tables = map { ("t$_", "fresh$_") } @numbers;

my $mesh = KrahoDB::PausedMesh->new(
	names => [qw(n1 n2 n3)],
	publications => 'mesh',
	schema => join('; ', 'CREATE EXTENSION krahodb',
		(map { "CREATE TABLE $_ (id int PRIMARY KEY, u int UNIQUE, v text, n int);"
			. "ALTER TABLE $_ REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta)" } @tables),
		'CREATE PUBLICATION mesh FOR TABLE ' . join(', ', @tables)));

# Write on a node, in each of these tables.
sub write_to
{
	my ($number, $tables, @statements) = @_;

	foreach my $table (@$tables)
	{
		$mesh->on($number => join '; ', map { s/\bTABLE\b/$table/r } @statements);
	}
	return;
}

# ---- records of all kinds -------------------------------------------------------------------

my @old = map { "t$_" } @numbers;

$mesh->pause;
write_to(3, \@old, q{INSERT INTO TABLE SELECT i, i, 'first', 100 FROM generate_series(1, 5) i});
$mesh->deliver('23');
write_to(3, \@old, 'UPDATE TABLE SET n = n + 10');
$mesh->pause;
write_to(2, \@old, 'UPDATE TABLE SET n = n + 1', 'DELETE FROM TABLE WHERE id <> 4');
write_to(1, \@old, q{INSERT INTO TABLE VALUES (6, 4, 'other', 7)}, 'UPDATE TABLE SET u = 60 WHERE id = 6', 'DELETE FROM TABLE WHERE id = 6');
$mesh->deliver(qw(12 32 31 21 23 13));
$mesh->all_equal('before', map { "SELECT string_agg(x::text, ' ' ORDER BY id) FROM $_ x" } @old);
my $records = join ' UNION ALL ', map { "SELECT * FROM krahodb.version_records_$_" } 1 .. 4;
foreach my $node ($mesh->nodes)
{
	my $kinds = $node->safe_psql('postgres', "SELECT string_agg(DISTINCT kind, '' ORDER BY kind) FROM ($records) r");

	like($kinds, qr/[cdkmst]/, $node->name . " has records: $kinds");
}
$mesh->on(1 => 'TRUNCATE ' . join ', ', @old);
$mesh->settle;

# ---- the same keys and values again -----------------------------------------------------------

foreach my $number (@numbers)
{
	my @both = ("t$number", "fresh$number");
	my $order = $orders[ $number - 1 ];

	$mesh->pause;
	write_to(1, \@both, q{INSERT INTO TABLE SELECT i, i, 'second', i FROM generate_series(1, 4) i});
	$mesh->deliver('21');
	write_to(2, \@both, 'UPDATE TABLE SET n = n + 3 WHERE id < 3', 'DELETE FROM TABLE WHERE id = 2');
	write_to(3, \@both, q{INSERT INTO TABLE VALUES (1, 4, 'third', 50), (5, 5, 'third', 60)}, 'UPDATE TABLE SET n = n + 2 WHERE id = 5');
	write_to(1, \@both, 'UPDATE TABLE SET n = n + 20 WHERE id = 2', q{INSERT INTO TABLE VALUES (6, 60, 'second', 1)});
	$mesh->deliver(@$order);
	$mesh->all_equal("order @$order", map { "SELECT string_agg(x::text, ' ' ORDER BY id) FROM $_ x" } @both);
	is($mesh->rows("SELECT string_agg(x::text, ' ' ORDER BY id) FROM t$number x"),
		$mesh->rows("SELECT string_agg(x::text, ' ' ORDER BY id) FROM fresh$number x"), "order @$order: as in a new table");
}
is($mesh->errors, 0, 'nothing stopped replication');

$mesh->stop;
done_testing();
