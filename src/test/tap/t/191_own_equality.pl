# What goes wrong here: a unique index has an equality of its own, by an operator class that
# is not its type's default.  What is remembered of its values has to be compared as the index
# does it, or nodes differ by whether they still have the row or only remember it.  Likewise
# values that are equal but look different by the type itself, or by a collation.

use strict;
use warnings;

use KrahoDB::PausedMesh;
use PostgreSQL::Test::Utils;
use Test::More;

my $mesh = KrahoDB::PausedMesh->new(
	names => [qw(n1 n2 n3)],
	publications => 'pub',
	schema => q{
		CREATE EXTENSION krahodb;
		CREATE FUNCTION ci_cmp(text, text) RETURNS int IMMUTABLE STRICT LANGUAGE sql AS 'SELECT bttextcmp(lower($1), lower($2))';
		CREATE FUNCTION ci_lt(text, text) RETURNS bool IMMUTABLE STRICT LANGUAGE sql AS 'SELECT lower($1) < lower($2)';
		CREATE FUNCTION ci_le(text, text) RETURNS bool IMMUTABLE STRICT LANGUAGE sql AS 'SELECT lower($1) <= lower($2)';
		CREATE FUNCTION ci_eq(text, text) RETURNS bool IMMUTABLE STRICT LANGUAGE sql AS 'SELECT lower($1) = lower($2)';
		CREATE FUNCTION ci_ge(text, text) RETURNS bool IMMUTABLE STRICT LANGUAGE sql AS 'SELECT lower($1) >= lower($2)';
		CREATE FUNCTION ci_gt(text, text) RETURNS bool IMMUTABLE STRICT LANGUAGE sql AS 'SELECT lower($1) > lower($2)';
		CREATE OPERATOR #<# (FUNCTION = ci_lt, LEFTARG = text, RIGHTARG = text);
		CREATE OPERATOR #<=# (FUNCTION = ci_le, LEFTARG = text, RIGHTARG = text);
		CREATE OPERATOR #=# (FUNCTION = ci_eq, LEFTARG = text, RIGHTARG = text);
		CREATE OPERATOR #>=# (FUNCTION = ci_ge, LEFTARG = text, RIGHTARG = text);
		CREATE OPERATOR #># (FUNCTION = ci_gt, LEFTARG = text, RIGHTARG = text);
		CREATE OPERATOR CLASS ci_ops FOR TYPE text USING btree AS
			OPERATOR 1 #<#, OPERATOR 2 #<=#, OPERATOR 3 #=#, OPERATOR 4 #>=#, OPERATOR 5 #>#,
			FUNCTION 1 ci_cmp(text, text);
		CREATE TABLE t (id int PRIMARY KEY, u text, v text);
		CREATE UNIQUE INDEX ON t (u ci_ops);
		CREATE TABLE k (id text NOT NULL, v text);
		CREATE UNIQUE INDEX k_key ON k (id ci_ops);
		ALTER TABLE k REPLICA IDENTITY USING INDEX k_key;
		CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
		CREATE TABLE c (id int PRIMARY KEY, u text COLLATE ci UNIQUE);
		CREATE TABLE n (id int PRIMARY KEY, u numeric UNIQUE);
		CREATE TABLE f (id int PRIMARY KEY, u float8 UNIQUE);
		CREATE TABLE p (id int PRIMARY KEY, u varchar(9));
		CREATE UNIQUE INDEX ON p (u varchar_pattern_ops);
		CREATE PUBLICATION pub FOR TABLE t, k, c, n, f, p});
my @queries = map { "SELECT * FROM $_ ORDER BY id" } qw(t k c n f p);
my @others;

# The newest row of 1 has another value, but its older one takes that of 2.
foreach (
	[ c => q{'x%d'}, q{'X%d'}, q{'z%d'} ],
	[ n => '%d1.0', '%d1.00', '%d2' ],
	[ f => q{'0'}, q{'-0'}, '%d2' ],
	[ p => q{'x%d'}, q{'x%d'}, q{'z%d'} ])
{
	my ($table, $lost, $claimed, $last) = @$_;

	push @others,
	  3 => "INSERT INTO $table VALUES (%d02, $lost)",
	  1 => "UPDATE $table SET u = $claimed WHERE id = %d01",
	  2 => "UPDATE $table SET u = $last WHERE id = %d01";
}

$mesh->deliver_in_orders(
	orders => [ [qw(21 23 12 13 31 32)], [qw(23 21 13 12 32 31)], [qw(32 12 31 13 21 23)] ],
	base => [ (map { "INSERT INTO $_ VALUES (%d01)" } qw(c n f p)),
		q{INSERT INTO t VALUES (%d01, 'base %d', 'old')}, q{INSERT INTO k VALUES ('a%d', 'old'), ('b%d', 'old'), ('c%d', 'old')} ],
	writes => [
		@others,
		3 => q{INSERT INTO t VALUES (%d02, 'x%d', 'lost')},
		1 => q{UPDATE t SET u = 'X%d' WHERE id = %d01},
		2 => q{UPDATE t SET u = 'z%d' WHERE id = %d01},
		# one key in several spellings
		1 => q{UPDATE k SET id = 'A%d', v = 'lost' WHERE id = 'a%d'},
		2 => q{UPDATE k SET v = 'new' WHERE id = 'a%d'},
		1 => q{DELETE FROM k WHERE id = 'b%d'},
		3 => q{UPDATE k SET id = 'B%d', v = 'new' WHERE id = 'b%d'},
		3 => q{UPDATE k SET id = 'C%d', v = 'lost' WHERE id = 'c%d'},
		2 => q{DELETE FROM k WHERE id = 'c%d'},
		1 => q{INSERT INTO k VALUES ('D%d', 'lost')},
		2 => q{INSERT INTO k VALUES ('d%d', 'lost'); DELETE FROM k WHERE id = 'd%d'}],
	compare => \@queries,
	expected => [
		[ q{SELECT string_agg(id - %d00 || ' ' || left(u, 1), ', ') FROM t WHERE id > %d00 AND id < %d99}, '1 z', 'values of other rows' ],
		(map { [ "SELECT string_agg((id - %d00)::text, ', ') FROM $_ WHERE id > %d00 AND id < %d99", '1', "of table $_" ] } qw(c n f p)),
		[ q{SELECT string_agg(left(id, 1) || ' ' || v, ', ' ORDER BY lower(id)) FROM k WHERE id ~ '%d'}, 'a new, B new', 'spellings of a key' ] ]);

is($mesh->errors, 0, 'no error');
$mesh->stop;
done_testing();
