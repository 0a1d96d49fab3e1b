# KrahoDB::RandomTables: tables that no list of cases has thought of.
#
# A table has a key of a random type, whose values have several images that are equal (1.0
# and 1.00, 'a' and 'A'), unique and exclusion constraints of random kinds, a random replica
# identity, perhaps partitions, merged columns, triggers, a row filter and a child that
# refers to it, and another order of columns on each node.  Columns have an id, by which
# the rest of the test knows them, and a name, which may change.

package KrahoDB::RandomTables;

use strict;
use warnings;

use Exporter 'import';
use List::Util qw(shuffle);

our @EXPORT = qw(one_of chance make_table table_sql types_sql unique_sql drop_unique_sql random_unique note_uniques
  published full_name quoted column key_columns key_image value_of free_value max_value free_types wider_type
  has_extra is_parted trigger_sql row_text key_count);

my $keys = 4;			# of each table
my $values = 6;			# of each unique column

sub one_of { return $_[ int rand @_ ]; }
sub chance { return rand() < $_[0]; }
sub key_count { return $keys; }

# ---- types ---------------------------------------------------------------------------------

# Key => types of its columns, and a function that makes an image of the number.  VINT and
# VTEXT are other types on each node.
my %key = (
	int => [ 'int', sub { $_[0] } ],
	text => [ 'text COLLATE "C"', sub { "'key $_[0]'" } ],
	ci => [ 'text COLLATE ci', sub { one_of("'key $_[0]'", "'KEY $_[0]'", "'Key $_[0]'") } ],
	citext => [ 'citext', sub { one_of("'key $_[0]'", "'KEY $_[0]'") } ],
	char => [ 'char(10)', sub { one_of("'$_[0]'", "'$_[0]  '") } ],
	uuid => [ 'uuid', sub { "md5('$_[0]')::uuid" } ],
	numeric => [ 'numeric', sub { one_of("$_[0]", "$_[0].0", "$_[0].00") } ],
	numnan => [ 'numeric', sub { ("'NaN'", "'-Infinity'", one_of("'0'", "'0.000'"), "'Infinity'")[ $_[0] ] } ],
	float => [ 'float8', sub { (one_of("'0'", "'-0'"), "'NaN'", "'-Infinity'", "'1e-320'")[ $_[0] ] } ],
	float4 => [ 'float4', sub { (one_of("'0'", "'-0'"), "'NaN'", "'Infinity'", "'0.1'")[ $_[0] ] } ],
	interval => [ 'interval', sub { one_of("'$_[0] mons'", "'@{[30 * $_[0]]} days'", "'@{[720 * $_[0]]} hours'") } ],
	domain => [ 'amount', sub { $_[0] . one_of('', '.0', '.00') } ],
	enum => [ 'mood', sub { "'mood$_[0]'" } ],
	array => [ 'numeric[]', sub { "'{$_[0]" . one_of('', '.0') . ",1}'" } ],
	iarray => [ 'int[]', sub { ("'{}'", "'{1,NULL}'", "'{1,2}'", "'[0:1]={1,2}'")[ $_[0] ] } ],
	ciarray => [ 'text[] COLLATE ci', sub { one_of("'{a,b$_[0]}'", "'{A,b$_[0]}'", "'{a,B$_[0]}'") } ],
	enumarray => [ 'mood[]', sub { "'{mood$_[0],mood1}'" } ],
	range => [ 'numrange', sub { "'[$_[0]" . one_of('', '.0') . ",@{[$_[0] + 1]})'" } ],
	cirange => [ 'cirange', sub { one_of("'[a$_[0],b]'", "'[A$_[0],b]'", "'[a$_[0],B]'") } ],
	multirange => [ 'nummultirange', sub { "'{[$_[0]" . one_of('', '.0') . ",@{[$_[0] + 1]}), [9,10)}'" } ],
	jsonb => [ 'jsonb', sub { "'{\"a\": $_[0]" . one_of('', '.0') . "}'" } ],
	hstore => [ 'hstore', sub { one_of("'a=>$_[0],b=>1'", "'b=>1,a=>$_[0]'") } ],
	bytea => [ 'bytea', sub { "'\\x0$_[0]'" } ],
	composite => [ 'pair', sub { "ROW($_[0]" . one_of('', '.0') . ", 'b')::pair" } ],
	cipair => [ 'cipair', sub { 'ROW(' . one_of("'a'", "'A'") . ", $_[0])::cipair" } ],
	money => [ 'money', sub { "'$_[0]'::money" } ],
	tsvector => [ 'tsvector', sub { one_of("'a b$_[0]'", "'b$_[0] a'") . '::tsvector' } ],
	timestamptz => [ 'timestamptz', sub { one_of("'2026-01-01 0$_[0]:00+00'", "'2026-01-01 0@{[$_[0] + 1]}:00+01'") } ],
	xid8 => [ 'xid8', sub { "'$_[0]'" } ],
	lsn => [ 'pg_lsn', sub { one_of("'0/A$_[0]'", "'0/a$_[0]'") } ],
	dtext => [ 'dtext', sub { one_of("'key $_[0]'", "'KEY $_[0]'") } ],
	darr => [ 'darr', sub { "'{$_[0]" . one_of('', '.0') . "}'" } ],
	dnum => [ 'dnum', sub { $_[0] . one_of('', '.0') } ],
	bits => [ 'varbit', sub { "$_[0]::bit(4)" } ],
	inet => [ 'inet', sub { "'10.0.0.$_[0]'" } ],
	timetz => [ 'timetz', sub { "'0$_[0]:00+0$_[0]'" } ],
	long => [ 'text', sub { "repeat('k$_[0]', 1000)" } ],
	longx => [ 'text', sub { "(SELECT string_agg(md5('i$_[0]' || g), '') FROM generate_series(1, 47) g)" } ],
	vint => [ 'VINT', sub { $_[0] } ],
	vtext => [ 'VTEXT', sub { "'kt$_[0]'" } ],
	bool => [ 'bool, int', sub { ($_[0] % 2 ? 'true' : 'false') . ', ' . int($_[0] / 2) } ],
	two => [ 'text COLLATE ci, numeric', sub { one_of("'a'", "'A'") . ", $_[0]" . one_of('', '.0') } ],
	three => [ 'date, citext, "char"', sub { "'2026-01-01', " . one_of("'x'", "'X'") . ", '$_[0]'" } ],
);

