#
# One large transaction (KrahoDB::Bulk) with streaming = on: from its start at the
# publisher until it is applied.  "early" applies it while it arrives (with apply_workers),
# "spill" when it has ended.
#
use strict;
use warnings;

use KrahoDB::Bench;
use KrahoDB::Bulk;
use Test::More;
use Time::HiRes qw(time);

# Seconds until all of it is at the subscriber.
sub to_the_end
{
	my ($c, $query) = @_;

	wait_for_marker($c, set_marker($c));
	$c->{$_}->safe_psql('postgres', 'CHECKPOINT') foreach qw(publisher subscriber);
	my $start = time;
	sql($query)->($c);
	wait_for_marker($c, set_marker($c));
	return time - $start;
}

contender(name => 'stock', schema => \&bulk_schema, options => 'streaming = on');
contender(name => 'spill', kind => 'krahodb', schema => \&bulk_schema, options => 'streaming = on');
contender(
	name => 'early',
	kind => 'krahodb',
	schema => \&bulk_schema,
	options => 'streaming = on, apply_workers = 2');
bulk_rounds('streamed', \&to_the_end);
done_testing();
