# What goes wrong here: an update that did not send a wide value follows one of a third
# node, whose stream lags.  It comes in a moment, and then the value is here; but if nobody
# says that it has come, the worker waits for nothing and fetches the row after all.  The third
# node's stream is held up by a lock of a user, for as long as the test likes.

use strict;
use warnings;

use KrahoDB::PausedMesh;
use PostgreSQL::Test::Utils;
use Test::More;

my $mesh = KrahoDB::PausedMesh->new(
	names => [qw(n1 n2 n3)],
	publications => 'pub',
	conf => "krahodb.test_await_seen = 600s\n",
	schema => q{
		CREATE EXTENSION krahodb;
		CREATE TABLE doc (id int PRIMARY KEY, v text, w text);
		ALTER TABLE doc ALTER w SET STORAGE EXTERNAL;
		CREATE PUBLICATION pub FOR TABLE doc});
my $third = $mesh->node(3);

sub fetched { return $third->safe_psql('postgres', 'SELECT fetched FROM krahodb.fetch_stats'); }

# The worker of the subscription or, with lanes, one of them.
sub wait_for_event
{
	my ($subscription, $event) = @_;

	$third->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = '$event' AND backend_xmin IS NOT NULL AND pid IN
			(SELECT pid FROM pg_stat_subscription WHERE subname = '$subscription' UNION SELECT pid FROM krahodb.lanes WHERE subscription = '$subscription')")
	  or die "$subscription does not wait";
	return;
}

$mesh->on(1 => q{INSERT INTO doc SELECT g, 'old', repeat('old', 4000) FROM generate_series(1, 3) g});
$mesh->settle;

my $user = $third->background_psql('postgres');
$user->query_safe('BEGIN; UPDATE doc SET v = v WHERE id = 3');
$mesh->on(1 => q{UPDATE doc SET v = 'n1', w = repeat('new', 4000) WHERE id IN (1, 3)});
wait_for_event('n3_n1', 'Lock');
$mesh->node(1)->wait_for_catchup('n2_n1', 'replay', $mesh->node(1)->lsn('insert'));
$mesh->on(2 => q{UPDATE doc SET v = 'n2' WHERE id = 1});
wait_for_event('n3_n2', 'Extension');
is($third->safe_psql('postgres', 'SELECT v FROM doc WHERE id = 1'), 'old', 'the update waits');
$user->query_safe('ROLLBACK');
$user->quit;
$mesh->settle;
is($third->safe_psql('postgres', q{SELECT v, w = repeat('new', 4000) FROM doc WHERE id = 1}), 'n2|t',
	'it follows what has come');
is(fetched(), '0', 'without a fetch');
$mesh->all_equal('rows', 'SELECT * FROM doc ORDER BY id');

is($mesh->errors, 0, 'no error');
$mesh->stop;
done_testing();
