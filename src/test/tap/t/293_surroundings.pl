# What goes wrong here: settings that an administrator has given to users' sessions, by ALTER ROLE, ALTER DATABASE
# or in postgresql.conf, have an effect on what is copied and applied; or what a publisher says when somebody connects
# gets into the log, or into a view in which it is no text.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $pub = krahodb_node('pub');
my $sub = krahodb_node('sub');

# ---- settings ------------------------------------------------------------------------

# Users of the subscriber shall only read, and have old-fashioned arrays and documents.
$sub->safe_psql('postgres', 'CREATE EXTENSION krahodb; CREATE TABLE noted (id int)');
foreach my $table (qw(copied applied))
{
	my $columns = 'id int PRIMARY KEY, words text[], document xml';

	$pub->safe_psql('postgres', "CREATE TABLE $table ($columns)");
	$sub->safe_psql('postgres', "CREATE TABLE $table ($columns, number serial)");
}
$sub->safe_psql(
	'postgres', q{
	CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.noted VALUES (NEW.id); RETURN NEW; END $$;
	CREATE TRIGGER note BEFORE INSERT ON applied FOR EACH ROW EXECUTE FUNCTION note();
	ALTER TABLE applied ENABLE ALWAYS TRIGGER note;
	ALTER DATABASE postgres SET default_transaction_read_only = on;
	ALTER DATABASE postgres SET array_nulls = off;
	ALTER DATABASE postgres SET xmloption = document});
$pub->safe_psql('postgres', q{
	CREATE PUBLICATION p FOR TABLE copied, applied;
	INSERT INTO copied VALUES (1, '{one,NULL}', 'text and <b>more</b>')});
my $write = 'SET default_transaction_read_only = off;';
$sub->safe_psql('postgres', $write . sprintf(q{CREATE SUBSCRIPTION s CONNECTION '%s' PUBLICATION p WITH (origin = none)}, connstr($pub)));
$sub->wait_for_subscription_sync($pub, 's');
$pub->safe_psql('postgres', q{INSERT INTO applied SELECT * FROM copied});
wait_streams(1, [ $pub, 's' ]);
foreach my $table (qw(copied applied))
{
	is($sub->safe_psql('postgres', "SELECT words[2] IS NULL, document, number FROM $table"),
		't|text and <b>more</b>|1', "what is $table does not depend on settings of users");
}
is($sub->safe_psql('postgres', 'SELECT * FROM noted'), '1', '... nor do triggers');

# A trigger sees what its transaction has waited for.
$sub->safe_psql('postgres', $write . q{
	ALTER DATABASE postgres SET default_transaction_isolation = 'repeatable read';
	CREATE FUNCTION count_notes() RETURNS trigger LANGUAGE plpgsql
		AS $$ BEGIN NEW.number := (SELECT count(*) FROM public.noted); RETURN NEW; END $$;
	CREATE TRIGGER count_notes BEFORE UPDATE ON copied FOR EACH ROW EXECUTE FUNCTION count_notes();
	ALTER TABLE copied ENABLE ALWAYS TRIGGER count_notes});
$sub->safe_psql('postgres', $write . 'ALTER SUBSCRIPTION s DISABLE');
$sub->poll_query_until('postgres', 'SELECT count(pid) = 0 FROM pg_stat_subscription') or die;
$sub->safe_psql('postgres', $write . q{
	ALTER SUBSCRIPTION s ENABLE;
	BEGIN;
	UPDATE applied SET number = 7;
	INSERT INTO noted VALUES (2);
	PREPARE TRANSACTION 'writes'});
$pub->safe_psql('postgres', q{
	BEGIN;
	UPDATE applied SET words = '{}';
	UPDATE copied SET words = '{}';
	COMMIT});
$sub->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity
	WHERE backend_type = 'logical replication worker' AND wait_event = 'transactionid'}) or die;
$sub->safe_psql('postgres', q{COMMIT PREPARED 'writes'});
wait_streams(1, [ $pub, 's' ]);
is($sub->safe_psql('postgres', 'SELECT number FROM copied'), '2', 'a trigger sees what its transaction has waited for');

# ---- what the publisher says -----------------------------------------------------------

