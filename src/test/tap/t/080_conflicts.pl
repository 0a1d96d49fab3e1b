# What goes wrong here: a conflict gets another outcome than the table in
# doc/internals/conflict-rules.md says for its type, its resolver and whose write is
# the later one; or it is resolved without a record of what happened.
#
# One node publishes, one subscribes.  While the subscription is paused both
# write the same keys; when it goes on the conflicts come all at once.  Each round
# sets one resolver for every conflict type that may have it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/..";

use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;

my $publisher = krahodb_node('publisher');
my $subscriber = krahodb_node('subscriber');

my $tables = q{
	CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE, w int UNIQUE, v text);
	CREATE TABLE overridden (id int PRIMARY KEY, v text);
};
$_->safe_psql('postgres', $tables) foreach $publisher, $subscriber;
$publisher->safe_psql('postgres', 'CREATE PUBLICATION pub FOR ALL TABLES');
$subscriber->safe_psql('postgres',
	sprintf("CREATE SUBSCRIPTION sub CONNECTION '%s' PUBLICATION pub WITH (conflict_resolution = last_update_wins, copy_data = false)",
		connstr($publisher)));

sub on_publisher { return $publisher->safe_psql('postgres', $_[0]); }
sub on_subscriber { return $subscriber->safe_psql('postgres', $_[0]); }

sub resume
{
	on_subscriber('ALTER SUBSCRIPTION sub ENABLE');
	$publisher->wait_for_catchup('sub');
	return;
}

# ---- what is to happen -------------------------------------------------------------

my @compete = qw(error skip apply_remote keep_local last_update_wins first_update_wins);
my %allowed = (
	(map { $_ => [@compete] }
		  qw(insert_exists update_exists multiple_unique_conflicts update_origin_differs delete_origin_differs)),
	update_deleted => [qw(error skip insert last_update_wins first_update_wins)],
	update_missing => [qw(error skip insert)],
	delete_missing => [qw(error skip)]);

sub is_allowed
{
	my ($type, $resolver) = @_;
	return scalar grep { $_ eq $resolver } @{ $allowed{$type} };
}

sub remote_wins
{
	my ($resolver, $remote_is_newer) = @_;

	return 1 if $resolver =~ /^(apply_remote|insert)$/;
	return 0 if $resolver =~ /^(keep_local|skip|error)$/;
	return $resolver eq 'last_update_wins' ? $remote_is_newer : !$remote_is_newer;
}

# By type, for a key of its own (and $n as a value nobody else has): how the row gets
# there (replicated), what is written on the subscriber and on the publisher; and what rows there are in the
# end if the remote side wins, and if it does not.
sub scenario
{
	my ($type, $n) = @_;
	my ($n1, $n2) = ($n + 1, $n + 2);

	return {
		insert_exists => {
			local => "INSERT INTO t VALUES ($n, NULL, NULL, 'local')",
			remote => "INSERT INTO t VALUES ($n, NULL, NULL, 'remote')",
			won => "$n|||remote", lost => "$n|||local" },
		update_origin_differs => {
			base => "INSERT INTO t VALUES ($n, NULL, NULL, 'base')",
			local => "UPDATE t SET v = 'local' WHERE id = $n",
			remote => "UPDATE t SET v = 'remote' WHERE id = $n",
			won => "$n|||remote", lost => "$n|||local" },
		update_exists => {
			base => "INSERT INTO t VALUES ($n, NULL, NULL, 'base')",
			local => "INSERT INTO t VALUES ($n1, $n, NULL, 'local')",
			remote => "UPDATE t SET u = $n, v = 'remote' WHERE id = $n",
			won => "$n|$n||remote", lost => "$n|||base\n$n1|$n||local",
			# the greatest version of the key, which a greater one of another key beats
			lost_by_version => "$n1|$n||local" },
		update_deleted => {
			base => "INSERT INTO t VALUES ($n, $n, NULL, 'base')",
			local => "DELETE FROM t WHERE id = $n",
			remote => "UPDATE t SET v = 'remote' WHERE id = $n",
			won => "$n|$n||remote", lost => '' },
		update_missing => {
			base => "INSERT INTO t VALUES ($n, $n, NULL, 'base')",
			local => "DELETE FROM t WHERE id = $n",
			vacuum => 1,
			remote => "UPDATE t SET v = 'remote' WHERE id = $n",
			won => "$n|$n||remote", lost => '' },
		delete_origin_differs => {
			base => "INSERT INTO t VALUES ($n, NULL, NULL, 'base')",
			local => "UPDATE t SET v = 'local' WHERE id = $n",
			remote => "DELETE FROM t WHERE id = $n",
			won => '', lost => "$n|||local" },
		delete_missing => {
			base => "INSERT INTO t VALUES ($n, NULL, NULL, 'base')",
			local => "DELETE FROM t WHERE id = $n",
			remote => "DELETE FROM t WHERE id = $n",
			won => '', lost => '' },
		multiple_unique_conflicts => {
			local => "INSERT INTO t VALUES ($n1, $n, NULL, 'local'), ($n2, NULL, $n, 'local')",
			remote => "INSERT INTO t VALUES ($n, $n, $n, 'remote')",
			won => "$n|$n|$n|remote",
			lost => "$n1|$n||local\n$n2||$n|local" }
	}->{$type};
}

