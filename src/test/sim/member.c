/*
 * member.c
 *		Joining from a snapshot of one member; losing a node, and its return.
 *
 * A SNAPSHOT holds more than the rows: what is dead, claimed, contributed or of
 * another version than its transaction's, as far as it is newer than the horizon,
 * and how far the member had applied and fetched.  The streams of the other members
 * start behind what it had applied.
 *
 * REWRITING a table, as ALTER TABLE does, is the same for the node itself: its rows are as new as the
 * command, its dead ones gone, and what is newer than the horizon has a record.  So have contributions; of a row
 * that has none of these its value is all there is, as an assignment that is older than all.
 *
 * The rows of the copy get a transaction timestamp of the horizon: what is older
 * looks that old, and what is newer has a record.
 *
 * LOSING A NODE.  The survivors bring each other up to the furthest that any of them
 * has received; the rest of its stream is lost.  Rows that one of them had fetched
 * from that rest are exchanged, as are their claims.  Only then the horizon goes on
 * without the lost node.  It comes back as one that joins, under another identity: what others had
 * seen of it is of a stream that ended.  Only one node is lost in a
 * history: what is promised when several are lost at once is less.
 */
#include "sim.h"

#include <string.h>

static void
copy_key(SimNode *node, int table, int key, KdbVersion copied)
{
	SimKey	   *k = &node->keys[table][key];
	KdbLocalRow local;

	SimFind(node, table, key, &local, 0);
	k->record = false;
	k->shown_by = k->ended_by = k->record_by = 0;
	memset(&k->ended, 0, sizeof(KdbVersion));
	if (k->live)
		k->shown = copied;
	if (local.version_known && local.version.ts > copied.ts &&
		(k->live ? SIM_RULE(JOIN_VERSIONS) : SIM_RULE(JOIN_DEAD)))
	{
		k->record = true;
		k->record_live = k->live;
		k->record_version = local.version;
		k->record_shown = k->live ? copied : k->ended;
	}
	k->rewritten = false;
}

/* The row's values are all that is known of merged columns. */
static void
forget_history(SimKey *k, KdbVersion version)
{
	k->nhistory = k->live ? 1 : 0;
	k->history[0].version = version;
	for (int column = 0; column < SIM_COLUMNS; column++)
	{
		k->history[0].kind[column] = KDB_CONTRIBUTES_VALUE;
		k->history[0].value[column] = k->row.merged[column];
	}
}

static bool
has_newer(const SimKey *k, int64_t horizon)
{
	for (int i = 0; i < k->nhistory; i++)
	{
		if (k->history[i].version.ts > horizon)
			return true;
	}
	return false;
}

static void
rewrite_history(SimKey *k, int64_t horizon)
{
	if (!SIM_RULE(REWRITE_HISTORY) || (k->live && !has_newer(k, horizon)))
		forget_history(k, (KdbVersion) {0, 1});
}

static void
copy_table(SimNode *node, int table, KdbVersion copied)
{
	for (int key = 0; key < SIM_KEYS; key++)
		copy_key(node, table, key, copied);
	for (int i = 0; i < SIM_INDEXES && !SIM_RULE(JOIN_CLAIMS); i++)
		memset(node->claims[table][i], 0, sizeof(node->claims[table][i]));
}

static void
copy_rows(SimNode *node, KdbVersion copied)
{
	for (int table = 0; table < sim->history->ntables; table++)
		copy_table(node, table, copied);
	for (int table = 0; table < sim->history->ntables && !SIM_RULE(JOIN_HISTORY); table++)
	{
		for (int key = 0; key < SIM_KEYS && sim->history->tables[table].merged; key++)
		{
			if (node->keys[table][key].live)
				forget_history(&node->keys[table][key], copied);
		}
	}
}

void
SimRewrite(int at, int table)
{
	SimNode    *node = &sim->nodes[at];

	if (!node->active || table >= sim->history->ntables)
		return;
	copy_table(node, table, (KdbVersion){SimHorizon(at), 0});
	for (int key = 0; key < SIM_KEYS; key++)
	{
		SimKey	   *k = &node->keys[table][key];

		k->rewritten = k->live;
		if (sim->history->tables[table].merged)
			rewrite_history(k, SimHorizon(at));
	}
}

void
SimJoin(int at, int from)
{
	SimNode    *node = &sim->nodes[at];
	SimNode    *member = &sim->nodes[from];
	int64_t		skew = node->skew;
	int64_t		greatest = node->greatest;
	KdbVersion	copied = {0, 0};

	if (at == from || node->active || !member->active)
		return;
	if (!SIM_RULE(RESYNC) && greatest > 0)
	{
		node->active = true;
		return;
	}
	copied.ts = SimHorizon(from);
	*node = *member;
	node->skew = skew;
	if (greatest > node->greatest)
		node->greatest = greatest;
	copy_rows(node, copied);
	node->applied[from] = (uint64_t) sim->nlog[from];
	node->applied[at] = (uint64_t) sim->nlog[at];
	node->ahead[at] = 0;
	node->written[from] = member->greatest;
	node->received[from] = SimReceived(from);
	if (!SIM_RULE(JOIN_AHEAD))
		memset(node->ahead, 0, sizeof(node->ahead));
	for (int p = 0; p < SIM_NODES; p++)
	{
		node->floor[p] = node->applied[p];

		/* What all know of it is nothing: that holds their horizons back. */
		sim->nodes[p].written[at] = 0;
		sim->nodes[p].received[at] = 0;
		if (sim->nodes[p].applied[at] < (uint64_t) sim->nlog[at])
			sim->nodes[p].applied[at] = (uint64_t) sim->nlog[at];
	}
}

