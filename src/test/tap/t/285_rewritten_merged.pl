# What goes wrong here: ALTER TABLE writes a table with merged columns anew, one tuple in the place of all
# versions of a row, and nothing in that of deleted rows.  What comes afterwards may be older than what had been
# added up: an INSERT of the key, a value to and from NULL, a maximum that was lowered; or it
# brings a deleted row back.  Each change must count once, as on the node where nothing was written anew.

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::PausedMesh;
use PostgreSQL::Test::Utils;
use Test::More;

# Commands of n2, each in tables of its own; how these are, if it matters.
my @cases = (
	[ 'another column', 'ALTER TABLE % ALTER w TYPE bigint' ],
	[ 'integers', 'ALTER TABLE % ALTER n TYPE bigint, ALTER hi TYPE bigint' ],
	[ 'integers, with USING', 'ALTER TABLE % ALTER n TYPE bigint USING n::bigint, ALTER hi TYPE bigint USING hi::bigint' ],
	[ 'numbers', 'ALTER TABLE % ALTER n TYPE numeric, ALTER hi TYPE numeric' ],
	[ 'a scale', 'ALTER TABLE % ALTER n TYPE numeric(14,4), ALTER hi TYPE numeric(9,3)', merged => 'numeric(12,2)' ],
	[ 'and back', 'ALTER TABLE % ALTER n TYPE numeric, ALTER hi TYPE numeric(9,3); ALTER TABLE % ALTER n TYPE int, ALTER hi TYPE int' ],
	[ 'the key', 'ALTER TABLE % ALTER id TYPE bigint' ],
	[ 'the key, and back', 'ALTER TABLE % ALTER id TYPE bigint; ALTER TABLE % ALTER id TYPE int' ],
	[ 'all columns', 'ALTER TABLE % ALTER id TYPE numeric, ALTER n TYPE bigint, ALTER hi TYPE numeric, ALTER w TYPE text' ],
	[ 'a volatile default', 'ALTER TABLE % ADD r float DEFAULT random(); ALTER TABLE % DROP r' ],
	[ 'an access method', 'ALTER TABLE % SET ACCESS METHOD heap2' ],
	[ 'twice', 'ALTER TABLE % ALTER w TYPE bigint; ALTER TABLE % ALTER w TYPE int' ],
	[ 'twice in a transaction', 'BEGIN; ALTER TABLE % ALTER w TYPE bigint; UPDATE % SET w = 1; ALTER TABLE % ALTER id TYPE bigint; COMMIT' ],
	[ 'rolled back', q{BEGIN; ALTER TABLE % ALTER w TYPE bigint; ROLLBACK;
		BEGIN; SAVEPOINT s; ALTER TABLE % ALTER id TYPE bigint; ROLLBACK TO s; ALTER TABLE % ALTER w TYPE numeric; COMMIT} ],
	[ 'a key that stays as it is', 'ALTER TABLE % ALTER id TYPE text', key => 'varchar(10)' ],
	[ 'such a key, and back', 'ALTER TABLE % ALTER id TYPE text; ALTER TABLE % ALTER id TYPE varchar(10)', key => 'varchar(10)' ],
	[ 'partitions', 'ALTER TABLE % ALTER n TYPE bigint, ALTER w TYPE text', partitioned => 1 ],
	[ 'one partition', 'ALTER TABLE %_0 SET ACCESS METHOD heap2; ALTER TABLE %_1 SET ACCESS METHOD heap2', partitioned => 1 ],
	[ 'VACUUM FULL before', 'VACUUM FULL %; ALTER TABLE % ALTER w TYPE bigint' ],
	[ 'all in one transaction', 'ALTER TABLE % ALTER n TYPE bigint', inside => 1 ]);