# ---- the record ----------------------------------------------------------------------

# The record of the conflict on key $n: its log line and detail.
sub records_of
{
	my ($log, $n, $level) = @_;
	my @records;

	while ($log =~ /$level:  (conflict detected on relation [^\n]*)\n[^\n]*DETAIL:  ([^\n]*Key \(id\)=\($n\);[^\n]*)/g)
	{
		push @records, "$1 $2";
	}
	return @records;
}

my %cause = (
	insert_exists => qr/Key already exists in unique index "t_pkey", modified locally in transaction \d+ at /,
	update_origin_differs => qr/Updating the row that was modified locally in transaction \d+ at /,
	update_exists => qr/Key already exists in unique index "t_u_key", modified locally in transaction \d+ at /,
	update_deleted => qr/The row to be updated was deleted locally in transaction \d+ at /,
	update_missing => qr/Could not find the row to be updated\./,
	delete_origin_differs => qr/Deleting the row that was modified locally in transaction \d+ at /,
	delete_missing => qr/Could not find the row to be deleted\./,
	multiple_unique_conflicts => qr/Key already exists in unique index "t_u_key", modified locally .* Key already exists in unique index "t_w_key", modified locally /);

# Both rows and both versions, as far as there are any.
sub record_is_complete
{
	my ($record, $type) = @_;

	return 0 if $record !~ $cause{$type};
	return 0 if $record !~ /remote version [-\d]+ [\d:.+]+, node \d+/;
	return 0 if $type !~ /^delete/ && $record !~ /remote row \(\d+, .*remote\)/;
	return 0 if $type !~ /_(missing|deleted)$/ && $record !~ /existing local row \(\d+, .*local\)/;
	return 0 if $type !~ /_missing$/ && $record !~ /; local version [-\d]+ [\d:.+]+, node \d+/;
	return 1;
}

sub rows_from
{
	my ($n) = @_;
	return on_subscriber("SELECT * FROM t WHERE id BETWEEN $n AND $n + 9 ORDER BY id");
}

# ---- every type, every resolver, both orders ---------------------------------------------

my $next = 0;

sub set_resolver
{
	my ($resolver, @types) = @_;
	on_subscriber('ALTER SUBSCRIPTION sub SET (' . join(', ', map { "$_ = $resolver" } @types) . ')');
	return;
}

sub write_both
{
	my ($remote_is_newer, @cases) = @_;

	foreach my $case (@cases)
	{
		on_publisher($case->{remote}) unless $remote_is_newer;
		on_subscriber($case->{local});
		on_publisher($case->{remote}) if $remote_is_newer;
	}
	# VACUUM leaves dead rows until the retention horizon has passed them; this does not.
	on_subscriber('BEGIN; CREATE TEMP TABLE kept AS TABLE t; TRUNCATE t; INSERT INTO t TABLE kept; COMMIT') if grep { $_->{vacuum} } @cases;
	return;
}

