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
 * PARTITIONS.  Of a partitioned table each partition has rows of its own in the batch
 * (KdbBatchPart), in their order and in its format; the limits are those of all together, and
 * KDB_BATCH_PARTS of how many these are.  Which one a row belongs to is known once it is
 * converted, and a row that belongs to none fails then.  Rows of different partitions do not
 * meet: indexes, triggers, resolvers and version records belong to a partition.  So it makes no
 * difference that they are written partition by partition, but for which one of several
 * errors comes first; therefore a transaction that has failed goes row by row.  Where they
 * are spread over so many partitions that hardly two are together, the batch pauses.
 *
 * WHERE IT MAKES NO DIFFERENCE.  Only for tables where nobody can tell: no row
 * triggers that fire (they would see rows that come later), no defaults by volatile
 * functions, and no CHECK constraints by functions of users that are not IMMUTABLE (they could look
 * at the table).  Where conflicts are resolved a row of the run may
 * turn out to be an UPDATE or to remove another, so there no trigger at all may fire; runs are
 * looked at as a whole first (converge_inserts.c, run_inserts.c).  A row of a partition where that is not so
 * goes by itself, behind all that were collected.
 */
#include "postgres.h"

#include "access/transam.h"
#include "executor/executor.h"
#include "utils/memutils.h"

#include "relation_private.h"

#define KDB_BATCH_ROWS		1000
#define KDB_BATCH_BYTES		65536	/* as they came */
#define KDB_BATCH_PARTS		256 /* partitions */
#define KDB_BATCH_FEW		8	/* rows that each has room for at first */

/* Rows of one table, or of one partition. */
typedef struct KdbBatchPart
{
	KdbApplyTarget *target;
	AttrMap    *map;			/* from the partitioned table's format, or NULL */
	int			nrows;
	int			room;
	TupleTableSlot **slots;
} KdbBatchPart;

typedef struct Batch
{
	KdbApplyRelation *rel;
	MemoryContext context;		/* slots and values; reset when written */
	int			nrows;
	size_t		bytes;
	int			nparts;
	KdbBatchPart *parts[KDB_BATCH_PARTS];
	int			pause;			/* rows of partitions that go by themselves */
} Batch;

static Batch batch;
static KdbApplyRelation *last_inserted = NULL;	/* the last change was an INSERT into it */

/* ---- what is collected ---- */

/* As far as the partitioned table, or the table, tells. */
static bool
is_batchable(KdbApplyRelation *rel)
{
	return !rel->volatile_defaults && TransactionIdIsValid(KdbApply.remote_xid) &&
		!(rel->partitioned && KdbRetrying());
}

