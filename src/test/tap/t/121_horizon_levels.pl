# What goes wrong here: all that peers had written has come, but one of them has not
# received what was written here; and that is forgotten too early.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my %nodes = map { $_ => krahodb_node($_) } qw(a b c);
my ($a, $b, $c) = @nodes{qw(a b c)};
my @all = ($a, $b, $c);
my @streams;

sub on { my ($node, $query) = @_; return $node->safe_psql('postgres', $query); }

foreach my $node (@all)
{
	on($node, 'CREATE EXTENSION krahodb');
	on($node, 'CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE, v text)');
	on($node, 'CREATE PUBLICATION p FOR TABLE t');
}
foreach my $node (@all)
{
	foreach my $from (grep { $_ != $node } @all)
	{
		my $name = $node->name . '_from_' . $from->name;
		on($node, sprintf(
				"CREATE SUBSCRIPTION %s CONNECTION '%s' PUBLICATION p WITH (copy_data = false, origin = none)",
				$name, connstr($from)));
		push @streams, [ $from, $name ];
	}
}

# Until the horizon of all nodes has passed this moment.
sub settle
{
	wait_streams(1, @streams);
	wait_horizon($_) foreach @all;
	return;
}

# Until all that peers of a node have written by now is there.  Somebody has to ask for
# that: otherwise no more is measured than the second level waits for.
sub wait_first_level
{
	my ($node) = @_;
	my $now = on($node, 'SELECT clock_timestamp()');

	on($node, 'SHOW krahodb.frontiers_now');
	$node->poll_query_until('postgres', "SELECT bool_and(applied_until > '$now') FROM krahodb.horizon")
	  or die 'first level of ' . $node->name . ': ' . on($node, 'SELECT * FROM krahodb.horizon');
	return;
}

sub kept_by_vacuum
{
	my ($node) = @_;
	my (undef, undef, $messages) = $node->psql('postgres', 'VACUUM (FREEZE, VERBOSE) t');
	my ($kept) = $messages =~ /tuples: .* (\d+) are dead but not yet removable/;
	return $kept;
}

on($a, "INSERT INTO t SELECT i, i, 'first' FROM generate_series(1, 20) i");
settle();
pass('all three move their horizons, each with the help of the others');

# ---- a peer that has not received the deletion ------------------------------------------

pause_subscription($c, 'c_from_a');
on($a, 'DELETE FROM t WHERE id <= 2');
my $deleted = on($a, 'SELECT clock_timestamp()');
wait_first_level($a);
ok($a->poll_query_until('postgres', "SELECT state = 'peer is behind' FROM krahodb.horizon WHERE subscription = 'a_from_c'"),
	'the view says whom it waits for') or diag(on($a, 'SELECT * FROM krahodb.horizon'));
is(on($a, "SELECT bool_and(applied_until > '$deleted') FROM krahodb.horizon"), 't', 'nothing older can arrive');
is(on($a, "SELECT horizon < '$deleted' FROM krahodb.horizon_state()"), 't', 'but c has not received the deletion');
is(kept_by_vacuum($a), 2, 'so the deleted rows are kept');
is(on($b, "SELECT horizon < '$deleted' FROM krahodb.horizon_state()"), 't', 'also on b, which has got the deletion');
cmp_ok(kept_by_vacuum($b), '>=', 2, 'where they are kept, too');

# c revives one row by a later update, and takes the value of the other one
on($c, "UPDATE t SET v = 'revived' WHERE id = 1");
on($c, "UPDATE t SET v = 'older claim' WHERE id = 2");
on($c, 'ALTER SUBSCRIPTION c_from_a ENABLE');
wait_streams(2, @streams);
is(is_equal_on(\@all, 'SELECT string_agg(t::text, \' \' ORDER BY id) FROM t WHERE id <= 2', 'after the deletion'),
	'(1,1,revived) (2,2,"older claim")', 'the later updates have won');