sub table_of_case
{
	my ($name) = @_;
	my ($i) = $name =~ /(\d+)/;
	my (undef, undef, %how) = @{ $cases[$i] };
	my $sql = sprintf 'CREATE TABLE %s (id %s PRIMARY KEY, n %3$s, hi %3$s, w int, v text) %4$s;', $name,
	  $how{key} // 'int', $how{merged} // 'int', $how{partitioned} ? 'PARTITION BY HASH (id)' : '';

	$sql .= join '', map { "CREATE TABLE ${name}_$_ PARTITION OF $name FOR VALUES WITH (MODULUS 2, REMAINDER $_);
		ALTER TABLE ${name}_$_ REPLICA IDENTITY FULL;" } 0, 1 if $how{partitioned};
	return $sql . "ALTER TABLE $name REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta), ALTER hi SET (krahodb.merge = max);
		ALTER PUBLICATION pub ADD TABLE $name";
}

my @tables = map { ("c$_", "d$_") } 0 .. $#cases;
my $mesh = KrahoDB::PausedMesh->new(
	names => [qw(n1 n2)],
	publications => 'pub',
	schema => q{
		CREATE EXTENSION krahodb;
		CREATE ACCESS METHOD heap2 TYPE TABLE HANDLER heap_tableam_handler;
		CREATE TABLE f1 (id int PRIMARY KEY, n int, w int);
		ALTER TABLE f1 REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta);
		CREATE TABLE f2 (id int PRIMARY KEY, hi numeric, w int);
		ALTER TABLE f2 REPLICA IDENTITY FULL, ALTER hi SET (krahodb.merge = max);
		CREATE TABLE f3 (id int PRIMARY KEY, n int, m int, w int);
		ALTER TABLE f3 REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta);
		CREATE PUBLICATION pub FOR TABLE f1, f2, f3 WITH (publish_via_partition_root = true);} . join ';', map { table_of_case($_) } @tables);

$mesh->on(1 => join ';', map { "INSERT INTO $_ (id, n, hi) SELECT g, 100, 10 FROM generate_series(1, 8) g" } @tables);
$mesh->on(1 => 'INSERT INTO f1 VALUES (1, 100, 0); INSERT INTO f2 VALUES (1, 10, 0); INSERT INTO f3 VALUES (1, 100, 0, 0)');
$mesh->settle;
wait_horizon($_) foreach $mesh->nodes;

# The same on all tables named with that letter; sql may be a function of the case's number and the table.
sub write_on
{
	my ($n, $letters, $sql) = @_;
	my @all;

	foreach my $table (grep { /^[$letters]/ } @tables)
	{
		my ($i) = $table =~ /(\d+)/;
		my $text = ref $sql ? $sql->($i, $table) : $sql;

		push @all, $text =~ s/%/$table/gr if $text;
	}
	$mesh->on($n => join ';', @all);
	return;
}

my $older = q{
	UPDATE % SET n = NULL WHERE id = '1'; UPDATE % SET n = 50 WHERE id = '1'; UPDATE % SET hi = 3 WHERE id = '2';
	INSERT INTO % (id, n, hi) VALUES ('20', 1000, 50); UPDATE % SET n = n + 3 WHERE id IN ('3', '4')};
my $first = q{INSERT INTO % (id, n, hi) VALUES ('21', 1, 1)};
my $between = q{INSERT INTO % (id, n, hi) VALUES ('21', 2, 2)};
my $newer = q{INSERT INTO % (id, n, hi) VALUES ('20', 1, 1);
	UPDATE % SET n = n + 5, hi = hi + 10 WHERE id IN ('1', '2', '3', '5', '20', '21'); DELETE FROM % WHERE id IN ('3', '5', '6');
	DELETE FROM % WHERE id = '7'; INSERT INTO % (id, n, hi) VALUES ('7', 2, 2); UPDATE % SET n = n + 1 WHERE id = '7'};
my $revive = q{UPDATE % SET n = n + 100, v = 'revived' WHERE id IN ('3', '5', '6', '7')};
my $after = q{UPDATE % SET n = n + 7 WHERE id IN ('1', '21')};
my $expected = '1 62 20, 2 105 20, 3 208 20, 4 103 10, 5 205 20, 6 200 10, 7 103 2, 8 100 10, 20 6 11, 21 14 11';

