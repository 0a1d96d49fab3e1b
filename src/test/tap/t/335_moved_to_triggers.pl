#
# Rows that an UPDATE moves into a partition whose triggers and CHECKs read tables, with lanes.
# What goes wrong here: they do not see what earlier transactions have written, for which the lane waits when it
# opens that partition; triggers there need tables that nobody has open, and earlier changes have left them so.
#
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use KrahoDB::Nodes;
use Test::More;

# Each test says what it wants.
delete $ENV{KDB_TEST_APPLY_WORKERS};

my $publisher = krahodb_node('publisher');
my $subscriber = krahodb_node('subscriber');

sub there { return $publisher->safe_psql('postgres', $_[0]); }
sub here { return $subscriber->safe_psql('postgres', $_[0]); }

sub wait_for
{
	my ($query, $what) = @_;

	$subscriber->poll_query_until('postgres', $query) or die "no $what";
	return;
}

$_->safe_psql('postgres', <<'EOS') foreach $publisher, $subscriber;
CREATE TABLE item (id int PRIMARY KEY, n int);
CREATE TABLE event (id bigint, what text);
CREATE TABLE scratch (id int PRIMARY KEY);
EOS
there(<<'EOS');
CREATE TABLE moved (id int, part int, PRIMARY KEY (id, part));
CREATE PUBLICATION p FOR ALL TABLES;
EOS
here(<<'EOS');
CREATE EXTENSION krahodb;
CREATE TABLE moved (id int, part int, saw int, PRIMARY KEY (id, part)) PARTITION BY LIST (part);
SELECT format('CREATE TABLE moved_%s PARTITION OF moved FOR VALUES IN (%1$s)', i) FROM generate_series(1, 4) i \gexec
CREATE FUNCTION n_of() RETURNS int LANGUAGE sql STABLE AS 'SELECT n FROM public.item WHERE id = 1';

CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql STABLE AS
	$$ BEGIN NEW.saw := public.n_of(); RETURN NEW; END $$;
CREATE TRIGGER look BEFORE INSERT ON moved_2 FOR EACH ROW EXECUTE FUNCTION look();
ALTER TABLE moved_2 ENABLE REPLICA TRIGGER look;

ALTER TABLE moved_3 ADD CHECK (public.n_of() = id);

CREATE FUNCTION clear() RETURNS trigger LANGUAGE plpgsql AS
	$$ BEGIN TRUNCATE public.scratch; RETURN NEW; END $$;
CREATE TRIGGER clear BEFORE INSERT ON moved_4 FOR EACH ROW EXECUTE FUNCTION clear();
ALTER TABLE moved_4 ENABLE REPLICA TRIGGER clear;
EOS
here("CREATE SUBSCRIPTION sub CONNECTION '" . connstr($publisher) .
	"' PUBLICATION p WITH (copy_data = false, apply_workers = 2, disable_on_error = true)");
$subscriber->wait_for_subscription_sync($publisher, 'sub');
there('INSERT INTO item VALUES (1, 0)');

sub have_lanes
{
	my $until = time + $PostgreSQL::Test::Utils::timeout_default;

	while (time < $until)
	{
		there(join '', map { "INSERT INTO event VALUES ($_, 'wake up');\n" } 1 .. 100);
		$publisher->wait_for_catchup('sub');
		return if here("SELECT count(*) FILTER (WHERE pid IS NOT NULL AND state <> 'starting') FROM krahodb.lanes") >= 2;
	}
	die 'there are not two lanes';
}

# The transaction that moves the row waits for the one before it, and that for a local session.
sub move_behind
{
	my ($n, $move) = @_;
	my $session;

	have_lanes();
	$session = $subscriber->background_psql('postgres');
	$session->query_safe('BEGIN; SELECT FROM item WHERE id = 1 FOR UPDATE');
	there("UPDATE item SET n = $n WHERE id = 1;\n$move");
	wait_for("SELECT count(*) = 1 FROM krahodb.lanes WHERE state IN ('waiting for an earlier transaction', 'waiting to commit')", 'lane that waits');
	$session->query_safe('COMMIT');
	$session->quit;
	return;
}

# Moved, or there is an error, after which nothing is applied.
sub settled
{
	my ($id) = @_;

	wait_for("SELECT EXISTS (SELECT FROM moved WHERE id = $id AND part > 1) OR EXISTS (SELECT FROM pg_subscription WHERE NOT subenabled)", 'end of the change');
	return here("SELECT part, subenabled FROM moved, pg_subscription WHERE id = $id");
}

# A subscription that an error has disabled goes on, without the change that it could not make.
sub go_on
{
	return if here('SELECT subenabled FROM pg_subscription') eq 't';
	here('ALTER TABLE moved_3 DROP CONSTRAINT IF EXISTS moved_3_check; ALTER SUBSCRIPTION sub ENABLE');
	$publisher->wait_for_catchup('sub');
	here('ALTER TABLE moved_3 ADD CHECK (public.n_of() = id) NOT VALID');
	return;
}

my $base = 0;
foreach my $resolution ('none', 'last_update_wins')
{
	my $name = $resolution eq 'none' ? 'no resolvers' : $resolution;
	my ($seen, $checked, $cleared, $direct) = map { $base + $_ } 1 .. 4;

	here("ALTER SUBSCRIPTION sub SET (conflict_resolution = $resolution)") if $resolution ne 'none';
	$base += 10;
	there("INSERT INTO moved VALUES ($seen, 1), ($checked, 1), ($cleared, 1)");

	move_behind($seen, "UPDATE moved SET part = 2 WHERE id = $seen");
	is(settled($seen), '2|t', "$name: a row is moved to a partition with a trigger");
	is(here("SELECT saw FROM moved WHERE id = $seen"), $seen, '... which sees what the transaction before has written');

	move_behind($checked, "UPDATE moved SET part = 3 WHERE id = $checked");
	is(settled($checked), '3|t', "$name: so does a CHECK");
	go_on();

	there("BEGIN; INSERT INTO scratch VALUES ($direct); INSERT INTO moved VALUES ($direct, 4); COMMIT");
	is(settled($direct), '4|t', "$name: a trigger truncates a table that was changed before");
	there("BEGIN; INSERT INTO scratch VALUES ($cleared); UPDATE moved SET part = 4 WHERE id = $cleared; COMMIT");
	is(settled($cleared), '4|t', '... also where the row is moved to it');
	last if here('SELECT subenabled FROM pg_subscription') ne 't';
	is(here('SELECT count(*) FROM scratch'), '0', '... which is empty');
}

$subscriber->stop;
$publisher->stop;
done_testing();