sub run_round
{
	my ($resolver) = @_;
	my @types = grep { is_allowed($_, $resolver) } sort keys %allowed;
	my %by_order;

	foreach my $newer (0, 1)
	{
		# What is missing has no version, and emptying the table would take the dead rows.
		foreach my $type (grep { !$newer || !/_missing$/ } @types)
		{
			my $n = $next += 10;
			push @{ $by_order{ $type eq 'update_missing' ? 'missing' : $newer } },
			  { type => $type, n => $n, newer => $newer, %{ scenario($type, $n) } };
		}
	}
	set_resolver($resolver, @types);
	foreach my $order (qw(missing 0 1))
	{
		my @cases = @{ $by_order{$order} || [] };
		my $logstart = -s $subscriber->logfile;

		next unless @cases;
		foreach my $case (@cases)
		{
			on_publisher($case->{base}) if $case->{base};
		}
		$publisher->wait_for_catchup('sub');
		pause_subscription($subscriber, 'sub');
		write_both($order eq '1', @cases);
		resume();

		my $log = slurp_file($subscriber->logfile, $logstart);
		foreach my $case (@cases)
		{
			check_case($case, $resolver, $log);
		}
	}
	return;
}

sub check_case
{
	my ($case, $resolver, $log) = @_;
	my ($type, $n) = ($case->{type}, $case->{n});
	my $name = "$type, $resolver, remote " . ($case->{newer} ? 'newer' : 'older');
	my $won = remote_wins($resolver, $case->{newer});
	my $lost = $resolver eq 'last_update_wins' && $case->{lost_by_version} || $case->{lost};
	my @records = records_of($log, $n, 'LOG');

	is(rows_from($n), $won ? $case->{won} : $lost, "$name: rows");
	is(scalar @records, 1, "$name: one record");
	like($records[0] || '',
		qr/^conflict detected on relation "public.t": conflict=$type, resolution=$resolver, remote change @{[$won ? 'applied' : 'skipped']} /,
		"$name: what was done");
	ok(record_is_complete($records[0] || '', $type), "$name: rows and versions are recorded")
	  or diag(@records);
	return;
}

run_round($_) foreach qw(skip insert apply_remote keep_local last_update_wins first_update_wins);

# ---- error ---------------------------------------------------------------------------

# An error stops the subscription, with nothing applied; another resolver, once it is
# set, lets it go on.  That the error passes for a serialization failure by its code
# does not make it one that is tried again.
on_subscriber('ALTER SUBSCRIPTION sub SET (disable_on_error = true)');
foreach my $type (sort keys %allowed)
{
	my $n = $next += 10;
	my $case = { type => $type, %{ scenario($type, $n) } };
	my $logstart;

	set_resolver('error', $type);
	on_publisher($case->{base}) if $case->{base};
	$publisher->wait_for_catchup('sub');
	pause_subscription($subscriber, 'sub');
	write_both(1, $case);
	$logstart = -s $subscriber->logfile;
	on_subscriber('ALTER SUBSCRIPTION sub ENABLE');
	$subscriber->wait_for_log(qr/subscription "sub" has been disabled because of an error/, $logstart);

	my @records = records_of(slurp_file($subscriber->logfile, $logstart), $n, 'ERROR');
	is(scalar @records, 1, "$type, error: one error");
	like($records[0] || '', qr/conflict=$type, resolution=error, error raised /, "$type, error: says so");
	is(rows_from($n), $case->{lost}, "$type, error: nothing applied");
	set_resolver('skip', $type);
	resume();
	is(rows_from($n), $case->{lost}, "$type, error: skip lets it go on");
}
on_subscriber('ALTER SUBSCRIPTION sub SET (disable_on_error = false)');

# ---- an insert and the deletion that it did not see ----------------------------------------

