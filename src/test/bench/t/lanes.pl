#
# Parallel lanes: the backlog of tpcb.pl with several values of apply_workers.
#
# Environment: BENCH_TRANSACTIONS (60000), BENCH_SCALE (10), BENCH_LANES ("1 2 4"), and
# that of KrahoDB::Bench.
#
use strict;
use warnings;

use KrahoDB::Bench;
use Test::More;

my $transactions = setting('TRANSACTIONS', 60_000);
my $scale = setting('SCALE', 10);

sub schema { run_pgbench($_[0], qw(-i -q -s), $scale); }

contender(name => 'stock', schema => \&schema);
contender(
	name => "lanes_$_",
	kind => 'krahodb',
	schema => \&schema,
	options => "apply_workers = $_",
	conf => 'max_worker_processes = 20') foreach split ' ', setting('LANES', '1 2 4');
rounds(
	sub {
		my ($round) = @_;
		in_turns($round, "backlog of $transactions TPC-B", 's', 'less',
			sub {
				drain($_[0],
					sub {
						run_pgbench($_[0]{publisher}, qw(-n -c 2 -j 2 -t), int($transactions / 2),
							"--random-seed=$round");
					});
			});
		vacuum_all();
	});
check_equal(qw(pgbench_accounts pgbench_tellers pgbench_branches pgbench_history));
bench_report();
done_testing();
