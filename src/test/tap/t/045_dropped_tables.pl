# Tables that come and go, while one worker goes on for months, and
# transactions that change many of them.
# What goes wrong here: what the worker has made of a table, or what it was told of it, is kept when it is dropped; each
# table that has been looked in keeps some buffers; a table that has got another name, as its
# schema has, is taken for the one that has its old name now.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $publisher = krahodb_node('publisher', conf => "fsync = off\nlog_statement = none\n");
my $subscriber = krahodb_node('subscriber', conf => "fsync = off\nlog_statement = none\nmax_locks_per_transaction = 256\n");

$publisher->safe_psql('postgres', 'CREATE TABLE event (day int, id int, PRIMARY KEY (day, id)); CREATE PUBLICATION pub FOR TABLE event');
$subscriber->safe_psql('postgres',
	"CREATE TABLE event (day int, id int, PRIMARY KEY (day, id)) PARTITION BY LIST (day); CREATE SUBSCRIPTION sub CONNECTION '"
	  . connstr($publisher) . "' PUBLICATION pub");
$subscriber->wait_for_subscription_sync($publisher, 'sub');

# A hundred partitions are written to and dropped.
my $day = 0;
sub a_hundred_days
{
	my $first = $day + 1;
	my $last = $day += 100;
	my $each = sub { return "DO \$\$ BEGIN FOR i IN $first..$last LOOP EXECUTE format('$_[0]', i); END LOOP; END \$\$"; };

	$subscriber->safe_psql('postgres', $each->('CREATE TABLE event_%1$s PARTITION OF event FOR VALUES IN (%1$s)'));
	$publisher->safe_psql('postgres', "INSERT INTO event SELECT i, 1 FROM generate_series($first, $last) i");
	$publisher->wait_for_catchup('sub');
	$_[0]->() if $_[0];
	$subscriber->safe_psql('postgres', $each->('DROP TABLE event_%1$s'));
	return;
}

sub memory
{
	my $logstart = -s $subscriber->logfile;
	my $total = qr/Grand total: (\d+) bytes/;

	$subscriber->safe_psql('postgres',
		"SELECT pg_log_backend_memory_contexts(pid) FROM pg_stat_subscription WHERE relid IS NULL");
	$subscriber->wait_for_log($total, $logstart);
	slurp_file($subscriber->logfile, $logstart) =~ $total;
	return $1;
}

a_hundred_days() for 1 .. 4;
my $before = memory();
a_hundred_days() for 1 .. 6;
my $growth = memory() - $before;
note "$growth bytes";
cmp_ok($growth, '<', 4 * 1024 * 1024, 'the worker does not keep what it has made of dropped tables');

# ---- many in one transaction ----------------------------------------------------------

is($subscriber->safe_psql('postgres', "SELECT setting::int < 150 FROM pg_settings WHERE name = 'shared_buffers'"), 't',
	'the server has not many buffers');

# A worker that has not written the rows itself has to look for them.
my $another_worker = sub {
	$subscriber->safe_psql('postgres', 'SELECT pg_terminate_backend(pid) FROM pg_stat_subscription WHERE relid IS NULL');
};
a_hundred_days(sub {
	$another_worker->();
	$publisher->safe_psql('postgres', 'UPDATE event SET id = 2 WHERE day > 1000');
	$publisher->wait_for_catchup('sub');
	$another_worker->();
	is($subscriber->safe_psql('postgres', 'SELECT count(*), sum(id) FROM event'), '100|200', 'a transaction that updates many tables');
	$publisher->safe_psql('postgres', 'DELETE FROM event WHERE day > 1000');
	$publisher->wait_for_catchup('sub');
	is($subscriber->safe_psql('postgres', 'SELECT count(*) FROM event'), '0', '... and one that deletes in many');
});

# ---- schemas that get another name ------------------------------------------------------

sub moved { return $subscriber->safe_psql('postgres', "SELECT string_agg(id::text, ' ' ORDER BY id) FROM $_[0].moved"); }

$_->safe_psql('postgres', 'CREATE SCHEMA one CREATE TABLE moved (id int PRIMARY KEY)') foreach $publisher, $subscriber;
$subscriber->safe_psql('postgres', 'CREATE SCHEMA two CREATE TABLE moved (id int PRIMARY KEY)');
sub refresh
{
	$subscriber->safe_psql('postgres', 'ALTER SUBSCRIPTION sub REFRESH PUBLICATION');
	$subscriber->wait_for_subscription_sync($publisher, 'sub');
	return;
}
$publisher->safe_psql('postgres', 'ALTER PUBLICATION pub ADD TABLE one.moved');
refresh();
$publisher->safe_psql('postgres', 'INSERT INTO one.moved VALUES (1)');
$publisher->safe_psql('postgres', 'ALTER SCHEMA one RENAME TO two; INSERT INTO two.moved VALUES (2)');
$publisher->wait_for_catchup('sub');
is(moved('one') . ',' . moved('two'), '1,', 'a schema is renamed at the publisher: nothing comes to the table that has the old name here');
refresh();
is(moved('two'), '1 2', '... and all to the one that has the new name, once it is subscribed to');