sub concurrent
{
	my ($letter) = @_;

	write_on(1, $letter, $older);
	write_on(2, $letter, $first);
	write_on(1, $letter, $between);
	write_on(2, $letter, sub { is_one(@_) ? '' : $newer });
	return;
}

# Is all that n2 does one transaction?
sub is_one
{
	my ($i, $table) = @_;
	my (undef, undef, %how) = @{ $cases[$i] };

	return $how{inside} && $table =~ /^c/;
}

sub command_of
{
	my ($i, $table) = @_;

	return is_one(@_) ? "BEGIN; $newer; $cases[$i][1]; $after; COMMIT" : $cases[$i][1];
}

# What n1 has written arrives before the command, or after it.
$mesh->pause;
concurrent('d');
$mesh->on(1 => 'UPDATE f1 SET n = n + 3; UPDATE f2 SET hi = 0.5; UPDATE f2 SET hi = 4; UPDATE f3 SET n = n + 3',
	2 => 'UPDATE f1 SET n = n + 5; UPDATE f2 SET hi = 20.5; UPDATE f3 SET n = n + 5');
$mesh->deliver('21');
$mesh->pause;
concurrent('c');
write_on(2, 'cd', \&command_of);
write_on(1, 'cd', $revive);

# What is forgotten (more than a cast of what is added up; a column that becomes merged) is not counted
# otherwise; a maximum is what the command makes of it.
$mesh->on(2 => q{ALTER TABLE f1 ALTER n TYPE bigint USING n * 1; ALTER TABLE f2 ALTER hi TYPE int USING round(f2.hi);
		ALTER TABLE f3 ALTER w TYPE bigint, ALTER m SET (krahodb.merge = delta)},
	1 => q{ALTER TABLE f3 ALTER m SET (krahodb.merge = delta);
		UPDATE f1 SET n = n + 100; UPDATE f2 SET hi = 25; UPDATE f3 SET n = n + 100, m = m + 1},
	2 => 'UPDATE f1 SET n = n + 7; UPDATE f2 SET w = 1; UPDATE f3 SET n = n + 7, m = m + 2');
write_on(2, 'cd', sub { is_one(@_) ? '' : $after });
$mesh->deliver('21', '12');

my $sums = "SELECT string_agg(id || ' ' || n::int || ' ' || hi::int, ', ' ORDER BY id::text::int) FROM";

sub check
{
	my ($what) = @_;

	foreach my $table (@tables)
	{
		my ($i) = $table =~ /(\d+)/;
		my $name = "$cases[$i][0]" . ($table =~ /^d/ ? ', some had arrived' : '') . $what;

		is($mesh->node(2)->safe_psql('postgres', "$sums $table"), $expected, "$name: here");
		is($mesh->rows("$sums $table"), $expected, "$name: elsewhere");
	}
	return;
}

check('');
foreach my $query (['SELECT n FROM f1', 215], ['SELECT hi::int FROM f2', 25], ['SELECT n, m FROM f3', '215|3'])
{
	is($mesh->node($_)->safe_psql('postgres', $query->[0]), $query->[1], "$query->[0]: n$_") foreach 1, 2;
}

# The horizon passes it; then the same again, from what is left.
$mesh->settle;
wait_horizon($_) foreach $mesh->nodes;
foreach my $n (1, 2)
{
	$mesh->node($n)->safe_psql('postgres', join ";\n", map { "VACUUM $_" } @tables);
}
$mesh->pause;
write_on(2, 'cd', 'UPDATE % SET n = n + 10000');
write_on(1, 'cd', 'UPDATE % SET n = n + 1000');
$mesh->deliver('21', '12');
$expected =~ s/(\d+) (\d+)(?= \d+(,|$))/"$1 " . ($2 + 11000)/ge;
check(', behind the horizon');

is($mesh->errors, 0, 'no error');
$mesh->stop;
done_testing();