# Types of columns u and w, which are unique.
my %value = (
	int => sub { $_[0] },
	VINT => sub { $_[0] },
	VTEXT => sub { "'w$_[0]'" },
	numeric => sub { $_[0] . one_of('', '.0') },
	citext => sub { one_of("'v$_[0]'", "'V$_[0]'") },
	'text COLLATE ci' => sub { one_of("'v$_[0]'", "'V$_[0]'") },
	'text[] COLLATE ci' => sub { one_of("'{v,v$_[0]}'", "'{V,v$_[0]}'") },
	cirange => sub { one_of("'[v$_[0],z]'", "'[V$_[0],Z]'") },
	hstore => sub { one_of("'a=>$_[0],c=>2'", "'c=>2,a=>$_[0]'") },
	float8 => sub { $_[0] == 1 ? one_of("'0'", "'-0'") : $_[0] == 2 ? "'NaN'" : $_[0] },
	interval => sub { one_of("'$_[0] mons'", "'@{[30 * $_[0]]} days'") },
	amount => sub { $_[0] . one_of('', '.0') },
);

# Kinds of uniqueness: SQL for constraint %x of table %s, column %c with number %n (and %p
# behind it where there are partitions, of which only those without "own" are possible).
my %unique = (
	plain => [ 'ALTER TABLE %s ADD CONSTRAINT %x UNIQUE (%c%p)' ],
	both => [ 'ALTER TABLE %s ADD CONSTRAINT %x UNIQUE (%u, %w%p)' ],
	nnd_both => [ 'CREATE UNIQUE INDEX %x ON %s (%u, %w%p) NULLS NOT DISTINCT' ],
	desc => [ 'CREATE UNIQUE INDEX %x ON %s (%c DESC NULLS LAST%p)' ],
	deferred => [ 'ALTER TABLE %s ADD CONSTRAINT %x UNIQUE (%c%p) DEFERRABLE INITIALLY DEFERRED' ],
	deferrable => [ 'ALTER TABLE %s ADD CONSTRAINT %x UNIQUE (%c%p) DEFERRABLE' ],
	nnd_deferrable => [ 'ALTER TABLE %s ADD CONSTRAINT %x UNIQUE NULLS NOT DISTINCT (%c%p) DEFERRABLE' ],
	include => [ 'CREATE UNIQUE INDEX %x ON %s (%c%p) INCLUDE (%v)' ],
	nulls => [ 'CREATE UNIQUE INDEX %x ON %s (%c%p) NULLS NOT DISTINCT' ],
	expression => [ 'CREATE UNIQUE INDEX %x ON %s ((%n %% 3)%p)' ],
	expr2 => [ 'CREATE UNIQUE INDEX %x ON %s ((coalesce(%n, 0) / 2)%p) WHERE act IS NOT TRUE' ],
	generated => [ 'CREATE UNIQUE INDEX %x ON %s (made%p)' ],
	partial => [ 'CREATE UNIQUE INDEX %x ON %s (%c%p) WHERE act' ],
	partial2 => [ 'CREATE UNIQUE INDEX %x ON %s (%c%p) WHERE act AND %n > 2' ],
	partial_nnd => [ 'CREATE UNIQUE INDEX %x ON %s (%c%p) NULLS NOT DISTINCT WHERE NOT act' ],
	whole => [ 'CREATE UNIQUE INDEX %x ON %s (whole_%t(%s.*)) WHERE vv IS NOT NULL', 'own' ],
	pattern => [ 'CREATE UNIQUE INDEX %x ON %s (vv text_pattern_ops%p)' ],
	arrexpr => [ 'CREATE UNIQUE INDEX %x ON %s ((ARRAY[%n, length(vv)])%p) NULLS NOT DISTINCT' ],
	genrow => [ 'CREATE UNIQUE INDEX %x ON %s (made, vv%p) NULLS NOT DISTINCT WHERE act IS NOT FALSE' ],
	lowerv => [ 'CREATE UNIQUE INDEX %x ON %s (lower(vv)%p)' ],
	civ => [ 'CREATE UNIQUE INDEX %x ON %s (vv COLLATE ci%p) INCLUDE (i)' ],
	excl => [ 'ALTER TABLE %s ADD CONSTRAINT %x EXCLUDE USING btree (%c WITH =)', 'own' ],
	excl_hash => [ 'ALTER TABLE %s ADD CONSTRAINT %x EXCLUDE USING hash (%c WITH =) WHERE (act)', 'own' ],
	excl_over => [ 'ALTER TABLE %s ADD CONSTRAINT %x EXCLUDE USING gist (%r WITH &&)', 'own' ],
	excl_two => [ 'ALTER TABLE %s ADD CONSTRAINT %x EXCLUDE USING gist (%n WITH =, %r WITH &&)', 'own' ],
	excl_ne => [ 'ALTER TABLE %s ADD CONSTRAINT %x EXCLUDE USING gist (un WITH =, wn WITH <>)', 'own' ],
	excl_adj => [ 'ALTER TABLE %s ADD CONSTRAINT %x EXCLUDE USING gist (%r WITH -|-) WHERE (act)', 'own' ],
	excl_def => [ 'ALTER TABLE %s ADD CONSTRAINT %x EXCLUDE USING gist (%r WITH &&) DEFERRABLE INITIALLY DEFERRED', 'own' ],
	excl_spgist => [ 'ALTER TABLE %s ADD CONSTRAINT %x EXCLUDE USING spgist (%r WITH &&)', 'own' ],
);

