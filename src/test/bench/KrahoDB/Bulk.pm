# KrahoDB::Bulk: one transaction of many rows inserted, updated, deleted.
#
# Environment: BENCH_ROWS (1000000), and that of KrahoDB::Bench.

package KrahoDB::Bulk;

use strict;
use warnings;

use Exporter 'import';
use KrahoDB::Bench;

our @EXPORT = qw(bulk_schema bulk_rounds);

my $rows = setting('ROWS', 1_000_000);
my @statements = (
	[ insert => "INSERT INTO bulk SELECT i, i % 1000, 'row number ' || i, now() FROM generate_series(1, $rows) i" ],
	[ update => 'UPDATE bulk SET a = a + 1' ],
	[ delete => 'DELETE FROM bulk' ]);

# The schema of a contender.
sub bulk_schema
{
	my ($node) = @_;

	$node->safe_psql('postgres', 'CREATE TABLE bulk (id bigint PRIMARY KEY, a int, b text, c timestamptz)');
	return;
}

# All rounds and the report; $measure is called with a contender and a statement and
# returns seconds.
sub bulk_rounds
{
	my ($what, $measure) = @_;

	rounds(
		sub {
			my ($round) = @_;

			foreach my $statement (@statements)
			{
				my ($name, $query) = @$statement;

				in_turns($round, "$what, $rows x $name", 's', 'less', sub { return $measure->($_[0], $query); });
				check_equal('bulk') if $round == 1;
			}
			vacuum_all();
		});
	bench_report();
	return;
}

1;
