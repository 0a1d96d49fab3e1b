# What goes wrong here: a node joins by copying from a member that lags, while older
# changes of another member are on their way to it.  Rows that were copied must not be
# taken for newer or older than they are, nor may what was deleted there come back.

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::Streams;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Partitioned: root by root, where partitions may differ.  The column list of t below names
# all that there are.
my %tables = (
	t => '(id int PRIMARY KEY, gone int, u int UNIQUE, v text)',
	p => '(id int PRIMARY KEY, u int, v text) PARTITION BY RANGE (id)');

sub make_node
{
	my ($name) = @_;
	my $node = krahodb_node($name);
	my $bound = $name eq 'n' ? 15 : 10;

	on($node, 'CREATE EXTENSION krahodb');
	on($node, "CREATE TABLE $_ $tables{$_}") foreach sort keys %tables;
	on($node, 'ALTER TABLE t DROP COLUMN gone');
	on($node, "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO ($bound)");
	on($node, "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM ($bound) TO (100)");
	on($node, 'CREATE PUBLICATION pub FOR TABLE t (id, u, v), p WITH (publish_via_partition_root = true)');
	return $node;
}

my ($a, $m) = map { make_node($_) } qw(a m);

# Until the horizon of a and m has passed this moment, and what is behind it is gone.
sub forget
{
	wait_streams(1, grep { $_->[1] !~ /n/ } @streams);
	wait_horizon($_) foreach ($a, $m);
	on($_, 'VACUUM (FREEZE) t; VACUUM (FREEZE) p;') foreach ($a, $m);
	return;
}

sub older_and_newer
{
	my ($older, $newer, $first) = @_;
	my ($k1, $k2, $k3, $k4, $k5, $k6, $k7) = map { $first + $_ } 0 .. 6;

	foreach my $table (qw(t p))
	{
		on($older, <<"EOS");
UPDATE $table SET v = 'older' WHERE id = $k1;
UPDATE $table SET v = 'older' WHERE id = $k2;
DELETE FROM $table WHERE id = $k3;
DELETE FROM $table WHERE id = $k4; INSERT INTO $table VALUES ($k4, $k4, 'older');
UPDATE $table SET u = 500 + $k5 WHERE id = $k5;
INSERT INTO $table VALUES ($k7 + 40, $k7 + 40, 'older');
EOS
		on($newer, <<"EOS");
UPDATE $table SET v = 'newer' WHERE id = $k1;
DELETE FROM $table WHERE id = $k2;
UPDATE $table SET v = 'newer' WHERE id = $k3;
DELETE FROM $table WHERE id = $k4;
UPDATE $table SET u = 500 + $k5, v = 'newer' WHERE id = $k6;
INSERT INTO $table VALUES ($k7 + 40, $k7 + 40, 'newer'); DELETE FROM $table WHERE id = $k7 + 40;
EOS
	}
	return;
}

subscribe($a, $m, 'copy_data = false');
subscribe($m, $a, 'copy_data = false');
foreach my $table (qw(t p))
{
	on($a, "INSERT INTO $table SELECT i, i, 'first' FROM generate_series(1, 40) i");
}
forget();

# ---- n begins to listen to a, and does not apply anything yet -------------------------------

my $n = make_node('n');
subscribe($n, $a, 'copy_data = false, enabled = false');

# what m has applied, and forgotten
on($a, "UPDATE t SET v = 'on its way' WHERE id IN (36, 37); UPDATE p SET v = 'on its way' WHERE id IN (36, 37)");
wait_streams(1, grep { $_->[1] !~ /n/ } @streams);
on($m, 'DELETE FROM t WHERE id = 36; DELETE FROM p WHERE id = 36');
on($m, "UPDATE t SET v = 'after it' WHERE id = 37; UPDATE p SET v = 'after it' WHERE id = 37");
forget();

# what m has not received, older and newer than what is written there
pause($m, $a);
pause($a, $m);
older_and_newer($a, $m, 1);
older_and_newer($m, $a, 11);

