# Triggers that fire when changes are applied, and what they do to other tables.
# What goes wrong here: a table that the same transaction has changed before is still
# open, and commands that need it for themselves are refused; what others have committed
# since the transaction began is not seen.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $publisher = krahodb_node('publisher');
my $subscriber = krahodb_node('subscriber');

sub on_publisher { return $publisher->safe_psql('postgres', join("\n", @_)); }
sub on_subscriber { return $subscriber->safe_psql('postgres', join("\n", @_)); }

$_->safe_psql('postgres', <<'EOS') foreach $publisher, $subscriber;
CREATE TABLE staging (id int PRIMARY KEY, v int);
CREATE TABLE loaded (id int PRIMARY KEY);
CREATE TABLE parted (id int PRIMARY KEY, v int) PARTITION BY LIST (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES IN (2);
EOS
on_subscriber(<<'EOS');
CREATE TABLE total (id serial, sum int);
CREATE FUNCTION take_over() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.total (sum) SELECT sum(v) FROM public.staging;
	TRUNCATE public.staging;
	ALTER TABLE public.staging ALTER v SET STATISTICS 10;
	RETURN NULL;
END $$;
CREATE TRIGGER take_over AFTER INSERT ON loaded FOR EACH ROW EXECUTE FUNCTION take_over();
ALTER TABLE loaded ENABLE REPLICA TRIGGER take_over;
CREATE FUNCTION empty_other() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	TRUNCATE public.parted_1;
	RETURN NULL;
END $$;
CREATE TRIGGER empty_other AFTER INSERT OR UPDATE ON parted_2 FOR EACH ROW EXECUTE FUNCTION empty_other();
ALTER TABLE parted_2 ENABLE ALWAYS TRIGGER empty_other;
EOS
on_publisher('CREATE PUBLICATION pub FOR ALL TABLES WITH (publish_via_partition_root = true)');
on_subscriber("CREATE SUBSCRIPTION sub CONNECTION '" . connstr($publisher) . "' PUBLICATION pub");
$subscriber->wait_for_subscription_sync($publisher, 'sub');

on_publisher(<<'EOS');
BEGIN;
INSERT INTO staging VALUES (1, 1);
INSERT INTO staging VALUES (2, 2), (3, 3);
UPDATE staging SET v = 4 WHERE id = 1;
INSERT INTO loaded VALUES (1);
INSERT INTO staging VALUES (4, 10);
UPDATE staging SET v = 11 WHERE id = 4;
INSERT INTO loaded VALUES (2), (3);
INSERT INTO staging VALUES (5, 5);
COMMIT;
EOS
$publisher->wait_for_catchup('sub');
is(on_subscriber('SELECT sum FROM total ORDER BY id'), "9\n11\n", 'a trigger truncates and alters a table that was changed before');
is(on_subscriber('TABLE staging'), '5|5', '... which is changed again after that');

on_publisher(<<'EOS');
BEGIN;
INSERT INTO parted VALUES (1, 1), (2, 2);
INSERT INTO parted SELECT 1, 1 WHERE false;
UPDATE parted SET v = v + 1;
COMMIT;
EOS
$publisher->wait_for_catchup('sub');
is(on_subscriber('SELECT * FROM parted ORDER BY id'), '2|3', 'likewise another partition');

# ---- what a trigger sees -----------------------------------------------------------------

$_->safe_psql('postgres', 'CREATE TABLE seen (id int PRIMARY KEY, n int); CREATE TABLE gate (id int PRIMARY KEY)')
  foreach $publisher, $subscriber;
on_subscriber(<<'EOS');
CREATE TABLE flag (id int);
CREATE FUNCTION flags() RETURNS bigint STABLE LANGUAGE sql AS 'SELECT count(*) FROM public.flag';
CREATE FUNCTION note_flags() RETURNS trigger STABLE LANGUAGE plpgsql AS $$ BEGIN new.n := public.flags(); RETURN new; END $$;
CREATE TRIGGER note_flags BEFORE INSERT ON seen FOR EACH ROW EXECUTE FUNCTION note_flags();
ALTER TABLE seen ENABLE ALWAYS TRIGGER note_flags;
ALTER SUBSCRIPTION sub REFRESH PUBLICATION;
EOS
$subscriber->wait_for_subscription_sync($publisher, 'sub');
my $session = $subscriber->background_psql('postgres');
$session->query_safe('BEGIN; LOCK TABLE gate');
on_publisher('BEGIN; INSERT INTO seen VALUES (1), (2); INSERT INTO gate VALUES (1); INSERT INTO seen VALUES (3); COMMIT');
$subscriber->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_locks WHERE relation = 'gate'::regclass AND NOT granted")
  or die 'does not wait';
on_subscriber('INSERT INTO flag VALUES (1)');
$session->query_safe('COMMIT');
$session->quit;
$publisher->wait_for_catchup('sub');
is(on_subscriber('SELECT id, n FROM seen ORDER BY id'), "1|0\n2|0\n3|1", 'a trigger sees what was committed before its change');

# ---- foreign keys that cascade -------------------------------------------------------------

# Events of the child fire with those of the parent.  The engine opens it for a query, which an apply worker's
# row is not: it stayed open, and what was remembered of it was used in later transactions.
$_->safe_psql('postgres', 'CREATE TABLE parent (id int PRIMARY KEY)') foreach $publisher, $subscriber;
on_subscriber(<<'EOS');
CREATE TABLE child (id int PRIMARY KEY REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE);
CREATE TABLE gone (id int);
CREATE FUNCTION gone() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.gone VALUES (old.id); RETURN NULL; END $$;
CREATE TRIGGER gone AFTER DELETE ON child FOR EACH ROW EXECUTE FUNCTION gone();
DO $$ DECLARE t record; BEGIN
	FOR t IN SELECT tgrelid::regclass, tgname FROM pg_trigger WHERE tgrelid IN ('parent'::regclass, 'child'::regclass) LOOP
		EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', t.tgrelid, t.tgname);
	END LOOP;
END $$;
ALTER SUBSCRIPTION sub REFRESH PUBLICATION;
EOS
$subscriber->wait_for_subscription_sync($publisher, 'sub');
on_publisher('INSERT INTO parent SELECT generate_series(1, 6)');
$publisher->wait_for_catchup('sub');
on_subscriber('INSERT INTO child SELECT id FROM parent');
my $before_cascades = -s $subscriber->logfile;
my $n = 0;
foreach my $sql ('DELETE FROM parent WHERE id < 3', 'DELETE FROM parent WHERE id = 3; UPDATE parent SET id = 40 WHERE id = 4',
	'DELETE FROM parent WHERE id > 4')
{
	on_publisher("BEGIN; $sql; COMMIT");
	$publisher->wait_for_catchup('sub');
	on_subscriber('ALTER TABLE child ADD n' . ++$n . ' int');
}
is(on_subscriber("SELECT count(*) || ' ' || string_agg(id::text, ' ' ORDER BY id) FROM gone"), '6 1 2 3 5 6 40', 'triggers of a table that a foreign key cascades to');
unlike(slurp_file($subscriber->logfile, $before_cascades), qr/reference leak/, '... which is closed after each row');

# ---- triggers that keep rows, where the last update wins -----------------------------------------

$_->safe_psql('postgres', q{
	CREATE EXTENSION krahodb;
	CREATE TABLE kept (id int PRIMARY KEY, code text UNIQUE, v text);
	CREATE TABLE span (id int PRIMARY KEY, r int4range, EXCLUDE USING gist (r WITH &&));
	CREATE PUBLICATION kept FOR TABLE kept, span})
  foreach $publisher, $subscriber;
on_subscriber(<<'EOS');
CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER keep BEFORE DELETE ON kept FOR EACH ROW EXECUTE FUNCTION keep();
ALTER TABLE kept ENABLE ALWAYS TRIGGER keep;
CREATE TRIGGER keep BEFORE DELETE ON span FOR EACH ROW EXECUTE FUNCTION keep();
ALTER TABLE span ENABLE REPLICA TRIGGER keep;
CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF new.v = 'skip' THEN RETURN NULL; END IF; RETURN new; END $$;
CREATE TRIGGER skip BEFORE INSERT OR UPDATE ON kept FOR EACH ROW EXECUTE FUNCTION skip();
ALTER TABLE kept ENABLE ALWAYS TRIGGER skip;
EOS
on_subscriber("CREATE SUBSCRIPTION kept CONNECTION '" . connstr($publisher) . "' PUBLICATION kept WITH (origin = none, copy_data = false)");

on_publisher(<<'EOS');
INSERT INTO kept VALUES (1, 'A', 'a'), (2, 'B', 'b'), (3, 'C', 'c'), (4, 'D', 'skip');
DELETE FROM kept WHERE id = 1;
UPDATE kept SET v = 'skip' WHERE id = 2;
UPDATE kept SET id = 30, code = 'CC' WHERE id = 3;
UPDATE kept SET v = 'd' WHERE id = 4;
INSERT INTO span SELECT i, int4range(i, i + 1) FROM generate_series(1, 70) i;
EOS
$publisher->wait_for_catchup('kept');
is(on_subscriber('SELECT * FROM kept ORDER BY id'), "1|A|a\n2|B|b\n3|C|c\n4|D|d\n30|CC|c",
	'rows that triggers keep or leave out, and what comes of them later');

# A row that keeps a value which the new one needs.
sub refused_until_disabled
{
	my ($table, $sql) = @_;
	my $offset = -s $subscriber->logfile;

	on_publisher($sql);
	$subscriber->wait_for_log(qr/a trigger of table "$table" keeps a row that is in the way of a change/, $offset);
	on_subscriber("ALTER TABLE $table DISABLE TRIGGER keep");
	$publisher->wait_for_catchup('kept');
	is(on_subscriber("SELECT * FROM $table ORDER BY id"), on_publisher("SELECT * FROM $table ORDER BY id"), $sql);
	return;
}

on_publisher('DELETE FROM kept WHERE id <> 2');
$publisher->wait_for_catchup('kept');
on_subscriber('ALTER TABLE kept DISABLE TRIGGER USER; TRUNCATE kept; INSERT INTO kept VALUES (2, $$B$$, $$b$$); ALTER TABLE kept ENABLE ALWAYS TRIGGER keep');
refused_until_disabled('kept', q{UPDATE kept SET id = 20, v = 'x'});
refused_until_disabled('span', q{DELETE FROM span; INSERT INTO span VALUES (1000, int4range(1, 100))});

done_testing();
