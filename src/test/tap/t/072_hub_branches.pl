# The scenario of the original KrahoDB's README: a hub with all accounts, three
# branches with their own ones each, both sides write.
#
# What goes wrong here: a branch's change that the hub has applied comes back to
# it (filter_origins), or to another branch (row filters); a row that is given to
# another branch stays where it was.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $hub = krahodb_node('hub');
my %branch = map { $_ => krahodb_node("branch$_") } 2 .. 4;
my @tables = qw(pgbench_accounts pgbench_branches pgbench_tellers);
my @streams;

# ---- set-up: 5 branches of pgbench, of which 2, 3 and 4 are nodes ------------------

command_ok(
	[ 'pgbench', '-i', '-q', '-s', '5', '-h', $hub->host, '-p', $hub->port, 'postgres' ],
	'pgbench -i -s 5');
foreach my $node (values %branch)
{
	command_ok(
		[ 'pgbench', '-i', '-q', '-I', 'dtp', '-h', $node->host, '-p', $node->port, 'postgres' ],
		$node->name . ': the same tables');
}

# An update that moves a row out of a filter needs the old row's bid.
foreach my $node ($hub, values %branch)
{
	$node->safe_psql('postgres', "ALTER TABLE $_ REPLICA IDENTITY FULL") foreach @tables;
}

foreach my $n (sort keys %branch)
{
	my $node = $branch{$n};
	my $filtered = join(', ', map { "TABLE $_ WHERE (bid = $n)" } @tables);

	$hub->safe_psql('postgres', "CREATE PUBLICATION branch$n FOR $filtered");
	$node->safe_psql('postgres',
		'CREATE PUBLICATION hub FOR TABLE ' . join(', ', @tables));

	# On the branch, changes of the hub get origin id n, and the hub is asked
	# not to send what has its origin 100 + n: the branch's own.  And back.
	$node->safe_psql('postgres',
		sprintf("CREATE SUBSCRIPTION branch%d CONNECTION '%s' PUBLICATION branch%d WITH (replication_origin_id = %d, filter_origins = %d)",
			$n, connstr($hub), $n, $n, 100 + $n));
	$hub->safe_psql('postgres',
		sprintf("CREATE SUBSCRIPTION hub%d CONNECTION '%s' PUBLICATION hub WITH (replication_origin_id = %d, filter_origins = %d, copy_data = false)",
			$n, connstr($node), 100 + $n, $n));
	push @streams, [ $hub, "branch$n" ], [ $node, "hub$n" ];
}
foreach my $n (sort keys %branch)
{
	$branch{$n}->wait_for_subscription_sync($hub, "branch$n");
}
wait_streams(2, @streams);

# The hub's rows of branch n are those of the node, in all three tables.
sub is_same_as_hub
{
	my ($name) = @_;

	foreach my $n (sort keys %branch)
	{
		foreach my $table (@tables)
		{
			my $query = "SELECT count(*), md5(string_agg(t::text, ',' ORDER BY t::text)) FROM $table t";

			is( $branch{$n}->safe_psql('postgres', $query),
				$hub->safe_psql('postgres', "$query WHERE bid = $n"),
				"$name: $table of branch $n");
		}
	}
	return;
}

is($branch{2}->safe_psql('postgres', 'SELECT count(*), min(bid), max(bid) FROM pgbench_accounts'),
	'100000|2|2', 'a branch has its own accounts');
is_same_as_hub('copied');

# ---- both ways ------------------------------------------------------------------------

