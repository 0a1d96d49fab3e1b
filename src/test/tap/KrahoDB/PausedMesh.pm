# KrahoDB::PausedMesh: nodes that all subscribe to each other, whose streams a test
# lets run one at a time, so that it says in which order writes arrive.

package KrahoDB::PausedMesh;

use strict;
use warnings;

use KrahoDB::Nodes;

# Started nodes; %params: names => [names], schema => SQL for each of them, which
# makes the extension and the publications, publications => their names, with commas.
sub new
{
	my ($class, %params) = @_;
	my $self = bless { streams => [] }, $class;

	$self->{nodes} = [ map { krahodb_node($_, conf => $params{conf}) } @{ $params{names} } ];
	$_->safe_psql('postgres', $params{schema}) foreach $self->nodes;
	foreach my $node ($self->nodes)
	{
		foreach my $from (grep { $_ != $node } $self->nodes)
		{
			my $name = $node->name . '_' . $from->name;

			$node->safe_psql('postgres',
				sprintf("CREATE SUBSCRIPTION %s CONNECTION '%s' PUBLICATION %s WITH (origin = none, copy_data = false)",
					$name, connstr($from), $params{publications}));
			push @{ $self->{streams} }, [ $from, $name ];
		}
	}
	$self->settle;
	return $self;
}

sub nodes { return @{ $_[0]{nodes} }; }

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