# ---- the copy -------------------------------------------------------------------------------

subscribe($n, $m, 'copy_data = true');
$n->wait_for_subscription_sync($m, name($n, $m));
is_equal_on([ $m, $n ], "SELECT string_agg(x::text, ' ' ORDER BY id) FROM $_ x", "copied $_") foreach qw(t p);
my $records = join ' UNION ALL ', map { "SELECT * FROM krahodb.version_records_$_" } 1 .. 4;
cmp_ok(on($n, "SELECT count(*) FROM ($records) r WHERE kind = 't'"), '>', 0, 'with true versions');
is(on($n, "SELECT count(DISTINCT node) FROM ($records) r WHERE kind = 'f'"), 1, 'and what m had applied of a');

subscribe($_, $n, 'copy_data = false') foreach ($a, $m);
resume($n, $a);
wait_streams(1, [ $a, name($n, $a) ]);
resume($m, $a);
resume($a, $m);
wait_streams(2, @streams);

foreach my $table (qw(t p))
{
	my $all = is_equal_on([ $a, $m, $n ], "SELECT string_agg(x::text, ' ' ORDER BY id) FROM $table x", $table);
	like($all, qr/\(1,1,newer\) \(3,3,newer\)/, "$table: the newer ones have won");
	unlike($all, qr/\((2|4|36|47),/, "$table: what was deleted last stays deleted");
	like($all, qr/37,37,"after it"/, "$table: what m had applied is not applied again");
}

# ---- the same with rows that are here already, and writes that go on here ---------------------

forget();
on($n, 'DROP SUBSCRIPTION ' . name($n, $m));
on($m, 'DROP SUBSCRIPTION ' . name($m, $n));
@streams = grep { $_->[1] !~ /^(n_from_m|m_from_n)$/ } @streams;
pause($m, $a);
pause($a, $m);
older_and_newer($a, $m, 21);
older_and_newer($m, $a, 28);
on($m, $_) foreach 'VACUUM FULL t', 'VACUUM FULL p';	# deaths are found all the same
subscribe($n, $m, 'copy_data = true');
$n->wait_for_subscription_sync($m, name($n, $m));
subscribe($m, $n, 'copy_data = false');
on($n, "UPDATE t SET v = 'joined' WHERE id IN (21, 38); UPDATE p SET v = 'joined' WHERE id IN (21, 38)");
resume($m, $a);
resume($a, $m);
wait_streams(2, @streams);
is_equal_on([ $a, $m, $n ], "SELECT string_agg(x::text, ' ' ORDER BY id) FROM $_ x", "again $_") foreach qw(t p);

# ---- without the extension at the publisher -----------------------------------------------------

my $plain = krahodb_node('plain');
on($plain, "CREATE TABLE t $tables{t}; ALTER TABLE t DROP COLUMN gone");
on($plain, 'CREATE PUBLICATION pub FOR TABLE t');
on($plain, "INSERT INTO t VALUES (1, 1, 'copied')");

# Functions of that name are not called with our rights.
on($plain, 'CREATE SCHEMA krahodb');
on($plain, "CREATE FUNCTION krahodb.$_ LANGUAGE plpgsql AS \$\$BEGIN RAISE 'called'; END\$\$")
  foreach ('hold_horizon() RETURNS bigint', 'table_versions(regclass, bigint) RETURNS SETOF record');
my $other = krahodb_node('other');
on($other, 'CREATE EXTENSION krahodb');
on($other, "CREATE TABLE t $tables{t}; ALTER TABLE t DROP COLUMN gone");
subscribe($other, $plain, 'copy_data = true');
$other->wait_for_subscription_sync($plain, name($other, $plain));
$other->wait_for_log(qr/copied rows of subscription "other_from_plain" count as older than any change/);
is(on($other, 'SELECT v FROM t'), 'copied', 'a publisher without the extension: as before, and said');

done_testing();
