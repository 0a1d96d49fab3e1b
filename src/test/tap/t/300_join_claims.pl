# What goes wrong here: a unique value was claimed by a change that lost, so no row shows it any
# more.  A node joins by a copy; then an older row with that value arrives there.  On all
# others it loses; it must here, too, if the index has an expression or a predicate, takes NULLs for
# equal, or is that of an exclusion constraint.  And a claim of one index must say
# nothing of another one, for which it is only a part of a row.

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::Streams;
use PostgreSQL::Test::Utils;
use Test::More;

my ($a, $c, $m, $n) = my @nodes = map { krahodb_node($_) } qw(a c m n);

foreach my $node (@nodes)
{
	on($node, 'CREATE EXTENSION krahodb');
	on($node, 'CREATE TABLE t (' . ('gone int, ' x ($node == $n)) . 'id int PRIMARY KEY, email text, code int, active bool, w int, z int, v text)');
	on($node, 'ALTER TABLE t DROP COLUMN gone') if $node == $n;
	on($node, $_) foreach
	  'CREATE UNIQUE INDEX ON t (lower(email))',
	  'CREATE UNIQUE INDEX ON t (code) WHERE active',
	  'CREATE UNIQUE INDEX ON t (w) NULLS NOT DISTINCT',
	  'ALTER TABLE t ADD EXCLUDE USING btree (z WITH =) WHERE (z > 0)';
	on($node, 'CREATE TABLE e (id int PRIMARY KEY, code int UNIQUE, g int, v text, r int4range UNIQUE, EXCLUDE USING gist (r WITH &&))');
	on($node, 'CREATE UNIQUE INDEX ON e ((coalesce(g, 0)))');
	on($node, 'CREATE PUBLICATION pub FOR TABLE t, e');
}
foreach my $other ($a, $c)
{
	subscribe($m, $other, 'copy_data = false');
	subscribe($other, $m, 'copy_data = false');
}
on($m, q{INSERT INTO t SELECT i, 'e' || i, i, true, i, i, 'first' FROM generate_series(1, 4) i});
on($m, q{INSERT INTO e SELECT i, i, i, 'first' FROM generate_series(1, 4) i});
wait_streams(2, @streams);
wait_horizon($m);

# What c writes is on its way, to n too.
subscribe($n, $c, 'copy_data = false, enabled = false');
pause($m, $c);
pause($m, $a);
pause($a, $m);
on($c, q{INSERT INTO t VALUES (11, 'x', 11, true, 11, 11, 'c'), (12, 'e12', 50, true, 12, 12, 'c'), (13, 'e13', 13, true, NULL, 13, 'c'),
	(14, 'e14', 14, true, 14, 50, 'c'), (15, 'e15', 50, false, 15, 15, 'c')});
on($c, q{INSERT INTO e VALUES (11, 11, 0, 'c', NULL), (12, 50, 12, 'c', NULL), (13, 13, 13, 'c', '[55,57)')});

# What a writes loses to what m has written, on m; but it claims values.
on($a, $_) foreach
  q{UPDATE t SET email = 'X' WHERE id = 1},
  q{UPDATE t SET code = 50 WHERE id = 2},
  q{UPDATE t SET w = NULL WHERE id = 3},
  q{UPDATE t SET z = 50 WHERE id = 4},
  q{UPDATE e SET code = 50, r = '[50,60)' WHERE id = 1};
on($m, q{UPDATE t SET v = 'm'; UPDATE e SET v = 'm'});
resume($m, $a);
wait_streams(1, [ $a, name($m, $a) ]);

subscribe($n, $a, 'copy_data = false, enabled = false');
subscribe($n, $m, 'copy_data = true');
$n->wait_for_subscription_sync($m, name($n, $m));
resume(@$_) foreach [ $n, $c ], [ $n, $a ], [ $m, $c ], [ $a, $m ];
wait_streams(2, @streams);

is(is_equal_on([ $m, $n ], q{SELECT string_agg(id || ' ' || v, ', ' ORDER BY id) FROM t}, 'all is claimed'),
	'1 m, 2 m, 3 m, 4 m, 15 c', 'the older rows have lost');
is(is_equal_on([ $m, $n ], q{SELECT string_agg(id || ' ' || v, ', ' ORDER BY id) FROM e}, 'nothing else is'),
	'1 m, 2 m, 3 m, 4 m, 11 c', 'but where nothing was claimed');

done_testing();
