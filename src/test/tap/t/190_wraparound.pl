# What goes wrong here: a row is so old that its transaction id has come round again.  It is
# frozen, so to the engine that does not matter; but by the id it seems to be written by the
# recent transaction that has it now, and what others have written before that loses to it.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $publisher = krahodb_node('publisher');
my $node = krahodb_node('node');

sub on { my ($server, $query) = @_; return $server->safe_psql('postgres', $query); }

foreach my $server ($publisher, $node)
{
	on($server, 'CREATE EXTENSION krahodb; CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE, v text)');
}
on($publisher, "CREATE PUBLICATION pub FOR TABLE t; INSERT INTO t VALUES (1, 1, 'ancient')");
on($publisher, q{SELECT pg_create_logical_replication_slot('sub', 'krahodb_output')});
my $xid = on($node, "BEGIN; INSERT INTO t VALUES (1, 1, 'ancient'), (2, 2, 'ancient') RETURNING xmin; COMMIT");
$xid =~ s/\n.*//s;
# ids that the next round reaches before that one
on($node, 'SELECT txid_current()') foreach 1 .. 200;

# ---- once round -----------------------------------------------------------------------

# All rows are frozen at each stage, as autovacuum would have done.
sub go_to
{
	my ($epoch, $next) = @_;
	my $data = $node->data_dir;

	on($node, 'UPDATE pg_database SET datallowconn = true');
	$node->safe_psql($_, 'VACUUM (FREEZE)') foreach split /\n/, on($node, 'SELECT datname FROM pg_database');
	on($node, 'CHECKPOINT');
	$node->stop;
	command_ok([ 'pg_resetwal', '-e', $epoch, '-x', $next, $data ], "next transaction id $epoch:$next");

	# the transaction log of there, as if it had been written
	my $segment = sprintf('%s/pg_xact/%04X', $data, $next / 1048576);
	if (!-e $segment)
	{
		open my $file, '>', $segment or die "$segment: $!";
		binmode $file;
		print $file "\0" x 262144;
		close $file or die "$segment: $!";
		chmod 0600, $segment;
	}
	$node->start;
	return;
}

go_to(0, 1430 * 1048576);
go_to(0, 2860 * 1048576);
my $near = $xid - 100;
go_to(1, $near);
on($node, 'SELECT txid_current()') foreach 1 .. 10;

# ---- a recent transaction has the id ------------------------------------------------------

on($node, sprintf("CREATE SUBSCRIPTION sub CONNECTION '%s' PUBLICATION pub WITH (origin = none, copy_data = false, create_slot = false, enabled = false)",
		connstr($publisher)));
$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_replication_slots WHERE slot_name = 'krahodb_horizon' AND active")
  or die 'nothing is kept';
cmp_ok(on($node, 'SELECT txid_current()') & 0xffffffff, '<', $xid, 'not there yet');
on($publisher, "UPDATE t SET v = 'newer' WHERE id = 1; INSERT INTO t VALUES (3, 2, 'newer')");
my $now = 0;
$now = on($node, 'INSERT INTO t VALUES (99, 99); DELETE FROM t WHERE id = 99; SELECT txid_current()') & 0xffffffff
  while $now < $xid;
is(on($node, 'SELECT xmin FROM t WHERE id = 1'), $xid, 'the row has an id of this round');
isnt(on($node, "SELECT pg_xact_commit_timestamp('$xid')"), '', 'which is known');

on($node, 'ALTER SUBSCRIPTION sub ENABLE');
wait_streams(1, [ $publisher, 'sub' ]);
is(on($node, 'SELECT * FROM t ORDER BY id'), "1|1|newer\n3|2|newer", 'the ancient rows are older');

done_testing();
