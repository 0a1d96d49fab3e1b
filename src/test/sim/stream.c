/*
 * stream.c
 *		Delivery, crashes, watermarks, the horizon.
 *
 * A stream is a node's log of transactions and watermarks; each other node has
 * applied a part of it, in order.  Data and position change together.
 *
 * THE HORIZON.  A watermark says two times: all commits of the sender up to "written"
 * lie before it in the stream; and up to "received" the sender had applied what every
 * other node has committed.  With the first of every peer a node knows what it has
 * received itself; the horizon is the least of that and of the second of every peer:
 * what every node has applied.  Because watermarks come in the stream's order, all
 * that a peer wrote before it had applied that much has arrived too.
 */
#include "sim.h"

#include <string.h>

int64_t
SimClock(int at)
{
	return sim->time + sim->nodes[at].skew;
}

static int64_t
least(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

/* Up to when this node has all commits of all others. */
int64_t
SimReceived(int at)
{
	int64_t		time = INT64_MAX;

	for (int p = 0; p < SIM_NODES; p++)
	{
		if (p != at && sim->nodes[p].active)
			time = least(time, sim->nodes[at].written[p]);
	}
	return time == INT64_MAX ? sim->nodes[at].greatest : time;
}

int64_t
SimHorizon(int at)
{
	int64_t		time = SimReceived(at);

	for (int p = 0; p < SIM_NODES; p++)
	{
		if (p != at && sim->nodes[p].active && SIM_RULE(STABILITY))
			time = least(time, sim->nodes[at].received[p]);
	}
	return time;
}

void
SimMark(int at)
{
	SimNode    *node = &sim->nodes[at];
	SimEntry   *entry = &sim->log[at][sim->nlog[at]];

	if (!node->active || sim->nlog[at] >= SIM_LOG)
		return;
	memset(entry, 0, sizeof(SimEntry));
	if (SimClock(at) > node->greatest)
		node->greatest = SimClock(at);
	entry->mark = true;
	entry->written = node->greatest;
	entry->received = SimReceived(at);
	sim->nlog[at]++;
	node->applied[at] = (uint64_t) sim->nlog[at];
}

/* Has every node applied it? */
bool
SimIsApplied(KdbVersion version)
{
	for (int from = 0; from < SIM_NODES && version.ts != 0; from++)
	{
		for (int i = 0; i < sim->nlog[from]; i++)
		{
			if (sim->log[from][i].mark || KdbVersionCompare(sim->log[from][i].version, version) != 0)
				continue;
			for (int to = 0; to < SIM_NODES; to++)
			{
				if (sim->nodes[to].active && to != from && sim->nodes[to].applied[from] <= (uint64_t) i)
					return false;
			}
		}
	}
	return true;
}

static bool
writes_to(const SimEntry *entry, int table)
{
	for (int i = 0; i < entry->nwrites; i++)
	{
		if (entry->writes[i].table == table)
			return true;
	}
	return false;
}

/* Is no change of the table on its way, to no node? */
bool
SimIsQuiet(int table)
{
	for (int to = 0; to < SIM_NODES; to++)
	{
		if (!sim->nodes[to].active && sim->nodes[to].greatest > 0)
			return false;
		for (int from = 0; sim->nodes[to].active && from < SIM_NODES; from++)
		{
			for (int i = (int) sim->nodes[to].applied[from]; to != from && i < sim->nlog[from]; i++)
			{
				if (writes_to(&sim->log[from][i], table))
					return false;
			}
		}
	}
	return true;
}

/* ---- what the sender says that it had seen ------------------------------------ */

void
SimRestart(int at)
{
	for (int p = 0; p < SIM_NODES; p++)
	{
		SimNode    *node = &sim->nodes[at];

		sim->restarted_at[at][p] = sim->nodes[p].applied[at] + 1;
		sim->restarted_upper[at][p] = node->applied[p] > node->ahead[p] ? node->applied[p] : node->ahead[p];
	}
}

/*
 * The seen vector as the sender decodes it for this receiver.  One that has started
 * again behind an entry knows of commits applied since; for nodes of which nothing
 * was applied since, it has no lower bound, and what is applied now as the upper one.
 */
static int
seen_vector(SimApply *apply, int to, int from, const SimEntry *entry, int spoil, KdbSeenEntry *seen)
{
	uint64_t	start = sim->restarted_at[from][to];
	const SimNode *sender = &sim->nodes[from];
	int			n = 0;

	for (int p = 0; p < SIM_NODES; p++)
	{
		if (p == from)
			continue;
		seen[n].node = (uint64_t) p + 1;
		seen[n].surely = entry->surely[p];
		seen[n].maybe = entry->maybe[p];
		if (start > 0 && start <= (uint64_t) sim->nlog[from] && (int) start <= sim->nlog[from])
		{
			const SimEntry *first = &sim->log[from][start - 1];

			if (!first->mark && first->surely[p] == entry->surely[p])
			{
				seen[n].surely = 0;
				apply->exact = false;
			}
			if (sim->restarted_upper[from][p] > seen[n].maybe && SIM_RULE(RESTART))
				seen[n].maybe = sim->restarted_upper[from][p];
			else if (!SIM_RULE(RESTART))
				seen[n].maybe = seen[n].surely;
		}
		if (spoil & (1 << p))
		{
			seen[n].surely = 0;
			apply->exact = false;
		}
		if (spoil & (32 << p))
		{
			if (sender->applied[p] > seen[n].maybe)
				seen[n].maybe = sender->applied[p];
			if (sender->ahead[p] > seen[n].maybe)
				seen[n].maybe = sender->ahead[p];
		}
		n++;
	}
	return n;
}

/* ---- applying ------------------------------------------------------------------- */

static void
apply_mark(int to, int from, const SimEntry *entry)
{
	SimNode    *node = &sim->nodes[to];

	node->written[from] = entry->written;
	node->received[from] = entry->received;
}

static const KdbResolvers *
last_update_wins(void)
{
	static KdbResolvers resolvers;
	static bool set = false;

	if (!set)
		KdbResolversSetAll(&resolvers, KDB_RESOLVER_LAST_UPDATE_WINS);
	set = true;
	return &resolvers;
}

static void
start_apply(SimApply *apply, int to, int source, KdbVersion version)
{
	SimNode    *node = &sim->nodes[to];

	memset(apply, 0, sizeof(SimApply));
	apply->me = to;
	apply->node = node;
	apply->source = source;
	apply->exact = true;
	apply->transaction = ++node->transactions;
	apply->context.resolvers = last_update_wins();
	apply->context.version = version;
	apply->context.newest = version.ts > node->greatest;
	apply->context.horizon = SimHorizon(to);
}

static void
apply_transaction(SimApply *apply, const SimEntry *entry)
{
	apply->entry = entry;
	if (entry->version.ts > apply->node->greatest)
		apply->node->greatest = entry->version.ts;
	for (int i = 0; i < entry->nwrites; i++)
	{
		SimApplyWrite(apply, &entry->writes[i]);
		if (i == 0 && apply->during)
		{
			SimLocalBeside(apply, apply->during);
			apply->context.newest = false;
		}
	}
	SimApplyEnd(apply);
}

static void
check_unique(int at)
{
	const SimNode *node = &sim->nodes[at];

	for (int t = 0; t < sim->history->ntables; t++)
	{
		for (int i = 0; i < sim->history->tables[t].indexes; i++)
		{
			for (int k = 0; k < SIM_KEYS; k++)
			{
				if (node->keys[t][k].live &&
					SimHolderOf(node, t, i, node->keys[t][k].row.unique[i], k) >= 0)
					SimFail("node %d: unique key %d of table %d is violated", at, i, t);
			}
		}
	}
}

/* After a crash: position and data are those before it, what was only in memory is gone. */
static void
recover(int to, const SimNode *before)
{
	SimNode    *node = &sim->nodes[to];

	if (SIM_RULE(ATOMIC))
	{
		uint32_t	transactions = node->transactions;

		*node = *before;
		node->transactions = transactions;
	}
	for (int p = 0; p < SIM_NODES; p++)
		node->floor[p] = node->applied[p];
}

static bool
run_apply(SimApply *apply, int to, int from, const SimEntry *entry)
{
	static SimNode before;
	bool		saved = apply->crash_at > 0;

	if (saved)
		before = sim->nodes[to];
	if (setjmp(SimCrash) != 0)
	{
		if (saved)
			recover(to, &before);
		return false;
	}
	apply_transaction(apply, entry);
	sim->nodes[to].applied[from]++;
	check_unique(to);
	return true;
}

/*
 * Give the next entry of from's stream to a node, if there is one and its clock has
 * passed it.
 */
bool
SimDeliver(int to, int from, const SimEvent *event, int crash_at)
{
	SimNode    *node = &sim->nodes[to];
	KdbSeenEntry seen[SIM_NODES];
	const SimEntry *entry;
	SimApply	apply;

	if (to == from || !node->active || node->applied[from] >= (uint64_t) sim->nlog[from])
		return false;
	entry = &sim->log[from][node->applied[from]];
	if (entry->mark)
	{
		apply_mark(to, from, entry);
		node->applied[from]++;
		return true;
	}
	if (SimClock(to) <= entry->version.ts)
		return false;
	start_apply(&apply, to, from, entry->version);
	apply.crash_at = crash_at;
	apply.disturb_at = event ? event->d : 0;
	apply.during = event && event->nops > 0 ? event : NULL;
	apply.context.seen.nentries = seen_vector(&apply, to, from, entry, event ? event->c : 0, seen);
	apply.context.seen.entries = seen;
	return run_apply(&apply, to, from, entry);
}

/*
 * Bring a node up to where source has applied the stream of a node that is gone:
 * source passes it on, and rows are fetched from there.
 */
void
SimLevelUp(int to, int from, int source)
{
	SimNode    *node = &sim->nodes[to];

	while (node->applied[from] < sim->nodes[source].applied[from])
	{
		const SimEntry *entry = &sim->log[from][node->applied[from]];
		KdbSeenEntry seen[SIM_NODES];
		SimApply	apply;

		if (entry->mark)
		{
			apply_mark(to, from, entry);
			node->applied[from]++;
			continue;
		}
		start_apply(&apply, to, source, entry->version);
		apply.context.seen.nentries = seen_vector(&apply, to, from, entry, 0, seen);
		apply.context.seen.entries = seen;
		if (!run_apply(&apply, to, from, entry))
			return;
	}
}

/* ---- behind the horizon ------------------------------------------------------------- */

/* Contributions behind the horizon become one assignment. */
static void
fold_history(SimKey *k, int64_t horizon)
{
	SimContribution base = {{0, 0}};
	bool		any = false;
	int			n = 0;

	for (int column = 0; column < SIM_COLUMNS; column++)
	{
		KdbVersion	assigned = {-1, 0};
		int			last = -1;

		for (int i = 0; i < k->nhistory; i++)
		{
			SimContribution *c = &k->history[i];

			if (c->version.ts > horizon || c->kind[column] != KDB_CONTRIBUTES_VALUE ||
				KdbVersionCompare(c->version, assigned) < 0)
				continue;
			assigned = c->version;
			last = i;
		}
		base.kind[column] = last < 0 ? KDB_CONTRIBUTES_NOTHING : KDB_CONTRIBUTES_VALUE;
		base.value[column] = last < 0 ? 0 : k->history[last].value[column];
		for (int i = 0; i < k->nhistory; i++)
		{
			SimContribution *c = &k->history[i];
			int			order = KdbVersionCompare(c->version, assigned);

			if (c->version.ts > horizon)
				continue;
			any = true;
			if (KdbVersionCompare(c->version, base.version) > 0)
				base.version = c->version;
			if (c->kind[column] == KDB_CONTRIBUTES_CHANGE && (order > 0 || (order == 0 && i > last)))
				base.value[column] = SimCombine(column, base.value[column], c->value[column]);
		}
	}
	if (!any)
		return;
	for (int i = 0; i < k->nhistory; i++)
	{
		if (k->history[i].version.ts > horizon)
			k->history[n++] = k->history[i];
	}
	memmove(&k->history[1], &k->history[0], sizeof(SimContribution) * (size_t) n);
	k->history[0] = base;
	k->nhistory = n + 1;
}

static void
collect_key(SimNode *node, int table, int key, int64_t horizon)
{
	SimKey	   *k = &node->keys[table][key];
	KdbLocalRow local;

	SimFind(node, table, key, &local, 0);
	if (k->record && k->record_version.ts <= horizon && k->record_shown.ts <= horizon &&
		(k->live || local.version.ts <= horizon))
		k->record = false;
	if (!k->live && local.version.ts <= horizon && k->ended.ts <= horizon)
	{
		memset(&k->ended, 0, sizeof(KdbVersion));
		k->record = false;
		k->nhistory = 0;
	}
	else if (k->nhistory > 0)
		fold_history(k, horizon);
}

static void
collect_claims(SimNode *node, int table, int64_t horizon)
{
	for (int i = 0; i < SIM_INDEXES; i++)
	{
		for (int value = 0; value < SIM_VALUES; value++)
		{
			for (int key = 0; key < SIM_KEYS; key++)
			{
				SimKey	   *k = &node->keys[table][key];

				if (node->claims[table][i][value][key].ts <= horizon &&
					!(k->live && k->row.unique[i] == value))
					memset(&node->claims[table][i][value][key], 0, sizeof(KdbVersion));
			}
		}
	}
}

void
SimCollect(int at)
{
	SimNode    *node = &sim->nodes[at];
	int64_t		horizon = SIM_RULE(RETENTION) ? SimHorizon(at) : INT64_MAX - 1;

	if (!node->active)
		return;
	for (int table = 0; table < sim->history->ntables; table++)
	{
		for (int key = 0; key < SIM_KEYS; key++)
			collect_key(node, table, key, horizon);
		collect_claims(node, table, horizon);
	}
}

/* Dead rows, records and claims that are still there. */
int
SimLeftovers(int at)
{
	SimNode    *node = &sim->nodes[at];
	int			n = 0;

	for (int table = 0; table < sim->history->ntables; table++)
	{
		for (int key = 0; key < SIM_KEYS; key++)
		{
			SimKey	   *k = &node->keys[table][key];

			n += k->record || (!k->live && k->ended.ts != 0) || k->nhistory > (k->live ? 1 : 0);
			for (int i = 0; i < SIM_INDEXES; i++)
			{
				for (int value = 0; value < SIM_VALUES; value++)
					n += node->claims[table][i][value][key].ts != 0 &&
						!(k->live && k->row.unique[i] == value);
			}
		}
	}
	return n;
}
