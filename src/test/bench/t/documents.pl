#
# Rows with documents (jsonb), inserted and updated by one transaction: time from the release of
# the walsender to applied.
#
# Environment: BENCH_ROWS (200000), and that of KrahoDB::Bench.
#
use strict;
use warnings;

use KrahoDB::Bench;
use Test::More;

my $rows = setting('ROWS', 200_000);
my @statements = (
	[ insert => "INSERT INTO document SELECT i, jsonb_build_object('id', i, 'name', 'row number ' || i,
		'tags', jsonb_build_array('a', 'b', i), 'price', i * 1.5, 'ok', true,
		'address', jsonb_build_object('street', 'street ' || i % 1000, 'number', i % 100)) FROM generate_series(1, $rows) i" ],
	[ update => q(UPDATE document SET d = jsonb_set(d, '{price}', '2.75')) ]);

sub schema
{
	my ($node) = @_;

	$node->safe_psql('postgres', 'CREATE TABLE document (id bigint PRIMARY KEY, d jsonb)');
	return;
}

contender(name => $_, schema => \&schema) foreach wanted_contenders();
rounds(
	sub {
		my ($round) = @_;

		foreach my $statement (@statements)
		{
			my ($name, $query) = @$statement;

			in_turns($round, "documents, $rows x $name", 's', 'less', sub { return drain($_[0], sql($query)); });
			check_equal('document') if $round == 1;
		}
		sql('TRUNCATE document')->($_) foreach contenders();
		vacuum_all();
	});
bench_report();
done_testing();
