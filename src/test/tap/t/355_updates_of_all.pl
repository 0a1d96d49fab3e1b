#
# Updates of all rows of a table, by which its primary key gets a new entry for each.  Before
# a page of it is split, entries of dead versions are looked for; not where there are none,
# but where there are, so that the index grows no further than by the first one.
#
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use KrahoDB::Nodes;
use Test::More;

my $publisher = krahodb_node('publisher');
my $subscriber = krahodb_node('subscriber');

$subscriber->append_conf('postgresql.conf', 'autovacuum = off');
$subscriber->restart;
$_->safe_psql('postgres', 'CREATE TABLE t (id bigint PRIMARY KEY, n int, s text)') foreach $publisher, $subscriber;
$publisher->safe_psql('postgres', 'CREATE PUBLICATION p FOR ALL TABLES');
$subscriber->safe_psql('postgres', "CREATE SUBSCRIPTION s CONNECTION '" . connstr($publisher) . "' PUBLICATION p");
$subscriber->wait_for_subscription_sync($publisher, 's');

# Do that; returns the size of the subscriber's index then.
sub change
{
	my ($sql) = @_;

	$publisher->safe_psql('postgres', $sql);
	$publisher->wait_for_catchup('s');
	is_equal_on([ $publisher, $subscriber ], 'SELECT count(*), sum(hashtextextended(t::text, 0)) FROM t', $sql);
	return $subscriber->safe_psql('postgres', "SELECT pg_relation_size('t_pkey')");
}

change("INSERT INTO t SELECT i, 0, 'row ' || i FROM generate_series(1, 20000) i");
my @sizes = map { change("UPDATE t SET n = $_") } 1 .. 8;
note "sizes of the index: @sizes";

# Without any look for dead versions: 1.49 and 1.96.
cmp_ok($sizes[1], '<', 1.3 * $sizes[0], 'the second update finds what the first one left');
cmp_ok($sizes[7], '<', 1.8 * $sizes[0], 'and the others what was left since');

# What the entries lead to.
foreach my $node ($publisher, $subscriber)
{
	$node->safe_psql('postgres', 'VACUUM t');
	is($node->safe_psql('postgres', <<'EOS'), '20000|160000', $node->name . ': all rows by the index');
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SELECT count(*), sum(n) FROM generate_series(1, 20000) i JOIN t ON t.id = i;
EOS
}
done_testing();
