# Whose rights applied changes have, and settings that take effect while a worker runs.
#
# What goes wrong here: code of a table's owner (triggers) runs with the rights of
# the subscription's owner, so a table's owner can take these over; or a setting is
# changed and the running worker goes on with the old one, or restarts where it
# need not.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/..";

use KrahoDB::Nodes;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $publisher = krahodb_node('publisher');
my $subscriber = krahodb_node('subscriber');

sub on_subscriber { return $subscriber->safe_psql('postgres', $_[0]); }

sub apply_worker
{
	return on_subscriber("SELECT pid FROM pg_stat_subscription WHERE subname = 'sub' AND relid IS NULL");
}

$publisher->safe_psql('postgres', <<'EOF');
CREATE TABLE alices (id int PRIMARY KEY, t text);
CREATE TABLE bobs (id int PRIMARY KEY, t text);
CREATE PUBLICATION pub FOR TABLE alices, bobs;
EOF

# Triggers note who they run as, and try to leave a setting behind.
on_subscriber(<<'EOF');
CREATE ROLE alice;
CREATE ROLE bob;
CREATE ROLE sub_owner LOGIN SUPERUSER;
GRANT CREATE ON SCHEMA public TO alice, bob;
CREATE TABLE seen (n serial, what text, who text);
GRANT INSERT ON seen TO PUBLIC;
GRANT USAGE ON seen_n_seq TO PUBLIC;
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO public.seen (what, who) VALUES (TG_TABLE_NAME || ' ' || lower(TG_OP), current_user);
  PERFORM set_config('application_name', current_user, false);
  RETURN NEW;
END $$;
CREATE TABLE alices (id int PRIMARY KEY, t text);
CREATE TABLE bobs (id int PRIMARY KEY, t text);
ALTER TABLE alices OWNER TO alice;
ALTER TABLE bobs OWNER TO bob;
CREATE TRIGGER note AFTER INSERT OR UPDATE ON alices FOR EACH ROW EXECUTE FUNCTION note();
CREATE TRIGGER note_truncate BEFORE TRUNCATE ON alices EXECUTE FUNCTION note();
ALTER TABLE alices ENABLE ALWAYS TRIGGER note;
ALTER TABLE alices ENABLE ALWAYS TRIGGER note_truncate;
EOF
on_subscriber("CREATE SUBSCRIPTION sub CONNECTION '" . connstr($publisher)
	  . "' PUBLICATION pub WITH (streaming = on)");
on_subscriber('ALTER SUBSCRIPTION sub OWNER TO sub_owner');
$subscriber->wait_for_subscription_sync($publisher, 'sub');

# What the triggers saw of the statement.
sub replicate
{
	my ($sql) = @_;

	on_subscriber('TRUNCATE seen');
	$publisher->safe_psql('postgres', $sql);
	$publisher->wait_for_catchup('sub');
	return on_subscriber("SELECT string_agg(what || ' as ' || who, ', ' ORDER BY n) FROM seen");
}

is(replicate("INSERT INTO alices VALUES (1, 'a')"),
	'alices insert as sub_owner', 'by default as the subscription owner, as PostgreSQL 15 does');

my $worker = apply_worker();
on_subscriber('ALTER SUBSCRIPTION sub SET (run_as_owner = false)');
is( replicate("INSERT INTO alices VALUES (2, 'a'); UPDATE alices SET t = 'b' WHERE id = 2"),
	'alices insert as alice, alices update as alice',
	'run_as_owner = false: as the table owner');
is(replicate('TRUNCATE alices'), 'alices truncate as alice', '... TRUNCATE too');
is(replicate("INSERT INTO bobs VALUES (1, 'a')"), '', '... tables without triggers');
is(apply_worker(), $worker, '... and the worker took the setting without a restart');
isnt(on_subscriber("SELECT application_name FROM pg_stat_activity WHERE pid = $worker"),
	'alice', '... a setting that a table owner makes does not outlive the change');