# Types of merged columns: n is a sum, m a maximum or minimum.
my @sums = ('int', 'bigint', 'smallint', 'numeric', 'numeric(10,2)', 'money', 'interval', 'amount2', 'dint', 'dmoney');
my %maxes = (
	dtext => sub { one_of("'a'", "'A'", "'b'") . (chance(0.3) ? " || repeat('x', 3000)" : '') },
	dnum => sub { int(rand 9) . one_of('', '.0') },
	text => sub { chance(0.3) ? "'z' || (SELECT string_agg(md5('" . int(rand 9) . "' || g), '') FROM generate_series(1, 120) g)" : "'y" . int(rand 9) . "'" },
	jsonb => sub { "'{\"a\": " . int(rand 9) . one_of('', '.0') . "}'" },
	pair => sub { 'ROW(' . int(rand 5) . one_of('', '.0') . ", 'x')::pair" },
	cipair => sub { 'ROW(' . one_of("'a'", "'A'", "'b'") . ", 1)::cipair" },
	numrange => sub { "'[" . int(rand 5) . ",9]'" },
	int => sub { int rand 100 },
	numeric => sub { int(rand 9) . one_of('', '.0') },
	citext => sub { one_of("'a'", "'A'", "'b'", "'B'") },
	float8 => sub { one_of("'0'", "'-0'", "'NaN'", '1', '2') },
	'text COLLATE ci' => sub { one_of("'a'", "'A'", "'b'", "'B'") },
	'int[]' => sub { "'{" . int(rand 5) . "}'" },
	timestamptz => sub { "'2026-01-0" . (1 + int rand 9) . "'" },
	interval => sub { one_of("'1 mon'", "'30 days'", "'1 day'", "'31 days'") },
	hstore => sub { "'a=>" . int(rand 9) . "'" },
	money => sub { "'" . int(rand 9) . "'::money" });

