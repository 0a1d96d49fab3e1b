# What goes wrong here: a row has to be fetched from its writer, and the writer cannot be
# reached, does not answer, does not let us, has nothing to say, or the worker dies
# between fetching and committing.  Nothing may be guessed then: the worker stops with an
# error that says what to do, and goes on when that is done.  And a writer whose transaction
# nobody sees yet, because it waits for this very subscriber, must answer all the same.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $a = krahodb_node('a');
my $b = krahodb_node('b');

my $tables = q{
	CREATE FUNCTION wide(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT repeat($1, 12000 / length($1))';
	CREATE TABLE doc (id int PRIMARY KEY, v text, w text, here text DEFAULT 'default');
	ALTER TABLE doc ALTER w SET STORAGE EXTERNAL;
	CREATE TABLE flt (id int, pub bool, v text, w text, PRIMARY KEY (id, pub));
	ALTER TABLE flt ALTER w SET STORAGE EXTERNAL;
	CREATE PUBLICATION doc FOR TABLE doc (id, v, w);
	CREATE PUBLICATION flt FOR TABLE flt WHERE (pub);
	CREATE ROLE repl LOGIN REPLICATION;};
foreach my $node ($a, $b)
{
	$node->safe_psql('postgres', $tables);
	$node->append_conf('postgresql.conf', 'wal_retrieve_retry_interval = 100ms');
	reload_settings($node);
}
$a->safe_psql('postgres', 'CREATE EXTENSION krahodb');
$b->safe_psql('postgres',
	sprintf("CREATE SUBSCRIPTION b_a CONNECTION '%s user=repl' PUBLICATION doc, flt WITH (origin = none, copy_data = false, two_phase = true)",
		connstr($a)));
$b->poll_query_until('postgres', "SELECT subtwophasestate = 'e' FROM pg_subscription") or die;
$a->safe_psql('postgres', "INSERT INTO doc SELECT g, 'old', wide('old') FROM generate_series(1, 100) g");
$a->wait_for_catchup('b_a', 'replay', $a->lsn('insert'));

my $id = 0;
my $show = 'SELECT v, left(w, 3), length(w), here FROM doc WHERE id =';

# A row of which b has changed the wide value, unknown to a.
sub changed_on_b
{
	$id++;
	$b->safe_psql('postgres', "UPDATE doc SET w = wide('b'), here = 'b' WHERE id = $id");
	return;
}

# a leaves that value alone; b must have a's row, with its own column untouched.
sub ends_with_row_of_a
{
	my ($name, $v) = @_;

	$a->wait_for_catchup('b_a', 'replay', $a->lsn('insert'));
	is($b->safe_psql('postgres', "$show $id"), "$v|old|12000|b", $name);
	return;
}

# The worker fails with a message again and again, until the cause is gone.
sub fails_until
{
	my ($name, $message, $remedy) = @_;
	my $logstart = -s $b->logfile;

	changed_on_b();
	$a->safe_psql('postgres', "UPDATE doc SET v = 'a' WHERE id = $id");
	ok($b->wait_for_log($message, $logstart), "$name: message");
	my $again = -s $b->logfile;
	ok($b->wait_for_log($message, $again), "$name: again");
	is($b->safe_psql('postgres', "$show $id"), 'old|bbb|12000|b', "$name: nothing is done");
	$remedy->();
	ends_with_row_of_a("$name: mended", 'a');
	return;
}

# ---- what is missing --------------------------------------------------------------------

fails_until('privileges', qr/ERROR:  could not fetch a row of table "public.doc" from the publisher: permission denied for table doc/,
	sub { $a->safe_psql('postgres', 'GRANT SELECT (id, v, w) ON doc TO repl; GRANT SELECT ON flt TO repl') });
like(slurp_file($b->logfile), qr/DETAIL:  Key \(id\)=\(1\): the change does not contain column "w"/, 'key and column are named');
fails_until('row-level security', qr/ERROR:  could not fetch .*: rows of table "doc" cannot be fetched by role "repl"/,
	sub { $a->safe_psql('postgres', 'ALTER TABLE doc DISABLE ROW LEVEL SECURITY') })
  if $a->psql('postgres', 'ALTER TABLE doc ENABLE ROW LEVEL SECURITY') == 0;

# Somebody has put a function of that name there, which must not be called with our rights.
# (A session that is kept has asked before.)
$a->safe_psql('postgres', q{SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'krahodb fetch'});
$a->safe_psql(
	'postgres', q{
	DROP EXTENSION krahodb;
	CREATE TABLE called (n int);
	GRANT INSERT ON called TO repl;
	CREATE FUNCTION krahodb.row_state(text, text, text[], text[], text[], text[], xid,
		OUT node bigint, OUT state text, OUT own boolean, OUT written_at bigint, OUT written_by bigint, OUT row_values text[])
		LANGUAGE SQL AS 'INSERT INTO public.called VALUES (1); SELECT 1, $$live$$, true, 1, 1, NULL::text[]';
	GRANT USAGE ON SCHEMA krahodb TO PUBLIC});
fails_until('extension at the publisher', qr/extension "krahodb" does not exist\n.*\n.*HINT:  Run CREATE EXTENSION krahodb in the publisher's database/,
	sub { $a->safe_psql('postgres', 'DROP FUNCTION krahodb.row_state; CREATE EXTENSION krahodb') });
is($a->safe_psql('postgres', 'SELECT count(*) FROM called'), 0, 'no function of somebody else is called');

# b has no extension until here: it needs one only if the row is a later one than the write.
changed_on_b();
pause_subscription($b, 'b_a');
$a->safe_psql('postgres', "UPDATE doc SET v = 'a' WHERE id = $id");
$a->safe_psql('postgres', "UPDATE doc SET v = 'later' WHERE id = $id");
my $logstart = -s $b->logfile;
$b->safe_psql('postgres', 'ALTER SUBSCRIPTION b_a ENABLE');
ok( $b->wait_for_log(qr/ERROR:  cannot keep the version of a row of table "public.doc" that was fetched from the publisher/, $logstart),
	'extension here: message');
$b->safe_psql('postgres', 'CREATE EXTENSION krahodb');
ends_with_row_of_a('extension here: mended', 'later');

# ---- nobody answers --------------------------------------------------------------------

# The message; with lanes, it is in the detail of one that says that the worker starts anew, or
# the worker has lost its own connection before the lane has noticed.
my $lanes = $ENV{KDB_TEST_APPLY_WORKERS} || 1;

sub cannot_fetch
{
	my ($why) = @_;
	my $own = qr/ERROR:  could not fetch a row of table "public.doc" from the publisher: $why/;

	return $own if $lanes == 1;
	return qr/$own|DETAIL:  could not fetch a row of table "public.doc" from the publisher: $why|ERROR:  could not (?:connect to the publisher|receive data from WAL stream): /;
}

$b->append_conf('postgresql.conf', 'krahodb.fetch_timeout = 200ms');
reload_settings($b);
# A worker that is about to fetch.
sub at_change
{
	my ($before) = @_;
	my $logstart = -s $b->logfile;

	changed_on_b();
	arm_fault($b, 'apply_change=wait');
	reload_settings($b);
	$a->safe_psql('postgres', "UPDATE doc SET v = 'a' WHERE id = $id");
	$b->wait_for_log(qr/fault point "apply_change" reached: wait/, $logstart);
	$before->();
	disarm_fault($b);
	reload_settings($b);
	return;
}

$logstart = -s $b->logfile;
at_change(sub { $a->safe_psql('postgres', 'BEGIN; LOCK TABLE doc; PREPARE TRANSACTION \'lock\'') });
ok($b->wait_for_log(qr/ERROR:  could not fetch a row of table "public.doc" from the publisher within 200 ms/, $logstart),
	'the limit in time');
$a->safe_psql('postgres', "ROLLBACK PREPARED 'lock'");
ends_with_row_of_a('after the limit in time', 'a');
$b->adjust_conf('postgresql.conf', 'krahodb.fetch_timeout', '10s');
reload_settings($b);

$logstart = -s $b->logfile;
at_change(sub { $a->safe_psql('postgres', 'ALTER ROLE repl NOLOGIN;
	SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = \'krahodb fetch\'') });
ok($b->wait_for_log(cannot_fetch(qr/.*not permitted to log in/), $logstart),
	'no connection');
$a->safe_psql('postgres', 'ALTER ROLE repl LOGIN');
ends_with_row_of_a('after that', 'a');

$logstart = -s $b->logfile;
at_change(sub { $a->stop('immediate') });
ok($b->wait_for_log(cannot_fetch(qr//), $logstart),
	'publisher down');
$a->start;
ends_with_row_of_a('publisher up', 'a');

# The connection is kept, one for each process that applies, and made again if the publisher
# has closed it.
foreach my $round (1 .. 2)
{
	changed_on_b();
	$a->safe_psql('postgres', "UPDATE doc SET v = 'a' WHERE id = $id");
	ends_with_row_of_a("connection kept, $round", 'a');
}
is( $a->safe_psql('postgres', sprintf(q{SELECT count(*) BETWEEN 1 AND %d FROM pg_stat_activity WHERE application_name = 'krahodb fetch'},
		$lanes == 1 ? 1 : $lanes + 1)),
	't', 'one connection');
$a->safe_psql('postgres', "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'krahodb fetch'");
$logstart = -s $b->logfile;
changed_on_b();
$a->safe_psql('postgres', "UPDATE doc SET v = 'a' WHERE id = $id");
ends_with_row_of_a('connection made again', 'a');
unlike(slurp_file($b->logfile, $logstart), qr/ERROR/, 'without an error');

# A worker that waits for an answer can be stopped, long before the limit.
$b->adjust_conf('postgresql.conf', 'krahodb.fetch_timeout', '10min');
reload_settings($b);
$logstart = -s $a->logfile;
at_change(sub { $a->safe_psql('postgres', 'BEGIN; LOCK TABLE doc; PREPARE TRANSACTION \'lock\'') });
$a->poll_query_until('postgres',
	"SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'krahodb fetch' AND wait_event_type = 'Lock'")
  or die;
like(slurp_file($a->logfile, $logstart), qr/DETAIL:  parameters: \$1 = '600000'/,
	'a session that is kept has the new limit');
$b->safe_psql('postgres', "ALTER SUBSCRIPTION b_a DISABLE; SELECT pg_terminate_backend(pid) FROM pg_stat_subscription WHERE subname = 'b_a' AND pid IS NOT NULL");
pause_subscription($b, 'b_a');
$a->safe_psql('postgres', "ROLLBACK PREPARED 'lock'");
$b->adjust_conf('postgresql.conf', 'krahodb.fetch_timeout', '10s');
reload_settings($b);
$b->safe_psql('postgres', 'ALTER SUBSCRIPTION b_a ENABLE');
ends_with_row_of_a('stopped while waiting', 'a');

# A publisher that is shut down in "smart" mode waits for its clients.
ok($a->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'krahodb fetch'"),
	'a connection that is not used is closed');

# ---- crashes --------------------------------------------------------------------------

foreach my $fault ('fetched', 'apply_before_commit', 'apply_after_commit')
{
	changed_on_b();
	pause_subscription($b, 'b_a');
	$a->safe_psql('postgres', "UPDATE doc SET v = 'a' WHERE id = $id");
	$a->safe_psql('postgres', "UPDATE doc SET v = 'later' WHERE id = $id");
	$b->append_conf('postgresql.conf', 'restart_after_crash = off');
	arm_fault($b, "$fault=kill");
	reload_settings($b);
	$b->safe_psql('postgres', 'ALTER SUBSCRIPTION b_a ENABLE');
	wait_until_down($b);
	disarm_fault($b);
	$b->adjust_conf('postgresql.conf', 'restart_after_crash', 'on');
	start_after_kill($b);
	ends_with_row_of_a("killed at $fault", 'later');
}

# ---- a writer that nobody sees yet -----------------------------------------------------

$a->append_conf('postgresql.conf', "synchronous_standby_names = 'b_a'");
reload_settings($a);
changed_on_b();
$a->safe_psql('postgres', "UPDATE doc SET v = 'waits for b' WHERE id = $id");
ends_with_row_of_a('a commit that waits for its subscriber', 'waits for b');
changed_on_b();
$a->safe_psql('postgres',
	"BEGIN; SAVEPOINT s; UPDATE doc SET v = 'x' WHERE id = $id; ROLLBACK TO s;
	SAVEPOINT t; UPDATE doc SET v = 'y' WHERE id = $id; UPDATE doc SET v = 'z' WHERE id = $id; COMMIT");
ends_with_row_of_a('... with subtransactions', 'z');
changed_on_b();
$a->safe_psql('postgres', "BEGIN; UPDATE doc SET v = 'gone' WHERE id = $id; DELETE FROM doc WHERE id = $id; COMMIT");
$a->wait_for_catchup('b_a', 'replay', $a->lsn('insert'));
is($b->safe_psql('postgres', "$show $id"), '', '... that has deleted the row');
$a->adjust_conf('postgresql.conf', 'synchronous_standby_names', "''");
reload_settings($a);

changed_on_b();
$a->safe_psql('postgres', "BEGIN; UPDATE doc SET v = 'prepared' WHERE id = $id; PREPARE TRANSACTION 'p'");
$a->safe_psql('postgres', "COMMIT PREPARED 'p'");
ends_with_row_of_a('a prepared transaction', 'prepared');

# A plain subscription gets it at PREPARE, also for a table that resolves by itself.
$_->safe_psql('postgres', q{
	CREATE TABLE prep (id int PRIMARY KEY, v text, w text) WITH (krahodb.conflict_resolution = last_update_wins);
	ALTER TABLE prep ALTER w SET STORAGE EXTERNAL;
	CREATE PUBLICATION prep FOR TABLE prep; GRANT SELECT ON prep TO repl}) foreach $a, $b;
$b->safe_psql('postgres',
	sprintf("CREATE SUBSCRIPTION b_prep CONNECTION '%s user=repl' PUBLICATION prep WITH (copy_data = false, two_phase = true)",
		connstr($a)));
$b->poll_query_until('postgres', "SELECT subtwophasestate = 'e' FROM pg_subscription WHERE subname = 'b_prep'") or die;
$a->safe_psql('postgres', q{INSERT INTO prep VALUES (1, 'old', wide('old'))});
$a->wait_for_catchup('b_prep', 'replay', $a->lsn('insert'));
$b->safe_psql('postgres', q{UPDATE prep SET w = wide('b')});
$a->safe_psql('postgres', q{BEGIN; UPDATE prep SET v = 'x'; SAVEPOINT s; UPDATE prep SET v = 'prepared'; PREPARE TRANSACTION 'p'});
$b->poll_query_until('postgres', 'SELECT count(*) = 1 FROM pg_prepared_xacts') or die;
$a->safe_psql('postgres', "COMMIT PREPARED 'p'");
$a->wait_for_catchup('b_prep', 'replay', $a->lsn('insert'));
is($b->safe_psql('postgres', 'SELECT v, left(w, 3) FROM prep'), 'prepared|old', 'fetched when it is prepared');

# ---- row filters -----------------------------------------------------------------------

$a->safe_psql('postgres', q{INSERT INTO flt SELECT g, g <> 3, 'old', wide('old') FROM generate_series(1, 4) g});
$a->wait_for_catchup('b_a', 'replay', $a->lsn('insert'));
$b->safe_psql('postgres', q{UPDATE flt SET w = wide('b')});
pause_subscription($b, 'b_a');
$a->safe_psql('postgres', q{UPDATE flt SET v = 'seen' WHERE id <= 2});
$a->safe_psql('postgres', q{UPDATE flt SET pub = false WHERE id = 1});
$a->safe_psql('postgres', q{UPDATE flt SET pub = true WHERE id = 3});
$a->safe_psql('postgres', q{UPDATE flt SET v = 'later' WHERE id = 3});
$b->safe_psql('postgres', 'ALTER SUBSCRIPTION b_a ENABLE');
$a->wait_for_catchup('b_a', 'replay', $a->lsn('insert'));
is( $b->safe_psql('postgres', 'SELECT id, v, left(w, 3) FROM flt ORDER BY id'),
	"2|seen|old\n3|later|old\n4|old|bbb",
	'rows come and go by the row filter, with all values');

# ---- no trace --------------------------------------------------------------------------

changed_on_b();
pause_subscription($b, 'b_a');
$a->safe_psql('postgres', "UPDATE doc SET v = 'gone' WHERE id = $id");
$a->safe_psql('postgres', "DELETE FROM doc WHERE id = $id");
$a->safe_psql('postgres', 'VACUUM doc');
$logstart = -s $b->logfile;
$b->safe_psql('postgres', 'ALTER SUBSCRIPTION b_a ENABLE');
ok( $b->wait_for_log(qr/ERROR:  could not fetch a row of table "public.doc" from the publisher: the row has left no trace there/, $logstart),
	'no trace of the row');
my ($lsn) = slurp_file($b->logfile, $logstart) =~ /finished at ([0-9A-F\/]+)/;
$b->safe_psql('postgres', "ALTER SUBSCRIPTION b_a SKIP (lsn = '$lsn')");
$a->wait_for_catchup('b_a', 'replay', $a->lsn('insert'));
is($b->safe_psql('postgres', "$show $id"), '', 'the transaction was left out, the next one applied');

# ---- what the function says -------------------------------------------------------------

sub row_state
{
	my ($columns, $values) = @_;
	return "SELECT state, own, written_at IS NOT NULL, row_values FROM krahodb.row_state('public', 'doc', '$columns', '$values', '{id,v}', '{doc}', '0')";
}
is($a->safe_psql('postgres', row_state('{id}', '{1}')), 'live|f|t|{1,a}', 'live');
is($a->safe_psql('postgres', row_state('{id}', '{12345}')), 'absent|f|f|', 'absent');
foreach my $refused (
	[ 'select', row_state('{v}', '{1}'), qr/the key does not contain column "id"/ ],
	[ 'select', row_state('{id,v}', '{1}'), qr/as many key values as key columns/ ],
	[ 'select', row_state('{id}', '{NULL}'), qr/must not be null/ ],
	[ 'select', row_state('{idd}', '{1}'), qr/column "idd" of relation "doc" does not exist/ ],
	[ 'select', row_state('{id}', '{x}'), qr/invalid input syntax/ ])
{
	my ($ret, $out, $err) = $a->psql('postgres', $refused->[1]);

	like($err, $refused->[2], "refused: $refused->[2]");
}
my ($ret, $out, $err) = $a->psql('postgres',
	q{CREATE ROLE other; SET ROLE other; SELECT krahodb.row_state('public', 'doc', '{id}', '{1}', '{v}', '{}', '0')});
like($err, qr/permission denied for table doc/, 'refused: privileges');

# ---- TRUNCATE leaves no trace ------------------------------------------------------------

foreach my $truncate ('UPDATE doc SET v = \'gone\' WHERE id = %d; TRUNCATE doc',
	'BEGIN; UPDATE doc SET v = \'gone\' WHERE id = %d; TRUNCATE doc; COMMIT')
{
	changed_on_b();
	pause_subscription($b, 'b_a');
	$logstart = -s $b->logfile;
	$a->safe_psql('postgres', sprintf $truncate, $id);
	$a->safe_psql('postgres', "INSERT INTO doc SELECT g, 'new', wide('old') FROM generate_series($id + 1, 100) g; GRANT SELECT ON doc TO repl");
	$b->safe_psql('postgres', 'ALTER SUBSCRIPTION b_a ENABLE');
	$a->wait_for_catchup('b_a', 'replay', $a->lsn('insert'));
	is($b->safe_psql('postgres', 'SELECT min(id), max(id), min(v) FROM doc'), ($id + 1) . '|100|new', "$truncate");
	unlike(slurp_file($b->logfile, $logstart), qr/ERROR/, 'without an error');
}

# ---- a stock publisher -----------------------------------------------------------------

my $stock = stock_node('stock');
$stock->safe_psql('postgres', $tables . q{INSERT INTO doc VALUES (1001, 'old', wide('old'))});
$b->safe_psql('postgres',
	sprintf("CREATE SUBSCRIPTION b_stock CONNECTION '%s' PUBLICATION doc WITH (conflict_resolution = last_update_wins)", connstr($stock)));
$b->poll_query_until('postgres',
	"SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel") or die;
$stock->safe_psql('postgres', q{UPDATE doc SET v = 'stock' WHERE id = 1001});
$stock->wait_for_catchup('b_stock', 'replay', $stock->lsn('insert'));
is($b->safe_psql('postgres', "$show 1001"), 'stock|old|12000|default', 'its own row');
$b->safe_psql('postgres', q{UPDATE doc SET w = wide('b') WHERE id = 1001});
$logstart = -s $b->logfile;
$stock->safe_psql('postgres', q{UPDATE doc SET v = 'stock again' WHERE id = 1001});
ok( $b->wait_for_log(qr/ERROR:  cannot apply a change to table "public.doc" because its publisher did not send column "w".*\n.*\n.*HINT:  .*REPLICA IDENTITY FULL/, $logstart),
	'a stock publisher has no such rows');

$_->stop foreach $a, $b, $stock;
unlike(slurp_file($_->logfile), qr/reference leak|TRAP/, 'nothing is left behind on ' . $_->name) foreach $a, $b;
done_testing();
