# KrahoDB::RandomChanges: what administrators do to tables, servers and subscriptions.
#
# At rest, when all has arrived: changes that all nodes must make.  Beside writes: what one
# node may do to its own tables at any time, and faults.

package KrahoDB::RandomChanges;

use strict;
use warnings;

use Exporter 'import';
use KrahoDB::RandomTables;
use List::Util qw(shuffle);
use Test::More;

our @EXPORT = qw(change_at_rest change_locally add_in_turn finish_changes fault);

my $number = 0;			# of new names

# ---- at rest ----------------------------------------------------------------------------------

# On each node, one after the other: a function gives the commands for a node.
sub everywhere
{
	my ($mesh, $commands) = @_;

	foreach my $n (shuffle $mesh->all)
	{
		$mesh->must($n, $commands->($n));
	}
	return;
}

sub rename_table
{
	my ($mesh, $t) = @_;
	my $old = full_name($t);

	$t->{name} = one_of("renamed $t->{number} " . ++$number, "t$t->{number}_" . ++$number);
	everywhere($mesh, sub { "ALTER TABLE $old RENAME TO " . quoted($t->{name}) });
	return;
}

sub move_table
{
	my ($mesh, $t) = @_;
	my $old = full_name($t);
	my ($odd) = grep { $_ ne 'public' } map { $_->{schema} } $mesh->tables;

	return if !defined $odd;
	$t->{schema} = $t->{schema} eq 'public' ? $odd : 'public';
	everywhere($mesh, sub { "ALTER TABLE $old SET SCHEMA " . quoted($t->{schema}) });
	return;
}

sub rename_schema
{
	my ($mesh) = @_;
	my ($old) = grep { $_ ne 'public' } map { $_->{schema} } $mesh->tables;
	my $new = 'Odd ' . ++$number;

	return if !defined $old;
	everywhere($mesh, sub { 'ALTER SCHEMA ' . quoted($old) . ' RENAME TO ' . quoted($new) });
	foreach my $t ($mesh->tables)
	{
		$t->{schema} = $new if $t->{schema} eq $old;
	}
	return;
}

# Functions of triggers and whole rows know the names of v, vv and un.
sub rename_column
{
	my ($mesh, $t) = @_;
	my $id = one_of(@{ $t->{ids} }, qw(u w big big2 r n m), @{ $t->{free} });
	my $old = column($t, $id);

	$t->{names}{$id} = one_of('', 'C ') . "$id " . ++$number;
	everywhere($mesh, sub { 'ALTER TABLE ' . full_name($t) . " RENAME $old TO " . column($t, $id) });
	return;
}

sub add_column
{
	my ($mesh, $t) = @_;
	my $type = one_of(free_types());
	my $id = 'fr' . (100 + ++$number);
	my $default = one_of('', ' DEFAULT ' . free_value($type));

	$t->{names}{$id} = one_of($id, "F $id");
	$t->{type}{$id} = $type;
	push @{ $t->{free} }, $id;
	everywhere($mesh, sub { 'ALTER TABLE ' . full_name($t) . ' ADD ' . column($t, $id) . " $type$default", $mesh->publish_sql($_[0]) });
	return;
}

sub drop_column
{
	my ($mesh, $t) = @_;
	my @free = shuffle @{ $t->{free} };
	my $id = pop @free or return;

	$t->{free} = [ sort @free ];
	everywhere($mesh, sub { $mesh->publish_sql($_[0]), 'ALTER TABLE ' . full_name($t) . ' DROP ' . column($t, $id) });
	return;
}

# Not where the column is in a publication's list.
sub retype_column
{
	my ($mesh, $t) = @_;
	my ($id) = shuffle grep { wider_type($t->{type}{$_}) } @{ $t->{free} };

	return if !defined $id || has_extra($t, 2);
	$t->{type}{$id} = wider_type($t->{type}{$id});
	everywhere($mesh, sub { 'ALTER TABLE ' . full_name($t) . ' ALTER ' . column($t, $id) . " TYPE $t->{type}{$id}" });
	return;
}

