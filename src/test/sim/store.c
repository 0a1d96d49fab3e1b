/*
 * store.c
 *		What a node stores, and the callbacks of KdbMerge over it.
 *
 * A model of the server's storage that keeps its weak points.  The heap knows of a
 * row only the version of the local transaction that wrote or ended it (shown,
 * ended); the truth is in a version record where the two differ, and the record
 * counts only while the heap shows what it showed then: a local user's write makes
 * it void without knowing of it.
 */
#include "sim.h"

#include <string.h>

jmp_buf		SimCrash;

static bool
is_version(KdbVersion a, KdbVersion b)
{
	return KdbVersionCompare(a, b) == 0;
}

static KdbVersion
greater(KdbVersion a, KdbVersion b)
{
	return KdbVersionCompare(a, b) >= 0 ? a : b;
}

/* ---- reading ---------------------------------------------------------------- */

void
SimFind(const SimNode *node, int table, int key, KdbLocalRow *local, uint32_t transaction)
{
	const SimKey *k = &node->keys[table][key];
	KdbVersion	heap = k->live ? k->shown : k->ended;
	uint32_t	by = k->live ? k->shown_by : k->ended_by;

	memset(local, 0, sizeof(KdbLocalRow));
	if (k->record && k->record_live == k->live && is_version(k->record_shown, heap))
	{
		local->version = k->record_version;
		by = k->record_by;
	}
	else
		local->version = heap;
	if (k->live)
		local->state = KDB_ROW_LIVE;
	else if (local->version.ts != 0)
		local->state = KDB_ROW_DEAD;
	local->version_known = local->state != KDB_ROW_ABSENT;
	local->xid = k->live && k->rewritten;
	local->same_transaction = local->version_known && transaction != 0 && by == transaction;
}

/* Can two rows not have these values at the same time? */
bool
SimOverlaps(int table, int index, int a, int b)
{
	const SimTable *t = &sim->history->tables[table];

	if (a < 0 || b < 0)
		return false;
	return a == b || (t->range && index == t->indexes - 1 && (a == 0 || b == 0));
}

/* The first of them. */
int
SimHolderOf(const SimNode *node, int table, int index, int value, int except)
{
	for (int key = 0; value >= 0 && key < SIM_KEYS; key++)
	{
		if (key != except && node->keys[table][key].live &&
			SimOverlaps(table, index, node->keys[table][key].row.unique[index], value))
			return key;
	}
	return -1;
}

static const SimTable *
table_of(const SimWrite *write)
{
	return &sim->history->tables[write->table];
}

/* ---- writing ---------------------------------------------------------------- */

static void
claim_values(SimNode *node, int table, int key, const SimRow *row, KdbVersion version)
{
	for (int i = 0; i < sim->history->tables[table].indexes; i++)
	{
		if (row->unique[i] >= 0)
		{
			KdbVersion *claim = &node->claims[table][i][row->unique[i]][key];

			*claim = greater(*claim, version);
		}
	}
}

static void
end_row(SimKey *k, KdbVersion version, uint32_t by)
{
	k->live = false;
	if (KdbVersionCompare(version, k->ended) >= 0)
	{
		k->ended = version;
		k->ended_by = by;
	}
}

static void
start_row(SimNode *node, int table, int key, const SimRow *row, KdbVersion version, uint32_t by)
{
	SimKey	   *k = &node->keys[table][key];

	if (k->live)
		end_row(k, version, by);
	k->live = true;
	k->row = *row;
	k->shown = version;
	k->shown_by = by;
	k->rewritten = false;
	claim_values(node, table, key, row, version);
}

/* Keep the contract: SimFind answers this version from now on. */
static void
remember(SimApply *apply, SimKey *k, KdbVersion version, bool asked)
{
	KdbVersion	heap = k->live ? k->shown : k->ended;

	if (is_version(heap, version))
	{
		/* Neither a record that says something else, nor another transaction's. */
		if (k->record && k->record_live == k->live && is_version(k->record_shown, heap))
			k->record = false;
		return;
	}
	if (!asked && !k->record)
		SimFail("node %d: a version record is needed, and the rules did not ask for it", apply->me);
	k->record = true;
	k->record_live = k->live;
	k->record_version = version;
	k->record_shown = heap;
	k->record_by = apply->transaction;
}

