# What goes wrong here: a server without peers follows its clock, which is an hour ahead
# for a while.  With the first peer, its horizon would be an hour ahead for good: all that
# happens in that hour would be forgotten at once.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my ($library) = grep { -e } glob('/usr/lib/*/faketime/libfaketime.so.1');
plan skip_all => 'libfaketime is not installed' if !$library;

my $node = krahodb_node('node');
my $clock = $node->basedir . '/clock';

sub set_clock
{
	my ($offset) = @_;

	append_to_file("$clock.new", "$offset\n");
	rename "$clock.new", $clock or die "$clock: $!";
	return;
}

$node->safe_psql('postgres', 'CREATE EXTENSION krahodb');
my $started = $node->safe_psql('postgres', 'SELECT clock_timestamp()');
set_clock('+0');
$node->stop;
{
	local $ENV{LD_PRELOAD} = "$ENV{KDB_CLOCK_SELECT} $library";
	local $ENV{FAKETIME_TIMESTAMP_FILE} = $clock;
	local $ENV{FAKETIME_NO_CACHE} = 1;
	local $ENV{FAKETIME_DONT_FAKE_MONOTONIC} = 1;
	$node->start;
}

# nothing is committed meanwhile
set_clock('+3600');
reload_settings($node);
$node->poll_query_until('postgres', "SELECT horizon > '$started'::timestamptz + interval '1 h' FROM krahodb.horizon_state()")
  or die 'the horizon does not follow the clock';
set_clock('+0');
$node->safe_psql('postgres', "CREATE SUBSCRIPTION s CONNECTION 'host=/nowhere' PUBLICATION p WITH (origin = none, connect = false)");
$node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_replication_slots WHERE slot_name = 'krahodb_horizon' AND active}) or die 'no peer';
is($node->safe_psql('postgres', 'SELECT horizon <= clock_timestamp() FROM krahodb.horizon_state()'), 't', 'it is not ahead of the clock');
$node->restart;
is($node->safe_psql('postgres', 'SELECT horizon <= clock_timestamp() FROM krahodb.horizon_state()'), 't', 'nor after a restart');
$node->safe_psql('postgres', 'ALTER SUBSCRIPTION s SET (slot_name = NONE); DROP SUBSCRIPTION s');

$node->stop;
done_testing();
