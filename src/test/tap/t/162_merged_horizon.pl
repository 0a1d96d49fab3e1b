# What goes wrong here: what merged columns are made of has been forgotten in part, as
# the retention horizon has passed it, and then changes arrive that it did not
# reach: of a key that is deleted, or that was deleted and came back.

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::PausedMesh;
use PostgreSQL::Test::Utils;
use Test::More;

my $mesh = KrahoDB::PausedMesh->new(
	names => [qw(n1 n2 n3)],
	schema => q{
		CREATE EXTENSION krahodb;
		CREATE TABLE m (id int PRIMARY KEY, n int, hi int);
		ALTER TABLE m REPLICA IDENTITY FULL, ALTER n SET (krahodb.merge = delta), ALTER hi SET (krahodb.merge = max);
		CREATE PUBLICATION p FOR TABLE m;
	},
	publications => 'p');
my ($n1, $n2, $n3) = $mesh->nodes;

sub on { my ($node, $query) = @_; return $node->safe_psql('postgres', $query); }

sub catch_up
{
	my ($from, @to) = @_;

	$from->wait_for_catchup($_->name . '_' . $from->name, 'replay', $from->lsn('insert')) foreach @to;
	return;
}

sub time_on { return on($_[0], 'SELECT clock_timestamp()'); }

sub wait_for
{
	my ($node, $query) = @_;

	# a candidate from before may be stuck, and does not need what is waited for here
	on($node, 'SHOW krahodb.frontiers_now');
	on($node, 'SELECT txid_current()');
	$node->poll_query_until('postgres', $query)
	  or die $node->name . ": $query: " . on($node, 'SELECT * FROM krahodb.horizon');
	return;
}

# ---- a change to a dead key, and then the horizon passes it but not the deletion -------------

on($n1, 'INSERT INTO m VALUES (1, 1, 10)');
$mesh->settle;
pause_subscription($n3, 'n3_n2');
on($n2, 'UPDATE m SET n = n + 3, hi = 30 WHERE id = 1');
catch_up($n2, $n1);
on($n1, 'UPDATE m SET n = n + 5 WHERE id = 1');
catch_up($n1, $n2, $n3);

# from now on n2 has not received the deletion, and all horizons stay before it
my $before = time_on($n1);
wait_for($n2, "SELECT applied_until > '$before' FROM krahodb.horizon WHERE subscription = 'n2_n1'");
pause_subscription($n2, 'n2_n1');
on($n1, 'DELETE FROM m WHERE id = 1');
catch_up($n1, $n3);
on($n3, 'ALTER SUBSCRIPTION n3_n2 ENABLE');
catch_up($n2, $n3);
wait_for($n3, "SELECT horizon > '$before' FROM krahodb.horizon_state()");

on($n2, 'UPDATE m SET n = n + 100 WHERE id = 1');
catch_up($n2, $n1, $n3);
is(on($n3, 'SELECT n, hi FROM m WHERE id = 1'), '109|30',
	'a change to a deleted row counts when the row comes back, though it is behind the horizon');

# a change that loses to the row which has come back
pause_subscription($n3, 'n3_n2');
on($n2, 'UPDATE m SET n = n + 1000 WHERE id = 1');
catch_up($n2, $n1);
on($n3, 'UPDATE m SET n = n + 10000 WHERE id = 1');
on($n3, 'ALTER SUBSCRIPTION n3_n2 ENABLE');
on($n2, 'ALTER SUBSCRIPTION n2_n1 ENABLE');
$mesh->settle;
is(is_equal_on([ $n1, $n2, $n3 ], 'SELECT n, hi FROM m WHERE id = 1', 'it is the same on all nodes'), '11109|30', 'and so do later ones');

# again, with what has been copied from one life of the key to the next
pause_subscription($n2, $_) foreach qw(n2_n1 n2_n3);
pause_subscription($n3, 'n3_n2');
on($n1, 'DELETE FROM m WHERE id = 1');
on($n2, 'UPDATE m SET n = n + 1 WHERE id = 1');
catch_up($n1, $n3);
on($n3, 'ALTER SUBSCRIPTION n3_n2 ENABLE');
catch_up($n2, $n3);
on($n3, 'DELETE FROM m WHERE id = 1');
on($n2, 'UPDATE m SET n = n + 2, hi = 31 WHERE id = 1');
on($n2, "ALTER SUBSCRIPTION $_ ENABLE") foreach qw(n2_n1 n2_n3);
$mesh->settle;
is(is_equal_on([ $n1, $n2, $n3 ], 'SELECT n, hi FROM m', 'two lives'), '11112|31', 'a key that was deleted twice');

# ---- two contributions to a dead key at the same time ------------------------------------------

on($n1, 'INSERT INTO m VALUES (2, 1, 1)');
$mesh->settle;
$mesh->pause;
on($n1, 'UPDATE m SET n = n + 10 WHERE id = 2');
on($n2, 'UPDATE m SET n = n + 100 WHERE id = 2');
on($n3, 'DELETE FROM m WHERE id = 2');

# the first one waits with its lock on the key, the second one for that
arm_fault($n3, 'merged_locked=wait');
$n3->reload;
$mesh->release('31');
$n3->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND granted})
  or die 'the key is not locked';
$mesh->release('32');
$n3->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted})
  or die 'the second worker does not wait';
disarm_fault($n3);
$n3->reload;
$mesh->deliver('31', '32');
on($n2, 'UPDATE m SET n = n + 1000 WHERE id = 2');
$mesh->release($_) foreach qw(12 13 21 23);
$mesh->settle;
is(is_equal_on([ $n1, $n2, $n3 ], 'SELECT n, hi FROM m WHERE id = 2', 'two at the same time'), '1111|1', 'each counts once');

# ---- the horizon outlives the server -------------------------------------------------------------

my $now = time_on($n1);
wait_for($n1, "SELECT horizon > '$now' FROM krahodb.horizon_state()");
my $horizon = on($n1, 'SELECT horizon FROM krahodb.horizon_state()');
$mesh->pause;
$n1->stop('immediate');
$n1->start;
is(on($n1, "SELECT horizon >= '$horizon' FROM krahodb.horizon_state()"), 't',
	'the horizon is known after a crash without asking anybody');

# a crash between writing it and moving what depends on it
arm_fault($n1, 'horizon_stored=crash');
$n1->reload;
$mesh->release($_) foreach qw(21 23 31 32);
$n1->psql('postgres', 'ALTER SUBSCRIPTION n1_n2 ENABLE; ALTER SUBSCRIPTION n1_n3 ENABLE');
wait_until_down($n1);
disarm_fault($n1);
$n1->start;
is(on($n1, "SELECT horizon > '$horizon' FROM krahodb.horizon_state()"), 't',
	'nor has it gone back after a crash while it moves');
$mesh->settle;

# a damaged file is not guessed at
my $file = $n1->data_dir . '/krahodb/horizon';
$n1->stop;
my $content = slurp_file($file);
substr($content, -1, 1) ^= "\x01";
open my $handle, '>:raw', $file or die $!;
print $handle $content;
close $handle;
ok(!$n1->start(fail_ok => 1), 'the server does not start with a damaged file');
like(slurp_file($n1->logfile), qr/could not read file "krahodb\/horizon": its checksum is wrong/, 'and says so');
unlink $file or die $!;
$n1->start;
$now = time_on($n1);
wait_for($n1, "SELECT horizon > '$now' FROM krahodb.horizon_state()");
pass('without it the horizon is found again');

done_testing();
