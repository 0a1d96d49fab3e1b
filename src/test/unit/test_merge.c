/*
 * test_merge.c
 *		The convergence rules on a small store of arrays.
 *
 *	order		Any set of writes, sensible or not, gives the same rows in any order of
 *				arrival that keeps each origin's own.
 *	cost		What a write without conflict asks for.
 *	error		A callback that leaves by longjmp leaves nothing behind; the write can be
 *				merged again.
 *
 * Histories of whole nodes, with fetches, crashes and joins, are the simulator's
 * (src/test/sim).
 */
#include "krahodb/merge.h"

#include <setjmp.h>
#include <string.h>

#include "tap.h"

#define KEYS		4
#define VALUES		3			/* of the unique column */
#define ORIGINS		4
#define TRANSACTIONS 8			/* of one origin */
#define WRITES		2			/* of one transaction */
#define SETS		20000
#define MAX_HISTORY	128

typedef struct Row
{
	int			unique;			/* -1: NULL */
	int			value;
	int			sum;			/* merged, delta */
} Row;

typedef struct Write
{
	KdbOperation operation;
	int			old_key;
	int			new_key;
	Row			row;
	int			old_sum;
} Write;

typedef struct Transaction
{
	KdbVersion	version;
	int			nwrites;
	Write		writes[WRITES];
} Transaction;

typedef struct Stream
{
	int			n;
	Transaction transactions[TRANSACTIONS];
} Stream;

typedef struct Contributed
{
	KdbContribution c;
	int			value;
} Contributed;

typedef struct Key
{
	KdbRowState state;
	KdbVersion	version;
	int			by;				/* number of the transaction that was applied */
	Row			row;
	int			nhistory;
	Contributed history[MAX_HISTORY];
} Key;

typedef struct Node
{
	Key			keys[KEYS];
	KdbVersion	claims[VALUES][KEYS];
	int			applied;

	/* the write that is being merged */
	KdbMergeContext context;
	const Write *write;
	int			folded;
	bool		violated;
	int			calls;
	char		called[200];	/* first letters */
	int			leave_at;		/* leave at that call; 0: never */
	jmp_buf		out;
} Node;

static KdbResolvers resolvers;

static Node *
called(void *arg, char what)
{
	Node	   *node = arg;

	if (node->calls < (int) sizeof(node->called) - 1)
		node->called[node->calls] = what;
	node->calls++;
	if (node->calls == node->leave_at)
		longjmp(node->out, 1);
	return node;
}

static Key *
key_of(Node *node, KdbMergeKey key)
{
	return &node->keys[key == KDB_KEY_OLD ? node->write->old_key : node->write->new_key];
}

static void
local_of(const Node *node, const Key *key, KdbLocalRow *local)
{
	memset(local, 0, sizeof(KdbLocalRow));
	local->state = key->state;
	local->version = key->version;
	local->version_known = key->state != KDB_ROW_ABSENT;
	local->same_transaction = local->version_known && key->by == node->applied;
}

static void
op_find(void *arg, KdbMergeKey key, KdbLocalRow *local)
{
	Node	   *node = called(arg, 'f');

	local_of(node, key_of(node, key), local);
}

static bool
op_unique_changes(void *arg, KdbRowPart part)
{
	Node	   *node = called(arg, 'u');

	return node->write->row.unique != key_of(node, KDB_KEY_NEW)->row.unique;
}

static int
holder_of(const Node *node, int unique, int except)
{
	for (int i = 0; unique >= 0 && i < KEYS; i++)
	{
		if (i != except && node->keys[i].state == KDB_ROW_LIVE && node->keys[i].row.unique == unique)
			return i;
	}
	return -1;
}

static int
op_holders(void *arg, KdbRowPart part, KdbVersion version, KdbMergeHolder *list, int max)
{
	Node	   *node = called(arg, 'h');
	int			holder = holder_of(node, node->write->row.unique, node->write->new_key);

	if (holder < 0)
		return 0;
	list[0].handle = holder;
	local_of(node, &node->keys[holder], &list[0].row);
	return 1;
}

