# A row has to be fetched from its writer, whose table was renamed, detached, dropped, or has lost a column
# since.  Or it takes long.
# What goes wrong here: the advice of the message does not help; a publisher that waits for an answer of
# a worker which waits for another answer gives it up.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my ($a, $b) = map { krahodb_node($_) } qw(a b);
my $parted = q{(id int PRIMARY KEY, v text, w text) PARTITION BY LIST (id)};

foreach my $node ($a, $b)
{
	my $tables = join ' ', map {
		"CREATE TABLE $_ (id int PRIMARY KEY, v text, w text, x text); ALTER TABLE $_ ALTER w SET STORAGE EXTERNAL;"
	} qw(renamed dropped s.moved lost_w lost_x slow);
	$node->safe_psql('postgres', qq{
		CREATE EXTENSION krahodb;
		CREATE FUNCTION wide(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT repeat(\$1, 12000 / length(\$1))';
		CREATE SCHEMA s;
		$tables
		CREATE TABLE parted $parted;
		CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
		ALTER TABLE parted ALTER w SET STORAGE EXTERNAL; ALTER TABLE parted_1 ALTER w SET STORAGE EXTERNAL;
		CREATE PUBLICATION p FOR ALL TABLES WITH (publish_via_partition_root = true)});
}
$b->safe_psql('postgres', sprintf("CREATE SUBSCRIPTION b_a CONNECTION '%s' PUBLICATION p WITH (origin = none, copy_data = false)", connstr($a)));

# b changes the wide value of a row, a another one, and then the table; what b says of that, and how it ends
# when the table is as it was.
sub changed
{
	my ($table, $change, $message, $remedy, $row) = @_;

	$a->safe_psql('postgres', "INSERT INTO $table VALUES (1, 'old', wide('old'))");
	wait_streams(1, [ $a, 'b_a' ]);
	pause_subscription($b, 'b_a');
	$b->safe_psql('postgres', "UPDATE $table SET w = wide('b')");
	$a->safe_psql('postgres', "UPDATE $table SET v = 'a'");
	$a->safe_psql('postgres', $change);
	my $offset = -s $b->logfile;
	$b->safe_psql('postgres', 'ALTER SUBSCRIPTION b_a ENABLE');
	ok($b->wait_for_log(qr/ERROR:  could not fetch a row of table "(?:public|s)\.\w+" from the publisher: $message\n.*\n.*HINT:  The publisher's table was changed or dropped after it was written to/, $offset),
		"$change: message");
	$a->safe_psql('postgres', $remedy);
	wait_streams(1, [ $a, 'b_a' ]);
	is($b->safe_psql('postgres', "SELECT v, left(w, 3) FROM $table"), $row, "$change: $remedy");
	return;
}

changed('renamed', 'ALTER TABLE renamed RENAME TO other', qr/relation "public.renamed" does not exist/,
	'ALTER TABLE other RENAME TO renamed', 'a|old');
changed('s.moved', 'ALTER TABLE s.moved SET SCHEMA public; DROP SCHEMA s', qr/schema "s" does not exist/,
	'CREATE SCHEMA s; ALTER TABLE moved SET SCHEMA s', 'a|old');
changed('parted', 'ALTER TABLE parted DETACH PARTITION parted_1', qr/no partition of relation "parted" found for row/,
	'ALTER TABLE parted ATTACH PARTITION parted_1 FOR VALUES IN (1)', 'a|old');
changed('lost_w', 'ALTER TABLE lost_w DROP w', qr/column "w" of relation "lost_w" does not exist/,
	'ALTER TABLE lost_w ADD w text', 'a|');
changed('lost_x', 'ALTER TABLE lost_x DROP x', qr/column "x" of relation "lost_x" does not exist/,
	'ALTER TABLE lost_x ADD x text', 'a|old');
changed('dropped', 'DROP TABLE dropped', qr/relation "public.dropped" does not exist/,
	'CREATE TABLE dropped (id int PRIMARY KEY, v text, w text, x text)', '');

# ---- the publisher's patience ---------------------------------------------------------------------------

$a->append_conf('postgresql.conf', 'wal_sender_timeout = 1s');
reload_settings($a);
$b->safe_psql('postgres', 'ALTER SUBSCRIPTION b_a DISABLE');
$a->safe_psql('postgres', "INSERT INTO slow VALUES (1, 'old', wide('old'))");
$b->safe_psql('postgres', 'ALTER SUBSCRIPTION b_a ENABLE');
wait_streams(1, [ $a, 'b_a' ]);
pause_subscription($b, 'b_a');
$b->safe_psql('postgres', q{UPDATE slow SET w = wide('b')});
$a->safe_psql('postgres', q{UPDATE slow SET v = 'a'});
my $session = $a->background_psql('postgres');
$session->query_safe('BEGIN; LOCK TABLE slow');
my $offset = -s $a->logfile;
my $offset_b = -s $b->logfile;
$b->safe_psql('postgres', 'ALTER SUBSCRIPTION b_a ENABLE');
$a->poll_query_until('postgres',
	"SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'krahodb fetch' AND wait_event_type = 'Lock' AND clock_timestamp() > query_start + interval '2.5s'")
  or die;
$session->query_safe('COMMIT');
$session->quit;
wait_streams(1, [ $a, 'b_a' ]);
is($b->safe_psql('postgres', 'SELECT v, left(w, 3) FROM slow'), 'a|old', 'a fetch that takes longer than wal_sender_timeout');
unlike(slurp_file($a->logfile, $offset), qr/replication timeout/, 'the publisher is told that there is somebody');
unlike(slurp_file($b->logfile, $offset_b), qr/ERROR/, 'without an error');

$_->stop foreach $a, $b;
done_testing();