# If the rows of one node are not unique, nor are those of others, which are the same.
sub add_unique
{
	my ($mesh, $t) = @_;
	my $unique = random_unique($t);
	my ($first, @others) = $mesh->members;

	return if $t->{filter} || $t->{how} eq 'mixed' || @{ $t->{uniques} } > 4;
	my ($done, $err) = $mesh->try($first, unique_sql($t, $unique));
	if (!$done)
	{
		$mesh->bad("n$first: $err") if $err !~ /could not create (unique|exclusion)|duplicate|conflicting key|exclusion constraint/;
		return;
	}
	push @{ $t->{uniques} }, $unique;
	note_uniques($t);
	$mesh->must($_, unique_sql($t, $unique)) foreach grep { $_ != $first } $mesh->all;
	return;
}

sub drop_unique
{
	my ($mesh, $t) = @_;
	my @uniques = shuffle @{ $t->{uniques} };
	my $unique = pop @uniques or return;

	$t->{uniques} = \@uniques;
	note_uniques($t);
	everywhere($mesh, sub { drop_unique_sql($t, $unique) });
	return;
}

# With its partitions.
sub relations_of { my ($t, $n) = @_; return full_name($t), is_parted($t, $n) ? @{ $t->{parts}[$n] } : (); }

# Of tables with two keys rows are known by the other one; else nodes only send more or less.
sub change_identity
{
	my ($mesh, $t) = @_;

	return if $t->{merged};
	if ($t->{identity} =~ /INDEX|DESC/)
	{
		$t->{ri} = [ map { $t->{ri}[1] eq 'DEFAULT' ? "USING INDEX key$t->{number}" : 'DEFAULT' } 0 .. $t->{nodes} ];
		everywhere($mesh, sub { 'ALTER TABLE ' . full_name($t) . " REPLICA IDENTITY $t->{ri}[1]" });
		return;
	}
	foreach my $n ($mesh->all)
	{
		$t->{ri}[$n] = one_of('DEFAULT', ('FULL') x !has_extra($t, $n), ("USING INDEX key$t->{number}") x !$t->{parted});
		$mesh->must($n, map { "ALTER TABLE $_ REPLICA IDENTITY $t->{ri}[$n]" } relations_of($t, $n));
	}
	return;
}

sub change_merge
{
	my ($mesh, $t) = @_;

	return if $t->{identity} !~ /FULL|VARIED/ || grep { $_->{kind} eq 'whole' } @{ $t->{uniques} };
	$t->{merged} = !$t->{merged} || 0;
	$t->{was_merged} = 1;
	if (!$t->{merged})
	{
		everywhere($mesh, sub { 'ALTER TABLE ' . full_name($t) . ' ALTER ' . column($t, 'n') . ' RESET (krahodb.merge), ALTER ' . column($t, 'm') . ' RESET (krahodb.merge)' });
		return;
	}
	$t->{way} = one_of('max', 'min');
	$t->{ri} = [ map { 'FULL' } 0 .. $t->{nodes} ];
	everywhere($mesh, sub {
		my ($n) = @_;
		return (map { "ALTER TABLE $_ REPLICA IDENTITY FULL" } relations_of($t, $n)),
		  'ALTER TABLE ' . full_name($t) . ' ALTER ' . column($t, 'n') . ' SET (krahodb.merge = delta), ALTER ' . column($t, 'm') . " SET (krahodb.merge = $t->{way})";
	});
	return;
}

sub truncate_table
{
	my ($mesh, $t) = @_;
	my $n = one_of($mesh->members);
	my $names = join ', ', full_name($t), ("child_$t->{number}") x ($t->{child} ne '');

	$mesh->must($n, one_of("TRUNCATE $names", "TRUNCATE $names RESTART IDENTITY", "BEGIN; TRUNCATE $names; TRUNCATE $names; COMMIT", 'BEGIN; DELETE FROM ' . full_name($t) . "; TRUNCATE $names; COMMIT"));
	return $mesh->settle;
}

