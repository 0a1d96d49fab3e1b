/*
 * local.c
 *		Transactions of a node's own users.
 *
 * What does not make sense on the rows as they are (a duplicate key, a row that is
 * not there) fails as a statement in a savepoint would, and the others commit.
 */
#include "sim.h"

#include <string.h>

/* A row that has a deferrable value which another write of the transaction has taken. */
typedef struct Given
{
	int8_t		table;
	int8_t		key;
	int			taken_by;		/* number of that write */
} Given;

typedef struct Transaction
{
	int			at;
	SimNode    *node;
	SimEntry   *entry;
	const SimApply *beside;		/* a transaction that is being applied, or NULL */
	int			ngiven;
	Given		given[SIM_WRITES * SIM_KEYS];
} Transaction;

/* A greater version than the one to be written must not be here: its writer would lose. */
static void
check_newest(Transaction *t, int table, int key)
{
	KdbLocalRow local;

	SimFind(t->node, table, key, &local, t->node->transactions);
	if (local.version_known && !local.same_transaction &&
		KdbVersionCompare(local.version, t->entry->version) >= 0)
		SimFail("node %d: a write is not later than what it saw (table %d, key %d)", t->at, table, key);
}

static void
check_claims(Transaction *t, int table, int key, const SimRow *row)
{
	for (int i = 0; i < sim->history->tables[table].indexes; i++)
	{
		for (int value = 0; value < SIM_VALUES; value++)
		{
			for (int k = 0; SimOverlaps(table, i, row->unique[i], value) && k < SIM_KEYS; k++)
			{
				if (k != key && KdbVersionCompare(t->node->claims[table][i][value][k], t->entry->version) > 0)
					SimFail("node %d: a write is not later than a claim here (table %d, key %d)", t->at, table, key);
			}
		}
	}
}

/* Has the transaction that is being applied changed the key's row? */
static bool
is_locked(const Transaction *t, int table, int key)
{
	const SimKey *k = &t->node->keys[table][key];

	if (t->beside && t->beside->write->truncate && t->beside->write->table == table)
		return true;
	return t->beside && (k->live ? k->shown_by : k->ended_by) == t->beside->transaction;
}

/* Would the write wait for the transaction that is being applied? */
static bool
must_wait(const Transaction *t, const SimWrite *write)
{
	if (is_locked(t, write->table, write->old_key) || is_locked(t, write->table, write->new_key))
		return true;
	for (int i = 0; i < sim->history->tables[write->table].indexes; i++)
	{
		for (int key = 0; key < SIM_KEYS; key++)
		{
			if (is_locked(t, write->table, key) &&
				SimOverlaps(write->table, i, t->node->keys[write->table][key].row.unique[i], write->row.unique[i]))
				return true;
		}
	}
	return false;
}

/* A deferrable value may be taken by two rows for a while. */
static void
note_given(Transaction *t, const SimWrite *write)
{
	if (write->operation == KDB_DELETE || !sim->history->tables[write->table].deferrable)
		return;
	for (int key = 0; key < SIM_KEYS; key++)
	{
		const SimKey *k = &t->node->keys[write->table][key];

		if (k->live && key != write->new_key && key != write->old_key &&
			SimOverlaps(write->table, 0, k->row.unique[0], write->row.unique[0]))
			t->given[t->ngiven++] = (Given){write->table, (int8_t) key, t->entry->nwrites};
	}
}

static bool
is_written_after(const SimEntry *entry, const Given *given)
{
	for (int i = given->taken_by + 1; i < entry->nwrites; i++)
	{
		const SimWrite *w = &entry->writes[i];

		if (w->table == given->table && (w->old_key == given->key || w->new_key == given->key))
			return true;
	}
	return false;
}

/*
 * At the end no two rows have one value.  Nor is a value taken for a moment and given back while its
 * holder is not written: that is not promised to be the same elsewhere.
 */
static bool
may_commit(const Transaction *t)
{
	for (int i = 0; i < t->ngiven; i++)
	{
		if (!is_written_after(t->entry, &t->given[i]))
			return false;
	}
	for (int i = 0; i < t->ngiven; i++)
	{
		for (int key = 0; key < SIM_KEYS; key++)
		{
			const SimKey *k = &t->node->keys[t->given[i].table][key];

			if (k->live && SimHolderOf(t->node, t->given[i].table, 0, k->row.unique[0], key) >= 0)
				return false;
		}
	}
	return true;
}

