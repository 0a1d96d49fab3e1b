# What goes wrong here: a dump that forgets an option turns a multi-master
# subscription into a plain one, whose changes then loop; one that forgets the
# origin id makes the filters of other nodes miss.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir;
my $pub = krahodb_node('pub');
my $sub = krahodb_node('sub');
my $pub_connstr = connstr($pub);

my $subscriptions_query = q{
	SELECT s.subscription, s.owner, s.origin, s.filter_origins, s.replication_origin_id,
		s.run_as_owner, s.conflict_resolution, s.update_missing, s.insert_exists
	FROM krahodb.subscriptions s ORDER BY s.subscription};
my $tables_query = 'SELECT * FROM krahodb.tables ORDER BY schema, "table"';

sub options_of
{
	my ($node, $dbname) = @_;

	return $node->safe_psql($dbname || 'postgres', $subscriptions_query) . "\n"
	  . $node->safe_psql($dbname || 'postgres', $tables_query);
}

# ---- something to dump -------------------------------------------------------

$pub->safe_psql('postgres', q{
	CREATE TABLE t (a int PRIMARY KEY, b text);
	CREATE PUBLICATION p FOR TABLE t;
	INSERT INTO t VALUES (1, 'before');
});
$sub->safe_psql('postgres', qq{
	CREATE EXTENSION krahodb;
	CREATE ROLE other SUPERUSER LOGIN;
	CREATE TABLE t (a int PRIMARY KEY, b text) WITH (krahodb.conflict_resolution = keep_local);
	CREATE TABLE parted (a int) PARTITION BY RANGE (a) WITH (krahodb.conflict_resolution = error);
	CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (1) TO (10);
	CREATE SUBSCRIPTION live CONNECTION '$pub_connstr' PUBLICATION p
		WITH (replication_origin_id = 102, filter_origins = '2, 3', update_missing = skip);
	CREATE SUBSCRIPTION "Quoted ""name""" CONNECTION '$pub_connstr' PUBLICATION p
		WITH (connect = false, slot_name = NONE, origin = none, run_as_owner = false,
			  insert_exists = apply_remote);
	ALTER SUBSCRIPTION "Quoted ""name""" OWNER TO other;
	CREATE SUBSCRIPTION plain CONNECTION '$pub_connstr' PUBLICATION p
		WITH (connect = false, slot_name = NONE);
});
$sub->wait_for_subscription_sync($pub, 'live');
my $wanted = options_of($sub);
like($wanted, qr/^live\|.*\|any\|\{2,3\}\|102\|t\|last_update_wins\|skip\|last_update_wins$/m,
	'options to dump');
like($wanted, qr/^public\|parted_1\|error\|parted$/m, 'table parameters to dump');

# A dump of a server that goes away, taken after it has stopped to apply.
$sub->safe_psql('postgres', 'ALTER SUBSCRIPTION live DISABLE');
$sub->poll_query_until('postgres',
	"SELECT count(*) = 0 FROM pg_stat_subscription WHERE pid IS NOT NULL")
  or die 'the apply worker goes on';
$sub->command_ok([ 'pg_dumpall', '-f', "$dir/all.sql", '--no-sync', '-d', $sub->connstr('postgres') ],
	'pg_dumpall');
$sub->command_ok([ 'pg_dump', '-Fc', '-f', "$dir/db.dump", '--no-sync', $sub->connstr('postgres') ],
	'pg_dump');
$sub->stop;

# ---- pg_dumpall into a fresh server, which takes over ------------------------

my $copy = krahodb_node('copy');
$copy->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=0', '-f', "$dir/all.sql", $copy->connstr('postgres') ],
	'restore of pg_dumpall');

# an id that nobody chose may be another one
my ($copied, $expected) = map { s/^((?!live).*\|\{\})\|\d+\|/$1|*|/mgr } (options_of($copy), $wanted);
is($copied, $expected, 'pg_dumpall keeps all options');

# A dump does not contain which tables a subscription had; REFRESH finds out.
$copy->safe_psql('postgres', 'ALTER SUBSCRIPTION live ENABLE');
$copy->safe_psql('postgres', 'ALTER SUBSCRIPTION live REFRESH PUBLICATION WITH (copy_data = false)');
$pub->safe_psql('postgres', "INSERT INTO t VALUES (2, 'after')");
$pub->wait_for_catchup('live');
is($copy->safe_psql('postgres', 'SELECT * FROM t ORDER BY a'),
	"1|before\n2|after", 'the restored subscription goes on where the old one stopped');
is($copy->safe_psql('postgres',
		'SELECT (pg_xact_commit_timestamp_origin(xmin)).roident FROM t WHERE a = 2'),
	'102', 'its changes are marked with the chosen origin id');

# ---- pg_dump and pg_restore --------------------------------------------------

my $third = krahodb_node('third');
$third->safe_psql('postgres', 'CREATE ROLE other SUPERUSER LOGIN');
$third->safe_psql('postgres', 'CREATE DATABASE restored');
$third->command_ok([ 'pg_restore', '-1', '-d', $third->connstr('restored'), "$dir/db.dump" ],
	'pg_restore in one transaction');
$copied = options_of($third, 'restored') =~ s/^((?!live).*\|\{\})\|\d+\|/$1|*|/mgr;
is($copied, $expected, 'pg_restore keeps all options');

# The same once more on this server: the origin id is taken, and only that fails.
$third->safe_psql('postgres', 'CREATE DATABASE again');
my ($stdout, $stderr) = run_command([ 'pg_restore', '-d', $third->connstr('again'), "$dir/db.dump" ]);
like($stderr, qr/replication origin id 102 is already in use/, 'an origin id that is taken is refused');
like($stderr, qr/errors ignored on restore: 1$/m, 'nothing else fails');

# ---- and to a server without KrahoDB -----------------------------------------

my $stock = stock_node('stock');
$stock->safe_psql('postgres', 'CREATE ROLE other SUPERUSER LOGIN');
$sub->start;
$sub->safe_psql('postgres', 'DROP EXTENSION krahodb; DROP SCHEMA krahodb');
$sub->command_ok([ 'pg_dump', '--no-security-labels', '-f', "$dir/plain.sql", '--no-sync', $sub->connstr('postgres') ],
	'pg_dump --no-security-labels');
$stock->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', "$dir/plain.sql", $stock->connstr('postgres') ],
	'a dump without labels can be restored by PostgreSQL');
is($stock->safe_psql('postgres', 'SELECT count(*) FROM pg_subscription'), '3', 'its subscriptions are there');

# ---- a subscription leaves no label behind ------------------------------------

$copy->safe_psql('postgres', 'DROP SUBSCRIPTION live');
is($copy->safe_psql('postgres', "SELECT count(*) FROM pg_seclabels WHERE objname = 'live'"), '0',
	'no label after DROP');
is($copy->safe_psql('postgres', 'SELECT count(*) FROM pg_shseclabel'), '1', 'other labels stay');
is(slots_of($pub), '', 'no slot after DROP');

done_testing();
