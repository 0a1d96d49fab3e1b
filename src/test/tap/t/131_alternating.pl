# What goes wrong here: one row is edited on one node after the other, each time by
# somebody who has seen the edit before.  Nobody contradicts anybody, so nothing may
# be reported as a conflict; but an edit by somebody who had not seen the one before
# must be.

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::PausedMesh;
use PostgreSQL::Test::Utils;
use Test::More;

my $mesh = KrahoDB::PausedMesh->new(
	names => [qw(n1 n2 n3)],
	schema => q{
		CREATE TABLE item (id int PRIMARY KEY, v text);
		CREATE PUBLICATION item FOR TABLE item;
	},
	publications => 'item',
	options => 'two_phase = true');
my @nodes = $mesh->nodes;
my @streams = $mesh->streams;

my $all = "SELECT count(*), md5(string_agg(item::text, ',' ORDER BY id)) FROM item";

sub conflicts
{
	my $lines = 0;
	$lines += () = slurp_file($_->logfile) =~ /conflict detected on relation/g foreach @nodes;
	return $lines;
}

# Each round: one node writes, all wait until it is everywhere.
sub round
{
	my ($node, $sql) = @_;
	$node->safe_psql('postgres', $sql);
	foreach my $stream (grep { $_->[0] == $node } @streams)
	{
		$node->wait_for_catchup($stream->[1], 'replay', $node->lsn('insert'));
	}
	return;
}

round($nodes[0], "INSERT INTO item SELECT g, 'start' FROM generate_series(1, 10) g");
foreach my $i (1 .. 12)
{
	my $node = $nodes[$i % 3];
	round($node, "UPDATE item SET v = 'edit $i' WHERE id = 1");
}
is(conflicts(), 0, 'edits on one node after the other are no conflicts');
is_equal_on(\@nodes, $all, 'after the edits');

# In subtransactions, in prepared transactions, by several rows, with deletes.
foreach my $i (1 .. 6)
{
	my $node = $nodes[$i % 3];
	round($node, "BEGIN; SAVEPOINT a; UPDATE item SET v = 'sub $i' WHERE id = 2; RELEASE a;
		SAVEPOINT b; UPDATE item SET v = 'sub $i' WHERE id = 3; RELEASE b; COMMIT;");
	round($node, "BEGIN; UPDATE item SET v = 'prepared $i' WHERE id IN (4, 5); PREPARE TRANSACTION 'p$i';
		COMMIT PREPARED 'p$i';");
	round($nodes[ ($i + 1) % 3 ], "DELETE FROM item WHERE id = 6");
	round($nodes[ ($i + 2) % 3 ], "INSERT INTO item VALUES (6, 'again $i')");
}
is(conflicts(), 0, 'nor are those in subtransactions, in prepared ones, nor deletes');
is_equal_on(\@nodes, $all, 'after those');

# Other work goes on meanwhile.
my $script = $nodes[0]->basedir . '/noise.sql';
append_to_file($script, q{
\set id random(1000, 100000)
INSERT INTO item VALUES (:id, :client_id) ON CONFLICT DO NOTHING;
});
{
	my ($out, $err) = ('', '');
	my $noise = IPC::Run::start(
		[ 'pgbench', '-n', '-c', '2', '-t', '3000', '-f', $script, '-h', $nodes[0]->host,
			'-p', $nodes[0]->port, 'postgres' ],
		'>', \$out, '2>', \$err);
	foreach my $i (1 .. 9)
	{
		round($nodes[$i % 3], "UPDATE item SET v = 'busy $i' WHERE id = 7");
	}
	ok($noise->finish, 'other writes');
}
is(conflicts(), 0, 'nor are edits while others write');
round($nodes[0], "UPDATE item SET v = 'quiet' WHERE id = 8");

# A row that many transactions have left behind.
round($nodes[0], "UPDATE item SET v = 'old' WHERE id = 10");
round($nodes[1], "UPDATE item SET v = 'old' WHERE id = 3");
append_to_file("$script.burn", 'SELECT txid_current();');
$nodes[0]->command_ok(
	[ 'pgbench', '-n', '-c', '4', '-t', '9000', '-f', "$script.burn", '-h', $nodes[0]->host,
		'-p', $nodes[0]->port, 'postgres' ],
	'many transactions');
round($nodes[0], "INSERT INTO item VALUES (11, 'another')");
round($nodes[1], "UPDATE item SET v = 'after many' WHERE id = 10");
round($nodes[2], "UPDATE item SET v = 'after many' WHERE id = 3");
is(conflicts(), 0, 'nor are those of rows that were left alone for long');

# A walsender that was restarted knows little until it has read something; what it
# does not know is a conflict, and is resolved like one: nothing may differ.
foreach my $node (@nodes)
{
	$node->restart;
}
foreach my $i (1 .. 6)
{
	round($nodes[$i % 3], "UPDATE item SET v = 'restarted $i' WHERE id = 8");
}
is_equal_on(\@nodes, $all, 'after restarts');
my $before = conflicts();
foreach my $i (1 .. 6)
{
	round($nodes[$i % 3], "UPDATE item SET v = 'and again $i' WHERE id = 8");
}
is(conflicts(), $before, 'after restarts edits are no conflicts again');

# An edit by somebody who has not seen the other one is a conflict.
{
	my ($node, $other) = @nodes;
	$node->safe_psql('postgres', 'ALTER SUBSCRIPTION n1_n2 DISABLE');
	$node->poll_query_until('postgres',
		"SELECT count(*) = 0 FROM pg_stat_subscription WHERE subname = 'n1_n2' AND pid IS NOT NULL")
	  or die 'timed out waiting for the worker to stop';
	$other->safe_psql('postgres', "UPDATE item SET v = 'unseen' WHERE id = 9");
	$other->wait_for_catchup('n3_n2', 'replay', $other->lsn('insert'));
	round($node, "UPDATE item SET v = 'blind' WHERE id = 9");
	$node->safe_psql('postgres', 'ALTER SUBSCRIPTION n1_n2 ENABLE');
	wait_streams(1, @streams);
	cmp_ok(conflicts() - $before, '>=', 3, 'an edit of what was not seen is a conflict on each node');
	is_equal_on(\@nodes, $all, 'after it');
	is($node->safe_psql('postgres', 'SELECT v FROM item WHERE id = 9'), 'blind', 'the later one has won');
}

$_->stop foreach @nodes;
done_testing();
