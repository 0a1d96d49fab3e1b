# KrahoDB::RandomWrites: transactions of clients, on the tables of KrahoDB::RandomTables.
#
# A few keys and a few values, so that nearly everything meets something.  Many statements
# fail, as a user's do: a value is taken, a row is gone.

package KrahoDB::RandomWrites;

use strict;
use warnings;

use Exporter 'import';
use KrahoDB::RandomTables;

our @EXPORT = qw(other_tables_sql other_published other_compared transaction);

my $count = 0;			# of statements: each writes a text of its own
my $gid = 0;			# of prepared transactions
my @others = qw(apply_remote keep_local first_update_wins);

# ---- tables that are the same in each run -------------------------------------------------------

# Not compared are those that promise nothing: without a key, truncated beside writes, with
# other resolvers.
sub other_tables_sql
{
	return (
		'CREATE SEQUENCE s',
		'CREATE TABLE audit (n bigserial, what text, r text)',
		q{CREATE FUNCTION stamp_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.stamp := upper(NEW.v); RETURN NEW; END $$},
		q{CREATE FUNCTION audit_it() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS
			$$ BEGIN INSERT INTO audit (what, r) VALUES (TG_OP, NEW.v || ' ' || OLD.v); RETURN NULL; END $$},
		'CREATE TABLE noise (id int, v text)', 'ALTER TABLE noise REPLICA IDENTITY FULL',
		'CREATE TABLE trunc (id int PRIMARY KEY, u int UNIQUE, n int, v text)',
		'ALTER TABLE trunc REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta)',
		map({ ("CREATE TABLE other_$_ (id int PRIMARY KEY, u int UNIQUE, v text, big text) WITH (krahodb.conflict_resolution = $_)",
				"ALTER TABLE other_$_ ALTER big SET STORAGE EXTERNAL, REPLICA IDENTITY FULL") } @others),
		'CREATE TABLE bulk (id bigint PRIMARY KEY, u bigint UNIQUE, v text)',
		'CREATE TABLE fktree (id int PRIMARY KEY, up int REFERENCES fktree ON DELETE CASCADE ON UPDATE CASCADE, pos int, v text, UNIQUE (up, pos))');
}

sub other_published { return ('noise', 'trunc', 'fktree', 'bulk', map { "other_$_" } @others); }
sub other_compared { return qw(fktree bulk); }

# ---- values -----------------------------------------------------------------------------------

sub range_value
{
	my $from = int rand 12;
	return chance(0.15) ? 'NULL' : chance(0.1) ? "'empty'" : "int4range($from, @{[$from + 1 + int rand 3]})";
}

sub big_value
{
	return chance(0.2) ? 'NULL' : chance(0.2) ? "'short'"
	  : chance(0.5) ? "repeat('" . int(rand 1000) . "-', @{[600 + int rand 3000]})"
	  : "(SELECT string_agg(md5('$count' || g), '') FROM generate_series(1, @{[60 + int rand 200]}) g)";
}

sub sum_value
{
	my ($t) = @_;
	my $n = int rand 50;

	return $t->{ntype} =~ /money$/ ? "$n\::money" : $t->{ntype} eq 'interval' ? "'$n hours $n days'"
	  : $t->{ntype} eq 'numeric' ? one_of($n, "$n.5", "$n.50") : $n;
}

# A change of column n of table alias t.
sub sum_change
{
	my ($t) = @_;
	my $n = int(rand 20) - 10;
	my $column = 't.' . column($t, 'n');

	return chance(0.05) ? 'NULL' : $t->{ntype} =~ /money$/ ? "$column + '$n'::money" : $t->{ntype} eq 'interval' ? "$column + '$n minutes 1 day'"
	  : chance(0.1) ? "coalesce($column, $n)" : $t->{ntype} eq 'numeric' && chance(0.05) ? "'NaN'" : "$column + $n";
}

sub document { return chance(0.3) ? 'NULL' : "'{\"a\": [" . join(',', map { int rand 5 } 0 .. int rand 6) . "]}'"; }
sub word { return chance(0.3) ? 'NULL' : one_of(map { "'$_'" } qw(va VA vb VB vc vd Vd ve)); }
sub truth { return chance(0.6) ? 'true' : chance(0.7) ? 'false' : 'NULL'; }

# ---- statements ---------------------------------------------------------------------------------

