/*
 * local.c
 *		Transactions of a node's own users.
 *
 * What does not make sense on the rows as they are (a duplicate key, a row that is
 * not there) fails as a statement in a savepoint would, and the others commit.
 */
#include "sim.h"

#include <string.h>

typedef struct Transaction
{
	int			at;
	SimNode    *node;
	SimEntry   *entry;
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
		for (int k = 0; row->unique[i] >= 0 && k < SIM_KEYS; k++)
		{
			if (k != key && KdbVersionCompare(t->node->claims[table][i][row->unique[i]][k], t->entry->version) > 0)
				SimFail("node %d: a write is not later than a claim here (table %d, key %d)", t->at, table, key);
		}
	}
}

static void
do_write(Transaction *t, const SimWrite *write)
{
	if (t->entry->nwrites == SIM_WRITES)
		return;
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
		if (SimHolderOf(t->node, write->table, i, write->row.unique[i], write->old_key) >= 0)
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

	if (op->key == op->to || !a->live || !b->live || t->entry->nwrites + 2 > SIM_WRITES ||
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

/*
 * The clock rule: nothing commits at a time that is not greater than all that was
 * applied or committed here.  A real transaction waits; here it is not done.
 */
void
SimLocal(int at, const SimEvent *event)
{
	SimNode    *node = &sim->nodes[at];
	Transaction t = {at, node};

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
	node->transactions++;
	note_seen(node, at, t.entry);
	for (int i = 0; i < event->nops; i++)
		do_op(&t, &event->ops[i]);
	if (t.entry->nwrites == 0)
		return;
	if (t.entry->version.ts > node->greatest)
		node->greatest = t.entry->version.ts;
	sim->nlog[at]++;
	node->applied[at] = (uint64_t) sim->nlog[at];
	sim->transactions++;
}