static void
do_write(Transaction *t, const SimWrite *write)
{
	if (t->entry->nwrites == SIM_WRITES || must_wait(t, write))
		return;
	note_given(t, write);
	if (sim->truncated[write->table].node != t->entry->version.node &&
		!SimIsApplied(sim->truncated[write->table]))
		sim->in_doubt[write->table] = true;
	check_newest(t, write->table, write->old_key);
	check_newest(t, write->table, write->new_key);
	if (write->operation != KDB_DELETE)
		check_claims(t, write->table, write->new_key, &write->row);
	t->entry->writes[t->entry->nwrites++] = *write;
	SimStoreLocal(t->node, write, t->entry->version);
}

/* Would the row be a duplicate of another one? */
static bool
duplicate(Transaction *t, const SimWrite *write)
{
	for (int i = 0; i < sim->history->tables[write->table].indexes; i++)
	{
		if ((i > 0 || !sim->history->tables[write->table].deferrable) &&
			SimHolderOf(t->node, write->table, i, write->row.unique[i], write->old_key) >= 0)
			return true;
	}
	return false;
}

static void
set_merged(const SimOp *op, SimRow *row)
{
	for (int column = 0; column < SIM_COLUMNS; column++)
	{
		if (op->set & (1 << column))
			row->merged[column] = op->values[column] < 0 ? SIM_NULL : op->values[column];
	}
	row->merged[0] = SimCombine(0, row->merged[0], op->add);
}

static void
insert(Transaction *t, const SimOp *op)
{
	SimWrite	write = {KDB_INSERT, op->table, op->key, op->key};

	for (int i = 0; i < SIM_INDEXES; i++)
	{
		write.row.unique[i] = -1;
		if (i < sim->history->tables[op->table].indexes && op->unique[i] != SIM_UNCHANGED)
			write.row.unique[i] = op->unique[i];
	}
	if (sim->history->tables[op->table].wide)
		write.row.wide = ++sim->stamp;
	write.row.value = ++sim->stamp;
	if (sim->history->tables[op->table].merged)
		set_merged(op, &write.row);
	if (!t->node->keys[op->table][op->key].live && !duplicate(t, &write))
		do_write(t, &write);
}

static void
update(Transaction *t, const SimOp *op, int to)
{
	SimKey	   *k = &t->node->keys[op->table][op->key];
	SimWrite	write = {KDB_UPDATE, op->table, op->key, (int8_t) to};

	write.row = k->row;
	memcpy(write.old_merged, k->row.merged, sizeof(write.old_merged));
	for (int i = 0; i < sim->history->tables[op->table].indexes; i++)
	{
		if (op->unique[i] != SIM_UNCHANGED)
			write.row.unique[i] = op->unique[i];
	}
	write.row.value = ++sim->stamp;
	if (sim->history->tables[op->table].wide)
	{
		write.unsent = !op->wide;
		if (op->wide)
			write.row.wide = ++sim->stamp;
	}
	if (sim->history->tables[op->table].merged)
		set_merged(op, &write.row);
	if (k->live && !duplicate(t, &write) &&
		(to == op->key || !t->node->keys[op->table][to].live))
		do_write(t, &write);
}

/* Two rows exchange a value of a unique key whose check is deferred. */
static void
swap(Transaction *t, const SimOp *op)
{
	SimKey	   *a = &t->node->keys[op->table][op->key];
	SimKey	   *b = &t->node->keys[op->table][op->to];
	SimOp		other = *op;
	int8_t		values[2] = {a->row.unique[0], b->row.unique[0]};
	SimWrite	write = {KDB_UPDATE, op->table, op->key, op->key};

	if (op->key == op->to || !a->live || !b->live || t->entry->nwrites + 2 > SIM_WRITES || t->beside ||
		sim->history->tables[op->table].indexes == 0)
		return;
	for (int i = 0; i < SIM_INDEXES; i++)
		other.unique[i] = SIM_UNCHANGED;
	/* The first takes the value that the second still has: not by update(). */
	write.row = a->row;
	memcpy(write.old_merged, a->row.merged, sizeof(write.old_merged));
	write.row.value = ++sim->stamp;
	write.row.unique[0] = values[1];
	write.unsent = sim->history->tables[op->table].wide;
	do_write(t, &write);
	other.key = op->to;
	other.unique[0] = values[0];
	update(t, &other, op->to);
}

