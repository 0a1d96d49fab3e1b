# What goes wrong here: conflicts are resolved on plain tables, and stop replication,
# or leave two nodes with different rows, on tables that have more than a primary key:
# other unique keys, exclusion constraints, deferrable keys, full or index replica
# identity, partitions, triggers, generated columns, columns that only one side has,
# out-of-line values, an owner of their own.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/..";

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $publisher = krahodb_node('publisher');
my $subscriber = krahodb_node('subscriber');

sub on_publisher { return $publisher->safe_psql('postgres', $_[0]); }
sub on_subscriber { return $subscriber->safe_psql('postgres', $_[0]); }
sub rows { return on_subscriber("SELECT * FROM $_[0] ORDER BY 1"); }
sub pause { pause_subscription($subscriber, 'sub'); return; }

sub caught_up
{
	$publisher->wait_for_catchup('sub');
	return;
}

sub resume
{
	on_subscriber('ALTER SUBSCRIPTION sub ENABLE');
	caught_up();
	return;
}

sub set_options
{
	on_subscriber("ALTER SUBSCRIPTION sub SET ($_[0])");
	return;
}

my $logstart = 0;
sub mark_log { $logstart = -s $subscriber->logfile; return; }
sub logged { return slurp_file($subscriber->logfile, $logstart); }

sub tables
{
	on_publisher($_[0]);
	on_subscriber($_[1] || $_[0]);
	on_subscriber('ALTER SUBSCRIPTION sub REFRESH PUBLICATION WITH (copy_data = false)');
	return;
}

on_publisher('CREATE PUBLICATION pub FOR ALL TABLES WITH (publish_via_partition_root = true)');
on_subscriber(
	sprintf("CREATE SUBSCRIPTION sub CONNECTION '%s' PUBLICATION pub WITH (conflict_resolution = last_update_wins, copy_data = false)",
		connstr($publisher)));

# ---- several unique keys ---------------------------------------------------------------

tables('CREATE TABLE keys (id int PRIMARY KEY, u int UNIQUE, w int UNIQUE, v text)');
on_publisher("INSERT INTO keys VALUES (1, 1, 1, 'base')");
caught_up();
mark_log();
on_subscriber("INSERT INTO keys VALUES (2, 2, 2, 'local'), (3, 3, 3, 'local'), (4, 4, 4, 'local')");
on_publisher("UPDATE keys SET u = 2, w = 3, v = 'remote' WHERE id = 1");
caught_up();
is(rows('keys'), "1|2|3|remote\n4|4|4|local", 'an update takes the values of two older rows');
like(logged(), qr/conflict=multiple_unique_conflicts, resolution=last_update_wins, remote change applied/, '... recorded as one conflict');

on_publisher("UPDATE keys SET id = 4, v = 'moved' WHERE id = 1");
caught_up();
is(rows('keys'), '4|2|3|moved', 'an update of the key onto an older row takes its place');

pause();
on_publisher("INSERT INTO keys VALUES (5, 5, 5, 'remote')");
on_subscriber("INSERT INTO keys VALUES (6, 5, 6, 'local')");
on_publisher("INSERT INTO keys VALUES (7, 6, 7, 'remote')");
resume();
is(rows('keys'), "4|2|3|moved\n6|5|6|local\n7|6|7|remote", 'an insert loses against a newer holder of a value, and wins where there is none');

# One type is not resolved while others are: the engine's error, no endless loop.
set_options('update_exists = DEFAULT, conflict_resolution = DEFAULT, insert_exists = apply_remote, disable_on_error = true');
mark_log();
on_subscriber("INSERT INTO keys VALUES (8, 8, 8, 'local')");
on_publisher("UPDATE keys SET u = 8 WHERE id = 7");
$subscriber->wait_for_log(qr/subscription "sub" has been disabled because of an error/, $logstart);
like(logged(), qr/duplicate key value violates unique constraint "keys_u_key"/, 'a type that is not resolved beside one that is: the error of the index');
on_subscriber('DELETE FROM keys WHERE id = 8');
set_options('insert_exists = DEFAULT, conflict_resolution = last_update_wins, disable_on_error = false');
resume();
is(on_subscriber('SELECT u FROM keys WHERE id = 7'), '8', '... until the row is out of the way');

