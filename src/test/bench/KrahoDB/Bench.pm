# KrahoDB::Bench: servers side by side, and figures of them.
#
# A contender is a pair of servers, publisher and subscriber, with a subscription
# that is up.  A file of t/ makes its contenders, then repeats rounds in which each
# of them does the same work, in another order each time, so that whatever else
# the machine does falls on all of them.  The first contender is the reference:
# ratios are reference / other, computed within each round, so more than 1 means
# that the other one is faster.  The report at the end has the median over the
# rounds, and for ratios the least and the greatest.
#
# A BACKLOG (drain) is built while the publisher's walsender is stopped by SIGSTOP,
# with the subscription up: so the time from SIGCONT to the last row's arrival has
# neither the start of a worker in it nor any work that was done before.
#
# Environment: BENCH_ROUNDS (5); BENCH_CONTENDERS, a list of names, to leave out
# some; BENCH_SETTINGS=initdb: the servers as initdb leaves them, but for wal_level;
# BENCH_OPTIONS: more options of the KrahoDB subscriptions; BENCH_PERF=directory: a
# profile (perf record -g) of walsender and apply workers in each drain, into a file of its own
# there.  Each file has its own for the amount of work.

package KrahoDB::Bench;

use strict;
use warnings;

use Exporter 'import';
use IPC::Run;
use List::Util qw(min max);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

our @EXPORT = qw(
  contender
  contenders
  wanted_contenders
  rounds
  in_turns
  note_figure
  drain
  set_marker
  wait_for_marker
  run_pgbench
  sql
  bench_report
  check_equal
  vacuum_all
  cpu_seconds
  setting
);

# Settings of all servers, but with BENCH_SETTINGS=initdb.  (KrahoDB's initdb sets
# wal_writer_delay to 2ms.)  The timeouts are off because a walsender that is held
# answers nobody.
my $alike = <<'EOC';
shared_buffers = 512MB
max_wal_size = 16GB
checkpoint_timeout = 1h
autovacuum = off
synchronous_commit = off
wal_writer_delay = 200ms
logical_decoding_work_mem = 128MB
track_commit_timestamp = on
max_connections = 40
EOC
my $always = <<'EOC';
wal_sender_timeout = 0
wal_receiver_timeout = 0
log_statement = none
log_replication_commands = off
EOC

my $engine = $ENV{KDB_ENGINE_BINDIR} or die "call this by make bench";
$engine =~ s{/bin/?$}{};

my @contenders;
my %held;						# pids of stopped walsenders
my $profiles = 0;				# so many have been made
my @figures;					# [workload, unit, better, contender, value] in order

# A number that the environment may change: setting('ROWS', 1_000_000).
sub setting
{
	my ($name, $default) = @_;
	return $ENV{"BENCH_$name"} || $default;
}

# ---- contenders ----------------------------------------------------------------

# Is pglogical of the engine's version installed?
sub has_pglogical
{
	my $pkglibdir = qx('$engine/bin/pg_config' --pkglibdir);
	chomp $pkglibdir;
	return -e "$pkglibdir/pglogical.so";
}

# stock, krahodb and, where it is installed, pglogical: those that are wanted.
sub wanted_contenders
{
	my %wanted = map { $_ => 1 } split ' ', setting('CONTENDERS', 'stock krahodb pglogical');

	delete $wanted{pglogical} unless has_pglogical();
	return grep { $wanted{$_} } qw(stock krahodb pglogical);
}

sub make_server
{
	my ($name, $params) = @_;
	my @install = $params->{kind} eq 'krahodb' ? () : (install_path => $engine);
	my $node = PostgreSQL::Test::Cluster->new($name, @install);

	$node->init(allows_streaming => 'logical');
	$node->append_conf('postgresql.conf', $alike) unless setting('SETTINGS', '') eq 'initdb';
	$node->append_conf('postgresql.conf', $always);
	$node->append_conf('postgresql.conf', $params->{conf}) if $params->{conf};
	if ($params->{kind} eq 'pglogical')
	{
		$node->append_conf('postgresql.conf', "shared_preload_libraries = 'pglogical'");
		my $known = qx('$engine/bin/postgres' --describe-config) =~ /^output_plugin_libraries\t/m;
		$node->append_conf('postgresql.conf', "output_plugin_libraries = 'pgoutput, test_decoding, pglogical_output'")
		  if $known;
	}
	$node->start;
	$node->safe_psql('postgres', <<'EOS');
CREATE TABLE marker (id int PRIMARY KEY);
CREATE PROCEDURE wait_for_marker(n int) LANGUAGE plpgsql AS $$
BEGIN
	WHILE NOT EXISTS (SELECT FROM marker WHERE id = n) LOOP
		COMMIT;
		PERFORM pg_sleep(0.003);
	END LOOP;
END $$;
EOS
	$node->safe_psql('postgres', 'CREATE EXTENSION krahodb') if $params->{extension};
	$params->{schema}->($node) if $params->{schema};
	return $node;
}

