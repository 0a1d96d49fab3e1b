# What goes wrong here: a node tells others what it had seen of third nodes when it
# wrote a row, and they believe it: that an update is no conflict, that a column
# which was not sent is the one that they have.  A lower bound that is too high, or an
# upper bound that is too low, after whatever restart, makes nodes differ.  So: n2
# applies from n1 and n3 and writes in between; what was applied when is known
# exactly; the frames of a slot of n2 are read by several sessions, and servers
# stopped and killed, and each bound is compared with what is known.

use strict;
use warnings;

use KrahoDB::Nodes;
use KrahoDB::PausedMesh;
use PostgreSQL::Test::Utils;
use Test::More;

my $mesh = KrahoDB::PausedMesh->new(
	names => [qw(n1 n2 n3)],
	conf => "logical_decoding_work_mem = 64kB\nlog_min_messages = debug2\n",
	schema => q{
		CREATE TABLE item (id int PRIMARY KEY, v text);
		CREATE PUBLICATION item FOR TABLE item;
	},
	publications => 'item',
	options => 'two_phase = true');
my @nodes = $mesh->nodes;
my ($n1, $n2, $n3) = @nodes;

sub sql { my $node = shift; return $node->safe_psql('postgres', join("\n", @_)); }

# ---- reading a slot --------------------------------------------------------------

sub lsn_value
{
	my ($high, $low) = split m{/}, $_[0];
	return (hex($high) << 32) + hex $low;
}

# The identity of a node, as its handshake says.
sub own_identity
{
	my ($node) = @_;
	return (split m{/}, sql($node, 'SHOW krahodb.seen'))[0];
}

