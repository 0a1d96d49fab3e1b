# What goes wrong here: tables that no list of cases has thought of.  Each has a key of a
# random type, written in one of several images that are equal (1.0 and 1.00, 'a' and
# 'A'), unique values kept by a random kind of constraint, a random replica identity,
# large values that most updates leave unsent, perhaps partitions and a merged column, and
# another order of columns on each node.  All nodes write random transactions to a few
# keys, while random streams run for a while, VACUUM does, ALTER TABLE writes all rows anew, or a server is killed.  Each
# node must end with the rows that follow from the set of all writes: of each key the last
# one, but none whose unique value a later write of another key has ever claimed; and of a
# merged column the last value assigned with all that was added since.  Edits that then
# follow each other from node to node are no conflicts.
#
# The seed is the same in each run, unless KRAHODB_TEST_SEED names another one.

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::PausedMesh;
use List::Util qw(shuffle);
use PostgreSQL::Test::Utils;
use Test::More;

my $seed = $ENV{KRAHODB_TEST_SEED} || 2;

diag "KRAHODB_TEST_SEED=$seed";
srand $seed;

my $rounds = 1;
my $nodes = 2 + int rand 2;
my $keys = 6;		# of each table
my $values = 14;		# of each unique column

sub one_of { return $_[ int rand @_ ]; }
sub chance { return rand() < $_[0]; }

# ---- keys ------------------------------------------------------------------------------

# Name => types of the columns, function that makes literals for a number; called
# twice it may make different images of the same value.
my %key = (
	int => [ 'int', sub { $_[0] } ],
	text => [ 'text COLLATE "C"', sub { "'key $_[0]'" } ],
	ci => [ 'text COLLATE ci', sub { one_of("'key $_[0]'", "'KEY $_[0]'", "'Key $_[0]'") } ],
	citext => [ 'citext', sub { one_of("'key $_[0]'", "'KEY $_[0]'") } ],
	varchar => [ 'varchar(20)', sub { "'$_[0]'" } ],
	char => [ 'char(10)', sub { one_of("'$_[0]'", "'$_[0]  '") } ],
	uuid => [ 'uuid', sub { "md5('$_[0]')::uuid" } ],
	stamp => [ 'timestamptz', sub { one_of("'2026-01-0@{[$_[0]+1]} 01:00+01'", "'2026-01-0@{[$_[0]+1]} 00:00+00'") } ],
	numeric => [ 'numeric', sub { $_[0] . one_of('', '.0', '.00') } ],
	float => [ 'float8', sub { $_[0] ? $_[0] : one_of("'0'", "'-0'") } ],
	interval => [ 'interval', sub { one_of("'$_[0] days'", "'@{[24 * $_[0]]} hours'") } ],
	domain => [ 'amount', sub { $_[0] . one_of('', '.0', '.00') } ],
	enum => [ 'mood', sub { "'mood$_[0]'" } ],
	array => [ 'numeric[]', sub { "'{$_[0]" . one_of('', '.0') . ",1}'" } ],
	range => [ 'numrange', sub { "'[$_[0]" . one_of('', '.0') . ",@{[$_[0] + 1]})'" } ],
	jsonb => [ 'jsonb', sub { "'{\"a\": $_[0]" . one_of('', '.0') . "}'" } ],
	bytea => [ 'bytea', sub { "'\\x0$_[0]'" } ],
	composite => [ 'pair', sub { "ROW($_[0]" . one_of('', '.0') . ", 'b')::pair" } ],
	bits => [ 'varbit', sub { "$_[0]::bit(4)" } ],
	inet => [ 'inet', sub { "'10.0.0.$_[0]'" } ],
	name => [ 'name', sub { "'n$_[0]'" } ],
	bool => [ 'int, bool', sub { int($_[0] / 2) . ', ' . ($_[0] % 2 ? 'true' : 'false') } ],
	two => [ 'text COLLATE ci, numeric', sub { one_of("'a'", "'A'") . ", $_[0]" . one_of('', '.0') } ],
	three => [ 'date, citext, "char"', sub { "'2026-01-01', " . one_of("'x'", "'X'") . ", '$_[0]'" } ],
);

