# What goes wrong here: several databases of one server, each with subscriptions of its own.
# What one of them has applied of a node is taken for seen by the writers of another one,
# which has never heard of that node.

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

$node->stop;
$server->stop;
done_testing();
