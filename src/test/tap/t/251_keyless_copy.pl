# What goes wrong here: a copy of a table without a key is interrupted, and copied rows
# were changed here.  Whatever comes a second time, by the next attempt or by the stream,
# would be there twice, and no index says so.

use strict;
use warnings;

use KrahoDB::Copy;
use KrahoDB::Nodes;
use Test::More;

start_nodes();

foreach my $node ($pub, $sub)
{
	$node->safe_psql('postgres', 'CREATE TABLE t (id int, v int, pad text); ALTER TABLE t REPLICA IDENTITY FULL');
}
$pub->safe_psql('postgres', q{INSERT INTO t SELECT g, 0, repeat('x', 100) FROM generate_series(1, 10000) g; CREATE PUBLICATION t FOR TABLE t});
my $next = 10000;

# with what happens at the publisher between the attempts
sub check_interrupted
{
	my ($options, $there, $name) = @_;

	$sub->safe_psql('postgres', 'TRUNCATE t');
	my $held = hold_at('copy_range_after_commit@4');
	subscribe('t', $options);
	$held->();
	$sub->safe_psql('postgres', 'UPDATE t SET v = -1 WHERE id % 5 = 0');
	$sub->stop('immediate');
	disarm_fault($sub);
	$pub->safe_psql('postgres', "INSERT INTO t VALUES ($next + 1, 1, 'new'); DELETE FROM t WHERE id < 10");
	$next++;
	$pub->safe_psql('postgres', $there) if $there;
	my $offset = -s $sub->logfile;
	$sub->start;
	$sub->wait_for_log(qr/ERROR: .*rows of table "public.t" were changed here before its initial copy was finished/, $offset);
	pass("$name: nothing is copied twice");

	$sub->safe_psql('postgres', 'TRUNCATE t');
	wait_ready();
	wait_streams(1, [ $pub, 't' ]);
	is_equal_on([ $pub, $sub ], 'SELECT count(*), count(DISTINCT id), sum(id), sum(v) FROM t', "$name: copied anew");
	$sub->safe_psql('postgres', 'DROP SUBSCRIPTION t');
	return;
}

check_interrupted('conflict_resolution = last_update_wins', '', 'conflicts are resolved');
check_interrupted('', 'VACUUM FULL t', 'plain, and the table was rewritten on the publisher');

$sub->stop;
$pub->stop;
done_testing();
