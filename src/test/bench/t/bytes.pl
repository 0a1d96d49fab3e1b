#
# What goes over the network: bytes from the publisher to the subscriber for pgbench's
# TPC-B, as a backlog and while both sides keep up, without and with compression.
#
# Environment: BENCH_TRANSACTIONS (20000), BENCH_RATE (500, a second, for the second
# part, which has a tenth of the transactions), and that of KrahoDB::Bench.
#
use strict;
use warnings;

use KrahoDB::Bench;
use KrahoDB::Relay;
use PostgreSQL::Test::Utils;
use Test::More;

my $transactions = setting('TRANSACTIONS', 20_000);
my $rate = setting('RATE', 500);
my %relay;

sub schema { run_pgbench($_[0], qw(-i -q -s 10)); }

foreach my $compression ('stock', 'off', 'lz4', 'zstd')
{
	my $stock = $compression eq 'stock';
	my $c = contender(
		name => $compression,
		kind => $stock ? 'stock' : 'krahodb',
		schema => \&schema,
		subscription => 0);
	my $publisher = $c->{publisher};
	my $relay = KrahoDB::Relay->new(PostgreSQL::Test::Utils::tempdir_short(), $publisher->host, $publisher->port);
	my $with = 'copy_data = false' . ($stock ? '' : ", compression = $compression");

	$relay{$compression} = $relay;
	$publisher->safe_psql('postgres', 'CREATE PUBLICATION p FOR ALL TABLES');
	$c->{subscriber}->safe_psql('postgres', 'CREATE SUBSCRIPTION s CONNECTION \'host=' . $relay->dir .
		' port=' . $publisher->port . " dbname=postgres' PUBLICATION p WITH ($with)");
	pass("contender $compression");
}

# Bytes per transaction while $work is done and applied.
sub bytes_of
{
	my ($c, $n, $work) = @_;
	my $before = $relay{ $c->{name} }->bytes;

	$work->();
	return ($relay{ $c->{name} }->bytes - $before) / $n;
}

rounds(
	sub {
		my ($round) = @_;
		my $half = int($transactions / 2);
		my $few = int($transactions / 20);

		in_turns($round, 'bytes of a backlog', 'B/tx', 'less',
			sub {
				my ($c) = @_;
				bytes_of($c, 2 * $half, sub {
					drain($c, sub { run_pgbench($c->{publisher}, qw(-n -c 2 -j 2 -t), $half, "--random-seed=$round") }) });
			});
		in_turns($round, "bytes at $rate tx/s", 'B/tx', 'less',
			sub {
				my ($c) = @_;
				bytes_of($c, 2 * $few, sub {
					run_pgbench($c->{publisher}, qw(-n -c 2 -j 2 -t), $few, '-R', $rate, "--random-seed=$round");
					wait_for_marker($c, set_marker($c)) });
			});
	});
check_equal(qw(pgbench_accounts pgbench_tellers pgbench_branches pgbench_history));
$_->stop foreach values %relay;
bench_report();
done_testing();
