#
# What subscribers cost the publisher: pgbench's TPC-B there with none, one and four
# of them, each a database of the subscriber's server with tables of its own.
#
# Everything runs on one machine, so the apply workers take processor time from
# pgbench as well; what is the publisher's own is the CPU time of its walsenders,
# from the start until all has arrived, for each transaction and subscriber.
#
# Environment: BENCH_TRANSACTIONS (20000), and that of KrahoDB::Bench.
#
use strict;
use warnings;

use KrahoDB::Bench;
use Test::More;

my $transactions = setting('TRANSACTIONS', 20_000);
my $subscribers = 4;

sub schema
{
	my ($node) = @_;

	run_pgbench($node, qw(-i -q -s 10));
	return;
}

foreach my $name (grep { $_ ne 'pglogical' } wanted_contenders())
{
	my $c = contender(name => $name, schema => \&schema, subscription => 0);

	$c->{publisher}->safe_psql('postgres', 'CREATE PUBLICATION p FOR ALL TABLES');
	$c->{subscriber}->safe_psql('postgres', "CREATE DATABASE s$_ TEMPLATE postgres") foreach 1 .. $subscribers;
	pass("contender $name");
}

# Subscriptions of the databases that have none, up to the n-th.
sub subscribe_to
{
	my ($c, $n) = @_;
	my ($publisher, $subscriber) = @$c{qw(publisher subscriber)};
	my $have = $subscriber->safe_psql('postgres', 'SELECT count(*) FROM pg_subscription');

	foreach my $i ($have + 1 .. $n)
	{
		$subscriber->safe_psql("s$i", "CREATE SUBSCRIPTION s$i CONNECTION '" . $publisher->connstr . ' dbname=postgres' .
			"' PUBLICATION p WITH (copy_data = false)");
	}
	$publisher->poll_query_until('postgres', "SELECT count(*) = $n FROM pg_stat_replication WHERE state = 'streaming'")
	  or die "$c->{name}: not $n walsenders";
	return;
}

sub walsenders
{
	my ($c) = @_;
	return split ' ', $c->{publisher}->safe_psql('postgres', "SELECT string_agg(pid::text, ' ') FROM pg_stat_replication");
}

# Transactions per second with n subscribers; $c->{microseconds} is the CPU time of
# a walsender for a transaction.
sub measure
{
	my ($c, $n, $round) = @_;

	subscribe_to($c, $n);
	my @pids = walsenders($c);
	my $before = cpu_seconds(@pids);
	my ($tps) = run_pgbench($c->{publisher}, qw(-n -c 2 -j 1 -t), $transactions / 2, "--random-seed=$round$n") =~
	  /^tps = ([0-9.]+)/m;
	my $marker = set_marker($c);
	foreach my $i (1 .. $n)
	{
		$c->{subscriber}->safe_psql("s$i", "CALL wait_for_marker($marker)", timeout => 1800);
	}
	$c->{microseconds} = 1e6 * (cpu_seconds(@pids) - $before) / $transactions / $n if $n;
	return $tps;
}

# Their tables have missed what comes next, and begin as those of the publisher are.
sub unsubscribe_all
{
	my ($c) = @_;

	$c->{subscriber}->safe_psql("s$_", "DROP SUBSCRIPTION s$_") foreach 1 .. $subscribers;
	return;
}

rounds(
	sub {
		my ($round) = @_;

		foreach my $n (0, 1, $subscribers)
		{
			my $with = "$n subscriber" . ($n == 1 ? '' : 's');

			in_turns($round, "publisher with $with", 'tx/s', 'more', sub { return measure($_[0], $n, $round); });
			in_turns($round, "a walsender, $with", 'us/tx', 'less', sub { return $_[0]{microseconds}; }) if $n;
		}
		unsubscribe_all($_) foreach contenders();
	});
bench_report();
done_testing();
