# A server created by KrahoDB's initdb is a KrahoDB server: the library is
# preloaded, the launcher is ours, and "krahodb check" says what is there and what
# is missing.  What can go wrong: a cluster created by another door (pg_ctl
# initdb), options of the engine's initdb that are lost on the way, settings written
# twice, the engine's own launcher running beside or instead of ours.

use strict;
use warnings;

use File::Spec;
use IPC::Run;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $tempdir = PostgreSQL::Test::Utils::tempdir;

sub conf_of
{
	my ($datadir) = @_;
	return slurp_file("$datadir/postgresql.conf");
}

# Run a command; returns its exit code, stdout and stderr.
sub run_program
{
	my (@command) = @_;
	my ($stdout, $stderr) = ('', '');
	IPC::Run::run(\@command, '<', File::Spec->devnull, '>', \$stdout, '2>', \$stderr);
	return ($? >> 8, $stdout, $stderr);
}

# ---- initdb -----------------------------------------------------------------

my ($exit, $out, $err) = run_program('initdb', '--version');
is($exit, 0, 'initdb --version succeeds');
like($out, qr/^initdb \(PostgreSQL\) 15\./, '... and answers as the engine does');

my $dir = "$tempdir/by_initdb";
($exit, $out, $err) =
  run_program('initdb', '-N', '--locale=C', '-E', 'UTF8', '-A', 'trust', '-U', 'somebody', '-k', $dir);
is($exit, 0, 'initdb with options of the engine succeeds') or diag $err;
like($out, qr/Success\. You can now start the database server using:\s+\S*pg_ctl -D/,
	'... and says how to start the server');