/* ---- losing a node ------------------------------------------------------------ */

static bool
beyond(KdbVersion version, int lost)
{
	if (version.node != (uint64_t) lost + 1)
		return false;
	for (int i = 0; i < sim->nlog[lost]; i++)
	{
		if (!sim->log[lost][i].mark && KdbVersionCompare(sim->log[lost][i].version, version) == 0)
			return false;
	}
	return true;
}

static void
add_extra(int table, int key, KdbRowState state, KdbVersion version, const SimRow *row)
{
	SimExtra   *extra = &sim->extras[sim->nextras];

	if (sim->nextras == SIM_EXTRAS)
	{
		SimFail("too many rows of lost nodes for the simulator");
		return;
	}
	memset(extra, 0, sizeof(SimExtra));
	extra->table = (int8_t) table;
	extra->key = (int8_t) key;
	extra->state.state = state;
	extra->state.version = version;
	extra->row = *row;
	sim->nextras++;
}

static void
add_claim(int table, int index, int value, int key, KdbVersion version)
{
	SimRow		row = {{-1, -1, -1}};

	row.unique[index] = (int8_t) value;
	add_extra(table, key, KDB_ROW_ABSENT, version, &row);
}

/* All that this node alone may have of the lost part of a stream. */
static void
find_extras(int at, int lost)
{
	SimNode    *node = &sim->nodes[at];

	for (int table = 0; table < sim->history->ntables; table++)
	{
		for (int key = 0; key < SIM_KEYS; key++)
		{
			KdbLocalRow local;

			SimFind(node, table, key, &local, 0);
			if (local.version_known && beyond(local.version, lost))
				add_extra(table, key, local.state, local.version, &node->keys[table][key].row);
			for (int i = 0; i < SIM_INDEXES; i++)
			{
				for (int value = 0; value < SIM_VALUES; value++)
				{
					if (beyond(node->claims[table][i][value][key], lost))
						add_claim(table, i, value, key, node->claims[table][i][value][key]);
				}
			}
		}
	}
}

static void
merge_extra(int at, const SimExtra *extra)
{
	static KdbResolvers resolvers;
	SimNode    *node = &sim->nodes[at];
	SimApply	apply;

	KdbResolversSetAll(&resolvers, KDB_RESOLVER_LAST_UPDATE_WINS);
	memset(&apply, 0, sizeof(apply));
	apply.me = at;
	apply.node = node;
	apply.source = at;
	apply.transaction = ++node->transactions;
	apply.context.resolvers = &resolvers;
	apply.context.version.ts = SimHorizon(at);
	apply.context.horizon = apply.context.version.ts;
	if (extra->state.version.ts > node->greatest)
		node->greatest = extra->state.version.ts;
	if (setjmp(SimCrash) == 0)
		SimApplyState(&apply, extra);
}

static void
level_survivors(int lost)
{
	int			best = -1;

	for (int p = 0; p < SIM_NODES; p++)
	{
		if (sim->nodes[p].active && (best < 0 || sim->nodes[p].applied[lost] > sim->nodes[best].applied[lost]))
			best = p;
	}
	for (int p = 0; p < SIM_NODES && SIM_RULE(LEVEL); p++)
	{
		if (sim->nodes[p].active && p != best)
			SimLevelUp(p, lost, best);
	}
	sim->nlog[lost] = (int) sim->nodes[best].applied[lost];
	sim->lost = lost;
	sim->kept = sim->nodes[best].applied[lost];
}

/*
 * A node stays away too long: the others go on without it, all in one step as the
 * group lock makes them do.
 */
void
SimStale(int at)
{
	int			first = sim->nextras;
	int			others = 0;

	for (int p = 0; p < SIM_NODES; p++)
		others += p != at && sim->nodes[p].active;
	if (!sim->nodes[at].active || others < 2 || sim->lost_one)
		return;
	sim->lost_one = true;
	memset(sim->restarted_at[at], 0, sizeof(sim->restarted_at[at]));
	sim->nodes[at].active = false;
	if (!SIM_RULE(RESYNC))
		return;
	level_survivors(at);
	for (int p = 0; p < SIM_NODES; p++)
	{
		if (sim->nodes[p].active)
			find_extras(p, at);
	}
	for (int p = 0; p < SIM_NODES && SIM_RULE(LOST_ROWS); p++)
	{
		for (int i = first; i < sim->nextras && sim->nodes[p].active; i++)
			merge_extra(p, &sim->extras[i]);
	}
}
