# What goes wrong here: several databases of one server, each with subscriptions of its own.
# What one of them has applied of a node is taken for seen by the writers of another one,
# which has never heard of that node; or what one has seen ahead of a stream is forgotten because the
# other one's has passed it.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $server = krahodb_node('server');
my $node = krahodb_node('node', conf => 'log_min_messages = debug2');

foreach ([ $server, 'one' ], [ $server, 'two' ], [ $node, 'writer' ], [ $node, 'reader' ])
{
	my ($on, $database) = @$_;
	$on->safe_psql('postgres', "CREATE DATABASE $database");
	$on->safe_psql($database, 'CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t');
}

sub subscribe
{
	my ($on, $database, $name, $from, $of) = @_;

	$on->safe_psql($database, sprintf(
			"CREATE SUBSCRIPTION %s CONNECTION '%s' PUBLICATION p WITH (origin = none, copy_data = false)", $name, connstr($from, $of)));
	return;
}

# What the publisher of subscription "reads" says that it has seen of the writer.
my $writer = (split m{/}, $node->safe_psql('writer', 'SHOW krahodb.node'))[0];

sub seen
{
	my ($from, $id) = @_;
	my $offset = -s $node->logfile;

	subscribe($node, 'reader', 'reads', $server, $from);
	$server->safe_psql($from, "INSERT INTO t VALUES ($id)");
	$node->poll_query_until('reader', "SELECT count(*) = 1 FROM t WHERE id = $id") or die;
	$node->safe_psql('reader', 'DROP SUBSCRIPTION reads');
	return scalar(() = slurp_file($node->logfile, $offset) =~ /publisher has seen of node $writer surely [1-9A-F0]+\/[1-9A-F]/g);
}

subscribe($server, 'one', 'feeds', $node, 'writer');
$node->safe_psql('writer', 'INSERT INTO t VALUES (1)');
$server->poll_query_until('one', 'SELECT count(*) = 1 FROM t') or die;

# a walsender that has just begun may know of nothing for sure yet
my $told = 0;
foreach my $id (10 .. 19)
{
	$told = seen('one', $id);
	last if $told;
}
is($told, 1, 'a database tells what it has applied');
is(seen('two', 20), 0, 'and not what another one has');
$server->restart;
$server->poll_query_until('one', "SELECT count(*) = 1 FROM pg_stat_subscription WHERE pid IS NOT NULL") or die;
is(seen('two', 21), 0, 'also after a restart');

# ---- ahead of the stream -----------------------------------------------------------------------

# Two, too, gets a row of the writer, and drops its subscription: what it has seen is noted.
subscribe($server, 'two', 'feeds_two', $node, 'writer');
$node->safe_psql('writer', 'INSERT INTO t VALUES (2)');
$server->poll_query_until('two', 'SELECT count(*) = 1 FROM t WHERE id = 2') or die;
$server->safe_psql('two', 'DROP SUBSCRIPTION feeds_two');

# One goes on, and notes something else.
$node->safe_psql('writer', 'INSERT INTO t VALUES (3)');
$server->poll_query_until('one', 'SELECT count(*) = 1 FROM t WHERE id = 3') or die;
subscribe($server, 'one', 'feeds_too', $node, 'reader');
$node->safe_psql('reader', 'INSERT INTO t VALUES (4)');
$server->poll_query_until('one', 'SELECT count(*) = 1 FROM t WHERE id = 4') or die;
$server->safe_psql('one', 'DROP SUBSCRIPTION feeds_too');

my $offset = -s $node->logfile;
subscribe($node, 'reader', 'reads', $server, 'two');
$server->safe_psql('two', 'INSERT INTO t VALUES (30)');
$node->poll_query_until('reader', 'SELECT count(*) = 1 FROM t WHERE id = 30') or die;
my $said = qr/publisher has seen of node $writer surely 0\/0 and maybe [1-9A-F0]+\/[1-9A-F]/;
like(slurp_file($node->logfile, $offset), $said, 'a database that has rows of a node says so, whatever others have applied');

# With a database its notes go.
my $notes = sub { return -s $server->data_dir . '/krahodb/seen_ahead'; };
$node->safe_psql('reader', 'DROP SUBSCRIPTION reads');
my $before = $notes->();
$server->safe_psql('postgres', 'DROP DATABASE two');
subscribe($server, 'one', 'feeds_too', $node, 'reader');
$node->safe_psql('reader', 'INSERT INTO t VALUES (5)');
$server->poll_query_until('one', 'SELECT count(*) = 1 FROM t WHERE id = 5') or die;
$server->safe_psql('one', 'DROP SUBSCRIPTION feeds_too');
cmp_ok($notes->(), '<', $before, 'a database that is dropped is forgotten');

$node->stop;
$server->stop;
done_testing();
