# What goes wrong here: what is known of a publisher is taken for true of another one, to
# which ALTER SUBSCRIPTION leads now; or a publisher that has less than what was applied of
# it is streamed from a place that it has not come to.  And the horizon worker is replaced
# while the horizon is only in memory.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my ($p, $q, $n) = my @nodes = map { krahodb_node($_) } qw(p q n);

foreach my $node (@nodes)
{
	$node->safe_psql('postgres', 'CREATE EXTENSION krahodb; CREATE TABLE t (id int PRIMARY KEY, v text); CREATE PUBLICATION pub FOR TABLE t');
}

# ---- no peers: the horizon is not in its file --------------------------------------------

$n->poll_query_until('postgres', 'SELECT horizon IS NOT NULL FROM krahodb.horizon_state()') or die;
my $before = $n->safe_psql('postgres', 'SELECT horizon FROM krahodb.horizon_state()');
$n->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'krahodb horizon'");
$n->safe_psql('postgres', q{CREATE SUBSCRIPTION none CONNECTION 'dbname=none' PUBLICATION pub WITH (connect = false, origin = none)});
$n->poll_query_until('postgres', 'SELECT count(*) = 1 FROM krahodb.horizon') or die;
$n->stop('immediate');
$n->start;
is($n->safe_psql('postgres', "SELECT horizon >= '$before' FROM krahodb.horizon_state()"), 't',
	'the horizon does not go back with the first peer');
$n->safe_psql('postgres', 'ALTER SUBSCRIPTION none SET (slot_name = NONE); DROP SUBSCRIPTION none');

$_->stop foreach @nodes;
done_testing();
