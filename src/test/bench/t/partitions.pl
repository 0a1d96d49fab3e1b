#
# One transaction of many rows inserted into partitioned tables that are published as a whole, so
# that the subscriber finds the partition of each row: by the hash of a key in order, and by ranges
# of a key in order and in none.  Beside the stock server a plain subscription and one where
# the last update wins.
#
# Environment: BENCH_ROWS (300000), BENCH_PARTITIONS (8), and that of KrahoDB::Bench.
#
use strict;
use warnings;

use KrahoDB::Bench;
use Test::More;

my $rows = setting('ROWS', 300_000);
my $partitions = setting('PARTITIONS', 8);

sub partitions_of
{
	my ($table, $bounds) = @_;
	return join '', map { "CREATE TABLE ${table}_$_ PARTITION OF $table FOR VALUES " . $bounds->($_) . ";\n" } 0 .. $partitions - 1;
}

sub schema
{
	my $size = int($rows / $partitions) + 1;

	$_[0]->safe_psql('postgres', <<EOS
CREATE TABLE by_hash (id bigint PRIMARY KEY, a int, b text, c timestamptz) PARTITION BY HASH (id);
CREATE TABLE by_range (LIKE by_hash INCLUDING INDEXES) PARTITION BY RANGE (id);
EOS
		. partitions_of('by_hash', sub { "WITH (MODULUS $partitions, REMAINDER $_[0])" })
		  . partitions_of('by_range', sub { 'FROM (' . $_[0] * $size . ') TO (' . ($_[0] + 1) * $size . ')' }));
	return;
}

foreach my $name (grep { $_ ne 'pglogical' } wanted_contenders(), 'converging')
{
	my $converging = $name eq 'converging';
	my $c = contender(name => $name, kind => $name eq 'stock' ? 'stock' : 'krahodb', extension => $converging,
		schema => \&schema, subscription => 0);

	$c->{publisher}->safe_psql('postgres',
		'CREATE PUBLICATION p FOR ALL TABLES WITH (publish_via_partition_root)');
	$c->{subscriber}->safe_psql('postgres', "CREATE SUBSCRIPTION s CONNECTION '" . $c->{publisher}->connstr .
		" dbname=postgres' PUBLICATION p WITH (copy_data = false" . ($converging ? ', conflict_resolution = last_update_wins)' : ')'));
}

my $row = "i, i % 1000, 'row number ' || i, now() FROM generate_series(0, $rows - 1) i";
my @work = (
	[ 'by hash', by_hash => "INSERT INTO by_hash SELECT $row" ],
	[ 'by range, in order', by_range => "INSERT INTO by_range SELECT $row" ],
	[ 'by range, in none', by_range => "INSERT INTO by_range SELECT $row ORDER BY hashint4(i)" ]);

rounds(
	sub {
		my ($round) = @_;

		foreach my $work (@work)
		{
			my ($name, $table, $query) = @$work;

			in_turns($round, "$rows x insert, $name", 's', 'less', sub { return drain($_[0], sql($query)); });
			check_equal($table) if $round == 1;
			$_->{publisher}->safe_psql('postgres', "TRUNCATE $table") foreach contenders();
		}
	});
bench_report();
done_testing();
