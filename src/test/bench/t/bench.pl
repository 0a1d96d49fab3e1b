#!/usr/bin/perl
#
# bench.pl: KrahoDB beside the stock engine, in one run on one machine.
#
# Two pairs of servers, publisher and subscriber: one pair made by the engine's
# own initdb, one by KrahoDB's, with the same settings otherwise.  For each
# workload the subscription is disabled, the publisher builds a backlog, and the
# time is taken from enabling the subscription to the last row having arrived.
# The pairs take turns within a round, so that what else the machine does falls
# on both.  Printed: the time of each pair (median of the rounds), and the ratio
# stock / KrahoDB with its spread; more than 1 means that KrahoDB is faster.
#
# Environment: BENCH_ROUNDS (3), BENCH_ROWS (1000000), BENCH_TRANSACTIONS (30000),
# BENCH_WORKLOADS (all), BENCH_OPTIONS (options of KrahoDB's subscription, e.g.
# "origin = none").
#
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $rounds = $ENV{BENCH_ROUNDS} || 3;
my $rows = $ENV{BENCH_ROWS} || 1_000_000;
my $transactions = $ENV{BENCH_TRANSACTIONS} || 30_000;
my $options = $ENV{BENCH_OPTIONS} || '';
my $engine = $ENV{KDB_ENGINE_BINDIR} or die "call this by make bench";
$engine =~ s{/bin/?$}{};

# Settings of both kinds of server.
my $settings = <<'EOC';
shared_buffers = 512MB
max_wal_size = 16GB
checkpoint_timeout = 1h
autovacuum = off
synchronous_commit = off
logical_decoding_work_mem = 64MB
track_commit_timestamp = on
log_statement = none
log_replication_commands = off
max_connections = 40
EOC

sub make_pair
{
	my ($name, %install) = @_;
	my %pair = (name => $name);
	foreach my $role (qw(publisher subscriber))
	{
		my $node = PostgreSQL::Test::Cluster->new("${name}_$role", %install);
		$node->init(allows_streaming => 'logical');
		$node->append_conf('postgresql.conf', $settings);
		$node->start;
		$node->safe_psql('postgres', <<'EOS');
CREATE TABLE bulk (id bigint PRIMARY KEY, a int, b text, c timestamptz);
CREATE TABLE marker (id int PRIMARY KEY);
CREATE PROCEDURE wait_for_marker(n int) LANGUAGE plpgsql AS $$
BEGIN
	WHILE NOT EXISTS (SELECT FROM marker WHERE id = n) LOOP
		COMMIT;
		PERFORM pg_sleep(0.002);
	END LOOP;
END $$;
EOS
		$node->command_ok([ 'pgbench', '-i', '-q', '-s', '10', '-p', $node->port, '-h', $node->host, 'postgres' ],
			"pgbench tables on $name $role");
		$pair{$role} = $node;
	}
	$pair{publisher}->safe_psql('postgres', 'CREATE PUBLICATION p FOR ALL TABLES');
	my $conninfo = $pair{publisher}->connstr . ' dbname=postgres';
	my $with = 'copy_data = false, enabled = false';
	$with .= ", $options" if $options && $name eq 'krahodb';
	$pair{subscriber}->safe_psql('postgres',
		"CREATE SUBSCRIPTION s CONNECTION '$conninfo' PUBLICATION p WITH ($with)");
	return \%pair;
}

my $marker = 0;

# Seconds from enabling the subscription until what was done has arrived.
sub drain
{
	my ($pair, $work) = @_;
	my $n = ++$marker;
	$pair->{subscriber}->safe_psql('postgres', 'ALTER SUBSCRIPTION s DISABLE');
	$pair->{subscriber}->poll_query_until('postgres',
		"SELECT count(*) = 0 FROM pg_stat_subscription WHERE subname = 's' AND pid IS NOT NULL");
	$pair->{publisher}->poll_query_until('postgres',
		"SELECT bool_and(NOT active) FROM pg_replication_slots");
	$work->($pair->{publisher});
	$pair->{publisher}->safe_psql('postgres', "INSERT INTO marker VALUES ($n)");
	foreach my $role (qw(publisher subscriber))
	{
		$pair->{$role}->safe_psql('postgres', 'CHECKPOINT');
	}
	my $start = time;
	$pair->{subscriber}->safe_psql('postgres',
		"ALTER SUBSCRIPTION s ENABLE", timeout => 60);
	$pair->{subscriber}->safe_psql('postgres', "CALL wait_for_marker($n)", timeout => 900);
	return time - $start;
}