# What is constant in an expression of a table is evaluated when that is prepared.
on_subscriber(<<'EOF');
GRANT USAGE ON SCHEMA public TO alice;
SET ROLE alice;
CREATE FUNCTION code(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN
	RAISE LOG 'code % of alice as %', $1, current_user; RETURN $1; END $$;
ALTER TABLE alices ADD CHECK (id > public.code(1) - 2), ADD extra int DEFAULT public.code(2), ADD made int GENERATED ALWAYS AS (id + public.code(3)) STORED;
CREATE INDEX ON alices ((id + public.code(4)));
CREATE TRIGGER conditional AFTER INSERT ON alices FOR EACH ROW WHEN (NEW.id > public.code(5) + 1000) EXECUTE FUNCTION note();
ALTER TABLE alices ENABLE ALWAYS TRIGGER conditional;
EOF
my $before_code = -s $subscriber->logfile;
replicate("INSERT INTO alices VALUES (10, 'a'); DELETE FROM alices WHERE id = 10");
my $code = slurp_file($subscriber->logfile, $before_code);
like($code, qr/LOG:  code $_ of alice as alice$/m, "constant $_ is evaluated for the table's owner") foreach 1 .. 5;
unlike($code, qr/LOG:  code \d of alice as (?!alice$)/m, '... and for nobody else');
on_subscriber('DROP TRIGGER conditional ON alices; ALTER TABLE alices DROP extra, DROP made; DROP FUNCTION code CASCADE');

# A superuser may become everybody; another role only what it is a member of.
on_subscriber('GRANT alice TO sub_owner; ALTER ROLE sub_owner NOSUPERUSER');
on_subscriber('GRANT ALL ON alices, bobs TO sub_owner');
$worker = apply_worker();
on_subscriber("SELECT pg_terminate_backend($worker)");
$subscriber->poll_query_until('postgres',
	"SELECT count(*) = 1 FROM pg_stat_subscription WHERE subname = 'sub' AND pid <> $worker");
is( replicate("INSERT INTO alices VALUES (3, 'a')"),
	'alices insert as alice', 'a member of the table owner: as the table owner');

my $logstart = -s $subscriber->logfile;
$publisher->safe_psql('postgres', "INSERT INTO bobs VALUES (2, 'a')");
ok( $subscriber->wait_for_log(
		qr/ERROR: .* role "sub_owner" cannot SET ROLE to "bob".*CONTEXT: .* for replication target relation "public.bobs"/s,
		$logstart),
	'not a member: an error');
on_subscriber('ALTER SUBSCRIPTION sub SET (run_as_owner = true)');
is(replicate('SELECT'), '', '... until run_as_owner is set again');
is(on_subscriber('SELECT count(*) FROM bobs'), '2', '... and the row is there');

# Privileges that are taken away while the worker goes on.
sub is_denied
{
	my ($name, $take, $message, $give) = @_;
	my $offset = -s $subscriber->logfile;

	replicate("UPDATE alices SET t = t || '.' WHERE id = 3");
	on_subscriber($take);
	$publisher->safe_psql('postgres', "UPDATE alices SET t = t || '.' WHERE id = 3");
	ok($subscriber->wait_for_log(qr/ERROR:  (?:\S+: )?$message/, $offset), "$name: an error");
	on_subscriber($give);
	$publisher->wait_for_catchup('sub');
	my $query = 'SELECT t FROM alices WHERE id = 3';
	is(on_subscriber($query), $publisher->safe_psql('postgres', $query), '... until it is given back');
	return;
}

on_subscriber('ALTER SUBSCRIPTION sub SET (run_as_owner = false); CREATE ROLE writers');
is_denied('a privilege of the owner', 'REVOKE UPDATE ON alices FROM alice', 'permission denied for table alices',
	'GRANT UPDATE ON alices TO alice');
on_subscriber('GRANT UPDATE ON alices TO writers; GRANT writers TO alice; REVOKE UPDATE ON alices FROM alice');
is_denied('a membership', 'REVOKE writers FROM alice', 'permission denied for table alices', 'GRANT writers TO alice');
on_subscriber('ALTER TABLE alices ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; ALTER ROLE alice BYPASSRLS');
is_denied('BYPASSRLS', 'ALTER ROLE alice NOBYPASSRLS',
	'user "alice" cannot replicate into relation with row-level security enabled: "alices"', 'ALTER ROLE alice BYPASSRLS');
on_subscriber('ALTER TABLE alices DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY');
is_denied('ROW LEVEL SECURITY', 'ALTER ROLE alice NOBYPASSRLS; ALTER TABLE alices ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY',
	'user "alice" cannot replicate into relation with row-level security enabled: "alices"',
	'ALTER TABLE alices DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY');

# TRUNCATE is one command; it cannot have two users.
on_subscriber('ALTER ROLE sub_owner SUPERUSER; ALTER SUBSCRIPTION sub SET (run_as_owner = false)');
$logstart = -s $subscriber->logfile;
$publisher->safe_psql('postgres', 'TRUNCATE alices, bobs');
ok( $subscriber->wait_for_log(
		qr/ERROR: .* cannot replicate TRUNCATE of tables with triggers and different owners/, $logstart),
	'TRUNCATE of tables of two owners with triggers: an error');
on_subscriber('ALTER TABLE alices DISABLE TRIGGER note_truncate; DROP TRIGGER note_truncate ON alices');
is(replicate('SELECT'), '', '... and without triggers it goes on');
is(on_subscriber('SELECT count(*) FROM bobs'), '0', '... and is done');

# ---- settings of a running worker ------------------------------------------------

# The role of the worker's session, whose superuser bit it has cached, is old.
$worker = apply_worker();
on_subscriber("SELECT pg_terminate_backend($worker)");
$subscriber->poll_query_until('postgres',
	"SELECT count(*) = 1 FROM pg_stat_subscription WHERE subname = 'sub' AND pid <> $worker");

$worker = apply_worker();
on_subscriber("INSERT INTO bobs VALUES (7, 'here')");
on_subscriber('ALTER SUBSCRIPTION sub SET (conflict_resolution = apply_remote)');
$publisher->safe_psql('postgres', "INSERT INTO bobs VALUES (7, 'there')");
$publisher->wait_for_catchup('sub');
is(on_subscriber('SELECT t FROM bobs WHERE id = 7'), 'there', 'a resolver takes effect');
on_subscriber("INSERT INTO bobs VALUES (8, 'here')");
on_subscriber('ALTER SUBSCRIPTION sub SET (conflict_resolution = keep_local)');
$publisher->safe_psql('postgres', "INSERT INTO bobs VALUES (8, 'there')");
$publisher->wait_for_catchup('sub');
is(on_subscriber('SELECT t FROM bobs WHERE id = 8'), 'here', '... and another one');
is(apply_worker(), $worker, '... without a restart of the worker');

$logstart = -s $subscriber->logfile;
on_subscriber('ALTER SUBSCRIPTION sub SET (origin = none)');
ok( $subscriber->wait_for_log(
		qr/apply worker for subscription "sub" will restart because of a parameter change/, $logstart),
	'another origin filter restarts the worker');
$publisher->safe_psql('postgres', "INSERT INTO bobs VALUES (9, 'there')");
$publisher->wait_for_catchup('sub');
is(on_subscriber('SELECT t FROM bobs WHERE id = 9'), 'there', '... which goes on');

$subscriber->stop;
$publisher->stop;
done_testing();
