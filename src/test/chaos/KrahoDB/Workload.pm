# KrahoDB::Workload: tables and statements of the chaos test, by feature.
#
# A feature is a kind of table or of write that can be switched on by itself
# (CHAOS_FEATURES).  Each has tables, rows to start with, and statements with
# weights in the language of client.c.  Keys are few, so that nodes meet on them.
#
# DEFAULT is what ends equal on all nodes: all of them.

package KrahoDB::Workload;

use strict;
use warnings;

use Exporter 'import';

our @EXPORT = qw(workload_features workload_tables workload_schema workload_rows workload_checks workload_options workload_statements);

our @DEFAULT = qw(plain composite partitioned full index wide bulk long delete keyupdate
  unique deferred exclusion parts_unique savepoint prepare twophase toast merged counted);

my $KEYS = 60;

# Inserts that may meet a row, and updates, of a table with key and columns.
sub upsert
{
	my ($table, $key, $value, $set) = @_;
	my $arbiter = $table =~ /^(deferred|booking)$/ ? '(id)' : '';	# the others cannot be

	return "INSERT INTO $table VALUES ($key, $value) ON CONFLICT $arbiter DO NOTHING" if !$set;
	return "INSERT INTO $table VALUES ($key, $value) ON CONFLICT ("
	  . ($table =~ /^(composite|partitioned)$/ ? 'a, b' : 'id') . ") DO UPDATE SET $set";
}

