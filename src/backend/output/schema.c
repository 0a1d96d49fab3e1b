/*
 * schema.c
 *		RELATION and TYPE messages: what the subscriber must know to read rows.
 *
 * They go out before the first change of a relation, and again after its
 * definition or its publications may have changed.  A subscriber keeps what it
 * was told as long as the connection lives; but what came in a streamed
 * transaction it knows only within that one until it has applied it.  So in a
 * stream block the question is whether this top-level transaction has carried
 * the schema.
 */
#include "postgres.h"

#include "access/transam.h"
#include "replication/logicalproto.h"

#include "output_private.h"

/*
 * Types of users are named to the subscriber by TYPE messages.  A type with a
 * hand-assigned OID is the same on every server of any version.
 */
static void
send_types(LogicalDecodingContext *ctx, TransactionId xid, Relation relation, Bitmapset *columns)
{
	TupleDesc	desc = RelationGetDescr(relation);

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped || att->attgenerated || att->atttypid < FirstGenbkiObjectId)
			continue;
		if (columns != NULL && !bms_is_member(att->attnum, columns))
			continue;
		logicalrep_write_typ(KdbMessageStart(ctx, KDB_MESSAGE_INNER), xid, att->atttypid);
		KdbMessageEnd(ctx, KDB_MESSAGE_INNER);
	}
}

static void
send_relation(LogicalDecodingContext *ctx, TransactionId xid, Relation relation, Bitmapset *columns)
{
	send_types(ctx, xid, relation, columns);
	logicalrep_write_rel(KdbMessageStart(ctx, KDB_MESSAGE_INNER), xid, relation, columns);
	KdbMessageEnd(ctx, KDB_MESSAGE_INNER);
}

static void
send_relations(LogicalDecodingContext *ctx, TransactionId xid, Relation relation,
			   KdbPublishedRelation *entry)
{
	if (entry->publish_as != RelationGetRelid(relation))
	{
		Relation	ancestor = RelationIdGetRelation(entry->publish_as);

		if (!RelationIsValid(ancestor))
			elog(ERROR, "could not open relation with OID %u", entry->publish_as);
		send_relation(ctx, xid, ancestor, entry->columns);
		RelationClose(ancestor);
	}
	send_relation(ctx, xid, relation, entry->columns);
}

/*
 * Send the schema of the relation that changed, and before it that of the
 * ancestor that its changes are published as, unless the subscriber has them.
 */
void
KdbSendSchema(LogicalDecodingContext *ctx, ReorderBufferChange *change,
			  Relation relation, KdbPublishedRelation *entry)
{
	KdbOutput  *output = KdbOutputOf(ctx);
	ReorderBufferTXN *txn = change->txn;
	TransactionId toplevel_xid;

	if (!output->in_stream)
	{
		if (entry->schema_sent)
			return;
		send_relations(ctx, InvalidTransactionId, relation, entry);
		entry->schema_sent = true;
		return;
	}

	toplevel_xid = txn->toptxn ? txn->toptxn->xid : txn->xid;
	if (KdbSchemaSentInStream(entry, toplevel_xid))
		return;
	send_relations(ctx, txn->xid, relation, entry);
	KdbSetSchemaSentInStream(output, entry, toplevel_xid);
}