my $conf = conf_of($dir);
is(scalar(() = $conf =~ /^# KRAHODB$/mg), 1, '... and writes the settings once');
like($conf, qr/^shared_preload_libraries = 'krahodb'\s+#/m, '... the library');
like($conf, qr/^wal_level = logical\s+#/m, '... the WAL level');
my $describe = `postgres --describe-config`;
if ($describe =~ /^output_plugin_libraries\t/m)
{
	like($conf, qr/^output_plugin_libraries = '.*\bkrahodb_output'\s+#/m,
		'... the output plugin, as the server knows the setting');
}
else
{
	unlike($conf, qr/^output_plugin_libraries/m,
		'... not the output plugin, as the server does not know the setting');
}
($exit, $out) = run_program('pg_controldata', $dir);
like($out, qr/Data page checksum version:\s+1/, 'options reached the engine');

my $before = $conf;
($exit) = run_program('initdb', '-N', $dir);
is($exit, 1, 'initdb refuses an existing cluster');
($exit) = run_program('initdb', '-S', '-D', $dir);
is($exit, 0, 'initdb --sync-only succeeds');
is(conf_of($dir), $before, '... and neither changes the settings');
($exit) = run_program('initdb', '--no-such-option', "$tempdir/none");
is($exit, 1, 'exit codes of the engine pass through');
{
	local $ENV{PGDATA} = "$tempdir/by_environment";
	($exit) = run_program('initdb', '-N');
	like(conf_of($ENV{PGDATA}), qr/^# KRAHODB$/m, 'initdb finds the directory in PGDATA');
}

($exit, $out, $err) = run_program('pg_ctl', '-D', "$tempdir/by_pg_ctl", '-o', '-N', 'initdb');
is($exit, 0, 'pg_ctl initdb succeeds') or diag $err;
like(conf_of("$tempdir/by_pg_ctl"), qr/^# KRAHODB$/m, '... and creates a KrahoDB cluster');
($exit) = run_program('krahodb', 'init', '-N', '-D', "$tempdir/by_tool");
is($exit, 0, 'krahodb init succeeds');
like(conf_of("$tempdir/by_tool"), qr/^# KRAHODB$/m, '... and creates a KrahoDB cluster');

# A name that a shell or a format would take apart.
($exit, $out, $err) = run_program('pg_ctl', '-D', "$tempdir/o'dd d%s", '-o', '-N', 'initdb');
is($exit, 0, 'pg_ctl initdb into a directory with an odd name') or diag $err;
like(conf_of("$tempdir/o'dd d%s"), qr/^# KRAHODB$/m, '... which gets the settings');

# ---- where programs are installed -------------------------------------------------

my $config = "$ENV{KDB_SRCDIR}/config";
my $engine_bindir = $ENV{KDB_ENGINE_BINDIR};
mkdir "$tempdir/bin" or die;
command_ok([ "$config/check-bindir", $engine_bindir, "$tempdir/none" ], 'a directory that is not there may be installed into');
command_ok([ "$config/check-bindir", $engine_bindir, "$tempdir/bin" ], '... an empty one');
command_ok([ "$config/link-engine-programs", $engine_bindir, "$tempdir/bin", qw(initdb pg_ctl krahodb) ], 'programs of the engine are linked');
is(readlink("$tempdir/bin/psql"), "$engine_bindir/psql", '... each one');
ok(!-e "$tempdir/bin/initdb", '... but those that KrahoDB has itself');
command_ok([ "$config/check-bindir", $engine_bindir, "$tempdir/bin" ], '... and may be linked again');
command_fails_like([ "$config/check-bindir", $engine_bindir, $engine_bindir ], qr/has the programs of PostgreSQL itself; name another/,
	'not where the engine is');
append_to_file("$tempdir/bin/initdb", "another one's");
command_fails_like([ "$config/check-bindir", $engine_bindir, "$tempdir/bin" ], qr{bin/initdb is not KrahoDB's, and would be replaced; name another},
	'nor where somebody else has a program of that name');
append_to_file("$tempdir/bin/krahodb", 'ours');
command_ok([ "$config/check-bindir", $engine_bindir, "$tempdir/bin" ], '... unless it was installed there before');
unlink "$tempdir/bin/krahodb", "$tempdir/bin/initdb", "$tempdir/bin/psql" or die;
symlink '/usr/share/wrapper', "$tempdir/bin/psql" or die;
{
	local $ENV{DESTDIR} = $tempdir;
	command_fails_like([ "$config/check-bindir", $engine_bindir, '/bin' ], qr{bin/psql is not KrahoDB's}, 'a link to elsewhere, below DESTDIR');
}

# ---- the server ---------------------------------------------------------------

my $node = PostgreSQL::Test::Cluster->new('node');
$node->init(allows_streaming => 'logical');
$node->append_conf('postgresql.conf', "track_commit_timestamp = on\nmax_replication_slots = 20\nmax_wal_senders = 20");
$node->start;

is($node->safe_psql('postgres', 'SHOW shared_preload_libraries'), 'krahodb', 'krahodb is preloaded');
like($node->safe_psql('postgres', 'SHOW krahodb.version'), qr/^\d+\.\d+/, 'and tells its version');
ok($node->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'logical replication launcher'"),
	'one launcher runs');
my $launcher = $node->safe_psql('postgres',
	"SELECT pid FROM pg_stat_activity WHERE backend_type = 'logical replication launcher'");
SKIP:
{
	skip 'no /proc here', 1 unless -r "/proc/$launcher/maps";
	like(slurp_file("/proc/$launcher/maps"), qr{/krahodb\.so$}m, 'it has KrahoDB loaded');
}
is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_extension'), 1,
	'a new database has the extensions that the engine gives it');
($exit, $out, $err) = run_program('psql', '-X', '-d', $node->connstr('postgres'), '-c', "LOAD 'krahodb'");
is($exit, 0, 'loading the library once more does nothing');

# ---- krahodb check ------------------------------------------------------------

my $connstr = $node->connstr('postgres');
($exit, $out, $err) = run_program('krahodb', 'check', $connstr);
is($exit, 0, 'check of a complete server: exit code 0') or diag "$out$err";
unlike($out, qr/MISSING/, '... nothing is missing');
my @lines = split /\n/, $out;
is(scalar(grep { !/^\w+ \.\.\. ok$/ } @lines), 0, '... a line "name ... ok" for each item');
my %items = map { /^(\w+)/ => 1 } @lines;
foreach my $item (
	qw(connection server_version shared_preload_libraries wal_level track_commit_timestamp
	old_snapshot_threshold wal_writer_delay output_plugin_libraries launcher max_worker_processes max_logical_replication_workers
	max_replication_slots max_wal_senders replica_identities extension clock))
{
	ok($items{$item}, "... one of them for $item");
}

($exit, $out) = run_program('krahodb', 'check', '--json', $connstr);
is($exit, 0, 'check --json: exit code 0');
my $answer = decode_json($out);
ok($answer->{ok}, '... says ok');
is(scalar(@{ $answer->{items} }), scalar(@lines), '... with the same items');

$node->safe_psql('postgres', q{
	CREATE TABLE "no ""key" (a int);
	CREATE TABLE parted (a int, b int) PARTITION BY LIST (b);
	CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
	ALTER TABLE parted_1 ADD PRIMARY KEY (a);
	CREATE TABLE parted_2 PARTITION OF parted FOR VALUES IN (2);
	CREATE TABLE keyed (a int PRIMARY KEY);
	CREATE TABLE whole (a int);
	ALTER TABLE whole REPLICA IDENTITY FULL;
	CREATE PUBLICATION p FOR TABLE "no ""key", parted, keyed, whole;});
($exit, $out) = run_program('krahodb', 'check', $connstr);
is($exit, 3, 'check with tables that cannot be replicated: exit code 3');
like($out, qr/^replica_identities \.\.\. MISSING: .*: parted_2, public\."no ""key"|^replica_identities \.\.\. MISSING: .*public\."no ""key", public\.parted_2; /m,
	'... names the tables');
unlike($out, qr/keyed|whole|parted_1/, '... and only these');
($exit, $out) = run_program('krahodb', 'check', '--json', $connstr);
is($exit, 3, 'the same as JSON: exit code 3');
$answer = decode_json($out);
ok(!$answer->{ok}, '... says that it is not ok');
my ($identities) = grep { $_->{name} eq 'replica_identities' } @{ $answer->{items} };
like($identities->{value}, qr/"no ""key"/, '... with a name that needs escaping');
ok($identities->{action}, '... and what to do');
$node->safe_psql('postgres', qq{CREATE TABLE "two\nlines\e[2J" (a int); ALTER PUBLICATION p SET TABLE "two\nlines\e[2J"});
($exit, $out) = run_program('krahodb', 'check', $connstr);
like($out, qr/^replica_identities \.\.\. MISSING: .*"two\\x0Alines\\x1B\[2J"; /m, 'what a name has of control characters is written as text');
$node->safe_psql('postgres', 'CREATE TABLE late (a int PRIMARY KEY DEFERRABLE); ALTER PUBLICATION p SET TABLE late');
($exit, $out) = run_program('krahodb', 'check', $connstr);
like($out, qr/^replica_identities \.\.\. MISSING: .*public\.late; /m, 'a deferrable key is no identity');
$node->safe_psql('postgres', 'ALTER PUBLICATION p SET (publish = insert)');
($exit) = run_program('krahodb', 'check', $connstr);
is($exit, 0, 'tables of which only inserts are published need no identity');

$node->safe_psql('postgres', 'CREATE ROLE plain LOGIN');
($exit, $out) = run_program('krahodb', 'check', "$connstr user=plain");
is($exit, 3, 'check as a role that may not see the launcher: exit code 3');
like($out, qr/^launcher \.\.\. MISSING: this role may not see it; /m, '... says so');
like($out, qr/^output_plugin_libraries \.\.\. MISSING: this role may not see it; /m, '... as of a setting that is hidden from it')
  if $describe =~ /^output_plugin_libraries\t/m;
unlike($out, qr/^shared_preload_libraries \.\.\. MISSING/m, '... but sees that this is KrahoDB');

$node->safe_psql('postgres', q{CREATE SUBSCRIPTION lanes CONNECTION 'host=/nowhere' PUBLICATION p
	WITH (connect = false, apply_workers = 40)});
($exit) = run_program('krahodb', 'check', $connstr);
is($exit, 0, 'a subscription that is disabled needs no worker');
$node->safe_psql('postgres', 'ALTER SUBSCRIPTION lanes ENABLE');
($exit, $out) = run_program('krahodb', 'check', $connstr);
like($out, qr/^max_worker_processes \.\.\. MISSING: it is (\d+), and (\d+) are needed for/m, 'one with many lanes needs many');
my ($limit, $copies) = map { $node->safe_psql('postgres', "SHOW $_") } qw(max_logical_replication_workers max_sync_workers_per_subscription);
my ($needed) = $out =~ /^max_worker_processes .* and (\d+) are needed/m;
is($needed, $limit + 2 + 40 + $copies, '... as many as lanes, beside one helper of each table copy');
$node->safe_psql('postgres', 'ALTER SUBSCRIPTION lanes DISABLE; ALTER SUBSCRIPTION lanes SET (slot_name = NONE); DROP SUBSCRIPTION lanes');

my $last = "CONNECTION 'host=/nowhere' PUBLICATION p WITH (connect = false, slot_name = NONE, enabled = false, conflict_resolution =";
$node->safe_psql('postgres', $_) foreach "CREATE SUBSCRIPTION \"last %\" $last last_update_wins)", "CREATE SUBSCRIPTION other $last keep_local)",
	'CREATE DATABASE another';
($exit, $out) = run_program('krahodb', 'check', $connstr);
is($exit, 3, 'check of a database that lacks the extension: exit code 3');
like($out, qr/^extension \.\.\. MISSING: .*: "last %"; CREATE EXTENSION krahodb, on every node$/m, '... names what needs it');
($exit, $out) = run_program('krahodb', 'check', $node->connstr('another'));
like($out, qr/^extension \.\.\. ok$/m, '... but not in another database');
my $default = $last =~ s/, conflict_resolution =//r;
$node->safe_psql('postgres', $_) foreach 'DROP SUBSCRIPTION "last %"', "CREATE SUBSCRIPTION meshed $default, origin = none)",
	"CREATE SUBSCRIPTION filtered $default, filter_origins = '5')", "CREATE SUBSCRIPTION kept $default, origin = none, conflict_resolution = keep_local)";
($exit, $out) = run_program('krahodb', 'check', $connstr);
like($out, qr/^extension \.\.\. MISSING: .*: filtered, meshed; CREATE EXTENSION/m, '... also those of which that is the default');
$node->psql('postgres', 'ALTER SUBSCRIPTION other SET (conflict_resolution = default, origin = none)', stderr => \$err);
like($err, qr/NOTICE:  subscription "other" cannot record row versions in this database/, 'ALTER SUBSCRIPTION says so as well');
$node->safe_psql('postgres', 'CREATE EXTENSION krahodb');
($exit, $out) = run_program('krahodb', 'check', $connstr);
like($out, qr/^extension \.\.\. ok$/m, '... until it is made');
$node->safe_psql('postgres', $_) foreach (map { "DROP SUBSCRIPTION $_" } qw(meshed filtered kept other)), 'DROP EXTENSION krahodb';

# A plain server: everything that the engine has not by default is missing.
my $stock = PostgreSQL::Test::Cluster->new('stock');
$stock->init;
$stock->append_conf('postgresql.conf',
	"shared_preload_libraries = ''\ntrack_commit_timestamp = off\nold_snapshot_threshold = 1h\nwal_writer_delay = 200ms\nmax_logical_replication_workers = 1");
$stock->append_conf('postgresql.conf', "output_plugin_libraries = 'pgoutput, test_decoding'")
  if $describe =~ /^output_plugin_libraries\t/m;
$stock->start;
($exit, $out) = run_program('krahodb', 'check', $stock->connstr('postgres'));
is($exit, 3, 'check of a plain server: exit code 3');
foreach my $item (qw(shared_preload_libraries wal_level track_commit_timestamp old_snapshot_threshold wal_writer_delay max_logical_replication_workers max_wal_senders),
	$describe =~ /^output_plugin_libraries\t/m ? 'output_plugin_libraries' : ())
{
	like($out, qr/^$item \.\.\. MISSING: .+; (set|add) $item|^$item \.\.\. MISSING: .+; add krahodb to $item/m,
		"... $item is missing, with what to do");
}
($exit, $out, $err) = run_program('psql', '-X', '-d', $stock->connstr('postgres'), '-c', "LOAD 'krahodb'");
like($err, qr/KrahoDB must be loaded when the server starts/, 'loading the library later is refused');
$stock->stop;

($exit, $out) = run_program('krahodb', 'check', $stock->connstr('postgres'));
is($exit, 2, 'check of a stopped server: exit code 2');
like($out, qr/^connection \.\.\. MISSING: .+; start the server/, '... says so');
($exit, $out) = run_program('krahodb', 'check', '--json', $stock->connstr('postgres'));
is($exit, 2, 'the same as JSON: exit code 2');
ok(!decode_json($out)->{ok}, '... says so');

foreach my $wrong ([], ['nonsense'], [ 'check', '--nonsense' ], [ 'check', 'a', 'b' ])
{
	($exit, $out, $err) = run_program('krahodb', @$wrong);
	is($exit, 1, "wrong usage \"krahodb @$wrong\": exit code 1");
	is($out, '', '... nothing on stdout');
	like($err, qr/^krahodb: /, '... and the reason on stderr');
}
($exit, $out, $err) = run_program('krahodb', 'check', '--json', 'dbname=x', '-xy');
like($err, qr/^krahodb: error: unknown option "-x"; /, 'an unknown letter before others is named');
($exit, $out, $err) = run_program('krahodb', 'check', 'host=/nowhere/a,/nowhere/b');
like($out, qr{^connection \.\.\. MISSING: .*/nowhere/a.*; .*/nowhere/b.*; start the server}, 'no server of several answers: what each one says');
SKIP:
{
	skip 'no /dev/full here', 1 unless -c '/dev/full';
	$exit = system("krahodb check 'host=/nowhere' >/dev/full 2>&1") >> 8;
	is($exit, 1, 'an answer that cannot be written is a failure');
}
foreach my $help ([ '--help' ], [ '--version' ], [ 'check', '--help' ])
{
	($exit, $out, $err) = run_program('krahodb', @$help);
	is("$exit$err", '0', "krahodb @$help: exit code 0");
	like($out, qr/krahodb/, '... and an answer');
}

# ---- for pg_upgrade ---------------------------------------------------------------

# What it starts must not apply anything: it has noted the next transaction id before.
$node->stop;
my @pg_ctl = ('pg_ctl', '-w', '-D', $node->data_dir, '-l', $node->logfile);
command_ok([ @pg_ctl, '-o', '-b', 'start' ], 'a server for pg_upgrade starts');
is($node->safe_psql('postgres', q{SELECT string_agg(backend_type, ', ') FROM pg_stat_activity
	WHERE backend_type LIKE 'logical replication%' OR backend_type LIKE 'krahodb%'}),
	'', '... without a launcher and its workers');
command_ok([ @pg_ctl, 'stop' ], '... and stops');
$node->start;

# ---- without logical replication ------------------------------------------------

# The engine's tests start servers with wal_level = minimal and no workers.
$node->append_conf('postgresql.conf', "wal_level = minimal\nmax_wal_senders = 0\nmax_logical_replication_workers = 0");
$node->safe_psql('postgres', 'DROP PUBLICATION p');
$node->restart;
is($node->safe_psql('postgres',
		"SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'logical replication launcher'"),
	0, 'without logical replication workers there is no launcher');
$node->stop;

done_testing();
