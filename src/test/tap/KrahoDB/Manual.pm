# KrahoDB::Manual: runs the examples of a page of the manual.
#
# A fenced block is an example that is run if its info string names a node; the
# rest of the page is text.  Markdown shows nothing of info strings.
#
#	```sql node=a			input of psql on node a
#	```sh node=a			a shell script; PGHOST, PGPORT and PGDATABASE are node a's
#	```output				what the example before it prints, errors and notices too.
#							White space counts as one blank, "..." stands for anything.
#	```log node=a			lines that the log of node a gets, likewise with "..."
#
# Words behind the node:
#
#	wait	run the example again until it prints what the page says, as somebody
#			would who waits for replication.  Only for examples that change nothing.
#
# An example that is not followed by its output must succeed.
#
# A node is started when it is first named, empty, and lives until the end of its
# page.  Pages name servers as "host=" and a node of the page, or as "host=localhost
# port=5441" for a, 5442 for b and so on; here it is put in where they really are.

package KrahoDB::Manual;

use strict;
use warnings;

use Exporter 'import';
use IPC::Run;
use KrahoDB::Nodes;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

our @EXPORT = qw(blocks_of run_page);

# All fenced blocks of a file: { line, language, node, wait, text }.
sub blocks_of
{
	my ($file) = @_;
	my (@blocks, $block);
	my $number = 0;

	foreach my $line (split /\n/, slurp_file($file))
	{
		$number++;
		if ($line =~ /^```(\S*)\s*(.*)$/)
		{
			if ($block)
			{
				push @blocks, $block;
				undef $block;
				next;
			}
			my ($language, $words) = ($1, $2);
			$block = { line => $number, language => $language, text => '' };
			$block->{node} = $1 if $words =~ /\bnode=(\w+)/;
			$block->{wait} = 1 if $words =~ /\bwait\b/;
		}
		elsif ($block)
		{
			$block->{text} .= "$line\n";
		}
	}
	die "$file: a block is not closed" if $block;
	return @blocks;
}

# What the page says, as a pattern for what is printed.
sub pattern
{
	my ($text) = @_;
	my @parts = map { quotemeta } split /\.\.\./, squeeze($text), -1;
	my $joined = join('.*?', @parts);

	return qr/$joined/s;
}

sub squeeze
{
	my ($text) = @_;

	$text =~ s/\s+/ /g;
	$text =~ s/^ | $//g;
	return $text;
}

# The text with the real addresses of the nodes that it names.
sub with_addresses
{
	my ($nodes, $text) = @_;

	$text =~ s/\bhost=localhost port=544([1-9])\b/'host=' . chr(ord('a') - 1 + $1)/ge;
	$text =~ s/\bhost=([a-z]\w*)/'host=' . $nodes->($1)->host . ' port=' . $nodes->($1)->port/ge;
	return $text;
}

sub run_once
{
	my ($node, $block, $input) = @_;
	my $is_sql = $block->{language} eq 'sql';
	my @command = $is_sql ? ('psql', '-X', '-q') : ('bash', '-e');
	my $out = '';

	# With an output to compare, psql goes on after an error as for its users.
	push @command, '-v', 'ON_ERROR_STOP=1' if $is_sql && !defined $block->{output};
	local @ENV{qw(PGHOST PGPORT PGDATABASE)} = ($node->host, $node->port, 'postgres');
	IPC::Run::run(\@command, '<', \$input, '>', \$out, '2>&1');
	return ($out, $? == 0);
}

# Is it what the page says?
sub is_as_stated
{
	my ($block, $out, $success) = @_;

	return $success unless defined $block->{output};
	my $pattern = pattern($block->{output});
	return squeeze($out) =~ /^$pattern$/;
}

sub run_example
{
	my ($nodes, $block, $name) = @_;
	my $node = $nodes->($block->{node});
	my $input = with_addresses($nodes, $block->{text});
	my $tries = $block->{wait} ? 10 * $PostgreSQL::Test::Utils::timeout_default : 1;
	my ($out, $success);

	for (;;)
	{
		($out, $success) = run_once($node, $block, $input);
		last if is_as_stated($block, $out, $success) || --$tries <= 0;
		usleep(100_000);
	}
	ok(is_as_stated($block, $out, $success), $name)
	  or diag("example:\n$block->{text}\nprinted:\n$out\n"
		  . 'the page says: ' . ($block->{output} // 'that it succeeds'));
	return;
}

sub look_for_log
{
	my ($nodes, $block, $name) = @_;

	my $found = eval { $nodes->($block->{node})->wait_for_log(log_pattern($block->{text})); 1 };

	ok($found, $name) or diag("the log lacks:\n$block->{text}");
	return;
}

# Blanks between words may be any white space in the log.
sub log_pattern
{
	my ($text) = @_;
	my $pattern = pattern($text);

	$pattern =~ s/\\ /\\s+/g;
	return qr/$pattern/;
}

# Run all examples of a page, in order, on nodes of its own.
sub run_page
{
	my ($file) = @_;
	my ($page) = $file =~ m{([^/]+)\.md$};
	my @blocks = blocks_of($file);
	my %nodes;
	my $nodes = sub {
		my ($name) = @_;
		return $nodes{$name} //= krahodb_node("${page}_$name");
	};

	foreach my $i (0 .. $#blocks)
	{
		my $block = $blocks[$i];
		my $next = $blocks[ $i + 1 ];

		next unless $block->{node};
		$block->{output} = $next->{text} if $next && $next->{language} eq 'output';
		die "$file, line $block->{line}: nothing to wait for"
		  if $block->{wait} && !defined $block->{output};

		my $name = "$page.md, line $block->{line}, on $block->{node}";
		if ($block->{language} eq 'log')
		{
			look_for_log($nodes, $block, "$name: log");
		}
		else
		{
			run_example($nodes, $block, $name);
		}
	}
	$_->stop foreach values %nodes;
	return;
}

1;
