#
# What the retention horizon keeps while all peers are up: rows that are updated all the
# time, in a mesh of two nodes by the convergence rules, beside the same mesh without them,
# where vacuum may take a version as soon as nobody sees it.  Both nodes update, each its
# own rows, at a steady rate; autovacuum works as fast as it may.
#
# Figures: how old the horizon is (krahodb.horizon), how many dead row versions the table
# has, for how many seconds of updates they stand, and how large the table is.
#
# Environment: BENCH_RATE (500 transactions a second on each node), BENCH_SECONDS (30), and
# that of KrahoDB::Bench.
#
use strict;
use warnings;

use IPC::Run;
use KrahoDB::Bench;
use List::Util qw(max);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $rate = setting('RATE', 500);
my $seconds = setting('SECONDS', 30);
my $rows = 200;					# of each node
my $script = "$PostgreSQL::Test::Utils::tmp_check/hot.sql";
append_to_file($script, "\\set id random(1, $rows)\nUPDATE hot SET n = n + 1 WHERE id = :id + :first;\n");

# Each update leaves a dead version of about 60 bytes.
sub schema
{
	$_[0]->safe_psql('postgres', <<'EOS');
CREATE EXTENSION pgstattuple;
CREATE TABLE hot (id int PRIMARY KEY, n int, filler text);
EOS
}

my %contenders = (
	unruled => { options => 'origin = none, conflict_resolution = apply_remote' },
	converging => { options => 'origin = none', extension => 1 });
contender(name => $_, kind => 'krahodb', mesh => 1, schema => \&schema, %{ $contenders{$_} },
	conf => "autovacuum = on\nautovacuum_naptime = 1s\nautovacuum_vacuum_cost_delay = 0")
  foreach split ' ', setting('CONTENDERS', 'unruled converging');
foreach my $c (contenders())
{
	$c->{publisher}->safe_psql('postgres',
		"INSERT INTO hot SELECT i, 0, 'row ' || i FROM generate_series(1, 2 * $rows) i");
}
check_equal('hot');

# The clients of a node, whose rows begin behind $first.
sub start_clients
{
	my ($node, $first) = @_;
	my $log = '';

	return IPC::Run::start([ 'pgbench', qw(-n -c 2 -j 1), '-D', "first=$first", '-f', $script, '-T', $seconds,
			'-R', $rate, '-p', $node->port, '-h', $node->host, 'postgres' ], '>', \$log, '2>', \$log);
}

my $lag = 'SELECT coalesce(max(extract(epoch FROM lag)), 0) FROM krahodb.horizon';
my $dead = "SELECT dead_tuple_count, table_len FROM pgstattuple('hot')";

# Looks at a node until the clients end: lags and numbers of dead versions.
sub watch
{
	my ($c, @clients) = @_;
	my $node = $c->{subscriber};
	my ($settled, $end) = (time + $seconds / 3, time + $seconds - 1);
	my (@lags, @dead, $size);

	while (time < $end)
	{
		push @lags, $node->safe_psql('postgres', $lag) if $c->{extension};
		(my $n, $size) = split /\|/, $node->safe_psql('postgres', $dead);
		push @dead, $n;
		(@lags, @dead) = () if time < $settled;
	}
	$_->finish foreach @clients;
	return (\@lags, \@dead, $size);
}

rounds(
	sub {
		my ($round) = @_;
		my %more;

		in_turns($round, 'dead versions, at most', 'rows', 'less',
			sub {
				my ($c) = @_;
				my ($lags, $dead, $size) = watch($c, start_clients($c->{publisher}, 0), start_clients($c->{subscriber}, $rows));

				$more{ $c->{name} } = [ max(@$dead) / (2 * $rate), $size / 1024, max(@$lags, 0) ];
				return max(@$dead);
			});
		foreach my $c (contenders())
		{
			my @figures = @{ $more{ $c->{name} } };

			note_figure('  so many seconds of updates', 's', 'less', $c->{name}, $figures[0]);
			note_figure('  size of the table', 'kB', 'less', $c->{name}, $figures[1]);
			note_figure('  age of the horizon, at most', 's', 'less', $c->{name}, $figures[2]) if $c->{extension};
		}
	});
check_equal('hot');
bench_report();
done_testing();