sub where_key
{
	my ($t, $i, $p) = @_;
	my @columns = key_columns($t);
	my $and = $t->{parted} && chance(0.9) ? " AND p = $p" : '';

	return 'true' if chance(0.03);
	return 't.i IN (' . join(', ', map { int rand key_count() } 1 .. 2) . ')' if chance(0.1);
	return (@columns > 1 ? '(' . join(', ', @columns) . ') = (' . key_image($t, $i) . ')' : "$columns[0] = " . key_image($t, $i)) . $and;
}

# Columns that all INSERTs name.
sub insert_columns
{
	my ($t) = @_;
	return key_columns($t), map({ column($t, $_) } qw(i p u un w wn act v vv big big2 r nn f j n m), @{ $t->{free} });
}

sub insert_values
{
	my ($t, $i, $p) = @_;

	return join ', ', key_image($t, $i), $i, $p, value_of($t, 'u'), value_of($t, 'w'), truth(), "'ins $count'", word(), big_value(), big_value(),
	  range_value(), int rand 100, one_of("'-0'", "'NaN'", '0.1', 'NULL'), document(), sum_value($t), (chance(0.1) ? 'NULL' : max_value($t)),
	  map { free_value($t->{type}{$_}) } @{ $t->{free} };
}

sub insert_sql
{
	my ($t, $i, $p) = @_;
	my $target = 'INSERT INTO ' . full_name($t) . ' AS t (' . join(', ', insert_columns($t)) . ')';
	my $sql = "$target VALUES (" . insert_values($t, $i, $p) . ')';
	my $key = join ', ', key_columns($t), ('p') x $t->{parted};
	my ($u, $r) = map { column($t, $_) } qw(u r);

	if ($t->{parted} && chance(0.1))
	{
		my @others = grep { $_ ne '"p"' } insert_columns($t);

		return 'INSERT INTO ' . full_name($t) . ' (' . join(', ', @others, 'p') . ') SELECT ' . join(', ', @others, '3 - p') . ' FROM ' . full_name($t) . ' WHERE p < 3 LIMIT 2';
	}
	return $sql if chance(0.5);
	return "$sql ON CONFLICT DO NOTHING" if !$t->{deferrable} && chance(0.5);
	return "$sql ON CONFLICT ($key) DO UPDATE SET " . column($t, 'v') . " = 'oc $count', " . column($t, 'n') . ' = ' . sum_change($t)
	  . (chance(0.5) ? ", $u = excluded.$u, un = excluded.un" : '') . (chance(0.3) ? ", $r = excluded.$r" : '');
}

# Several rows at once, one of which mostly is there.
sub rows_sql
{
	my ($t, $p) = @_;
	my @rows = map { '(' . insert_values($t, $_, $p) . ')' } grep { chance(0.5) } 0 .. key_count() - 1;
	my $columns = join ', ', insert_columns($t);

	return insert_sql($t, 0, $p) if !@rows;
	return 'INSERT INTO ' . full_name($t) . " ($columns) VALUES " . join ', ', @rows;
}

sub set_key
{
	my ($t, $i) = @_;
	my $columns = join ', ', key_columns($t);
	my $to = chance(0.4) ? $i : int rand key_count();

	return "($columns, i) = ROW(" . key_image($t, $to) . ", $to)", ('nr = DEFAULT') x ($t->{identity} =~ /INDEX|DESC/ && chance(0.8));
}

