#
# One large transaction (KrahoDB::Bulk): time from the release of the walsender to applied.
#
use strict;
use warnings;

use KrahoDB::Bench;
use KrahoDB::Bulk;
use Test::More;

contender(name => $_, schema => \&bulk_schema) foreach wanted_contenders();
bulk_rounds('one transaction', sub { my ($c, $query) = @_; return drain($c, sql($query)); });
done_testing();
