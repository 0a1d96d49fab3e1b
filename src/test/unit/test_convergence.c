/*
 * test_convergence.c
 *		Last update wins gives every node the same row.
 *
 * Writes to one key arrive at several nodes: in order within an origin, in any
 * order between origins.  A model node keeps what the design says a node knows
 * of a key: live with a version, dead with a version, or absent; and remembers
 * deletions of rows that it does not have.  Two properties:
 *
 *	receive		Any set of writes, sensible or not, leaves the last write of the
 *				greatest transaction, whatever the order of arrival.
 *	write		Nodes that write by themselves while they receive, as users do (insert
 *				what is not there, update and delete what is), with a clock that has
 *				passed all they have seen, end equal once all is delivered.
 *
 * Each property is checked with the rules as they are and with one of them
 * broken, so that we know that it can fail.
 */
#include "krahodb/conflict_rules.h"

#include <string.h>

#include "tap.h"

#define MAX_NODES	5
#define MAX_WRITES	40			/* of one origin */
#define HISTORIES	20000

typedef struct model_write
{
	KdbOperation operation;
	KdbVersion	version;
	int			value;
} model_write;

typedef struct model_row
{
	KdbRowState state;
	KdbVersion	version;
	int			value;			/* of a live row */
} model_row;

/* What each origin sends, in order. */
typedef struct model_stream
{
	int			nwrites;
	model_write writes[MAX_WRITES];
} model_stream;

/* A rule to break: dead rows look absent. */
static bool forget_deletions = false;

static void
receive(model_row *row, const model_write *write, const KdbResolvers *resolvers)
{
	KdbLocalRow local = {0};
	KdbDecision decision;
	bool		newer = row->state == KDB_ROW_ABSENT ||
		KdbVersionCompare(write->version, row->version) > 0;

	local.state = row->state;
	if (forget_deletions && row->state == KDB_ROW_DEAD)
		local.state = KDB_ROW_ABSENT;
	local.version_known = local.state != KDB_ROW_ABSENT;
	local.version = row->version;
	local.same_origin = local.version_known && row->version.node == write->version.node;
	local.same_transaction = local.same_origin && row->version.ts == write->version.ts;

	decision = KdbResolveRow(write->operation, write->version, &local, resolvers);
	switch (decision.action)
	{
		case KDB_ACTION_INSERT:
		case KDB_ACTION_UPDATE:
			row->state = KDB_ROW_LIVE;
			row->version = write->version;
			row->value = write->value;
			break;
		case KDB_ACTION_DELETE:
			row->state = KDB_ROW_DEAD;
			row->version = write->version;
			break;
		case KDB_ACTION_SKIP:
			if (write->operation == KDB_DELETE && row->state != KDB_ROW_LIVE && newer)
			{
				row->state = KDB_ROW_DEAD;
				row->version = write->version;
			}
			break;
		case KDB_ACTION_ERROR:
			abort();
	}
}

static bool
same_row(const model_row *a, const model_row *b)
{
	bool		a_live = a->state == KDB_ROW_LIVE;
	bool		b_live = b->state == KDB_ROW_LIVE;

	if (!a_live || !b_live)
		return a_live == b_live;
	return a->value == b->value && KdbVersionCompare(a->version, b->version) == 0;
}

/* Any operations; some in one transaction, some at the same time elsewhere. */
static void
random_stream(model_stream *stream, uint64_t node)
{
	KdbVersion	version = {0, node};

	stream->nwrites = 1 + (int) random_below(8);
	for (int i = 0; i < stream->nwrites; i++)
	{
		if (i == 0 || random_below(4) > 0)
			version.ts += 1 + random_below(3);
		stream->writes[i].operation = (KdbOperation) random_below(3);
		stream->writes[i].version = version;
		stream->writes[i].value = (int) random_below(1000000);
	}
}

/* Deliver all streams to a fresh row, in a random order between them. */
static model_row
deliver(const model_stream *streams, int nstreams, const KdbResolvers *resolvers)
{
	model_row	row = {0};
	int			next[MAX_NODES] = {0};
	int			left = 0;

	for (int i = 0; i < nstreams; i++)
		left += streams[i].nwrites;
	while (left > 0)
	{
		int			i = (int) random_below((uint32_t) nstreams);

		if (next[i] == streams[i].nwrites)
			continue;
		receive(&row, &streams[i].writes[next[i]++], resolvers);
		left--;
	}
	return row;
}

/* The last write of the greatest version. */
static model_row
winner(const model_stream *streams, int nstreams)
{
	model_row	row = {0};

	for (int i = 0; i < nstreams; i++)
	{
		for (int j = 0; j < streams[i].nwrites; j++)
		{
			const model_write *write = &streams[i].writes[j];

			if (row.state != KDB_ROW_ABSENT &&
				KdbVersionCompare(write->version, row.version) < 0)
				continue;
			row.state = write->operation == KDB_DELETE ? KDB_ROW_DEAD : KDB_ROW_LIVE;
			row.version = write->version;
			row.value = write->value;
		}
	}
	return row;
}