my %feature = (
	plain => {
		tables => { plain => '(id int PRIMARY KEY, v text, n int)' },
		statements => [
			10 => upsert('plain', "{rand $KEYS}", "'{tag}', 0", "v = EXCLUDED.v, n = plain.n + 1"),
			5 => upsert('plain', "{rand 100000}", "'{tag}', 0"),
			20 => "UPDATE plain SET v = '{tag}' WHERE id = {rand $KEYS}",
			10 => "UPDATE plain SET n = n + 1 WHERE id = {rand $KEYS}",
		]
	},
	composite => {
		tables => { composite => '(a int, b text, v text, PRIMARY KEY (a, b))' },
		statements => [
			5 => upsert('composite', "{rand 6}, 'k{rand 10}'", "'{tag}'", 'v = EXCLUDED.v'),
			10 => "UPDATE composite SET v = '{tag}' WHERE a = {rand 6} AND b = 'k{rand 10}'",
		]
	},
	partitioned => {
		tables => { partitioned => '(a int, b int, v text, PRIMARY KEY (a, b)) PARTITION BY RANGE (a)' },
		more => 'CREATE TABLE partitioned_low PARTITION OF partitioned FOR VALUES FROM (MINVALUE) TO (5);'
		  . 'CREATE TABLE partitioned_high PARTITION OF partitioned FOR VALUES FROM (5) TO (MAXVALUE)',
		statements => [
			5 => upsert('partitioned', '{rand 10}, {rand 6}', "'{tag}'", 'v = EXCLUDED.v'),
			10 => "UPDATE partitioned SET v = '{tag}' WHERE a = {rand 10} AND b = {rand 6}",
		]
	},
	full => {
		tables => { identity_full => '(id int PRIMARY KEY, v text, w text)' },
		more => 'ALTER TABLE identity_full REPLICA IDENTITY FULL',
		statements => [
			5 => upsert('identity_full', "{rand $KEYS}", "'{tag}', 'w'", 'v = EXCLUDED.v'),
			10 => "UPDATE identity_full SET w = '{tag}' WHERE id = {rand $KEYS}",
		]
	},
	# out of line, and always sent
	wide => {
		tables => { wide => '(id int PRIMARY KEY, v text, w text)' },
		more => 'ALTER TABLE wide ALTER w SET STORAGE EXTERNAL',
		statements => [
			3 => upsert('wide', '{rand 20}', "'{tag}', chaos_wide('{word}')", 'v = EXCLUDED.v, w = EXCLUDED.w'),
			5 => "UPDATE wide SET v = '{tag}', w = chaos_wide('{word}') WHERE id = {rand 20}",
		]
	},
	bulk => {
		tables => { bulk => '(id int PRIMARY KEY, v text)' },
		rows => 'INSERT INTO bulk SELECT g, NULL FROM generate_series(0, 1999) g',
		statements => [
			1 => "UPDATE bulk SET v = '{tag}' WHERE id BETWEEN {rand 2000} AND {rand 2000}",
			2 => "UPDATE bulk SET v = '{tag}' WHERE id = {rand 2000}",
		]
	},
	# the identity is not the primary key
	index => {
		tables => { identity_index => '(id int NOT NULL UNIQUE, v text, u int PRIMARY KEY)' },
		more => 'ALTER TABLE identity_index REPLICA IDENTITY USING INDEX identity_index_id_key',
		statements => [
			5 => upsert('identity_index', "{rand $KEYS}", "'{tag}', {rand $KEYS}"),
			4 => "UPDATE identity_index SET u = {rand $KEYS}, v = '{tag}' WHERE id = {rand $KEYS}",
			4 => "UPDATE identity_index SET id = {rand $KEYS}, v = '{tag}' WHERE u = {rand $KEYS}",
			4 => "UPDATE identity_index SET v = '{tag}' WHERE id = {rand $KEYS}",
			3 => "DELETE FROM identity_index WHERE u = {rand $KEYS}",
		]
	},
	long => { tables => {}, statements => [ 2 => 'SELECT pg_sleep({rand 1000} / 1000.0)' ] },
	delete => {
		tables => { deleted => '(id int PRIMARY KEY, v text)' },
		statements => [
			10 => upsert('deleted', "{rand $KEYS}", "'{tag}'", 'v = EXCLUDED.v'),
			10 => "UPDATE deleted SET v = '{tag}' WHERE id = {rand $KEYS}",
			10 => "DELETE FROM deleted WHERE id = {rand $KEYS}",
		]
	},
	keyupdate => {
		tables => { moved => '(id int PRIMARY KEY, v text)' },
		statements => [
			5 => upsert('moved', "{rand $KEYS}", "'{tag}'", 'v = EXCLUDED.v'),
			5 => "UPDATE moved SET id = {rand $KEYS}, v = '{tag}' WHERE id = {rand $KEYS}",
			5 => "UPDATE moved SET v = '{tag}' WHERE id = {rand $KEYS}",
		]
	},
	unique => {
		tables => { claimed => '(id int PRIMARY KEY, u int UNIQUE, v text)' },
		statements => [
			5 => upsert('claimed', "{rand $KEYS}", "{rand $KEYS}, '{tag}'"),
			5 => "UPDATE claimed SET u = {rand $KEYS}, v = '{tag}' WHERE id = {rand $KEYS}",
			5 => "UPDATE claimed SET v = '{tag}' WHERE id = {rand $KEYS}",
		]
	},
	# two unique keys; rows that exchange their values
	deferred => {
		tables => { deferred => '(id int PRIMARY KEY, u int UNIQUE DEFERRABLE INITIALLY DEFERRED, w int UNIQUE DEFERRABLE, v text)' },
		statements => [
			5 => upsert('deferred', "{rand $KEYS}", "{rand $KEYS}, {rand $KEYS}, '{tag}'"),
			4 => "UPDATE deferred SET u = {rand $KEYS}, v = '{tag}' WHERE id = {rand $KEYS}",
			4 => "UPDATE deferred SET w = {rand $KEYS}, v = '{tag}' WHERE id = {rand $KEYS}",
			4 => "UPDATE deferred a SET u = b.u, w = b.w, v = '{tag}' FROM deferred b WHERE a.id + b.id = {rand $KEYS} AND a.id <> b.id",
			3 => "UPDATE deferred SET v = '{tag}' WHERE id = {rand $KEYS}",
			3 => "DELETE FROM deferred WHERE id = {rand $KEYS}",
		]
	},
	exclusion => {
		tables => { booking => q{(id int PRIMARY KEY, during int4range, v text, EXCLUDE USING gist (during WITH &&))} },
		statements => [
			5 => upsert('booking', "{rand $KEYS}", "(SELECT int4range(a, a + 1 + {rand 5}) FROM (SELECT {rand 100}) x (a)), '{tag}'"),
			4 => "UPDATE booking SET during = (SELECT int4range(a, a + 1 + {rand 5}) FROM (SELECT {rand 100}) x (a)), v = '{tag}' WHERE id = {rand $KEYS}",
			4 => "UPDATE booking SET during = int4range(lower(during) + 1, upper(during) + 1), v = '{tag}' WHERE id = {rand $KEYS}",
			3 => "UPDATE booking SET v = '{tag}' WHERE id = {rand $KEYS}",
			3 => "DELETE FROM booking WHERE id = {rand $KEYS}",
		]
	},
	# rows that go from one partition to another, with unique values in each
	parts_unique => {
		tables => { parted => '(id int, p int, u int, v text, PRIMARY KEY (id, p), UNIQUE (u, p)) PARTITION BY LIST (p)' },
		more => 'CREATE TABLE parted_0 PARTITION OF parted FOR VALUES IN (0); CREATE TABLE parted_1 (v text, u int, gone int, p int NOT NULL, id int NOT NULL);'
		  . 'ALTER TABLE parted_1 DROP gone; ALTER TABLE parted ATTACH PARTITION parted_1 FOR VALUES IN (1)',
		statements => [
			5 => upsert('parted', "{rand $KEYS}, {rand 2}", "{rand $KEYS}, '{tag}'"),
			4 => "UPDATE parted SET p = 1 - p, v = '{tag}' WHERE id = {rand $KEYS} AND p = {rand 2}",
			4 => "UPDATE parted SET u = {rand $KEYS}, v = '{tag}' WHERE id = {rand $KEYS} AND p = {rand 2}",
			3 => "DELETE FROM parted WHERE id = {rand $KEYS} AND p = {rand 2}",
		]
	},
	# what a savepoint takes back is not sent; see client.c
	savepoint => { tables => {}, statements => [], option => 's' },
	# PREPARE TRANSACTION, and COMMIT or ROLLBACK PREPARED
	prepare => { tables => {}, statements => [], option => 'p' },
	# some subscriptions have two_phase = on
	twophase => { tables => {}, statements => [], option => 'p' },
	# columns that are added up, and greatest and least ones; with deletions and other keys
	merged => {
		tables => { merged => '(id int PRIMARY KEY, d bigint, hi int, lo int, u int UNIQUE, v text)' },
		more => 'ALTER TABLE merged REPLICA IDENTITY FULL, ALTER d SET (krahodb.merge = delta), ALTER hi SET (krahodb.merge = max), ALTER lo SET (krahodb.merge = min)',
		statements => [
			4 => upsert('merged', "{rand $KEYS}", "{rand 100}, {rand 100}, {rand 100}, {rand $KEYS}, '{tag}'"),
			6 => "UPDATE merged SET d = d + {rand 9} - 4, v = '{tag}' WHERE id = {rand $KEYS}",
			3 => "UPDATE merged SET hi = greatest(hi, {rand 1000}), lo = least(lo, {rand 1000}) WHERE id = {rand $KEYS}",
			2 => "UPDATE merged SET hi = {rand 1000}, lo = {rand 1000} WHERE id = {rand $KEYS}",
			1 => "UPDATE merged SET d = nullif({rand 3}, 0), v = '{tag}' WHERE id = {rand $KEYS}",
			2 => "UPDATE merged SET u = {rand $KEYS}, v = '{tag}' WHERE id = {rand $KEYS}",
			2 => "UPDATE merged SET id = {rand $KEYS}, d = d + 1 WHERE id = {rand $KEYS}",
			2 => "DELETE FROM merged WHERE id = {rand $KEYS}",
		]
	},
	# each addition is noted, and counts once
	counted => {
		tables => { counted => '(id int PRIMARY KEY, n bigint, v text)' },
		more => 'ALTER TABLE counted REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta); CREATE TABLE added (id int, n int)',
		rows => 'INSERT INTO counted SELECT g, 0 FROM generate_series(0, 19) g',
		statements => [
			10 => "WITH u AS (UPDATE counted SET n = n + length('{tag}'), v = '{tag}' WHERE id = {rand 20} RETURNING id) INSERT INTO added SELECT id, length('{tag}') FROM u",
		],
		check => 'SELECT count(*) = 20 AND bool_and(n = (SELECT coalesce(sum(a.n), 0) FROM added a WHERE a.id = c.id)) FROM counted c'
	},
	# columns out of line that are not sent with each update
	toast => {
		tables => { toasted => '(id int PRIMARY KEY, u int UNIQUE, v text, w text, x text)' },
		more => 'ALTER TABLE toasted ALTER w SET STORAGE EXTERNAL, ALTER x SET STORAGE EXTERNAL',
		statements => [
			4 => upsert('toasted', "{rand 20}", "{rand $KEYS}, '{tag}', chaos_wide('{word}'), chaos_wide('{word}')"),
			6 => "UPDATE toasted SET v = '{tag}' WHERE id = {rand 20}",
			3 => "UPDATE toasted SET w = chaos_wide('{word}') WHERE id = {rand 20}",
			3 => "UPDATE toasted SET x = chaos_wide('{word}') WHERE id = {rand 20}",
			2 => "UPDATE toasted SET u = {rand $KEYS}, v = '{tag}' WHERE id = {rand 20}",
			2 => "UPDATE toasted SET id = {rand 20}, v = '{tag}' WHERE id = {rand 20}",
			2 => "DELETE FROM toasted WHERE id = {rand 20}",
		]
	});

