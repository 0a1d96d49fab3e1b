# KrahoDB::Nemesis: what breaks a mesh, and when.
#
# The schedule is made in advance from the seed: when, which fault, on which node
# or link, for how long.  Carrying it out takes as long as it takes (a restart, a
# VACUUM), so two runs of a seed break the same things in the same order, not at
# the same instruction.

package KrahoDB::Nemesis;

use strict;
use warnings;

use KrahoDB::Nodes;
use Time::HiRes qw(usleep time);

my $clock_range = 1.5;	# seconds ahead or behind

# Whatever applies: workers, and their lanes.
my $apply_workers = q{SELECT pid FROM pg_stat_subscription WHERE pid IS NOT NULL
	UNION SELECT pid FROM pg_stat_activity WHERE backend_type = 'logical replication lane'};
my $walsenders = 'SELECT pid FROM pg_stat_replication';
my $backends = q{SELECT pid FROM pg_stat_activity WHERE application_name = 'chaos'};

# Points in apply workers and lanes where they fail, are killed, or are held up; see krahodb/fault.h.
my @points = qw(apply_begin apply_change apply_before_commit apply_after_commit apply_before_feedback spool_write
  converge_insert converge_inserted converge_overwrite converge_bury converge_buried converge_claim converge_claimed
  leader_before_append lane_begin lane_before_turn lane_at_turn lane_end lane_gives_way);

# Weight of each fault, what it does, and, if it lasts, what ends it.  They get the
# mesh and the entry of the schedule, and return undef if there was nothing to break.
# (A process that is killed takes its server's others with it: the postmaster
# restarts them all.)
my %fault = (
	kill_apply_worker => { weight => 3, do => sub { signal_one(@_, 'KILL', $apply_workers) } },
	kill_walsender => { weight => 3, do => sub { signal_one(@_, 'KILL', $walsenders) } },
	kill_backend => { weight => 2, do => sub { signal_one(@_, 'KILL', $backends) } },
	end_apply_worker => { weight => 4, do => sub { signal_one(@_, 'TERM', $apply_workers) } },
	end_walsender => { weight => 4, do => sub { signal_one(@_, 'TERM', $walsenders) } },
	end_backend => { weight => 2, do => sub { signal_one(@_, 'TERM', $backends) } },
	kill_server => { weight => 2, do => sub { $_[0]->kill_server($_[1]{node}) }, until => \&start_server },
	restart_server => { weight => 1, do => \&restart_server },
	stop_server => { weight => 3, do => \&stop_server, until => \&start_server },
	cut_link => { weight => 6, do => sub { $_[1]{link}{link}->cut }, until => \&heal_link },
	pause_link => { weight => 6, do => sub { $_[1]{link}{link}->pause }, until => \&heal_link },
	shift_clock => { weight => 4, do => \&set_clock },
	drift_clock => { weight => 3, do => \&set_clock, until => \&set_clock },
	fault_point => { weight => 5, do => sub { $_[0]->fault_point($_[1]{node}, $_[1]{point}) }, until => sub { $_[0]->fault_point($_[1]{node}) } },
	vacuum => { weight => 3, do => sub { $_[0]->ask($_[1]{node}, 'VACUUM') } },
	vacuum_freeze => { weight => 2, do => sub { $_[0]->ask($_[1]{node}, 'VACUUM (FREEZE)') } },
	checkpoint => { weight => 1, do => sub { $_[0]->ask($_[1]{node}, 'CHECKPOINT') } },
	set_subscription => { weight => 2, do => sub { alter_subscription(@_, "SET ($_[1]{options})") } },
	disable_subscription => { weight => 3, do => sub { alter_subscription(@_, 'DISABLE') }, until => sub { alter_subscription(@_, 'ENABLE') } },
);

# Random numbers of its own, the same everywhere.
sub random
{
	my ($self, $n) = @_;

	$self->{state} = ($self->{state} * 1103515245 + 12345) & 0x7fffffff;
	return ($self->{state} >> 8) / (1 << 23) * $n;
}

sub choose
{
	my ($self) = @_;
	my @names = grep { !/_clock$/ || $self->{mesh}->has_clocks } sort keys %fault;
	my $total = 0;

	$total += $fault{$_}{weight} foreach @names;
	my $at = $self->random($total);
	foreach my $name (@names)
	{
		$at -= $fault{$name}{weight};
		return $name if $at < 0;
	}
	return $names[0];
}

