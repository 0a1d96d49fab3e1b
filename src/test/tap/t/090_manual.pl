# What goes wrong here: the manual says something that is not true (any more).
# Every example of doc/*.md that names a node is run there, and what the page says
# that it prints is compared; KrahoDB::Manual has the rules.

use strict;
use warnings;

use KrahoDB::Manual;
use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $doc = "$ENV{KDB_SRCDIR}/doc";

# Pages whose examples must be run; one without any has lost its marks.
foreach my $page (qw(tutorial hub-and-branches options conflicts))
{
	ok((grep { $_->{node} } blocks_of("$doc/$page.md")), "$page.md has examples that are run");
}

foreach my $file (sort glob("$doc/*.md"))
{
	run_page($file) if grep { $_->{node} } blocks_of($file);
}

done_testing();
