# What goes wrong here: a transaction that only waits too long for a local session
# stops its subscription (an hour passes before it is tried again, or
# disable_on_error disables it), is tried without a pause, or counts as failed; or an
# error that a resolver asked for is taken for such a one.  And an error that stays is
# tried dozens of times in a second, sooner than wal_retrieve_retry_interval says, or
# holds up the workers of other subscriptions.

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

# ---- errors that stay -------------------------------------------------------------------

$publisher->safe_psql('postgres', 'CREATE TABLE twice (id int); CREATE PUBLICATION twice FOR TABLE twice');
$subscriber->safe_psql('postgres', 'DROP SUBSCRIPTION sub; ALTER DATABASE postgres RESET lock_timeout; CREATE TABLE twice (id int PRIMARY KEY)');

# Milliseconds between the starts of a worker that fails so often.
sub pauses_of
{
	my ($interval, $n, $options) = @_;
	my $logstart = -s $subscriber->logfile;
	my @starts;

	$subscriber->adjust_conf('postgresql.conf', 'wal_retrieve_retry_interval', "'$interval'");
	reload_settings($subscriber);
	$subscriber->safe_psql('postgres',
		"CREATE SUBSCRIPTION twice CONNECTION '" . connstr($publisher) . "' PUBLICATION twice WITH ($options)");
	$publisher->safe_psql('postgres', 'INSERT INTO twice VALUES (1), (1)');
	$subscriber->wait_for_log(qr/(duplicate key value violates unique constraint "twice_pkey".*){$n}/s, $logstart);
	my $log = slurp_file($subscriber->logfile, $logstart);
	push @starts, (($1 * 60 + $2) * 60 + $3) * 1000 + $4
	  while $log =~ /(\d\d):(\d\d):(\d\d)\.(\d{3}) .*worker for subscription "twice"(?:, table "twice")? has started/g;
	splice @starts, 0, 1 if $options =~ /true/;	# the apply worker's
	return map { ($starts[$_] - $starts[ $_ - 1 ]) % 86_400_000 } 1 .. $#starts;
}

my @pauses = pauses_of('1ms', 9, 'copy_data = false');
note "pauses: @pauses";
is_deeply([ map { $pauses[$_] >= (50, 100, 200, 400, 800, 1000, 1000)[ $_ - 1 ] ? 1 : 0 } 1 .. 7 ], [ (1) x 7 ],
	'an error that stays: growing pauses although the setting is short') or diag("@pauses");
$subscriber->safe_psql('postgres', 'ALTER TABLE twice DROP CONSTRAINT twice_pkey');
$publisher->wait_for_catchup('twice');
is($subscriber->safe_psql('postgres', 'SELECT count(*) FROM twice'), '2', 'and it is applied when the cause is gone');
$subscriber->safe_psql('postgres', 'DROP SUBSCRIPTION twice; TRUNCATE twice; ALTER TABLE twice ADD PRIMARY KEY (id)');

# (It is the time between two launches; a process may take a moment until it says that it has started.)
@pauses = pauses_of('3s', 2, 'copy_data = false');
cmp_ok($pauses[0], '>=', 1500, 'never sooner than the setting') or diag("@pauses");

# The same for a table that cannot be copied.
$subscriber->safe_psql('postgres', 'DROP SUBSCRIPTION twice');
@pauses = pauses_of('1ms', 9, 'copy_data = true');
cmp_ok((sort { $b <=> $a } @pauses[ 5 .. 7 ])[0], '>=', 500, 'a table that cannot be copied: growing pauses as well')
  or diag("@pauses");
$subscriber->safe_psql('postgres', 'DROP SUBSCRIPTION twice');

# The worker of another subscription is started although that one has been just now.
$subscriber->adjust_conf('postgresql.conf', 'wal_retrieve_retry_interval', "'1h'");
reload_settings($subscriber);
$publisher->safe_psql('postgres', 'CREATE TABLE other (id int); CREATE PUBLICATION other FOR TABLE other');
$subscriber->safe_psql('postgres', 'CREATE TABLE other (id int)');
foreach my $name (qw(other another))
{
	$subscriber->safe_psql('postgres',
		"CREATE SUBSCRIPTION $name CONNECTION '" . connstr($publisher) . "' PUBLICATION other WITH (copy_data = false)");
}
$publisher->safe_psql('postgres', 'INSERT INTO other VALUES (1)');
$publisher->wait_for_catchup($_) foreach qw(other another);
is($subscriber->safe_psql('postgres', 'SELECT count(*) FROM other'), '2', 'subscriptions do not wait for each other');

$subscriber->stop;
$publisher->stop;
done_testing();
