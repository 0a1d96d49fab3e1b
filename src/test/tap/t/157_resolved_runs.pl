#
# Runs of inserts where conflicts have resolvers, but the last update does not win:
# written together if all keys are new.  What goes wrong here: a row that exists, whose
# unique value somebody holds, or that the run itself has twice; triggers that would see
# other rows of the run; and that such runs are written row by row.
#
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use KrahoDB::Nodes;
use Test::More;

my $publisher = krahodb_node('publisher');
my $subscriber = krahodb_node('subscriber');

foreach my $node ($publisher, $subscriber)
{
	$node->safe_psql('postgres', <<'EOS');
CREATE TABLE one (id int PRIMARY KEY, n int, t text);
CREATE TABLE more (id int PRIMARY KEY, u int, made int GENERATED ALWAYS AS (u * 2) STORED);
CREATE TABLE watched (id int PRIMARY KEY, n int);
EOS
}
$publisher->safe_psql('postgres', 'CREATE PUBLICATION p FOR TABLE one, more, watched');
$subscriber->safe_psql('postgres', <<'EOS');
CREATE EXTENSION krahodb;
CREATE EXTENSION pg_walinspect;
CREATE UNIQUE INDEX ON more (u);
CREATE UNIQUE INDEX ON more (made);
CREATE TABLE seen (id int, rows bigint);
CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS
	$$ BEGIN INSERT INTO public.seen SELECT NEW.id, count(*) FROM public.watched; RETURN NULL; END $$;
CREATE TRIGGER look AFTER UPDATE ON watched FOR EACH ROW EXECUTE FUNCTION look();
ALTER TABLE watched ENABLE REPLICA TRIGGER look;
EOS
$subscriber->safe_psql('postgres', "CREATE SUBSCRIPTION s CONNECTION '" . connstr($publisher) .
	"' PUBLICATION p WITH (copy_data = false, conflict_resolution = apply_remote)");
$subscriber->wait_for_subscription_sync($publisher, 's');

sub insert { return "INSERT INTO $_[0] SELECT i, i FROM generate_series($_[1], $_[2]) i"; }

# Apply what the publisher does; $local was done here before.
sub meet
{
	my ($local, $remote) = @_;

	$subscriber->safe_psql('postgres', $local);
	$publisher->safe_psql('postgres', $remote);
	$publisher->wait_for_catchup('s');
}

sub here { return $subscriber->safe_psql('postgres', $_[0]); }

sub conflicts
{
	return here(q{SELECT string_agg(c, ', ' ORDER BY c) FROM (SELECT type || ' ' || count(*) AS c FROM krahodb.conflict_log GROUP BY type) x});
}

# New rows share records of the WAL.
my $start = here('SELECT pg_current_wal_insert_lsn()');
meet('', insert('one', 1, 2500));
is(here('SELECT count(*) FROM one'), '2500', 'a run of new rows');
cmp_ok(here("SELECT count(*) FROM pg_get_wal_records_info('$start', pg_current_wal_flush_lsn()) WHERE resource_manager IN ('Heap', 'Heap2') AND record_type LIKE '%INSERT%'"),
	'<', 500, 'is written page by page');
is(conflicts(), '', 'and no conflict');

# Rows that exist, unique values that others hold.
meet('INSERT INTO one SELECT i, -1 FROM generate_series(3500, 3509) i; INSERT INTO more VALUES (1, 3600), (2, 3601)',
	insert('one', 3000, 4000) . ';' . insert('more', 3000, 4000));
is(here('SELECT count(*), count(*) FILTER (WHERE n = id) FROM one WHERE id >= 3000'), '1001|1001', 'rows that exist are overwritten');
is(here('SELECT count(*), min(id) FROM more'), '1001|3000', 'and holders of unique values removed');
is(conflicts(), 'insert_exists 12', 'which is recorded');

# A value that two rows of the run have here, not there.
meet('', 'INSERT INTO more SELECT i, CASE WHEN i = 5050 THEN 5040 ELSE i END FROM generate_series(5000, 5100) i');
is(here('SELECT count(*), max(id) FILTER (WHERE u = 5040) FROM more WHERE id >= 5000'), '100|5050', 'the later row of a run has the value');

# Triggers see the rows that came before.
meet('INSERT INTO watched VALUES (5, 0)', insert('watched', 1, 10));
is(here('SELECT * FROM seen'), '5|5', 'a trigger sees the rows before it only');

# Somebody takes a unique value while the run is written.
my $session = $subscriber->background_psql('postgres');
$session->query_safe('BEGIN; INSERT INTO more VALUES (9999, 8050)');
$publisher->safe_psql('postgres', insert('more', 8000, 8100));
$subscriber->poll_query_until('postgres',
	"SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted")
  or die 'nobody waits';
$session->query_safe('COMMIT');
$session->quit;
$publisher->wait_for_catchup('s');
is(here('SELECT id FROM more WHERE u = 8050'), '8050', 'a value that was taken meanwhile');

# The other resolvers.
here('ALTER SUBSCRIPTION s SET (conflict_resolution = keep_local)');
meet('INSERT INTO one VALUES (10050, -1)', insert('one', 10000, 10100));
is(here('SELECT count(*), min(n) FROM one WHERE id >= 10000'), '101|-1', 'keep_local keeps the row');
here('ALTER SUBSCRIPTION s SET (conflict_resolution = error)');
here('INSERT INTO one VALUES (11050, -1)');
my $log = -s $subscriber->logfile;
$publisher->safe_psql('postgres', insert('one', 11000, 11100));
$subscriber->wait_for_log(qr/ERROR:.*insert_exists/, $log);
is(here('SELECT count(*) FROM one WHERE id >= 11000'), '1', 'error: nothing of the transaction is applied');
here('DELETE FROM one WHERE id = 11050');
$publisher->wait_for_catchup('s');
is(here('SELECT count(*), min(n) FROM one WHERE id >= 11000'), '101|11000', 'it is when the row is gone');

$_->stop foreach $publisher, $subscriber;
done_testing();
