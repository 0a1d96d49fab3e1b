/*
 * reference.c
 *		What must come out, computed from the set of all writes.
 *
 * This knows nothing of arrival, rules or storage.  Of each key the greatest version
 * counts (in one transaction the last write).  If it is a deletion there is no row.
 * If it is a row, it is there unless another key has claimed one of its unique values
 * at a greater version, with any row that was ever written.  A merged column is the
 * greatest assignment with all later changes.  TRUNCATE is a deletion of all keys, as long as nothing
 * else was on its way; what else it meets is not promised to end equal.
 */
#include "sim.h"

#include <string.h>

typedef struct Top
{
	bool		any;
	bool		row;			/* else a deletion */
	KdbVersion	version;
	SimRow		values;
} Top;

typedef struct Reference
{
	Top			tops[SIM_TABLES][SIM_KEYS];
	KdbVersion	claims[SIM_TABLES][SIM_INDEXES][SIM_VALUES][SIM_KEYS];
	KdbVersion	assigned[SIM_TABLES][SIM_KEYS][SIM_COLUMNS];
	int			assigned_at[SIM_TABLES][SIM_KEYS][SIM_COLUMNS]; /* number of the write */
	bool		has_assigned[SIM_TABLES][SIM_KEYS][SIM_COLUMNS];
	int32_t		merged[SIM_TABLES][SIM_KEYS][SIM_COLUMNS];
} Reference;

static void
effect(Reference *r, int table, int key, bool row, KdbVersion version, const SimRow *values)
{
	Top		   *top = &r->tops[table][key];

	if (top->any && KdbVersionCompare(version, top->version) < 0)
		return;
	top->any = true;
	top->row = row;
	top->version = version;
	if (values)
		top->values = *values;
}

static void
claims(Reference *r, int table, int key, const SimRow *row, KdbVersion version)
{
	for (int i = 0; i < sim->history->tables[table].indexes; i++)
	{
		KdbVersion *claim;

		if (row->unique[i] < 0)
			continue;
		claim = &r->claims[table][i][row->unique[i]][key];
		if (KdbVersionCompare(version, *claim) > 0)
			*claim = version;
	}
}

static void
one_write(Reference *r, const SimWrite *w, KdbVersion version)
{
	for (int key = 0; w->truncate && key < SIM_KEYS; key++)
		effect(r, w->table, key, false, version, NULL);
	if (w->truncate)
		return;
	if (w->operation == KDB_DELETE || w->old_key != w->new_key)
		effect(r, w->table, w->old_key, false, version, NULL);
	if (w->operation == KDB_DELETE)
		return;
	effect(r, w->table, w->new_key, true, version, &w->row);
	claims(r, w->table, w->new_key, &w->row, version);
}

/* Which: 0 finds the assignments, 1 combines the changes. */
static void
one_contribution(Reference *r, const SimWrite *w, KdbVersion version, int number, int which)
{
	SimContribution c;

	if (w->truncate || w->operation == KDB_DELETE || !sim->history->tables[w->table].merged)
		return;
	SimContributionOf(w, &c);
	for (int i = 0; i < SIM_COLUMNS; i++)
	{
		KdbVersion *assigned = &r->assigned[w->table][w->new_key][i];
		int		   *at = &r->assigned_at[w->table][w->new_key][i];
		bool	   *has = &r->has_assigned[w->table][w->new_key][i];
		int32_t    *value = &r->merged[w->table][w->new_key][i];
		int			order = KdbVersionCompare(version, *assigned);

		if (which == 0 && c.kind[i] == KDB_CONTRIBUTES_VALUE && (!*has || order >= 0))
		{
			*has = true;
			*assigned = version;
			*at = number;
			*value = c.value[i];
		}
		if (which == 1 && c.kind[i] == KDB_CONTRIBUTES_CHANGE &&
			(order > 0 || (order == 0 && number > *at)))
			*value = SimCombine(i, *value, c.value[i]);
	}
}

static void
all_writes(Reference *r, int which)
{
	for (int node = 0; node < SIM_NODES; node++)
	{
		for (int e = 0; e < sim->nlog[node]; e++)
		{
			SimEntry   *entry = &sim->log[node][e];

			for (int i = 0; i < entry->nwrites; i++)
			{
				if (which == 0)
					one_write(r, &entry->writes[i], entry->version);
				one_contribution(r, &entry->writes[i], entry->version, i, which);
			}
		}
	}
}

static void
all_extras(Reference *r)
{
	for (int i = 0; i < sim->nextras; i++)
	{
		SimExtra   *x = &sim->extras[i];

		if (x->state.state != KDB_ROW_ABSENT)
			effect(r, x->table, x->key, x->state.state == KDB_ROW_LIVE, x->state.version, &x->row);
		if (x->state.state != KDB_ROW_DEAD)
			claims(r, x->table, x->key, &x->row, x->state.version);
	}
}

static bool
beaten(Reference *r, int table, int key)
{
	Top		   *top = &r->tops[table][key];

	for (int i = 0; i < sim->history->tables[table].indexes; i++)
	{
		for (int value = 0; value < SIM_VALUES; value++)
		{
			for (int k = 0; SimOverlaps(table, i, top->values.unique[i], value) && k < SIM_KEYS; k++)
			{
				if (k != key && KdbVersionCompare(r->claims[table][i][value][k], top->version) > 0)
					return true;
			}
		}
	}
	return false;
}

static void
check_row(Reference *r, int at, int table, int key, const SimRow *expected)
{
	const SimRow *row = &sim->nodes[at].keys[table][key].row;

	if (memcmp(row->unique, expected->unique, sizeof(row->unique)) != 0 || row->value != expected->value)
		SimFail("node %d, table %d, key %d: not the greatest version's row", at, table, key);
	else if (row->wide != expected->wide)
		SimFail("node %d, table %d, key %d: a value that was not sent is %d and not %d",
				at, table, key, row->wide, expected->wide);
	for (int i = 0; i < SIM_COLUMNS && sim->history->tables[table].merged; i++)
	{
		if (row->merged[i] != r->merged[table][key][i])
			SimFail("node %d, table %d, key %d: merged column %d is %d and not %d",
					at, table, key, i, row->merged[i], r->merged[table][key][i]);
	}
}

static void
check_key(Reference *r, int at, int table, int key)
{
	Top		   *top = &r->tops[table][key];
	bool		expected = top->any && top->row && !beaten(r, table, key);

	if (sim->nodes[at].keys[table][key].live != expected)
		SimFail("node %d, table %d, key %d: the row is %s", at, table, key,
				expected ? "missing" : "there and must not be");
	else if (expected)
		check_row(r, at, table, key, &top->values);
}

/* Does each node hold exactly the rows that the writes give? */
void
SimCheck(void)
{
	static Reference r;

	memset(&r, 0, sizeof(r));
	all_writes(&r, 0);
	all_extras(&r);
	all_writes(&r, 1);
	for (int at = 0; at < SIM_NODES; at++)
	{
		for (int table = 0; sim->nodes[at].active && table < sim->history->ntables; table++)
		{
			for (int key = 0; key < sim->history->nkeys && !sim->in_doubt[table]; key++)
				check_key(&r, at, table, key);
		}
	}
}
