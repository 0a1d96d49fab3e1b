/*
 * batch.c
 *		Runs of INSERTs into one table, written together.
 *
 * Most rows of large transactions come as long runs of INSERTs into one table.  One
 * by one, each costs a WAL record, a visit to the page and a command of its own; as
 * a batch (table_multi_insert) the rows of a page share them.  Index entries are made
 * after the rows, as COPY does.
 *
 * STATES.  A run of two or more INSERTs into one table is collected: rows are
 * converted into slots in the batch's own memory context.  The batch is written
 * when it is full (KDB_BATCH_ROWS, KDB_BATCH_BYTES), before any other change, and
 * before relations are closed, which every end of a transaction does first.  So it
 * never outlives its transaction, and nothing else of the worker sees the table
 * without its rows.  What fails, fails as it would one row later: the whole
 * transaction is applied again.
 *
 * WHERE IT MAKES NO DIFFERENCE.  Only for tables where nobody can tell: no row
 * triggers that fire (they would see rows that come later), no defaults by volatile
 * functions, and no CHECK constraints by functions of users that are not IMMUTABLE (they could look
 * at the table).  Where conflicts are resolved a row of the run may
 * turn out to be an UPDATE or to remove another, so there no trigger at all may fire; runs are
 * looked at as a whole first (converge_inserts.c, run_inserts.c).
 */
#include "postgres.h"

#include "access/transam.h"
#include "executor/executor.h"
#include "utils/memutils.h"

#include "relation_private.h"

#define KDB_BATCH_ROWS		1000
#define KDB_BATCH_BYTES		65536	/* as they came */

typedef struct Batch
{
	KdbApplyRelation *rel;
	KdbApplyTarget *target;
	MemoryContext context;		/* slots and values; reset when written */
	int			nrows;
	size_t		bytes;
	TupleTableSlot *slots[KDB_BATCH_ROWS];
} Batch;

static Batch batch;
static KdbApplyRelation *last_inserted = NULL;	/* the last change was an INSERT into it */

static bool
is_batchable(KdbApplyRelation *rel, KdbApplyTarget *target)
{
	return target != NULL &&
		(!target->resolving || (target->nmerged == 0 && !target->fires && !KdbRetrying())) &&
		!target->insert_triggers && !target->reading_checks && !rel->volatile_defaults &&
		TransactionIdIsValid(KdbApply.remote_xid);
}

/* How much a row is; false if it lacks values. */
static bool
is_whole(const KdbWireTuple *tuple, size_t *bytes)
{
	*bytes = 0;
	for (int i = 0; i < tuple->ncolumns; i++)
	{
		if (tuple->columns[i].kind == 'u')
			return false;
		*bytes += tuple->columns[i].length;
	}
	return true;
}

static void
add_row(KdbApplyRelation *rel, KdbApplyTarget *target, const KdbWireTuple *tuple)
{
	MemoryContext old;
	KdbUserContext user;
	TupleTableSlot *slot;

	if (batch.context == NULL)
		batch.context = AllocSetContextCreate(ApplyContext, "KrahoDB apply batch",
											  ALLOCSET_DEFAULT_SIZES);
	batch.rel = rel;
	batch.target = target;
	KdbSwitchToTableOwner(rel->rel, &user);
	old = MemoryContextSwitchTo(batch.context);
	slot = MakeSingleTupleTableSlot(target->tupdesc, &TTSOpsVirtual);
	KdbConvertTuple(rel, tuple, slot, NULL);
	KdbFillDefaults(rel, slot);
	MemoryContextSwitchTo(old);
	KdbRestoreUser(&user);
	batch.slots[batch.nrows++] = slot;
}

/* See relation_private.h. */
bool
KdbBatchInsert(KdbApplyRelation *rel, KdbApplyTarget *target, const KdbWireTuple *tuple)
{
	bool		first = last_inserted != rel;
	size_t		bytes;

	if (batch.nrows > 0 && batch.rel != rel)
		KdbBatchFlush();
	last_inserted = rel;
	if (first || !is_batchable(rel, target))
		return false;
	if (!is_whole(tuple, &bytes))
	{
		KdbBatchFlush();
		return false;
	}
	add_row(rel, target, tuple);
	batch.bytes += bytes;
	if (batch.nrows == KDB_BATCH_ROWS || batch.bytes >= KDB_BATCH_BYTES)
	{
		KdbBatchFlush();
		last_inserted = rel;
	}
	return true;
}

static void
write_rows(void)
{
	char		command = KdbApplyErrorContext.command;
	MemoryContext old = MemoryContextSwitchTo(batch.context);
	KdbUserContext user;

	KdbApplyErrorContext.command = KDB_WIRE_INSERT;
	KdbApplyErrorContext.nspname = batch.rel->nspname;
	KdbApplyErrorContext.relname = batch.rel->relname;
	KdbSwitchToTableOwner(batch.rel->rel, &user);
	if (batch.target->converging)
		KdbConvergeInserts(batch.rel, batch.target, batch.slots, batch.nrows);
	else if (batch.target->resolving)
		KdbResolveInserts(batch.rel, batch.target, batch.slots, batch.nrows);
	else
		(void) KdbWriteInserts(batch.target, batch.slots, batch.nrows);
	KdbRestoreUser(&user);
	KdbApplyErrorContext.command = command;
	KdbApplyErrorContext.nspname = NULL;
	KdbApplyErrorContext.relname = NULL;
	MemoryContextSwitchTo(old);
}

/* See apply_private.h. */
void
KdbBatchAbandon(void)
{
	last_inserted = NULL;
	batch.nrows = 0;
	batch.bytes = 0;
	if (batch.context)
		MemoryContextReset(batch.context);
}

/* See relation_private.h. */
void
KdbBatchFlush(void)
{
	last_inserted = NULL;
	if (batch.nrows == 0)
		return;
	write_rows();
	batch.nrows = 0;
	batch.bytes = 0;
	MemoryContextReset(batch.context);
	KdbApplyEndStep();
}