# Transactions of a slot in order: [label, { node => [surely, maybe] }] with the
# accumulated vector.  The label is the text of the first row's second column.
sub transactions
{
	my ($node, $slot, %options) = @_;
	%options = (
		proto_version => 3, publication_names => 'item', origin => 'none',
		krahodb => 1, %options);
	my $list = join ', ', map { "'$_', '$options{$_}'" } sort keys %options;
	my @payloads = split /\n/,
	  sql($node, "SELECT encode(data, 'hex') FROM pg_logical_slot_peek_binary_changes('$slot', NULL, NULL, $list)");
	my (@result, %vector, $label, $block, %streamed);

	foreach my $frame (map { pack 'H*', $_ } @payloads)
	{
		die 'not a frame' if substr($frame, 0, 1) ne 'F';
		for (my $position = 1; $position < length $frame;)
		{
			my $length = unpack 'N', substr($frame, $position, 4);
			my $message = substr $frame, $position + 4, $length;
			my $type = substr $message, 0, 1;

			$position += 4 + $length;
			if ($type eq 'V')
			{
				my (undef, $count, @values) = unpack 'anQ>*', $message;
				is(scalar @values, 3 * $count, 'the entries are whole') if @values != 3 * $count;
				while (my ($id, $surely, $maybe) = splice @values, 0, 3)
				{
					$vector{$id} = [ $surely, $maybe ];
				}
			}
			elsif ($type eq 'S')
			{
				(undef, $block) = unpack 'aN', $message;
			}
			elsif ($type eq 'E') { undef $block; }
			elsif ($type eq 'I')
			{
				$message =~ /t....([a-z]+[0-9]*)/s or $message =~ /([a-z][a-z]+[0-9]+)/;
				my $text = $1;
				if (defined $block) { $streamed{$block} //= $text; }
				else { $label //= $text; }
			}
			elsif ($type eq 'c' || $type eq 'p')
			{
				my $xid = $type eq 'c' ? unpack('N', substr $message, 1, 4)
				  : unpack('N', substr $message, 1 + 1 + 8 + 8 + 8, 4);
				push @result, [ $streamed{$xid}, {%vector} ];
			}
			elsif ($type eq 'C' || $type eq 'P')
			{
				push @result, [ $label, {%vector} ];
				undef $label;
			}
		}
	}
	return @result;
}

my %id = map { $_->name => own_identity($_) } @nodes;
isnt($id{n1}, $id{n2}, 'nodes have identities');

# How far n2 has applied a node.
sub applied
{
	my ($from) = @_;
	my $lsn = sql($n2, "SELECT remote_lsn FROM pg_replication_origin_status s
		JOIN pg_subscription ON external_id = 'pg_' || oid WHERE subname = 'n2_$from'");
	return $lsn eq '' ? 0 : lsn_value($lsn);
}

my $number = 0;
my %exact;		# label of a transaction of n2 => { node => LSN applied before }
my @order;

# A transaction of n2, whose label says what is known of it.
sub write_n2
{
	my ($kind) = @_;
	my $label = $kind . ++$number;

	$exact{$label} = { map { $_ => applied($_) } qw(n1 n3) };
	if ($kind eq 'plain')
	{
		sql($n2, "INSERT INTO item VALUES (2000000 + $number, '$label')");
	}
	elsif ($kind eq 'prepared')
	{
		sql($n2, "BEGIN; INSERT INTO item VALUES (2000000 + $number, '$label'); PREPARE TRANSACTION '$label';");
	}
	else
	{
		my $end = $kind eq 'large' ? 'COMMIT' : "PREPARE TRANSACTION '$label'";
		sql($n2, "BEGIN; INSERT INTO item SELECT 2000000 + $number * 10000 + g, '$label' FROM generate_series(1, 2000) g; $end;");
	}
	push @order, $label;
	return $label;
}

sub write_from
{
	my ($node, $kind) = @_;
	my $name = $node->name;
	my $id = 1000000 * substr($name, 1) + 500000 + ++$number;

	if ($kind eq 'prepared')
	{
		sql($node, "BEGIN; INSERT INTO item VALUES ($id, '$name'); PREPARE TRANSACTION 'p$id';",
			"COMMIT PREPARED 'p$id';");
	}
	else { sql($node, "INSERT INTO item VALUES ($id, '$name')"); }
	$node->wait_for_catchup("n2_$name", 'replay', $node->lsn('insert'));
	return;
}

# The vectors of a session are never wrong; the last transaction is the newest of n2.
sub check_bounds
{
	my ($name, %options) = @_;
	my @got = transactions($n2, 'probe', %options);
	my ($too_high, $too_low) = (0, 0);

	foreach my $transaction (@got)
	{
		my ($label, $vector) = @$transaction;
		my $known = $exact{$label};

		foreach my $node (qw(n1 n3))
		{
			my ($surely, $maybe) = @{ $vector->{ $id{$node} } // [ 0, 0 ] };

			if ($surely > $known->{$node}) { $too_high++; }
			if ($maybe < $known->{$node}) { $too_low++; }
		}
	}
	is($too_high, 0, "$name: no lower bound is too high");
	is($too_low, 0, "$name: no upper bound is too low");
	is($got[-1][0], $order[-1], "$name: the newest transaction is there") unless $options{streaming};
	return @got;
}

# ---- one session, open all the time --------------------------------------------

sql($n2, "SELECT pg_create_logical_replication_slot('probe', 'krahodb_output', false, true)");
my $first = write_n2('plain');
write_from($n1, 'plain');
write_n2('plain');
write_from($n3, 'plain');
write_n2('plain');
write_n2('plain');
write_from($n1, 'prepared');
write_n2('large');
write_from($n3, 'plain');
my $prepared = write_n2('prepared');
write_from($n1, 'plain');
write_n2('plain');
my $large_prepared = write_n2('largeprepared');
write_from($n3, 'prepared');
write_n2('plain');
sql($n2, "COMMIT PREPARED '$_'") foreach $prepared, $large_prepared;
write_n2('plain');

# A session that starts when all of this is over knows at its first transaction only
# what is surely too much, from the first of n1 and n3 on what is right.
my $got = () = check_bounds('a session that comes later', streaming => 'true', two_phase => 'true');
is($got, scalar @order, 'every transaction is there');
is(join(' ', sort map { $_->[0] } transactions($n2, 'probe', streaming => 'true', two_phase => 'true')),
	join(' ', sort @order), '... with its rows');
check_bounds('without streaming and two-phase');

# The lower bounds are the exact ones as soon as both nodes have been heard of.
{
	my @got = transactions($n2, 'probe', streaming => 'true', two_phase => 'true');
	my %right;
	foreach my $transaction (@got)
	{
		my ($label, $vector) = @$transaction;
		foreach my $node (qw(n1 n3))
		{
			my $surely = $vector->{ $id{$node} }[0];
			$right{$node} = $surely if $surely == $exact{$label}{$node} && $surely > 0;
			is($surely, $exact{$label}{$node}, "$label: lower bound of $node is the newest applied")
			  if $right{$node};
		}
	}
	is(join(' ', sort keys %right), 'n1 n3', 'both nodes have been heard of');
}

# With origin = any all is passed on in this stream: nothing is told.
{
	my @any = transactions($n2, 'probe', origin => 'any');
	cmp_ok(scalar @any, '>', scalar @order, 'origin = any passes on');
	is(scalar(grep { %{ $_->[1] } } @any), 0, '... and tells no vectors');
}

# filter_origins tells of those that it filters.
{
	my $origin = sql($n2, "SELECT roident FROM pg_replication_origin
		JOIN pg_subscription ON roname = 'pg_' || oid WHERE subname = 'n2_n1'");
	my @some = transactions($n2, 'probe', origin => 'any', filter_origins => $origin);
	my %told = map { $_ => 1 } map { keys %{ $_->[1] } } @some;
	is(join(' ', keys %told), $id{n1}, 'filter_origins tells of those that are filtered');
}

# ---- a session that is open while it happens: the worker of n3 ---------------------

sub told
{
	my ($node, $offset) = @_;
	my @told;
	my $log = slurp_file($node->logfile, $offset);

	push @told, [ $1, lsn_value($2), lsn_value($3) ]
	  while $log =~ m{publisher has seen of node (\d+) surely ([0-9A-F]+/[0-9A-F]+) and maybe ([0-9A-F]+/[0-9A-F]+)}g;
	return @told;
}
{
	my $offset = -s $n3->logfile;
	my (@expected, @n1_told);

	foreach (1 .. 4)
	{
		write_from($n1, 'plain');
		push @expected, applied('n1');
		write_n2('plain');
		$n2->wait_for_catchup('n3_n2', 'replay', $n2->lsn('insert'));
	}
	write_n2('plain');
	$n2->wait_for_catchup('n3_n2', 'replay', $n2->lsn('insert'));
	@n1_told = grep { $_->[0] eq $id{n1} && $_->[1] >= $expected[0] } told($n3, $offset);
	is(join(' ', map { "$_->[1]-$_->[2]" } @n1_told),
		join(' ', map { "$_-$_" } @expected),
		'the vector grows exactly with what was applied, and is told when it has changed');
}

# ---- this node's progress ----------------------------------------------------------

{
	sql($n2, q{CREATE FUNCTION seen_progress(text) RETURNS text LANGUAGE C STRICT AS 'krahodb', 'krahodb_test_seen_progress'});
	my $progress = sub { return sql($n2, "SELECT seen_progress('$_[0]')"); };

	is($progress->($id{n2}), '18446744073709551615', 'a node has all of its own');
	is($progress->('12345'), 0, 'and nothing of one that it does not know');
	write_from($n1, 'plain');
	cmp_ok($progress->($id{n1}), '>=', applied('n1'), 'and what it has applied');
	my $idle = $n3->lsn('insert');
	$n3->wait_for_catchup('n2_n3', 'replay', $idle);
	ok($n2->poll_query_until('postgres', "SELECT seen_progress('$id{n3}')::numeric >= " . lsn_value($idle)),
		'and what the stream has passed without a transaction');
	cmp_ok($progress->($id{n3}), '<=', lsn_value($n3->lsn('insert')), 'but no more than there is');
}

# ---- restarts --------------------------------------------------------------------

# The slot is moved on, so that a session does not read what was applied before.
sub advance { sql($n2, "SELECT pg_replication_slot_advance('probe', pg_current_wal_insert_lsn())"); return; }

advance();
my $after = write_n2('plain');
check_bounds('first transaction after the start');
my ($lone) = transactions($n2, 'probe');
is($lone->[1]{ $id{n1} }[0], 0, 'nothing is sure at the start');
cmp_ok($lone->[1]{ $id{n1} }[1], '>=', $exact{$after}{n1}, 'but the upper bound is there');

foreach my $mode ('fast', 'immediate')
{
	write_from($n1, 'plain');
	write_n2('plain');
	$n2->stop($mode);
	$n2->start;
	check_bounds("after a restart ($mode)");
	write_n2('plain');
	write_from($n1, 'plain');
	write_from($n3, 'plain');
	write_n2('plain');
	check_bounds("and writes after it ($mode)");
	advance();
	write_n2('plain');
	check_bounds("and a session after it ($mode)");
}

# What a walsender knew at its start becomes sure with what is committed behind that.
{
	my $offset = -s $n3->logfile;
	my $pid = sql($n2, "SELECT pid FROM pg_stat_replication WHERE application_name = 'n3_n2'");
	my $known = applied('n1');

	sql($n2, "SELECT pg_terminate_backend($pid)");
	$n2->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_stat_replication WHERE application_name = 'n3_n2' AND pid <> $pid")
	  or die 'timed out waiting for the walsender to come back';
	write_n2('plain');
	$n2->wait_for_catchup('n3_n2', 'replay', $n2->lsn('insert'));
	my @n1_told = grep { $_->[0] eq $id{n1} } told($n3, $offset);
	is(join(' ', map { "$_->[1]-$_->[2]" } @n1_told), "$known-$known",
		'a walsender that was restarted soon knows again what was applied');
}

# ALTER SUBSCRIPTION ... REFRESH locks the states of tables for as long as it talks to
# another node.  A walsender that waited for that would not notice that it is to end.
{
	my $session = $n2->background_psql('postgres');
	my $pid = sql($n2, "SELECT pid FROM pg_stat_replication WHERE application_name = 'n3_n2'");

	$session->query_safe('BEGIN; LOCK pg_subscription_rel');
	sql($n2, "SELECT pg_terminate_backend($pid)");
	my $label = write_n2('plain');
	$n2->wait_for_catchup('n3_n2', 'replay', $n2->lsn('insert'));
	my ($last) = grep { $_->[0] eq $label } transactions($n2, 'probe');
	is($last->[1]{ $id{n1} }[0], 0, 'nothing is sure while the states of tables are locked, and nobody waits');
	$session->query_safe('COMMIT');
	$session->quit;
}

# A transaction runs while a table begins to be copied.  The states of tables are read as of
# its first change; what it writes afterwards may be rows that were copied.
{
	sql($_, 'CREATE TABLE joined (id int PRIMARY KEY)') foreach ($n1, $n2);
	sql($n1, 'INSERT INTO joined VALUES (1); CREATE PUBLICATION joined FOR TABLE joined');
	sql($n2, 'ALTER TABLE joined ADD CONSTRAINT not_yet CHECK (id < 0)');
	write_from($n3, 'plain');
	my $session = $n2->background_psql('postgres');

	$session->query_safe('BEGIN');
	$session->query_safe("INSERT INTO item VALUES (2000000 + @{[ ++$number ]}, 'during$number')");
	my $label = "during$number";
	sql($n2, "CREATE SUBSCRIPTION n2_joined CONNECTION '" . connstr($n1) . "' PUBLICATION joined WITH (origin = none)");
	$session->query_safe('COMMIT');
	$session->quit;
	my ($last) = grep { $_->[0] eq $label } transactions($n2, 'probe');
	is($last->[1]{ $id{n3} }[0], 0, 'nothing is sure for what runs while a copy begins');

	sql($n2, 'ALTER TABLE joined DROP CONSTRAINT not_yet');
	$n2->wait_for_subscription_sync($n1, 'n2_joined');
	$label = write_n2('plain');
	($last) = grep { $_->[0] eq $label } transactions($n2, 'probe');
	cmp_ok($last->[1]{ $id{n3} }[0], '>', 0, 'and it is again when the copy is done');
	sql($n2, 'DROP SUBSCRIPTION n2_joined');
}

# ---- rows that are ahead of the stream ----------------------------------------------

# A table is copied while the stream stands still.
{
	$n1->safe_psql('postgres', 'CREATE TABLE late (id int PRIMARY KEY); INSERT INTO late VALUES (1);
		CREATE PUBLICATION late FOR TABLE late;');
	$n2->safe_psql('postgres', 'CREATE TABLE late (id int PRIMARY KEY)');
	my $copied_from = lsn_value($n1->lsn('insert'));
	sql($n2, "CREATE SUBSCRIPTION n2_late CONNECTION '" . connstr($n1) . "' PUBLICATION late WITH (origin = none)");
	$n2->wait_for_subscription_sync($n1, 'n2_late');
	my $label = write_n2('plain');
	my ($last) = grep { $_->[0] eq $label } transactions($n2, 'probe');
	cmp_ok($last->[1]{ $id{n1} }[1], '>=', $copied_from, 'the upper bound has what was copied');
	$n2->stop('immediate');
	$n2->start;
	($last) = grep { $_->[0] eq $label } transactions($n2, 'probe');
	cmp_ok($last->[1]{ $id{n1} }[1], '>=', $copied_from, '... also after a crash');
}

# A subscription that is gone leaves what it had applied.
{
	my $known = applied('n3');
	sql($n2, 'DROP SUBSCRIPTION n2_n3');
	my $label = write_n2('plain');
	my ($last) = grep { $_->[0] eq $label } transactions($n2, 'probe');
	cmp_ok($last->[1]{ $id{n3} }[1], '>=', $known, 'the upper bound outlives a subscription');
	cmp_ok($last->[1]{ $id{n3} }[0], '<=', $known, '... and the lower one is not raised');
	$n2->restart;
	($last) = grep { $_->[0] eq $label } transactions($n2, 'probe');
	cmp_ok($last->[1]{ $id{n3} }[1], '>=', $known, '... nor forgotten by a restart');
}

$_->stop foreach @nodes;
done_testing();
