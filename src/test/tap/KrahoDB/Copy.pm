# KrahoDB::Copy: two nodes, of which $sub copies tables of $pub in many small ranges.
#
# Subscriptions have the name of their publication.  hold_at() stops processes of the
# copy at a fault point, until let_go().

package KrahoDB::Copy;

use strict;
use warnings;

use Exporter 'import';
use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;

our @EXPORT = qw($pub $sub start_nodes subscribe wait_ready hold_at let_go ranges_since);

our ($pub, $sub);

sub start_nodes
{
	$pub = krahodb_node('pub');
	$sub = krahodb_node('sub', conf => "krahodb.copy_range_size = 64kB\nkrahodb.copy_workers_per_table = 3");
	return;
}

# %params: from => another publisher, user => of the connection.  Returns where the log of
# $sub ended before.
sub subscribe
{
	my ($name, $options, %params) = @_;
	my $connstr = connstr($params{from} // $pub) . ($params{user} ? " user=$params{user}" : '');
	my $offset = -s $sub->logfile;

	$sub->safe_psql('postgres',
		"CREATE SUBSCRIPTION $name CONNECTION '$connstr' PUBLICATION $name" . ($options ? " WITH ($options)" : ''));
	return $offset;
}

sub wait_ready
{
	$sub->poll_query_until('postgres',
		"SELECT count(*) > 0 AND bool_and(srsubstate = 'r') FROM pg_subscription_rel")
	  or die "timed out waiting for the tables to be ready";
	return;
}

# Hold up every process at a fault point.  Returns a function that waits until the first
# is there.
sub hold_at
{
	my ($fault) = @_;
	my ($name) = $fault =~ /^(\w+)/;
	my $offset = -s $sub->logfile;

	arm_fault($sub, "$fault=wait");
	reload_settings($sub);
	return sub { $sub->wait_for_log(qr/fault point "$name" reached/, $offset); };
}

sub let_go
{
	disarm_fault($sub);
	reload_settings($sub);
	return;
}

# Of the last copy in ranges since then: how many, and how many were kept.
sub ranges_since
{
	my ($offset) = @_;
	my @found = slurp_file($sub->logfile, $offset) =~ /is copied in (\d+) ranges, (\d+) of which are here/g;

	return @found ? @found[ -2, -1 ] : ();
}

1;