# A schedule of so many seconds.
sub new
{
	my ($class, $mesh, $seed, $seconds) = @_;
	my $self = bless { mesh => $mesh, state => $seed & 0x7fffffff, schedule => [], done => {} }, $class;
	my @nodes = $mesh->nodes;
	my @links = $mesh->links;

	$self->random(1) foreach 1 .. 10;
	for (my $at = 1; $at < $seconds; $at += 0.3 + $self->random(1.5))
	{
		my $name = $self->choose;
		my $link = $links[ int $self->random(scalar @links) ];
		my $entry = {
			at => $at,
			name => $name,
			node => $nodes[ int $self->random(scalar @nodes) ],
			link => $link,
			offset => sprintf('%.2f', $self->random(2 * $clock_range) - $clock_range),
			pick => $self->random(1)
		};
		my $length = 0.3 + $self->random($self->random(10) < 1 ? 20 : 4);

		$entry->{point} = sprintf '%s@%d=%s', $points[ int $self->random(scalar @points) ], 1 + $self->random(50),
		  (qw(error kill wait))[ int $self->random(3) ];
		$entry->{options} = sprintf 'streaming = %s, binary = %s, compression = %s, apply_workers = %d',
		  map({ $self->random(2) < 1 ? 'on' : 'off' } 1 .. 2), (qw(off lz4 zstd))[ int $self->random(3) ],
		  1 + $self->random(4);
		$entry->{node} = $link->{node} if $name =~ /subscription/;
		if ($name eq 'drift_clock')
		{
			push @{ $self->{schedule} }, map { { %$entry, at => $at + $length * $_ / 10, offset => sprintf('%.3f', $entry->{offset} * $_ / 10), ends => $_ > 1 } } 1 .. 10;
			next;
		}
		push @{ $self->{schedule} }, $entry;
		push @{ $self->{schedule} }, { %$entry, at => $at + $length, ends => 1 }
		  if $fault{$name}{until};
	}
	$self->{schedule} = [ sort { $a->{at} <=> $b->{at} } @{ $self->{schedule} } ];
	return $self;
}

# The schedule, a line per fault.
sub lines
{
	my ($self) = @_;

	return map {
		my $where = $_->{name} =~ /link|subscription/ ? $_->{link}{name} : $_->{node}->name;
		sprintf '%6.1f s  %s%s %s%s', $_->{at}, $_->{ends} ? 'end of ' : '', $_->{name}, $where,
		  $_->{name} =~ /_clock$/ ? " to $_->{offset} s" : $_->{name} eq 'fault_point' ? " $_->{point}" : $_->{name} eq 'set_subscription' ? " $_->{options}" : ''
	} @{ $self->{schedule} };
}

# Number of faults by kind that took place.
sub done { return %{ $_[0]{done} }; }

sub run
{
	my ($self, $seconds) = @_;
	my $start = time;

	foreach my $entry (grep { $_->{at} < $seconds } @{ $self->{schedule} })
	{
		my $wait = $start + $entry->{at} - time;

		# On a machine that does not keep up, faults are left out, not their ends.
		next if !$entry->{ends} && $wait < $entry->{at} - $seconds;
		usleep($wait * 1e6) if $wait > 0;
		if ($entry->{ends})
		{
			$fault{ $entry->{name} }{until}->($self->{mesh}, $entry);
		}
		elsif (defined $fault{ $entry->{name} }{do}->($self->{mesh}, $entry))
		{
			$self->{done}{ $entry->{name} }++;
		}
	}
	my $rest = $start + $seconds - time;
	usleep($rest * 1e6) if $rest > 0;
	return;
}

# ---- faults ---------------------------------------------------------------------

# A drift is ten steps, of which the first is the fault.
sub set_clock { return $_[0]->set_clock($_[1]{node}, $_[1]{offset}); }

sub signal_one
{
	my ($mesh, $entry, $signal, $query) = @_;
	my @pids = sort { $a <=> $b } split /\n/, $mesh->ask($entry->{node}, $query) // '';

	return if !@pids;
	return kill $signal, $pids[ int($entry->{pick} * @pids) ];
}

sub stop_server
{
	my ($mesh, $entry) = @_;

	return if !defined $entry->{node}{_pid};
	return $entry->{node}->stop('immediate');
}

sub restart_server
{
	my ($mesh, $entry) = @_;

	return if !defined $entry->{node}{_pid};
	# A walsender stays until its subscriber has everything, however far behind that is.
	$entry->{node}->stop('fast', fail_ok => 1) or $entry->{node}->stop('immediate');
	return $mesh->start($entry->{node});
}

sub start_server
{
	my ($mesh, $entry) = @_;

	return $mesh->start($entry->{node}) if !defined $entry->{node}{_pid};
	return;
}

sub heal_link { return $_[1]{link}{link}->heal; }

sub alter_subscription
{
	my ($mesh, $entry, $how) = @_;

	return $mesh->ask($entry->{node}, "ALTER SUBSCRIPTION $entry->{link}{name} $how");
}

1;
