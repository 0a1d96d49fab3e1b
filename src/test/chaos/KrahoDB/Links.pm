# KrahoDB::Links: connections between servers that can be cut and paused.
#
# A link is a process that listens on a Unix socket of its own and passes bytes on
# to a server's.  Cutting it closes its connections and refuses new ones; pausing
# it (SIGSTOP) leaves them open and silent.

package KrahoDB::Links;

use strict;
use warnings;

use IO::Select;
use IO::Socket::UNIX;
use POSIX ();

my $chunk = 65536;
my $buffer_limit = 4 * $chunk;	# then the link stops reading from the other side

# A running link to the server socket in directory $target, for clients that
# connect to directory $dir, both with the number $port.
sub new
{
	my ($class, $dir, $target, $port) = @_;
	my $listener = IO::Socket::UNIX->new(Local => "$dir/.s.PGSQL.$port", Listen => 20)
	  or die "could not listen in $dir: $!";
	my $pid = fork;

	die "fork: $!" if !defined $pid;
	if ($pid == 0)
	{
		# no END blocks of the test in here
		eval { serve($listener, "$target/.s.PGSQL.$port"); };
		print STDERR "link: $@" if $@;
		POSIX::_exit(0);
	}
	close $listener;
	return bless { pid => $pid, dir => $dir }, $class;
}

sub dir { return $_[0]{dir}; }
sub cut { return kill 'USR1', $_[0]{pid}; }
sub pause { return kill 'STOP', $_[0]{pid}; }

sub heal
{
	my ($self) = @_;
	kill 'CONT', $self->{pid};
	return kill 'USR2', $self->{pid};
}

sub stop
{
	my ($self) = @_;
	kill 'KILL', $self->{pid};
	return waitpid $self->{pid}, 0;
}

# ---- the process ----------------------------------------------------------------

my ($reading, $writing, %peer, %buffer);

sub close_pair
{
	my ($socket) = @_;
	my @ends = grep { defined } $socket, $peer{$socket};

	foreach my $end (@ends)
	{
		$reading->remove($end);
		$writing->remove($end);
		delete $buffer{$end};
		delete $peer{$end};
		close $end;
	}
	return;
}

sub accept_one
{
	my ($listener, $target, $cut) = @_;
	my $client = $listener->accept or return;
	my $server = $cut ? undef : IO::Socket::UNIX->new(Peer => $target);

	return close $client if !$server;
	foreach my $pair ([ $client, $server ], [ $server, $client ])
	{
		my ($end, $other) = @$pair;
		$end->blocking(0);
		$peer{$end} = $other;
		$buffer{$end} = '';
		$reading->add($end);
	}
	return;
}

sub pass_on
{
	my ($from) = @_;
	my $to = $peer{$from} or return;
	my $bytes;
	my $got = sysread $from, $bytes, $chunk;

	return if !defined $got && ($!{EAGAIN} || $!{EINTR});
	return close_pair($from) if !$got;
	$buffer{$to} .= $bytes;
	$writing->add($to);
	$reading->remove($from) if length $buffer{$to} > $buffer_limit;
	return;
}

sub flush
{
	my ($to) = @_;
	my $from = $peer{$to} or return;
	my $put = syswrite $to, $buffer{$to}, $chunk;

	return if !defined $put && ($!{EAGAIN} || $!{EINTR});
	return close_pair($to) if !defined $put;
	substr($buffer{$to}, 0, $put) = '';
	$writing->remove($to) if $buffer{$to} eq '';
	$reading->add($from) if length $buffer{$to} <= $buffer_limit && !$reading->exists($from);
	return;
}

sub serve
{
	my ($listener, $target) = @_;
	my ($cut, $parent) = (0, getppid);

	$SIG{USR1} = sub { $cut = 1; };
	$SIG{USR2} = sub { $cut = 0; };
	$SIG{PIPE} = 'IGNORE';
	$SIG{INT} = $SIG{TERM} = 'DEFAULT';
	($reading, $writing) = (IO::Select->new($listener), IO::Select->new);
	while (getppid == $parent)
	{
		my ($readable, $writable) = IO::Select->select($reading, $writing, undef, 1);

		if ($cut)
		{
			close_pair($_) foreach grep { $_ != $listener } $reading->handles, $writing->handles;
		}
		foreach my $socket (@{ $writable // [] })
		{
			flush($socket) if $peer{$socket};
		}
		foreach my $socket (@{ $readable // [] })
		{
			if ($socket == $listener) { accept_one($listener, $target, $cut); }
			elsif ($peer{$socket}) { pass_on($socket); }
		}
	}
	return;
}

1;