/* Number of histories that did not end with the winner everywhere. */
static int
receive_histories(int histories, const KdbResolvers *resolvers)
{
	int			wrong = 0;

	for (int h = 0; h < histories; h++)
	{
		model_stream streams[MAX_NODES];
		int			nstreams = 2 + (int) random_below(MAX_NODES - 1);
		model_row	expected;

		for (int i = 0; i < nstreams; i++)
			random_stream(&streams[i], (uint64_t) i + 1);
		expected = winner(streams, nstreams);

		for (int node = 0; node < nstreams; node++)
		{
			model_row	row = deliver(streams, nstreams, resolvers);

			if (!same_row(&row, &expected))
			{
				wrong++;
				break;
			}
		}
	}
	return wrong;
}

/* A node that writes and receives. */
typedef struct model_node
{
	model_row	row;
	int64_t		clock;
	int			received[MAX_NODES];	/* of each origin's stream */
} model_node;

static void
write_locally(model_node *node, uint64_t id, model_stream *stream)
{
	model_write *write = &stream->writes[stream->nwrites++];

	node->clock += 1 + random_below(2);
	write->version.ts = node->clock;
	write->version.node = id;
	write->value = (int) random_below(1000000);
	if (node->row.state != KDB_ROW_LIVE)
		write->operation = KDB_INSERT;
	else
		write->operation = random_below(3) == 0 ? KDB_DELETE : KDB_UPDATE;

	node->row.state = write->operation == KDB_DELETE ? KDB_ROW_DEAD : KDB_ROW_LIVE;
	node->row.version = write->version;
	node->row.value = write->value;
}

static void
receive_from(model_node *node, model_stream *stream, int origin, const KdbResolvers *resolvers)
{
	const model_write *write = &stream->writes[node->received[origin]++];

	receive(&node->row, write, resolvers);
	if (write->version.ts > node->clock)
		node->clock = write->version.ts;
}

static bool
run_write_history(const KdbResolvers *resolvers)
{
	model_node	nodes[MAX_NODES];
	model_stream streams[MAX_NODES];
	int			nnodes = 2 + (int) random_below(MAX_NODES - 1);
	int			writes = 3 + (int) random_below(20);
	bool		pending = true;

	memset(nodes, 0, sizeof(nodes));
	memset(streams, 0, sizeof(streams));
	while (writes > 0 || pending)
	{
		int			at = (int) random_below((uint32_t) nnodes);
		int			from = (int) random_below((uint32_t) nnodes);

		if (writes > 0 && random_below(3) == 0)
		{
			write_locally(&nodes[at], (uint64_t) at + 1, &streams[at]);
			writes--;
		}
		else if (at != from && nodes[at].received[from] < streams[from].nwrites)
			receive_from(&nodes[at], &streams[from], from, resolvers);

		pending = false;
		for (int i = 0; i < nnodes; i++)
		{
			for (int j = 0; j < nnodes; j++)
				pending |= i != j && nodes[i].received[j] < streams[j].nwrites;
		}
	}

	for (int i = 1; i < nnodes; i++)
	{
		if (!same_row(&nodes[0].row, &nodes[i].row))
			return false;
	}
	return true;
}

static int
write_histories(int histories, const KdbResolvers *resolvers)
{
	int			wrong = 0;

	for (int h = 0; h < histories; h++)
		wrong += !run_write_history(resolvers);
	return wrong;
}

int
main(void)
{
	KdbResolvers last_update_wins;
	KdbResolvers apply_remote;
	int			wrong;

	random_init();
	KdbResolversSetAll(&last_update_wins, KDB_RESOLVER_LAST_UPDATE_WINS);
	KdbResolversSetAll(&apply_remote, KDB_RESOLVER_APPLY_REMOTE);

	wrong = receive_histories(HISTORIES, &last_update_wins);
	ok(wrong == 0, "receive: %d of %d histories diverge", wrong, HISTORIES);
	wrong = write_histories(HISTORIES, &last_update_wins);
	ok(wrong == 0, "write: %d of %d histories diverge", wrong, HISTORIES);

	ok(receive_histories(1000, &apply_remote) > 0, "receive can fail: apply_remote diverges");
	ok(write_histories(1000, &apply_remote) > 0, "write can fail: apply_remote diverges");

	forget_deletions = true;
	ok(receive_histories(1000, &last_update_wins) > 0, "receive can fail: forgotten deletions diverge");
	ok(write_histories(1000, &last_update_wins) > 0, "write can fail: forgotten deletions diverge");
	return done_testing();
}
