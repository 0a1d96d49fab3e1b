# What goes wrong here: three nodes subscribe to each other.  A change must reach
# each node once and not be passed on, conflicts among three writers must end the
# same way everywhere although each node sees them in another order, and a node
# that was down must catch up with both others.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my @nodes = map { krahodb_node($_) } qw(n1 n2 n3);
my @streams;

foreach my $node (@nodes)
{
	$node->safe_psql(
		'postgres', q{
		CREATE TABLE account (id int PRIMARY KEY, owner text, balance int NOT NULL);
		CREATE TABLE event (node text, seq int, at timestamptz DEFAULT now());
		CREATE PUBLICATION mesh FOR TABLE account, event;
	});
}
foreach my $node (@nodes)
{
	foreach my $from (grep { $_ != $node } @nodes)
	{
		my $name = $node->name . '_' . $from->name;

		$node->safe_psql('postgres',
			sprintf("CREATE SUBSCRIPTION %s CONNECTION '%s' PUBLICATION mesh WITH (origin = none, copy_data = false)",
				$name, connstr($from)));
		push @streams, [ $from, $name ];
	}
}

my $accounts = "SELECT count(*), md5(string_agg(account::text, ',' ORDER BY id)) FROM account";
my $events = "SELECT node, count(*), count(DISTINCT seq), sum(seq) FROM event GROUP BY node ORDER BY node";

# ---- from each to each, once -----------------------------------------------------

foreach my $i (0 .. 2)
{
	$nodes[$i]->safe_psql('postgres',
		"INSERT INTO account SELECT g * 3 + $i, 'n', 100 FROM generate_series(0, 99) g;
		 INSERT INTO event SELECT 'n' || $i, g FROM generate_series(1, 50) g");
}
wait_streams(1, @streams);
like(is_equal_on(\@nodes, $accounts, 'accounts of all'), qr/^300\|/,
	'all accounts are there');
is(is_equal_on(\@nodes, $events, 'events of all'),
	"n0|50|50|1275\nn1|50|50|1275\nn2|50|50|1275",
	'each event is there once');

# ---- three writers, one row --------------------------------------------------------

my @writers;
foreach my $node (@nodes)
{
	my $who = $node->name;
	my $script = $node->basedir . '/writes.sql';
	my ($out, $err) = ('', '');

	append_to_file(
		$script, qq{
\\set id random(0, 30)
\\set amount random(-50, 50)
UPDATE account SET balance = balance + :amount, owner = '$who' WHERE id = :id;
INSERT INTO account VALUES (1000 + :id, '$who', :amount) ON CONFLICT (id) DO UPDATE SET balance = EXCLUDED.balance, owner = EXCLUDED.owner;
INSERT INTO event VALUES ('$who', 0);
});
	push @writers,
	  IPC::Run::start(
		[
			'pgbench', '-n', '-c', '2', '-t', '200', '-f', $script,
			'-h', $node->host, '-p', $node->port, 'postgres'
		],
		'>', \$out, '2>', \$err);
}
ok($_->finish, 'concurrent writes') foreach @writers;
wait_streams(1, @streams);
is_equal_on(\@nodes, $accounts, 'accounts after concurrent writes');
is( is_equal_on(
		\@nodes,
		"SELECT node, count(*) FROM event WHERE seq = 0 GROUP BY node ORDER BY node",
		'events of concurrent writes'),
	"n1|400\nn2|400\nn3|400",
	'each event of the concurrent writes is there once');

is( join('',
		map { $_->safe_psql('postgres', 'SELECT sum(apply_error_count) FROM pg_stat_subscription_stats') }
		  @nodes),
	'000',
	'no conflict stopped replication');

# ---- a node that was down ----------------------------------------------------------

$nodes[2]->stop('immediate');
$nodes[0]->safe_psql('postgres', "UPDATE account SET owner = 'first' WHERE id < 60");
$nodes[1]->safe_psql('postgres', "UPDATE account SET owner = 'second' WHERE id BETWEEN 30 AND 90");
$nodes[2]->start;
$nodes[2]->safe_psql('postgres', "UPDATE account SET owner = 'third' WHERE id BETWEEN 50 AND 120");
wait_streams(1, @streams);
is_equal_on(\@nodes, $accounts, 'accounts after a crash');
is( $nodes[1]->safe_psql('postgres', "SELECT owner FROM account WHERE id IN (0, 20, 40, 80, 100) ORDER BY id"),
	"first\nfirst\nsecond\nthird\nthird",
	'the later writes won') or diag('clocks or streams');

$_->stop foreach @nodes;
done_testing();
