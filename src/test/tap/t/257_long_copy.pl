# What goes wrong here: a table is copied for longer than a publisher may be away, and the
# publisher writes nothing meanwhile, so that its stream stands still.  It is not away.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $pub = krahodb_node('pub');
my $sub = krahodb_node('sub', conf => "krahodb.max_retention = '8s'");

foreach my $node ($pub, $sub)
{
	$node->safe_psql('postgres', 'CREATE EXTENSION krahodb; CREATE TABLE t (id int PRIMARY KEY)');
}
$pub->safe_psql('postgres', 'INSERT INTO t SELECT generate_series(1, 10); CREATE PUBLICATION s FOR TABLE t');

my $offset = -s $sub->logfile;
arm_fault($sub, 'sync_before_copy=wait');
reload_settings($sub);
$sub->safe_psql('postgres', sprintf(
		"CREATE SUBSCRIPTION s CONNECTION '%s' PUBLICATION s WITH (origin = none)", connstr($pub)));
$sub->wait_for_log(qr/fault point "sync_before_copy" reached/, $offset);
$sub->poll_query_until('postgres',
	"SELECT state = 'stale' OR state = 'copying tables' AND since < clock_timestamp() - interval '10 s' FROM krahodb.horizon");
is($sub->safe_psql('postgres', 'SELECT state FROM krahodb.horizon'), 'copying tables', 'a publisher is not stale while a table is copied');

$pub->stop('immediate');
$sub->append_conf('postgresql.conf', "krahodb.max_retention = '1s'");
reload_settings($sub);
ok($sub->poll_query_until('postgres', "SELECT state = 'stale' FROM krahodb.horizon"), 'unless it is down');

$sub->stop;
done_testing();
