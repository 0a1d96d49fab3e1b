# What goes wrong here: everything.  Servers of a mesh all take random conflicting
# transactions while workers and servers are killed, links are cut and paused,
# clocks are shifted, tables are vacuumed and subscriptions disabled.  When all is
# healed and has arrived, every table must be equal on every node, and every
# acknowledged commit be there exactly once.
#
# make check-chaos NODES=5 TIME=1800 SEED=7, or in the environment:
#
#	CHAOS_NODES		3			servers
#	CHAOS_SECONDS	20			of faults
#	CHAOS_SEED		the time	of the schedule, the clients and the subscriptions' options
#	CHAOS_FEATURES				kinds of tables and writes: a,b; +a is the default
#								and a; all (KrahoDB::Workload)
#	CHAOS_SESSIONS	2			clients of each node
#	CHAOS_PAUSE		20000		most microseconds between two transactions of a client

use strict;
use warnings;

use IPC::Run;
use KrahoDB::Mesh;
use KrahoDB::Nemesis;
use KrahoDB::Nodes;
use KrahoDB::Verdict;
use KrahoDB::Workload;
use PostgreSQL::Test::Utils;
use Test::More;

my $nodes = $ENV{CHAOS_NODES} || 3;
my $seconds = $ENV{CHAOS_SECONDS} || 20;
my $seed = defined $ENV{CHAOS_SEED} && $ENV{CHAOS_SEED} ne '' ? $ENV{CHAOS_SEED} : time % 1_000_000;
my $sessions = $ENV{CHAOS_SESSIONS} || 2;
my $pause = $ENV{CHAOS_PAUSE} // 20000;
my @features = workload_features($ENV{CHAOS_FEATURES});
my $client = $ENV{KDB_CHAOS_CLIENT} or die 'call this by make check-chaos';

diag("seed $seed, $nodes nodes, $seconds s, features: @features");

# Options of a subscription, by its number; by the seed, each value comes with each other.
my $two_phase = grep { $_ eq 'twophase' } @features;
sub options
{
	my ($number) = @_;
	my $n = $number + $seed;

	return join ', ', 'streaming = ' . ($n % 2 ? 'on' : 'off'), 'binary = ' . ($n % 3 == 2 ? 'on' : 'off'),
	  'compression = ' . (qw(off lz4 zstd))[ int($n / 2) % 3 ], 'apply_workers = ' . (1, 3, 2, 4)[ int($n / 3) % 4 ],
	  $two_phase && $n % 5 < 2 ? 'two_phase = on' : ();
}

my $mesh = KrahoDB::Mesh->new(nodes => $nodes, schema => [ workload_schema(@features) ], options => \&options);
my ($first) = $mesh->nodes;
$first->safe_psql('postgres', $_) foreach workload_rows(@features);
ok($mesh->quiesce(0), 'the mesh runs') or die 'the mesh does not run';

# ---- clients and faults ------------------------------------------------------------

my $nemesis = KrahoDB::Nemesis->new($mesh, $seed, $seconds);
note($_) foreach $nemesis->lines;	# in the test's log

my $statements = $first->basedir . '/statements';
append_to_file($statements, workload_statements(@features));
my $number = 0;
my @clients = map {
	IPC::Run::start([
		$client, $_->connstr('postgres') . ' application_name=chaos connect_timeout=5',
		$statements, $seed * 100 + $number++, $_->name, $sessions, $_->basedir . '/outcome', $pause, workload_options(@features) || '-'
	])
} $mesh->nodes;

$nemesis->run($seconds);
$mesh->heal;
$_->signal('TERM') foreach @clients;
ok($_->finish, 'the clients end') foreach @clients;
$mesh->finish_prepared;

# ---- the verdict -------------------------------------------------------------------

my (%outcome, %states);
foreach my $node ($mesh->nodes)
{
	foreach my $session (0 .. $sessions - 1)
	{
		foreach my $line (split /\n/, slurp_file($node->basedir . "/outcome.$session"))
		{
			my ($state, $seq) = split / /, $line;
			$outcome{ $node->name . ".$session.$seq" } = $state;
			$states{$state}++;
		}
	}
}
my $arrived = ok($mesh->quiesce(1), 'everything arrives everywhere');
check_tables($mesh, workload_tables(@features)) if $arrived;
check_queries($mesh, workload_checks(@features)) if $arrived;
check_events($mesh, \%outcome) if $arrived;
check_quiet($mesh) if $arrived;
check_collected($mesh, $seconds >= 120) if $arrived;

my ($conflicts, $errors, $crashes) = log_counts($mesh);
ok(!@$crashes, 'no server crashed that was not killed') or diag(@$crashes);

my %faults = $nemesis->done;
my $total = 0;
$total += $_ foreach values %faults;
diag(sprintf 'transactions: %d acknowledged, %d failed, %d unknown',
	map { $states{$_} // 0 } qw(A F U));
diag("conflicts: $_ $conflicts->{$_}") foreach sort keys %$conflicts;
diag("errors: $errors->{$_} times $_") foreach sort { $errors->{$b} <=> $errors->{$a} } keys %$errors;
diag("faults: $total (" . join(', ', map { "$_ $faults{$_}" } sort keys %faults) . ')');
diag('verdict: ' . (Test::More->builder->is_passing ? 'equal' : 'FAILED, see which test above') . ", seed $seed");

$mesh->stop;
done_testing();
