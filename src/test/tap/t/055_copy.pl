# What goes wrong here: a table is copied in ranges by several processes, each range in
# a transaction of its own, while its rows change, move and go; processes and servers
# die in the middle.  At the end the table must be the publisher's, row for row, and
# what had been copied and is still right must not have been copied again.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $pub = krahodb_node('pub');
my $sub = krahodb_node('sub', conf => <<'EOC');
krahodb.copy_range_size = 64kB
krahodb.copy_workers_per_table = 3
EOC
my $pub_connstr = connstr($pub);

# Many ranges, of 8 pages each.
my $rows = 20000;
my $columns = 'id int, v int, pad text, at timestamptz';
my $fill = "SELECT g, 0, 'row ' || g || repeat('x', 80), now() FROM generate_series(1, $rows) g";

sub make_table
{
	my ($name, $constraint) = @_;

	foreach my $node ($pub, $sub)
	{
		$node->safe_psql('postgres', "CREATE TABLE $name ($columns $constraint)");
	}
	$pub->safe_psql('postgres', "INSERT INTO $name $fill; CREATE PUBLICATION $name FOR TABLE $name");
	return;
}

sub subscribe
{
	my ($name, $options) = @_;

	$sub->safe_psql('postgres',
		"CREATE SUBSCRIPTION $name CONNECTION '$pub_connstr' PUBLICATION $name" . ($options ? " WITH ($options)" : ''));
	return;
}

sub wait_ready
{
	$sub->poll_query_until('postgres',
		"SELECT count(*) > 0 AND bool_and(srsubstate = 'r') FROM pg_subscription_rel")
	  or die "timed out waiting for the tables to be ready";
	return;
}

# Hold up every process at a fault point; returns when the first is there.
sub hold_at
{
	my ($fault) = @_;
	my $offset = -s $sub->logfile;

	arm_fault($sub, "$fault=wait");
	$sub->reload;
	return sub {
		my ($name) = $fault =~ /^(\w+)/;
		$sub->wait_for_log(qr/fault point "$name" reached/, $offset);
	};
}

sub let_go
{
	disarm_fault($sub);
	$sub->reload;
	return;
}

# Equal, and nothing is left behind.
sub check_copy
{
	my ($name, $test) = @_;

	wait_ready();
	wait_streams(1, [ $pub, $name ]);
	is_equal_on([ $pub, $sub ],
		"SELECT count(*), count(DISTINCT id), md5(string_agg(t::text, ',' ORDER BY id, t::text)) FROM $name t",
		$test);
	is($sub->safe_psql('postgres', q{SELECT count(*) FROM pg_seclabel WHERE provider = 'krahodb initial copy'}),
		'0', "$test: no marks are left");
	is($sub->safe_psql('postgres', 'SELECT count(*) FROM pg_replication_origin'), '1',
		"$test: no origins are left");
	is(slots_of($pub), $name, "$test: no slots are left");
	return;
}

# Of the last copy in ranges: how many, and how many were kept.
sub ranges_since
{
	my ($offset) = @_;
	my @found = slurp_file($sub->logfile, $offset) =~ /is copied in (\d+) ranges, (\d+) of which are here/g;

	return @found[ -2, -1 ];
}

# ---- several processes -------------------------------------------------------------

make_table('keyed', ', PRIMARY KEY (id)');
$pub->safe_psql('postgres', 'DELETE FROM keyed WHERE id % 7 = 0');
my $offset = -s $sub->logfile;
my $held = hold_at('copy_helper_started');
subscribe('keyed');
$held->();
is( $sub->safe_psql(
		'postgres', q{SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'krahodb copy worker'}),
	't', 'helpers run');
let_go();
check_copy('keyed', 'table with a key');
my ($nranges, $kept) = ranges_since($offset);
cmp_ok($nranges, '>', 20, 'it was copied in ranges');
is($kept, 0, 'all of them');
is( $sub->safe_psql(
		'postgres', q{
	SELECT count(DISTINCT k.xmin::text) > 20, count(DISTINCT o.roname), bool_and(o.roname = 'pg_' || s.oid)
	FROM keyed k, pg_subscription s, LATERAL pg_xact_commit_timestamp_origin(k.xmin) c
		LEFT JOIN pg_replication_origin o ON o.roident = c.roident}),
	't|1|t', 'each range is a transaction, marked with the origin of the subscription');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION keyed');

# ---- crashes -----------------------------------------------------------------------

# Between the attempts rows change in a few places: ranges that they are in, or that
# they leave, come again, the others do not.  Rows without a key show what is there
# twice or not at all.
make_table('nokey', '');
foreach my $node ($pub, $sub)
{
	$node->safe_psql('postgres', 'ALTER TABLE nokey REPLICA IDENTITY FULL');
}
my $next = $rows;
my $changes = sub {
	my ($at) = @_;

	$next += 10;
	$pub->safe_psql(
		'postgres', qq{
		INSERT INTO nokey SELECT g, 1, 'new', now() FROM generate_series($next, $next + 9) g;
		UPDATE nokey SET v = v + 1, pad = pad || 'y' WHERE id BETWEEN $at AND $at + 20;
		DELETE FROM nokey WHERE id BETWEEN $at + 30 AND $at + 50;
		UPDATE nokey SET id = id + 1000000 WHERE id = $at + 60;
	});
};