settle();
is(kept_by_vacuum($a), 0, 'then nothing is kept');

# ---- "older than the horizon" is not "seen" -----------------------------------------------

pause_subscription($c, 'c_from_a');
on($a, "UPDATE t SET v = 'unseen' WHERE id = 3");
wait_first_level($a);
on($c, "UPDATE t SET v = 'concurrent' WHERE id = 3");
on($c, 'ALTER SUBSCRIPTION c_from_a ENABLE');
wait_streams(2, @streams);
is_equal_on(\@all, 'SELECT v FROM t WHERE id = 3', 'the row');
is(on($a, "SELECT count(*) FROM krahodb.conflict_log WHERE type = 'update_origin_differs' AND key->>'id' = '3'"), 1,
	'a change that had not been seen is a conflict, although nothing older than it can arrive');

# once all have received it, it has been seen, whatever is known of its position
settle();
on($a, "UPDATE t SET v = 'seen' WHERE id = 4");
settle();
$a->restart;
settle();
on($c, "UPDATE t SET v = 'after it' WHERE id = 4");
wait_streams(1, @streams);
is(on($a, "SELECT count(*) FROM krahodb.conflict_log WHERE key->>'id' = '4'"), 0, 'what all have received is seen');

# ---- a peer that is down for a peer ---------------------------------------------------------

# What b has applied of others counts too: it is behind when it goes away for c.
pause_subscription($b, 'b_from_a');
on($c, 'SELECT txid_current()');
ok($c->poll_query_until('postgres', "SELECT state = 'peer is behind' FROM krahodb.horizon WHERE subscription = 'c_from_b'"),
	'c waits for what b has not received');
pause_subscription($c, 'c_from_b');
on($b, 'ALTER SUBSCRIPTION b_from_a ENABLE');
$a->append_conf('postgresql.conf', "krahodb.max_retention = '10s'");
reload_settings($a);
on($b, 'DELETE FROM t WHERE id = 5');
$deleted = on($a, 'SELECT clock_timestamp()');
on($a, 'SELECT txid_current()');
ok($a->poll_query_until('postgres', "SELECT state = 'peer is behind' AND since < clock_timestamp() - interval '12 s' FROM krahodb.horizon WHERE subscription = 'a_from_c'"),
	'c waits for b');
is(on($a, 'SELECT count(*) FROM krahodb.horizon WHERE state = \'stale\''), 0, 'that does not make it stale');
$c->append_conf('postgresql.conf', "krahodb.max_retention = '3s'");
reload_settings($c);
ok($c->poll_query_until('postgres', "SELECT state = 'stale' FROM krahodb.horizon WHERE subscription = 'c_from_b'"),
	'until b is stale for c');
ok($a->poll_query_until('postgres', "SELECT horizon > '$deleted' FROM krahodb.horizon_state()"),
	'which then is not waited for any more');

# ---- publishers that receive nothing ----------------------------------------------------------

my $stock = stock_node('stock');
my $source = krahodb_node('source');
foreach my $node ($stock, $source)
{
	on($node, 'CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE, v text)');
	on($node, 'CREATE PUBLICATION p FOR TABLE t');
}
my $sink = krahodb_node('sink');
on($sink, 'CREATE EXTENSION krahodb');
on($sink, 'CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE, v text)');
on($sink, sprintf("CREATE SUBSCRIPTION from_%s CONNECTION '%s' PUBLICATION p WITH (copy_data = false, conflict_resolution = last_update_wins)",
		$_->name, connstr($_))) foreach ($stock, $source);
my $now = on($sink, 'SELECT clock_timestamp()');
on($sink, 'SELECT txid_current()');
ok($sink->poll_query_until('postgres', "SELECT horizon > '$now' FROM krahodb.horizon_state()"),
	'a stock publisher, and one that receives nothing, hold nothing back') or diag(on($sink, 'SELECT * FROM krahodb.horizon'));

done_testing();