$publisher->safe_psql('postgres', 'INSERT INTO two.moved VALUES (3)');
$publisher->wait_for_catchup('sub');
$subscriber->safe_psql('postgres', 'ALTER SCHEMA two RENAME TO three; CREATE SCHEMA two CREATE TABLE moved (id int PRIMARY KEY)');
$publisher->safe_psql('postgres', 'INSERT INTO two.moved VALUES (4)');
$publisher->wait_for_catchup('sub');
is(moved('three') . ',' . moved('two'), '1 2 3,', 'a schema is renamed here: nothing comes to its tables, nor to new ones');
refresh();
is(moved('two'), '1 2 3 4', '... which are copied when they are subscribed to');

# ---- at the publisher -------------------------------------------------------------------

my $lanes = $ENV{KDB_TEST_APPLY_WORKERS} || 1;
my $worker = 'SELECT pid FROM pg_stat_subscription WHERE relid IS NULL AND subname = \'all\'';
$_->safe_psql('postgres', 'CREATE SCHEMA s; CREATE TABLE s.staging (id int PRIMARY KEY, v text)') foreach $publisher, $subscriber;
$publisher->safe_psql('postgres', 'CREATE PUBLICATION everything FOR TABLES IN SCHEMA s');
$subscriber->safe_psql('postgres',
	"CREATE SUBSCRIPTION \"all\" CONNECTION '" . connstr($publisher) . "' PUBLICATION everything WITH (copy_data = false)");
$subscriber->poll_query_until('postgres', "SELECT count(*) = 1 FROM ($worker) w WHERE pid IS NOT NULL") or die;

my $made = 0;

# A table is made anew again and again, under one name.
sub makes_anew
{
	my ($times) = @_;

	$made += 1000;
	$publisher->safe_psql('postgres', "DO \$\$ BEGIN FOR i IN 1..$times LOOP
		DROP TABLE s.staging; CREATE TABLE s.staging (id int PRIMARY KEY, v text); INSERT INTO s.staging VALUES ($made + i);
		COMMIT; END LOOP; END \$\$");
	$publisher->wait_for_catchup('all');
	return;
}

sub memory_of_all
{
	my $logstart = -s $subscriber->logfile;
	my $total = qr/Grand total: (\d+) bytes/;

	$subscriber->safe_psql('postgres', "SELECT pg_log_backend_memory_contexts(pid) FROM ($worker) w");
	$subscriber->wait_for_log($total, $logstart);
	slurp_file($subscriber->logfile, $logstart) =~ $total;
	return $1;
}

makes_anew(20);
$before = memory_of_all();
makes_anew(250);
$growth = memory_of_all() - $before;
note "$growth bytes";
cmp_ok($growth, '<', 1024 * 1024, 'nor what it was told of tables whose name others have now');

# Tables with names of their own that are dropped on both sides.
my $each = sub { return "DO \$\$ BEGIN FOR i IN 1..$_[0] LOOP $_[1]; END LOOP; END \$\$"; };
my $pid = $subscriber->safe_psql('postgres', $worker);
my $offset = -s $subscriber->logfile;
$_->safe_psql('postgres', $each->(520, q{EXECUTE format('CREATE TABLE s.t%s (id int)', i)})) foreach $publisher, $subscriber;
foreach my $half (0, 1)
{
	$publisher->safe_psql('postgres', $each->(260, "EXECUTE format('INSERT INTO s.t%s VALUES (1)', i + 260 * $half); COMMIT"));
	$publisher->wait_for_catchup('all');
	$subscriber->safe_psql('postgres', $each->(260, "EXECUTE format('DROP TABLE s.t%s', i + 260 * $half); COMMIT"));
}
$subscriber->wait_for_log(qr/apply worker for subscription "all" will restart to forget \d+ tables that do not exist any more/, $offset);
$publisher->safe_psql('postgres', q{INSERT INTO s.staging VALUES (1)});
$publisher->wait_for_catchup('all');
is($subscriber->safe_psql('postgres', 'SELECT count(*) FROM s.staging WHERE id = 1'), 1, 'a worker that knows many tables that are gone starts anew');

done_testing();