if (($ENV{with_icu} // '') ne 'yes')
{
	$_->[0] =~ s/text COLLATE ci/citext/ foreach values %key;
}

# ---- unique values ----------------------------------------------------------------------

my %value = (
	int => sub { $_[0] },
	numeric => sub { $_[0] . one_of('', '.0') },
	citext => sub { one_of("'v$_[0]'", "'V$_[0]'") },
	$key{ci}[0] => sub { one_of("'v$_[0]'", "'V$_[0]'") },
);

# Kind => SQL for table %s, column %c (with %p behind it where there are partitions, of
# which only those without "own" are possible), what a row claims.  Rows have i, p, act,
# and numbers of u and w.
my %unique = (
	plain => [ 'ALTER TABLE %s ADD UNIQUE (%c%p)' ],
	deferred => [ 'ALTER TABLE %s ADD UNIQUE (%c%p) DEFERRABLE INITIALLY DEFERRED' ],
	deferrable => [ 'ALTER TABLE %s ADD UNIQUE (%c%p) DEFERRABLE' ],
	include => [ 'CREATE UNIQUE INDEX ON %s (%c%p) INCLUDE (v)' ],
	nulls => [ 'CREATE UNIQUE INDEX ON %s (%c%p) NULLS NOT DISTINCT' ],
	expression => [ 'CREATE UNIQUE INDEX ON %s ((%c::text || %c::text)%p)' ],
	partial => [ 'CREATE UNIQUE INDEX ON %s (%c%p) WHERE act' ],
	excl => [ 'ALTER TABLE %s ADD EXCLUDE USING btree (%c WITH =)', 'own' ],
	excl_hash => [ 'ALTER TABLE %s ADD EXCLUDE USING hash (%c WITH =) WHERE (act)', 'own' ],
	excl_gist => [ 'ALTER TABLE %s ADD EXCLUDE USING gist (int4range(%n, %n + 1) WITH &&) WHERE (%n IS NOT NULL)', 'own' ],
	excl_deferred => [ 'ALTER TABLE %s ADD EXCLUDE USING gist (int4range(%n, %n + 1) WITH &&) WHERE (%n IS NOT NULL) DEFERRABLE INITIALLY DEFERRED', 'own' ],
	none => [ '' ],
);

sub claims_of
{
	my ($table, $row) = @_;
	my @claims;

	foreach my $column (qw(u w))
	{
		my $kind = $table->{$column}{unique};
		my $value = $row->{$column};

		next if $kind eq 'none' || (!defined $value && $kind ne 'nulls');
		next if $kind =~ /^(partial|excl_hash)$/ && !$row->{act};
		push @claims, "$column $row->{p} " . ($value // 'null');
	}
	return @claims;
}

# ---- tables -------------------------------------------------------------------------------

my @tables;

sub make_table
{
	my ($number, $key) = @_;
	my @types = split /, /, $key{$key}[0];
	my $parted = chance(0.3);
	my %table = (
		number => $number,
		name => one_of("t$number", "\"T \"\"$number\"", "\"Odd schema\".\"select$number\""),
		key => $key,
		columns => [ map { $_ == 1 ? 'k' : "\"K $_\"" } 1 .. @types ],
		parted => $parted,
		root => $parted && chance(0.5),
		identity => $parted ? one_of('DEFAULT', 'FULL') : one_of('DEFAULT', 'FULL', 'INDEX', 'DESC'));

	$table{merged} = $table{identity} eq 'FULL' && chance(0.6);
	$table{types} = { map { $table{columns}[$_] => $types[$_] } 0 .. $#types };
	foreach my $column (qw(u w))
	{
		my $unique = one_of(grep { !$parted || !$unique{$_}[1] } sort keys %unique);
		my $type = one_of(sort keys %value);

		$type = 'int' if $unique eq 'expression';
		$table{$column} = { unique => $unique, type => $type };
	}
	return \%table;
}

# Has it a column there that the others don't know?  It is not published, which REPLICA
# IDENTITY FULL does not allow.
sub has_extra
{
	my ($table, $node) = @_;
	return $node == 2 && $table->{identity} ne 'FULL' && (!$table->{parted} || $table->{root});
}

sub published
{
	my ($table, $node) = @_;

	return $table->{name} if !has_extra($table, $node);
	return "$table->{name} (" . join(', ', @{ $table->{columns} }, qw(i p u w un wn act v big n),
		('nr') x ($table->{identity} =~ /INDEX|DESC/)) . ')';
}

# Its SQL on a node: columns are in another order on each, some are gone.
sub table_sql
{
	my ($table, $node) = @_;
	my $name = $table->{name};
	my $parted = $table->{parted} && !($table->{root} && $node == 2);
	my $key = join ', ', @{ $table->{columns} }, ('p') x $table->{parted};
	my @columns = (
		(map { "$_ $table->{types}{$_} NOT NULL" } @{ $table->{columns} }),
		'i int', 'p int NOT NULL DEFAULT 1', "u $table->{u}{type}", "w $table->{w}{type}",
		'un int', 'wn int', 'act bool', 'v text', 'big text', 'n numeric(10, 2) DEFAULT 0',
		'made int GENERATED ALWAYS AS (un * 2) STORED');
	my @sql;

	if ($node > 1)
	{
		@columns = shuffle @columns, 'gone int', 'gone2 text', ("extra text DEFAULT 'x'") x has_extra($table, $node);
	}
	push @sql, "CREATE TABLE $name (" . join(', ', @columns) . ')' . ($parted ? ' PARTITION BY LIST (p)' : '');
	push @sql, "ALTER TABLE $name DROP gone, DROP gone2" if $node > 1;
	push @sql, "ALTER TABLE $name ALTER big SET STORAGE EXTERNAL";
	push @sql, "ALTER TABLE $name ADD nr int GENERATED BY DEFAULT AS IDENTITY (START $node INCREMENT $nodes) PRIMARY KEY"
	  if $table->{identity} =~ /INDEX|DESC/;
	push @sql, $table->{identity} eq 'INDEX' ? "ALTER TABLE $name ADD CONSTRAINT key$table->{number} UNIQUE ($key)"
	  : $table->{identity} eq 'DESC' ? "CREATE UNIQUE INDEX key$table->{number} ON $name (" . join(' DESC, ', @{ $table->{columns} }) . ' DESC NULLS LAST) INCLUDE (v)'
	  : chance(0.3) ? "ALTER TABLE $name ADD PRIMARY KEY ($key) INCLUDE (v, un)"
	  : "ALTER TABLE $name ADD PRIMARY KEY ($key)";
	push @sql, "CREATE INDEX ON $name USING hash (v)" if chance(0.2);
	foreach my $column (qw(u w))
	{
		my $sql = $unique{ $table->{$column}{unique} }[0] or next;
		my $p = $table->{parted} ? ', p' : '';

		$sql =~ s/%s/$name/;
		$sql =~ s/%c/$column/g;
		$sql =~ s/%n/${column}n/g;
		$sql =~ s/%p/$p/g;
		push @sql, $sql;
	}
	if ($parted)
	{
		my $part = "part_$table->{number}";

		push @sql, "CREATE TABLE ${part}_1 PARTITION OF $name FOR VALUES IN (1)";
		push @sql, "CREATE TABLE ${part}_2 (" . join(', ', shuffle @columns) . ')',
		  map { "ALTER TABLE ${part}_2 $_" } ('DROP gone', 'DROP gone2') x ($node > 1),
		  'ALTER big SET STORAGE EXTERNAL';
		push @sql, "ALTER TABLE $name ATTACH PARTITION ${part}_2 FOR VALUES IN (2)";
		push @sql, map { "ALTER TABLE ${part}_$_ REPLICA IDENTITY $table->{identity}" } 1 .. 2;
	}
	push @sql, "ALTER TABLE $name REPLICA IDENTITY "
	  . ($table->{identity} =~ /INDEX|DESC/ ? "USING INDEX key$table->{number}" : $table->{identity});
	push @sql, "ALTER TABLE $name ALTER n SET (krahodb.merge = delta)" if $table->{merged};
	return join ";\n", @sql;
}

sub schema_of
{
	my ($node) = @_;
	my @roots = map { published($_, $node) } grep { $_->{root} } @tables;
	my @leaves = map { published($_, $node) } grep { !$_->{root} } @tables;

	return join ";\n", 'CREATE EXTENSION krahodb', 'CREATE EXTENSION citext', 'CREATE SCHEMA "Odd schema"',
	  (q{CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)}) x ($key{ci}[0] ne 'citext'),
	  'CREATE DOMAIN amount AS numeric CHECK (VALUE >= 0)',
	  'CREATE TYPE mood AS ENUM (' . join(', ', map { "'mood$_'" } 0 .. $keys) . ')',
	  'CREATE TYPE pair AS (a numeric, b text)',
	  (map { table_sql($_, $node) } @tables),
	  'CREATE PUBLICATION leaves' . (@leaves ? ' FOR TABLE ' . join ', ', @leaves : ''),
	  'CREATE PUBLICATION roots' . (@roots ? ' FOR TABLE ' . join(', ', @roots) : '') . ' WITH (publish_via_partition_root)';
}

# ---- writes ---------------------------------------------------------------------------------

my ($mesh, @sessions);
my $time = 0;		# of the last write
my %last;			# table, key => the last write
my %claimed;		# table, claim => { key => time of its last claim }
my %merged;			# table, key => [ [ was it assigned, value or change ], ... ]
my $written = 0;

sub key_image { return $key{ $_[0]{key} }[1]->($_[1]); }

sub where_key
{
	my ($table, $i, $p) = @_;
	my $columns = join ', ', @{ $table->{columns} };
	my $images = key_image($table, $i);

	return "($columns) = ($images)" . ($table->{parted} ? " AND p = $p" : '') if @{ $table->{columns} } > 1;
	return "k = $images" . ($table->{parted} ? " AND p = $p" : '');
}

# Both columns of a unique value: the value, and its number.
sub value_of
{
	my ($table, $column) = @_;
	my $number = chance(0.2) ? 'NULL' : 1 + int rand $values;

	return $number eq 'NULL' ? ('NULL', 'NULL') : ($value{ $table->{$column}{type} }->($number), $number);
}

sub big_value { return chance(0.2) ? 'NULL' : "repeat('" . int(rand 1000) . "-', 4000)"; }

sub row_text
{
	my ($table) = @_;
	return 'ROW(' . join(', ', @{ $table->{columns} }, qw(i p u w un wn act v md5(big) made)) . ')';
}

my $count = 0;
my $filling = 1;

sub insert_sql
{
	my ($table, $i, $p) = @_;
	my ($u, $un) = value_of($table, 'u');
	my ($w, $wn) = value_of($table, 'w');
	my $columns = join ', ', @{ $table->{columns} };
	my $n = int rand 100;
	my $sql = "INSERT INTO $table->{name} AS t ($columns, i, p, u, un, w, wn, act, v, big, n) VALUES ("
	  . join(', ', key_image($table, $i), $i, $p, $u, $un, $w, $wn, chance(0.7) ? 'true' : 'false', "'ins $count'", big_value(), $n) . ')';

	return ($sql, $n) if chance(0.7);
	return ("$sql ON CONFLICT ($columns" . ($table->{parted} ? ', p' : '') . ") DO UPDATE SET v = replace(excluded.v, 'ins', 'upd'), n = t.n + 0.5", 0.5);
}

sub update_sql
{
	my ($table, $i, $p) = @_;
	my @set = "v = 'upd $count'";
	my $n = chance(0.4) ? int(rand 20) - 10 : 0;

	foreach my $column (qw(u w))
	{
		my ($value, $number) = value_of($table, $column);

		push @set, "$column = $value, ${column}n = $number" if chance(0.35);
	}
	push @set, "n = n + $n" if $n;
	push @set, 'act = NOT act' if chance(0.1);
	push @set, 'big = ' . big_value() if chance(0.2);
	if (chance(0.2))
	{
		my $columns = join ', ', @{ $table->{columns} };
		my $to = chance(0.4) ? $i : int rand $keys;

		push @set, "($columns, i) = ROW(" . key_image($table, $to) . ", $to)";
		push @set, 'nr = DEFAULT' if $table->{identity} =~ /INDEX|DESC/;
	}
	push @set, 'p = ' . (1 + int rand 2) if $table->{parted} && chance(0.15);
	return ("UPDATE $table->{name} t SET " . join(', ', @set) . ' WHERE ' . where_key($table, $i, $p), $n);
}

sub write_sql
{
	my ($table) = @_;
	my $i = int rand $keys;
	my $p = $table->{parted} ? 1 + int rand 2 : 1;
	my $what = rand;
	my ($sql, $n, $command);

	$count++;
	($sql, $n) = $filling || $what < 0.3 ? insert_sql($table, $i, $p)
	  : $what < 0.8 ? update_sql($table, $i, $p)
	  : ("DELETE FROM $table->{name} t WHERE " . where_key($table, $i, $p), 0);
	$command = substr $sql, 0, 1;
	return "$sql RETURNING " . join ', ', $sql =~ /ON CONFLICT/ ? "CASE WHEN v LIKE 'ins%' THEN 'I' ELSE 'U' END" : "'$command'",
	  "'$i/$p'", q{i || '/' || p}, 'p', 'un', 'wn', 'act', $n, 'n', row_text($table);
}

# A transaction of one or several writes on a node; remembers what it did.
sub write_on
{
	my ($node, $table) = @_;
	my $deferred = grep { $table->{$_}{unique} =~ /^(excl_)?defer/ } qw(u w);
	my @sql = map { write_sql($table) } 1 .. (chance(0.7) || $deferred ? 1 : 2 + int rand 3);
	my @end = chance(0.1) ? ("PREPARE TRANSACTION 'p'", "COMMIT PREPARED 'p'") : 'COMMIT';
	my ($output, @done);

	if (@sql > 2 && chance(0.5))
	{
		splice @sql, 1, 1, 'SAVEPOINT s', '\echo begun', $sql[1], 'ROLLBACK TO s', '\echo undone';
	}
	$sessions[$node]{stderr} = '';
	$output = $sessions[$node]->query(join "\n", 'BEGIN;', q{SELECT pg_current_xact_id() AS xact \gset},
		map({ /^\\/ ? $_ : "$_;" } @sql), map({ "$_;" } @end), q{SELECT 'end', pg_xact_status(:'xact'::xid8)});
	die "$sessions[$node]{stderr} in: @sql"
	  if $sessions[$node]{stderr} =~ /ERROR: (?!.*(duplicate key|exclusion constraint|current transaction is aborted|savepoint "s" does not exist|prepared transaction with identifier))/;
	note "node $node: @sql: $output $sessions[$node]{stderr}";
	return if $output !~ /^end\|committed$/m;
	foreach my $line (split /\n/, $output)
	{
		push @done, [] if $line eq 'begun';
		pop @done if $line eq 'undone';
		next if $line !~ /^[IUD]\|/;
		push @done, $line;
	}
	foreach my $line (grep { !ref } @done)
	{
		remember($table, $line);
	}
	return;
}

sub remember
{
	my ($table, $line) = @_;
	my ($what, $old, $key, $p, $u, $w, $act, $change, $n, $row) = split /\|/, $line, 10;
	my $number = $table->{number};

	$time++;
	$written++;
	if ($what eq 'D')
	{
		$last{$number}{$key} = { time => $time };
		return;
	}
	$last{$number}{$old} = { time => $time } if $what eq 'U' && $old ne $key;
	push @{ $merged{$number}{$key} }, $what eq 'U' && $old eq $key ? [ 0, $change ] : [ 1, $n ];
	my $write = { time => $time, p => $p, act => $act eq 't', row => $row, key => $key,
		u => $u eq '' ? undef : $u, w => $w eq '' ? undef : $w };
	$last{$number}{$key} = $write;
	$claimed{$number}{$_}{$key} = $time foreach claims_of($table, $write);
	return;
}

# What was assigned last, and what was added since.
sub merged_value
{
	my ($number, $key) = @_;
	my $value = 0;

	foreach my $change (@{ $merged{$number}{$key} })
	{
		my ($assigned, $n) = @$change;

		$value = ($assigned ? 0 : $value) + $n;
	}
	return sprintf '%.2f', $value;
}

# The rows that must remain.
sub expected_rows
{
	my ($table) = @_;
	my $number = $table->{number};
	my @rows;

	foreach my $write (grep { $_->{row} } values %{ $last{$number} })
	{
		my $beaten = 0;

		foreach my $claim (claims_of($table, $write))
		{
			my $others = $claimed{$number}{$claim};

			$beaten = 1 if grep { $_ ne $write->{key} && $others->{$_} > $write->{time} } keys %$others;
		}
		push @rows, $write->{row} . ($table->{merged} ? ' ' . merged_value($number, $write->{key}) : '') if !$beaten;
	}
	return join "\n", sort @rows;
}

# Rewrite a table, with new indexes on what is claimed, or with keys and values that are computed.
# (Merged columns would lose their histories, and claims on expressions theirs; what a publication
# lists cannot be altered.)
sub rewrite_sql
{
	my ($table, $node) = @_;
	my %types = (%{ $table->{types} }, map { $_ => $table->{$_}{type} } qw(u w));
	my $expressions = grep { $table->{$_}{unique} =~ /^(expression|excl_gist|excl_deferred)$/ } qw(u w);
	my @altered = $expressions || has_extra($table, $node) ? () : grep { chance(0.4) } sort keys %types;

	return 'SELECT 1' if $table->{merged};
	return "ALTER TABLE $table->{name} ADD r float DEFAULT random(); ALTER TABLE $table->{name} DROP r" if !@altered;
	return "ALTER TABLE $table->{name} " . join ', ', map { "ALTER $_ TYPE $types{$_} USING COALESCE($_, $_)" } @altered;
}

# ---- running ----------------------------------------------------------------------------------

sub check_tables
{
	my ($what) = @_;

	$mesh->settle;
	foreach my $table (@tables)
	{
		my $query = 'SELECT ' . row_text($table) . ($table->{merged} ? q{ || ' ' || n} : '') . " FROM $table->{name}";
		my $expected = expected_rows($table);

		foreach my $node ($mesh->nodes)
		{
			my $rows = join "\n", sort split /\n/, $node->safe_psql('postgres', $query);

			is($rows, $expected, "$what, $table->{name} with $table->{key} on " . $node->name);
		}
	}
	return;
}

sub connect_to
{
	my ($number) = @_;

	$sessions[$number] = $mesh->node($number)->background_psql('postgres', on_error_stop => 0);
	$sessions[$number]->set_query_timer_restart;
	return;
}

sub on_all
{
	my ($query) = @_;
	return join ' ', map { $_->safe_psql('postgres', $query) } $mesh->nodes;
}

my @names = sort keys %key;
@tables = map { make_table($_, $names[$_]) } 0 .. $#names;
my $options = join ', ', 'binary = ' . one_of('true', 'false'), 'streaming = ' . one_of('on', 'off'),
  'compression = ' . one_of('off', 'lz4', 'zstd'), ('two_phase = true') x chance(0.3);

diag "$nodes nodes, $options";
$mesh = KrahoDB::PausedMesh->new(
	names => [ map { "n$_" } 1 .. $nodes ],
	schema => \&schema_of,
	publications => 'leaves, roots',
	options => $options);
connect_to($_) foreach 1 .. $nodes;
note "$_->{name}: $_->{key}, $_->{u}{type} $_->{u}{unique}, $_->{w}{type} $_->{w}{unique}, $_->{identity}"
  . ($_->{parted} ? $_->{root} ? ' root' : ' leaves' : '') . ($_->{merged} ? ' merged' : '') foreach @tables;

my @links = map { my $to = $_; map { "$to$_" } grep { $_ != $to } 1 .. $nodes } 1 .. $nodes;

# VACUUM FULL does not find large values of dead rows in an index that was rebuilt.
my @maintenance = chance(0.5) ? ('VACUUM (FULL)', 'VACUUM (FULL, FREEZE)') : 'REINDEX TABLE CONCURRENTLY';
my $killed = 0;
write_on(1, $_) foreach (@tables) x 6;
$filling = 0;
$mesh->settle;
foreach my $round (1 .. $rounds)
{
	$mesh->pause;
	foreach my $step (1 .. 3)
	{
		write_on(1 + int rand $nodes, $_) foreach shuffle((@tables) x 4);
		if (chance(0.3))
		{
			my $command = one_of('VACUUM', 'VACUUM (FREEZE)', @maintenance);
			my $node = $mesh->node(1 + int rand $nodes);

			note "$command on " . $node->name;
			$node->safe_psql('postgres', join ";\n", map { "$command $_->{name}" } @tables);
		}
		if (chance(0.5))
		{
			my $number = 1 + int rand $nodes;
			my $sql = join ";\n", map { rewrite_sql($_, $number) } @tables;

			note "on n$number: $sql";
			$mesh->on($number => $sql);
		}
		next if $step == 3;
		foreach my $link (grep { chance(0.35) } shuffle @links)
		{
			$mesh->deliver($link);
			pause_subscription($mesh->node(substr $link, 0, 1), join '_', map { "n$_" } split //, $link);
		}
	}
	if (chance(0.5))
	{
		my $number = 1 + int rand $nodes;

		$mesh->release($_) foreach shuffle @links;
		$mesh->node($number)->kill9;
		start_after_kill($mesh->node($number));
		$killed++;
		connect_to($number);
	}
	else
	{
		$mesh->deliver(shuffle @links);
	}
	check_tables("round $round");
}

# One after the other.
wait_horizon($_) foreach $mesh->nodes;
my $conflicts = on_all('SELECT count(*) FROM krahodb.conflict_log');
foreach my $turn (1 .. 3)
{
	write_on(1 + $turn % $nodes, $_) foreach @tables;
	$mesh->settle;
}
check_tables('in turns');
is(on_all('SELECT count(*) FROM krahodb.conflict_log'), $conflicts, 'one after the other, there are no conflicts');
isnt($conflicts, join(' ', (0) x $nodes), 'there were some before');
note "$written writes, conflicts: $conflicts";
is($mesh->errors, 0, 'nothing stopped replication') if !$killed;
$_->quit foreach @sessions[ 1 .. $nodes ];
$mesh->stop;
done_testing();
