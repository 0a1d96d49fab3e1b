# What goes wrong here: clocks differ between nodes, and step back.  A write that
# has seen another one must have the later timestamp all the same, or "last update
# wins" drops the newer one.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my ($library) = grep { -e } glob('/usr/lib/*/faketime/libfaketime.so.1');
plan skip_all => 'libfaketime is not installed' if !$library;

# Each node reads its offset from a file, which may change while it runs.  Only the
# wall clock is shifted.
my %offset_file;

sub set_clock
{
	my ($node, $offset) = @_;
	my $file = $offset_file{ $node->name };

	# in one step: a reader never sees half a file
	open my $out, '>', "$file.new" or die "$file: $!";
	print $out "$offset\n";
	close $out or die "$file: $!";
	rename "$file.new", $file or die "$file: $!";
	return;
}

sub start_with_clock
{
	my ($node) = @_;

	local $ENV{LD_PRELOAD} = "$ENV{KDB_CLOCK_SELECT} $library";
	local $ENV{FAKETIME_TIMESTAMP_FILE} = $offset_file{ $node->name };
	local $ENV{FAKETIME_NO_CACHE} = 1;
	local $ENV{FAKETIME_DONT_FAKE_MONOTONIC} = 1;
	$node->start;
	return;
}

my @nodes = map { krahodb_node($_, conf => "krahodb.max_clock_skew = '10s'") } qw(left right);
my ($left, $right) = @nodes;

foreach my $node (@nodes)
{
	$offset_file{ $node->name } = $node->basedir . '/clock';
	set_clock($node, '+0');
	$node->stop;
	start_with_clock($node);
	$node->safe_psql('postgres', 'CREATE EXTENSION krahodb');
	$node->safe_psql('postgres', 'CREATE TABLE t (id int PRIMARY KEY, v text)');
	$node->safe_psql('postgres', 'CREATE PUBLICATION p FOR TABLE t');
}
foreach my $pair ([ $left, $right ], [ $right, $left ])
{
	my ($node, $from) = @$pair;
	$node->safe_psql('postgres', sprintf(
			"CREATE SUBSCRIPTION %s_from_%s CONNECTION '%s' PUBLICATION p WITH (origin = none, copy_data = false)",
			$node->name, $from->name, connstr($from)));
}
my @streams = ([ $left, 'right_from_left' ], [ $right, 'left_from_right' ]);

sub value_of { return $_[0]->safe_psql('postgres', "SELECT v FROM t WHERE id = $_[1]"); }

sub clock_of { return $_[0]->safe_psql('postgres', "SELECT $_[1] FROM krahodb.clock"); }

sub timestamp_of
{
	return $_[0]->safe_psql('postgres',
		"SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin)) FROM t WHERE id = $_[1]");
}

$left->safe_psql('postgres', "INSERT INTO t VALUES (1, 'first')");
wait_streams(2, @streams);
is(clock_of($right, 'enforced'), 't', 'the rule holds where a subscription resolves conflicts');
is(clock_of($right, 'apply_waits'), '0', 'nobody waits while clocks agree');

# ---- a clock that is ahead ---------------------------------------------------

# Who waits for longer than the publisher for an answer does not lose the connection.
$left->safe_psql('postgres', 'ALTER SUBSCRIPTION left_from_right DISABLE');
set_clock($right, '+2');
$right->safe_psql('postgres', "ALTER SYSTEM SET wal_sender_timeout = '1500ms'");
reload_settings($right);
$left->safe_psql('postgres', 'ALTER SUBSCRIPTION left_from_right ENABLE');
wait_streams(1, @streams);
my $position = -s $right->logfile;
$right->safe_psql('postgres', "UPDATE t SET v = 'from the future' WHERE id = 1");
wait_streams(1, @streams);
is(value_of($left, 1), 'from the future', 'it arrives');
ok(!$right->log_contains(qr/terminating walsender process due to replication timeout/, $position), 'in one attempt');
$right->safe_psql('postgres', 'ALTER SYSTEM RESET wal_sender_timeout');
reload_settings($right);
cmp_ok(clock_of($left, 'apply_waits'), '>', 0, 'after the clock here has passed its time');
my $seen = timestamp_of($left, 1);
$left->safe_psql('postgres', "UPDATE t SET v = 'has seen it' WHERE id = 1");
cmp_ok(timestamp_of($left, 1), '>', $seen, 'an update that has seen it is later');
wait_streams(2, @streams);
is(value_of($right, 1), 'has seen it', 'and wins on both nodes');