sub update_sql
{
	my ($t, $i, $p) = @_;
	my $set = sub { my ($id, $value) = @_; return column($t, $id) . " = $value"; };
	my @set = $set->('v', "'upd $count'");

	foreach my $id (qw(u w))
	{
		my ($value, $number) = value_of($t, $id);

		push @set, $set->($id, $value), "${id}n = $number" if chance(0.3);
	}
	push @set, $set->('n', sum_change($t)) if chance(0.5);
	push @set, $set->('m', chance(0.1) ? 'NULL' : max_value($t)) if chance(0.4);
	push @set, one_of('act = NOT act', 'act = true', 'act = NULL', 'act = false') if chance(0.15);
	push @set, 'vv = ' . word() if chance(0.2);
	push @set, $set->('r', range_value()) if chance(0.25);
	push @set, $set->('big', big_value()) if chance(0.15);
	push @set, $set->('big2', big_value()) if chance(0.15);
	push @set, 'nn = ' . int(rand 100) if chance(0.2);
	push @set, 'arr = ' . one_of('NULL', 'array_fill(' . int(rand 99) . ', ARRAY[1200])', "'{1}'", 'arr || 1') if chance(0.15);
	push @set, 'f = ' . one_of("'-0'", '0', "'NaN'", 'f') if chance(0.1);
	push @set, 'j = ' . document() if chance(0.1);
	push @set, $set->($_, free_value($t->{type}{$_})) foreach grep { chance(0.25) } @{ $t->{free} };
	shift @set if @set > 1 && chance(0.2);
	push @set, set_key($t, $i) if chance(0.2);
	push @set, 'p = ' . (1 + int rand $t->{partitions}) if $t->{parted} && chance(0.15);
	return 'UPDATE ' . full_name($t) . ' t SET ' . join(', ', @set) . ' WHERE ' . where_key($t, $i, $p);
}

# Two rows exchange their values.
sub swap_sql
{
	my ($t) = @_;
	my ($u, $w, $r, $v) = map { column($t, $_) } qw(u w r v);
	my $what = one_of("$u = b.$u, un = b.un", "$w = b.$w, wn = b.wn", "$r = b.$r", "$u = b.$u, un = b.un, $r = b.$r");
	my ($i, $k) = map { int rand key_count() } 1 .. 2;
	my $name = full_name($t);

	return "UPDATE $name a SET $what, $v = 'swap $count' FROM $name b WHERE a.i IN ($i, $k) AND b.i IN ($i, $k) AND a.i <> b.i" . ($t->{parted} ? ' AND a.p = b.p' : '');
}

sub merge_sql
{
	my ($t, $i, $p) = @_;
	my ($u, $v, $n) = map { column($t, $_) } qw(u v n);
	my ($value, $number) = value_of($t, 'u');

	return 'MERGE INTO ' . full_name($t) . " t USING (SELECT $i AS i, $p AS p) s ON t.i = s.i AND t.p = s.p WHEN MATCHED AND t.un = 2 THEN DELETE "
	  . "WHEN MATCHED THEN UPDATE SET $v = 'mer $count', $u = $value, un = $number WHEN NOT MATCHED THEN INSERT ("
	  . join(', ', key_columns($t), 'i', 'p', $u, 'un', $v, $n) . ') VALUES (' . join(', ', key_image($t, $i), $i, $p, $value, $number, "'mei $count'", sum_value($t)) . ')';
}

sub child_sql
{
	my ($t) = @_;
	my $name = "child_$t->{number}";
	my ($id, $to) = (int rand 6, int rand 6);
	my $columns = join ', ', map { "c_$_" } @{ $t->{ids} };
	my $image = key_image($t, int rand key_count());
	my $x = chance(0.3) ? 'NULL' : int rand 8;
	my $insert = "INSERT INTO $name (id, $columns, x, v) VALUES ($id, $image, $x, 'c $count')";

	return one_of("$insert ON CONFLICT (id) DO UPDATE SET v = excluded.v, x = excluded.x", $insert,
		"UPDATE $name SET ($columns) = ROW($image), v = 'cu $count' WHERE id = $id", "UPDATE $name SET x = $x, v = 'cx $count' WHERE id = $id",
		"UPDATE $name SET id = $to WHERE id = $id", "DELETE FROM $name WHERE id = $id");
}

sub tree_sql
{
	my ($id, $up, $pos) = map { int rand 6 } 1 .. 3;

	return one_of("INSERT INTO fktree VALUES ($id, NULL, $pos, 't $count')", "INSERT INTO fktree VALUES ($id, $up, $pos, 't $count') ON CONFLICT DO NOTHING",
		"UPDATE fktree SET up = $up, v = 'tu $count' WHERE id = $id", "UPDATE fktree SET id = $up, v = 'ti $count' WHERE id = $id",
		"UPDATE fktree SET pos = $pos WHERE id = $id", "DELETE FROM fktree WHERE id = $id");
}

