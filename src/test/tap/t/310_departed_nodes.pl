# What goes wrong here: a server that has subscribed to more publishers in its life, one after the other, than it
# has room to remember.  A subscription must still be dropped, and who subscribes to this server must still get
# its changes.  The former publishers are written into the file where they are remembered.

use strict;
use warnings;

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $pub = krahodb_node('pub');
my $sub = krahodb_node('sub');
my ($pub_connstr, $sub_connstr) = (connstr($pub), connstr($sub));

$_->safe_psql('postgres', 'CREATE TABLE t (a int PRIMARY KEY); CREATE TABLE u (a int PRIMARY KEY)') foreach $pub, $sub;
$pub->safe_psql('postgres', 'CREATE PUBLICATION p FOR TABLE t');
$sub->safe_psql('postgres', 'CREATE PUBLICATION p FOR TABLE u');

sub subscribe_once
{
	my ($row) = @_;

	$sub->safe_psql('postgres', "CREATE SUBSCRIPTION s CONNECTION '$pub_connstr' PUBLICATION p WITH (copy_data = false)");
	$pub->safe_psql('postgres', "INSERT INTO t VALUES ($row)");
	$pub->wait_for_catchup('s');
	return;
}

# CRC-32C, as the file has it.
my @crc_table = map
{
	my $c = $_;
	$c = $c & 1 ? ($c >> 1) ^ 0x82F63B78 : $c >> 1 foreach 1 .. 8;
	$c;
} 0 .. 255;

sub crc32c
{
	my $crc = 0xFFFFFFFF;
	$crc = ($crc >> 8) ^ $crc_table[ ($crc ^ $_) & 0xFF ] foreach unpack 'C*', $_[0];
	return $crc ^ 0xFFFFFFFF;
}

subscribe_once(1);
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION s');
my $database = $sub->safe_psql('postgres', 'SELECT oid FROM pg_database WHERE datname = current_database()');
$sub->stop;
my $file = $sub->data_dir . '/krahodb/seen_ahead';
my ($magic, $version, $count, $crc) = unpack 'L4', my $before = slurp_file($file);
is(crc32c(substr($before, 16)), $crc, 'the file is as this test knows it');
is($count, 1, 'a subscription that was dropped leaves a note');
my $entries = join '', map { pack 'QQLL', $_, 1, 0, $database } 1 .. 1024;
open my $out, '>:raw', $file or die $!;
print $out pack('L4', $magic, $version, 1024, crc32c($entries)), $entries;
close $out;
$sub->start;

subscribe_once(2);
$sub->safe_psql('postgres', 'DROP SUBSCRIPTION s');
is($sub->safe_psql('postgres', 'SELECT count(*) FROM t'), '2', 'one more publisher');
is((unpack 'L4', slurp_file($file))[2], 512, 'the oldest ones are forgotten');
subscribe_once(3);
$pub->safe_psql('postgres', "CREATE SUBSCRIPTION back CONNECTION '$sub_connstr' PUBLICATION p WITH (origin = none, copy_data = false)");
$sub->safe_psql('postgres', 'INSERT INTO u VALUES (1)');
$sub->wait_for_catchup('back');
is($pub->safe_psql('postgres', 'SELECT count(*) FROM u'), '1', 'a subscriber of who has had many publishers');

done_testing();
