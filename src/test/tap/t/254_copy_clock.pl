# What goes wrong here: the clock is set back while a table is copied with a rate limit.
# What has been received is paid for by time; that time must not be the clock's.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my ($library) = grep { -e } glob('/usr/lib/*/faketime/libfaketime.so.1');
plan skip_all => 'libfaketime is not installed' if !$library;

my $pub = krahodb_node('pub');
my $sub = krahodb_node('sub', conf => "krahodb.copy_rate_limit = '300kB'");
my $clock = $sub->basedir . '/clock';

sub set_clock
{
	my ($offset) = @_;

	append_to_file("$clock.new", "$offset\n");
	rename "$clock.new", $clock or die "$clock: $!";
	return;
}

set_clock('+0');
$sub->stop;
{
	local $ENV{LD_PRELOAD} = "$ENV{KDB_CLOCK_SELECT} $library";
	local $ENV{FAKETIME_TIMESTAMP_FILE} = $clock;
	local $ENV{FAKETIME_NO_CACHE} = 1;
	local $ENV{FAKETIME_DONT_FAKE_MONOTONIC} = 1;
	$sub->start;
}
$sub->safe_psql('postgres', 'CREATE EXTENSION krahodb');
$_->safe_psql('postgres', 'CREATE TABLE t (id int PRIMARY KEY, pad text)') foreach $pub, $sub;
$pub->safe_psql('postgres', q{INSERT INTO t SELECT g, repeat('x', 1000) FROM generate_series(1, 1000) g; CREATE PUBLICATION s FOR TABLE t});

$sub->safe_psql('postgres', sprintf("CREATE SUBSCRIPTION s CONNECTION '%s' PUBLICATION s", connstr($pub)));
# (on a machine that stands still for seconds it is over before we have looked)
$sub->poll_query_until('postgres', 'SELECT EXISTS (SELECT FROM krahodb.copy_progress WHERE bytes > 200000) OR (SELECT count(*) = 1000 FROM t)')
  or die 'nothing is copied';
set_clock('-3600');
$sub->poll_query_until('postgres', 'SELECT count(*) = 1000 FROM t') or die 'the copy waits for the clock';
$sub->wait_for_subscription_sync($pub, 's');
is($sub->safe_psql('postgres', 'SELECT count(*) FROM t'), '1000', 'the copy does not wait for the clock');

$sub->stop;
$pub->stop;
done_testing();