sub connstr { return $_[0]->connstr . ' dbname=postgres'; }

sub subscribe
{
	my ($publisher, $subscriber, @options) = @_;
	my $with = join ', ', grep { $_ } 'copy_data = false', @options;

	$subscriber->safe_psql('postgres',
		"CREATE SUBSCRIPTION s CONNECTION '" . connstr($publisher) . "' PUBLICATION p WITH ($with)");
	return;
}

# Tables without a key go to the set that has inserts only.
sub subscribe_pglogical
{
	my ($publisher, $subscriber) = @_;

	foreach my $node ($publisher, $subscriber)
	{
		$node->safe_psql('postgres', 'CREATE EXTENSION pglogical');
		$node->safe_psql('postgres', "SELECT pglogical.create_node(node_name := '" . $node->name .
			"', dsn := '" . connstr($node) . "')");
	}
	$publisher->safe_psql('postgres', <<'EOS');
SELECT pglogical.replication_set_add_table(
	CASE WHEN EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary)
	THEN 'default' ELSE 'default_insert_only' END, c.oid)
FROM pg_class c WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
EOS
	$subscriber->safe_psql('postgres', "SELECT pglogical.create_subscription(subscription_name := 's', provider_dsn := '" .
		connstr($publisher) . "', synchronize_structure := false, synchronize_data := false)");
	return;
}

# A pair of servers.  name; kind: stock, krahodb or pglogical (default: name);
# schema: a function that is called with each server; options: of the subscription;
# extension: create it on both; mesh: the publisher subscribes to the subscriber, too;
# conf: more settings; subscription => 0: leave that to the caller.
sub contender
{
	my (%params) = @_;
	my %c = %params;

	$params{kind} = $c{kind} //= $params{name};
	$c{publisher} = make_server("$params{name}_publisher", \%params);
	$c{subscriber} = make_server("$params{name}_subscriber", \%params);
	push @contenders, \%c;
	return \%c if defined $params{subscription} && !$params{subscription};
	if ($params{kind} eq 'pglogical')
	{
		subscribe_pglogical($c{publisher}, $c{subscriber});
	}
	else
	{
		my @options = ($params{options}, $params{kind} eq 'krahodb' ? setting('OPTIONS', '') : ());
		$c{$_}->safe_psql('postgres', 'CREATE PUBLICATION p FOR ALL TABLES')
		  foreach qw(publisher subscriber);
		subscribe($c{publisher}, $c{subscriber}, @options);
		subscribe($c{subscriber}, $c{publisher}, @options) if $params{mesh};
	}
	pass("contender $params{name}");
	return \%c;
}

# All of them, in the order in which they were made.
sub contenders { return @contenders; }

# ---- work and time ---------------------------------------------------------------

my $marker = 0;

# A row that arrives after everything before it.
sub set_marker
{
	my ($c) = @_;
	$c->{publisher}->safe_psql('postgres', 'INSERT INTO marker VALUES (' . ++$marker . ')');
	return $marker;
}

sub wait_for_marker
{
	my ($c, $n) = @_;
	$c->{subscriber}->safe_psql('postgres', "CALL wait_for_marker($n)", timeout => 1800);
	return;
}

# The process that sends to the subscriber.
sub walsender
{
	my ($c) = @_;
	my $query = "FROM pg_stat_replication WHERE state = 'streaming'";

	$c->{publisher}->poll_query_until('postgres', "SELECT count(*) = 1 $query")
	  or die "$c->{name}: no single walsender";
	return $c->{publisher}->safe_psql('postgres', "SELECT pid $query");
}