static bool
op_newer_claim(void *arg, KdbRowPart part, KdbVersion version)
{
	Node	   *node = called(arg, 'n');
	int			unique = node->write->row.unique;

	for (int i = 0; unique >= 0 && i < KEYS; i++)
	{
		if (i != node->write->new_key && KdbVersionCompare(node->claims[unique][i], version) > 0)
			return true;
	}
	return false;
}

static uint64_t
op_position(void *arg, const KdbLocalRow *local)
{
	called(arg, 'p');
	return UINT64_MAX;
}

static uint64_t
op_progress(void *arg, uint64_t origin)
{
	called(arg, 'P');
	return 0;
}

static void
op_fetch(void *arg, KdbFetched *fetched)
{
	called(arg, 'F');
	abort();
}

static bool
op_history(void *arg, int column, int i, KdbContribution *contribution)
{
	Node	   *node = called(arg, 'y');
	Key		   *key = key_of(node, KDB_KEY_NEW);

	if (i >= key->nhistory)
		return false;
	*contribution = key->history[i].c;
	return true;
}

static bool
is_insert(const Write *write)
{
	return write->operation == KDB_INSERT || write->old_key != write->new_key;
}

static KdbContributionKind
kind_of(const Write *write)
{
	if (is_insert(write))
		return KDB_CONTRIBUTES_VALUE;
	return KdbContributionOf(KDB_MERGE_DELTA, false, false, write->row.sum - write->old_sum);
}

static KdbContributionKind
op_contribution(void *arg, int column)
{
	return kind_of(called(arg, 'c')->write);
}

static int
contributed(Node *node, int i)
{
	if (i >= 0)
		return key_of(node, KDB_KEY_NEW)->history[i].value;
	return is_insert(node->write) ? node->write->row.sum : node->write->row.sum - node->write->old_sum;
}

static void
op_fold_start(void *arg, int column, int i)
{
	Node	   *node = called(arg, 's');

	node->folded = contributed(node, i);
}

static void
op_fold_change(void *arg, int column, int i)
{
	Node	   *node = called(arg, 'a');

	node->folded += contributed(node, i);
}

static void
add_history(Node *node, KdbContributionKind kind, KdbVersion version, int value)
{
	Key		   *key = key_of(node, KDB_KEY_NEW);
	Contributed *c = &key->history[key->nhistory++];

	if (key->nhistory == MAX_HISTORY)
		abort();
	c->c.kind = kind;
	c->c.version = version;
	c->value = value;
}

static void
claim(Node *node, int unique, int key, KdbVersion version)
{
	if (unique >= 0 && KdbVersionCompare(version, node->claims[unique][key]) > 0)
		node->claims[unique][key] = version;
}

static KdbMergeResult
put_row(Node *node, const KdbMergePut *put)
{
	Key		   *key = key_of(node, KDB_KEY_NEW);
	Row			row = put->chosen == KDB_PART_LOCAL ? key->row : node->write->row;

	if (put->merged == KDB_MERGED_FOLDED)
		row.sum = node->folded;
	else if (put->merged == KDB_MERGED_COMBINE)
		row.sum = key->row.sum + node->write->row.sum - node->write->old_sum;
	if (holder_of(node, row.unique, node->write->new_key) >= 0)
		return KDB_MERGE_CHANGED;
	if (put->chosen == KDB_PART_WRITTEN &&
		(put->merged == KDB_MERGED_COMBINE || (put->merged == KDB_MERGED_WRITTEN && is_insert(node->write))))
		add_history(node, kind_of(node->write), node->context.version, contributed(node, -1));
	key->state = KDB_ROW_LIVE;
	key->version = put->version;
	key->by = node->applied;
	key->row = row;
	claim(node, row.unique, node->write->new_key, put->version);
	return KDB_MERGE_DONE;
}