sub sql { my $query = shift; return sub { $_[0]->safe_psql('postgres', $query) } }

# Each: name, unit of the rate, how many, work.  They build on each other.
my @workloads = (
	[ 'bulk insert', 'rows', $rows,
		sql("INSERT INTO bulk SELECT i, i % 1000, 'row number ' || i, now() FROM generate_series(1, $rows) i") ],
	[ 'bulk update', 'rows', $rows, sql('UPDATE bulk SET a = a + 1') ],
	[ 'bulk delete', 'rows', $rows, sql('DELETE FROM bulk') ],
	[ 'TPC-B backlog', 'transactions', $transactions,
		sub {
			my $node = shift;
			my $each = int($transactions / 2);
			$node->command_ok([ 'pgbench', '-n', '-c', '2', '-j', '2', '-t', $each,
				'-p', $node->port, '-h', $node->host, 'postgres' ], 'pgbench');
		} ]);

sub median { my @s = sort { $a <=> $b } @_; return $s[ @s / 2 ]; }

my $stock = make_pair('stock', install_path => $engine);
my $krahodb = make_pair('krahodb');
is($stock->{publisher}->safe_psql('postgres', "SELECT current_setting('krahodb.version', true)"), '',
	'the stock pair is stock');
isnt($krahodb->{subscriber}->safe_psql('postgres', "SELECT current_setting('krahodb.version', true)"), '',
	'the other is KrahoDB');

my %time;
foreach my $round (1 .. $rounds)
{
	foreach my $workload (@workloads)
	{
		my ($name, undef, undef, $work) = @$workload;
		next if $ENV{BENCH_WORKLOADS} && $name !~ /$ENV{BENCH_WORKLOADS}/;
		foreach my $pair ($round % 2 ? ($stock, $krahodb) : ($krahodb, $stock))
		{
			push @{ $time{$name}{ $pair->{name} } }, drain($pair, $work);
		}
		diag(sprintf('round %d, %s: stock %.2f s, KrahoDB %.2f s', $round, $name,
			$time{$name}{stock}[-1], $time{$name}{krahodb}[-1]));
	}
	foreach my $pair ($stock, $krahodb)
	{
		foreach my $role (qw(publisher subscriber))
		{
			$pair->{$role}->safe_psql('postgres', 'VACUUM');
		}
	}
}

diag($krahodb->{publisher}->safe_psql('postgres', 'SELECT version()'));
diag(sprintf('%-16s %10s %10s %14s  %s', 'workload', 'stock', 'KrahoDB', 'KrahoDB rate', 'stock / KrahoDB (least .. greatest)'));
foreach my $workload (@workloads)
{
	my ($name, $unit, $count) = @$workload;
	next unless $time{$name};
	my @ratios = map { $time{$name}{stock}[$_] / $time{$name}{krahodb}[$_] } 0 .. $rounds - 1;
	my ($s, $k) = (median(@{ $time{$name}{stock} }), median(@{ $time{$name}{krahodb} }));
	my @sorted = sort { $a <=> $b } @ratios;
	diag(sprintf('%-16s %8.2f s %8.2f s %8.0f %s/s  %.2f (%.2f .. %.2f)', $name, $s, $k,
		$count / $k, substr($unit, 0, 4), median(@ratios), $sorted[0], $sorted[-1]));
}

# What was measured must be right.
foreach my $pair ($stock, $krahodb)
{
	foreach my $table (qw(bulk pgbench_accounts pgbench_tellers pgbench_branches pgbench_history))
	{
		my $query = "SELECT count(*), md5(string_agg(t::text, ',' ORDER BY t::text)) FROM $table t";
		is($pair->{subscriber}->safe_psql('postgres', $query),
			$pair->{publisher}->safe_psql('postgres', $query), "$pair->{name}: $table is equal");
	}
}

done_testing();
