# What goes wrong here: a change to a merged column comes to a row that is deleted, at
# the moment in which another worker brings the row back.  The one finds no row that it
# could change, the other one no contribution that it should add up: it would be lost,
# or counted twice.  Each of the two is held up while the other one passes, or waits for it.

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::PausedMesh;
use PostgreSQL::Test::Utils;
use Test::More;

my $mesh = KrahoDB::PausedMesh->new(
	names => [qw(n1 n2 n3)],
	publications => 'pub',
	conf => "deadlock_timeout = 100ms\n",
	schema => 'CREATE EXTENSION krahodb; CREATE TABLE m (id int PRIMARY KEY, n int, v text);
		ALTER TABLE m REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta);
		CREATE PUBLICATION pub FOR TABLE m');
my $third = $mesh->node(3);
my $id = 0;

# The stream $held stands at a point while $other passes, or waits for it.
sub revival
{
	my ($name, $point, $held, $other, $waits) = @_;
	my $offset = -s $third->logfile;

	$id++;
	$mesh->on(1 => "INSERT INTO m VALUES ($id, 1000, 'inserted')");
	$mesh->settle;
	$mesh->pause;
	$mesh->on(
		1 => "UPDATE m SET n = n + 3 WHERE id = $id",
		3 => "UPDATE m SET n = n + 20 WHERE id = $id; DELETE FROM m WHERE id = $id",
		2 => "UPDATE m SET n = n + 100, v = 'revived' WHERE id = $id");
	arm_fault($third, "$point=wait");
	reload_settings($third);
	$mesh->release($held);
	$third->wait_for_log(qr/fault point "$point" reached: wait/, $offset);
	if ($waits)
	{
		my $subscription = join '_', map { $mesh->node($_)->name } split //, $other;

		$mesh->release($other);
		$third->poll_query_until('postgres', <<"EOS") or die "$other does not wait";
SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND pid IN
	(SELECT pid FROM pg_stat_subscription WHERE subname = '$subscription'
	UNION ALL SELECT pid FROM krahodb.lanes WHERE subscription = '$subscription')
EOS
	}
	else { $mesh->deliver($other); }
	disarm_fault($third);
	reload_settings($third);
	$mesh->deliver($held, $other);
	is($third->safe_psql('postgres', "SELECT n, v FROM m WHERE id = $id"), '1123|revived', "$name: on this node");
	$mesh->deliver(qw(12 13 21 23));
	$mesh->settle;
	is(is_equal_on([ $mesh->nodes ], "SELECT n, v FROM m WHERE id = $id", $name), '1123|revived', "$name: everywhere");
	return;
}

revival('change held with the key to itself', 'merged_locked', '31', '32', 1);
revival('change held before it', 'converge_contribute', '31', '32', 1);
revival('change held after it', 'converge_contributed', '31', '32', 1);
revival('revival held with the key to itself', 'merged_locked', '32', '31', 1);
revival('revival held before it', 'converge_insert', '32', '31', 1);
revival('revival held after it', 'converge_inserted', '32', '31', 1);

is($mesh->errors, 0, 'no error');
$mesh->stop;
done_testing();
