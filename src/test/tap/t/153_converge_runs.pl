#
# Runs of inserts by the convergence rules, which are written together if all of their
# keys are new.  What goes wrong here: one that is not, older or newer, live or dead;
# a unique value that another row holds; a key that somebody takes at the same moment; and
# all that in one of several partitions.
#
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use KrahoDB::Nodes;
use Test::More;

my $a = krahodb_node('a');
my $b = krahodb_node('b');

foreach my $node ($a, $b)
{
	$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION krahodb;
CREATE TABLE one (id int PRIMARY KEY, n int, t text);
CREATE TABLE more (id int PRIMARY KEY, u int UNIQUE, t text UNIQUE);
CREATE TABLE named (id text PRIMARY KEY, n int);
CREATE TABLE made (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED UNIQUE);
CREATE TABLE pairs (a int, b text, n int, down int, PRIMARY KEY (a, b));
CREATE UNIQUE INDEX ON pairs (down DESC);
CREATE UNIQUE INDEX ON pairs (n, a) WHERE n > 0;
CREATE TABLE scattered (id uuid PRIMARY KEY, n numeric UNIQUE, t text);
CREATE TABLE parts (id int, p int, u int, t text, PRIMARY KEY (id, p), UNIQUE (u, p)) PARTITION BY LIST (p);
CREATE TABLE parts_rest PARTITION OF parts DEFAULT;
CREATE PUBLICATION p FOR TABLE one, more, named, made, pairs, scattered, parts WITH (publish_via_partition_root);
EOS
}
$a->safe_psql('postgres', 'CREATE TABLE parts_0 PARTITION OF parts FOR VALUES IN (0)');
$b->safe_psql('postgres', <<'EOS');
CREATE TABLE parts_02 (u int, gone int, t text, p int NOT NULL, id int NOT NULL);
ALTER TABLE parts_02 DROP gone;
ALTER TABLE parts ATTACH PARTITION parts_02 FOR VALUES IN (0, 2);
EOS
my @tables = qw(one more named made pairs scattered parts);
subscribe($a, $b);
subscribe($b, $a);

sub subscribe
{
	my ($publisher, $subscriber) = @_;
	my $name = 's_' . $subscriber->name;

	$subscriber->safe_psql('postgres', "CREATE SUBSCRIPTION $name CONNECTION '" .
		connstr($publisher) . "' PUBLICATION p WITH (origin = none, copy_data = false)");
	$subscriber->poll_query_until('postgres',
		"SELECT NOT EXISTS (SELECT FROM pg_subscription_rel WHERE srsubstate <> 'r')")
	  or die 'tables are not ready';
}

sub settle
{
	my ($name) = @_;

	wait_streams(2, [ $a, 's_b' ], [ $b, 's_a' ]);
	foreach my $table (@tables)
	{
		is_equal_on([ $a, $b ], "SELECT count(*), sum(hashtextextended(t::text, 0)) FROM $table t",
			"$name: $table");
	}
}

# Do both at once: the streams stand still meanwhile.
sub apart
{
	my (@work) = @_;

	pause_subscription($b, 's_b');
	pause_subscription($a, 's_a');
	$_->[0]->safe_psql('postgres', $_->[1]) foreach @work;
	$a->safe_psql('postgres', 'ALTER SUBSCRIPTION s_a ENABLE');
	$b->safe_psql('postgres', 'ALTER SUBSCRIPTION s_b ENABLE');
}

my $run = <<'EOS';
BEGIN;
INSERT INTO one SELECT i, i, 'row ' || i FROM generate_series(1, 2500) i;
INSERT INTO more SELECT i, i, 'row ' || i FROM generate_series(1, 1500) i;
INSERT INTO named SELECT 'name ' || i, i FROM generate_series(1, 300) i;
INSERT INTO made SELECT i, i FROM generate_series(1, 300) i;
INSERT INTO pairs SELECT i / 7, 'line ' || i % 7, i, CASE WHEN i % 3 > 0 THEN i END FROM generate_series(0, 1500) i;
INSERT INTO scattered SELECT md5(i::text)::uuid, CASE WHEN i % 5 > 0 THEN i / 7.0 END, 'row ' || i FROM generate_series(1, 1500) i;
INSERT INTO parts SELECT i, i % 4, i, 'row ' || i FROM generate_series(1, 1500) i;
COMMIT;
EOS
$a->safe_psql('postgres', $run);
settle('new rows');
is($b->safe_psql('postgres', 'SELECT count(*) FROM krahodb.conflict_log'), '0', 'no conflict');

# Deleted rows come back: dead versions are in the way.
$a->safe_psql('postgres', 'DELETE FROM one; DELETE FROM more; DELETE FROM named; DELETE FROM made; DELETE FROM pairs; DELETE FROM scattered; DELETE FROM parts');
$a->safe_psql('postgres', $run);
settle('rows that were deleted');
is($b->safe_psql('postgres', 'SELECT count(*) FROM one'), '2500', 'they are there again');

