# KrahoDB::Relay: counts the bytes that a publisher sends.
#
# A process that listens on a Unix socket of its own, passes everything on to the
# server's and back, and adds up what came from the server.

package KrahoDB::Relay;

use strict;
use warnings;

use IO::Select;
use IO::Socket::UNIX;
use POSIX ();

my $chunk = 262144;

# A running relay in directory $dir to the server's socket in $target, with the same
# port number.
sub new
{
	my ($class, $dir, $target, $port) = @_;
	my $listener = IO::Socket::UNIX->new(Local => "$dir/.s.PGSQL.$port", Listen => 20)
	  or die "could not listen in $dir: $!";
	my $count = "$dir/bytes";
	my $pid = fork;

	die "fork: $!" if !defined $pid;
	if ($pid == 0)
	{
		# no END blocks of the test in here
		eval { serve($listener, "$target/.s.PGSQL.$port", $count); };
		print STDERR "relay: $@" if $@;
		POSIX::_exit(0);
	}
	close $listener;
	return bless { pid => $pid, dir => $dir, count => $count }, $class;
}

sub dir { return $_[0]{dir}; }

# What the server has sent so far.
sub bytes
{
	my ($self) = @_;
	open my $file, '<', $self->{count} or return 0;
	my $bytes = <$file>;
	close $file;
	return $bytes + 0;
}

sub stop
{
	my ($self) = @_;
	kill 'KILL', $self->{pid};
	return waitpid $self->{pid}, 0;
}

sub write_all
{
	my ($socket, $data) = @_;
	my $done = 0;

	while ($done < length $data)
	{
		my $n = syswrite $socket, $data, length($data) - $done, $done;
		return 0 if !defined $n;
		$done += $n;
	}
	return 1;
}

sub serve
{
	my ($listener, $target, $count) = @_;
	my $reading = IO::Select->new($listener);
	my (%peer, %from_server);
	my $bytes = 0;

	local $SIG{PIPE} = 'IGNORE';
	open my $file, '>', $count or die "$count: $!";
	while (my @ready = $reading->can_read)
	{
		foreach my $socket (@ready)
		{
			if ($socket == $listener)
			{
				my $client = $listener->accept or next;
				my $server = IO::Socket::UNIX->new(Peer => $target) or next;
				$reading->add($client, $server);
				@peer{ $client, $server } = ($server, $client);
				$from_server{$server} = 1;
				next;
			}
			my $other = $peer{$socket} or next;
			my $n = sysread $socket, my $data, $chunk;
			if ($n && write_all($other, $data))
			{
				next unless $from_server{$socket};
				$bytes += $n;
				sysseek $file, 0, 0;
				syswrite $file, $bytes;
				next;
			}
			$reading->remove($socket, $other);
			delete @peer{ $socket, $other };
			delete @from_server{ $socket, $other };
			close $_ foreach $socket, $other;
		}
	}
	return;
}

1;
