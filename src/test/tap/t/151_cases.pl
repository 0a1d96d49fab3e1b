# What goes wrong here: writes of several nodes that know nothing of each other, or
# that overtake each other on the way to the third node, on each kind of table that
# has rules of its own: secondary unique keys, partitions (published one by one or as
# their root), deferrable keys, exclusion constraints, REPLICA IDENTITY FULL and USING
# INDEX.  Between the local change and the arrival there is nothing, a VACUUM, or a
# VACUUM (FREEZE).  All nodes must end with the same rows, and with the ones that the
# rules name: of each key the greatest version, but none whose unique value a greater
# version of another key has ever claimed.

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::PausedMesh;
use PostgreSQL::Test::Utils;
use Test::More;

# Each has columns id (the identity), u and w (each unique), v.
my %kind = (
	uniq => 'CREATE TABLE uniq (id int PRIMARY KEY, u int UNIQUE, w int UNIQUE, v text)',
	defer => 'CREATE TABLE defer (id int PRIMARY KEY, u int UNIQUE DEFERRABLE INITIALLY DEFERRED, w int UNIQUE DEFERRABLE, v text)',
	excl => 'CREATE TABLE excl (id int PRIMARY KEY, u int, w int, v text,
		EXCLUDE USING gist (int4range(u, u + 1) WITH &&), EXCLUDE USING btree (w WITH =))',
	ri_full => 'CREATE TABLE ri_full (id int PRIMARY KEY, u int UNIQUE, w int UNIQUE, v text);
		ALTER TABLE ri_full REPLICA IDENTITY FULL',
	ri_index => 'CREATE TABLE ri_index (id int NOT NULL UNIQUE, w int UNIQUE, v text, u int PRIMARY KEY);
		ALTER TABLE ri_index REPLICA IDENTITY USING INDEX ri_index_id_key',
	(map { $_ => "CREATE TABLE $_ (id int, u int, w int, v text, p int DEFAULT 1, PRIMARY KEY (id, p), UNIQUE (u, p), UNIQUE (w, p)) PARTITION BY LIST (p);
		CREATE TABLE ${_}_1 (w int, p int NOT NULL DEFAULT 1, gone int, v text, u int, id int NOT NULL);
		ALTER TABLE ${_}_1 DROP gone;
		ALTER TABLE $_ ATTACH PARTITION ${_}_1 FOR VALUES IN (1)" } qw(part root)));

my @kinds = sort keys %kind;
my $schema = join ";\n", 'CREATE EXTENSION krahodb', map({ $kind{$_} } @kinds),
  'CREATE PUBLICATION leaves FOR TABLE ' . join(', ', grep { $_ ne 'root' } @kinds),
  'CREATE PUBLICATION roots FOR TABLE root WITH (publish_via_partition_root)';

# Writes: each scenario has twenty keys of its own, {0} to {19}; those from {1} to {5}
# are there with u and w like the key and v 'old'.  T is the table.
sub ins
{
	my ($id, $v, %columns) = @_;
	my ($u, $w) = map { '{' . ($columns{$_} // $id) . '}' } qw(u w);

	return "INSERT INTO T (id, u, w, v) VALUES ({$id}, $u, $w, '$v')";
}

sub upd
{
	my ($id, $v, %columns) = @_;
	return join(', ', "UPDATE T SET v = '$v'", map { "$_ = {$columns{$_}}" } sort keys %columns)
	  . " WHERE id = {$id}";
}

sub del
{
	my ($id) = @_;
	return "DELETE FROM T WHERE id = {$id}";
}

# The old rows without those, and others.
sub rows
{
	my ($without, @others) = @_;
	my %rows = map { $_ => 'old' } grep { my $id = $_; !grep { $_ == $id } @$without } 1 .. 5;

	foreach my $row (@others)
	{
		my ($id, $v) = split / /, $row;
		$rows{$id} = $v;
	}
	return join ', ', map { "$_ $rows{$_}" } sort { $a <=> $b } keys %rows;
}

# ---- concurrent writes ---------------------------------------------------------------

# name => writes in the order of their versions, rows that remain
my @two = (
	'delete and newer update' => [ 1 => del(1), 2 => upd(1, 'new'), 2 => del(2), 1 => upd(2, 'new') ],
	rows([ 1, 2 ], '1 new', '2 new'),
	'update and newer delete' => [ 1 => upd(1, 'lost'), 2 => del(1), 2 => upd(2, 'lost'), 1 => del(2) ],
	rows([ 1, 2 ]),
	'delete and delete' => [ 1 => del(1), 2 => del(1), 2 => upd(2, 'lost'), 2 => del(2), 1 => upd(2, 'new') ],
	rows([1], '2 new'),
	'delete, insert again' => [
		2 => upd(1, 'lost'), 1 => del(1), 1 => ins(1, 'again'),
		1 => del(2), 1 => ins(2, 'lost'), 2 => upd(2, 'new'),
		2 => upd(3, 'lost'), 1 => del(3), 1 => ins(3, 'lost'), 1 => del(3)
	],
	rows([3], '1 again', '2 new'),
	'insert and insert' => [
		1 => ins(6, 'lost'), 2 => ins(6, 'new'), 2 => ins(7, 'lost'), 1 => ins(7, 'new'),
		2 => ins(8, 'lost'), 1 => ins(8, 'lost'), 1 => del(8)
	],
	rows([], '6 new', '7 new'),
	'unique value, insert and insert' => [
		1 => ins(6, 'lost', u => 11), 2 => ins(7, 'new', u => 11),
		2 => ins(8, 'lost', w => 12), 1 => ins(9, 'new', w => 12)
	],
	rows([], '7 new', '9 new'),
	'unique value, update and update' => [
		1 => upd(1, 'lost', u => 11), 2 => upd(2, 'new', u => 11),
		2 => upd(3, 'lost', w => 12), 1 => upd(4, 'new', w => 12)
	],
	rows([ 1, 3 ], '2 new', '4 new'),
	'unique value, insert and update' => [
		1 => ins(6, 'lost', u => 11), 2 => upd(1, 'new', u => 11),
		2 => upd(2, 'lost', w => 12), 1 => ins(7, 'new', w => 12)
	],
	rows([2], '1 new', '7 new'),
	'unique value, released by a delete' => [
		1 => ins(6, 'lost', u => 11), 1 => del(6), 2 => ins(7, 'new', u => 11),
		2 => ins(8, 'lost', w => 12), 1 => ins(9, 'lost', w => 12), 1 => del(9)
	],
	rows([], '7 new'),
	'one against two' => [
		1 => ins(6, 'lost', u => 11), 1 => ins(7, 'lost', w => 12), 2 => ins(8, 'new', u => 11, w => 12),
		2 => ins(9, 'lost', u => 13, w => 14), 1 => upd(1, 'new', u => 13), 1 => upd(2, 'new', w => 14)
	],
	rows([], '1 new', '2 new', '8 new'),
	'one between two' => [
		1 => ins(6, 'lost', u => 11), 2 => ins(8, 'lost', u => 11, w => 12), 1 => ins(7, 'new', w => 12)
	],
	rows([], '7 new'),
	'chain of three, inserts' => [
		1 => ins(6, 'lost', u => 11), 2 => ins(7, 'lost', u => 11, w => 12), 1 => ins(8, 'new', w => 12)
	],
	rows([], '8 new'),
	'chain of three, updates' => [
		2 => upd(1, 'lost', u => 11), 1 => upd(2, 'lost', u => 11, w => 12), 2 => upd(3, 'new', w => 12)
	],
	rows([ 1, 2 ], '3 new'),
	'what was in the way comes back newer' => [
		1 => ins(6, 'old', u => 11), 2 => ins(7, 'new', u => 11), 1 => upd(6, 'new', u => 12)
	],
	rows([], '6 new', '7 new'),
	'key update and update' => [
		1 => upd(1, 'moved', id => 6, u => 6, w => 6), 2 => upd(1, 'new'),
		2 => upd(2, 'lost'), 1 => upd(2, 'moved', id => 7, u => 7, w => 7)
	],
	rows([ 1, 2 ], '1 new', '6 moved', '7 moved'),
	'key update with its unique values, and update' => [
		1 => upd(1, 'lost', id => 6), 2 => upd(1, 'new'),
		2 => upd(2, 'lost'), 1 => upd(2, 'moved', id => 7)
	],
	rows([ 1, 2 ], '1 new', '7 moved'),
	'key update and key update' => [
		1 => upd(1, 'moved', id => 6, u => 6, w => 6), 2 => upd(1, 'moved', id => 7, u => 7, w => 7),
		2 => upd(2, 'lost', id => 8), 1 => upd(2, 'moved', id => 9)
	],
	rows([ 1, 2 ], '6 moved', '7 moved', '9 moved'),
	'key update and key update, to one key' => [
		1 => upd(1, 'lost', id => 6), 2 => upd(2, 'new', id => 6),
		2 => upd(3, 'lost', id => 7), 1 => upd(4, 'new', id => 7)
	],
	rows([ 1, 2, 3, 4 ], '6 new', '7 new'),
	'key update and insert of the new key' => [
		1 => upd(1, 'lost', id => 6), 2 => ins(6, 'new'),
		2 => ins(7, 'lost'), 1 => upd(2, 'moved', id => 7)
	],
	rows([ 1, 2 ], '6 new', '7 moved'),
	'key update and delete' => [
		1 => del(1), 2 => upd(1, 'moved', id => 6), 2 => upd(2, 'moved', id => 7), 1 => del(2)
	],
	rows([ 1, 2 ], '6 moved', '7 moved'),
	'key update and back' => [
		1 => upd(1, 'moved', id => 6), 1 => upd(6, 'back', id => 1), 2 => upd(1, 'new'),
		2 => upd(2, 'lost'), 1 => upd(2, 'moved', id => 7), 1 => upd(7, 'back', id => 2)
	],
	rows([], '1 new', '2 back'),
	'several writes of a transaction' => [
		1 => 'BEGIN; ' . upd(1, 'a') . '; ' . del(1) . '; ' . ins(1, 'lost') . '; COMMIT',
		2 => 'BEGIN; ' . del(1) . '; ' . ins(1, 'new') . '; ' . upd(1, 'newer') . '; COMMIT',
		2 => 'BEGIN; ' . ins(6, 'a') . '; SAVEPOINT s; ' . upd(6, 'b') . '; ROLLBACK TO s; ' . del(6) . '; COMMIT',
		1 => 'BEGIN; ' . ins(6, 'x') . '; SAVEPOINT s; ' . del(6) . '; ROLLBACK TO s; ' . upd(6, 'new') . '; COMMIT'
	],
	rows([], '1 newer', '6 new'),
	'values passed on in a transaction' => [
		1 => 'BEGIN; ' . upd(1, 'passed', u => 11) . '; ' . upd(2, 'taken', u => 1) . '; COMMIT',
		2 => upd(3, 'new')
	],
	rows([], '1 passed', '2 taken', '3 new'));

my @three = (
	'three of one row' => [
		2 => del(1), 3 => del(1), 1 => upd(1, 'new'),
		3 => upd(2, 'lost'), 1 => upd(2, 'lost'), 2 => del(2),
		1 => del(3), 2 => upd(3, 'lost'), 3 => upd(3, 'new')
	],
	rows([2], '1 new', '3 new'),
	'chain of three nodes' => [
		1 => ins(6, 'lost', u => 11), 2 => ins(7, 'lost', u => 11, w => 12), 3 => ins(8, 'new', w => 12),
		3 => ins(9, 'lost', u => 13), 1 => ins(10, 'lost', u => 13, w => 14), 2 => ins(16, 'new', w => 14)
	],
	rows([], '8 new', '16 new'),
	'what a loser has claimed counts' => [
		3 => ins(6, 'lost', u => 11), 1 => upd(1, 'lost', u => 11), 2 => upd(1, 'new'),
		2 => ins(7, 'lost', w => 12), 3 => upd(2, 'lost', w => 12), 1 => del(2)
	],
	rows([2], '1 new'),
	'key updates on three nodes' => [
		1 => upd(1, 'lost', id => 6), 2 => upd(2, 'lost', id => 6), 3 => upd(3, 'new', id => 6),
		3 => ins(7, 'lost'), 2 => upd(4, 'lost', id => 7), 1 => ins(7, 'new')
	],
	rows([ 1, 2, 3, 4 ], '6 new', '7 new'));

# Of the table with deferrable keys only.
my @deferred = (
	'exchange' => [
		1 => 'BEGIN; ' . upd(1, 'a', u => 2) . '; ' . upd(2, 'b', u => 1) . '; COMMIT',
		2 => 'BEGIN; ' . upd(3, 'c', u => 4) . '; ' . upd(4, 'd', u => 5) . '; ' . upd(5, 'e', u => 3) . '; COMMIT'
	],
	rows([], '1 a', '2 b', '3 c', '4 d', '5 e'),
	'exchange and update' => [
		1 => 'BEGIN; ' . upd(1, 'lost', u => 2) . '; ' . upd(2, 'lost', u => 1) . '; COMMIT',
		2 => upd(2, 'new')
	],
	rows([1], '2 new'));

# ---- running -----------------------------------------------------------------------------

my ($mesh, $block);
my @blocks;	# [ number, kinds, rows ]

sub numbered
{
	my ($sql, $table, $number) = @_;

	$sql =~ s/\{(\d+)\}/$number * 20 + $1/ge;
	$sql =~ s/\bT\b/$table/g;
	return $sql;
}

# The writes for each kind of table, with one session for each node in turn.
sub write_all
{
	my ($kinds, $number, @writes) = @_;

	while (my ($node, $sql) = splice @writes, 0, 2)
	{
		$mesh->on($node => join ";\n", map { numbered($sql, $_, $number) } @$kinds);
	}
	return;
}

sub make_blocks
{
	my ($n) = @_;
	my @sql;

	foreach my $number ($block + 1 .. $block + $n)
	{
		push @sql, map { numbered("INSERT INTO T (id, u, w, v) SELECT g, g, g, 'old' FROM generate_series({1}, {5}) g", $_, $number) } @kinds;
	}
	$mesh->on(1 => join ";\n", @sql);
	return;
}

# The rows of each block must be those, on all nodes.
sub check
{
	my ($order) = @_;
	my %name;

	$mesh->settle;
	foreach my $kind (@kinds)
	{
		my (%found, $rows);

		is_equal_on([ $mesh->nodes ], "SELECT id, u, w, v FROM $kind ORDER BY id", "$kind, $order");
		$rows = $mesh->node(1)->safe_psql('postgres',
			"SELECT id / 20, string_agg(id % 20 || ' ' || v, ', ' ORDER BY id) FROM $kind GROUP BY 1");
		%found = map { split /\|/ } split /\n/, $rows;
		foreach my $block (@blocks)
		{
			my ($number, $name, $kinds, $expected) = @$block;

			is($found{$number} // '', $expected, "$kind, $name, $order") if grep { $_ eq $kind } @$kinds;
		}
	}
	@blocks = ();
	return;
}

sub run_scenarios
{
	my ($between, $order, $kinds, @scenarios) = @_;
	my @writes;

	make_blocks(@scenarios / 3);
	$mesh->settle;
	$mesh->pause;
	while (my ($name, $writes, $expected) = splice @scenarios, 0, 3)
	{
		my $of = $name =~ /^exchange/ ? ['defer'] : $kinds;

		push @blocks, [ ++$block, $name, $of, $expected ];
		write_all($of, $block, @$writes);
	}
	if ($between)
	{
		$_->safe_psql('postgres', $between) foreach $mesh->nodes;
	}
	$mesh->deliver(@$order);
	check(($between || 'nothing') . " between, streams in order @$order");
	return;
}

sub start_mesh
{
	$mesh = KrahoDB::PausedMesh->new(names => \@_, schema => $schema, publications => 'leaves, roots');
	$block = 0;
	return;
}

start_mesh(qw(a b));
run_scenarios('', [qw(21 12)], \@kinds, @two, @deferred);
run_scenarios('VACUUM (FREEZE)', [qw(12 21)], \@kinds, @two, @deferred);
is($mesh->errors, 0, 'two nodes: no conflict stopped replication');
$mesh->stop;

start_mesh(qw(n1 n2 n3));
run_scenarios('', [qw(31 32 21 23 12 13)], \@kinds, @two, @three, @deferred);
run_scenarios('VACUUM', [qw(13 23 12 32 31 21)], \@kinds, @two, @three, @deferred);
run_scenarios('VACUUM (FREEZE)', [qw(32 21 13 31 12 23)], \@kinds, @two, @three, @deferred);

# ---- overtaken on the way to the third node ----------------------------------------------

# Writes of n1; of n2, which has them; of n1 again, which has those; the rows.
my @overtaken = (
	'insert, update' => [ ins(6, 'inserted') ], [ upd(6, 'updated') ], [],
	rows([], '6 updated'),
	'insert, delete' => [ ins(6, 'inserted') ], [ del(6) ], [],
	rows([]),
	'insert, delete, insert again' => [ ins(6, 'inserted') ], [ del(6) ], [ ins(6, 'again') ],
	rows([], '6 again'),
	'delete, insert again' => [ del(1) ], [ ins(1, 'again') ], [ upd(1, 'updated') ],
	rows([1], '1 updated'),
	'delete, insert again, delete' => [ del(1) ], [ ins(1, 'again') ], [ del(1) ],
	rows([1]),
	'update, delete' => [ upd(1, 'updated') ], [ del(1) ], [],
	rows([1]),
	'insert, key update' => [ ins(6, 'inserted') ], [ upd(6, 'moved', id => 7) ], [ upd(7, 'new', id => 6) ],
	rows([], '6 new'),
	'unique value to another row' => [ ins(6, 'inserted', u => 11) ], [ del(6), ins(7, 'new', u => 11) ], [],
	rows([], '7 new'),
	'unique value to another row by updates' => [ upd(1, 'a', u => 11) ],
	[ upd(1, 'b', u => 12), ins(7, 'new', u => 11) ], [ upd(7, 'newer', u => 13), upd(1, 'c', u => 11) ],
	rows([1], '7 newer', '1 c'),
	'unique value back and forth' => [ ins(6, 'a', w => 11) ], [ upd(6, 'b', w => 12), upd(1, 'b', w => 11) ],
	[ upd(1, 'c', w => 13), upd(6, 'c', w => 11) ],
	rows([1], '1 c', '6 c'));

sub run_overtaken
{
	my ($between) = @_;
	my @scenarios = @overtaken;
	my @steps;

	make_blocks(@scenarios / 5);
	$mesh->settle;
	$mesh->pause;
	while (my ($name, $first, $second, $third, $expected) = splice @scenarios, 0, 5)
	{
		push @blocks, [ ++$block, $name, \@kinds, $expected ];
		push @steps, [ $block, $first, $second, $third ];
	}
	foreach my $step (@steps)
	{
		write_all(\@kinds, $step->[0], map { (1, $_) } @{ $step->[1] });
	}
	$mesh->deliver('21');
	foreach my $step (@steps)
	{
		write_all(\@kinds, $step->[0], map { (2, $_) } @{ $step->[2] });
	}
	$mesh->deliver('12');
	foreach my $step (@steps)
	{
		write_all(\@kinds, $step->[0], map { (1, $_) } @{ $step->[3] });
	}
	$mesh->deliver('32');
	$mesh->node(3)->safe_psql('postgres', $between) if $between;
	$mesh->deliver(qw(31 13 23));
	check('overtaken, ' . ($between || 'nothing') . ' between');
	return;
}

run_overtaken($_) foreach '', 'VACUUM', 'VACUUM (FREEZE)';
is($mesh->errors, 0, 'three nodes: no conflict stopped replication');
$mesh->stop;
done_testing();
