# KrahoDB::RandomMesh: servers that subscribe to each other, and clients that write to them.
#
# The last of three may stay outside at first, and join by a copy while the others write.
# Links are [subscriber, publisher], by number from 1 on.

package KrahoDB::RandomMesh;

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::RandomTables;
use KrahoDB::RandomWrites;
use List::Util qw(shuffle);
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep time);

my $conf = <<'EOF';
restart_after_crash = on
deadlock_timeout = 100ms
lock_timeout = 4s
fsync = off
max_connections = 60
max_replication_slots = 40
max_prepared_transactions = 20
log_line_prefix = '%m [%p] %b %e %x '
log_statement = mod
krahodb.copy_range_size = 64kB
EOF

# %params: nodes => number, tables => [KrahoDB::RandomTables], joins => does the last one
# stay outside, options => of all subscriptions, conf => of the servers, shifted => have
# types other OIDs on each node.
sub new
{
	my ($class, %params) = @_;
	my $self = bless { %params, servers => [], links => [], on => {}, bad => 0, sessions => {} }, $class;
	my $inside = $params{nodes} - ($params{joins} ? 1 : 0);

	$self->{servers} = [ undef, map { krahodb_node("n$_", conf => $conf . $params{conf}) } 1 .. $params{nodes} ];
	$self->{members} = [ 1 .. $inside ];
	foreach my $n (1 .. $params{nodes})
	{
		$self->sql($n, 'CREATE EXTENSION krahodb', map({ "CREATE EXTENSION $_" } qw(citext hstore btree_gist amcheck)), 'CREATE SCHEMA "Odd s"',
			types_sql($n, $params{shifted}), other_tables_sql(), (map { table_sql($_, $n) } @{ $params{tables} }), 'CREATE PUBLICATION leaves',
			'CREATE PUBLICATION roots WITH (publish_via_partition_root)', $self->publish_sql($n));
	}
	foreach my $to (1 .. $inside)
	{
		$self->subscribe($to, $_, 'copy_data = false') foreach grep { $_ != $to } 1 .. $inside;
	}
	return $self;
}

sub node { return $_[0]{servers}[ $_[1] ]; }
sub all { return 1 .. $_[0]{nodes}; }
sub members { return @{ $_[0]{members} }; }
sub links { return @{ $_[0]{links} }; }
sub tables { return @{ $_[0]{tables} }; }
sub name_of { my ($self, $link) = @_; return "n$link->[0]_n$link->[1]"; }

# Something is wrong.
sub bad
{
	my ($self, @lines) = @_;

	$self->{bad}++;
	diag(@lines);
	return;
}

