# Values on their way from one server to the other.
# What goes wrong here: a value that ends where a buffer does, and the byte behind it;
# settings of the subscriber's sessions that say how text is to be read and written.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $publisher = krahodb_node('publisher', conf => "logical_decoding_work_mem = 64kB\n");
my $subscriber = krahodb_node('subscriber');

sub on_publisher { return $publisher->safe_psql('postgres', join("\n", @_)); }
sub on_subscriber { return $subscriber->safe_psql('postgres', join("\n", @_)); }

$_->safe_psql('postgres', <<'EOS') foreach $publisher, $subscriber;
CREATE TABLE wide (id int PRIMARY KEY, t text);
CREATE TABLE word (id int PRIMARY KEY, t text, v varchar, j jsonb);
EOS
on_subscriber("ALTER DATABASE postgres SET client_encoding = 'LATIN1'");
on_publisher("INSERT INTO word SELECT 1, w, w, jsonb_build_object('k', w) FROM CAST(U&'\\00e9' AS text) w");
on_publisher('CREATE PUBLICATION pub FOR ALL TABLES');
on_subscriber("CREATE SUBSCRIPTION sub CONNECTION '" . connstr($publisher)
	  . "' PUBLICATION pub WITH (streaming = on, compression = lz4)");
$subscriber->wait_for_subscription_sync($publisher, 'sub');

# ---- values that end where a buffer does -------------------------------------------

# Each row is one byte longer than the one before, from before the first size of the
# buffer on in which a streamed transaction's file is read.
on_publisher("INSERT INTO wide SELECT i, repeat('x', 8100 + i) FROM generate_series(1, 300) i");
$publisher->wait_for_catchup('sub');
is(on_subscriber("SELECT count(*), bool_and(t = repeat('x', 8100 + id)) FROM wide"), '300|t',
	'rows of all lengths come by a streamed transaction');

# ---- client_encoding ----------------------------------------------------------------

my $words = 'SELECT id, t::bytea, v::bytea, (j->>\'k\')::bytea FROM word ORDER BY id';
foreach my $id (2, 3)
{
	on_publisher("INSERT INTO word SELECT $id, t, v, j FROM word WHERE id = 1");
	$publisher->wait_for_catchup('sub');
	on_subscriber('ALTER SUBSCRIPTION sub SET (binary = true)');
}
is(on_subscriber($words), on_publisher($words),
	'text is not taken for what client_encoding says, in the initial copy and in the stream');

done_testing();
