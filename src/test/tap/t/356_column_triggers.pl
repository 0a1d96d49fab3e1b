#
# Triggers of columns at the subscriber: they fire for the columns that were sent, which
# are all of them but for large values that have not changed, whatever the row before had.
#
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use KrahoDB::Nodes;
use Test::More;

my $publisher = krahodb_node('publisher');
my $subscriber = krahodb_node('subscriber');

foreach my $node ($publisher, $subscriber)
{
	$node->safe_psql('postgres', <<'EOS');
CREATE TABLE t (id int PRIMARY KEY, n int, large text);
ALTER TABLE t ALTER large SET STORAGE EXTERNAL;
EOS
}
$subscriber->safe_psql('postgres', <<'EOS');
CREATE TABLE fired (number serial, id int, of text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
	$$ BEGIN INSERT INTO public.fired (id, of) VALUES (NEW.id, TG_ARGV[0]); RETURN NULL; END $$;
CREATE TRIGGER a AFTER UPDATE OF n ON t FOR EACH ROW EXECUTE FUNCTION note('n');
CREATE TRIGGER b AFTER UPDATE OF large ON t FOR EACH ROW EXECUTE FUNCTION note('large');
ALTER TABLE t ENABLE REPLICA TRIGGER a;
ALTER TABLE t ENABLE REPLICA TRIGGER b;
EOS
$publisher->safe_psql('postgres', <<'EOS');
INSERT INTO t VALUES (1, 0, 'short'), (2, 0, repeat('large', 2000)), (3, 0, 'short');
CREATE PUBLICATION p FOR TABLE t;
EOS
$subscriber->safe_psql('postgres', "CREATE SUBSCRIPTION s CONNECTION '" . connstr($publisher) . "' PUBLICATION p");
$subscriber->wait_for_subscription_sync($publisher, 's');

$publisher->safe_psql('postgres', "UPDATE t SET n = 1 WHERE id = $_") foreach 1, 2, 3, 2;
$publisher->safe_psql('postgres', "UPDATE t SET large = repeat('other', 2000) WHERE id = 2");
$publisher->wait_for_catchup('s');
is($subscriber->safe_psql('postgres', "SELECT string_agg(id || ' ' || of, ', ' ORDER BY number) FROM fired"),
	'1 n, 1 large, 2 n, 3 n, 3 large, 2 n, 2 n, 2 large', 'triggers of the columns that were sent');
is_equal_on([ $publisher, $subscriber ], 'SELECT sum(hashtextextended(t::text, 0)) FROM t', 'the rows');
done_testing();