# ---- exclusion constraints -----------------------------------------------------------------

tables('CREATE TABLE bookings (id int PRIMARY KEY, during int4range, EXCLUDE USING gist (during WITH &&))');
mark_log();
pause();
on_publisher("INSERT INTO bookings VALUES (1, '[1,3)')");
on_subscriber("INSERT INTO bookings VALUES (2, '[2,4)'), (3, '[10,12)'), (4, '[12,14)')");
on_publisher("INSERT INTO bookings VALUES (5, '[11,13)')");
resume();
is(rows('bookings'), "2|[2,4)\n5|[11,13)", 'exclusion: an older insert loses, a newer one removes all that overlap');
like(logged(), qr/Key already exists in unique index "bookings_during_excl"/, '... and the index is named');
on_subscriber("INSERT INTO bookings VALUES (6, '[20,22)')");
on_publisher("UPDATE bookings SET during = '[21,23)' WHERE id = 5");
caught_up();
is(rows('bookings'), "2|[2,4)\n5|[21,23)", '... and so does an update');

# ---- deferrable keys -----------------------------------------------------------------------

# The engine does not check them when changes are applied, so nobody would notice.
tables('CREATE TABLE positions (id int PRIMARY KEY, pos int UNIQUE DEFERRABLE INITIALLY DEFERRED, v text)');
on_publisher("INSERT INTO positions VALUES (1, 1, 'base'), (2, 2, 'base'), (3, 3, 'base')");
caught_up();
mark_log();
on_publisher('UPDATE positions SET pos = 4 - pos');
caught_up();
is(rows('positions'), "1|3|base\n2|2|base\n3|1|base", 'deferrable: values are exchanged in one transaction');
unlike(logged(), qr/conflict detected/, '... which is no conflict');
on_subscriber("INSERT INTO positions VALUES (4, 4, 'local')");
on_publisher("INSERT INTO positions VALUES (5, 4, 'remote')");
caught_up();
is(rows('positions'), "1|3|base\n2|2|base\n3|1|base\n5|4|remote", '... a value that is taken by another row is one: by an insert');
on_subscriber("INSERT INTO positions VALUES (6, 6, 'local')");
on_publisher("UPDATE positions SET pos = 6 WHERE id = 5");
caught_up();
is(rows('positions'), "1|3|base\n2|2|base\n3|1|base\n5|6|remote", '... by an update');

# ---- replica identity -----------------------------------------------------------------------

