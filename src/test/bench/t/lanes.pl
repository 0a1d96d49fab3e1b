#
# Parallel lanes: the backlog of tpcb.pl with several values of apply_workers.
#
# Environment: BENCH_LANES ("1 2 4"), and that of KrahoDB::Tpcb.
#
use strict;
use warnings;

use KrahoDB::Bench;
use KrahoDB::Tpcb;
use Test::More;

contender(name => 'stock', schema => \&tpcb_schema);
contender(
	name => "lanes_$_",
	kind => 'krahodb',
	schema => \&tpcb_schema,
	options => "apply_workers = $_",
	conf => 'max_worker_processes = 20') foreach split ' ', setting('LANES', '1 2 4');
tpcb_backlog();
done_testing();
