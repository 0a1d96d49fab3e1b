# What goes wrong here: the role that a table is copied by may read less than all of it,
# sessions that idle in a transaction are ended at the publisher, and others want locks on the table
# here, or the worker ends with those that it has.  A table that can be copied as a whole is not to
# fail because it is copied in ranges, and no range may be lost.

use strict;
use warnings;

use KrahoDB::Copy;
use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

start_nodes();

my $parted = sub {
	my ($name) = @_;
	return "CREATE TABLE $name (id int, t text) PARTITION BY RANGE (id);"
	  . join '', map { "CREATE TABLE ${name}_$_ PARTITION OF $name FOR VALUES FROM ($_ * 5000) TO (($_ + 1) * 5000);" } 0 .. 3;
};
my @parted = qw(granted guarded);
foreach my $node ($pub, $sub)
{
	$node->safe_psql('postgres',
		'CREATE TABLE keyed (id int PRIMARY KEY, t text, secret text);' . join '', map { $parted->($_) } @parted);
}
foreach my $table ('keyed', @parted)
{
	my $via_root = $table eq 'keyed' ? '' : 'WITH (publish_via_partition_root)';
	my $columns = $table eq 'keyed' ? '(id, t)' : '';

	$pub->safe_psql(
		'postgres', qq{
		INSERT INTO $table SELECT g, 'row ' || g || repeat('x', 80) FROM generate_series(1, 19999) g;
		CREATE PUBLICATION $table FOR TABLE $table $columns $via_root});
}
$pub->safe_psql(
	'postgres', q{
	CREATE ROLE reader LOGIN REPLICATION;
	ALTER ROLE reader SET idle_in_transaction_session_timeout = '200ms';
	GRANT SELECT (id, t) ON keyed TO reader;
	GRANT SELECT ON granted TO reader;
	GRANT SELECT ON guarded, guarded_0, guarded_1, guarded_2, guarded_3 TO reader;
	ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
	CREATE POLICY even ON guarded USING (id % 2 = 0)});

my ($held, $offset);

sub in_ranges { return (my @ranges = ranges_since($offset)) ? 1 : 0; }

my ($out, $err);

# A command that has to wait for keyed; returns when it does.
sub start_psql
{
	my ($command) = @_;

	($out, $err) = ('', '');
	my $psql = IPC::Run::start([ 'psql', '-X', '-d', $sub->connstr('postgres'), '-c', $command ], '>', \$out, '2>', \$err);
	$sub->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_locks WHERE relation = 'keyed'::regclass AND NOT granted})
	  or die "timed out waiting for $command";
	return $psql;
}

# ---- what the role may read ------------------------------------------------------------

# Reading pages needs system columns and partitions: such tables are copied as a whole.
my $rows = 'SELECT count(*), sum(id), md5(string_agg(t, \',\' ORDER BY id))';
$offset = subscribe('keyed', '', user => 'reader');
wait_ready();
is_equal_on([ $pub, $sub ], "$rows FROM keyed", 'some columns');
is(in_ranges(), 0, 'as a whole');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION keyed; DELETE FROM keyed WHERE id % 2 = 0');
$offset = subscribe('keyed', 'insert_exists = apply_remote', user => 'reader');
wait_ready();
is_equal_on([ $pub, $sub ], "$rows FROM keyed", 'some columns, and rows that are there');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION keyed');

$offset = subscribe('granted', '', user => 'reader');
wait_ready();
is_equal_on([ $pub, $sub ], "$rows FROM granted", 'a partitioned table, but not its partitions');
is(in_ranges(), 0, 'as a whole');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION granted');

$offset = subscribe('guarded', '', user => 'reader');
wait_ready();
is($sub->safe_psql('postgres', 'SELECT count(*), count(*) FILTER (WHERE id % 2 = 0) FROM guarded'),
	'9999|9999', 'policies of a partitioned table hold for its partitions');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION guarded');

# May read the partitions, but not say their names.
$pub->safe_psql(
	'postgres', q{
	CREATE SCHEMA hidden;
	ALTER TABLE granted_1 SET SCHEMA hidden;
	GRANT SELECT ON granted_0, hidden.granted_1, granted_2, granted_3 TO reader});
$sub->safe_psql('postgres', 'TRUNCATE granted');
$offset = subscribe('granted', '', user => 'reader');
wait_ready();
is_equal_on([ $pub, $sub ], "$rows FROM granted", 'a partition in a schema without USAGE');
is(in_ranges(), 0, 'as a whole');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION granted');

# ---- sessions that idle -----------------------------------------------------------------