static KdbMergeResult
op_insert(void *arg, const KdbMergePut *put)
{
	Node	   *node = called(arg, 'I');

	if (key_of(node, KDB_KEY_NEW)->state == KDB_ROW_LIVE)
		return KDB_MERGE_CHANGED;
	return put_row(node, put);
}

static KdbMergeResult
op_overwrite(void *arg, const KdbMergePut *put)
{
	return put_row(called(arg, 'O'), put);
}

static void
die(Node *node, Key *key, KdbVersion version)
{
	key->state = KDB_ROW_DEAD;
	key->version = version;
	key->by = node->applied;
}

static KdbMergeResult
op_remove(void *arg, KdbMergeKey key, KdbVersion version, bool remember)
{
	Node	   *node = called(arg, 'D');

	die(node, key_of(node, key), version);
	return KDB_MERGE_DONE;
}

static KdbMergeResult
op_kill(void *arg, const KdbMergeHolder *holder, KdbVersion version, bool remember)
{
	Node	   *node = called(arg, 'K');

	die(node, &node->keys[holder->handle], version);
	return KDB_MERGE_DONE;
}

static void
op_bury(void *arg, KdbMergeKey key, KdbVersion version)
{
	Node	   *node = called(arg, 'B');

	die(node, key_of(node, key), version);
}

static void
op_claim(void *arg, KdbRowPart part, KdbVersion version)
{
	Node	   *node = called(arg, 'C');

	claim(node, node->write->row.unique, node->write->new_key, version);
}

static void
op_contribute(void *arg, bool with_base)
{
	Node	   *node = called(arg, 'T');

	if (with_base)
		add_history(node, KDB_CONTRIBUTES_VALUE, (KdbVersion) {0, 0}, node->write->old_sum);
	add_history(node, kind_of(node->write), node->context.version, contributed(node, -1));
}

static void
op_report(void *arg, const KdbMergeReport *report)
{
	called(arg, 'R');
}

static const KdbMergeOps ops = {
	op_find, op_unique_changes, op_holders, op_newer_claim, op_position, op_progress,
	op_fetch, op_history, op_contribution, op_fold_start, op_fold_change, op_insert,
	op_overwrite, op_remove, op_kill, op_bury, op_claim, op_contribute, op_report
};

static void
begin(Node *node, KdbVersion version)
{
	node->applied++;
	memset(&node->context, 0, sizeof(node->context));
	node->context.resolvers = &resolvers;
	node->context.version = version;
	node->context.horizon = INT64_MIN;
}

static void
merge(Node *node, const Write *write)
{
	KdbMergeWrite w = {
		.operation = write->operation, .key_changed = write->old_key != write->new_key,
		.unique = true, .nmerged = 1
	};

	node->write = write;
	node->calls = 0;
	memset(node->called, 0, sizeof(node->called));
	KdbMerge(&ops, node, &node->context, &w);
	for (int i = 0; i < KEYS; i++)
		node->violated |= node->keys[i].state == KDB_ROW_LIVE &&
			holder_of(node, node->keys[i].row.unique, i) >= 0;
}

/* ---- order --------------------------------------------------------------------- */

static void
random_write(Write *write)
{
	memset(write, 0, sizeof(Write));
	write->operation = (KdbOperation) random_below(3);
	write->old_key = write->new_key = (int) random_below(KEYS);
	if (write->operation == KDB_UPDATE && random_below(4) == 0)
		write->new_key = (int) random_below(KEYS);
	write->row.unique = (int) random_below(VALUES + 1) - 1;
	write->row.value = (int) random_below(1000000);
	write->row.sum = (int) random_below(100);
	write->old_sum = (int) random_below(100);
}

/*
 * The first stream is one insert of key 0, older than all others, which gives its sum
 * a base however late it arrives.  A transaction writes a value of the unique column
 * once at most, as it must.
 */
