# What goes wrong here: the rows of a table get other keys: by ALTER TABLE ... USING, which makes 3 of 2, or by another primary
# key.  What was recorded of key 3 must not be taken for what is known of the row that has that key now.

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::PausedMesh;
use PostgreSQL::Test::Utils;
use Test::More;

# What gives the rows of n1 and n2 other keys; id is one more than b.  Id of the row that has key 3 afterwards, in both columns.
my @cases = (
	[ 'keys are shifted', 'ALTER TABLE % ALTER id TYPE int USING id + 1', 'id = 3' ],
	[ 'keys are shifted, and are of another type on the way',
		'ALTER TABLE % ALTER id TYPE bigint; ALTER TABLE % ALTER id TYPE int USING (id + 1)::int', 'id = 3' ],
	[ 'another primary key', 'ALTER TABLE % DROP CONSTRAINT %_pkey; ALTER TABLE % ADD PRIMARY KEY (b)', 'b = 3' ],
	[ 'another primary key in one command', 'ALTER TABLE % DROP CONSTRAINT %_pkey, ADD PRIMARY KEY (b), ALTER w TYPE bigint', 'b = 3' ]);
my @tables = map { "t$_" } 0 .. $#cases;

my $mesh = KrahoDB::PausedMesh->new(
	names => [qw(n1 n2 n3)],
	publications => 'pub',
	schema => 'CREATE EXTENSION krahodb; CREATE PUBLICATION pub;' . join ';', map {
		"CREATE TABLE $_ (id int PRIMARY KEY, b int NOT NULL, n int, w int);
		ALTER TABLE $_ REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta);
		ALTER PUBLICATION pub ADD TABLE $_" } @tables);

sub write_on
{
	my ($n, $sql) = @_;

	foreach my $i (0 .. $#tables)
	{
		my $text = ref $sql ? $sql->($i) : $sql;

		$mesh->on($n => $text =~ s/%/$tables[$i]/gr);
	}
	return;
}

write_on(1, 'INSERT INTO % (id, b, n) SELECT g, g - 1, 10 * g FROM generate_series(1, 5) g');
$mesh->settle;

# Of key 3 there is something to be recorded on n1 and n2; n3 is away, and holds the horizon back.
$mesh->pause;
write_on(1, 'UPDATE % SET n = n + 500 WHERE id = 3');
write_on(2, 'UPDATE % SET n = n + 7000 WHERE id = 3; DELETE FROM % WHERE id = 3');
$mesh->deliver('21', '12');
write_on($_, sub { $cases[ $_[0] ][1] }) foreach 1, 2;

# Now somebody else is that.  Both change it.
foreach my $n (1, 2)
{
	$mesh->node($n)->safe_psql('postgres', "ALTER SUBSCRIPTION n${n}_n@{[3 - $n]} DISABLE");
	$mesh->node($n)->poll_query_until('postgres', 'SELECT count(*) = 0 FROM pg_stat_subscription WHERE pid IS NOT NULL') or die;
}
write_on(1, sub { "UPDATE % SET n = n + 1 WHERE $cases[ $_[0] ][2]" });
write_on(2, sub { "UPDATE % SET n = n + 2 WHERE $cases[ $_[0] ][2]" });
$mesh->deliver('21', '12');
foreach my $i (0 .. $#cases)
{
	my $query = "SELECT n FROM $tables[$i] WHERE $cases[$i][2]";
	my $expected = $cases[$i][2] =~ /^b/ ? 43 : 23;

	is($mesh->node($_)->safe_psql('postgres', $query), $expected, "$cases[$i][0]: n$_") foreach 1, 2;
	is($mesh->node(2)->safe_psql('postgres', "SELECT count(*) FROM $tables[$i]"), 4, "$cases[$i][0]: all rows are there");
}
$mesh->stop;
done_testing();
