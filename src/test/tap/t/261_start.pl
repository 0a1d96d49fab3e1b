# What goes wrong here: a server that PostgreSQL starts does not start, or does not commit, with
# KrahoDB: after pg_resetwal has left transaction ids out.

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

$node->stop;
$node->command_ok([ 'pg_resetwal', '-f', '-x', 2 * 1048576, '-D', $node->data_dir ], 'transaction ids are left out');
$node->start;
is($node->safe_psql('postgres', 'INSERT INTO t VALUES (10) RETURNING id'), '10', 'a transaction commits');
$node->restart;
is($node->safe_psql('postgres', 'INSERT INTO t VALUES (20) RETURNING id'), '20', '... and after another start');

$node->stop;
done_testing();
