# KrahoDB::Verdict: are all nodes equal, was each acknowledged commit applied once,
# and what happened on the way.

package KrahoDB::Verdict;

use strict;
use warnings;

use Exporter 'import';
use List::Util qw(min uniq);
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(check_tables check_queries check_events check_quiet check_collected log_counts);

my $shown = 10;	# differing rows, wrong events

# Each table has the same rows on all nodes; differences are shown with their versions.
sub check_tables
{
	my ($mesh, @tables) = @_;

	foreach my $table (@tables)
	{
		my $query = "SELECT count(*) || ' rows, ' || coalesce(sum(hashtextextended(t::text, 0)), 0) FROM $table t";
		my ($first, @others) = map { $mesh->insist($_, $query) } $mesh->nodes;
		my $equal = !grep { $_ ne $first } @others;

		ok($equal, "table $table is equal on all nodes ($first)");
		show_differences($mesh, $table) if !$equal;
	}
	return;
}

# Each query says true on each node.
sub check_queries
{
	my ($mesh, @queries) = @_;

	foreach my $node ($mesh->nodes)
	{
		is($mesh->insist($node, $_), 't', 'on ' . $node->name . ": $_") foreach @queries;
	}
	return;
}

# SQL that gives the key of a row "t" of the table, as the log shows it.
sub key_of
{
	my ($mesh, $table) = @_;
	my ($node) = $mesh->nodes;

	return $mesh->insist($node,
		qq{SELECT string_agg('t.' || quote_ident(a.attname), ' || '', '' || ' ORDER BY array_position(i.indkey::int2[], a.attnum))
		   FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
		   WHERE i.indrelid = '$table'::regclass AND i.indisprimary});
}

# By key and node: a hash of the row, and the row with who wrote it when.
sub rows_of
{
	my ($mesh, $table) = @_;
	my $key = key_of($mesh, $table);
	my %rows;

	foreach my $node ($mesh->nodes)
	{
		my $rows = $mesh->insist($node,
			qq{SELECT concat($key) || E'\\t' || md5(t::text) || E'\\t' || left(t::text, 100) || '  xmin ' || t.xmin || ', ' ||
			   coalesce(c.timestamp::text, 'unknown time') || ', origin ' || coalesce(o.roname, c.roident::text, '?')
			   FROM $table t CROSS JOIN LATERAL pg_xact_commit_timestamp_origin(t.xmin) c
			   LEFT JOIN pg_replication_origin o ON o.roident = c.roident});
		foreach my $line (split /\n/, $rows)
		{
			my ($id, $hash, $detail) = split /\t/, $line, 3;
			$rows{$id}{ $node->name } = { hash => $hash, detail => $detail };
		}
	}
	return %rows;
}

