# KrahoDB::RandomVerdict: are all nodes equal, is nothing left, and what is in their logs.

package KrahoDB::RandomVerdict;

use strict;
use warnings;

use Exporter 'import';
use KrahoDB::Nodes;
use KrahoDB::RandomTables;
use KrahoDB::RandomWrites;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(compare check_indexes check_memory check_collected check_gone check_logs);

my $shown = 8;			# rows that differ
my $memory_limit = 100_000;	# kB of a worker

# Each table is the same on all members.
sub compare
{
	my ($mesh, $what) = @_;
	my ($first, @others) = $mesh->members;

	foreach my $query ((map { 'SELECT ' . row_text($_) } $mesh->tables), (map { "SELECT t::text FROM $_ t" } other_compared(), map { "child_$_->{number}" } grep { $_->{child} } $mesh->tables))
	{
		my %rows = map { $_ => join "\n", sort split /\n/, $mesh->node($_)->safe_psql('postgres', $query) } $first, @others;

		show_difference("$what: $query", $mesh, \%rows, $first, $_) foreach grep { $rows{$_} ne $rows{$first} } @others;
	}
	return;
}

sub show_difference
{
	my ($what, $mesh, $rows, @nodes) = @_;
	my %has = map { my $n = $_; $n => { map { $_ => 1 } split /\n/, $rows->{$n} } } @nodes;

	$mesh->bad("n$nodes[0] and n$nodes[1] DIFFER, $what");
	foreach my $pair ([ @nodes ], [ reverse @nodes ])
	{
		my ($n, $other) = @$pair;
		my @only = grep { !$has{$other}{$_} } sort keys %{ $has{$n} };

		diag("  only on n$n: $_") foreach @only > $shown ? @only[ 0 .. $shown - 1 ] : @only;
	}
	return;
}

# Indexes have what their tables have, and are as unique as they say.
sub check_indexes
{
	my ($mesh) = @_;

	foreach my $n ($mesh->all)
	{
		$mesh->must($n, q{SELECT count(bt_index_check(c.oid, true)) FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid JOIN pg_am a ON a.oid = c.relam
				WHERE a.amname = 'btree' AND c.relkind = 'i' AND c.relnamespace IN ('public'::regnamespace, (SELECT oid FROM pg_namespace WHERE nspname ~ '^Odd')) AND i.indisvalid},
			map { 'REINDEX TABLE ' . full_name($_) } $mesh->tables);
		my $broken = $mesh->ask($n, q{SELECT string_agg(c.oid::regclass::text || ' ' || v::text, E'\n') FROM pg_class c CROSS JOIN LATERAL verify_heapam(c.oid) v
				WHERE c.relkind IN ('r', 't', 'm') AND c.relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)});
		$mesh->bad("n$n: $broken") if $broken ne '';
	}
	return;
}

# No worker has grown.
sub check_memory
{
	my ($mesh) = @_;
	my @sizes;

	foreach my $n ($mesh->all)
	{
		foreach my $line (split /\n/, $mesh->ask($n, q{SELECT pid || ' ' || backend_type || ' ' || application_name FROM pg_stat_activity WHERE backend_type ~ 'logical|walsender|horizon'}))
		{
			my ($pid, $type) = split / /, $line, 2;
			my ($size) = (eval { slurp_file("/proc/$pid/status") } // '') =~ /RssAnon:\s*(\d+)/ or next;

			push @sizes, int $size / 1024;
			$mesh->bad("n$n: $type $pid has $size kB") if $size > $memory_limit;
		}
	}
	diag('memory of workers, MB: ' . join ' ', sort { $b <=> $a } @sizes);
	return;
}

# What was kept for conflicts goes.
sub check_collected
{
	my ($mesh, $wait) = @_;
	my $records = 'SELECT ' . join(' + ', map { "(SELECT count(*) FROM krahodb.version_records_$_)" } 1 .. 4);

	foreach my $n ($mesh->members)
	{
		eval { wait_horizon($mesh->node($n)); 1 } or $mesh->bad("the horizon of n$n: $@");
	}
	diag('version records: ' . join ' ', map { $mesh->ask($_, $records) } $mesh->members);
	return if !$wait;
	foreach my $n ($mesh->members)
	{
		$mesh->wait_for($n, "$records = 0", 'no version records') or diag("n$n has " . $mesh->ask($n, $records));
	}
	return;
}

# Without subscriptions, nothing is left of them.
sub check_gone
{
	my ($mesh) = @_;

	foreach my $link ($mesh->links)
	{
		$mesh->must($link->[0], 'DROP SUBSCRIPTION ' . $mesh->name_of($link));
	}
	foreach my $n ($mesh->all)
	{
		my $node = $mesh->node($n);

		$mesh->wait_for($n, 'SELECT count(*) = 0 FROM pg_replication_slots', 'no slots');
		$mesh->wait_for($n, 'SELECT count(*) = 0 FROM pg_replication_origin', 'no origins');
		$mesh->wait_for($n, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type ~ 'logical replication (worker|lane)|walsender|copy' OR backend_type = 'client backend' AND pid <> pg_backend_pid()}, 'no processes');
		$mesh->wait_for($n, 'SELECT count(*) = 0 FROM pg_prepared_xacts', 'no prepared transactions');
		my @files = map { glob $node->data_dir . "/$_" } 'base/pgsql_tmp/*', 'pg_replslot/*';
		$mesh->bad("n$n: files are left: @files") if @files;
		diag("n$n: state files: " . join ' ', map { s{.*/}{}r . ' ' . -s $_ } grep { -f } glob $node->data_dir . '/krahodb/*') if -d $node->data_dir . '/krahodb';
	}
	return;
}

# ---- logs ----------------------------------------------------------------------------------------

# What clients may be told of.
my $usual_state = qr/^(00000|23505|23P01|23502|23503|40001|40P01|55P03|57014|57P01|57P02|57P03|25P02|22003|42704|3B001|08006|08P01|21000|55006|55000|53300|23514)$/;

sub check_logs
{
	my ($mesh) = @_;
	my $usual = qr/terminating|starting up|shutting down|could not receive data from WAL stream|could not connect|not yet accepting|recovery mode|connection to server|server closed|reached the end|disable|terminated|crash of another|deadlock detected|canceling/;

	foreach my $n ($mesh->all)
	{
		my %seen;

		foreach my $line (split /\n/, slurp_file($mesh->node($n)->logfile))
		{
			$mesh->bad("n$n: $line") if $line =~ /TRAP:|PANIC:|terminated by signal (?!9:|3:)\d+/;
			my ($process, $state, $level, $text) = $line =~ /^\S+ \S+ \S+ \[\d+\] (.*?) (\w{5}) \d+ (\w+): +(.*)/ or next;

			next if $level !~ /^(ERROR|FATAL|WARNING|PANIC)$/ || $text =~ $usual;
			next if $process eq 'client backend' && $state =~ $usual_state;

			# The slot that holds back VACUUM is older after a crash, so VACUUM FULL takes rows whose large values
			# are gone for such that somebody may still see.
			next if $process eq 'client backend' && $text =~ /chunk number \d+ .*for toast value/;
			$text =~ s/\d+/N/g;
			$seen{ substr "$process $state $level: $text", 0, 230 }++;
			$mesh->bad("n$n: $line") if $state eq 'XX000' || $state eq 'XX001' || $state eq 'XX002';
		}
		diag("n$n: $seen{$_} x $_") foreach sort keys %seen;
	}
	return;
}

1;