# Types of columns that are nothing but values.
my %free = (
	int => sub { int rand 100 },
	bigint => sub { int rand 100 },
	'numeric(8,2)' => sub { one_of('1', '1.5', "'NaN'") },
	numeric => sub { one_of('1', '1.50', "'NaN'") },
	text => sub { "'f" . int(rand 100) . "'" },
	'varchar(90)' => sub { "'f" . int(rand 100) . "'" },
	json => sub { one_of(q('{"a": 1}'), q('{"a":  1}'), q('[]')) },
	point => sub { "'(" . int(rand 9) . ",2)'" },
	path => sub { "'[(1,2),(3," . int(rand 9) . ")]'" },
	hstore => sub { "'a=>" . int(rand 9) . ",b=>NULL'" },
	mood => sub { "'mood" . int(rand 4) . "'" },
	'mood[]' => sub { "'{mood" . int(rand 4) . ",NULL}'" },
	pair => sub { 'ROW(' . int(rand 9) . ", 'q')::pair" },
	'pair[]' => sub { 'ARRAY[ROW(' . int(rand 9) . ", NULL)::pair]" },
	cirange => sub { "'[a," . one_of('b', 'B') . ")'" },
	bytea => sub { "'\\x00" . int(10 + rand 89) . "'" },
	bool => sub { one_of('true', 'false') },
	timestamptz => sub { one_of("'infinity'", "'2026-01-01 0" . int(rand 9) . ":00'") },
	interval => sub { "'" . int(rand 9) . " days 25 hours'" },
	cidr => sub { "'10." . int(rand 9) . ".0.0/16'" },
	money => sub { "'" . int(rand 99) . "'::money" },
	'bit(5)' => sub { int(rand 30) . '::bit(5)' },
	tsrange => sub { "'[2026-01-0" . int(1 + rand 9) . ",)'" },
	int4multirange => sub { "'{[1,3),[" . int(5 + rand 9) . ",20)}'" },
	tsvector => sub { "'a:" . int(1 + rand 9) . "A b'::tsvector" },
	tsquery => sub { "'a & b" . int(rand 9) . "'::tsquery" },
	xid8 => sub { "'" . int(rand 99) . "'" },
	oid => sub { int rand 99 },
	name => sub { "'n" . int(rand 99) . "'" },
	'"char"' => sub { "'" . int(rand 9) . "'" },
	'char(3)' => sub { "'" . int(rand 99) . "'" },
	'varchar(30)' => sub { "'" . int(rand 99) . "'" },
	macaddr8 => sub { "'08:00:2b:01:02:03:04:0" . int(rand 9) . "'" },
	jsonpath => sub { "'\$.a[" . int(rand 9) . "]'" },
	darr => sub { "'{" . int(rand 9) . "}'" },
	citext => sub { one_of("'x'", "'X'") },
	'text COLLATE ci' => sub { one_of("'x'", "'X'") },
	'text[] COLLATE ci' => sub { one_of("'{x}'", "'{X}'") },
	'timestamptz[]' => sub { "'{2026-01-0" . int(1 + rand 9) . "}'" },
);

sub key_image { my ($table, $i) = @_; return $key{ $table->{key} }[1]->($i); }
sub max_value { my ($table) = @_; return $maxes{ $table->{mtype} }->(); }
sub free_value { my ($type) = @_; return chance(0.15) && $type ne 'darr' ? 'NULL' : $free{$type}->(); }

