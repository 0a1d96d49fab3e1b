# Parallel lanes (apply_workers).
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/..";

use KrahoDB::Nodes;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $publisher = krahodb_node('publisher');
my $subscriber = krahodb_node('subscriber');

sub bench
{
	my ($node, @args) = @_;
	my $out = '';
	my $err = '';
	IPC::Run::run([ 'pgbench', @args, connstr($node) ], '>', \$out, '2>', \$err) or die $err;
	return $out;
}

bench($_, '-i', '-q') foreach $publisher, $subscriber;
$publisher->safe_psql('postgres', 'CREATE PUBLICATION pub FOR ALL TABLES');
$subscriber->safe_psql('postgres',
	"CREATE SUBSCRIPTION sub CONNECTION '" . connstr($publisher)
	  . "' PUBLICATION pub WITH (copy_data = false, apply_workers = 3)");
bench($publisher, '-n', '-c', '4', '-t', '2000');
$publisher->wait_for_catchup('sub');
is_equal_on([ $publisher, $subscriber ],
	"SELECT sum(hashtextextended(t::text, 0)), count(*) FROM pgbench_$_ t", "$_") foreach qw(accounts tellers branches history);
diag $subscriber->safe_psql('postgres', "SELECT backend_type, pid FROM pg_stat_activity");
done_testing();