int32_t
SimCombine(int column, int32_t old, int32_t change)
{
	if (column == 0)
		return old == SIM_NULL ? SIM_NULL : old + change;
	if (old == SIM_NULL)
		return change;
	return column == 1 ? (change > old ? change : old) : (change < old ? change : old);
}

static KdbMergeKind
kind_of(int column)
{
	return column == 0 ? KDB_MERGE_DELTA : column == 1 ? KDB_MERGE_MAX :
														 KDB_MERGE_MIN;
}

static KdbContributionKind
update_contribution(const SimWrite *write, int column)
{
	int32_t		old = write->old_merged[column];
	int32_t		new = write->row.merged[column];

	return KdbContributionOf(kind_of(column), old == SIM_NULL, new == SIM_NULL,
							 new < old ? -1 : new > old);
}

/* All but the version. */
void
SimContributionOf(const SimWrite *write, SimContribution *c)
{
	bool		insert = write->operation == KDB_INSERT || write->old_key != write->new_key;

	for (int column = 0; column < SIM_COLUMNS; column++)
	{
		c->kind[column] = insert ? KDB_CONTRIBUTES_VALUE : update_contribution(write, column);
		c->value[column] = write->row.merged[column];
		if (c->kind[column] == KDB_CONTRIBUTES_CHANGE && column == 0)
			c->value[column] -= write->old_merged[column];
	}
}

static void
append_history(SimKey *k, const SimContribution *c)
{
	if (k->nhistory < SIM_HISTORY)
		k->history[k->nhistory++] = *c;
	else
		SimFail("too many contributions to a key for the simulator");
}

static void
contribute_write(SimNode *node, const SimWrite *write, KdbVersion version)
{
	SimContribution c;

	c.version = version;
	SimContributionOf(write, &c);
	append_history(&node->keys[write->table][write->new_key], &c);
}

/* Half of them were in the heap, say. */
static void
empty_history(SimKey *k)
{
	int			n = 0;

	for (int i = 0; i < k->nhistory; i++)
	{
		if (k->history[i].version.ts % 2 != 0)
			k->history[n++] = k->history[i];
	}
	k->nhistory = n;
}

/* TRUNCATE: nothing is left of the heap.  Records stay. */
void
SimEmpty(SimNode *node, int table, uint32_t by)
{
	for (int key = 0; key < SIM_KEYS; key++)
	{
		SimKey	   *k = &node->keys[table][key];

		k->live = false;
		memset(&k->ended, 0, sizeof(KdbVersion));
		k->ended_by = by;
		empty_history(k);
	}
	memset(node->claims[table], 0, sizeof(node->claims[table]));
	node->emptied_by[table] = by;
}

/* A local user's write, at the version with which its transaction will commit. */
void
SimStoreLocal(SimNode *node, const SimWrite *write, KdbVersion version)
{
	if (write->truncate)
	{
		SimEmpty(node, write->table, node->transactions);
		return;
	}
	if (write->operation == KDB_DELETE || write->old_key != write->new_key)
		end_row(&node->keys[write->table][write->old_key], version, node->transactions);
	if (write->operation == KDB_DELETE)
		return;
	start_row(node, write->table, write->new_key, &write->row, version, node->transactions);
	if (table_of(write)->merged)
		contribute_write(node, write, version);
}

/* ---- callbacks: facts --------------------------------------------------------- */

static const KdbMergeOps ops;

static SimApply *
called(void *arg)
{
	SimApply   *apply = arg;

	if (++apply->calls > 2000)
	{
		SimFail("node %d: the rules do not come to an end", apply->me);
		longjmp(SimCrash, 1);
	}
	if (apply->crash_at > 0 && apply->calls >= apply->crash_at)
		longjmp(SimCrash, 1);
	return apply;
}

static int
key_of(SimApply *apply, KdbMergeKey key)
{
	return key == KDB_KEY_OLD ? apply->write->old_key : apply->write->new_key;
}

