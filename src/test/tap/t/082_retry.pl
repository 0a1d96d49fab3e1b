# What goes wrong here: a transaction that only waits too long for a local session
# stops its subscription (an hour passes before it is tried again, or
# disable_on_error disables it), is tried without a pause, or counts as failed; or an
# error that a resolver asked for is taken for such a one.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/..";

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $publisher = krahodb_node('publisher');
my $subscriber = krahodb_node('subscriber', conf => 'wal_retrieve_retry_interval = 1h');

$_->safe_psql('postgres', 'CREATE TABLE t (id int PRIMARY KEY, v text)') foreach $publisher, $subscriber;
$publisher->safe_psql('postgres', "INSERT INTO t VALUES (1, 'base'); CREATE PUBLICATION pub FOR TABLE t");
$subscriber->safe_psql('postgres', q{INSERT INTO t VALUES (1, 'base'); ALTER DATABASE postgres SET lock_timeout = '30ms'});
$subscriber->safe_psql('postgres',
	sprintf("CREATE SUBSCRIPTION sub CONNECTION '%s' PUBLICATION pub WITH (conflict_resolution = apply_remote, delete_missing = error, disable_on_error = true, copy_data = false)",
		connstr($publisher)));
$publisher->wait_for_catchup('sub');

my $session = $subscriber->background_psql('postgres');

# A local session holds the row until the worker has tried n times.
sub hold_row
{
	my ($value, $n) = @_;
	my $logstart = -s $subscriber->logfile;

	$session->query_safe("BEGIN; UPDATE t SET v = 'local' WHERE id = 1");
	$publisher->safe_psql('postgres', "UPDATE t SET v = '$value' WHERE id = 1");
	$subscriber->wait_for_log(qr/(tries again .*canceling statement due to lock timeout.*){$n}/s, $logstart);
	$session->query_safe('COMMIT');
	$publisher->wait_for_catchup('sub');
	return [ slurp_file($subscriber->logfile, $logstart) =~ /LOG:  subscription "sub" could not go on and tries again (.*?): canceling/g ];
}

my $pauses = hold_row('first', 4);
my @ms = map { /(\d+) ms/ ? $1 : 0 } @$pauses;

# (A start that finds the slot still in use at the publisher makes the pause grow, too.)
is($pauses->[0], 'at once', 'it is tried at once');
ok($ms[1] >= 100 && $ms[2] >= 2 * $ms[1] && $ms[3] >= 2 * $ms[2], 'then after growing pauses')
  or diag("@$pauses");
is($subscriber->safe_psql('postgres', 'SELECT v FROM t'), 'first', 'and applied in the end');
is(hold_row('second', 1)->[0], 'at once', 'the next transaction begins anew');
is($subscriber->safe_psql('postgres', 'SELECT v FROM t'), 'second', 'and is applied');
is( $subscriber->safe_psql('postgres',
		"SELECT subenabled, apply_error_count FROM pg_subscription s JOIN pg_stat_subscription_stats ON subid = s.oid"),
	't|0', 'the subscription is enabled and has had no error');

# delete_missing = error raises a serialization failure, which is to stay an error.
my $logstart = -s $subscriber->logfile;
$subscriber->safe_psql('postgres', 'DELETE FROM t');
$publisher->safe_psql('postgres', 'DELETE FROM t');
$subscriber->wait_for_log(qr/subscription "sub" has been disabled because of an error/, $logstart);
unlike(slurp_file($subscriber->logfile, $logstart), qr/tries again/, "a resolver's error is not tried again");

$session->quit;
$subscriber->stop;
$publisher->stop;
done_testing();