# It stands still from now on; returns its pid.
sub hold_walsender
{
	my ($c) = @_;
	my $pid = walsender($c);

	kill('STOP', $pid) or die "could not stop the walsender";
	$held{$pid} = 1;
	$c->{held} = $pid;
	return $pid;
}

sub release_walsender
{
	my ($c) = @_;

	kill('CONT', $c->{held});
	delete $held{ $c->{held} };
	return;
}

# CPU seconds that these processes have used, as the scheduler counts them (nanoseconds); 0
# where the system does not tell.
sub cpu_seconds
{
	my (@pids) = @_;
	my $ns = 0;

	foreach my $pid (grep { -r "/proc/$_/schedstat" } @pids)
	{
		my ($used) = slurp_file("/proc/$pid/schedstat") =~ /^([0-9]+)/;
		$ns += $used;
	}
	return $ns / 1e9;
}

sub apply_workers
{
	my ($c) = @_;
	return split ' ', $c->{subscriber}->safe_psql('postgres',
		"SELECT string_agg(pid::text, ' ') FROM pg_stat_activity WHERE backend_type LIKE 'logical replication%worker%' OR backend_type = 'logical replication lane' OR backend_type LIKE 'pglogical apply%'");
}

# A running perf of these processes, if that is wanted.
sub start_profile
{
	my ($c, @pids) = @_;
	my $dir = setting('PERF', '') or return;
	my $file = sprintf('%s/%03d-%s.data', $dir, ++$profiles, $c->{name});
	my ($out, $err) = ('', '');

	return IPC::Run::start([ 'perf', 'record', '-q', '-g', '-F', 1500, '-o', $file, '-p', join(',', @pids) ],
		'>', \$out, '2>', \$err);
}

# Seconds until the subscriber has what $work has done at the publisher, from the
# release of the walsender on.
sub drain
{
	my ($c, $work) = @_;

	wait_for_marker($c, set_marker($c));
	my $pid = hold_walsender($c);
	$work->($c);
	my $n = set_marker($c);
	$c->{$_}->safe_psql('postgres', 'CHECKPOINT') foreach qw(publisher subscriber);
	my @workers = apply_workers($c);
	my $profile = start_profile($c, $pid, @workers);
	my @cpu = (cpu_seconds($pid), cpu_seconds(@workers));
	my $start = time;
	release_walsender($c);
	wait_for_marker($c, $n);
	my $elapsed = time - $start;
	@workers = apply_workers($c);	# some may have been started
	$c->{cpu} = [ cpu_seconds($pid) - $cpu[0], cpu_seconds(@workers) - $cpu[1] ];
	if ($profile)
	{
		$profile->signal('INT');
		$profile->finish;
	}
	return $elapsed;
}

# Work: a query at the publisher.
sub sql
{
	my ($query) = @_;
	return sub { $_[0]->{publisher}->safe_psql('postgres', $query, timeout => 900) };
}

# pgbench at a server; @options as for the program.
sub run_pgbench
{
	my ($node, @options) = @_;
	my ($stdout, $stderr);

	$node->run_log([ 'pgbench', '-p', $node->port, '-h', $node->host, @options, 'postgres' ],
		'>', \$stdout, '2>', \$stderr)
	  or die "pgbench failed: $stderr";
	return $stdout;
}

# Calls $work with the number of each round.
sub rounds
{
	my ($work) = @_;
	foreach my $round (1 .. setting('ROUNDS', 5))
	{
		$work->($round);
	}
	return;
}