static SimKey *
store_of(SimApply *apply, KdbMergeKey key)
{
	return &apply->node->keys[apply->write->table][key_of(apply, key)];
}

static const SimRow *
row_of(SimApply *apply, KdbRowPart part)
{
	return part == KDB_PART_FETCHED ? &apply->fetched : &apply->write->row;
}

static void
op_find(void *arg, KdbMergeKey key, KdbLocalRow *local)
{
	SimApply   *apply = called(arg);

	SimFind(apply->node, apply->write->table, key_of(apply, key), local, apply->transaction);
	local->same_origin = local->version.node == apply->context.version.node;
	if (key == KDB_KEY_OLD && local->state == KDB_ROW_LIVE)
	{
		apply->old_key_row = store_of(apply, key)->row;
		apply->has_old_key_row = true;
	}
}

static bool
op_unique_changes(void *arg, KdbRowPart part)
{
	SimApply   *apply = called(arg);
	const SimRow *row = row_of(apply, part);
	const SimKey *k = store_of(apply, KDB_KEY_NEW);

	if (!k->live)
		SimFail("unique_changes without a live row");
	return memcmp(row->unique, k->row.unique, sizeof(row->unique)) != 0;
}

typedef enum WhichHolders
{
	HOLDERS_ALL,
	HOLDERS_OLDER,				/* not greater than the version */
	HOLDERS_NEWER
} WhichHolders;

/* The new row is written beside an older one that keeps a value of it. */
static void
note_claimant(SimApply *apply)
{
	for (int i = 0; i < apply->nclaimants; i++)
	{
		if (apply->claimants[i][0] == apply->write->table && apply->claimants[i][1] == apply->write->new_key)
			return;
	}
	apply->claimants[apply->nclaimants][0] = apply->write->table;
	apply->claimants[apply->nclaimants++][1] = apply->write->new_key;
}

static bool
in_the_way(SimApply *apply, int index, int key, KdbVersion version, WhichHolders which, KdbLocalRow *holder)
{
	KdbMergeKeeping keeping;

	SimFind(apply->node, apply->write->table, key, holder, apply->transaction);
	if (which != HOLDERS_ALL &&
		(KdbVersionCompare(version, holder->version) >= 0) != (which == HOLDERS_OLDER))
		return false;
	if (index > 0 || !table_of(apply->write)->deferrable)
		return true;
	keeping = KdbMergeMayKeep(&ops, apply, &apply->context, version, holder, apply->at_end);
	if (keeping == KDB_KEEPS_FOR_NOW)
		note_claimant(apply);
	return keeping == KDB_KEEPS_NOT;
}

/* Behind those that are listed already. */
static int
list_holders(SimApply *apply, KdbRowPart part, KdbVersion version, WhichHolders which,
			 KdbMergeHolder *list, int n, int max)
{
	const SimRow *row = row_of(apply, part);
	int			table = apply->write->table;

	for (int i = 0; i < table_of(apply->write)->indexes; i++)
	{
		for (int key = 0; key < SIM_KEYS && n < max; key++)
		{
			const SimKey *k = &apply->node->keys[table][key];
			bool		known = key == apply->write->new_key || !k->live ||
				!SimOverlaps(table, i, row->unique[i], k->row.unique[i]);

			for (int j = 0; j < n; j++)
				known |= list[j].handle == key;
			if (known || !in_the_way(apply, i, key, version, which, &list[n].row))
				continue;
			list[n++].handle = key;
		}
	}
	return n;
}

static int
op_holders(void *arg, KdbRowPart part, KdbVersion version, KdbMergeHolder *list, int max)
{
	SimApply   *apply = called(arg);
	int			n = list_holders(apply, part, version, HOLDERS_ALL, list, 0, max);

	if (n < max || !SIM_RULE(OLDER_FIRST))
		return n;
	n = list_holders(apply, part, version, HOLDERS_OLDER, list, 0, max);
	return list_holders(apply, part, version, HOLDERS_NEWER, list, n, max);
}

