#
# A backlog of small transactions: pgbench's TPC-B.
#
# Environment: that of KrahoDB::Tpcb.
#
use strict;
use warnings;

use KrahoDB::Bench;
use KrahoDB::Tpcb;
use Test::More;

contender(name => $_, schema => \&tpcb_schema) foreach wanted_contenders();
tpcb_backlog();
done_testing();