# It warns whoever connects, as after an upgrade of the operating system.  An apply worker's libpq prints that, as on
# PostgreSQL; the horizon worker's would do so every half minute.
$pub->safe_psql('postgres', q{UPDATE pg_database SET datcollversion = 'other'});
my $offset = -s $sub->logfile;
$sub->restart;
$sub->poll_query_until('postgres', q{SELECT count(*) = 1 FROM krahodb.horizon WHERE applied_until > pg_postmaster_start_time()}) or die;
my $log = slurp_file($sub->logfile, $offset);
my $printed = () = $log =~ /^WARNING: .*collation version/mg;
my $workers = () = $log =~ /logical replication apply worker for subscription "s" has started/g;
cmp_ok($printed, '<=', $workers, 'the horizon worker does not print what the publisher says');
$pub->safe_psql('postgres', q{UPDATE pg_database SET datcollversion = NULL});

# An error that is too long is cut off, here between the bytes of a character, at one of three lengths.
foreach my $length (1 .. 3)
{
	my $name = "nowhere$length";

	$sub->safe_psql('postgres', $write . sprintf(q{CREATE SUBSCRIPTION %s CONNECTION 'host=/%s%s' PUBLICATION p
		WITH (connect = false, slot_name = %s, origin = none, enabled = false);
		ALTER SUBSCRIPTION %s ENABLE}, $name, 'x' x $length, "\xe2\x82\xac" x 80, $name, $name));
}
$sub->poll_query_until('postgres', q{SELECT count(*) = 3 FROM krahodb.horizon WHERE subscription LIKE 'nowhere%' AND state = 'unreachable'}) or die;
my ($exit, $out, $err) = $sub->psql('postgres', q{SELECT length(convert_to(reason, 'UTF8')) FROM krahodb.horizon});
is($err, '', 'an error that was cut off is text');

# ---- a database that is made from another one ---------------------------------------------

$sub->safe_psql('postgres', $write . 'CREATE DATABASE one');
$sub->safe_psql('one', 'ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC; CREATE ROLE guest');
$sub->safe_psql('one', 'CREATE EXTENSION krahodb; CREATE TABLE copied (id int PRIMARY KEY, words text[], document xml); CREATE TABLE applied (LIKE copied)');
$sub->safe_psql('one', sprintf(q{CREATE SUBSCRIPTION later CONNECTION '%s' PUBLICATION p WITH (enabled = false)}, connstr($pub)));
my $views = join ' UNION ALL ', map { "SELECT count(*) FROM krahodb.$_" } qw(subscriptions tables columns clock lanes fetch_stats conflict_stats horizon copy_progress);
is($sub->safe_psql('one', "SET ROLE guest; SELECT count(*) FROM ($views) v"), '9', 'views may be read by everybody, whatever default privileges say');
$sub->safe_psql('postgres', $write . 'CREATE DATABASE two TEMPLATE one');
my $copies = 'SELECT count(*) FROM krahodb.copy_progress';
is($sub->safe_psql('one', $copies), '2', 'tables that will be copied');
is($sub->safe_psql('two', $copies), '0', 'a database does not have the subscriptions of its template');
$sub->safe_psql('two', 'DROP EXTENSION krahodb');
($out, $err) = run_command([ 'krahodb', 'status', $sub->connstr('two') ]);
is("$out$err", '', '... nor do others see copies of them in it');

# ---- no tolerance ---------------------------------------------------------------------------

# Two sessions may commit in the same microsecond, by one clock.
$sub->safe_psql('postgres', 'ALTER SYSTEM SET krahodb.max_clock_skew = 0');
reload_settings($sub);
my $script = PostgreSQL::Test::Utils::tempdir . '/commits';
append_to_file($script, "SELECT txid_current();\n");
($out, $err) = run_command([ 'pgbench', '-n', '-M', 'prepared', '-c', 8, '-t', 2000, '-f', $script,
		$sub->connstr('postgres') . " options='-c synchronous_commit=off'" ]);
like($out, qr/^number of failed transactions: 0 /m, 'clocks that are not apart at all are not too far apart');

# ---- a restart with another configuration -----------------------------------------------

$sub->append_conf('postgresql.conf', 'track_commit_timestamp = off');
$offset = -s $sub->logfile;
$sub->restart;
$sub->wait_for_log(qr/WARNING: .*conflicts of subscription "s" cannot be detected/, $offset);
pass('a server without commit timestamps says what that means');

$sub->stop;
$pub->stop;
done_testing();
