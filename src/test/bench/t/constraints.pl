#
# A backlog of transactions on tables with foreign keys and three secondary indexes:
# each inserts an order with three lines and updates the state of an older order,
# every tenth deletes one.
#
# Environment: BENCH_TRANSACTIONS (30000), and that of KrahoDB::Bench.
#
use strict;
use warnings;

use KrahoDB::Bench;
use PostgreSQL::Test::Utils;
use Test::More;

my $transactions = setting('TRANSACTIONS', 30_000);
my $customers = 10_000;

sub schema
{
	$_[0]->safe_psql('postgres', <<EOS);
CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL);
CREATE TABLE orders (id bigint PRIMARY KEY, customer int NOT NULL REFERENCES customers,
	state text NOT NULL, reference text NOT NULL, made timestamptz NOT NULL);
CREATE UNIQUE INDEX ON orders (reference);
CREATE INDEX ON orders (customer);
CREATE INDEX ON orders (made);
CREATE TABLE lines (order_id bigint REFERENCES orders ON DELETE CASCADE, line int,
	product int NOT NULL, amount numeric NOT NULL, note text, PRIMARY KEY (order_id, line));
CREATE INDEX ON lines (product);
CREATE INDEX ON lines (amount);
CREATE INDEX ON lines (note);
CREATE SEQUENCE order_ids;
INSERT INTO customers SELECT i, 'customer ' || i FROM generate_series(1, $customers) i;
EOS
}

my $script = "$PostgreSQL::Test::Utils::tmp_check/constraints.sql";
append_to_file($script, <<EOS);
\\set customer random(1, $customers)
\\set product random(1, 5000)
\\set back random(1, 1000)
SELECT nextval('order_ids') AS id \\gset
BEGIN;
INSERT INTO orders VALUES (:id, :customer, 'new', 'reference ' || :id, now());
INSERT INTO lines VALUES (:id, 1, :product, :product * 1.25, 'a note on ' || :product),
	(:id, 2, :product + 1, :product * 2.5, 'another note'), (:id, 3, :product + 2, :product / 3.0, NULL);
UPDATE orders SET state = 'paid' WHERE id = :id - :back;
DELETE FROM orders WHERE id = :id - 1500 AND id % 10 = 0;
COMMIT;
EOS

contender(name => $_, schema => \&schema) foreach wanted_contenders();
rounds(
	sub {
		my ($round) = @_;
		in_turns($round, "backlog of $transactions, foreign keys", 's', 'less',
			sub {
				drain($_[0],
					sub {
						run_pgbench($_[0]{publisher}, qw(-n -c 2 -j 2 -f), $script, '-t',
							int($transactions / 2), "--random-seed=$round");
					});
			});
		vacuum_all();
	});
check_equal(qw(customers orders lines));
bench_report();
done_testing();