# One measurement of each contender, in an order that changes with the round; $measure
# is called with the contender and returns the figure.
sub in_turns
{
	my ($round, $workload, $unit, $better, $measure) = @_;
	my $shift = ($round - 1) % @contenders;
	my %value;

	foreach my $c (@contenders[ $shift .. $#contenders, 0 .. $shift - 1 ])
	{
		delete $c->{cpu};
		$value{ $c->{name} } = $measure->($c);
		note_figure($workload, $unit, $better, $c->{name}, $value{ $c->{name} });
		note_cpu($workload, $c);
	}
	diag("round $round, $workload: " .
		join(', ', map { sprintf('%s %.3g %s', $_->{name}, $value{ $_->{name} }, $unit) } @contenders));
	return;
}

# What a drain has cost: it tells more than the time if the machine does other things.
sub note_cpu
{
	my ($workload, $c) = @_;

	return unless $c->{cpu} && $c->{cpu}[0] > 0 && $c->{cpu}[1] > 0;
	note_figure('  CPU time of the walsender', 's', 'less', $c->{name}, $c->{cpu}[0], $workload);
	note_figure('  CPU time of the apply worker', 's', 'less', $c->{name}, $c->{cpu}[1], $workload);
	return;
}

# $better: 'less' or 'more'.
sub note_figure
{
	my ($workload, $unit, $better, $contender, $value, $part_of) = @_;
	push @figures, [ $workload, $unit, $better, $contender, $value, $part_of // '' ];
	return;
}

sub vacuum_all
{
	foreach my $c (@contenders)
	{
		$c->{$_}->safe_psql('postgres', 'VACUUM') foreach qw(publisher subscriber);
	}
	return;
}

# ---- results ---------------------------------------------------------------------

sub median
{
	my @s = sort { $a <=> $b } @_;
	return @s % 2 ? $s[ $#s / 2 ] : ($s[ @s / 2 - 1 ] + $s[ @s / 2 ]) / 2;
}

sub figures_of
{
	my ($workload, $contender, $part_of) = @_;
	return map { $_->[4] }
	  grep { $_->[0] eq $workload && $_->[3] eq $contender && $_->[5] eq $part_of } @figures;
}

# Between which of the sorted values the median of all possible rounds lies, with 95 percent
# probability: the sign test.  From 10 values on.
sub confidence
{
	my (@sorted) = sort { $a <=> $b } @_;
	my $n = @sorted;
	my ($below, $term) = (0, 0.5**$n);

	return '' if $n < 10;
	my $k = 0;						# so many values may be left out at each end
	while (($below += $term) <= 0.025)
	{
		$k++;
		$term *= ($n - $k + 1) / $k;
	}
	return sprintf(', median %.3f .. %.3f with 95 %%', $sorted[ $k - 1 ], $sorted[ $n - $k ]);
}

sub report_line
{
	my ($workload, $unit, $better, $reference, $name, $part_of) = @_;
	my @mine = figures_of($workload, $name, $part_of);
	my @theirs = figures_of($workload, $reference, $part_of);
	my $line = sprintf('%-34s %-12s %10.4g %-6s', $workload, $name, median(@mine), $unit);

	return $line if $name eq $reference || @mine != @theirs || grep { $_ == 0 } @mine;
	my @ratios = map { $better eq 'less' ? $theirs[$_] / $mine[$_] : $mine[$_] / $theirs[$_] } 0 .. $#mine;
	return $line . sprintf(' %6.2f (%.2f .. %.2f%s)', median(@ratios), min(@ratios), max(@ratios), confidence(@ratios));
}

# The table, as diagnostics and in the file that "make bench" shows at its end.
sub bench_report
{
	my $reference = $contenders[0]{name};
	my %seen;
	my @lines;

	foreach my $figure (grep { !$seen{"$_->[5] $_->[0]"}++ } @figures)
	{
		my ($workload, $unit, $better, undef, undef, $part_of) = @$figure;
		push @lines, map { report_line($workload, $unit, $better, $reference, $_->{name}, $part_of) }
		  grep { figures_of($workload, $_->{name}, $part_of) } @contenders;
	}
	unshift @lines, sprintf('%-34s %-12s %10s %-6s %s', 'workload', 'server', 'median', '',
		"$reference / it (least .. greatest), " . setting('ROUNDS', 5) . ' rounds');
	diag($_) foreach @lines;
	append_to_file("$ENV{TESTDIR}/results", join("\n", @lines, '', ''));
	return;
}

# What was measured must be right: the tables are equal.
sub check_equal
{
	my (@tables) = @_;

	foreach my $c (@contenders)
	{
		wait_for_marker($c, set_marker($c));
		foreach my $table (@tables)
		{
			my $query = "SELECT count(*), sum(hashtextextended(t::text, 0)) FROM $table t";
			is($c->{subscriber}->safe_psql('postgres', $query),
				$c->{publisher}->safe_psql('postgres', $query), "$c->{name}: $table is equal");
		}
	}
	return;
}

# Nobody stops while a process of his does not run.
END
{
	kill('CONT', $_) foreach keys %held;
}

1;