# What a column of that type may become by ALTER TABLE.
my %wider = (int => 'bigint', bigint => 'numeric', 'numeric(8,2)' => 'numeric', 'varchar(30)' => 'text', text => 'varchar(90)', name => 'text', 'char(3)' => 'text');

sub wider_type { return $wider{ $_[0] }; }
sub free_types { return grep { $_ ne 'darr' } sort keys %free; }

# A value of a unique column, and its number.
sub value_of
{
	my ($table, $id) = @_;
	my $number = chance(0.15) ? 'NULL' : 1 + int rand $values;

	return $number eq 'NULL' ? ('NULL', 'NULL') : ($value{ $table->{type}{$id} }->($number), $number);
}

# SQL for all types; where OIDs may differ between nodes, they do.
sub types_sql
{
	my ($node, $shifted) = @_;

	return (
		map({ "CREATE TYPE unused_$_ AS (a int)" } 1 .. ($shifted ? 2 * $node : 0)),
		q{CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)},
		'CREATE DOMAIN amount AS numeric CHECK (VALUE >= 0)',
		'CREATE DOMAIN amount2 AS numeric(12,3)',
		'CREATE DOMAIN dint AS bigint CHECK (VALUE > -100000)',
		'CREATE DOMAIN dmoney AS money',
		'CREATE DOMAIN dtext AS text COLLATE ci CHECK (length(VALUE) < 100000)',
		'CREATE DOMAIN darr AS numeric[] NOT NULL',
		'CREATE DOMAIN dnum AS amount CHECK (VALUE < 1000)',
		'CREATE TYPE mood AS ENUM (' . join(', ', map { "'mood$_'" } 0 .. $keys) . ')',
		'CREATE TYPE pair AS (a numeric, b text)',
		'CREATE TYPE cipair AS (a text COLLATE ci, b int)',
		'CREATE TYPE cirange AS RANGE (subtype = text, collation = ci)');
}

# ---- tables ----------------------------------------------------------------------------------

my @fixed = qw(i p u w un wn act v vv big big2 r nn f j n m arr);

sub random_unique
{
	my ($table) = @_;
	my $parted = $table->{how} ne '';
	my $kind = one_of(grep { (!$parted || !$unique{$_}[1]) && !($table->{merged} && $_ eq 'whole') } sort keys %unique);
	my $id = one_of('u', 'w');

	return { name => "uq$table->{number}_" . ++$table->{unique_count}, kind => $kind, id => $id,
		constraint => $unique{$kind}[0] =~ /ADD CONSTRAINT/ ? 1 : 0 };
}

# Has it deferrable constraints, or deferred ones?
sub note_uniques
{
	my ($t) = @_;

	$t->{deferrable} = grep { $_->{kind} =~ /def/ } @{ $t->{uniques} };
	$t->{deferred} = grep { $_->{kind} =~ /^(deferred|excl_def)$/ } @{ $t->{uniques} };
	return;
}

