# KrahoDB::PausedMesh: nodes that all subscribe to each other, whose streams a test
# lets run one at a time, so that it says in which order writes arrive.

package KrahoDB::PausedMesh;

use strict;
use warnings;

use KrahoDB::Nodes;
use Test::More;

# Started nodes; %params: names => [names], schema => SQL for each of them, which
# makes the extension and the publications, or a function that returns it for a number, publications => their names, with commas,
# options => more options of the subscriptions, conf => of the servers.
sub new
{
	my ($class, %params) = @_;
	my $self = bless { streams => [] }, $class;

	$self->{nodes} = [ map { krahodb_node($_, conf => $params{conf}) } @{ $params{names} } ];
	foreach my $number (1 .. $self->nodes)
	{
		$self->on($number => ref $params{schema} ? $params{schema}->($number) : $params{schema});
	}
	foreach my $node ($self->nodes)
	{
		foreach my $from (grep { $_ != $node } $self->nodes)
		{
			my $name = $node->name . '_' . $from->name;

			$node->safe_psql('postgres',
				sprintf("CREATE SUBSCRIPTION %s CONNECTION '%s' PUBLICATION %s WITH (%s)",
					$name, connstr($from), $params{publications},
					join ', ', 'origin = none', 'copy_data = false', $params{options} // ()));
			push @{ $self->{streams} }, [ $from, $name ];
		}
	}
	if (($params{options} // '') =~ /two_phase/)
	{
		$_->poll_query_until('postgres', "SELECT bool_and(subtwophasestate = 'e') FROM pg_subscription")
		  or die 'timed out waiting for two-phase commit' foreach $self->nodes;
	}
	$self->settle;
	return $self;
}

sub nodes { return @{ $_[0]{nodes} }; }

# Pairs of publisher and name of the subscription.
sub streams { return @{ $_[0]{streams} }; }

# The node with that number, from 1 on.
sub node
{
	my ($self, $number) = @_;
	return $self->{nodes}[ $number - 1 ];
}

# Stop all streams.
sub pause
{
	my ($self) = @_;

	foreach my $node ($self->nodes)
	{
		$node->safe_psql('postgres', join ';',
			map { "ALTER SUBSCRIPTION $_->[1] DISABLE" } grep { $_->[1] =~ /^@{[$node->name]}_/ } @{ $self->{streams} });
		$node->poll_query_until('postgres',
			'SELECT count(*) = 0 FROM pg_stat_subscription WHERE pid IS NOT NULL')
		  or die 'workers do not stop';
	}
	return;
}

# Let a stream run: "31" is from n1 to n3.  Does not wait for what it brings.
sub release
{
	my ($self, $link) = @_;
	my ($to, $from) = map { $self->node($_) } split //, $link;

	$to->safe_psql('postgres', 'ALTER SUBSCRIPTION ' . $to->name . '_' . $from->name . ' ENABLE');
	return;
}

# Let streams run, one after the other: each brings all that its node has written
# until then.
sub deliver
{
	my ($self, @links) = @_;

	foreach my $link (@links)
	{
		my ($to, $from) = map { $self->node($_) } split //, $link;

		$self->release($link);
		$from->wait_for_catchup($to->name . '_' . $from->name, 'replay', $from->lsn('insert'));
	}
	return;
}

# Everything has arrived; all streams must run.
sub settle
{
	my ($self) = @_;

	wait_streams(1, @{ $self->{streams} });
	return;
}

# Write on nodes, one after the other: number, SQL, ...
sub on
{
	my ($self, @writes) = @_;

	while (my ($number, $sql) = splice @writes, 0, 2)
	{
		$self->node($number)->safe_psql('postgres', $sql);
	}
	return;
}

# Everything has arrived, and the queries have the same results on all nodes.
sub all_equal
{
	my ($self, $name, @queries) = @_;

	$self->settle;
	is_equal_on($self->{nodes}, $_, "$name: " . ($_ =~ /FROM (\w+|".*?") /)[0]) foreach @queries;
	return;
}

# What a query says on the first node.
sub rows
{
	my ($self, $query) = @_;
	return $self->node(1)->safe_psql('postgres', $query);
}

# In SQL for one order of streams "%d" is the number of that order, and "%%" a "%".
sub numbered
{
	my ($sql, $number) = @_;

	$sql =~ s/%d/$number/g;
	$sql =~ s/%%/%/g;
	return $sql;
}

# Writes that know nothing of each other, delivered in several orders.  %params:
#
#	orders		[ [links in order], ... ]; in each, rows have keys of their own: see numbered
#	base		[ SQL on the first node, which all have before ]
#	writes		[ number of a node => SQL, ... ], by their versions in ascending order
#	compare		[ queries that must say the same on all nodes ]
#	expected	[ [ query, result, name ], ... ]
#	delivered	called with the number of an order and each link, when it has been delivered
#	done		called with the name of each order at its end
sub deliver_in_orders
{
	my ($self, %params) = @_;
	my $number = 0;

	foreach my $order (@{ $params{orders} })
	{
		my $name = "streams in order @$order";
		my @writes = @{ $params{writes} };

		$number++;
		$self->on(1 => numbered($_, $number)) foreach @{ $params{base} };
		$self->settle;
		$self->pause;
		while (my ($node, $sql) = splice @writes, 0, 2)
		{
			$self->on($node => numbered($sql, $number));
		}
		foreach my $link (@$order)
		{
			$self->deliver($link);
			$params{delivered}->($number, $link) if $params{delivered};
		}
		$self->all_equal("concurrent, $name", @{ $params{compare} });
		foreach my $check (@{ $params{expected} })
		{
			my ($query, $result, $what) = @$check;

			is($self->rows(numbered($query, $number)), $result, "$what, $name");
		}
		$params{done}->($name) if $params{done};
	}
	return;
}

# How often applying has failed, of all nodes together.
sub errors
{
	my ($self) = @_;
	my $sum = 0;

	$sum += $_->safe_psql('postgres', 'SELECT sum(apply_error_count) FROM pg_stat_subscription_stats')
	  foreach $self->nodes;
	return $sum;
}

sub stop
{
	my ($self) = @_;

	$_->stop foreach $self->nodes;
	return;
}

1;
