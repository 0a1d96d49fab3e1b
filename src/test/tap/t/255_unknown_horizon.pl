# What goes wrong here: a table is copied from a node that does not know its retention
# horizon yet.  That passes, and is no reason to disable the subscription.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my ($pub, $sub) = my @nodes = map { krahodb_node($_) } qw(pub sub);

foreach my $node (@nodes)
{
	$node->safe_psql('postgres', 'CREATE EXTENSION krahodb; CREATE TABLE t (id int PRIMARY KEY)');
}
$pub->safe_psql('postgres', 'INSERT INTO t SELECT generate_series(1, 10); CREATE PUBLICATION s FOR TABLE t');

# a peer that nobody knows anything of
$pub->safe_psql('postgres', "CREATE SUBSCRIPTION silent CONNECTION 'host=/nowhere' PUBLICATION p WITH (origin = none, connect = false)");
$pub->stop;
unlink $pub->data_dir . '/krahodb/horizon';
$pub->start;

my $offset = -s $sub->logfile;
$sub->safe_psql('postgres', sprintf(
		"CREATE SUBSCRIPTION s CONNECTION '%s' PUBLICATION s WITH (origin = none, disable_on_error = true)", connstr($pub)));
$sub->wait_for_log(qr/the publisher's retention horizon is not known yet/, $offset);
$pub->safe_psql('postgres', 'ALTER SUBSCRIPTION silent SET (slot_name = NONE); DROP SUBSCRIPTION silent');
$sub->wait_for_subscription_sync($pub, 's');
is($sub->safe_psql('postgres', 'SELECT count(*) FROM t'), '10', 'it is copied once the horizon is known');
is($sub->safe_psql('postgres', 'SELECT subenabled FROM pg_subscription'), 't', 'the subscription was not disabled');

$sub->stop;
$pub->stop;
done_testing();