# The features asked for: names with commas; "all"; "+x" adds x to the default.
sub workload_features
{
	my ($wanted) = @_;
	my @features;

	return @DEFAULT if !defined $wanted || $wanted eq '';
	return sort keys %feature if $wanted eq 'all';
	foreach my $name (split /\s*,\s*/, $wanted)
	{
		push @features, @DEFAULT if $name =~ s/^\+//;
		die "there is no feature \"$name\"; there are: " . join(', ', sort keys %feature) . "\n"
		  if !$feature{$name};
		push @features, $name;
	}
	my %seen;
	return grep { !$seen{$_}++ } @features;
}

sub workload_tables
{
	return map { sort keys %{ $feature{$_}{tables} } } @_;
}

# SQL that makes the tables of the features, and what the harness itself needs.
# chaos_wide makes 9 kB that do not compress.
sub workload_schema
{
	my @sql = (
		'CREATE TABLE event (node text, session int, seq int)',
		'CREATE TABLE marker (node text, round int, PRIMARY KEY (node, round))',
		q{CREATE FUNCTION chaos_wide(text) RETURNS text IMMUTABLE LANGUAGE sql
			AS $$ SELECT string_agg(md5($1 || g), '') FROM generate_series(1, 290) g $$});

	foreach my $feature (map { $feature{$_} } @_)
	{
		push @sql, map { "CREATE TABLE $_ $feature->{tables}{$_}" } sort keys %{ $feature->{tables} };
		push @sql, $feature->{more} if $feature->{more};
	}
	return @sql;
}

# Rows to start with; made on one node.
sub workload_rows
{
	return map { $feature{$_}{rows} // () } @_;
}

# Queries that must say true in the end, on each node.
sub workload_checks
{
	return map { $feature{$_}{check} // () } @_;
}

# Options of client.c.
sub workload_options
{
	return join '', map { $feature{$_}{option} // '' } @_;
}

# The file that client.c reads.
sub workload_statements
{
	my $text = '';

	foreach my $name (@_)
	{
		my @statements = @{ $feature{$name}{statements} };
		while (my ($weight, $sql) = splice @statements, 0, 2)
		{
			$text .= "$weight\t$sql\n";
		}
	}
	return $text;
}

1;