static bool
op_newer_claim(void *arg, KdbRowPart part, KdbVersion version)
{
	SimApply   *apply = called(arg);
	const SimRow *row = row_of(apply, part);
	int			table = apply->write->table;

	for (int i = 0; i < table_of(apply->write)->indexes; i++)
	{
		for (int value = 0; value < SIM_VALUES; value++)
		{
			for (int key = 0; SimOverlaps(table, i, row->unique[i], value) && key < SIM_KEYS; key++)
			{
				if (key != apply->write->new_key &&
					KdbVersionCompare(apply->node->claims[table][i][value][key], version) > 0)
					return true;
			}
		}
	}
	return false;
}

static uint64_t
op_position(void *arg, const KdbLocalRow *local)
{
	SimApply   *apply = called(arg);
	int			node = (int) local->version.node - 1;
	uint64_t	position = UINT64_MAX;

	for (int i = 0; node >= 0 && local->xid == 0 && i < sim->nlog[node]; i++)
	{
		if (!sim->log[node][i].mark && is_version(sim->log[node][i].version, local->version))
			position = (uint64_t) i + 1;
	}
	if (node >= 0 && position <= apply->node->floor[node])
	{
		if (position < apply->node->floor[node])
			apply->exact = false;
		position = apply->node->floor[node];
	}
	return position;
}

/*
 * Of a lost node's old identity nobody has more than was kept, not even itself.  (Its positions go on
 * here when it is back, so what was seen of the new identity counts as seen of the old one,
 * too: a fetch more.)
 */
static uint64_t
op_progress(void *arg, uint64_t node)
{
	SimApply   *apply = called(arg);
	int			of = (int) node - 1;
	uint64_t	progress = of == apply->me ? UINT64_MAX : apply->node->applied[of];

	if (sim->lost_one && of == sim->lost && progress > sim->kept && SIM_RULE(NEW_IDENTITY))
		progress = sim->kept;
	return progress;
}

/* How far a row of that version at the source may be in the stream of the version's node. */
static uint64_t
furthest(int source, int node)
{
	const SimNode *from = &sim->nodes[source];

	if (source == node)
		return (uint64_t) sim->nlog[node];
	return from->applied[node] > from->ahead[node] ? from->applied[node] : from->ahead[node];
}

/*
 * Was the table truncated at the source after the write?  By a transaction that began later; or by
 * one that was being applied when the writer committed, which has an older version: but nothing else would
 * have taken what is newer than the horizon.
 */
static bool
was_emptied(const SimApply *apply)
{
	const SimNode *from = &sim->nodes[apply->source];
	uint32_t	by = from->emptied_by[apply->write->table];

	if (by == 0)
		return false;
	return by >= apply->entry->transaction || apply->context.version.ts > SimHorizon(apply->source);
}

static void
op_fetch(void *arg, KdbFetched *fetched)
{
	SimApply   *apply = called(arg);
	SimNode    *node = apply->node;
	SimNode    *from = &sim->nodes[apply->source];
	KdbLocalRow there;
	int			writer;

	sim->fetches++;
	SimFind(from, apply->write->table, apply->write->new_key, &there, 0);
	if (KdbVersionCompare(there.version, apply->context.version) < 0 &&
		was_emptied(apply) && (SIM_RULE(EMPTIED) || there.state == KDB_ROW_ABSENT))
	{
		there.state = KDB_ROW_DEAD;
		there.version = apply->context.version;
	}
	if (there.state == KDB_ROW_ABSENT)
	{
		SimFail("node %d: the row to be fetched from node %d has left no trace there", apply->me, apply->source);
		longjmp(SimCrash, 1);
	}
	if (there.version.ts < apply->context.version.ts)
	{
		SimFail("node %d: the row to be fetched from node %d is older there than the change", apply->me, apply->source);
		longjmp(SimCrash, 1);
	}
	fetched->state = there.state;
	fetched->version = there.version;
	apply->fetched = from->keys[apply->write->table][apply->write->new_key].row;
	writer = (int) there.version.node - 1;
	if (writer >= 0 && writer != apply->me && SIM_RULE(AHEAD))
	{
		uint64_t	far = furthest(apply->source, writer);

		if (far > node->ahead[writer])
			node->ahead[writer] = far;
	}
	if (there.version.ts > node->greatest && SIM_RULE(CLOCK_FETCH))
		node->greatest = there.version.ts;
}