/* What it meets is in doubt unless nothing is on its way.  (Then it is ordered by that.) */
static void
truncate_table(Transaction *t, const SimOp *op)
{
	SimWrite	write = {KDB_DELETE, op->table, op->key, op->key, .truncate = true};

	if (t->entry->nwrites == SIM_WRITES || t->beside)
		return;
	if (!SimIsQuiet(op->table))
		sim->in_doubt[op->table] = true;
	sim->truncated[op->table] = t->entry->version;
	t->entry->writes[t->entry->nwrites++] = write;
	SimStoreLocal(t->node, &write, t->entry->version);
}

static void
do_op(Transaction *t, const SimOp *op)
{
	switch ((SimOpKind) op->kind)
	{
		case SIM_INSERT:
			insert(t, op);
			break;
		case SIM_UPDATE:
			update(t, op, op->key);
			break;
		case SIM_REKEY:
			update(t, op, op->to);
			break;
		case SIM_DELETE:
			if (t->node->keys[op->table][op->key].live)
			{
				SimWrite	write = {KDB_DELETE, op->table, op->key, op->key};

				do_write(t, &write);
			}
			break;
		case SIM_SWAP:
			swap(t, op);
			break;
		case SIM_TRUNCATE:
			truncate_table(t, op);
			break;
		case SIM_OP_KINDS:
			break;
	}
}

/* What the transaction may have seen of others. */
static void
note_seen(const SimNode *node, int at, SimEntry *entry)
{
	for (int p = 0; p < SIM_NODES; p++)
	{
		if (p == at)
			continue;
		entry->surely[p] = node->applied[p];
		entry->maybe[p] = node->ahead[p] > node->applied[p] ? node->ahead[p] : node->applied[p];
	}
}

static bool
may_roll_back(const SimEvent *event)
{
	bool		result = false;

	for (int i = 0; i < event->nops; i++)
		result |= sim->history->tables[event->ops[i].table].deferrable;
	return result;
}

static void
run_local(int at, const SimEvent *event, const SimApply *beside)
{
	static SimNode before;
	SimNode    *node = &sim->nodes[at];
	Transaction t = {at, node, NULL, beside};

	if (!node->active || sim->nlog[at] >= SIM_LOG - 12)
		return;
	if (SimClock(at) <= node->greatest && SimClock(at) > 0 && SIM_RULE(CLOCK_COMMIT))
		return;
	if (SimClock(at) <= 0)
		return;
	t.entry = &sim->log[at][sim->nlog[at]];
	memset(t.entry, 0, sizeof(SimEntry));
	t.entry->version.ts = SimClock(at);
	t.entry->version.node = (uint64_t) at + 1;
	t.entry->transaction = ++node->transactions;
	note_seen(node, at, t.entry);
	if (may_roll_back(event))
		before = *node;
	for (int i = 0; i < event->nops; i++)
		do_op(&t, &event->ops[i]);
	if (t.entry->nwrites == 0)
		return;
	if (!may_commit(&t))
	{
		before.transactions = node->transactions;
		*node = before;
		return;
	}
	if (t.entry->version.ts > node->greatest)
		node->greatest = t.entry->version.ts;
	sim->nlog[at]++;
	node->applied[at] = (uint64_t) sim->nlog[at];
	sim->transactions++;
}

/*
 * The clock rule: nothing commits at a time that is not greater than all that was
 * applied or committed here.  A real transaction waits; here it is not done.
 */
void
SimLocal(int at, const SimEvent *event)
{
	run_local(at, event, NULL);
}

/*
 * The same while a transaction is being applied.  What would wait for that is not done.
 */
void
SimLocalBeside(const SimApply *apply, const SimEvent *event)
{
	run_local(apply->me, event, apply);
}
