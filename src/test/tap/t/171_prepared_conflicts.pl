# What goes wrong here: a transaction is prepared, another node's write comes between its
# PREPARE and its COMMIT PREPARED, and the nodes do not agree about which was later.

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::Streams;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($a, $b, $c) = map { krahodb_node($_) } qw(a b c);
my @all = ($a, $b, $c);

foreach my $node (@all)
{
	on($node, 'CREATE EXTENSION krahodb');
	on($node, 'CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE, v text)');
	on($node, 'CREATE PUBLICATION pub FOR TABLE t');
}
foreach my $node (@all)
{
	foreach my $from (grep { $_ != $node } @all)
	{
		my $notices = subscribe($node, $from, 'two_phase = true, copy_data = ' . ($from == $b ? 'true' : 'false'));

		like($notices, qr/receives prepared transactions when they are committed/, 'a NOTICE says when')
		  if $node == $a && $from == $b;
	}
}
$_->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_subscription_rel WHERE srsubstate <> 'r'") or die foreach @all;
$_->poll_query_until('postgres', "SELECT bool_and(subtwophasestate = 'e') FROM pg_subscription") or die foreach @all;

my $equal = 'SELECT string_agg(t::text, \' \' ORDER BY id) FROM t';

on($a, "INSERT INTO t SELECT i, i, 'first' FROM generate_series(1, 30) i");
wait_streams(1, @streams);

# ---- PREPARE, the other's write, COMMIT PREPARED -----------------------------------------

# The changes that are prepared, and those that come in between; by what is later wins.
my $prepared = <<'EOS';
UPDATE t SET v = 'prepared' WHERE id = 1;
DELETE FROM t WHERE id = 2;
UPDATE t SET id = 103 WHERE id = 3;
UPDATE t SET u = 105 WHERE id = 4;
INSERT INTO t VALUES (200, 200, 'prepared');
EOS
my $ordinary = <<'EOS';
UPDATE t SET v = 'ordinary' WHERE id = 1;
UPDATE t SET v = 'ordinary' WHERE id = 2;
UPDATE t SET v = 'ordinary' WHERE id = 3;
UPDATE t SET u = 105 WHERE id = 5;
INSERT INTO t VALUES (200, 201, 'ordinary');
EOS

on($a, "BEGIN; $prepared PREPARE TRANSACTION 'one'");
wait_streams(1, @streams);
is(on($b, 'SELECT count(*) FROM pg_prepared_xacts'), 0, 'nothing is prepared on others');
on($b, $ordinary);
pause($c, $a);
on($a, "COMMIT PREPARED 'one'");
resume($c, $a);
wait_streams(2, @streams);
is(is_equal_on(\@all, 'SELECT string_agg(t::text, \' \' ORDER BY id) FROM t WHERE id IN (1, 2, 4, 5, 200)', 'committed last'),
	'(1,1,prepared) (4,105,first) (200,200,prepared)', 'what was committed last has won');
is_equal_on(\@all, $equal, 'all rows');

# ---- COMMIT PREPARED, and the other's later write, which overtakes it -----------------------

on($a, "BEGIN; UPDATE t SET v = 'prepared' WHERE id IN (10, 11, 12); PREPARE TRANSACTION 'two'");
pause($b, $a);
pause($c, $a);
on($a, "COMMIT PREPARED 'two'");
on($b, "UPDATE t SET v = 'later' WHERE id = 10; DELETE FROM t WHERE id = 11; DELETE FROM t WHERE id = 12; INSERT INTO t VALUES (12, 12, 'later')");
wait_streams(1, grep { $_->[0] != $a } @streams);
resume($b, $a);
resume($c, $a);
wait_streams(2, @streams);
is(is_equal_on(\@all, 'SELECT string_agg(t::text, \' \' ORDER BY id) FROM t WHERE id IN (10, 11, 12)', 'overtaken'),
	'(10,10,later) (12,12,later)', 'the later one has won');

# ---- both prepared, committed in the other order, with crashes -----------------------------------

on($a, "BEGIN; UPDATE t SET v = 'a' WHERE id = 20; UPDATE t SET v = 'a' WHERE id = 21; PREPARE TRANSACTION 'three'");
on($b, "BEGIN; UPDATE t SET v = 'b' WHERE id = 20; DELETE FROM t WHERE id = 21; PREPARE TRANSACTION 'four'");
$_->kill9 foreach ($a, $b);
start_after_kill($_) foreach ($a, $b);
on($b, "COMMIT PREPARED 'four'");
$b->kill9;
on($a, "COMMIT PREPARED 'three'");
$a->kill9;
start_after_kill($_) foreach ($a, $b);
on($a, "BEGIN; UPDATE t SET v = 'never' WHERE id = 22; PREPARE TRANSACTION 'five'");
on($a, "ROLLBACK PREPARED 'five'");
wait_streams(2, @streams);
is(is_equal_on(\@all, 'SELECT string_agg(t::text, \' \' ORDER BY id) FROM t WHERE id IN (20, 21, 22)', 'after crashes'),
	'(20,20,a) (21,21,a) (22,22,first)', 'by the order of COMMIT PREPARED');
is_equal_on(\@all, $equal, 'all rows');
is(on($_, 'SELECT count(*) FROM pg_prepared_xacts'), 0, 'nothing is left on ' . $_->name) foreach @all;

# ---- what is refused ---------------------------------------------------------------------------

my (undef, undef, $error) = $a->psql('postgres', 'ALTER SUBSCRIPTION a_from_b SET (conflict_resolution = apply_remote)');
like($error, qr/cannot change whether conflicts are resolved by time for a subscription with "two_phase"/, 'a change');
my $stock = stock_node('stock');
on($stock, 'CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE, v text)');
on($stock, 'CREATE PUBLICATION p FOR TABLE t');
(undef, undef, $error) = $a->psql('postgres', sprintf(
		"CREATE SUBSCRIPTION s CONNECTION '%s' PUBLICATION p WITH (two_phase = true, conflict_resolution = last_update_wins)", connstr($stock)));
like($error, qr/cannot resolve conflicts by time with "two_phase" and this publisher/, 'a stock publisher');

done_testing();