$offset = -s $sub->logfile;
my @crashes = (
	'copy_range_before_commit@3=kill',
	'copy_range_after_commit@5=kill',
	'copy_helper_started=kill',
	'copy_range_before_commit@4=kill',
	'sync_after_slot=kill',
	'copy_range_after_commit@2=kill',
	'sync_after_copy=kill');
my $at = 100;
foreach my $fault (@crashes)
{
	my ($name) = $fault =~ /^(\w+)/;

	arm_fault($sub, $fault);
	if ($fault eq $crashes[0])
	{
		$sub->reload;
		$sub->psql('postgres', "CREATE SUBSCRIPTION nokey CONNECTION '$pub_connstr' PUBLICATION nokey");
	}
	else
	{
		$sub->start(fail_ok => 1);
	}
	wait_until_down($sub);
	$offset = $sub->wait_for_log(qr/fault point "$name" reached/, $offset);
	ok(1, "server went down at $fault");
	$changes->($at);
	$at += 2000;
}
disarm_fault($sub);
$sub->start;
check_copy('nokey', 'crashes of the subscriber');
($nranges, $kept) = ranges_since($offset);
cmp_ok($kept, '>', $nranges / 2, "most of $nranges ranges were kept: $kept");
cmp_ok($kept, '<', $nranges, 'but not all');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION nokey');

# The publisher dies, and loses the snapshot.  Writes go on while the copy does.
my $script = $pub->basedir . '/writes.sql';
append_to_file(
	$script, q{
\set k random(1, 20000)
\set n random(20001, 1000000)
BEGIN;
UPDATE nokey SET v = v + 1 WHERE ctid = (SELECT ctid FROM nokey WHERE id = :k LIMIT 1);
INSERT INTO nokey VALUES (:n, 0, 'during', now());
DELETE FROM nokey WHERE ctid = (SELECT ctid FROM nokey WHERE id = :k + 1 LIMIT 1);
COMMIT;
});
$sub->safe_psql('postgres', 'TRUNCATE nokey');
$offset = -s $sub->logfile;
$held = hold_at('copy_range_after_commit@4');
subscribe('nokey');
$held->();
$pub->stop('immediate');
$pub->start;
my ($out, $err) = ('', '');
my $writer = IPC::Run::start(
	[
		'pgbench', '-n', '-c', '2', '-t', '30', '-f', $script, '-h', $pub->host, '-p', $pub->port, 'postgres'
	],
	'>', \$out, '2>', \$err);
let_go();
ok($writer->finish, 'writes during the copy') or diag($err);
check_copy('nokey', 'crash of the publisher');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION nokey');

# ---- helpers that fail ----------------------------------------------------------------

# The copy goes on under the same snapshot: the worker does not end.
$sub->safe_psql('postgres', 'TRUNCATE keyed');
$offset = -s $sub->logfile;
$held = hold_at('copy_range_before_commit');
subscribe('keyed');
$held->();
$sub->poll_query_until('postgres',
	q{SELECT count(pg_terminate_backend(pid)) > 0 FROM pg_stat_activity WHERE backend_type = 'krahodb copy worker'})
  or die 'timed out waiting for a helper';
$pub->safe_psql('postgres', 'UPDATE keyed SET v = v + 1 WHERE id % 100 = 1');
let_go();
check_copy('keyed', 'a helper was terminated');
my @starts = slurp_file($sub->logfile, $offset) =~ /table synchronization worker for subscription "keyed", table "keyed" has started/g;
is(scalar @starts, 1, 'the synchronisation worker went on');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION keyed');

# No helper can be started at all.
$sub->safe_psql('postgres', 'TRUNCATE keyed');
arm_fault($sub, 'copy_helper_started=error');
$sub->reload;
subscribe('keyed');
check_copy('keyed', 'no helper gets anywhere');
let_go();
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION keyed');

# The synchronisation worker is terminated: so are its helpers, and the next one goes on.
$sub->safe_psql('postgres', 'TRUNCATE keyed');
$offset = -s $sub->logfile;
$held = hold_at('copy_range_after_commit@3');
subscribe('keyed');
$held->();
$pub->safe_psql('postgres', 'UPDATE keyed SET v = v + 1 WHERE id < 100; DELETE FROM keyed WHERE id BETWEEN 5000 AND 5100');
$sub->safe_psql('postgres',
	q{SELECT pg_terminate_backend(s.pid) FROM pg_stat_subscription s WHERE s.relid = 'keyed'::regclass});
let_go();
check_copy('keyed', 'the synchronisation worker was terminated');
($nranges, $kept) = ranges_since($offset);
cmp_ok($kept, '>', 0, 'its ranges were kept');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION keyed');

$sub->stop; $pub->stop; done_testing();