static bool
op_history(void *arg, int column, int i, KdbContribution *contribution)
{
	SimApply   *apply = called(arg);
	const SimKey *k = store_of(apply, KDB_KEY_NEW);

	if (i >= k->nhistory)
		return false;
	contribution->version = k->history[i].version;
	contribution->kind = (KdbContributionKind) k->history[i].kind[column];
	return true;
}

static KdbContributionKind
op_contribution(void *arg, int column)
{
	return update_contribution(called(arg)->write, column);
}

static int32_t
contributed(SimApply *apply, int column, int i)
{
	SimContribution own;

	if (i >= 0)
		return store_of(apply, KDB_KEY_NEW)->history[i].value[column];
	SimContributionOf(apply->write, &own);
	return own.value[column];
}

static void
op_fold_start(void *arg, int column, int i)
{
	SimApply   *apply = called(arg);

	apply->folded[column] = contributed(apply, column, i);
}

static void
op_fold_change(void *arg, int column, int i)
{
	SimApply   *apply = called(arg);

	apply->folded[column] = SimCombine(column, apply->folded[column], contributed(apply, column, i));
}

/* ---- callbacks: actions --------------------------------------------------------- */

static SimApply *
act(void *arg, bool *disturbed)
{
	SimApply   *apply = called(arg);

	*disturbed = apply->disturb_at > 0 && --apply->disturb_at == 0;
	return apply;
}

static void
merge_columns(SimApply *apply, const KdbMergePut *put, const SimRow *local, SimRow *row)
{
	SimContribution own;

	switch (put->merged)
	{
		case KDB_MERGED_WRITTEN:
			if (put->chosen != KDB_PART_FETCHED || apply->write->operation != KDB_INSERT)
				memcpy(row->merged, apply->write->row.merged, sizeof(row->merged));
			break;
		case KDB_MERGED_FOLDED:
			memcpy(row->merged, apply->folded, sizeof(row->merged));
			break;
		case KDB_MERGED_COMBINE:
			SimContributionOf(apply->write, &own);
			for (int column = 0; column < SIM_COLUMNS; column++)
			{
				row->merged[column] = local->merged[column];
				if (own.kind[column] == KDB_CONTRIBUTES_VALUE)
					row->merged[column] = own.value[column];
				else if (own.kind[column] == KDB_CONTRIBUTES_CHANGE)
					row->merged[column] = SimCombine(column, local->merged[column], own.value[column]);
			}
			break;
	}
}

static void
compose(SimApply *apply, const KdbMergePut *put, const SimRow *local, SimRow *row)
{
	*row = put->chosen == KDB_PART_LOCAL ? *local : *row_of(apply, put->chosen);
	if (put->chosen == KDB_PART_WRITTEN && apply->write->unsent)
	{
		if (put->unsent == KDB_PART_LOCAL && store_of(apply, KDB_KEY_NEW)->live)
			row->wide = local->wide;
		else if (put->unsent == KDB_PART_OLD_KEY && apply->has_old_key_row)
			row->wide = apply->old_key_row.wide;
		else if (put->unsent == KDB_PART_FETCHED)
			row->wide = apply->fetched.wide;
		else
			SimFail("node %d: a value that was not sent is taken from nowhere", apply->me);
	}
	if (table_of(apply->write)->merged)
		merge_columns(apply, put, local, row);
}

/*
 * Once a deferrable value has turned out to be taken, and holders have been looked at, the
 * engine looks at it when the transaction ends.
 */
static bool
taken(SimApply *apply, const SimRow *row)
{
	const SimWrite *write = apply->write;

	for (int i = 0; i < table_of(write)->indexes; i++)
	{
		if ((i > 0 || !table_of(write)->deferrable || apply->clashes == 0) &&
			SimHolderOf(apply->node, write->table, i, row->unique[i], write->new_key) >= 0)
			return true;
	}
	return false;
}

