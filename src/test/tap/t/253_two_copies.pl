# What goes wrong here: two subscriptions copy a table in ranges at the same time, from
# different publishers.  What is done is marked for the table, and there is one place for that:
# the second one must see what the first one is about to do.

use strict;
use warnings;

use KrahoDB::Copy;
use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

start_nodes();
my $other = krahodb_node('other');

foreach my $node ($sub, $pub, $other)
{
	$node->safe_psql('postgres', 'CREATE TABLE t (id int, pad text)');
}
$pub->safe_psql('postgres', q{INSERT INTO t SELECT g, repeat('x', 100) FROM generate_series(1, 5000) g; CREATE PUBLICATION one FOR TABLE t});
$other->safe_psql('postgres', q{INSERT INTO t SELECT g, repeat('x', 100) FROM generate_series(10001, 15000) g; CREATE PUBLICATION two FOR TABLE t});

my $held = hold_at('copy_prepared');
my $offset = subscribe('one', 'disable_on_error = true');
$held->();
subscribe('two', 'disable_on_error = true', from => $other);
$sub->poll_query_until('postgres', 'SELECT count(*) > 0 FROM pg_locks WHERE NOT granted') or die 'timed out waiting for the second copy';
let_go();
wait_ready();
is($sub->safe_psql('postgres', 'SELECT count(*), count(DISTINCT id), sum(id) FROM t'), '10000|10000|75005000', 'both copies are complete');
unlike(slurp_file($sub->logfile, $offset), qr/ERROR/, 'without an error');
is($sub->safe_psql('postgres', 'SELECT count(*) FROM pg_seclabel'), '0', 'no marks are left');

# The two find what a subscription that is gone has left, and copy the table as a whole.
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION one');
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION two');
$sub->safe_psql('postgres', 'TRUNCATE t');
$held = hold_at('copy_range_after_commit@2');
subscribe('one', '');
$held->();
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION one');
isnt($sub->safe_psql('postgres', 'SELECT count(*) FROM pg_seclabel'), '0', 'marks are left');
$sub->safe_psql('postgres', 'TRUNCATE t');
$sub->append_conf('postgresql.conf', 'krahodb.copy_workers_per_table = 0');
$held = hold_at('copy_prepared');
$offset = subscribe('one', 'disable_on_error = true');
$held->();
subscribe('two', 'disable_on_error = true', from => $other);
$sub->poll_query_until('postgres', 'SELECT count(*) > 0 FROM pg_locks WHERE NOT granted') or die 'timed out waiting for the second copy';
let_go();
wait_ready();
is($sub->safe_psql('postgres', 'SELECT count(*), count(DISTINCT id), sum(id) FROM t'), '10000|10000|75005000', 'both copies are complete');
unlike(slurp_file($sub->logfile, $offset), qr/ERROR/, 'without an error');

$_->stop foreach $sub, $pub, $other;
done_testing();
