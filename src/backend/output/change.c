/*
 * change.c
 *		Rows, TRUNCATE and logical messages.
 *
 * The way of a row: is it published at all (relation_cache.c); as which
 * relation, so perhaps with its columns in another order; does it pass the row
 * filter, which can make an UPDATE an INSERT or a DELETE; then BEGIN if that is
 * still pending, the relation's schema if the subscriber does not know it, and
 * the row.  Nothing is sent for a row that the filter drops, not even BEGIN.
 */
#include "postgres.h"

#include "executor/tuptable.h"
#include "replication/logicalproto.h"
#include "utils/memutils.h"

#include "output_private.h"

/* A change on its way through this file. */
typedef struct RowChange
{
	KdbRowAction action;		/* what to send, may differ from what happened */
	TupleTableSlot *old_slot;	/* NULL if the log has no old row */
	TupleTableSlot *new_slot;	/* NULL for a delete */
} RowChange;

static bool
action_published(const PublicationActions *actions, ReorderBufferChangeType type,
				 KdbRowAction *action)
{
	switch (type)
	{
		case REORDER_BUFFER_CHANGE_INSERT:
			*action = KDB_ROW_INSERT;
			return actions->pubinsert;
		case REORDER_BUFFER_CHANGE_UPDATE:
			*action = KDB_ROW_UPDATE;
			return actions->pubupdate;
		case REORDER_BUFFER_CHANGE_DELETE:
			*action = KDB_ROW_DELETE;
			return actions->pubdelete;
		default:
			elog(ERROR, "unexpected change %d of a row", (int) type);
	}
}

/*
 * Changes inside a stream block carry their (sub)transaction's id.  From then on the
 * subscriber has to be told if it is rolled back.  The engine marks it for that at the end
 * of the block, but not if it has read more than 4096 changes of it back from a file
 * there: it takes the subtransaction for an empty one then.
 */
static TransactionId
stream_xid(const KdbOutput *output, ReorderBufferTXN *txn)
{
	if (!output->in_stream)
		return InvalidTransactionId;
	if (txn->toptxn != NULL)
		txn->txn_flags |= RBTXN_IS_STREAMED;
	return txn->xid;
}

static TupleTableSlot *
store_row(ReorderBufferTupleBuf *row, TupleTableSlot *slot, AttrMap *map, TupleTableSlot *mapped)
{
	if (row == NULL)
		return NULL;
	ExecStoreHeapTuple(&row->tuple, slot, false);
	return map == NULL ? slot : execute_attr_map_slot(map, slot, mapped);
}

/* Put the rows of the change into slots, as the published relation has them. */
static void
load_rows(KdbPublishedRelation *entry, ReorderBufferChange *change, RowChange *row)
{
	row->old_slot = row->new_slot = NULL;
	if (row->action != KDB_ROW_INSERT)
		row->old_slot = store_row(change->data.tp.oldtuple, entry->old_slot,
								  entry->attrmap, entry->old_mapped);
	if (row->action != KDB_ROW_DELETE)
		row->new_slot = store_row(change->data.tp.newtuple, entry->new_slot,
								  entry->attrmap, entry->new_mapped);
}

static void
send_row(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, Relation relation,
		 ReorderBufferChange *change, KdbPublishedRelation *entry, RowChange *row)
{
	KdbOutput  *output = KdbOutputOf(ctx);
	Relation	target = relation;

	if (entry->publish_as != RelationGetRelid(relation))
	{
		target = RelationIdGetRelation(entry->publish_as);
		if (!RelationIsValid(target))
			elog(ERROR, "could not open relation with OID %u", entry->publish_as);
	}

	if (entry->filter == NULL ||
		KdbRowFilterPasses(entry->filter, &row->action, row->old_slot, &row->new_slot))
	{
		KdbRowWriter *writer;

		KdbSendBegin(ctx, txn);
		KdbSendSchema(ctx, change, relation, entry);
		writer = KdbRowWriterOf(output, entry, target);
		KdbWriteRowChange(KdbMessageStart(ctx, KDB_MESSAGE_LAST), writer,
						  stream_xid(output, change->txn), target,
						  row->action, row->old_slot, row->new_slot);
		KdbMessageEnd(ctx, KDB_MESSAGE_LAST);
	}

	if (target != relation)
		RelationClose(target);
}