static KdbMergeResult
put_row(SimApply *apply, const KdbMergePut *put)
{
	const SimWrite *write = apply->write;
	SimKey	   *k = store_of(apply, KDB_KEY_NEW);
	SimRow		local = k->row;
	SimRow		row;

	compose(apply, put, &local, &row);
	if (taken(apply, &row))
	{
		apply->clashes++;
		return KDB_MERGE_CHANGED;
	}
	start_row(apply->node, write->table, write->new_key, &row, apply->context.version, apply->transaction);
	remember(apply, k, put->version, put->remember);
	if (table_of(write)->merged && put->chosen == KDB_PART_WRITTEN &&
		(put->merged == KDB_MERGED_COMBINE ||
		 (put->merged == KDB_MERGED_WRITTEN &&
		  (write->operation == KDB_INSERT || write->old_key != write->new_key))))
		contribute_write(apply->node, write, apply->context.version);
	return KDB_MERGE_DONE;
}

static KdbMergeResult
op_insert(void *arg, const KdbMergePut *put)
{
	bool		disturbed;
	SimApply   *apply = act(arg, &disturbed);

	if (disturbed || store_of(apply, KDB_KEY_NEW)->live)
		return KDB_MERGE_CHANGED;
	return put_row(apply, put);
}

static KdbMergeResult
op_overwrite(void *arg, const KdbMergePut *put)
{
	bool		disturbed;
	SimApply   *apply = act(arg, &disturbed);

	if (!store_of(apply, KDB_KEY_NEW)->live)
		SimFail("node %d: no row to overwrite", apply->me);
	if (disturbed)
		return KDB_MERGE_CHANGED;
	return put_row(apply, put);
}

static KdbMergeResult
op_remove(void *arg, KdbMergeKey key, KdbVersion version, bool asked)
{
	bool		disturbed;
	SimApply   *apply = act(arg, &disturbed);
	SimKey	   *k = store_of(apply, key);

	if (disturbed)
		return KDB_MERGE_CHANGED;
	if (!k->live)
		SimFail("node %d: no row to delete", apply->me);
	end_row(k, apply->context.version, apply->transaction);
	remember(apply, k, version, asked);
	return KDB_MERGE_DONE;
}

static KdbMergeResult
op_kill(void *arg, const KdbMergeHolder *holder, KdbVersion version, bool asked)
{
	bool		disturbed;
	SimApply   *apply = act(arg, &disturbed);
	SimKey	   *k = &apply->node->keys[apply->write->table][holder->handle];

	if (disturbed)
		return KDB_MERGE_CHANGED;
	end_row(k, apply->context.version, apply->transaction);
	remember(apply, k, version, asked);
	return KDB_MERGE_DONE;
}

static void
op_bury(void *arg, KdbMergeKey key, KdbVersion version)
{
	SimApply   *apply = called(arg);

	if (store_of(apply, key)->live)
		SimFail("node %d: a live row is buried", apply->me);
	remember(apply, store_of(apply, key), version, true);
}

static void
op_claim(void *arg, KdbRowPart part, KdbVersion version)
{
	SimApply   *apply = called(arg);

	claim_values(apply->node, apply->write->table, apply->write->new_key, row_of(apply, part), version);
}

static void
op_contribute(void *arg, bool with_base)
{
	SimApply   *apply = called(arg);

	if (with_base)
	{
		SimContribution base = {{0, 0}};

		for (int column = 0; column < SIM_COLUMNS; column++)
		{
			base.kind[column] = KDB_CONTRIBUTES_VALUE;
			base.value[column] = apply->write->old_merged[column];
		}
		append_history(store_of(apply, KDB_KEY_NEW), &base);
	}
	contribute_write(apply->node, apply->write, apply->context.version);
}

