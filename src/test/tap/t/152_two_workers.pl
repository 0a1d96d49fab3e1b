# What goes wrong here: two apply workers of a node are at the same key or unique value
# in the same moment.  One remembers that the key was deleted, or that the value was
# claimed, and finds no row to remove; the other one writes an older row, and finds no
# deletion or claim.  The row would stay on this node and on no other.  Each of the two
# is held up while the other one passes, before and after it has done its part.  The
# same with a user's transaction that comes between a worker's look and its write.

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::PausedMesh;
use PostgreSQL::Test::Utils;
use Test::More;

my $mesh = KrahoDB::PausedMesh->new(
	names => [qw(n1 n2 n3)],
	publications => 'pub',
	conf => "deadlock_timeout = 100ms\n",
	schema => 'CREATE EXTENSION krahodb; CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE, v text);
		CREATE PUBLICATION pub FOR TABLE t');
my $third = $mesh->node(3);
my $id = 0;

sub hold
{
	my ($point, $link) = @_;
	my $offset = -s $third->logfile;

	arm_fault($third, "$point=wait");
	reload_settings($third);
	$mesh->release($link);
	$third->wait_for_log(qr/fault point "$point" reached: wait/, $offset);
	return;
}

sub let_go
{
	disarm_fault($third);
	reload_settings($third);
	return;
}

# The worker waits for the transaction of the other one, or has passed.
sub wait_for_lock
{
	my ($link) = @_;
	my ($to, $from) = map { $mesh->node($_) } split //, $link;
	my $name = $to->name . '_' . $from->name;

	$to->poll_query_until('postgres',
		"SELECT wait_event_type = 'Lock' FROM pg_stat_activity JOIN pg_stat_subscription USING (pid) WHERE subname = '$name'")
	  or die "$name does not wait";
	return;
}

# The stream $held stands at a point while $other passes, or waits for it.
sub interleave
{
	my ($name, $point, $held, $other, $waits, $query, $expected) = @_;

	hold($point, $held);
	if ($waits)
	{
		$mesh->release($other);
		wait_for_lock($other);
	}
	else { $mesh->deliver($other); }
	let_go();
	$mesh->deliver($held, $other);
	is($third->safe_psql('postgres', $query), $expected, "$name: on this node");
	$mesh->deliver(grep { $_ ne $held && $_ ne $other } qw(12 13 21 23));
	$mesh->settle;
	is(is_equal_on([ $mesh->nodes ], 'SELECT * FROM t ORDER BY id', $name) // '',
		$third->safe_psql('postgres', 'SELECT * FROM t ORDER BY id'), "$name: everywhere");
	return;
}

# ---- a deletion that finds no row, and the row ------------------------------------------

sub burial
{
	my ($name, $point, $held, $other, $waits) = @_;

	$id++;
	$mesh->pause;
	$mesh->on(1 => "INSERT INTO t VALUES ($id, NULL, 'inserted')");
	$mesh->deliver('21');
	$mesh->on(2 => "DELETE FROM t WHERE id = $id");
	interleave("burial, $name", $point, $held, $other, $waits, "SELECT * FROM t WHERE id = $id", '');
	return;
}

burial('insert held before it', 'converge_insert', '31', '32', 0);
burial('insert held after it', 'converge_inserted', '31', '32', 1);
burial('deletion held before it', 'converge_bury', '32', '31', 0);
burial('deletion held after it', 'converge_buried', '32', '31', 1);

# ---- a claim of a write that loses, and an older row with the value -------------------------

sub claim
{
	my ($name, $write, $point, $held, $other, $waits) = @_;
	my ($row, $loser, $u) = ($id + 1, $id + 2, $id + 1000);

	$id += 2;
	$mesh->on(1 => "INSERT INTO t VALUES ($loser, NULL, 'old')");
	$mesh->on(1 => "INSERT INTO t VALUES ($row, NULL, 'old')") if $write eq 'update';
	$mesh->settle;
	$mesh->pause;
	$mesh->on(
		1 => $write eq 'update' ? "UPDATE t SET u = $u WHERE id = $row" : "INSERT INTO t VALUES ($row, $u, 'new')",
		2 => "UPDATE t SET u = $u WHERE id = $loser",
		3 => "UPDATE t SET v = 'newest' WHERE id = $loser");
	interleave("claim, $name", $point, $held, $other, $waits,
		"SELECT * FROM t WHERE id IN ($row, $loser)", "$loser||newest");
	return;
}

claim('insert held before it', 'insert', 'converge_insert', '31', '32', 0);
claim('insert held after it', 'insert', 'converge_inserted', '31', '32', 1);
claim('claim held before it, insert', 'insert', 'converge_claim', '32', '31', 0);
claim('claim held after it, insert', 'insert', 'converge_claimed', '32', '31', 1);
claim('update held before it', 'update', 'converge_overwrite', '31', '32', 0);
claim('claim held before it, update', 'update', 'converge_claim', '32', '31', 0);
claim('claim held after it, update', 'update', 'converge_claimed', '32', '31', 1);

# ---- a user between the look and the write ------------------------------------------------

# The worker has looked, or has not as nothing newer was here; then a user of this node
# inserts and deletes the key, or takes and gives back the value.
foreach my $newest (1, 0)
{
	my $name = $newest ? 'user, nothing newer here' : 'user, something newer here';

	$id++;
	$mesh->pause;
	$mesh->on(1 => "INSERT INTO t VALUES ($id, NULL, 'older')");
	$mesh->on(3 => "INSERT INTO t VALUES ($id + 500, NULL, 'newer')") if !$newest;
	hold('converge_insert', '31');
	$mesh->on(3 => "INSERT INTO t VALUES ($id, NULL, 'newer'); DELETE FROM t WHERE id = $id");
	let_go();
	$mesh->deliver('31');
	is($third->safe_psql('postgres', "SELECT * FROM t WHERE id = $id"), '', "$name: a deletion");

	$id++;
	$mesh->pause;
	$mesh->on(1 => "INSERT INTO t VALUES ($id, 9$id, 'older')");
	$mesh->on(3 => "INSERT INTO t VALUES ($id + 500, NULL, 'newer')") if !$newest;
	hold('converge_insert', '31');
	$mesh->on(3 => "INSERT INTO t VALUES ($id + 600, 9$id, 'newer'); UPDATE t SET u = NULL WHERE id = $id + 600");
	let_go();
	$mesh->deliver('31');
	is($third->safe_psql('postgres', "SELECT v FROM t WHERE id IN ($id, $id + 600)"), 'newer', "$name: a claim, insert");

	$id++;
	$mesh->deliver(qw(12 13 21 23 31 32));
	$mesh->on(1 => "INSERT INTO t VALUES ($id, NULL, 'old')");
	$mesh->settle;
	$mesh->pause;
	$mesh->on(1 => "UPDATE t SET u = 9$id WHERE id = $id");
	$mesh->on(3 => "INSERT INTO t VALUES ($id + 500, NULL, 'newer')") if !$newest;
	hold('converge_overwrite', '31');
	$mesh->on(3 => "INSERT INTO t VALUES ($id + 600, 9$id, 'newer'); UPDATE t SET u = NULL WHERE id = $id + 600");
	let_go();
	$mesh->deliver('31');
	is($third->safe_psql('postgres', "SELECT v FROM t WHERE id IN ($id, $id + 600)"), 'newer', "$name: a claim, update");

	$mesh->deliver(qw(12 13 21 23 31 32));
	$mesh->settle;
	is_equal_on([ $mesh->nodes ], 'SELECT * FROM t ORDER BY id', $name);
}

# ---- deferrable keys -------------------------------------------------------------------

# The engine lets a deferrable key be taken twice until it looks, which it does not where
# changes are applied.  One worker has looked for rows in the way and is about to write;
# another one writes an older row with the value meanwhile.  A CHECK constraint holds the
# first one between the two.
$_->safe_psql('postgres', q{
	CREATE TABLE d (id int PRIMARY KEY, u int UNIQUE DEFERRABLE INITIALLY DEFERRED, v text);
	CREATE FUNCTION held(v text) RETURNS bool LANGUAGE plpgsql AS $$
	BEGIN
		IF v = 'held' AND current_setting('session_replication_role') = 'replica' THEN
			PERFORM pg_advisory_xact_lock_shared(1);
		END IF;
		RETURN true;
	END $$;
	ALTER PUBLICATION pub ADD TABLE d}) foreach $mesh->nodes;
$third->safe_psql('postgres', 'ALTER TABLE d ADD CHECK (held(v))');
foreach my $node ($mesh->nodes)
{
	$node->safe_psql('postgres', "ALTER SUBSCRIPTION $_ REFRESH PUBLICATION WITH (copy_data = false)")
	  foreach map { $_->[1] } grep { $_->[1] =~ /^@{[$node->name]}_/ } $mesh->streams;
}
$mesh->settle;

my $gate = $third->background_psql('postgres');

sub deferrable
{
	my ($name, $older, $newer, $expected) = @_;

	$mesh->pause;
	$mesh->on(2 => $older, 1 => $newer);
	$gate->query_safe('SELECT pg_advisory_lock(1)');
	$mesh->release('31');
	wait_for_lock('31');
	$mesh->deliver('32');
	$gate->query_safe('SELECT pg_advisory_unlock(1)');
	$mesh->deliver(qw(31 12 13 21 23));
	$mesh->settle;
	is(is_equal_on([ $mesh->nodes ], 'SELECT id, u FROM d ORDER BY id', "deferrable, $name"), $expected,
		"deferrable, $name: one of them");
	return;
}

deferrable('a run of inserts',
	q{INSERT INTO d VALUES (10, 77, 'older')},
	q{INSERT INTO d SELECT g, CASE g WHEN 3 THEN 77 END, CASE WHEN g > 1 THEN 'held' END FROM generate_series(1, 4) g},
	"1|\n2|\n3|77\n4|");
deferrable('an insert',
	q{INSERT INTO d VALUES (11, 78, 'older')},
	q{INSERT INTO d VALUES (5, 78, 'held')},
	"1|\n2|\n3|77\n4|\n5|78");
deferrable('an update',
	q{INSERT INTO d VALUES (12, 79, 'older')},
	q{UPDATE d SET u = 79, v = 'held' WHERE id = 4},
	"1|\n2|\n3|77\n4|79\n5|78");
$gate->quit;

is($mesh->errors, 0, 'no error');
$mesh->stop;
done_testing();
