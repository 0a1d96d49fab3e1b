# What goes wrong here: an initial copy brings a row back that was deleted here.  Its sum is made
# of what is known of the key, and before the row is there, a change of a third node comes, which finds the key
# dead and leaves a record only.  The row must have that, too.

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::Streams;
use PostgreSQL::Test::Utils;
use Test::More;

my ($a, $b, $c) = my @nodes = map { krahodb_node($_, conf => 'krahodb.copy_range_size = 64kB') } qw(a b c);
my $id = 0;

foreach my $node (@nodes)
{
	on($node, <<'EOS2');
CREATE EXTENSION krahodb;
CREATE TABLE sums (id int PRIMARY KEY, n int, v text);
ALTER TABLE sums REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta);
CREATE PUBLICATION pub FOR TABLE sums;
EOS2
}
on($a, 'CREATE PUBLICATION copied FOR TABLE sums');
foreach my $node (@nodes)
{
	foreach my $from (grep { $_ != $node } @nodes)
	{
		next if $node == $b && $from == $a;
		subscribe($node, $from, 'copy_data = false');
	}
}
on($b, sprintf("CREATE SUBSCRIPTION b_from_a CONNECTION '%s' PUBLICATION copied WITH (origin = none, copy_data = false)", connstr($a)));
push @streams, [ $a, 'b_from_a' ];

# The copy stands at a point while the change of c passes, or waits for it.
sub revival
{
	my ($name, $waits) = @_;
	my $point = 'converge_insert';
	my $offset = -s $b->logfile;

	$id++;
	on($a, "INSERT INTO sums VALUES ($id, 10, 'first')");
	wait_streams(2, @streams);
	on($a, 'ALTER PUBLICATION copied DROP TABLE sums');
	on($b, 'ALTER SUBSCRIPTION b_from_a REFRESH PUBLICATION WITH (copy_data = false)');
	pause($a, $b);
	pause($c, $b);
	pause($a, $c);
	pause($b, $c);
	on($c, "UPDATE sums SET n = n + 100 WHERE id = $id");
	on($b, "UPDATE sums SET n = n + 5 WHERE id = $id; DELETE FROM sums WHERE id = $id");
	on($a, "UPDATE sums SET n = n + 1, v = 'newer' WHERE id = $id");

	arm_fault($b, "$point=wait");
	reload_settings($b);
	on($a, 'ALTER PUBLICATION copied ADD TABLE sums');
	on($b, 'ALTER SUBSCRIPTION b_from_a REFRESH PUBLICATION');
	$b->wait_for_log(qr/fault point "$point" reached: wait/, $offset);
	resume($b, $c);
	if ($waits)
	{
		$b->poll_query_until('postgres', <<"EOS2") or die 'the change does not wait';
SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND pid IN
	(SELECT pid FROM pg_stat_subscription WHERE subname = 'b_from_c'
	UNION ALL SELECT pid FROM krahodb.lanes WHERE subscription = 'b_from_c')
EOS2
	}
	else { wait_streams(1, [ $c, 'b_from_c' ]); }
	disarm_fault($b);
	reload_settings($b);
	$b->wait_for_subscription_sync($a, 'b_from_a');
	is(on($b, "SELECT n, v FROM sums WHERE id = $id"), '116|newer', "$name: on this node");
	resume($a, $b);
	resume($c, $b);
	resume($a, $c);
	wait_streams(2, @streams);
	is(is_equal_on(\@nodes, "SELECT n, v FROM sums WHERE id = $id", "$name: equal"), '116|newer', "$name: everywhere");
	return;
}

revival('in one transaction', 1);

# by ranges the list has been committed before
on($a, "INSERT INTO sums SELECT i, 1, repeat('x', 100) FROM generate_series(10001, 12000) i");
wait_streams(2, @streams);
revival('by ranges', 0);

$_->stop foreach @nodes;
done_testing();