static void
random_streams(Stream *streams, int n)
{
	for (int i = 0; i < n; i++)
	{
		Stream	   *stream = &streams[i];
		int64_t		ts = 10;

		stream->n = 1 + (int) random_below(TRANSACTIONS);
		for (int t = 0; t < stream->n; t++)
		{
			Transaction *transaction = &stream->transactions[t];

			ts += 1 + random_below(4);
			transaction->version = (KdbVersion) {ts, (uint64_t) i + 1};
			transaction->nwrites = 1 + (int) random_below(WRITES);
			for (int w = 0; w < transaction->nwrites; w++)
				random_write(&transaction->writes[w]);
			if (transaction->nwrites == 2 &&
				transaction->writes[0].row.unique == transaction->writes[1].row.unique)
				transaction->writes[1].row.unique = -1;
		}
	}
	streams[0].n = 1;
	streams[0].transactions[0].version = (KdbVersion) {1, 1};
	streams[0].transactions[0].nwrites = 1;
	streams[0].transactions[0].writes[0] = (Write) {KDB_INSERT, 0, 0, {-1, 0, 5}, 0};
}

static void
deliver(Node *node, const Stream *streams, int n)
{
	int			next[ORIGINS] = {0};
	int			left = 0;

	memset(node, 0, sizeof(Node));
	for (int i = 0; i < n; i++)
		left += streams[i].n;
	while (left > 0)
	{
		int			i = (int) random_below((uint32_t) n);
		const Transaction *t = &streams[i].transactions[next[i]];

		if (next[i] == streams[i].n)
			continue;
		begin(node, t->version);
		for (int w = 0; w < t->nwrites; w++)
			merge(node, &t->writes[w]);
		next[i]++;
		left--;
	}
}

/* Sums only of key 0: the others may have no insert at all, which real writers prevent. */
static bool
equal(const Node *a, const Node *b)
{
	for (int i = 0; i < KEYS; i++)
	{
		const Key  *x = &a->keys[i];
		const Key  *y = &b->keys[i];

		if ((x->state == KDB_ROW_LIVE) != (y->state == KDB_ROW_LIVE))
			return false;
		if (x->state == KDB_ROW_LIVE &&
			(KdbVersionCompare(x->version, y->version) != 0 || x->row.value != y->row.value ||
			 x->row.unique != y->row.unique))
			return false;
		if (i == 0 && x->state == KDB_ROW_LIVE && x->row.sum != y->row.sum)
			return false;
	}
	return true;
}

static void
test_order(void)
{
	static Node a;
	static Node b;
	int			different = 0;
	int			violated = 0;

	for (int set = 0; set < SETS; set++)
	{
		Stream		streams[ORIGINS];
		int			n = 2 + (int) random_below(ORIGINS - 1);

		random_streams(streams, n);
		deliver(&a, streams, n);
		deliver(&b, streams, n);
		different += !equal(&a, &b);
		violated += a.violated || b.violated;
	}
	ok(different == 0, "order: %d of %d sets of writes end differently", different, SETS);
	ok(violated == 0, "order: the unique key is violated in %d of %d sets", violated, SETS);
}

/* ---- cost ---------------------------------------------------------------------- */

static void
cost(Node *node, const char *what, int64_t ts, bool newest, const Write *write, const char *expected)
{
	begin(node, (KdbVersion) {ts, 2});
	node->context.newest = newest;
	merge(node, write);
	ok(strcmp(node->called, expected) == 0, "cost of %s: %s", what, node->called);
}

static void
test_cost(void)
{
	static Node node;
	Write		insert = {KDB_INSERT, 0, 0, {1, 1, 5}, 0};
	Write		update = {KDB_UPDATE, 0, 0, {1, 2, 7}, 5};
	Write		other = {KDB_UPDATE, 0, 0, {2, 3, 7}, 7};
	Write		delete = {KDB_DELETE, 0, 0, {-1, 0, 0}, 0};

	memset(&node, 0, sizeof(node));
	cost(&node, "an insert, nothing here is newer", 10, true, &insert, "I");
	cost(&node, "an update of the same node's row", 11, true, &update, "fuO");
	cost(&node, "an update of a unique column", 12, true, &other, "fuhO");
	cost(&node, "a delete", 13, true, &delete, "fD");
	cost(&node, "an insert, something here may be newer", 14, false, &insert, "fhnI");
	ok(node.keys[0].row.sum == 5, "cost: the sum starts again");
}