sub add_partition
{
	my ($mesh, $t) = @_;

	return if $t->{how} !~ /leaves|root/ || $t->{partitions} > 2;
	$t->{partitions} = 3;
	everywhere($mesh, sub {
		my ($n) = @_;
		my $part = "part_$t->{number}_3";

		return () if !is_parted($t, $n);
		push @{ $t->{parts}[$n] }, $part;
		return 'CREATE TABLE ' . $part . ' PARTITION OF ' . full_name($t) . ' FOR VALUES IN (3)', "ALTER TABLE $part REPLICA IDENTITY $t->{ri}[$n]",
		  map({ "ALTER TABLE $part ENABLE ALWAYS TRIGGER $_" } ('tb') x ($t->{trigger} =~ /before|both/), ('ta') x ($t->{trigger} =~ /after|both/));
	});
	$mesh->refresh;
	return;
}

sub reattach
{
	my ($mesh, $t) = @_;
	my $part = "part_$t->{number}_2";
	my $refreshed = chance(0.5);
	my $attach = 'ALTER TABLE ' . full_name($t) . " ATTACH PARTITION $part FOR VALUES IN (2)";

	return if $t->{how} !~ /leaves|root/;
	everywhere($mesh, sub { is_parted($t, $_[0]) ? 'ALTER TABLE ' . full_name($t) . " DETACH PARTITION $part" . one_of('', $refreshed ? ' CONCURRENTLY' : '') : () });
	$mesh->refresh if $refreshed;
	everywhere($mesh, sub { is_parted($t, $_[0]) ? $attach : () });
	$mesh->refresh if $refreshed;
	return;
}

my @at_rest = (\&rename_table, \&move_table, \&rename_schema, \&rename_column, \&rename_column, \&add_column, \&add_column, \&drop_column,
	\&retype_column, \&add_unique, \&add_unique, \&drop_unique, \&change_identity, \&change_identity, \&change_merge, \&change_merge,
	\&truncate_table, \&add_partition, \&reattach);

sub change_at_rest
{
	my ($mesh) = @_;

	one_of(@at_rest)->($mesh, one_of($mesh->tables));
	return;
}

# ---- beside writes -------------------------------------------------------------------------------

# An index in the place of another one of the same making.
sub replace_unique
{
	my ($t) = @_;
	my ($unique) = shuffle grep { !$_->{constraint} } @{ $t->{uniques} };

	return if !$unique || $t->{parted};
	my $schema = quoted($t->{schema});
	my $new = unique_sql($t, { %$unique, name => "$unique->{name}_new" });
	$new =~ s/UNIQUE INDEX/UNIQUE INDEX CONCURRENTLY/;
	return $new, 'DROP INDEX ' . one_of('', 'CONCURRENTLY ') . "$schema.$unique->{name}",
	  "ALTER INDEX $schema.$unique->{name}_new RENAME TO $unique->{name}";
}

# Rows are written anew, in a way that keeps what they are.  A table with merged columns
# would forget histories, and what a publication lists cannot be altered.
sub rewrite
{
	my ($t, $n) = @_;
	my $name = full_name($t);
	my $expressions = grep { $_->{kind} =~ /expr|whole|lower|excl|gen|civ|partial2/ } @{ $t->{uniques} };
	my @altered = $expressions || has_extra($t, $n) || $t->{filter} || $t->{child} ? () : grep { chance(0.4) && $t->{type}{$_} !~ /^V/ } @{ $t->{ids} }, qw(u w);

	return if $t->{merged};
	return "BEGIN; ALTER TABLE $name ADD rw float DEFAULT random(); ALTER TABLE $name DROP rw; COMMIT" if !@altered || chance(0.4);
	return "ALTER TABLE $name " . join ', ', map { my $c = column($t, $_); "ALTER $c TYPE $t->{type}{$_} USING COALESCE($c, $c)" } @altered;
}

# The key is made again, as it was.
sub rebuild_key
{
	my ($t, $n) = @_;
	my $name = full_name($t);

	return if $t->{identity} =~ /INDEX|DESC/ || $t->{parted} || $t->{merged} || $t->{child};
	return "BEGIN; ALTER TABLE $name DROP CONSTRAINT key$t->{number}, ADD CONSTRAINT key$t->{number} PRIMARY KEY (" . join(', ', key_columns($t))
	  . "); ALTER TABLE $name REPLICA IDENTITY $t->{ri}[$n]; COMMIT";
}