# Runs of rows, which are written in batches and are streamed.
sub bulk_sql
{
	my $from = int rand 3000;
	my $size = one_of(3, 40, 400, 1500);
	my $between = "BETWEEN $from AND $from + $size";

	return one_of("INSERT INTO bulk SELECT g, g + 10000 * (g % @{[2 + int rand 3]}), 'b $count' FROM generate_series($from, $from + $size) g",
		"INSERT INTO bulk SELECT g, g, 'bc $count' FROM generate_series($from, $from + $size) g ON CONFLICT DO NOTHING",
		"COPY bulk (id) FROM PROGRAM 'seq $from 2 @{[$from + $size]}' WITH (FORMAT csv, HEADER false)",
		"UPDATE bulk SET v = 'bu $count' WHERE id $between", "DELETE FROM bulk WHERE id $between", "UPDATE bulk SET id = id + 1 WHERE id $between");
}

sub noise_sql
{
	my ($i, $u) = (int rand 4, int rand 5);
	my $name = one_of('trunc', map { "other_$_" } @others);
	my $more = $name eq 'trunc' ? ', n = coalesce(n, 0) + 1' : chance(0.5) ? ", big = repeat('b$count', 1000)" : '';

	return one_of('TRUNCATE trunc', ("INSERT INTO $name (id, u, v) VALUES ($i, $u, 'x $count')") x 2, "UPDATE $name SET v = 'xu $count'$more WHERE id = $i",
		"UPDATE $name SET u = $u WHERE id = $i", "UPDATE $name SET id = $u WHERE id = $i", "DELETE FROM $name WHERE id = $i",
		"INSERT INTO noise VALUES ($i, 'n $count')", "UPDATE noise SET v = 'nu $count' WHERE id = $i", "DELETE FROM noise WHERE id = $i");
}

sub write_sql
{
	my ($t) = @_;
	my $i = int rand key_count();
	my $p = $t->{parted} ? 1 + int rand $t->{partitions} : 1;
	my $what = rand;

	$count++;
	return $what < 0.03 ? noise_sql() : $what < 0.05 ? tree_sql() : $what < 0.07 ? bulk_sql() : $what < 0.13 && $t->{child} ? child_sql($t)
	  : $what < 0.35 ? insert_sql($t, $i, $p) : $what < 0.68 ? update_sql($t, $i, $p) : $what < 0.78 ? swap_sql($t) : $what < 0.81 ? rows_sql($t, $p)
	  : $what < 0.86 ? merge_sql($t, $i, $p) : 'DELETE FROM ' . full_name($t) . ' t WHERE ' . where_key($t, $i, $p);
}

# ---- transactions --------------------------------------------------------------------------------

# What the statement of a transaction may be wrapped in.
sub with_savepoint
{
	my ($sql, $deferrable) = @_;

	return ('SAVEPOINT s', $sql, one_of('ROLLBACK TO s', 'ROLLBACK TO s', 'RELEASE s')) if !$deferrable && chance(0.25);
	return ('SAVEPOINT e', $sql, '\if :ERROR', 'ROLLBACK TO e', '\endif') if chance(0.5);
	return $sql;
}

# As psql takes it.  One with a deferred constraint is of one statement: what was taken for
# a moment and given back is not known elsewhere.
sub transaction
{
	my (@tables) = @_;
	my $t = one_of(@tables);
	my $size = $t->{deferred} ? 1 : chance(0.5) ? 1 : 1 + int rand 5;
	my @free = grep { !$_->{deferred} } @tables;
	my (@sql, @end);

	foreach (1 .. $size)
	{
		$t = one_of(@free) if $size > 1 && @free && chance(0.3);
		push @sql, $size > 1 ? with_savepoint(write_sql($t), $t->{deferrable}) : write_sql($t);
	}
	@end = chance(0.06) ? 'ROLLBACK' : 'COMMIT';
	if (chance(0.06))
	{
		$gid++;
		@end = ("PREPARE TRANSACTION 'p$gid'", (one_of('COMMIT', 'COMMIT', 'ROLLBACK')) . " PREPARED 'p$gid'");
	}
	push @sql, 'SELECT count(*) FROM bulk a, generate_series(1, ' . int(rand 20) . ')' if chance(0.05);
	return "$sql[0];\n" if @sql == 1 && @end == 1 && chance(0.7);
	return join '', map { /^\\/ ? "$_\n" : "$_;\n" } 'BEGIN' . (chance(0.15) ? ' ISOLATION LEVEL ' . one_of('REPEATABLE READ', 'SERIALIZABLE') : ''), @sql, @end;
}

1;
