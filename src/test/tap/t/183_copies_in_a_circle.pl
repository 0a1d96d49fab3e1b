# What goes wrong here: two nodes copy tables from each other and are restarted.  To serve a
# copy a node wants to know how far its peers are; if that waited for its own copies, both
# would wait for each other for good.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my ($a, $b) = my @nodes = map { krahodb_node($_) } qw(a b);

sub on { my ($node, $query) = @_; return $node->safe_psql('postgres', $query); }

foreach my $node (@nodes)
{
	on($node, 'CREATE EXTENSION krahodb');
	on($node, 'CREATE TABLE of_a (id int PRIMARY KEY); CREATE TABLE of_b (id int PRIMARY KEY)');
	arm_fault($node, 'copy_horizon_held=wait');
	$node->reload;
}
on($a, 'CREATE PUBLICATION pub FOR TABLE of_a; INSERT INTO of_a SELECT generate_series(1, 10)');
on($b, 'CREATE PUBLICATION pub FOR TABLE of_b; INSERT INTO of_b SELECT generate_series(1, 20)');
on($a, "CREATE SUBSCRIPTION a_from_b CONNECTION '" . connstr($b) . "' PUBLICATION pub WITH (origin = none)");
on($b, "CREATE SUBSCRIPTION b_from_a CONNECTION '" . connstr($a) . "' PUBLICATION pub WITH (origin = none)");
foreach my $node (@nodes)
{
	$node->poll_query_until('postgres', "SELECT bool_and(srsubstate = 'd') FROM pg_subscription_rel") or die 'no copy begins';
}
$_->stop('immediate') foreach @nodes;
disarm_fault($_) foreach @nodes;
$_->start foreach @nodes;

$a->wait_for_subscription_sync($b, 'a_from_b');
$b->wait_for_subscription_sync($a, 'b_from_a');
is(on($a, 'SELECT count(*) FROM of_b'), 20, 'one has copied');
is(on($b, 'SELECT count(*) FROM of_a'), 10, 'so has the other');

done_testing();