# account 100001 is the first of branch 2, and so on
$hub->safe_psql('postgres', 'UPDATE pgbench_accounts SET abalance = 500 WHERE aid IN (100001, 200001, 300001, 400001)');
$branch{2}->safe_psql('postgres', 'UPDATE pgbench_accounts SET abalance = 700 WHERE aid = 100002');
$branch{3}->safe_psql('postgres', "INSERT INTO pgbench_accounts VALUES (1000003, 3, 3, 'new in branch 3')");
$branch{4}->safe_psql('postgres', 'DELETE FROM pgbench_accounts WHERE aid = 300002');
$hub->safe_psql('postgres', "INSERT INTO pgbench_accounts VALUES (1000002, 2, 2, 'new in the hub')");
$hub->safe_psql('postgres', 'DELETE FROM pgbench_accounts WHERE aid = 200002');
wait_streams(2, @streams);
is( $hub->safe_psql('postgres',
		'SELECT aid, abalance FROM pgbench_accounts WHERE aid IN (100001, 100002, 200002, 300002, 1000002, 1000003) ORDER BY aid'),
	"100001|500\n100002|700\n1000002|2\n1000003|3",
	'the hub has the changes of the branches');
is_same_as_hub('changed on both sides');

# ---- everybody works --------------------------------------------------------------------

my @writers;
foreach my $n (sort keys %branch)
{
	my $script = $branch{$n}->basedir . '/tpcb.sql';
	my $first = ($n - 1) * 100000;

	append_to_file(
		$script, qq{
\\set aid $first + random(10, 100000)
\\set tid ($n - 1) * 10 + random(1, 10)
\\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = $n;
END;
});
	my ($out, $err) = ('', '');
	push @writers,
	  IPC::Run::start(
		[
			'pgbench', '-n', '-t', '200', '-f', $script, '-h',
			$branch{$n}->host, '-p', $branch{$n}->port, 'postgres'
		],
		'>', \$out, '2>', \$err);
}
$hub->safe_psql('postgres', "UPDATE pgbench_accounts SET filler = 'hub' WHERE aid % 1000 = 1");
ok($_->finish, 'writes on a branch') foreach @writers;
wait_streams(2, @streams);
is_same_as_hub('concurrent writes');

# ---- rows in and out -----------------------------------------------------------------------

# The hub gives an account to another branch: it leaves the one and comes to the other.
$hub->safe_psql('postgres', 'UPDATE pgbench_accounts SET bid = 3 WHERE aid = 100005');
$hub->safe_psql('postgres', 'UPDATE pgbench_accounts SET bid = 1 WHERE aid = 200005');
$hub->safe_psql('postgres', 'UPDATE pgbench_accounts SET bid = 4 WHERE aid = 5');
wait_streams(2, @streams);
is($branch{2}->safe_psql('postgres', 'SELECT count(*) FROM pgbench_accounts WHERE aid = 100005'),
	'0', 'the account left branch 2');
is($branch{3}->safe_psql('postgres', 'SELECT bid FROM pgbench_accounts WHERE aid = 100005'),
	'3', 'and came to branch 3');
is($branch{3}->safe_psql('postgres', 'SELECT count(*) FROM pgbench_accounts WHERE aid = 200005'),
	'0', 'an account left for a branch without node');
is($branch{4}->safe_psql('postgres', 'SELECT bid FROM pgbench_accounts WHERE aid = 5'),
	'4', 'an account came from a branch without node');
is($hub->safe_psql('postgres', 'SELECT bid FROM pgbench_accounts WHERE aid IN (5, 100005, 200005) ORDER BY aid'),
	"4\n3\n1", 'the hub still has them');
is_same_as_hub('moved rows');

# ---- nothing loops --------------------------------------------------------------------------

# Every stream is idle now: what it would bring is not marked as already known,
# or it would go round for ever and the insert position would move.
my @before = map { $_->safe_psql('postgres', 'SELECT txid_current_if_assigned() IS NULL, pg_snapshot_xmax(pg_current_snapshot())') } $hub, values %branch;
wait_streams(2, @streams);
my @after = map { $_->safe_psql('postgres', 'SELECT txid_current_if_assigned() IS NULL, pg_snapshot_xmax(pg_current_snapshot())') } $hub, values %branch;
is_deeply(\@after, \@before, 'no node writes any more');

$_->stop foreach $hub, values %branch;
done_testing();