sub show_differences
{
	my ($mesh, $table) = @_;
	my %rows = rows_of($mesh, $table);
	my @different = grep {
		my $row = $rows{$_};
		uniq(map { $row->{ $_->name } ? $row->{ $_->name }{hash} : 'none' } $mesh->nodes) > 1
	} sort keys %rows;

	diag(scalar(@different) . " keys of $table differ");
	foreach my $id (@different[ 0 .. min($#different, $shown - 1) ])
	{
		diag("$table ($id):");
		foreach my $node ($mesh->nodes)
		{
			my $row = $rows{$id}{ $node->name };

			diag('  ' . $node->name . ': ' . ($row ? $row->{detail} : 'no row'));
			diag("      $_") foreach conflicts_of($node, $table, $id);
		}
	}
	return;
}

# Last conflict log lines of a key on a node.
sub conflicts_of
{
	my ($node, $table, $id) = @_;
	my @found;
	my $line = '';

	open my $log, '<', $node->logfile or return;
	while (<$log>)
	{
		chomp;
		if (/conflict detected on relation "public\.\Q$table\E[^"]*"/) { $line = $_; }
		elsif ($line ne '' && /DETAIL:/)
		{
			push @found, substr($line, 0, 200) . ' ' . substr($_, index($_, 'DETAIL:'))
			  if /Key \([^)]*\)=\(\Q$id\E\)/;
			$line = '';
		}
	}
	close $log;
	return @found > 5 ? @found[ -5 .. -1 ] : @found;
}

# Events: %$outcome is "node.session.seq" => A, F or U.
sub check_events
{
	my ($mesh, $outcome) = @_;

	foreach my $node ($mesh->nodes)
	{
		my $rows = $mesh->insist($node, 'SELECT node, session, seq, count(*) FROM event GROUP BY 1, 2, 3');
		my (%count, @wrong);

		foreach my $line (split /\n/, $rows)
		{
			my ($writer, $session, $seq, $count) = split /\|/, $line;
			$count{"$writer.$session.$seq"} = $count;
		}
		foreach my $id (sort keys %$outcome)
		{
			my $state = $outcome->{$id};
			my $count = delete $count{$id} // 0;

			push @wrong, "$id is there $count times, state $state"
			  if $state eq 'A' ? $count != 1 : $state eq 'F' ? $count != 0 : $count > 1;
		}
		push @wrong, map { "$_ is there, but nobody wrote it" } sort keys %count;
		ok(!@wrong, 'each acknowledged commit is there once on ' . $node->name . ', no other more than once');
		diag("  $_") foreach @wrong[ 0 .. min($#wrong, $shown - 1) ];
	}
	return;
}

# Nothing fails any more, and nothing is left half done.
sub check_quiet
{
	my ($mesh) = @_;
	my $errors = sub { $mesh->insist($_[0], 'SELECT coalesce(sum(apply_error_count), 0) FROM pg_stat_subscription_stats') };
	my %before = map { $_->name => $errors->($_) } $mesh->nodes;
	my $round = 50;

	ok($mesh->quiesce(2), 'streams go on');
	foreach my $node ($mesh->nodes)
	{
		my $name = $node->name;

		is($errors->($node), $before{$name}, "no worker of $name fails");
		ok(wait_with_traffic($mesh, $node, 'SELECT count(*) = 0 FROM pg_stat_subscription WHERE pid IS NULL', \$round),
			"all workers of $name run");
		is($mesh->insist($node, 'SELECT count(*) FROM pg_prepared_xacts'), 0, "nothing is left prepared on $name");
	}
	return;
}

# Until the query says so on a node, while a row goes to it from everywhere now and then.
sub wait_with_traffic
{
	my ($mesh, $node, $query, $round) = @_;
	my $until = time + $PostgreSQL::Test::Utils::timeout_default;

	while ($mesh->insist($node, $query) ne 't')
	{
		return 0 if time > $until || !$mesh->quiesce(++$$round);
	}
	return 1;
}

# Dead rows of users' tables that VACUUM has to leave.  (The statistics of dead rows
# are reported later.)
sub kept_by_vacuum
{
	my ($mesh, $node) = @_;
	my $tables = $mesh->insist($node,
		"SELECT string_agg(format('%I.%I', schemaname, relname), ', ') FROM pg_stat_user_tables");
	my ($out, $messages) = ('', '');
	my $sum = 0;

	$node->psql('postgres', "VACUUM (VERBOSE) $tables", stdout => \$out, stderr => \$messages) == 0
	  or die "VACUUM failed: $messages";
	$sum += $_ foreach $messages =~ /tuples: .* (\d+) are dead but not yet removable/g;
	return $sum;
}

# The retention horizon passes what has been written, and then dead rows, and in a long
# run version records (which are looked through once in a minute), can go.
sub check_collected
{
	my ($mesh, $long) = @_;
	my $round = 100;

	foreach my $node ($mesh->nodes)
	{
		my $name = $node->name;
		my ($now, $xid) = split /\|/, $mesh->insist($node, 'SELECT clock_timestamp(), pg_current_xact_id()::xid');

		ok(wait_with_traffic($mesh, $node, "SELECT coalesce(max(horizon) > '$now', false) FROM krahodb.horizon", \$round),
			"the retention horizon of $name moves");
		# What holds VACUUM back moves to a transaction that was noted when the horizon was behind it.
		ok(wait_with_traffic($mesh, $node,
				"SELECT age(xmin) <= age(xid '$xid') FROM pg_replication_slots WHERE slot_name = 'krahodb_horizon'", \$round),
			"the horizon's slot on $name moves");
		ok(wait_with_traffic($mesh, $node,
				'SELECT ' . join(' + ', map { "(SELECT count(*) FROM krahodb.version_records_$_)" } 1 .. 4) . ' = 0', \$round),
			"no version records are left on $name") if $long;
		is(kept_by_vacuum($mesh, $node), 0, "no dead rows are left on $name");
	}
	return;
}

# From the logs of all nodes: conflicts by type and resolution, errors by text, and
# crashes that nobody ordered.
sub log_counts
{
	my ($mesh) = @_;
	my (%conflicts, %errors, @crashes);

	foreach my $node ($mesh->nodes)
	{
		open my $log, '<', $node->logfile or next;
		while (<$log>)
		{
			if (/conflict=(\w+), resolution=\w+, ([a-z ]+)/) { $conflicts{"$1: $2"}++; }
			elsif (/TRAP:|PANIC:|terminated by signal (?!9:|3:)\d+/) { push @crashes, $node->name . ": $_"; }
			elsif (/\] (chaos )?.*ERROR:\s+(.*)/)
			{
				my $text = ($1 // '') . $2;
				$text =~ s/\d+/N/g;
				$text =~ s/"[^"]*"/"..."/g;
				$errors{ substr $text, 0, 120 }++;
			}
		}
		close $log;
	}
	return (\%conflicts, \%errors, \@crashes);
}

1;
