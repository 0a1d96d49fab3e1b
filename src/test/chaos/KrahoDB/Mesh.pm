# KrahoDB::Mesh: servers that all subscribe to each other, over links that can be
# cut, with clocks that can be shifted.

package KrahoDB::Mesh;

use strict;
use warnings;

use KrahoDB::Links;
use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep time);

my $conf = <<'EOF';
log_statement = none
restart_after_crash = on
max_connections = 60
max_worker_processes = 30
max_prepared_transactions = 40
shared_buffers = 16MB
max_wal_size = 1GB
logical_decoding_work_mem = 64kB
wal_retrieve_retry_interval = 200ms
wal_sender_timeout = 10s
wal_receiver_timeout = 10s
deadlock_timeout = 200ms
krahodb.max_clock_skew = '20s'
EOF

my ($clock_library) = grep { -e } glob('/usr/lib/*/faketime/libfaketime.so.1');

# A running mesh; %params: nodes => number, schema => [SQL], options => function that
# gives the options of a subscription by its number.
sub new
{
	my ($class, %params) = @_;
	my $self = bless { links => [], options => $params{options} }, $class;

	$self->{nodes} = [ map { krahodb_node("n$_", conf => $conf) } 1 .. $params{nodes} ];
	foreach my $node (@{ $self->{nodes} })
	{
		$self->set_clock($node, 0);
		$node->stop;
		$self->start($node);
		$node->safe_psql('postgres', join(";\n", 'CREATE EXTENSION krahodb', @{ $params{schema} }));
		$node->safe_psql('postgres', 'CREATE PUBLICATION mesh FOR ALL TABLES');
	}
	foreach my $node (@{ $self->{nodes} })
	{
		$self->subscribe($node, $_) foreach grep { $_ != $node } @{ $self->{nodes} };
	}
	return $self;
}

sub nodes { return @{ $_[0]{nodes} }; }
sub links { return @{ $_[0]{links} }; }
sub has_clocks { return defined $clock_library; }

sub subscribe
{
	my ($self, $node, $from) = @_;
	my $name = $node->name . '_' . $from->name;
	my $dir = PostgreSQL::Test::Utils::tempdir_short();
	my $number = @{ $self->{links} };
	my $link = KrahoDB::Links->new($dir, $from->host, $from->port);

	$node->safe_psql('postgres', sprintf(
			"CREATE SUBSCRIPTION %s CONNECTION 'host=%s port=%d dbname=postgres' PUBLICATION mesh "
			  . 'WITH (origin = none, copy_data = false, %s)',
			$name, $dir, $from->port, $self->{options}->($number)));
	push @{ $self->{links} },
	  { link => $link, name => $name, node => $node, from => $from };
	return;
}

# Start a node that is down, with its clock.
sub start
{
	my ($self, $node) = @_;

	local %ENV = %ENV;
	if ($clock_library)
	{
		$ENV{LD_PRELOAD} = "$ENV{KDB_CLOCK_SELECT} $clock_library";
		$ENV{FAKETIME_TIMESTAMP_FILE} = $node->basedir . '/clock';
		$ENV{FAKETIME_NO_CACHE} = 1;
		# A process that is killed within its stat() keeps a semaphore of all others.
		$ENV{NO_FAKE_STAT} = 1;
		$ENV{FAKETIME_DONT_FAKE_MONOTONIC} = 1;
	}
	$node->start;
	return 1;
}

# Kill -9 the postmaster, and wait until it is gone and its children have noticed:
# until then it cannot be started again.
sub kill_server
{
	my ($self, $node) = @_;
	my @processes;

	return if !defined $node->{_pid};
	kill 'STOP', $node->{_pid};	# it starts no more of them
	@processes = ($node->{_pid}, split /\s+/, qx(pgrep -P $node->{_pid}));
	$node->kill9;
	usleep(10_000) while grep { kill 0, $_ } @processes;
	unlink $node->data_dir . '/postmaster.pid';
	return 1;
}

# The node's clock is ahead by so many seconds.  In one step: a reader never sees
# half a file.
sub set_clock
{
	my ($self, $node, $offset) = @_;
	my $file = $node->basedir . '/clock';

	open my $out, '>', "$file.new" or die "$file: $!";
	printf $out "%+.3f\n", $offset;
	close $out or die "$file: $!";
	rename "$file.new", $file or die "$file: $!";
	return 1;
}

