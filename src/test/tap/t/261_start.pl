# What goes wrong here: a server that PostgreSQL starts does not start, or does not commit, with
# KrahoDB: after pg_resetwal has left transaction ids out, or without room for background workers.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = krahodb_node('node');

# The clock rule holds, so who commits first after a start looks at the newest commit timestamps.
$node->safe_psql('postgres', q{
	CREATE TABLE t (id int PRIMARY KEY);
	INSERT INTO t VALUES (1);
	CREATE SUBSCRIPTION s CONNECTION 'host=/nowhere' PUBLICATION p
		WITH (connect = false, slot_name = NONE, enabled = false, origin = none)});

# ---- pg_resetwal ---------------------------------------------------------------------

# The first one begins in the second file of commit timestamps, when the first one ends after a page.
foreach my $xid (27000, 2 * 1048576)
{
	$node->stop;
	$node->command_ok([ 'pg_resetwal', '-f', '-x', $xid, '-D', $node->data_dir ], 'transaction ids are left out');
	$node->start;
	is($node->safe_psql('postgres', "INSERT INTO t VALUES ($xid) RETURNING id"), $xid, 'a transaction commits');
	$node->restart;
	is($node->safe_psql('postgres', "INSERT INTO t VALUES ($xid + 1) RETURNING id"), $xid + 1, '... and after another start');
}

# ---- no background workers -------------------------------------------------------------

$node->append_conf('postgresql.conf', 'max_worker_processes = 0');
$node->restart;
is($node->safe_psql('postgres', 'INSERT INTO t VALUES (30) RETURNING id'), '30', 'a server without room for background workers starts and commits');
my ($out, $err) = run_command([ 'krahodb', 'check', $node->connstr('postgres') ]);
like($out, qr/^launcher \.\.\. MISSING: .* max_worker_processes above 0; /m, '... and krahodb check says what it lacks');

$node->stop;
done_testing();