sub make_table
{
	my ($number, $nodes) = @_;
	my $key = $ENV{RANDOM_KEY} || one_of(sort keys %key);
	my @types = split /, /, $key{$key}[0];
	my $how = chance(0.3) ? one_of('leaves', 'root', 'mixed') : '';

	$how = 'root' if $how eq 'mixed' && grep { !/^(int|uuid|bytea|date|bool|float8)$/ } @types;
	my $identity = $how ? one_of('DEFAULT', 'FULL') : one_of('DEFAULT', 'FULL', 'INDEX', 'DESC', 'VARIED');
	my %t = (
		number => $number, key => $key, how => $how, identity => $identity,
		schema => one_of('public', 'public', 'Odd s'), name => one_of("t$number", "T \"$number"),
		ids => [ map { "k$_" } 1 .. @types ], parted => $how ne '', root => $how =~ /root|mixed/ ? 1 : 0,
		partitions => 2, unique_count => 0, uniques => [], free => [], nodes => $nodes);
	$t{names} = { (map { $_ => $_ } @fixed), map { ("k$_" => $_ == 1 ? 'k' : "K $_") } 1 .. @types };
	$t{type} = { (map { ("k$_" => $types[ $_ - 1 ]) } 1 .. @types), u => one_of(sort keys %value), w => one_of(sort keys %value) };
	$t{merged} = $identity eq 'FULL' && chance(0.6) ? 1 : 0;
	$t{was_merged} = $t{merged};
	$t{ntype} = one_of(@sums);
	$t{mtype} = one_of(sort keys %maxes);
	$t{way} = one_of('max', 'min');
	$t{filter} = !$how && $identity !~ /INDEX|DESC/ && $key =~ /^(int|text|numeric|vint)$/ && chance(0.5) ? 1 : 0;
	$t{varied} = {
		VINT => [ map { one_of('int', 'bigint', 'numeric', 'smallint') } 0 .. $nodes ],
		VTEXT => [ map { one_of('text', 'varchar(40)', 'varchar', 'name') } 0 .. $nodes ] };
	$t{nntypes} = [ map { one_of('int', 'bigint', 'numeric', 'text', 'smallint') } 0 .. $nodes ];
	$t{trigger} = chance(0.2) ? one_of('before', 'after', 'both') : '';
	$t{storage} = one_of('EXTERNAL', 'EXTERNAL', 'EXTENDED', 'MAIN');
	$t{compression} = one_of('pglz', 'lz4');
	$t{fillfactor} = chance(0.3) ? one_of(10, 50) : 100;
	$t{child} = !$how && $key !~ /composite|cipair/ && $identity !~ /INDEX|DESC/ && !$t{filter} && chance(0.3) ? one_of('CASCADE', 'SET NULL') : '';
	$t{ri} = [ map { $identity =~ /INDEX|DESC/ ? "USING INDEX key$number" : $identity eq 'VARIED' ? one_of('DEFAULT', 'FULL', "USING INDEX key$number") : $identity } 0 .. $nodes ];
	foreach my $n (1 .. int rand 3)
	{
		my $type = one_of(sort keys %free);

		push @{ $t{free} }, "fr$n";
		@t{qw(names type)} = ({ %{ $t{names} }, "fr$n" => "fr$n" }, { %{ $t{type} }, "fr$n" => $type });
	}
	push @{ $t{uniques} }, random_unique(\%t) foreach $t{filter} || $how eq 'mixed' ? () : 1 .. int rand 4;
	note_uniques(\%t);
	return \%t;
}

sub quoted { my ($name) = @_; $name =~ s/"/""/g; return "\"$name\""; }
sub column { my ($table, $id) = @_; return quoted($table->{names}{$id}); }
sub full_name { my ($table) = @_; return quoted($table->{schema}) . '.' . quoted($table->{name}); }
sub key_columns { my ($table) = @_; return map { column($table, $_) } @{ $table->{ids} }; }

sub columns_of
{
	my ($table) = @_;
	return map { column($table, $_) } @{ $table->{ids} }, @fixed, @{ $table->{free} };
}

# Has it columns on node 2 that are not published, which REPLICA IDENTITY FULL does not allow?
sub has_extra
{
	my ($table, $node) = @_;
	return $node == 2 && $table->{identity} !~ /FULL|VARIED/ && (!$table->{parted} || $table->{root});
}

# Is it partitioned there?
sub is_parted
{
	my ($table, $node) = @_;
	return $table->{how} eq 'mixed' ? $node != 3 : $table->{parted} && !($table->{root} && $node == 2);
}

# As CREATE PUBLICATION takes it.
sub published
{
	my ($table, $node) = @_;
	my $list = has_extra($table, $node) ? ' (' . join(', ', columns_of($table), ('nr') x ($table->{identity} =~ /INDEX|DESC/)) . ')' : '';
	my $where = $table->{filter} ? ' WHERE (' . column($table, 'k1') . ' <> ' . filter_key($table) . ')' : '';

	return full_name($table) . $list . $where;
}

sub filter_key { my ($table) = @_; return $table->{key} eq 'text' ? "'key 1'" : 1; }

# The uniqueness as SQL, and SQL that takes it away.
sub unique_sql
{
	my ($table, $unique) = @_;
	my $sql = $unique{ $unique->{kind} }[0];
	my %part = (s => full_name($table), x => $unique->{name}, t => $table->{number}, n => "$unique->{id}n", p => $table->{parted} ? ', p' : '',
		c => column($table, $unique->{id}), (map { $_ => column($table, $_) } qw(u w v r)), '%' => '%');

	$sql =~ s/%([sxtnpcuwvr%])/$part{$1}/g;
	return $sql;
}

