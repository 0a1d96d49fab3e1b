#
# What convergence costs where there are no conflicts: a mesh of two nodes with the
# extension, origin = none and so last_update_wins, beside the same mesh without rules
# (apply_remote, no extension: what is applied first is overwritten), and beside a
# subscription in one direction, which shows what the way back costs by itself.  Large
# transactions, a backlog of small ones, a table with more unique keys; and what a node's
# own transactions pay for being in a mesh.
#
# Environment: BENCH_ROWS (300000), BENCH_TRANSACTIONS (30000), BENCH_SECONDS (5),
# BENCH_STATEMENTS (a pattern: those of the large transactions, and nothing else), and that
# of KrahoDB::Bench.
#
use strict;
use warnings;

use KrahoDB::Bench;
use Test::More;
use Time::HiRes qw(usleep);

my $rows = setting('ROWS', 300_000);
my $transactions = setting('TRANSACTIONS', 30_000);
my $seconds = setting('SECONDS', 5);

# Rows come by the stream, since what each side has made by itself is a conflict.
sub schema
{
	my ($node) = @_;
	run_pgbench($node, qw(-i -q -s 10 -I dtp));
	$node->safe_psql('postgres', <<'EOS');
CREATE TABLE bulk (id bigint PRIMARY KEY, a int, b text, c timestamptz);
CREATE TABLE keys (id bigint PRIMARY KEY, a int, b text UNIQUE, c bigint UNIQUE);
CREATE TABLE own (id int PRIMARY KEY, n int);
EOS
}

# Keys are new in each round: one that comes back after its deletion is looked at.
my @statements = (
	[ 'insert', "INSERT INTO bulk SELECT i, i % 1000, 'row number ' || i, now() FROM generate_series(FIRST, LAST) i" ],
	[ 'update', 'UPDATE bulk SET a = a + 1' ],
	[ 'delete', 'DELETE FROM bulk' ],
	[ 'insert, 3 keys', "INSERT INTO keys SELECT i, i % 1000, 'row number ' || i, i FROM generate_series(FIRST, LAST) i" ],
	[ 'update, 3 keys', 'UPDATE keys SET a = a + 1' ],
	[ 'delete, 3 keys', 'DELETE FROM keys' ]);

my %contenders = (
	unruled => { options => 'origin = none, conflict_resolution = apply_remote', mesh => 1 },
	converging => { options => 'origin = none', mesh => 1, extension => 1 },
	plain => {});
contender(name => $_, kind => 'krahodb', schema => \&schema, %{ $contenders{$_} })
  foreach split ' ', setting('CONTENDERS', 'unruled converging plain');
foreach my $c (KrahoDB::Bench::contenders())
{
	run_pgbench($c->{publisher}, qw(-i -q -s 10 -I g));
	$c->{publisher}->safe_psql('postgres', 'INSERT INTO own SELECT i, 0 FROM generate_series(1, 100000) i');
}
check_equal(qw(pgbench_accounts own));

my $wanted = setting('STATEMENTS', '');
my $own = 'own transactions of a node';

# CPU seconds of the sessions of a server that have ended; once all have.
sub ended_sessions
{
	my ($node) = @_;
	my ($pid) = PostgreSQL::Test::Utils::slurp_file($node->data_dir . '/postmaster.pid') =~ /^([0-9]+)/;
	my $sessions = "pgrep -P $pid -f '^postgres: [^ ]+ [^ ]+ .local. (idle|UPDATE|COMMIT)'";

	my $looks = 1000;
	usleep(10_000) while qx($sessions) ne '' && $looks-- > 0;
	die 'sessions do not end' if $looks < 0;
	my ($rest) = PostgreSQL::Test::Utils::slurp_file("/proc/$pid/stat") =~ /\) (.*)/;
	my @fields = split ' ', $rest;

	return ($fields[13] + $fields[14]) / 100;
}

# Transactions per second of a node's own clients, and what one costs their sessions,
# which are alone in having ended meanwhile.
sub own_rate
{
	my ($c) = @_;
	my $script = "$PostgreSQL::Test::Utils::tmp_check/own.sql";
	my $before = ended_sessions($c->{subscriber});

	PostgreSQL::Test::Utils::append_to_file($script,
		"\\set id random(1, 100000)\nUPDATE own SET n = n + 1 WHERE id = :id;\n")
	  unless -e $script;
	my ($done, $rate) = run_pgbench($c->{subscriber}, qw(-n -c 2 -j 2 -f), $script, '-T', $seconds) =~
	  /actually processed: ([0-9]+).*tps = ([0-9.]+)/s
	  or die "no rate";
	$c->{own_cpu} = 1e6 * (ended_sessions($c->{subscriber}) - $before) / $done;
	return $rate;
}

# The backlog of small transactions, and those of a node itself.
sub small_transactions
{
	my ($round) = @_;

	in_turns($round, "backlog of $transactions TPC-B", 's', 'less',
		sub {
			drain($_[0],
				sub {
					run_pgbench($_[0]{publisher}, qw(-n -c 2 -j 2 -t), int($transactions / 2),
						"--random-seed=$round");
				});
		});
	in_turns($round, $own, '/s', 'more', \&own_rate);
	note_figure('  CPU time of one', 'us', 'less', $_->{name}, $_->{own_cpu}, $own)
	  foreach KrahoDB::Bench::contenders();
	return;
}

rounds(
	sub {
		my ($round) = @_;
		foreach my $statement (grep { $_->[0] =~ ($wanted || '.') } @statements)
		{
			my ($name, $query) = @$statement;
			my ($first, $last) = ($round * 10 * $rows, $round * 10 * $rows + $rows - 1);
			$query =~ s/FIRST, LAST/$first, $last/;
			in_turns($round, "$rows x $name", 's', 'less', sub { drain($_[0], sql($query)) });
		}
		small_transactions($round) unless $wanted;
		vacuum_all();
	});
check_equal(qw(bulk keys pgbench_accounts pgbench_tellers pgbench_branches pgbench_history));
bench_report();
done_testing();
