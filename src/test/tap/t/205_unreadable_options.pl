# What goes wrong here: the options of one subscription cannot be read by the launcher and
# the horizon worker, which are connected to no database: they are too long to be stored in
# line, or of a newer version.  All other subscriptions of the server stand still, or a
# publisher that cannot be asked is taken for one that is away.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $pub = krahodb_node('pub');
my $sub = krahodb_node('sub', conf => 'krahodb.max_retention = 1s');

foreach my $node ($pub, $sub)
{
	$node->safe_psql('postgres', 'CREATE EXTENSION krahodb');
	$node->safe_psql('postgres', "CREATE TABLE $_ (id int PRIMARY KEY)") foreach ('a', 'b', 'c');
}

sub subscribe
{
	my ($name, $options, $more) = @_;

	$pub->safe_psql('postgres', "CREATE PUBLICATION $name FOR TABLE $name");
	$sub->safe_psql('postgres', sprintf(
			"CREATE SUBSCRIPTION %s CONNECTION '%s' PUBLICATION %s WITH (copy_data = false%s)",
			$name, connstr($pub) . ($more // ''), $name, $options));
	return;
}

# New workers are started, and bring what comes.
my $id = 0;

sub goes_on
{
	my ($test, @tables) = @_;

	$id++;
	$sub->safe_psql('postgres', 'SELECT pg_terminate_backend(pid) FROM pg_stat_subscription WHERE pid IS NOT NULL');
	$pub->safe_psql('postgres', "INSERT INTO $_ VALUES ($id)") foreach @tables;
	foreach my $table (@tables)
	{
		ok($sub->poll_query_until('postgres', "SELECT count(*) = 1 FROM $table WHERE id = $id"), "$test: $table");
	}
	return;
}

sub reason { return $sub->safe_psql('postgres', "SELECT reason FROM krahodb.horizon WHERE subscription = '$_[0]'"); }

# Numbers that do not compress well.
my $list = join(', ', map { 1000 + ($_ * 7919) % 60000 } 1 .. 3000);

subscribe('a', '');
subscribe('b', ", filter_origins = '$list'");
goes_on('a long list of origins', 'a', 'b');
$sub->poll_query_until('postgres', "SELECT state = 'unreachable' FROM krahodb.horizon WHERE subscription = 'b'");
is(reason('b'), 'the options of the subscription cannot be read by the horizon worker', 'which the horizon says');

# A connection string that is too long, and does not mean anything more.
my $long = join('', map { sprintf('%x', ($_ * 7919) % 60013) } 1 .. 1500);

subscribe('c', ', origin = none', " sslkey=/$long");
goes_on('a long connection string', 'a', 'b', 'c');
$sub->poll_query_until('postgres',
	"SELECT count(*) = 2 AND bool_and(state IN ('unreachable', 'stale') AND since < now() - interval '3 s') FROM krahodb.horizon")
  or diag($sub->safe_psql('postgres', 'SELECT * FROM krahodb.horizon'));
goes_on('who cannot be asked is not stale', 'a', 'b', 'c');

# Options of a newer version.
my $offset = -s $sub->logfile;
$sub->safe_psql('postgres',
	q{SET allow_system_table_mods = on; UPDATE pg_shseclabel SET label = '{"newer": "1"}' WHERE provider = 'krahodb'});
$sub->restart;
$pub->safe_psql('postgres', 'INSERT INTO b VALUES (1000)');
goes_on('unknown options', 'a');
$sub->wait_for_log(qr/ERROR:  unrecognized subscription parameter: "newer"\n.*CONTEXT:  options of the subscription with OID/, $offset);
is($sub->safe_psql('postgres', "SELECT count(*) FROM b WHERE id = 1000"), '0', 'the one that they are of stands still');


# They can be made anew.
$sub->safe_psql('postgres', "SECURITY LABEL FOR krahodb ON SUBSCRIPTION b IS NULL; SECURITY LABEL FOR krahodb ON SUBSCRIPTION c IS NULL");
goes_on('after a repair', 'a', 'b', 'c');

$sub->stop;
$pub->stop;
done_testing();