/* Change callback, for ordinary, prepared and streamed transactions. */
void
KdbOutputChange(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
				Relation relation, ReorderBufferChange *change)
{
	KdbOutput  *output = KdbOutputOf(ctx);
	MemoryContext old_context;
	KdbPublishedRelation *entry;
	RowChange	row;

	KdbOutputProgress(ctx, false);
	if (!is_publishable_relation(relation))
		return;

	old_context = MemoryContextSwitchTo(output->change_context);
	entry = KdbRelationCacheLookup(output, relation);
	if (action_published(&entry->actions, change->action, &row.action))
	{
		load_rows(entry, change, &row);
		if (row.action == KDB_ROW_DELETE && row.old_slot == NULL)
			elog(DEBUG1, "didn't send DELETE change because of missing oldtuple");
		else
			send_row(ctx, txn, relation, change, entry, &row);
	}
	MemoryContextSwitchTo(old_context);
	MemoryContextReset(output->change_context);
}

/*
 * Is the truncation of this relation sent?  A partition's is not where its
 * changes are sent as those of an ancestor: the ancestor's own is.
 */
static bool
truncate_published(const KdbPublishedRelation *entry, Relation relation)
{
	return entry->actions.pubtruncate &&
		(!relation->rd_rel->relispartition ||
		 entry->publish_as == RelationGetRelid(relation));
}

/* Truncate callback: one message for all published relations of a command. */
void
KdbOutputTruncate(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
				  int nrelations, Relation relations[], ReorderBufferChange *change)
{
	KdbOutput  *output = KdbOutputOf(ctx);
	MemoryContext old_context;
	Oid		   *relids;
	int			nrelids = 0;

	KdbOutputProgress(ctx, false);
	old_context = MemoryContextSwitchTo(output->change_context);
	relids = palloc(nrelations * sizeof(Oid));
	for (int i = 0; i < nrelations; i++)
	{
		KdbPublishedRelation *entry;

		if (!is_publishable_relation(relations[i]))
			continue;
		entry = KdbRelationCacheLookup(output, relations[i]);
		if (!truncate_published(entry, relations[i]))
			continue;
		relids[nrelids++] = RelationGetRelid(relations[i]);
		KdbSendBegin(ctx, txn);
		KdbSendSchema(ctx, change, relations[i], entry);
	}

	if (nrelids > 0)
	{
		logicalrep_write_truncate(KdbMessageStart(ctx, KDB_MESSAGE_LAST),
								  stream_xid(output, change->txn), nrelids, relids,
								  change->data.truncate.cascade,
								  change->data.truncate.restart_seqs);
		KdbMessageEnd(ctx, KDB_MESSAGE_LAST);
	}
	MemoryContextSwitchTo(old_context);
	MemoryContextReset(output->change_context);
}

/*
 * Logical message callback.  A message outside of transactions comes between
 * them, whatever txn is: it has no BEGIN and is sent at once.
 */
void
KdbOutputMessage(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
				 XLogRecPtr message_lsn, bool transactional, const char *prefix,
				 Size size, const char *message)
{
	KdbOutput  *output = KdbOutputOf(ctx);
	KdbMessagePosition position = transactional ? KDB_MESSAGE_LAST : KDB_MESSAGE_FINAL;
	TransactionId xid = InvalidTransactionId;

	KdbOutputProgress(ctx, false);
	if (!output->parameters.messages)
		return;

	if (output->in_stream)
		xid = txn->xid;
	if (transactional)
		KdbSendBegin(ctx, txn);
	logicalrep_write_message(KdbMessageStart(ctx, position), xid, message_lsn,
							 transactional, prefix, size, message);
	KdbMessageEnd(ctx, position);
}