/* A row that gives a deferrable value away by this transaction is not in its way. */
static void
check_kept(SimApply *apply, const KdbMergeReport *r)
{
	if (!apply->exact || apply->at_end || apply->context.fetched || apply->write->unsent ||
		!table_of(apply->write)->deferrable || table_of(apply->write)->indexes > 1)
		return;
	for (int i = 0; i < r->nholders && r->decision.action != KDB_ACTION_SKIP; i++)
	{
		const KdbLocalRow *holder = &r->holders[i].row;
		uint64_t	position = op_position(apply, holder);

		if (apply->exact && KdbVersionCompare(apply->context.version, holder->version) >= 0 &&
			KdbSeenSurely(&apply->context.seen, holder->version.node, position))
			SimFail("node %d: a deferrable value is taken from a row that the writer had seen", apply->me);
	}
}

/* A write that follows what its writer had seen is no conflict. */
static void
op_report(void *arg, const KdbMergeReport *r)
{
	SimApply   *apply = called(arg);

	sim->conflicts++;
	if (r->decision.action == KDB_ACTION_ERROR || r->decision.conflict == KDB_CONFLICT_NONE)
		SimFail("node %d: report of an unexpected decision", apply->me);
	check_kept(apply, r);
	if (apply->exact && r->local && r->local->state == KDB_ROW_LIVE &&
		(r->decision.conflict == KDB_CONFLICT_UPDATE_ORIGIN_DIFFERS ||
		 r->decision.conflict == KDB_CONFLICT_DELETE_ORIGIN_DIFFERS))
	{
		uint64_t	position = op_position(apply, r->local);

		if (apply->exact && KdbSeenSurely(&apply->context.seen, r->local->version.node, position))
			SimFail("node %d: %s is reported of a row that the writer had seen",
					apply->me, KdbConflictTypeName(r->decision.conflict));
	}
}

static const KdbMergeOps ops = {
	.find = op_find,
	.unique_changes = op_unique_changes,
	.holders = op_holders,
	.newer_claim = op_newer_claim,
	.position = op_position,
	.progress = op_progress,
	.fetch = op_fetch,
	.history = op_history,
	.contribution = op_contribution,
	.fold_start = op_fold_start,
	.fold_change = op_fold_change,
	.insert = op_insert,
	.overwrite = op_overwrite,
	.remove = op_remove,
	.kill = op_kill,
	.bury = op_bury,
	.claim = op_claim,
	.contribute = op_contribute,
	.report = op_report
};

/* ---- running the rules ------------------------------------------------------------ */

static void
describe(const SimWrite *write, KdbMergeWrite *w)
{
	w->operation = write->operation;
	w->key_changed = write->operation == KDB_UPDATE && write->old_key != write->new_key;
	w->unsent = write->unsent;
	w->unique = table_of(write)->indexes > 0;
	w->deferrable = table_of(write)->deferrable;
	w->nmerged = table_of(write)->merged ? SIM_COLUMNS : 0;
}

void
SimApplyWrite(SimApply *apply, const SimWrite *write)
{
	KdbMergeWrite w;

	apply->write = write;
	if (write->truncate)
	{
		SimEmpty(apply->node, write->table, apply->transaction);
		return;
	}
	apply->has_old_key_row = false;
	apply->clashes = 0;
	describe(write, &w);
	KdbMerge(&ops, apply, &apply->context, &w);
}

/* The end of the transaction: rows that were written beside older ones claim their values once more. */
void
SimApplyEnd(SimApply *apply)
{
	apply->at_end = true;
	for (int i = 0; i < apply->nclaimants && SIM_RULE(CLAIM_AT_END); i++)
	{
		int8_t		key = apply->claimants[i][1];
		SimWrite	write = {KDB_UPDATE, apply->claimants[i][0], key, key};
		SimKey	   *k = &apply->node->keys[write.table][key];

		write.row = k->row;
		apply->write = &write;
		apply->clashes = 0;
		if (k->live)
			KdbMergeClaimAtEnd(&ops, apply, &apply->context);
	}
}

/* Merge a row that another node had fetched from one that was lost. */
void
SimApplyState(SimApply *apply, const SimExtra *extra)
{
	SimWrite	write = {KDB_INSERT, extra->table, extra->key, extra->key};
	KdbMergeWrite w;

	write.row = extra->row;
	apply->write = &write;
	apply->fetched = extra->row;
	describe(&write, &w);
	KdbMergeState(&ops, apply, &apply->context, &w, &extra->state);
}