sub local_commands
{
	my ($mesh, $t, $n) = @_;
	my $name = full_name($t);
	my $schema = quoted($t->{schema});
	my $what = rand;

	return one_of('VACUUM', 'VACUUM (FREEZE)', 'VACUUM (FULL)', 'VACUUM (FULL, FREEZE)', 'VACUUM (INDEX_CLEANUP ON)', 'ANALYZE') . " $name" if $what < 0.4;
	return one_of("REINDEX TABLE $name", "REINDEX TABLE CONCURRENTLY $name", "REINDEX INDEX CONCURRENTLY $schema.key$t->{number}",
		$t->{parted} ? 'CHECKPOINT' : "CLUSTER $name USING key$t->{number}") if $what < 0.6;
	return rewrite($t, $n) if $what < 0.7;
	return replace_unique($t) if $what < 0.77;
	return rebuild_key($t, $n) if $what < 0.8;
	return one_of("CREATE INDEX CONCURRENTLY ix_$t->{number} ON $name (v)", "DROP INDEX IF EXISTS $schema.ix_$t->{number}") if $what < 0.85 && !$t->{parted};
	return "ALTER TABLE $name ALTER i SET STATISTICS " . int(rand 90), "ALTER TABLE $name ALTER " . column($t, 'big') . ' SET STORAGE ' . one_of('EXTERNAL', 'EXTENDED', 'MAIN')
	  . ', ALTER ' . column($t, 'big2') . ' SET COMPRESSION ' . one_of('lz4', 'pglz') if $what < 0.9;
	return one_of("ALTER TABLE $name ADD CONSTRAINT c CHECK (i < 100) NOT VALID", "ALTER TABLE $name VALIDATE CONSTRAINT c", "ALTER TABLE $name DROP CONSTRAINT IF EXISTS c") if $what < 0.94;
	return one_of(map { "ALTER TABLE $name $_" } 'ADD IF NOT EXISTS loc int DEFAULT 7', 'DROP IF EXISTS loc', 'ADD IF NOT EXISTS locr float DEFAULT random()', 'DROP IF EXISTS locr')
	  if has_extra($t, $n) && $t->{merged} == 0;
	return;
}

sub change_locally
{
	my ($mesh) = @_;
	my $n = one_of($mesh->members);
	my $t = one_of($mesh->tables);

	my @commands = local_commands($mesh, $t, $n);

	# Before the horizon is known, versions of rows that are written anew are not kept.
	return if grep({ /\brandom\(\)|USING COALESCE/ } @commands)
	  && $mesh->ask($n, 'SELECT count(*) > 0 AND bool_and(lag IS NOT NULL) FROM krahodb.horizon') ne 't';
	push @{ $mesh->{unfinished} }, [ $n, $t ] if !$mesh->try($n, @commands) && grep { /CONCURRENTLY/ } @commands;
	finish_exchanges($mesh);
	return;
}

# Of two indexes alike one goes, and the other one has its name; false if it is to be tried again.
sub finish_exchange
{
	my ($mesh, $n, $t) = @_;

	foreach my $unique (@{ $t->{uniques} })
	{
		my $name = quoted($t->{schema}) . ".$unique->{name}";
		my $there = $mesh->ask($n, "SELECT to_regclass('$name') IS NOT NULL, to_regclass('${name}_new') IS NOT NULL");

		return 0 if $there eq '' || $there eq 't|t' && !$mesh->try($n, "DROP INDEX ${name}_new")
		  || $there eq 'f|t' && !$mesh->try($n, "ALTER INDEX ${name}_new RENAME TO $unique->{name}");
	}
	return 1;
}