# Arm a fault point on a node, or disarm it.
sub fault_point
{
	my ($self, $node, $point) = @_;

	disarm_fault($node);
	arm_fault($node, $point) if $point;
	return $self->ask($node, 'SELECT pg_reload_conf()');
}

# Run SQL on a node that may be going down: returns what it prints, or undef.
sub ask
{
	my ($self, $node, $sql) = @_;
	my ($out, $err) = ('', '');
	my $status = eval {
		$node->psql('postgres', $sql, stdout => \$out, stderr => \$err, timeout => 60);
	};

	return defined $status && $status == 0 ? $out : undef;
}

# The same, until it works.
sub insist
{
	my ($self, $node, $sql) = @_;

	foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		my $out = $self->ask($node, $sql);
		return $out if defined $out;
		usleep(100_000);
	}
	die $node->name . " does not answer: $sql";
}

# Transactions of clients that were left prepared are committed.
sub finish_prepared
{
	my ($self) = @_;

	foreach my $node (@{ $self->{nodes} })
	{
		$self->insist($node, "COMMIT PREPARED '$_'")
		  foreach split /\n/, $self->insist($node, q{SELECT gid FROM pg_prepared_xacts WHERE gid !~ '^pg_gid'});
	}
	return;
}

# All links, clocks and subscriptions as they should be.
sub heal
{
	my ($self) = @_;

	$_->{link}->heal foreach @{ $self->{links} };
	foreach my $node (@{ $self->{nodes} })
	{
		$self->set_clock($node, 0);
		$self->start($node) if !defined $node->{_pid};
		$self->insist($node, 'SELECT 1');
		$self->fault_point($node);
	}
	$self->insist($_->{node}, "ALTER SUBSCRIPTION $_->{name} ENABLE") foreach @{ $self->{links} };
	return;
}

# Everything that is committed anywhere arrives everywhere; false if it does not
# in time.  A marker row of each node is the last of its stream.
sub quiesce
{
	my ($self, $round) = @_;
	my $count = @{ $self->{nodes} };
	my $until = time + $PostgreSQL::Test::Utils::timeout_default;

	$self->insist($_, 'INSERT INTO marker VALUES (' . q{'} . $_->name . "', $round) ON CONFLICT DO NOTHING")
	  foreach @{ $self->{nodes} };
	foreach my $node (@{ $self->{nodes} })
	{
		while (($self->ask($node, "SELECT count(*) FROM marker WHERE round = $round") // -1) != $count)
		{
			if (time > $until)
			{
				$self->show_state($round);
				return 0;
			}
			usleep(50_000);
		}
	}
	return 1;
}

# What is known of streams that do not bring all.  \$CHAOS_ON_HANG is run by the shell
# meanwhile, for a debugger.
sub show_state
{
	my ($self, $round) = @_;

	foreach my $node (@{ $self->{nodes} })
	{
		diag($node->name . ' has only: '
			  . ($self->ask($node, "SELECT string_agg(node, ',') FROM marker WHERE round = $round") // '?'));
		diag("  $_") foreach split /\n/, $self->ask($node,
			q{SELECT pid, application_name, backend_type, state, wait_event_type, wait_event, now() - xact_start AS for, left(query, 60)
				FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type !~ 'writer|checkpointer|launcher';
			  SELECT slot_name, active_pid, restart_lsn, confirmed_flush_lsn, pg_current_wal_lsn() FROM pg_replication_slots;
			  SELECT subname, pid, received_lsn, latest_end_lsn FROM pg_stat_subscription;
			  SELECT gid, prepared FROM pg_prepared_xacts;
			  SELECT pid, locktype, transactionid, relation::regclass, mode FROM pg_locks WHERE NOT granted} ) // '?';
	}
	system $ENV{CHAOS_ON_HANG} if $ENV{CHAOS_ON_HANG};
	return;
}

sub stop
{
	my ($self) = @_;

	$_->stop('immediate') foreach @{ $self->{nodes} };
	$_->{link}->stop foreach @{ $self->{links} };
	return;
}

1;
