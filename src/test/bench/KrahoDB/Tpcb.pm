# KrahoDB::Tpcb: a backlog of small transactions, pgbench's TPC-B, from the release of
# the walsender to applied.
#
# Environment: BENCH_TRANSACTIONS (60000), BENCH_SCALE (10), and that of KrahoDB::Bench.

package KrahoDB::Tpcb;

use strict;
use warnings;

use Exporter 'import';
use KrahoDB::Bench;

our @EXPORT = qw(tpcb_schema tpcb_backlog);

my $transactions = setting('TRANSACTIONS', 60_000);
my $scale = setting('SCALE', 10);

# The schema of a contender.
sub tpcb_schema { return run_pgbench($_[0], qw(-i -q -s), $scale); }

# One round of a contender: writes the transactions, then they are applied.
sub drain_one
{
	my ($contender, $round) = @_;

	return drain($contender,
		sub {
			run_pgbench($_[0]{publisher}, qw(-n -c 2 -j 2 -t), int($transactions / 2), "--random-seed=$round");
		});
}

# All rounds with all contenders, and the report.
sub tpcb_backlog
{
	rounds(
		sub {
			my ($round) = @_;

			in_turns($round, "backlog of $transactions TPC-B", 's', 'less', sub { drain_one($_[0], $round) });
			vacuum_all();
		});
	check_equal(qw(pgbench_accounts pgbench_tellers pgbench_branches pgbench_history));
	bench_report();
	return;
}

1;