tables(q{
	CREATE TABLE by_index (id int PRIMARY KEY, code int NOT NULL, v text);
	CREATE UNIQUE INDEX by_index_code ON by_index (code);
	ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code;
	CREATE TABLE by_row (id int, v text);
	ALTER TABLE by_row REPLICA IDENTITY FULL;
	CREATE TABLE by_row_key (id int PRIMARY KEY, v text);
	ALTER TABLE by_row_key REPLICA IDENTITY FULL;
});
on_publisher("INSERT INTO by_index VALUES (1, 10, 'base'), (2, 20, 'base');
	INSERT INTO by_row VALUES (1, 'base'), (2, 'base'), (3, 'base');
	INSERT INTO by_row_key VALUES (1, 'base'), (2, 'base')");
caught_up();
mark_log();
pause();
on_publisher("UPDATE by_index SET v = 'remote' WHERE code = 10; UPDATE by_row_key SET v = 'remote' WHERE id = 1");
on_subscriber("UPDATE by_index SET v = 'local'; UPDATE by_row_key SET v = 'local'; UPDATE by_row SET v = 'local' WHERE id = 1; DELETE FROM by_row WHERE id = 3");
on_publisher("UPDATE by_index SET v = 'remote' WHERE code = 20; UPDATE by_row_key SET v = 'remote' WHERE id = 2;
	UPDATE by_row SET v = 'remote' WHERE id <= 2; DELETE FROM by_row WHERE id = 3");
resume();
is(rows('by_index'), "1|10|local\n2|20|remote", 'identity by index');
is(rows('by_row_key'), "1|local\n2|remote", 'full identity with a primary key here');
is(on_subscriber('SELECT * FROM by_row ORDER BY 1, 2'), "1|local\n1|remote\n2|remote",
	'full identity without a key: a row that has changed is another row');
like(logged(), qr/"public.by_row": conflict=update_missing, resolution=insert/, '... so the update is of a missing row');
like(logged(), qr/"public.by_row": conflict=delete_missing, resolution=skip/, '... and so is the delete');

# ---- a column of the subscriber, without a default ---------------------------------------------

tables('CREATE TABLE noted (id int PRIMARY KEY, v text)', 'CREATE TABLE noted (note text, id int PRIMARY KEY, v text)');
on_publisher("INSERT INTO noted VALUES (1, 'base')");
caught_up();
on_subscriber("UPDATE noted SET note = 'mine'");
on_publisher('UPDATE noted SET id = 2');
caught_up();
is(rows('noted'), 'mine|2|base', 'it stays when the key of the row changes');

# ---- partitions ------------------------------------------------------------------------------

# The subscriber's has a column that the publisher does not know, and other partitions.
tables(q{
	CREATE TABLE parts (id int, region int, v text, PRIMARY KEY (id, region)) PARTITION BY RANGE (region);
	CREATE TABLE parts_all PARTITION OF parts FOR VALUES FROM (0) TO (100);
}, q{
	CREATE SEQUENCE parts_serial;
	CREATE TABLE parts (id int, region int, v text, PRIMARY KEY (id, region), note text DEFAULT 'of here ' || nextval('parts_serial')) PARTITION BY RANGE (region);
	CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (10);
	CREATE TABLE parts_high (note text DEFAULT 'of the partition', v text, region int NOT NULL, id int NOT NULL);
	ALTER TABLE parts ATTACH PARTITION parts_high FOR VALUES FROM (10) TO (100);
});
my $parts = 'SELECT tableoid::regclass, id, region, v, note FROM parts ORDER BY id, region';
on_publisher("INSERT INTO parts VALUES (1, 1, 'base'), (2, 2, 'base'), (3, 3, 'base')");
caught_up();
is(on_subscriber($parts), "parts_low|1|1|base|of here 1\nparts_low|2|2|base|of here 2\nparts_low|3|3|base|of here 3", 'rows are routed, with defaults');
mark_log();
pause();
on_publisher("UPDATE parts SET v = 'remote', region = 11 WHERE id = 1");
on_subscriber("UPDATE parts SET v = 'local' WHERE id < 3; DELETE FROM parts WHERE id = 3");
on_publisher("UPDATE parts SET v = 'remote', region = 12 WHERE id = 2; UPDATE parts SET v = 'remote', region = 13 WHERE id = 3");
resume();
is(on_subscriber($parts),
	"parts_low|1|1|local|of here 1\nparts_high|1|11|remote|of here 1\nparts_high|2|12|remote|of here 2\nparts_high|3|13|remote|of here 4",
	'a move to another partition is a new key: the old row loses, wins, and is not there; the new one gets defaults then');
like(logged(), qr/"public.parts_low": conflict=delete_missing, resolution=skip, remote change skipped/, '... recorded on the partition');
on_subscriber("INSERT INTO parts VALUES (4, 14, 'local', 'mine')");
on_publisher("INSERT INTO parts VALUES (4, 14, 'remote')");
caught_up();
is(on_subscriber('SELECT v, note FROM parts WHERE id = 4'), 'remote|mine', 'columns of the subscriber are left alone by an overwrite');
on_subscriber("INSERT INTO parts VALUES (5, 15, 'local', 'mine')");
on_publisher("INSERT INTO parts VALUES (5, 5, 'remote')");
caught_up();
on_publisher("UPDATE parts SET region = 15 WHERE id = 5");
caught_up();
is(on_subscriber('SELECT tableoid::regclass, region, v FROM parts WHERE id = 5'), 'parts_high|15|remote', 'a move onto an existing row');
on_subscriber('ALTER TABLE parts SET (krahodb.conflict_resolution = keep_local)');
on_subscriber("UPDATE parts SET v = 'local' WHERE id = 4");
on_publisher("UPDATE parts SET v = 'again' WHERE id = 4");
caught_up();
is(on_subscriber('SELECT v FROM parts WHERE id = 4'), 'local', "the partitioned table's option holds for its partitions");

# ---- triggers ------------------------------------------------------------------------------------

tables(q{
	CREATE TABLE triggered (id int PRIMARY KEY, u int UNIQUE, v text);
}, q{
	CREATE TABLE triggered (id int PRIMARY KEY, u int UNIQUE, v text, fired int DEFAULT 0);
	CREATE TABLE firings (what text);
	CREATE FUNCTION before_row() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO firings VALUES (lower(TG_OP) || ' ' || coalesce(NEW.id, OLD.id));
		IF TG_OP = 'DELETE' THEN
			RETURN CASE WHEN OLD.v = 'protected' THEN NULL ELSE OLD END;
		END IF;
		IF NEW.v = 'suppress' THEN RETURN NULL; END IF;
		NEW.fired := coalesce(NEW.fired, 0) + 1;
		IF NEW.v LIKE 'key %' THEN NEW.id := substr(NEW.v, 5)::int; END IF;
		IF NEW.v LIKE 'unique %' THEN NEW.u := substr(NEW.v, 8)::int; END IF;
		RETURN NEW;
	END $$;
	CREATE FUNCTION after_row() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO firings VALUES ('after ' || lower(TG_OP) || ' ' || coalesce(NEW.id, OLD.id));
		RETURN NULL;
	END $$;
	CREATE TRIGGER before_row BEFORE INSERT OR UPDATE OR DELETE ON triggered FOR EACH ROW EXECUTE FUNCTION public.before_row();
	CREATE TRIGGER after_row AFTER INSERT OR UPDATE OR DELETE ON triggered FOR EACH ROW EXECUTE FUNCTION public.after_row();
	ALTER TABLE triggered ENABLE REPLICA TRIGGER before_row;
	ALTER TABLE triggered ENABLE REPLICA TRIGGER after_row;
	ALTER FUNCTION before_row() SET search_path = public;
	ALTER FUNCTION after_row() SET search_path = public;
});
sub firings
{
	my $result = on_subscriber("SELECT string_agg(what, ', ' ORDER BY ctid) FROM firings");
	on_subscriber('TRUNCATE firings');
	return $result;
}
on_publisher("INSERT INTO triggered VALUES (1, 1, 'base')");
caught_up();
is(firings(), 'insert 1, after insert 1', 'triggers: an insert without conflict');
on_subscriber("INSERT INTO triggered VALUES (2, 2, 'local')");
on_publisher("INSERT INTO triggered VALUES (2, 20, 'remote')");
caught_up();
is(firings(), 'update 2, after update 2', 'an insert that overwrites fires those of the update');
is(on_subscriber('SELECT * FROM triggered WHERE id = 2'), '2|20|remote|1', '... on the row that is written');
on_subscriber("INSERT INTO triggered VALUES (3, 3, 'local')");
on_publisher("INSERT INTO triggered VALUES (4, 3, 'remote')");
caught_up();
is(firings(), 'delete 3, after delete 3, insert 4, after insert 4', 'one that takes a value fires them for both rows, once');
on_subscriber("INSERT INTO triggered VALUES (5, 5, 'local')");
on_publisher("UPDATE triggered SET u = 5 WHERE id = 4");
caught_up();
is(firings(), 'delete 5, after delete 5, update 4, after update 4', 'and so does an update');
is(on_subscriber('SELECT * FROM triggered WHERE id > 2'), '4|5|remote|2', '... with what the triggers make of it');
on_publisher("INSERT INTO triggered VALUES (6, 6, 'suppress'); UPDATE triggered SET v = 'suppress' WHERE id = 4");
caught_up();
is(on_subscriber('SELECT * FROM triggered WHERE id > 2'), '4|5|remote|2', 'triggers suppress an insert and an update');
firings();
on_subscriber("INSERT INTO triggered VALUES (7, 7, 'local')");
on_publisher("INSERT INTO triggered VALUES (70, 70, 'key 7')");
caught_up();
is(on_subscriber('SELECT * FROM triggered WHERE id >= 7'), '7|70|key 7|2', 'a trigger changes the key to one that exists here');
is(firings(), 'insert 70, update 7, after update 7', '... having fired for the insert once');

set_options('disable_on_error = true');
mark_log();
on_subscriber("INSERT INTO triggered VALUES (8, 8, 'protected')");
on_publisher("INSERT INTO triggered VALUES (9, 8, 'remote')");
$subscriber->wait_for_log(qr/subscription "sub" has been disabled because of an error/, $logstart);
like(logged(), qr/a trigger of table "triggered" keeps a row that is in the way/, 'a trigger keeps the row that is to go: an error that says so');
on_subscriber("DELETE FROM triggered WHERE id = 8; UPDATE triggered SET v = '' WHERE id = 8; DELETE FROM triggered WHERE id = 8");
resume();
mark_log();
on_publisher("UPDATE triggered SET v = 'unique 5' WHERE id = 9");
$subscriber->wait_for_log(qr/subscription "sub" has been disabled because of an error/, $logstart);
like(logged(), qr/duplicate key value violates unique constraint "triggered_u_key"/, "a trigger's own collision, in an update: likewise");
on_subscriber('UPDATE triggered SET u = 50 WHERE id = 4');
resume();
is(on_subscriber('SELECT u FROM triggered WHERE id = 9'), '5', '... and goes on');
set_options('disable_on_error = false');

# ---- generated columns -----------------------------------------------------------------------------

tables(q{
	CREATE TABLE generated (id int PRIMARY KEY, n int, long text);
	ALTER TABLE generated ALTER long SET STORAGE EXTERNAL;
}, q{
	CREATE TABLE generated (id int PRIMARY KEY, n int, long text, own int DEFAULT 7,
		tenfold int GENERATED ALWAYS AS (n / 10) STORED UNIQUE,
		owned int GENERATED ALWAYS AS (own * 2) STORED, length int GENERATED ALWAYS AS (length(long)) STORED);
	ALTER TABLE generated ALTER long SET STORAGE EXTERNAL;
});
on_publisher("INSERT INTO generated VALUES (1, 10, repeat('x', 5000))");
caught_up();
# The worker starts again, so that an update is the first thing it does to the table.
pause();
resume();
on_publisher('UPDATE generated SET n = 11 WHERE id = 1');
caught_up();
on_publisher("INSERT INTO generated VALUES (2, 20, repeat('x', 6000))");
caught_up();
is(on_subscriber('SELECT id, n, own, tenfold, owned, length FROM generated ORDER BY id'),
	"1|11|7|1|14|5000\n2|20|7|2|14|6000", 'generated columns are computed, whatever came first');
on_subscriber('INSERT INTO generated VALUES (3, 30)');
on_publisher('UPDATE generated SET n = 35 WHERE id = 2');
caught_up();
is(on_subscriber('SELECT id, n, tenfold FROM generated ORDER BY id'), "1|11|1\n2|35|3",
	'a generated value that is taken, by an update');
on_subscriber('INSERT INTO generated VALUES (4, 40)');
on_publisher('INSERT INTO generated VALUES (5, 45)');
caught_up();
is(on_subscriber('SELECT id, n, tenfold FROM generated WHERE id > 2'), '5|45|4', '... by an insert');

# ---- columns that were not sent ------------------------------------------------------------------------

mark_log();
on_subscriber('DELETE FROM generated WHERE id = 1');
set_options('disable_on_error = true');
on_publisher('UPDATE generated SET n = 12 WHERE id = 1');
$subscriber->wait_for_log(qr/subscription "sub" has been disabled because of an error/, $logstart);
like(logged(), qr/the change does not contain column "long", an unchanged out-of-line value/, 'an out-of-line value that was not sent');
unlike(logged(), qr/remote change applied/, '... and nothing claims that the change was applied');
set_options('update_deleted = skip, disable_on_error = false');
resume();
is(on_subscriber('SELECT count(*) FROM generated WHERE id = 1'), '0', '... skip lets it go on');
set_options('update_deleted = DEFAULT');

on_publisher('ALTER TABLE generated REPLICA IDENTITY FULL');
on_subscriber('DELETE FROM generated WHERE id = 2');
on_publisher('UPDATE generated SET n = 21 WHERE id = 2');
caught_up();
is(on_subscriber('SELECT n, own, length FROM generated WHERE id = 2'), '21|7|6000', 'with full identity the old row has it, and own columns their defaults');

# A table with full identity, whose partition has not: it sends its key as if it were the row.
tables(q{
	CREATE TABLE half (id int PRIMARY KEY, long text) PARTITION BY RANGE (id);
	CREATE TABLE half_1 PARTITION OF half DEFAULT;
	ALTER TABLE half_1 ALTER long SET STORAGE EXTERNAL;
	ALTER TABLE half REPLICA IDENTITY FULL;
});
set_options('conflict_resolution = apply_remote');
on_publisher("INSERT INTO half VALUES (1, repeat('x', 5000))");
caught_up();
on_subscriber('DELETE FROM half');
mark_log();
on_publisher('UPDATE half SET id = 2');
ok($subscriber->wait_for_log(qr/cannot insert the row of an UPDATE because the publisher did not send column "long"/, $logstart),
	'a partition that has not the full identity of its table');
set_options('update_deleted = skip');
caught_up();
is(rows('half'), '', '... and no row without its value is inserted');
set_options('update_deleted = DEFAULT, conflict_resolution = last_update_wins');

# ---- another owner --------------------------------------------------------------------------------------

on_subscriber(q{
	CREATE ROLE owner;
	CREATE SCHEMA AUTHORIZATION owner;
	CREATE TABLE who (by name);
	GRANT INSERT ON who TO PUBLIC;
});
tables(q{
	CREATE TABLE owned (id int PRIMARY KEY, u int UNIQUE, v text);
}, q{
	CREATE TABLE owned (id int PRIMARY KEY, u int UNIQUE, v text);
	CREATE FUNCTION note_who() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.who VALUES (current_user);
		RETURN NEW;
	END $$;
	CREATE TRIGGER note_who BEFORE INSERT OR UPDATE ON owned FOR EACH ROW EXECUTE FUNCTION public.note_who();
	ALTER TABLE owned ENABLE REPLICA TRIGGER note_who;
	ALTER TABLE owned OWNER TO owner;
});
set_options('run_as_owner = false');
on_subscriber("INSERT INTO owned VALUES (1, 1, 'local'), (2, 2, 'local')");
on_publisher("INSERT INTO owned VALUES (1, 2, 'remote')");
caught_up();
is(rows('owned'), '1|2|remote', 'run_as_owner = false: conflicts are resolved');
is(on_subscriber('SELECT DISTINCT by FROM who'), 'owner', "... with the rights of the table's owner");

# ---- a row that begins to pass the filter ---------------------------------------------------------------

# It comes as an INSERT, without the large value that the UPDATE did not change.
on_subscriber('DROP SUBSCRIPTION sub');
foreach my $node ($publisher, $subscriber)
{
	$node->safe_psql('postgres', q{
		CREATE TABLE passing (id int PRIMARY KEY, v text, long text);
		ALTER TABLE passing ALTER long SET STORAGE EXTERNAL});
}
on_publisher('CREATE PUBLICATION passing FOR TABLE passing WHERE (id > 10)');
on_publisher("INSERT INTO passing SELECT g, 'old', repeat('x', 5000) FROM generate_series(1, 2) g");
on_subscriber(sprintf("CREATE SUBSCRIPTION sub CONNECTION '%s' PUBLICATION passing WITH (conflict_resolution = apply_remote)",
		connstr($publisher)));
$subscriber->wait_for_subscription_sync($publisher, 'sub');
on_subscriber("INSERT INTO passing VALUES (11, 'here', 'here')");
on_publisher("UPDATE passing SET id = 11, v = 'new' WHERE id = 1");
caught_up();
is(rows('passing'), '11|new|here', 'a row that begins to pass the filter, and is here');
mark_log();
on_publisher("UPDATE passing SET id = 12 WHERE id = 2");
ok($subscriber->wait_for_log(qr/cannot insert the row of an UPDATE because the publisher did not send column "long"/, $logstart),
	'... and one that is not');
on_subscriber("INSERT INTO passing VALUES (12, 'copied', 'copied')");
caught_up();
is(rows('passing'), "11|new|here\n12|old|copied", '... until it has been copied by hand');

# ---- nothing went wrong unnoticed ------------------------------------------------------------------------

unlike(slurp_file($subscriber->logfile), qr/(leak|not owned by resource owner|TRAP|PANIC|terminated by signal)/, 'no leaks and no crashes');

$subscriber->stop;
$publisher->stop;
done_testing();