/* ---- error ---------------------------------------------------------------------- */

static void
test_error(void)
{
	static Node node;
	static Node before;
	static Node expected;
	Write		first = {KDB_INSERT, 0, 0, {1, 1, 5}, 0};
	Write		second = {KDB_INSERT, 1, 1, {1, 2, 6}, 0};
	volatile int left = 0;

	memset(&before, 0, sizeof(before));
	begin(&before, (KdbVersion) {10, 2});
	merge(&before, &first);
	begin(&before, (KdbVersion) {11, 3});
	expected = before;
	merge(&expected, &second);
	ok(expected.keys[0].state == KDB_ROW_DEAD && expected.keys[1].state == KDB_ROW_LIVE,
	   "error: the newer row has the value (%s)", expected.called);
	for (int at = 1; at <= expected.calls; at++)
	{
		node = before;
		node.leave_at = at;
		if (setjmp(node.out) == 0)
			merge(&node, &second);
		else
			left++;
		node = before;
		merge(&node, &second);
		if (!equal(&node, &expected))
			break;
	}
	ok(left == expected.calls, "error: left at each of %d calls, and merged again", expected.calls);
}

/* ---- the rest ------------------------------------------------------------------- */

static void
test_contributions(void)
{
	ok(KdbContributionOf(KDB_MERGE_DELTA, false, false, 1) == KDB_CONTRIBUTES_CHANGE &&
	   KdbContributionOf(KDB_MERGE_DELTA, false, false, -1) == KDB_CONTRIBUTES_CHANGE, "a delta changes");
	ok(KdbContributionOf(KDB_MERGE_DELTA, false, false, 0) == KDB_CONTRIBUTES_NOTHING &&
	   KdbContributionOf(KDB_MERGE_MAX, true, true, 0) == KDB_CONTRIBUTES_NOTHING, "an unchanged value contributes nothing");
	ok(KdbContributionOf(KDB_MERGE_MAX, false, false, 1) == KDB_CONTRIBUTES_CHANGE &&
	   KdbContributionOf(KDB_MERGE_MIN, false, false, -1) == KDB_CONTRIBUTES_CHANGE, "a maximum raised, a minimum lowered");
	ok(KdbContributionOf(KDB_MERGE_MAX, false, false, -1) == KDB_CONTRIBUTES_VALUE &&
	   KdbContributionOf(KDB_MERGE_MIN, false, false, 1) == KDB_CONTRIBUTES_VALUE, "the other way is an assignment");
	ok(KdbContributionOf(KDB_MERGE_DELTA, true, false, 0) == KDB_CONTRIBUTES_VALUE &&
	   KdbContributionOf(KDB_MERGE_MIN, false, true, 0) == KDB_CONTRIBUTES_VALUE, "to and from NULL is an assignment");
}

static void
test_seen(void)
{
	KdbSeenEntry entries[] = {{7, 100, 120}};
	KdbSeen		seen = {1, entries};

	ok(KdbSeenSurely(&seen, 7, 100), "seen up to the lower bound");
	ok(!KdbSeenSurely(&seen, 7, 101), "not surely behind it");
	ok(!KdbSeenSurely(&seen, 8, 0), "nothing of a node without an entry");
	ok(KdbSeenFind(&seen, 8) == NULL && KdbSeenFind(&seen, 7) == entries, "an entry is found by its node");
}

int
main(void)
{
	random_init();
	KdbResolversSetAll(&resolvers, KDB_RESOLVER_LAST_UPDATE_WINS);
	test_order();
	test_cost();
	test_error();
	test_contributions();
	test_seen();
	return done_testing();
}
