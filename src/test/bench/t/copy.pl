#
# The initial copy of one table with two indexes: the time from CREATE SUBSCRIPTION to
# the table being ready.  It is not in shared memory as a whole, and rows come in
# about the order of its primary key, while the second index's values are random.
#
# Environment: BENCH_COPY_MB (2048), the size of the table without its indexes, and
# that of KrahoDB::Bench.  BENCH_COPY_WORKERS: krahodb.copy_workers_per_table, if it is
# not to be the default.
#
use strict;
use warnings;

use KrahoDB::Bench;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $mb = setting('COPY_MB', 2048);
my $rows = $mb * 7_000;			# of about 150 bytes each
my $workers = setting('COPY_WORKERS', '');

sub schema
{
	$_[0]->safe_psql('postgres', <<'EOS');
CREATE TABLE big (id bigint PRIMARY KEY, a int, b text, c timestamptz, d numeric);
CREATE INDEX ON big (a);
EOS
}

foreach my $name (grep { $_ ne 'pglogical' } wanted_contenders())
{
	my $c = contender(
		name => $name,
		schema => \&schema,
		subscription => 0,
		conf => $workers && $name eq 'krahodb' ? "krahodb.copy_workers_per_table = $workers" : '');

	$c->{publisher}->safe_psql(
		'postgres', qq{
		INSERT INTO big SELECT g, hashint8(g), 'some text of row ' || g || repeat('x', 60), now(), g / 7.0
			FROM generate_series(1, $rows) g;
		VACUUM ANALYZE big;
		CREATE PUBLICATION p FOR TABLE big;
		CHECKPOINT}, timeout => 3600);
}

sub copy
{
	my ($c) = @_;

	$c->{subscriber}->safe_psql('postgres', 'TRUNCATE big; CHECKPOINT', timeout => 900);
	my $start = time;
	$c->{subscriber}->safe_psql('postgres',
		"CREATE SUBSCRIPTION s CONNECTION '" . $c->{publisher}->connstr . " dbname=postgres' PUBLICATION p");
	$c->{subscriber}->poll_query_until('postgres', "SELECT srsubstate = 'r' FROM pg_subscription_rel")
	  or die "$c->{name}: the table was not copied in time";
	my $time = time - $start;

	my $query = 'SELECT count(*), sum(hashtextextended(t::text, 0)) FROM big t';
	is($c->{subscriber}->safe_psql('postgres', $query, timeout => 900),
		$c->{publisher}->safe_psql('postgres', $query, timeout => 900), "$c->{name}: the table is equal");
	$c->{subscriber}->safe_psql('postgres', 'DROP SUBSCRIPTION s');
	return $time;
}

rounds(
	sub {
		my ($round) = @_;
		in_turns($round, "initial copy of $mb MB", 's', 'less', \&copy);
	});
bench_report();
done_testing();
