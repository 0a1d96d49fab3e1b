# What goes wrong here: two nodes take writes for the same rows at the same time.
# Each conflict must end the same way on both, whichever node it is seen on, and
# no change may go round in circles.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my @nodes = map { krahodb_node($_) } qw(east west);
my ($east, $west) = @nodes;

foreach my $node (@nodes)
{
	$node->safe_psql(
		'postgres', q{
		CREATE TABLE item (id int PRIMARY KEY, v text, n int NOT NULL DEFAULT 0);
		CREATE PUBLICATION item FOR TABLE item;
	});
}
# few rows: a page that fills up is pruned, and with it goes what is known of
# deleted rows
$east->safe_psql('postgres',
	"INSERT INTO item SELECT g, 'start' FROM generate_series(1, 40) g");

sub subscribe
{
	my ($node, $from, $copy) = @_;

	$node->safe_psql('postgres',
		sprintf("CREATE SUBSCRIPTION %s CONNECTION '%s' PUBLICATION item WITH (origin = none, copy_data = %s)",
			$node->name . '_from_' . $from->name,
			connstr($from), $copy));
	return;
}
subscribe($east, $west, 'false');
subscribe($west, $east, 'true');
$west->wait_for_subscription_sync($east, 'west_from_east');
$east->wait_for_subscription_sync($west, 'east_from_west');
my @streams = ([ $east, 'west_from_east' ], [ $west, 'east_from_west' ]);
my $all = "SELECT count(*), md5(string_agg(item::text, ',' ORDER BY id)) FROM item";
is_equal_on(\@nodes, $all, 'copied');

# ---- each way ------------------------------------------------------------------

$east->safe_psql('postgres', "INSERT INTO item VALUES (101, 'east')");
$west->safe_psql('postgres', "INSERT INTO item VALUES (201, 'west')");
$west->safe_psql('postgres', "UPDATE item SET v = 'changed in the west' WHERE id = 1");
$east->safe_psql('postgres', "DELETE FROM item WHERE id = 2");
wait_streams(2, @streams);
is_equal_on(\@nodes, $all, 'writes on both');
is( $east->safe_psql('postgres', 'SELECT v FROM item WHERE id IN (1, 2, 201) ORDER BY id'),
	"changed in the west\nwest",
	'writes went each way');

# ---- conflicts, one at a time ----------------------------------------------------

# The streams are held up until both sides have written: the order is known, the
# later write is to win.
sub conflict
{
	my ($name, $first, $second, $query, $expected) = @_;

	foreach my $node (@nodes)
	{
		$node->safe_psql('postgres', "ALTER SUBSCRIPTION $_ DISABLE")
		  for grep { /^\Q@{[$node->name]}\E_/ } map { $_->[1] } @streams;
		$node->poll_query_until('postgres',
			"SELECT count(*) = 0 FROM pg_stat_subscription WHERE pid IS NOT NULL")
		  or die 'timed out waiting for the worker to stop';
	}
	$first->[0]->safe_psql('postgres', $first->[1]);
	$second->[0]->safe_psql('postgres', $second->[1]);
	$east->safe_psql('postgres', 'ALTER SUBSCRIPTION east_from_west ENABLE');
	$west->safe_psql('postgres', 'ALTER SUBSCRIPTION west_from_east ENABLE');
	wait_streams(2, @streams);
	is(is_equal_on(\@nodes, $query, $name), $expected, "$name: result");
	is_equal_on(\@nodes, $all, "$name: all rows");
	return;
}

foreach my $order ([ $east, $west ], [ $west, $east ])
{
	my ($one, $two) = @$order;
	my ($n1, $n2) = map { $_->name } @$order;
	my $id = $one == $east ? 11 : 12;

	conflict(
		"update against update, $n2 later",
		[ $one, "UPDATE item SET v = '$n1' WHERE id = $id" ],
		[ $two, "UPDATE item SET v = '$n2' WHERE id = $id" ],
		"SELECT v FROM item WHERE id = $id",
		$n2);
	conflict(
		"insert against insert, $n2 later",
		[ $one, "INSERT INTO item VALUES (30$id, '$n1')" ],
		[ $two, "INSERT INTO item VALUES (30$id, '$n2')" ],
		"SELECT v FROM item WHERE id = 30$id",
		$n2);
	conflict(
		"delete against update, $n2 updates later",
		[ $one, "DELETE FROM item WHERE id = $id + 2" ],
		[ $two, "UPDATE item SET v = '$n2' WHERE id = $id + 2" ],
		"SELECT v FROM item WHERE id = $id + 2",
		$n2);
	conflict(
		"update against delete, $n2 deletes later",
		[ $one, "UPDATE item SET v = '$n1' WHERE id = $id + 4" ],
		[ $two, "DELETE FROM item WHERE id = $id + 4" ],
		"SELECT count(*) FROM item WHERE id = $id + 4",
		'0');
	conflict(
		"delete against delete, $n2 later",
		[ $one, "DELETE FROM item WHERE id = $id + 6" ],
		[ $two, "DELETE FROM item WHERE id = $id + 6" ],
		"SELECT count(*) FROM item WHERE id = $id + 6",
		'0');
}
like(slurp_file($east->logfile) . slurp_file($west->logfile),
	qr/conflict detected on relation "public\.item": conflict=$_/,
	"$_ is in the log")
  foreach qw(update_origin_differs insert_exists update_deleted delete_origin_differs);

# ---- many at once ----------------------------------------------------------------

# Updates and inserts that meet; deletes of rows that come back are left to the
# tests of the version records.
my $script = $east->basedir . '/writes.sql';
append_to_file(
	$script, q{
\set id random(3000, 3200)
\set k random(1, 100000)
INSERT INTO item VALUES (:id, :k) ON CONFLICT (id) DO UPDATE SET v = :k, n = item.n + 1;
UPDATE item SET v = :k WHERE id = :id - 1;
});
my @writers;
foreach my $node (@nodes)
{
	my ($out, $err) = ('', '');
	push @writers,
	  IPC::Run::start(
		[
			'pgbench', '-n', '-c', '2', '-t', '500', '-f', $script, '-h',
			$node->host, '-p', $node->port, 'postgres'
		],
		'>', \$out, '2>', \$err);
}
ok($_->finish, 'concurrent writes') foreach @writers;
wait_streams(2, @streams);
is_equal_on(\@nodes, $all, 'after concurrent writes');
is( $east->safe_psql('postgres', 'SELECT sum(apply_error_count) FROM pg_stat_subscription_stats')
	  + $west->safe_psql('postgres', 'SELECT sum(apply_error_count) FROM pg_stat_subscription_stats'),
	0,
	'no conflict stopped replication');

$_->stop foreach @nodes;
done_testing();