# The worker's session at the publisher holds the snapshot and has nothing to do while it
# waits here.
$pub->safe_psql('postgres', 'GRANT SELECT ON keyed TO reader');
$sub->safe_psql('postgres', 'TRUNCATE keyed');
$held = hold_at('copy_range_after_commit');
$offset = subscribe('keyed', '', user => 'reader');
$held->();
ok( $pub->poll_query_until(
		'postgres', q{
	SELECT count(*) > 1 FROM pg_stat_activity
	WHERE usename = 'reader' AND state = 'idle in transaction' AND clock_timestamp() - state_change > '1 s'}),
	'sessions idle in a transaction');
let_go();
wait_ready();
is_equal_on([ $pub, $sub ], "$rows FROM keyed", 'sessions that idle are not ended');
is(in_ranges(), 1, 'in ranges');
my @starts = slurp_file($sub->logfile, $offset) =~ /table synchronization worker for subscription "keyed", table "keyed" has started/g;
is(scalar @starts, 1, 'in one attempt');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION keyed');

# Nor is a statement ended that takes long, as somebody alters the table there.
$pub->safe_psql('postgres', q{ALTER ROLE reader SET statement_timeout = '1s'; ALTER ROLE reader SET lock_timeout = '1s'});
$sub->safe_psql('postgres', 'TRUNCATE keyed');
$held = hold_at('sync_after_slot');
$offset = subscribe('keyed', '', user => 'reader');
$held->();
$pub->safe_psql('postgres', q{BEGIN; LOCK TABLE keyed; PREPARE TRANSACTION 'alters'});
let_go();
my $waits = q{SELECT FROM pg_stat_activity WHERE usename = 'reader' AND wait_event_type = 'Lock'};
$pub->poll_query_until('postgres', "SELECT EXISTS ($waits)") or die;
$pub->poll_query_until('postgres', "SELECT NOT EXISTS ($waits AND clock_timestamp() - query_start < '1500 ms')") or die;
$pub->safe_psql('postgres', q{ROLLBACK PREPARED 'alters'});
wait_ready();
is_equal_on([ $pub, $sub ], "$rows FROM keyed", 'statements that take long are not ended');
@starts = slurp_file($sub->logfile, $offset) =~ /table synchronization worker for subscription "keyed", table "keyed" has started/g;
is(scalar @starts, 1, 'in one attempt');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION keyed');

# ---- locks that are left behind ------------------------------------------------------------

# A worker that ends between two ranges is not in a transaction.
$sub->safe_psql('postgres', 'TRUNCATE keyed');
$held = hold_at('copy_range_after_commit');
$offset = subscribe('keyed');
$held->();
$sub->safe_psql('postgres', 'ALTER SUBSCRIPTION keyed DISABLE; DROP SUBSCRIPTION keyed');
let_go();
is($sub->safe_psql('postgres', q{SELECT count(*) FROM pg_locks WHERE relation = 'keyed'::regclass}),
	'0', 'a subscription that is dropped while it copies leaves no lock');

# ---- locks here ------------------------------------------------------------------------------

# Who wants a lock on the table waits for the worker; its helpers must not wait behind him,
# as the worker waits for them.
$sub->safe_psql('postgres', 'TRUNCATE keyed');
hold_at('copy_range_after_commit');
$offset = subscribe('keyed');
$sub->poll_query_until('postgres',
	q{SELECT count(*) = 2 FROM pg_stat_activity WHERE backend_type = 'krahodb copy worker' AND wait_event_type = 'Extension'})
  or die 'timed out waiting for the helpers';
my $index = start_psql('CREATE INDEX keyed_t ON keyed (t)');
let_go();
wait_ready();
ok($index->finish, 'CREATE INDEX while a table is copied') or diag($err);
is(in_ranges(), 1, 'in ranges');
is_equal_on([ $pub, $sub ], "$rows FROM keyed", 'the copy does not wait for who waits for it');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION keyed; DROP INDEX keyed_t');

# ---- TRUNCATE here ----------------------------------------------------------------------------

# It waits while the copy looks at what an earlier attempt has left, and must go on waiting
# until the copy is complete: ranges that were found to be there would be gone.
$sub->safe_psql('postgres', 'TRUNCATE keyed');
$held = hold_at('copy_range_after_commit@4');
subscribe('keyed');
$held->();
$sub->stop('immediate');
arm_fault($sub, 'sync_before_copy=wait');
$offset = -s $sub->logfile;
$sub->start;
$sub->wait_for_log(qr/fault point "sync_before_copy" reached/, $offset);
my $truncate = start_psql('TRUNCATE keyed');
let_go();
ok($truncate->finish, 'TRUNCATE') or diag($err);
wait_ready();
like(slurp_file($sub->logfile, $offset), qr/is copied in \d+ ranges, [1-9]\d* of which are here/, 'ranges were kept');
is($sub->safe_psql('postgres', 'SELECT count(*) FROM keyed'), '0', 'TRUNCATE has waited for the end of the copy');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION keyed');

$sub->stop;
$pub->stop;
done_testing();
