#
# One large transaction: a million rows inserted, updated, deleted.  Time from the
# release of the walsender to applied.
#
# Environment: BENCH_ROWS (1000000), and that of KrahoDB::Bench.
#
use strict;
use warnings;

use KrahoDB::Bench;
use Test::More;

my $rows = setting('ROWS', 1_000_000);

sub schema
{
	$_[0]->safe_psql('postgres', 'CREATE TABLE bulk (id bigint PRIMARY KEY, a int, b text, c timestamptz)');
}

my @statements = (
	[ insert => "INSERT INTO bulk SELECT i, i % 1000, 'row number ' || i, now() FROM generate_series(1, $rows) i" ],
	[ update => 'UPDATE bulk SET a = a + 1' ],
	[ delete => 'DELETE FROM bulk' ]);

contender(name => $_, schema => \&schema) foreach wanted_contenders();
rounds(
	sub {
		my ($round) = @_;
		foreach my $statement (@statements)
		{
			my ($name, $query) = @$statement;
			in_turns($round, "one transaction, $rows x $name", 's', 'less',
				sub { drain($_[0], sql($query)) });
			check_equal('bulk') if $round == 1;
		}
		vacuum_all();
	});
bench_report();
done_testing();
