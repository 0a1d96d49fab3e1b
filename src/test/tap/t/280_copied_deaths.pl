# What goes wrong here: a table is copied to a node that has deleted rows of it, or whose rows had
# their unique values, later than the publisher wrote them.  COPY finds nothing in the way, so the rows
# are back, and are gone elsewhere when the deletion arrives there.  A row that is later than its
# deletion here comes back, and with it what was added here before.  And a row in the way meets
# one that ALTER TABLE has written anew at the publisher, which is not as new as that.

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::Streams;
use PostgreSQL::Test::Utils;
use Test::More;

my ($a, $b, $c) = map { krahodb_node($_, conf => 'krahodb.copy_range_size = 64kB') } qw(a b c);

foreach my $node ($a, $b, $c)
{
	on($node, <<'EOS');
CREATE EXTENSION krahodb;
CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE, v text);
CREATE TABLE large (LIKE t INCLUDING ALL);
CREATE TABLE parts (id int PRIMARY KEY, u int, v text) PARTITION BY RANGE (id);
CREATE TABLE part PARTITION OF parts FOR VALUES FROM (0) TO (100);
CREATE TABLE sums (id int PRIMARY KEY, u int, v text, n int);
ALTER TABLE sums REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta);
CREATE TABLE large_sums (id int PRIMARY KEY, u int, v text, n int);
ALTER TABLE large_sums REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta);
CREATE TABLE third (LIKE t INCLUDING ALL);
CREATE TABLE mark (id int PRIMARY KEY);
CREATE TABLE before (LIKE t INCLUDING ALL);
CREATE TABLE anew (LIKE t INCLUDING ALL);
CREATE PUBLICATION pub FOR TABLE t, large, parts, sums, large_sums WITH (publish_via_partition_root = true);
CREATE PUBLICATION later FOR TABLE third, mark;
CREATE PUBLICATION fresh FOR TABLE before, anew;
EOS
}
on($b, 'ALTER TABLE anew ALTER u TYPE bigint');
on($a, "INSERT INTO anew VALUES (1, 1, 'old'), (2, 2, 'old')");
on($b, "INSERT INTO anew VALUES (1, 1, 'here')");
subscribe($a, $b, 'copy_data = false');
subscribe($b, $a, 'copy_data = false');
wait_horizon($a);

# c has third from a; b hears c, and a will
on($a, "INSERT INTO third SELECT i, i, 'first' FROM generate_series(1, 3) i");
on($c, sprintf("CREATE SUBSCRIPTION c_later CONNECTION '%s' PUBLICATION later WITH (origin = none)", connstr($a)));
$c->wait_for_subscription_sync($a, 'c_later');
foreach my $node ($a, $b)
{
	on($node, sprintf("CREATE SUBSCRIPTION %s_later CONNECTION '%s' PUBLICATION later WITH (origin = none, copy_data = false, enabled = false)",
			$node->name, connstr($c)));
}

on($a, "INSERT INTO $_ SELECT i, i, repeat('x', 100) FROM generate_series(1, 5) i") foreach qw(t parts);
on($a, "INSERT INTO large SELECT i, i, repeat('x', 100) FROM generate_series(1, 2000) i");
on($a, "INSERT INTO sums SELECT i, i, repeat('x', 100), 10 FROM generate_series(1, 5) i");
on($a, "INSERT INTO large_sums SELECT i, i, repeat('x', 100), 10 FROM generate_series(1, 2000) i");
wait_streams(2, @streams);

# a has heard c since b's stream from there began, or the copy would wait for that
on($_, 'ALTER SUBSCRIPTION ' . $_->name . '_later ENABLE') foreach ($a, $b);
on($c, 'INSERT INTO mark VALUES (1)');
wait_streams(1, [ $c, 'a_later' ], [ $c, 'b_later' ]);
on($a, 'ALTER SUBSCRIPTION a_later DISABLE');

# ---- the tables leave b's subscription, and b deletes what it has -----------------------------

on($a, 'ALTER PUBLICATION pub DROP TABLE t, large, parts, sums, large_sums');
on($b, 'ALTER SUBSCRIPTION b_from_a REFRESH PUBLICATION WITH (copy_data = false)');
pause($a, $b);
foreach my $table (qw(t large parts))
{
	on($a, "INSERT INTO $table VALUES (10, 10, 'first')") if $table ne 'large';
	on($b, "DELETE FROM $table; INSERT INTO $table VALUES (11, 10, 'here'); DELETE FROM $table");
	on($a, "UPDATE $table SET v = 'newer' WHERE id = 2");
}
foreach my $table (qw(sums large_sums))
{
	on($b, "UPDATE $table SET n = n + 5 WHERE id < 4; DELETE FROM $table");
	on($a, "UPDATE $table SET n = n + 1, v = 'newer' WHERE id = 2");
}
on($c, 'DELETE FROM third WHERE id = 1');
wait_streams(1, [ $c, 'b_later' ]);

# before there was a subscription, nobody else was to hear of it
on($a, "INSERT INTO before VALUES (1, 1, 'first')");
on($b, "INSERT INTO before VALUES (1, 1, 'here'); DELETE FROM before");
on($a, 'ALTER TABLE anew ALTER u TYPE bigint');

# ---- they are copied ----------------------------------------------------------------------------

my $log = -s $b->logfile;
on($a, 'ALTER PUBLICATION pub ADD TABLE t, large, parts, sums, large_sums, third');
on($b, 'ALTER SUBSCRIPTION b_from_a REFRESH PUBLICATION');
$b->wait_for_subscription_sync($a, 'b_from_a');
is(on($b, 'SELECT id, v FROM t ORDER BY id'), '2|newer', 'what was deleted here does not come back, nor what has lost its value');
is(on($b, 'SELECT id, v FROM parts ORDER BY id'), "2|newer\n10|first", 'nor in a partition');
is(on($b, 'SELECT id, v FROM large ORDER BY id'), '2|newer', 'nor by ranges');
like(slurp_file($b->logfile, $log), qr/table "public.large" is copied in \d+ ranges/, 'it was copied in ranges');
is(on($b, "SELECT id, v, n FROM $_"), '2|newer|16', "$_: with what was added here") foreach qw(sums large_sums);
is(on($b, 'SELECT id FROM third ORDER BY id'), "2\n3", 'nor what a third node has deleted');

on($b, sprintf("CREATE SUBSCRIPTION b_anew CONNECTION '%s' PUBLICATION fresh WITH (origin = none)", connstr($a)));
$b->wait_for_subscription_sync($a, 'b_anew');
is(on($b, 'SELECT v FROM before'), 'first', 'a table that was emptied before the subscription was made');
is(on($b, 'SELECT id, v FROM anew ORDER BY id'), "1|here\n2|old", 'a row is not as new as ALTER TABLE');

# ---- and everybody hears of all ------------------------------------------------------------------

on($b, 'DROP SUBSCRIPTION b_anew');
resume($a, $b);
on($a, 'ALTER SUBSCRIPTION a_later ENABLE');
wait_streams(2, @streams, [ $c, 'a_later' ], [ $c, 'b_later' ]);
is_equal_on([ $a, $b ], "SELECT string_agg(x::text, ' ' ORDER BY id) FROM $_ x", $_) foreach qw(t large parts sums large_sums third);

$_->stop foreach ($a, $b, $c);
done_testing();