sub finish_exchanges
{
	my ($mesh) = @_;

	$mesh->{unfinished} = [ grep { !finish_exchange($mesh, @$_) } @{ $mesh->{unfinished} // [] } ];
	return;
}

# A column that nodes get one after the other, while all write.  Who has it is not understood by who
# has not, until that has got it, too.
sub add_in_turn
{
	my ($mesh) = @_;
	my $adding = $mesh->{adding};

	if (!$adding)
	{
		my ($t) = grep { !has_extra($_, 2) } shuffle $mesh->tables or return;
		my $type = one_of(free_types());

		$adding = $mesh->{adding} = { table => $t, id => 'fr' . (100 + ++$number), type => $type, nodes => [ shuffle $mesh->all ], default => free_value($type) };
	}
	my ($t, $id, $n) = ($adding->{table}, $adding->{id}, shift @{ $adding->{nodes} });
	my ($done, $err) = $mesh->try($n, 'ALTER TABLE ' . full_name($t) . " ADD $id $adding->{type} DEFAULT $adding->{default}");
	push @{ $adding->{nodes} }, $n if !$done && $err !~ /already exists/;
	return if @{ $adding->{nodes} };

	# From the next round on it is written to.
	$t->{names}{$id} = $id;
	$t->{type}{$id} = $adding->{type};
	push @{ $t->{free} }, $id;
	delete $mesh->{adding};
	return;
}

# What was begun beside writes.
sub finish_changes
{
	my ($mesh) = @_;

	$mesh->wait_up;
	for (my $tries = 0; $mesh->{adding} && $tries < 100; $tries++)
	{
		add_in_turn($mesh);
	}
	for (my $tries = 0; @{ $mesh->{unfinished} // [] } && $tries < 100; $tries++)
	{
		finish_exchanges($mesh);
	}
	$mesh->bad('could not finish a change') if $mesh->{adding} || @{ $mesh->{unfinished} // [] };
	return;
}

# ---- faults --------------------------------------------------------------------------------------

my @options = ('streaming = on', 'streaming = off', map({ "apply_workers = $_" } 1 .. 4), 'compression = off', 'compression = lz4', 'compression = zstd',
	'run_as_owner = false', 'run_as_owner = true', 'synchronous_commit = off', 'synchronous_commit = on');

sub kill_process
{
	my ($mesh, $n) = @_;
	my @pids = split /\n/, $mesh->ask($n, q{SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type ~ 'logical replication|walsender|krahodb|client'});

	return if !@pids;
	my $pid = one_of(@pids);
	note "kill -9 $pid of n$n";
	kill 'KILL', $pid;
	return;
}

sub restart
{
	my ($mesh, $n) = @_;

	note "restart n$n";
	eval { $mesh->node($n)->stop(one_of('fast', 'immediate'), fail_ok => 1); $mesh->node($n)->start; 1 } or $mesh->bad("n$n does not restart: $@");
	return;
}

sub fault
{
	my ($mesh) = @_;
	my $what = rand;
	my $n = one_of($mesh->members);
	my $link = one_of($mesh->links);
	my $to = $link->[0];
	my $name = $mesh->name_of($link);

	if ($what < 0.6) { $mesh->toggle($link); }
	elsif ($what < 0.65) { $mesh->try($n, one_of('CHECKPOINT', 'SELECT pg_switch_wal()')); }
	elsif ($what < 0.72) { $mesh->try($n, 'SELECT ' . one_of('pg_terminate_backend', 'pg_terminate_backend', 'pg_cancel_backend') . q{(pid) FROM pg_stat_activity WHERE backend_type ~ 'logical replication (worker|lane)' AND random() < 0.5}); }
	elsif ($what < 0.76) { $mesh->try($n, 'SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active_pid IS NOT NULL'); }
	elsif ($what < 0.85) { $mesh->try($to, "ALTER SUBSCRIPTION $name SET (" . one_of(@options) . ')'); }
	elsif ($what < 0.88) { $mesh->try($to, "ALTER SUBSCRIPTION $name REFRESH PUBLICATION WITH (copy_data = false)"); }
	elsif ($what < 0.92) { $mesh->try($n, "SET lock_timeout = '300ms'; BEGIN; LOCK TABLE " . full_name(one_of($mesh->tables)) . ' IN ' . one_of('SHARE', 'ACCESS EXCLUSIVE') . ' MODE; SELECT count(*) FROM generate_series(1, 3000000); COMMIT'); }
	elsif ($what < 0.95) { kill_process($mesh, $n); }
	elsif ($what < 0.98) { $mesh->kill_server($n); }
	else { restart($mesh, $n); }
	return;
}

1;