# The same keys on both sides, the run in the middle of them; and unique values.
my $first = 'INSERT INTO one SELECT i, -1, NULL FROM generate_series(3000, 4000) i; '
  . 'INSERT INTO more SELECT i, i, NULL FROM generate_series(3000, 4000) i; '
  . 'INSERT INTO made SELECT i, i FROM generate_series(3000, 4000) i; '
  . 'INSERT INTO parts SELECT i, i % 4, i, $$first$$ FROM generate_series(3000, 4000) i';
my $second = 'INSERT INTO one SELECT i, -2, NULL FROM generate_series(3500, 3510) i; '
  . 'INSERT INTO more SELECT 10000 + i, i, NULL FROM generate_series(3990, 4010) i; '
  . 'INSERT INTO made SELECT 10000 + i, i FROM generate_series(3990, 4010) i; '
  . 'INSERT INTO parts SELECT i, 2, -i, $$second$$ FROM generate_series(3500, 3510) i; '
  . 'INSERT INTO parts SELECT 10000 + i, 2, i, $$second$$ FROM generate_series(3990, 4010) i';
apart([ $a, $first ], [ $b, $second ]);
settle('an older run meets newer rows');
is($a->safe_psql('postgres', 'SELECT count(*) FROM one WHERE n = -2'), '11', 'the newer rows stay');
is($a->safe_psql('postgres', "SELECT count(*), count(*) FILTER (WHERE t = 'second') FROM parts WHERE id BETWEEN 3000 AND 20000"),
	'1027|32', 'also in their partition');
is($b->safe_psql('postgres', q{SELECT string_agg(DISTINCT "table", ' ') FROM krahodb.conflict_log WHERE "table" LIKE 'parts%'}),
	'parts_02', 'where the conflicts were');
$first =~ s/3000, 4000/5000, 6000/g;
$second =~ s/3500, 3510/5500, 5510/g;
$second =~ s/3990, 4010/5990, 6010/g;
apart([ $b, $second ], [ $a, $first ]);
settle('a newer run meets older rows');
is($b->safe_psql('postgres', 'SELECT count(*) FROM one WHERE n = -1 AND id >= 5000'), '1001',
	'the rows of the run stay');

# One of a run among others that are between many rows, in a gap that has room for
# it, and as another key's unique value: pairs in the middle of one, scattered ones.
my @gaps = (
	'INSERT INTO pairs SELECT i / 9, $$more $$ || i % 9, -1, 10000 + i FROM generate_series(0, 1500) i; '
	  . 'INSERT INTO scattered SELECT md5((10000 + i)::text)::uuid, 10000 + i / 7.0, NULL FROM generate_series(1, 500) i',
	q{INSERT INTO pairs VALUES (70, 'more 3', -2, NULL), (-1, 'other', -2, 10777), (-1, 'newest', 3, NULL); }
	  . q{INSERT INTO scattered VALUES (md5('10400')::uuid, NULL, 'other'), (md5('x')::uuid, 10007, 'other')});
apart([ $a, $gaps[0] ], [ $b, $gaps[1] ]);
settle('newer rows in the gaps of a run');
is($a->safe_psql('postgres', q{SELECT count(*) FROM pairs WHERE n = -2}), '2', 'newer pairs stay');
is($a->safe_psql('postgres', q{SELECT count(*) FROM scattered WHERE t = 'other'}), '2', 'newer scattered rows stay');
$b->safe_psql('postgres', q{DELETE FROM pairs WHERE b LIKE 'more%' OR n = -2 OR a = -1; DELETE FROM scattered WHERE n > 10000 OR t = 'other'});
settle('deleted again');
apart([ $a, $gaps[0] ], [ $b, $gaps[1] ]);
settle('and dead versions of all of them');

# A row that was inserted and deleted by a newer transaction.
apart([ $a, 'INSERT INTO one SELECT i, -3, NULL FROM generate_series(7000, 7100) i; '
		. 'INSERT INTO parts SELECT i, i % 4, i, NULL FROM generate_series(7000, 7100) i' ],
	[ $b, 'INSERT INTO one VALUES (7050, 0, NULL); DELETE FROM one WHERE id = 7050; '
		. 'INSERT INTO parts VALUES (7050, 2, 0, NULL); DELETE FROM parts WHERE id = 7050' ]);
settle('one of the run was deleted later');
is($a->safe_psql('postgres', "SELECT count(*) FROM $_ WHERE id = 7050"), '0', "$_: it stays deleted") foreach qw(one parts);

# Somebody takes a key after it was looked for: he holds it while the run is inserted.
my $session = $b->background_psql('postgres');
$session->query_safe("BEGIN; INSERT INTO more VALUES (9999, 8050, 'local')");
my $log = -s $b->logfile;
$a->safe_psql('postgres', "INSERT INTO more SELECT i, i, NULL FROM generate_series(8000, 8100) i");
$b->poll_query_until('postgres',
	"SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted")
  or die 'nobody waits';
$session->query_safe('COMMIT');
$session->quit;
settle('a unique value was taken meanwhile');
is($b->safe_psql('postgres', 'SELECT id FROM more WHERE u = 8050'), '9999', 'the later row has it');
unlike(slurp_file($b->logfile, $log), qr/ERROR:.*duplicate key/, 'that is no error');

$_->stop foreach $a, $b;
done_testing();
