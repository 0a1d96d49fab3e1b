# What goes wrong here: rows are copied to where others have their values, in ways that
# COPY does not notice (a deferrable constraint is not checked for a worker), or that
# are no unique index (an exclusion constraint).  The later row is to stay, alone.

use strict;
use warnings;

use KrahoDB::Copy;
use KrahoDB::Nodes;
use Test::More;

start_nodes();

my %constraint = (
	deferrable => 'UNIQUE (code) DEFERRABLE',
	excluded => 'EXCLUDE USING btree (code WITH =)',
	excluded_deferred => 'EXCLUDE USING btree (code WITH =) DEFERRABLE INITIALLY DEFERRED');

# Large enough for ranges, or not.
foreach my $rows (100, 3000)
{
	foreach my $name (sort keys %constraint)
	{
		my $table = "${name}_$rows";

		foreach my $node ($sub, $pub)
		{
			$node->safe_psql('postgres', "CREATE TABLE $table (id int PRIMARY KEY, code int, pad text, $constraint{$name})");
		}
		# older ones here; one of them is later
		$sub->safe_psql('postgres', "INSERT INTO $table SELECT g + 10000, g, 'here' FROM generate_series(1, 50) g");
		$pub->safe_psql('postgres', "INSERT INTO $table SELECT g, g, repeat('x', 100) FROM generate_series(1, $rows) g; CREATE PUBLICATION $table FOR TABLE $table");
		$sub->safe_psql('postgres', "UPDATE $table SET pad = 'later' WHERE id = 10007");
	}
}
foreach my $rows (100, 3000)
{
	foreach my $name (sort keys %constraint)
	{
		my $table = "${name}_$rows";
		my $offset = subscribe($table, 'origin = none');

		wait_ready();
		my $all = $sub->safe_psql('postgres', "SELECT count(*), count(DISTINCT code), max(code), string_agg(pad, ' ') FILTER (WHERE id > 10000) FROM $table");
		is($all, "$rows|$rows|$rows|later", "$table: the later row of each value");
		is(scalar(my @ranges = ranges_since($offset)) > 0 ? 1 : 0, $rows > 1000 ? 1 : 0, $rows > 1000 ? 'in ranges' : 'as a whole');
		$sub->safe_psql('postgres', "DROP SUBSCRIPTION $table");
	}
}

$sub->stop;
$pub->stop;
done_testing();
