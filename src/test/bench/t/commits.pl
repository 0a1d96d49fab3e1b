#
# What a node's own transactions pay: the stock engine, a server with KrahoDB loaded,
# and a node of a mesh in which the last update wins (the clock rule, with the extension).
# CPU time of the sessions by transaction, and how many there are in a second.
#
# An insert is what the commit costs; the walsender of the mesh stands still meanwhile, as
# sending is not the session's work.  An update also pays for the dead versions that the
# retention horizon keeps: rows move to other pages instead of staying on theirs.  The
# horizon follows the stream, so that goes on then, and takes its part of a small machine.
#
# Environment: BENCH_TRANSACTIONS (60000), and that of KrahoDB::Bench.
#
use strict;
use warnings;

use KrahoDB::Bench;
use PostgreSQL::Test::Utils;
use Test::More;

my $transactions = setting('TRANSACTIONS', 60_000);
my $rows = 100_000;

sub schema
{
	$_[0]->safe_psql('postgres', 'CREATE TABLE own (id int PRIMARY KEY, n int)');
}

contender(name => 'stock', schema => \&schema, subscription => 0);
contender(name => 'loaded', kind => 'krahodb', schema => \&schema, subscription => 0);
contender(name => 'mesh', kind => 'krahodb', schema => \&schema, options => 'origin = none',
	mesh => 1, extension => 1);

my %scripts = (
	update => "\\set id random(1, $rows)\nUPDATE own SET n = n + 1 WHERE id = :id;\n",
	insert => "INSERT INTO own SELECT max(id) + 1, 0 FROM own ON CONFLICT DO NOTHING;\n");
append_to_file("$PostgreSQL::Test::Utils::tmp_check/$_.sql", $scripts{$_}) foreach keys %scripts;
foreach my $c (contenders())
{
	$c->{publisher}->safe_psql('postgres', "INSERT INTO own SELECT i, 0 FROM generate_series(1, $rows) i; VACUUM own");
	wait_for_marker($c, set_marker($c)) if $c->{mesh};
}

# CPU seconds of the server's sessions that have ended.
sub session_seconds
{
	my ($node) = @_;

	$node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'client backend'})
	  or die 'sessions do not end';
	my ($pid) = slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/;
	my ($rest) = slurp_file("/proc/$pid/stat") =~ /\) (.*)/;
	my @fields = split ' ', $rest;
	return ($fields[13] + $fields[14]) / 100;
}

my %rate;

# Microseconds by transaction.
sub cost
{
	my ($c, $script) = @_;
	my $node = $c->{publisher};
	my $file = "$PostgreSQL::Test::Utils::tmp_check/$script.sql";
	my $hold = $c->{mesh} && $script eq 'insert';

	hold_walsender($c) if $hold;
	my $before = session_seconds($node);
	my $out = run_pgbench($node, qw(-n -M prepared -c 2 -j 1 -f), $file, '-t', int($transactions / 2));
	my $seconds = session_seconds($node) - $before;
	release_walsender($c) if $hold;
	($rate{ $c->{name} }) = $out =~ /^tps = ([0-9.]+)/m;
	wait_for_marker($c, set_marker($c)) if $c->{mesh};
	return $seconds / $transactions * 1_000_000;
}

rounds(
	sub {
		my ($round) = @_;
		foreach my $script (sort keys %scripts)
		{
			in_turns($round, "CPU time of one $script", 'us', 'less', sub { cost($_[0], $script) });
			in_turns($round, "${script}s", '/s', 'more', sub { $rate{ $_[0]{name} } });
		}
		$_->{publisher}->safe_psql('postgres', 'VACUUM own') foreach contenders();
	});
bench_report();
done_testing();
