#
# One large transaction with streaming = on: from its start at the publisher until it is
# applied.  "early" applies it while it arrives (with apply_workers), "spill" when it has
# ended.
#
# Environment: BENCH_ROWS (1000000), and that of KrahoDB::Bench.
#
use strict;
use warnings;

use KrahoDB::Bench;
use Test::More;
use Time::HiRes qw(time);

my $rows = setting('ROWS', 1_000_000);

sub schema
{
	$_[0]->safe_psql('postgres', 'CREATE TABLE bulk (id bigint PRIMARY KEY, a int, b text, c timestamptz)');
}

my @statements = (
	[ insert => "INSERT INTO bulk SELECT i, i % 1000, 'row number ' || i, now() FROM generate_series(1, $rows) i" ],
	[ update => 'UPDATE bulk SET a = a + 1' ],
	[ delete => 'DELETE FROM bulk' ]);

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

contender(name => 'stock', schema => \&schema, options => 'streaming = on');
contender(name => 'spill', kind => 'krahodb', schema => \&schema, options => 'streaming = on');
contender(
	name => 'early',
	kind => 'krahodb',
	schema => \&schema,
	options => 'streaming = on, apply_workers = 2');
rounds(
	sub {
		my ($round) = @_;
		foreach my $statement (@statements)
		{
			my ($name, $query) = @$statement;
			in_turns($round, "streamed, $rows x $name", 's', 'less', sub { to_the_end($_[0], $query) });
			check_equal('bulk') if $round == 1;
		}
		vacuum_all();
	});
bench_report();
done_testing();
