# What goes wrong here: what no list of cases has thought of.  Random tables
# (KrahoDB::RandomTables) on servers that all subscribe to each other take random
# transactions, while streams are stopped and run, tables are vacuumed, rewritten and
# reindexed, and servers and processes killed.  Between rounds, when all has arrived,
# tables change everywhere, and a server leaves or joins.  Each row must be the same on all nodes then; and in the end
# nothing may be left of subscriptions that are gone.
#
# make check-random SEED=7 ROUNDS=4; or in the environment:
#
#	RANDOM_SEED		the time	of everything but the interleaving
#	RANDOM_ROUNDS	3
#	RANDOM_TABLES	10
#	RANDOM_WRITES	90			transactions of each client in a round
#	RANDOM_KILL		1			0: no faults that end processes
#	RANDOM_RECORDS	0			1: wait until no version record is left (a minute or more)

use strict;
use warnings;

use KrahoDB::RandomChanges;
use KrahoDB::RandomMesh;
use KrahoDB::RandomTables;
use KrahoDB::RandomVerdict;
use KrahoDB::RandomWrites;
use Test::More;
use Time::HiRes qw(time);

my $seed = defined $ENV{RANDOM_SEED} && $ENV{RANDOM_SEED} ne '' ? $ENV{RANDOM_SEED} : time % 1_000_000;
my $rounds = $ENV{RANDOM_ROUNDS} || 3;
my $writes = $ENV{RANDOM_WRITES} || 90;

srand $seed;

my $nodes = $ENV{RANDOM_NODES} || one_of(2, 3, 3, 3);
my $joins = $nodes > 2 && chance(0.5);
my $binary = one_of('true', 'false');
my $options = join ', ', "binary = $binary", 'streaming = ' . one_of('on', 'off'), 'compression = ' . one_of('off', 'lz4', 'zstd'),
  'apply_workers = ' . one_of(1, 1, 2, 3, 4), ('two_phase = true') x chance(0.2), ('run_as_owner = false') x chance(0.2);
my $conf = 'logical_decoding_work_mem = ' . one_of('64kB', '64MB') . "\nsynchronous_commit = " . one_of('on', 'off') . "\n";
my @tables = map { make_table($_, $nodes) } 1 .. ($ENV{RANDOM_TABLES} || 10);

diag("seed $seed, $nodes nodes" . ($joins ? ', the last joins later' : '') . ", $options");
note join ' ', map { "$_->{number}: $_->{key} $_->{identity} $_->{how}" . ($_->{merged} ? " merged $_->{ntype} $_->{mtype}" : '')
	  . ($_->{filter} ? ' filter' : '') . " trigger=$_->{trigger} child=$_->{child} [" . join(', ', map { "$_->{kind} $_->{id}" } @{ $_->{uniques} }) . "] u=$_->{type}{u} w=$_->{type}{w};\n" } @tables;

my $mesh = KrahoDB::RandomMesh->new(nodes => $nodes, tables => \@tables, joins => $joins, options => $options, conf => $conf, shifted => $binary eq 'false');

sub run_round
{
	my ($round) = @_;
	my $until = time + 60;

	srand 1000 * $seed + 2 * $round;	# how often we were asked before depends on the machine

	foreach my $link ($mesh->links) { $mesh->toggle($link, 0) if chance(0.5); }
	foreach my $n ($mesh->members)
	{
		$mesh->start_session($n, "r${round}_n${n}_$_", map { transaction(@tables) } 1 .. $writes) foreach 1 .. one_of(1, 2);
	}
	$mesh->join_mesh or return 0 if $round > 1 && $mesh->members < $nodes;
	while ($mesh->look_after_sessions)
	{
		if (time > $until + 120)
		{
			$mesh->bad('clients hang');
			$mesh->show_state;
			return 0;
		}
		next if time > $until;
		if (chance(0.03)) { $mesh->finish_prepared; }
		elsif (chance(0.06)) { add_in_turn($mesh); }
		elsif (chance(0.4)) { change_locally($mesh); }
		elsif (chance(0.7) || !$ENV{RANDOM_KILL}) { $mesh->toggle(one_of($mesh->links)); }
		else { fault($mesh); }
	}
	$mesh->finish_prepared;
	finish_changes($mesh);
	return $mesh->settle;
}

$ENV{RANDOM_KILL} //= 1;
ok($mesh->settle, 'the mesh runs');
foreach my $round (1 .. $rounds)
{
	my $arrived = ok(run_round($round), "round $round: all has arrived");

	compare($mesh, "round $round") if $arrived;
	last if $mesh->{bad};
	srand 1000 * $seed + 2 * $round + 1;
	foreach (1 .. 2 + int rand 5)
	{
		change_at_rest($mesh);
		last if $mesh->{bad};
	}
	last if $mesh->{bad};
	$mesh->leave_mesh if $joins && $mesh->members == $nodes && $round < $rounds && chance(0.5);
}
check_memory($mesh);
check_indexes($mesh);
check_collected($mesh, $ENV{RANDOM_RECORDS}) if !$mesh->{bad};
diag('conflicts: ' . join ' ', map { $mesh->ask($_, 'SELECT count(*) FROM krahodb.conflict_log') } $mesh->members);
check_gone($mesh) if !$mesh->{bad};
check_logs($mesh);
ok(!$mesh->{bad}, "seed $seed");
$mesh->stop;
done_testing();
