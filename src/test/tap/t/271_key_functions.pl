# What goes wrong here: a function that compares keys remembers something (of the columns of a
# composite type; the plan of an SQL function), and does so again for each row that is looked for, in
# memory that lasts as long as the apply worker.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $rows = 20_000;
my ($publisher, $subscriber) = map { krahodb_node($_) } qw(publisher subscriber);
my $schema = q{CREATE TYPE pair AS (a int, b text); CREATE TABLE t (id pair PRIMARY KEY, v text)};

$_->safe_psql('postgres', "$schema; INSERT INTO t SELECT ROW(i * 2, 'x')::pair, 'old' FROM generate_series(1, $rows) i")
  foreach $publisher, $subscriber;
$subscriber->safe_psql('postgres', 'CREATE EXTENSION krahodb');
$publisher->safe_psql('postgres', 'CREATE PUBLICATION pub FOR TABLE t');
$subscriber->safe_psql('postgres', sprintf
	q{CREATE SUBSCRIPTION sub CONNECTION '%s' PUBLICATION pub WITH (copy_data = false, conflict_resolution = last_update_wins)},
	connstr($publisher));
$publisher->wait_for_catchup('sub');

# Bytes in the worker's memory contexts.
sub memory
{
	my $start = -s $subscriber->logfile;
	my $total = qr/Grand total: (\d+) bytes/;

	$publisher->wait_for_catchup('sub');
	$subscriber->safe_psql('postgres', 'SELECT pg_log_backend_memory_contexts(pid) FROM pg_stat_subscription');
	$subscriber->wait_for_log($total, $start);
	return (slurp_file($subscriber->logfile, $start) =~ $total)[0];
}

# What is there once is there once, and none of these rows is looked for again.
$publisher->safe_psql('postgres', q{INSERT INTO t VALUES (ROW(-1, 'x'), 'new'); UPDATE t SET v = 'a' WHERE (id).a < 1000});
foreach my $change (
	[ updates => q{UPDATE t SET v = 'new' WHERE (id).a > 1000 AND (id).a % 4 = 0} ],
	[ deletes => q{DELETE FROM t WHERE (id).a > 1000 AND (id).a % 4 = 2} ],
	[ inserts => qq{INSERT INTO t SELECT ROW(i * 2 + 1, 'x')::pair, 'new' FROM generate_series(1, $rows) i} ])
{
	my ($name, $sql) = @$change;
	my $before = memory();

	$publisher->safe_psql('postgres', $sql);
	cmp_ok(memory() - $before, '<=', 256 * 1024, "$name do not leave memory behind");
}
is_equal_on([ $publisher, $subscriber ], 'SELECT count(*), md5(string_agg(t::text, $$,$$ ORDER BY id)) FROM t', 'rows');
$_->stop foreach $subscriber, $publisher;
done_testing();
