# What goes wrong here: a publisher was away for too long, and who is to mark its subscription as
# stale finds it locked by somebody.  If he waits for that, the apply worker has to wait behind
# him when the publisher is back; and then it is marked, though nothing is wrong any more.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my ($a, $b) = map { krahodb_node($_) } qw(a b);

sub on { my ($node, $query) = @_; return $node->safe_psql('postgres', $query); }

foreach my $node ($a, $b)
{
	on($node, 'CREATE EXTENSION krahodb; CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE t');
}
on($a, sprintf("CREATE SUBSCRIPTION a_from_b CONNECTION '%s' PUBLICATION pub WITH (origin = none, copy_data = false)", connstr($b)));
wait_horizon($a);

on($a, q{BEGIN; COMMENT ON SUBSCRIPTION a_from_b IS 'mine'; PREPARE TRANSACTION 'lock'});
$b->stop;
$a->append_conf('postgresql.conf', "krahodb.max_retention = '1s'");
reload_settings($a);
on($a, 'INSERT INTO t VALUES (1); DELETE FROM t');
$a->wait_for_log(qr/subscription "a_from_b" cannot be marked as stale because it is locked/);
is(on($a, "SELECT state <> 'stale' FROM krahodb.horizon"), 't', 'it is not marked');

$b->start;
$a->append_conf('postgresql.conf', "krahodb.max_retention = '1h'");
reload_settings($a);
on($b, 'INSERT INTO t VALUES (2)');
$b->wait_for_catchup('a_from_b');
ok($a->poll_query_until('postgres', "SELECT state = 'ok' FROM krahodb.horizon"), 'the publisher is back');
on($a, q{COMMIT PREPARED 'lock'});

on($b, 'INSERT INTO t VALUES (3)');
$b->wait_for_catchup('a_from_b');
is(on($a, 'SELECT count(*) FROM t'), 2, 'its changes come');
unlike(slurp_file($a->logfile), qr/is stale/, 'and nobody says that it is stale');

$_->stop foreach ($a, $b);
done_testing();