/* As far as the table that the row is written to tells. */
static bool
takes_batches(KdbApplyTarget *target)
{
	return !target->insert_triggers && !target->reading_checks &&
		(!target->resolving || (target->nmerged == 0 && !target->fires && !KdbRetrying()));
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

/* Rows of a partition are copied once more: not large ones. */
static bool
is_large(KdbApplyRelation *rel, size_t bytes)
{
	return rel->partitioned && bytes >= KDB_BATCH_BYTES;
}

static bool
pauses(KdbApplyRelation *rel)
{
	return rel->partitioned && batch.pause > 0 && batch.pause-- > 0;
}

/* See relation_private.h. */
bool
KdbBatchBegin(KdbApplyRelation *rel, const KdbWireTuple *tuple, size_t *bytes)
{
	bool		first = last_inserted != rel;

	if (batch.nrows > 0 && batch.rel != rel)
		KdbBatchFlush();
	last_inserted = rel;
	if (first || !is_batchable(rel) || pauses(rel))
	{
		Assert(batch.nrows == 0);
		return false;
	}
	if (!is_whole(tuple, bytes) || is_large(rel, *bytes))
	{
		KdbBatchFlush();
		return false;
	}
	return true;
}

/* Start with the rows of one more table. */
static KdbBatchPart *
add_part(KdbApplyRelation *rel, KdbApplyTarget *target)
{
	KdbBatchPart *part = palloc0(sizeof(KdbBatchPart));

	Assert(batch.nparts < KDB_BATCH_PARTS);
	part->target = target;
	part->map = rel->partitioned ? KdbRouteMap(rel, target) : NULL;
	part->room = KDB_BATCH_FEW;
	part->slots = palloc_array(TupleTableSlot *, part->room);
	batch.parts[batch.nparts++] = part;
	target->part = part;
	return part;
}

/* A slot for one more row of the target, in the batch's context, which is the current one. */
static TupleTableSlot *
add_slot(KdbApplyRelation *rel, KdbApplyTarget *target)
{
	KdbBatchPart *part = target->part ? target->part : add_part(rel, target);

	if (part->nrows == part->room)
	{
		part->room *= 2;
		part->slots = repalloc(part->slots, sizeof(TupleTableSlot *) * part->room);
	}
	return part->slots[part->nrows++] = MakeSingleTupleTableSlot(target->tupdesc, &TTSOpsVirtual);
}

/* Into the batch's context; returns the one before. */
static MemoryContext
enter(KdbApplyRelation *rel)
{
	if (batch.context == NULL)
		batch.context = AllocSetContextCreate(ApplyContext, "KrahoDB apply batch",
											  ALLOCSET_DEFAULT_SIZES);
	batch.rel = rel;
	return MemoryContextSwitchTo(batch.context);
}

/* The row is complete; write all if that is as much as there may be. */
static void
added(size_t bytes)
{
	KdbApplyRelation *rel = batch.rel;

	batch.nrows++;
	batch.bytes += bytes;
	if (batch.nrows < KDB_BATCH_ROWS && batch.bytes < KDB_BATCH_BYTES &&
		batch.nparts < KDB_BATCH_PARTS)
		return;
	if (rel->partitioned && batch.nrows < 2 * batch.nparts)
		batch.pause = KDB_BATCH_ROWS;
	KdbBatchFlush();
	last_inserted = rel;
}

/* See relation_private.h. */
bool
KdbBatchConvert(KdbApplyRelation *rel, KdbApplyTarget *target, const KdbWireTuple *tuple,
				size_t bytes)
{
	KdbUserContext user;
	MemoryContext old;
	TupleTableSlot *slot;

	if (!takes_batches(target))
		return false;
	KdbSwitchToTableOwner(rel->rel, &user);
	old = enter(rel);
	slot = add_slot(rel, target);
	KdbConvertTuple(rel, tuple, slot, NULL);
	KdbFillDefaults(rel, slot);
	MemoryContextSwitchTo(old);
	KdbRestoreUser(&user);
	added(bytes);
	return true;
}

/* See relation_private.h. */
bool
KdbBatchRouted(KdbApplyRelation *rel, KdbApplyTarget *target, TupleTableSlot *row, size_t bytes)
{
	MemoryContext old;
	TupleTableSlot *slot;

	if (!takes_batches(target))
		return false;
	old = enter(rel);
	slot = add_slot(rel, target);
	ExecMaterializeSlot(KdbReformat(target->part->map, row, slot));
	MemoryContextSwitchTo(old);
	added(bytes);
	return true;
}

/* ---- writing ---- */

static void
write_part(KdbApplyRelation *rel, KdbBatchPart *part)
{
	KdbApplyTarget *target = part->target;

	if (target->converging)
		KdbConvergeInserts(rel, target, part->slots, part->nrows);
	else if (target->resolving)
		KdbResolveInserts(rel, target, part->slots, part->nrows);
	else
		(void) KdbWriteInserts(target, part->slots, part->nrows);
	KdbTargetsLetGo();
	KdbApplyEndStep();
}

static void
write_rows(void)
{
	KdbErrorContext context = KdbApplyErrorContext;
	const KdbWireMessage *message = batch.rel->message;
	MemoryContext old = MemoryContextSwitchTo(batch.context);
	KdbUserContext user;

	batch.rel->message = NULL;	/* that of another row */
	KdbApplyErrorContext.command = KDB_WIRE_INSERT;
	KdbApplyErrorContext.nspname = batch.rel->nspname;
	KdbApplyErrorContext.relname = batch.rel->relname;
	KdbSwitchToTableOwner(batch.rel->rel, &user);
	for (int i = 0; i < batch.nparts; i++)
		write_part(batch.rel, batch.parts[i]);
	KdbRestoreUser(&user);
	batch.rel->message = message;
	KdbApplyErrorContext = context;
	MemoryContextSwitchTo(old);
}

/* See apply_private.h.  Targets go as well. */
void
KdbBatchAbandon(void)
{
	last_inserted = NULL;
	batch.nparts = 0;
	batch.nrows = 0;
	batch.bytes = 0;
	batch.pause = 0;
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
	for (int i = 0; i < batch.nparts; i++)
		batch.parts[i]->target->part = NULL;
	batch.nparts = 0;
	batch.nrows = 0;
	batch.bytes = 0;
	MemoryContextReset(batch.context);
}
