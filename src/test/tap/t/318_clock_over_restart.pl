# What goes wrong here: a node's clock is ahead, and set right while the server is down.  What was deleted
# before has a time that is still to come.  If it is taken for older than now, it is forgotten as soon as the
# others have applied what was committed until now, and a change of theirs that loses to it everywhere
# brings the row back here.

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::Streams;
use PostgreSQL::Test::Utils;
use Test::More;

my ($library) = grep { -e } glob('/usr/lib/*/faketime/libfaketime.so.1');
plan skip_all => 'libfaketime is not installed' if !$library;

my ($left, $right) = map { krahodb_node($_, conf => "krahodb.max_clock_skew = '60s'\n") } qw(left right);
my $clock = $left->basedir . '/clock';

sub start_left
{
	my ($offset) = @_;

	open my $out, '>', $clock or die "$clock: $!";
	print $out "$offset\n";
	close $out or die "$clock: $!";
	local $ENV{LD_PRELOAD} = "$ENV{KDB_CLOCK_SELECT} $library";
	local $ENV{FAKETIME_TIMESTAMP_FILE} = $clock;
	local $ENV{FAKETIME_NO_CACHE} = 1;
	local $ENV{FAKETIME_DONT_FAKE_MONOTONIC} = 1;
	$left->start;
	return;
}

foreach my $node ($left, $right)
{
	on($node, 'CREATE EXTENSION krahodb; CREATE TABLE t (id int PRIMARY KEY, v text); CREATE PUBLICATION pub FOR TABLE t');
}
on($_, 'INSERT INTO t VALUES (1, $$first$$)') foreach ($left, $right);
subscribe($left, $right, 'copy_data = false');
subscribe($right, $left, 'copy_data = false');
$left->stop;
start_left('+30s');

# right has applied all of left until a time that is still to come
$right->poll_query_until('postgres', q{SELECT txid_current() IS NOT NULL AND bool_and(applied_until > now() + interval '20s') FROM krahodb.horizon})
  or die 'right does not hear of the clock of left';
pause($right, $left);
on($left, 'DELETE FROM t');
$left->stop('immediate');
start_left('+0');

# Whoever writes on left would have to wait; so nobody does.
$left->poll_query_until('postgres', q{SELECT applied_until > pg_postmaster_start_time() + interval '2s' FROM krahodb.horizon})
  or die 'left does not hear of right';
my (undef, undef, $messages) = $left->psql('postgres', 'VACUUM (VERBOSE) t');
like($messages, qr/1 are dead but not yet removable/, 'what was deleted is kept: right may change it');

done_testing();