# ---- a clock that steps back -------------------------------------------------

$right->safe_psql('postgres', "INSERT INTO t VALUES (2, 'before the step')");
my $before = timestamp_of($right, 2);
set_clock($right, '+0');
$right->safe_psql('postgres', "UPDATE t SET v = 'after the step' WHERE id = 2");
cmp_ok(timestamp_of($right, 2), '>', $before, 'the next commit is later all the same');
cmp_ok(clock_of($right, 'commit_waits'), '>', 0, 'as it waited');
wait_streams(2, @streams);
is(value_of($left, 2), 'after the step', 'and it wins on the other node');

# ---- and is forgotten in a crash ---------------------------------------------

set_clock($right, '+2');
$right->safe_psql('postgres', "INSERT INTO t VALUES (3, 'before the crash')");
$before = timestamp_of($right, 3);
$right->stop('immediate');
set_clock($right, '+0');
start_with_clock($right);
$right->safe_psql('postgres', "UPDATE t SET v = 'after the crash' WHERE id = 3");
cmp_ok(timestamp_of($right, 3), '>', $before, 'the newest commit is known again after a crash');
wait_streams(2, @streams);
is(value_of($left, 3), 'after the crash', 'and the later one wins');

# ---- prepared transactions ---------------------------------------------------

$right->safe_psql('postgres', "BEGIN; UPDATE t SET v = 'prepared' WHERE id = 3; PREPARE TRANSACTION 'p'");
set_clock($right, '+2');
$right->safe_psql('postgres', "INSERT INTO t VALUES (4, 'newest')");
set_clock($right, '+0');
$before = timestamp_of($right, 4);
$right->safe_psql('postgres', "COMMIT PREPARED 'p'");
cmp_ok(timestamp_of($right, 3), '>', $before, 'COMMIT PREPARED waits as well');

# ---- beyond the limit --------------------------------------------------------

set_clock($right, '+3600');
$right->safe_psql('postgres', "INSERT INTO t VALUES (5, 'an hour ahead')");
$left->wait_for_log(qr/ERROR: .*cannot apply a transaction whose timestamp is \d+ ms ahead of this server's clock/);
is(value_of($left, 5), '', 'a change too far in the future is not applied');

set_clock($right, '+0');
my ($status, undef, $error) = $right->psql('postgres', "INSERT INTO t VALUES (6, 'x')");
isnt($status, 0, 'a commit too far behind the newest one fails');
like($error, qr/cannot commit because this server's clock is \d+ ms behind the newest committed change/,
	'and says why');
is(value_of($right, 6), '', 'without a trace');

# What is recorded now is not older than what was committed before: the horizon may pass it
# only behind that.  (right has never had the row that is deleted.)
$left->safe_psql('postgres', q{ALTER PUBLICATION p SET (publish = 'delete')});
$left->safe_psql('postgres', q{INSERT INTO t VALUES (7, 'not sent')});
$left->safe_psql('postgres', q{ALTER PUBLICATION p SET (publish = 'insert, update, delete, truncate')});
$left->safe_psql('postgres', 'DELETE FROM t WHERE id = 7');
wait_streams(1, [ $left, 'right_from_left' ]);
is($right->safe_psql('postgres', join(' UNION ALL ', map { "SELECT stamp >= newest_commit FROM krahodb.version_records_$_, krahodb.clock WHERE kind = 'd'" } 1 .. 4)),
	't', 'a record is not older than the newest commit');

set_clock($_, '+3601') foreach @nodes;
wait_streams(2, @streams);
is(value_of($left, 5), 'an hour ahead', 'nothing is lost when the clocks are right again');
$right->safe_psql('postgres', "INSERT INTO t VALUES (6, 'x')");
wait_streams(2, @streams);
is_equal_on(\@nodes, 'SELECT * FROM t ORDER BY id', 'rows');

# ---- a server without multi-master --------------------------------------------

my $plain = krahodb_node('plain');
$plain->safe_psql('postgres', 'CREATE EXTENSION krahodb');
$plain->poll_query_until('postgres', 'SELECT NOT enforced FROM krahodb.clock')
  or die 'the rule is still enforced';
pass('does not wait for its clock');

done_testing();