# SQL that must work on a node, as one transaction.
sub sql
{
	my ($self, $n, @sql) = @_;
	my ($status, $out, $err) = eval { $self->node($n)->psql('postgres', join(";\n", 'BEGIN', @sql, 'COMMIT'), on_error_stop => 1) };

	die "on n$n: " . ($err // $@) . ": @sql" if !defined $status || $status != 0;
	note "n$n: $_" foreach @sql;
	return $out;
}

# Commands that may fail, each by itself.  Returns whether all worked, and the error.
sub try
{
	my ($self, $n, @sql) = @_;

	foreach my $sql (@sql)
	{
		my ($status, $out, $err) = eval { $self->node($n)->psql('postgres', $sql, timeout => 60, timed_out => \my $timed_out) };

		note "n$n: $sql: " . (defined $status ? $status : 'died') . ' ' . ($err // '');
		return wantarray ? (0, $err // $@) : 0 if !defined $status || $status != 0;
	}
	return wantarray ? (1, '') : 1;
}

# Commands that must work, each by itself.
sub must
{
	my ($self, $n, @sql) = @_;

	foreach my $sql (@sql)
	{
		my ($done, $err) = $self->try($n, $sql);

		$self->bad("n$n: $sql: $err") if !$done;
	}
	return;
}

sub publish_sql
{
	my ($self, $n) = @_;
	my @tables = $self->tables;
	my @roots = map { published($_, $n) } grep { $_->{root} } @tables;
	my @leaves = ((map { published($_, $n) } grep { !$_->{root} } @tables), (map { "child_$_->{number}" } grep { $_->{child} } @tables), other_published());

	return 'ALTER PUBLICATION leaves SET TABLE ' . join(', ', @leaves), @roots ? 'ALTER PUBLICATION roots SET TABLE ' . join(', ', @roots) : ();
}

# ---- subscriptions -----------------------------------------------------------------------------

sub subscribe
{
	my ($self, $to, $from, @options) = @_;
	my $link = [ $to, $from ];

	$self->must($to, 'CREATE SUBSCRIPTION ' . $self->name_of($link) . " CONNECTION '" . connstr($self->node($from)) . "' PUBLICATION leaves, roots WITH ("
		  . join(', ', 'origin = none', $self->{options}, @options) . ')');
	push @{ $self->{links} }, $link;
	$self->{on}{ $self->name_of($link) } = grep({ /enabled = false/ } @options) ? 0 : 1;
	return;
}

# Enable or disable a subscription.
sub toggle
{
	my ($self, $link, $want) = @_;
	my $name = $self->name_of($link);

	$want = !$self->{on}{$name} if !defined $want;
	return 1 if $self->{on}{$name} == $want || !$self->try($link->[0], "ALTER SUBSCRIPTION $name " . ($want ? 'ENABLE' : 'DISABLE'));
	$self->{on}{$name} = $want ? 1 : 0;
	return 1;
}

# The last node joins, as conflicts.md says, whatever the others do.
sub join_mesh
{
	my ($self) = @_;
	my $new = $self->{nodes};
	my ($source, @others) = shuffle $self->members;

	# It may lag, but it must get on.
	$self->toggle([ $source, $_ ], 1) foreach @others;
	$self->subscribe($new, $_, 'copy_data = false', 'enabled = false') foreach @others;
	$self->subscribe($new, $source, 'copy_data = true');
	$self->wait_for($new, q{SELECT count(*) = 0 FROM pg_subscription_rel WHERE srsubstate <> 'r'}, 'the copy') or return 0;
	$self->subscribe($_, $new, 'copy_data = false') foreach $self->members;
	$self->toggle([ $new, $_ ], 1) foreach @others;
	push @{ $self->{members} }, $new;
	return 1;
}

# And leaves, to come back as another one.
sub leave_mesh
{
	my ($self) = @_;
	my $gone = $self->{nodes};

	foreach my $link (shuffle grep { $_->[0] == $gone || $_->[1] == $gone } $self->links)
	{
		$self->must($link->[0], 'DROP SUBSCRIPTION ' . $self->name_of($link));
	}
	$self->{links} = [ grep { $_->[0] != $gone && $_->[1] != $gone } $self->links ];
	pop @{ $self->{members} };
	$self->must($gone, 'SELECT krahodb.reset_node_identity()');
	$self->node($gone)->restart;
	$self->must($gone, 'TRUNCATE ' . join ', ', other_published(), map { full_name($_), ("child_$_->{number}") x ($_->{child} ne '') } $self->tables);
	return;
}

sub refresh
{
	my ($self) = @_;

	$self->must($_->[0], 'ALTER SUBSCRIPTION ' . $self->name_of($_) . ' REFRESH PUBLICATION WITH (copy_data = false)') foreach $self->links;
	return;
}

# ---- waiting -----------------------------------------------------------------------------------

sub ask
{
	my ($self, $n, $query) = @_;
	my ($status, $out) = eval { $self->node($n)->psql('postgres', $query, timeout => 60, timed_out => \my $timed_out) };

	return defined $status && $status == 0 ? $out : '';
}

sub wait_for
{
	my ($self, $n, $query, $what) = @_;
	my $until = time + $PostgreSQL::Test::Utils::timeout_default;

	while ($self->ask($n, $query) ne 't')
	{
		if (time > $until)
		{
			$self->bad("timed out waiting for $what on n$n: $query");
			$self->show_state;
			return 0;
		}
		$self->look_after_sessions;
	}
	return 1;
}

# All servers answer: one of them may be starting again.
sub wait_up
{
	my ($self) = @_;

	$self->wait_for($_, 'SELECT true', 'an answer') foreach $self->all;
	return;
}

# All that was written has arrived.
sub settle
{
	my ($self) = @_;

	$self->wait_up;
	foreach my $link (shuffle $self->links)
	{
		$self->toggle($link, 1) or $self->wait_up, $self->toggle($link, 1) or $self->bad('could not enable ' . $self->name_of($link));
	}
	foreach my $link ($self->links)
	{
		my $lsn = $self->ask($link->[1], 'SELECT pg_current_wal_insert_lsn()');

		$self->wait_for($link->[1], "SELECT count(*) = 1 FROM pg_stat_replication WHERE application_name = '" . $self->name_of($link)
			  . "' AND state = 'streaming' AND replay_lsn >= '$lsn'", $self->name_of($link)) or return 0;
	}
	return 1;
}

sub show_state
{
	my ($self) = @_;

	foreach my $n ($self->all)
	{
		diag("n$n: $_") foreach split /\n/, $self->ask($n, q{
			SELECT pid, application_name, backend_type, state, wait_event_type, wait_event, now() - xact_start AS for, left(query, 90), pg_blocking_pids(pid)
				FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type !~ 'writer|checkpointer';
			SELECT slot_name, active_pid, restart_lsn, confirmed_flush_lsn, pg_current_wal_lsn() FROM pg_replication_slots;
			SELECT subname, subenabled, pid, received_lsn, latest_end_lsn FROM pg_subscription s LEFT JOIN pg_stat_subscription USING (subname);
			SELECT srsubid, srrelid::regclass, srsubstate FROM pg_subscription_rel WHERE srsubstate <> 'r';
			SELECT gid, prepared FROM pg_prepared_xacts;
			SELECT subscription, state, lag, reason FROM krahodb.horizon});
		my @errors = grep { / (ERROR|FATAL|PANIC): / && !/ client backend / } split /\n/, slurp_file($self->node($n)->logfile);
		diag("n$n: $_") foreach @errors > 6 ? @errors[ -6 .. -1 ] : @errors;
	}
	return;
}

# ---- clients -----------------------------------------------------------------------------------

# A client that runs these pieces of transactions, each by a psql of its own.
sub start_session
{
	my ($self, $n, $name, @transactions) = @_;
	my $dir = $self->node($n)->basedir;
	my @files;

	while (my @piece = splice @transactions, 0, 15)
	{
		push @files, "$dir/$name." . @files . '.sql';
		append_to_file($files[-1], join '', @piece);
	}
	$self->next_piece({ node => $n, out => "$dir/$name.out", files => \@files });
	return;
}

sub next_piece
{
	my ($self, $session) = @_;
	my $file = shift @{ $session->{files} };
	my $connstr = $self->node($session->{node})->connstr('postgres');
	my $pid;

	return if !defined $file;
	$pid = fork;
	die "fork: $!" if !defined $pid;
	if ($pid == 0)
	{
		open STDOUT, '>>', $session->{out};
		open STDERR, '>&', \*STDOUT;
		open STDIN, '<', '/dev/null';
		exec 'psql', '-X', '-q', '-e', '-d', $connstr, '-f', $file or POSIX::_exit(1);
	}
	$self->{sessions}{$pid} = $session;
	return;
}

# Start what comes next in sessions whose piece has ended (later, if the server went away);
# are there any left?
sub look_after_sessions
{
	my ($self) = @_;
	my @waiting = splice @{ $self->{waiting} //= [] };

	usleep(50_000);

	while ((my $pid = waitpid -1, POSIX::WNOHANG()) > 0)
	{
		my $failed = $? != 0;
		my $session = delete $self->{sessions}{$pid} or next;

		$session->{after} = time + ($failed ? 0.5 : 0);
		push @waiting, $session;
	}
	foreach my $session (@waiting)
	{
		if (time < $session->{after}) { push @{ $self->{waiting} }, $session; }
		else { $self->next_piece($session); }
	}
	return %{ $self->{sessions} } || @{ $self->{waiting} };
}

sub finish_prepared
{
	my ($self) = @_;

	$self->wait_up;
	foreach my $n ($self->members)
	{
		$self->must($n, one_of('COMMIT', 'ROLLBACK') . " PREPARED '$_'")
		  foreach split /\n/, $self->ask($n, q{SELECT gid FROM pg_prepared_xacts WHERE gid !~ '^pg_gid'});
	}
	return;
}

sub kill_server
{
	my ($self, $n) = @_;

	note "kill -9 n$n";
	$self->node($n)->kill9;
	start_after_kill($self->node($n));
	return;
}

sub stop
{
	my ($self) = @_;

	kill 'TERM', $_ foreach keys %{ $self->{sessions} };
	eval { $self->node($_)->stop('immediate') } foreach $self->all;
	return;
}

1;
