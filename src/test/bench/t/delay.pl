#
# Replication delay while the publisher works at half of its peak, with
# synchronous_commit off and on; servers as each initdb leaves them, otherwise.
#
# The peak is that of the stock pair, with its subscriber attached: pgbench's TPC-B
# without a limit.  Then, at half of that rate, a client writes rows and waits for each
# at the subscriber (delay.c).
#
# Environment: BENCH_ROWS (500 rows of the client in each measurement), and that of
# KrahoDB::Bench.
#
use strict;
use warnings;

$ENV{BENCH_SETTINGS} = 'initdb';

use KrahoDB::Bench;
use IPC::Run;
use Test::More;

my $rows = setting('ROWS', 500);
my $program = $ENV{KDB_BENCH_DELAY} or die 'call this by make bench';
my @load = qw(-n -c 4 -j 1);

sub schema
{
	my ($node) = @_;
	run_pgbench($node, qw(-i -q -s 10));
	$node->safe_psql('postgres', <<'EOS');
CREATE TABLE delay (id int PRIMARY KEY);
CREATE FUNCTION arrived() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_notify('delay', NEW.id::text); RETURN NULL; END $$;
CREATE TRIGGER arrived AFTER INSERT ON delay FOR EACH ROW EXECUTE FUNCTION arrived();
ALTER TABLE delay ENABLE REPLICA TRIGGER arrived;
EOS
	return;
}

sub connstr { return $_[0]->connstr('postgres'); }

# Sorted delays in milliseconds, with $rate transactions a second beside.
sub delays
{
	my ($c, $rate) = @_;
	my $publisher = $c->{publisher};
	my $log = '';
	my $load = IPC::Run::start([ 'pgbench', @load, '-T', 3600, '-R', $rate,
			'-p', $publisher->port, '-h', $publisher->host, 'postgres' ], '>', \$log, '2>', \$log);
	my ($out, $err) = ('', '');
	my $ok = IPC::Run::run([ $program, connstr($publisher), connstr($c->{subscriber}), 2000, $rows ],
		'>', \$out, '2>', \$err);
	$load->signal('TERM');	# a shell's background jobs ignore INT
	eval { $load->finish };
	die "$program: $err" unless $ok;
	return split /\n/, $out;
}

contender(name => $_, schema => \&schema) foreach grep { $_ ne 'pglogical' } wanted_contenders();
rounds(
	sub {
		my ($round) = @_;
		foreach my $synchronous ('off', 'on')
		{
			my (%delays, $rate);
			foreach my $c (contenders())
			{
				$c->{publisher}->safe_psql('postgres', "ALTER SYSTEM SET synchronous_commit = $synchronous");
				$c->{publisher}->reload;
			}
			in_turns($round, "peak, synchronous_commit $synchronous", 'tx/s', 'more',
				sub {
					my ($c) = @_;
					my ($tps) = run_pgbench($c->{publisher}, @load, qw(-T 5)) =~ /^tps = ([0-9.]+)/m;
					$rate = int($tps / 2) if !$rate || $c->{name} eq 'stock';
					wait_for_marker($c, set_marker($c));
					return $tps;
				});
			in_turns($round, "delay p50, synchronous_commit $synchronous", 'ms', 'less',
				sub {
					my ($c) = @_;
					$delays{ $c->{name} } = [ delays($c, $rate) ];
					return $delays{ $c->{name} }[ 0.5 * $rows ];
				});
			in_turns($round, "delay p99, synchronous_commit $synchronous", 'ms', 'less',
				sub { return $delays{ $_[0]{name} }[ 0.99 * $rows ]; });
		}
	});
check_equal(qw(pgbench_accounts pgbench_tellers pgbench_branches pgbench_history));
bench_report();
done_testing();