sub drop_unique_sql
{
	my ($table, $unique) = @_;

	return $unique->{constraint} ? 'ALTER TABLE ' . full_name($table) . " DROP CONSTRAINT $unique->{name}"
	  : 'DROP INDEX ' . quoted($table->{schema}) . ".$unique->{name}";
}

# What its rows are compared by.
sub row_text
{
	my ($table) = @_;
	my $sum = column($table, 'n');
	my %image = (big => 'md5(%)', big2 => 'md5(%)', arr => 'md5(%::text)', nn => '%::text',
		m => $table->{mtype} eq 'text' ? 'md5(%)' : '%', n => $table->{was_merged} && $table->{ntype} eq 'numeric' ? 'trim_scale(%)' : '%',
		(map { $_ => $table->{type}{$_} =~ /^V/ ? '%::text' : '%' } @{ $table->{ids} }, qw(u w)));
	my @parts = map { my $form = $image{$_} // '%'; my $name = column($table, $_); $form =~ s/%/$name/; $form } @{ $table->{ids} }, @fixed, @{ $table->{free} };

	return 'ROW(' . join(', ', @parts, 'made', 'ng', $table->{trigger} =~ /before|both/ ? 'stamp' : ()) . ')::text FROM ' . full_name($table)
	  . ($table->{filter} ? ' WHERE ' . column($table, 'k1') . ' <> ' . filter_key($table) : '');
}

# ---- their SQL -------------------------------------------------------------------------------

sub column_list
{
	my ($t, $node) = @_;
	my @columns = (
		(map { column($t, $_) . " $t->{type}{$_} NOT NULL" } @{ $t->{ids} }),
		'i int', 'p int NOT NULL DEFAULT 1', "u $t->{type}{u}", "w $t->{type}{w}", 'un int', 'wn int', 'act bool', 'v text',
		'vv text', 'big text', 'big2 text', 'r int4range', "nn $t->{nntypes}[$node]", 'f float8', 'j jsonb', "n $t->{ntype}", "m $t->{mtype}",
		'made int GENERATED ALWAYS AS (un / 2) STORED',
		'ng text GENERATED ALWAYS AS (CASE WHEN n IS NULL THEN vv ELSE v END) STORED', 'arr int[]', 'stamp text',
		map { "$_ $t->{type}{$_}" . ($t->{type}{$_} eq 'darr' ? " DEFAULT '{7}'" : '') } @{ $t->{free} });

	@columns = shuffle @columns, 'gone int', 'gone2 text', (q{extra text DEFAULT 'x'}, q{extra2 bigint DEFAULT nextval('s')}) x has_extra($t, $node)
	  if $node > 1;
	return @columns;
}

sub partitions_sql
{
	my ($t, $node, @columns) = @_;
	my $name = full_name($t);
	my $part = "part_$t->{number}";

	if ($t->{how} eq 'mixed' && $node == 2)
	{
		$t->{parts}[$node] = [ map { "${part}_$_" } 1 .. 3 ];
		return map { "CREATE TABLE ${part}_$_ PARTITION OF $name FOR VALUES WITH (MODULUS 3, REMAINDER " . ($_ - 1) . ')' } 1 .. 3;
	}
	$t->{parts}[$node] = [ map { "${part}_$_" } 1 .. 2 ];
	return "CREATE TABLE ${part}_1 PARTITION OF $name FOR VALUES IN (1)",
	  "CREATE TABLE ${part}_2 (" . join(', ', shuffle @columns) . ')',
	  (map { "ALTER TABLE ${part}_2 $_" } ('DROP gone', 'DROP gone2') x ($node > 1), storage_of($t)),
	  "ALTER TABLE $name ATTACH PARTITION ${part}_2 FOR VALUES IN (2)";
}

sub storage_of
{
	my ($t) = @_;
	return "ALTER big SET STORAGE $t->{storage}, ALTER big SET COMPRESSION $t->{compression}, ALTER big2 SET STORAGE EXTERNAL, ALTER arr SET STORAGE EXTERNAL";
}

sub key_sql
{
	my ($t, $node) = @_;
	my $name = full_name($t);
	my @key = (key_columns($t), ('p') x $t->{parted});

	return $t->{identity} eq 'INDEX' ? "ALTER TABLE $name ADD CONSTRAINT key$t->{number} UNIQUE (" . join(', ', @key) . ')'
	  : $t->{identity} eq 'DESC' ? "CREATE UNIQUE INDEX key$t->{number} ON $name (" . join(' DESC, ', @key) . ' DESC NULLS LAST) INCLUDE (v)'
	  : "ALTER TABLE $name ADD CONSTRAINT key$t->{number} PRIMARY KEY (" . join(', ', @key) . ')' . one_of('', ' INCLUDE (v, un)');
}

sub trigger_sql
{
	my ($t, $node) = @_;
	my $name = full_name($t);
	my @on = is_parted($t, $node) ? @{ $t->{parts}[$node] } : $name;
	my @sql;

	push @sql, "CREATE TRIGGER tb BEFORE INSERT OR UPDATE ON $name FOR EACH ROW EXECUTE FUNCTION stamp_it()",
	  map { "ALTER TABLE $_ ENABLE ALWAYS TRIGGER tb" } @on if $t->{trigger} =~ /before|both/;
	push @sql, "CREATE TRIGGER ta AFTER INSERT OR UPDATE OR DELETE ON $name FOR EACH ROW EXECUTE FUNCTION audit_it()",
	  map { "ALTER TABLE $_ ENABLE ALWAYS TRIGGER ta" } @on if $t->{trigger} =~ /after|both/;
	return @sql;
}

sub child_sql
{
	my ($t) = @_;
	my @ids = @{ $t->{ids} };

	return "CREATE TABLE child_$t->{number} (id int PRIMARY KEY, " . join(', ', map { "c_$_ $t->{type}{$_}" } @ids)
	  . ', x int UNIQUE, v text, FOREIGN KEY (' . join(', ', map { "c_$_" } @ids) . ') REFERENCES ' . full_name($t) . ' (' . join(', ', key_columns($t))
	  . ") ON DELETE $t->{child} ON UPDATE CASCADE)";
}

sub table_sql
{
	my ($t, $node) = @_;
	my $name = full_name($t);
	my $parted = is_parted($t, $node);
	my @columns = column_list($t, $node);
	my @sql = "CREATE TABLE $name (" . join(', ', @columns) . ')' . ($parted
		? ' PARTITION BY ' . ($t->{how} eq 'mixed' && $node == 2 ? 'HASH (' . column($t, 'k1') . ')' : 'LIST (p)')
		: $t->{parted} ? '' : " WITH (fillfactor = $t->{fillfactor})");

	push @sql, "ALTER TABLE $name DROP gone, DROP gone2" if $node > 1;
	push @sql, "ALTER TABLE $name " . storage_of($t);
	push @sql, "ALTER TABLE $name ADD nr int GENERATED BY DEFAULT AS IDENTITY (START $node INCREMENT $t->{nodes}) PRIMARY KEY"
	  if $t->{identity} =~ /INDEX|DESC/;
	push @sql, key_sql($t, $node);
	push @sql, "CREATE FUNCTION whole_$t->{number}($name) RETURNS text IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN \$1.vv || coalesce(\$1.un, 0) / 3; END'";
	push @sql, unique_sql($t, $_) foreach @{ $t->{uniques} };
	push @sql, "CREATE INDEX ON $name USING hash (vv)" if chance(0.2);
	push @sql, "CREATE INDEX ON $name USING gin (j)" if chance(0.1);
	push @sql, "CREATE INDEX ON $name USING brin (i)" if chance(0.1);
	push @sql, partitions_sql($t, $node, @columns) if $parted;
	push @sql, map { "ALTER TABLE $_ REPLICA IDENTITY $t->{ri}[$node]" } $name, $parted ? @{ $t->{parts}[$node] } : ();
	push @sql, "ALTER TABLE $name ALTER n SET (krahodb.merge = delta), ALTER m SET (krahodb.merge = $t->{way})" if $t->{merged};
	push @sql, trigger_sql($t, $node);
	push @sql, child_sql($t) if $t->{child};
	s/\b(VINT|VTEXT)\b/$t->{varied}{$1}[$node]/g foreach @sql;
	return @sql;
}

1;