set_resolver('last_update_wins', qw(insert_exists update_deleted));
{
	my $older = $next += 10;
	my $newer = $next += 10;
	my $logstart = -s $subscriber->logfile;

	pause_subscription($subscriber, 'sub');
	on_publisher("INSERT INTO t VALUES ($older, NULL, NULL, 'remote')");
	on_subscriber("INSERT INTO t VALUES ($_, NULL, NULL, 'local'); DELETE FROM t WHERE id = $_") foreach $older, $newer;
	on_publisher("INSERT INTO t VALUES ($newer, NULL, NULL, 'remote')");
	resume();
	is(rows_from($older), '', 'an insert that is older than the deletion is dropped');
	is(rows_from($newer), "$newer|||remote", 'one that is newer is not');

	my $log = slurp_file($subscriber->logfile, $logstart);
	like((records_of($log, $older, 'LOG'))[0],
		qr/conflict=update_deleted, resolution=last_update_wins, remote change skipped The row to be inserted was deleted locally /,
		'the dropped insert is recorded');
	is(scalar records_of($log, $newer, 'LOG'), 0, 'the other one is no conflict');
}

# ---- options of tables, and changes of options while it runs ---------------------------------

on_subscriber('ALTER SUBSCRIPTION sub SET (conflict_resolution = keep_local, '
	  . join(', ', map { "$_ = DEFAULT" } sort keys %allowed) . ')');
on_subscriber('ALTER TABLE overridden SET (krahodb.conflict_resolution = apply_remote)');
on_publisher("INSERT INTO overridden VALUES (1, 'base'), (2, 'base'); INSERT INTO t VALUES (1, NULL, NULL, 'base')");
$publisher->wait_for_catchup('sub');
on_subscriber("UPDATE overridden SET v = 'local'; UPDATE t SET v = 'local' WHERE id = 1");
on_publisher("UPDATE overridden SET v = 'remote' WHERE id = 1; UPDATE t SET v = 'remote' WHERE id = 1");
$publisher->wait_for_catchup('sub');
is(on_subscriber('SELECT v FROM overridden WHERE id = 1'), 'remote', 'the option of the table is the nearer one');
is(on_subscriber('SELECT v FROM t WHERE id = 1'), 'local', 'other tables have that of the subscription');

on_subscriber('ALTER TABLE overridden RESET (krahodb.conflict_resolution)');
on_publisher("UPDATE overridden SET v = 'remote' WHERE id = 2");
$publisher->wait_for_catchup('sub');
is(on_subscriber('SELECT v FROM overridden WHERE id = 2'), 'local', 'reset, without a restart');

on_subscriber('ALTER SUBSCRIPTION sub SET (update_origin_differs = apply_remote)');
on_publisher("UPDATE overridden SET v = 'again' WHERE id = 2");
$publisher->wait_for_catchup('sub');
is(on_subscriber('SELECT v FROM overridden WHERE id = 2'), 'again', 'one type of the subscription, without a restart');

# ---- versions --------------------------------------------------------------------------

my $versions = 'SELECT id, pg_xact_commit_timestamp(xmin) FROM overridden ORDER BY id';
on_publisher("INSERT INTO overridden VALUES (3, 'version'); UPDATE overridden SET v = 'version' WHERE id < 3");
$publisher->wait_for_catchup('sub');
is(on_subscriber($versions), on_publisher($versions), 'rows have the same timestamps on both nodes');

# ---- big rows ----------------------------------------------------------------------------

my $wide = 'CREATE TABLE wide (id int PRIMARY KEY, '
  . join(', ', map { "c$_ text DEFAULT repeat('x', 100)" } 1 .. 200) . ", big text DEFAULT repeat('y', 200000))";
$_->safe_psql('postgres', $wide) foreach $publisher, $subscriber;
on_subscriber('ALTER SUBSCRIPTION sub REFRESH PUBLICATION WITH (copy_data = false)');
{
	my $logstart = -s $subscriber->logfile;

	on_subscriber('INSERT INTO wide VALUES (77)');
	on_publisher('INSERT INTO wide VALUES (77)');
	$publisher->wait_for_catchup('sub');
	my ($record) = records_of(slurp_file($subscriber->logfile, $logstart), 77, 'LOG');
	cmp_ok(length $record, '<', 4000, 'the record of a big row has a limit');
	like($record, qr/existing local row \(77, x+\.\.\., .*\.\.\.\); remote row /, '... and says what it leaves out');
}

$subscriber->stop;
$publisher->stop;
done_testing();
