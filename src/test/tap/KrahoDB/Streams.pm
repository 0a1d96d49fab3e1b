# KrahoDB::Streams: nodes that subscribe to publication "pub" of each other, one pair at a time.
#
# Subscriptions are called NODE_from_PUBLISHER, do not forward, and are remembered in
# @streams, for wait_streams.

package KrahoDB::Streams;

use strict;
use warnings;

use Exporter 'import';
use KrahoDB::Nodes;

our @EXPORT = qw(@streams on name subscribe pause resume);
our @streams;

sub on { my ($node, $query) = @_; return $node->safe_psql('postgres', $query); }

sub name { my ($node, $from) = @_; return $node->name . '_from_' . $from->name; }

# Returns what notices and warnings it gave.
sub subscribe
{
	my ($node, $from, $options) = @_;
	my (undef, undef, $notices) = $node->psql('postgres',
		sprintf("CREATE SUBSCRIPTION %s CONNECTION '%s' PUBLICATION pub WITH (origin = none, %s)",
			name($node, $from), connstr($from), $options),
		on_error_die => 1);

	push @streams, [ $from, name($node, $from) ];
	return $notices;
}

sub pause { pause_subscription($_[0], name(@_)); return; }

sub resume { my ($node, $from) = @_; return on($node, 'ALTER SUBSCRIPTION ' . name($node, $from) . ' ENABLE'); }

1;
