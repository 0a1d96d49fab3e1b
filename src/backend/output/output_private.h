/*
 * output_private.h
 *		What the files of the output plugin share.
 *
 * One KdbOutput is one decoding session: from the plugin's startup to the end
 * of the logical decoding context, which owns all of its memory.
 */
#ifndef KRAHODB_OUTPUT_PRIVATE_H
#define KRAHODB_OUTPUT_PRIVATE_H

#include "postgres.h"

#include "access/attmap.h"
#include "catalog/pg_publication.h"
#include "executor/tuptable.h"
#include "lib/stringinfo.h"
#include "nodes/bitmapset.h"
#include "nodes/execnodes.h"
#include "nodes/pg_list.h"
#include "replication/logical.h"
#include "replication/origin.h"
#include "replication/output_plugin.h"
#include "replication/reorderbuffer.h"
#include "utils/hsearch.h"
#include "utils/rel.h"

#include "krahodb/compress.h"
#include "krahodb/options.h"

/* What the client asked for at START_REPLICATION. */
typedef struct KdbOutputParameters
{
	uint32		protocol_version;
	List	   *publication_names;	/* of char * */
	bool		binary;
	bool		messages;
	bool		streaming;
	bool		two_phase;
	bool		prepared_at_commit;	/* send prepared transactions when they are committed */
	KdbOriginFilter origin;
	int			nfilter_origins;
	RepOriginId *filter_origins;	/* sorted, distinct */
	bool		framed;			/* option krahodb was given */
	KdbCompression compression;
	const char *datum_format;	/* the client's, or NULL */
	bool		datums;			/* that is ours */
} KdbOutputParameters;

/*
 * How far the ordinary transaction that is being replayed has got.  At most one
 * is replayed at a time.  Streamed and prepared transactions have no lazy
 * BEGIN and are in KDB_NO_TRANSACTION.
 */
typedef enum KdbTransactionState
{
	KDB_NO_TRANSACTION,
	KDB_BEGIN_PENDING,			/* nothing of it was worth sending so far */
	KDB_BEGIN_SENT
} KdbTransactionState;

/* See frame.c. */
typedef struct KdbFrame
{
	StringInfoData buffer;
	int			complete;		/* bytes of the buffer that are whole messages */
	int			message_start;	/* where the message being written starts */
	bool		handshake_pending;	/* no frame was written so far */
	XLogRecPtr	lsn;			/* greatest position of those messages */
	KdbCompressor *compressor;	/* NULL: frames are sent as they are */

	/* See hold.c. */
	bool		held;			/* it has whole transactions, not written yet */
	XLogRecPtr	held_since;		/* end of the log record that ended the first one */
	StringInfoData message;		/* to write it without the engine's help */
} KdbFrame;

/* The kinds of row changes, as indexes. */
typedef enum KdbRowAction
{
	KDB_ROW_INSERT,
	KDB_ROW_UPDATE,
	KDB_ROW_DELETE
} KdbRowAction;

#define KDB_NROW_ACTIONS	(KDB_ROW_DELETE + 1)

typedef struct KdbRowFilter KdbRowFilter;	/* row_filter.c */
typedef struct KdbRowWriter KdbRowWriter;	/* row_write.c */

/*
 * What the session knows of a relation: an entry of the relation cache.  See
 * relation_cache.c for its life.
 */
typedef struct KdbPublishedRelation
{
	Oid			relid;			/* hash key */
	bool		valid;			/* else everything below is to be computed anew */
	bool		schema_sent;	/* outside of streamed transactions */
	List	   *streamed_xids;	/* top-level streamed transactions that carry the schema */

	PublicationActions actions; /* those of all publications together */
	Oid			publish_as;		/* itself, or the ancestor whose name its changes carry */

	/*
	 * Only if inserts, updates or deletes are published; all of it is in
	 * context and goes with it.
	 */
	MemoryContext context;
	TupleTableSlot *old_slot;	/* rows as they come from the log */
	TupleTableSlot *new_slot;
	AttrMap    *attrmap;		/* to publish_as, NULL if the rows look the same */
	TupleTableSlot *old_mapped; /* rows as publish_as has them, if attrmap */
	TupleTableSlot *new_mapped;
	Bitmapset  *columns;		/* attribute numbers of publish_as, NULL: all */
	KdbRowFilter *filter;		/* NULL: every row */
	KdbRowWriter *writer;		/* built at the first row that is sent */
} KdbPublishedRelation;

typedef struct KdbRelationCache KdbRelationCache;	/* relation_cache.c */
typedef struct KdbOutputSeen KdbOutputSeen; /* seen.c */

typedef struct KdbOutput
{
	KdbOutputParameters parameters;
	MemoryContext change_context;	/* scratch memory, reset after each change */
	KdbRelationCache *relations;
	MemoryContext publication_context;	/* holds publications */
	List	   *publications;	/* of Publication *, see publication.c */
	KdbTransactionState transaction;
	bool		in_stream;		/* between STREAM START and STREAM STOP */
	int			changes_since_progress;
	KdbFrame	frame;
	KdbOutputSeen *seen;		/* NULL unless framed */
} KdbOutput;

#define KdbOutputOf(ctx)	((KdbOutput *) (ctx)->output_plugin_private)

/* parameters.c */
extern void KdbParseOutputParameters(List *options, KdbOutputParameters *parameters);

/* origin_filter.c */
extern void KdbParseFilterOrigins(const char *value, KdbOutputParameters *parameters);
extern bool KdbOriginIsFiltered(const KdbOutputParameters *parameters, RepOriginId origin_id);
extern bool KdbOutputFilterByOrigin(LogicalDecodingContext *ctx, RepOriginId origin_id);

/* seen.c */
extern void KdbOutputSeenInit(LogicalDecodingContext *ctx, KdbOutput *output, MemoryContext parent);
extern void KdbOutputSeenNote(LogicalDecodingContext *ctx, RepOriginId origin);
extern void KdbOutputSeenLook(LogicalDecodingContext *ctx, const ReorderBufferTXN *txn);
extern void KdbSendSeen(LogicalDecodingContext *ctx, const ReorderBufferTXN *txn, bool in_transaction);

/* handshake.c */
extern void KdbAppendHandshake(StringInfo buf);

/*
 * frame.c.  A message is written into what KdbMessageStart returns, and ended
 * with KdbMessageEnd with the same position.
 */
typedef enum KdbMessagePosition
{
	KDB_MESSAGE_INNER,			/* more messages follow for the same log position */
	KDB_MESSAGE_LAST,			/* the last for its log position */
	KDB_MESSAGE_FINAL			/* ends a transaction or a part of one */
} KdbMessagePosition;

extern void KdbFrameInit(LogicalDecodingContext *ctx, KdbOutput *output);
extern void KdbFrameTake(LogicalDecodingContext *ctx, KdbFrame *frame, StringInfo out);
extern StringInfo KdbMessageStart(LogicalDecodingContext *ctx, KdbMessagePosition position);
extern void KdbMessageEnd(LogicalDecodingContext *ctx, KdbMessagePosition position);

/* hold.c */
extern void KdbHoldInit(LogicalDecodingContext *ctx, KdbFrame *frame);
extern bool KdbHoldFrame(LogicalDecodingContext *ctx, KdbFrame *frame);
extern void KdbHoldBeforeTransaction(LogicalDecodingContext *ctx, ReorderBufferTXN *txn);

/* decode_run.c */
extern void KdbDecodeRunInit(LogicalDecodingContext *ctx);

/* transaction.c */
extern void KdbOutputProgress(LogicalDecodingContext *ctx, bool skipped_transaction);
extern void KdbSendBegin(LogicalDecodingContext *ctx, ReorderBufferTXN *txn);
extern char *KdbOriginName(RepOriginId origin_id);
extern void KdbSendOrigin(LogicalDecodingContext *ctx, const char *name, XLogRecPtr origin_lsn);
extern void KdbOutputBegin(LogicalDecodingContext *ctx, ReorderBufferTXN *txn);
extern void KdbOutputCommit(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr commit_lsn);
extern void KdbOutputBeginPrepare(LogicalDecodingContext *ctx, ReorderBufferTXN *txn);
extern void KdbOutputPrepare(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr prepare_lsn);
extern void KdbOutputCommitPrepared(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr commit_lsn);
extern void KdbOutputRollbackPrepared(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
									  XLogRecPtr prepare_end_lsn, TimestampTz prepare_time);

/* streamed.c */
extern void KdbOutputStreamStart(LogicalDecodingContext *ctx, ReorderBufferTXN *txn);
extern void KdbOutputStreamStop(LogicalDecodingContext *ctx, ReorderBufferTXN *txn);
extern void KdbOutputStreamAbort(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr abort_lsn);
extern void KdbOutputStreamPrepare(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr prepare_lsn);
extern void KdbOutputStreamCommit(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr commit_lsn);

/* change.c */
extern void KdbOutputChange(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
							Relation relation, ReorderBufferChange *change);
extern void KdbOutputTruncate(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
							  int nrelations, Relation relations[], ReorderBufferChange *change);
extern void KdbOutputMessage(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
							 XLogRecPtr message_lsn, bool transactional, const char *prefix,
							 Size size, const char *message);

/* schema.c */
extern void KdbSendSchema(LogicalDecodingContext *ctx, ReorderBufferChange *change,
						  Relation relation, KdbPublishedRelation *entry);

/* relation_cache.c */
extern void KdbRelationCacheInit(KdbOutput *output, MemoryContext parent);
extern KdbPublishedRelation *KdbRelationCacheLookup(KdbOutput *output, Relation relation);
extern void KdbRelationCacheInvalidateAll(void);
extern bool KdbSchemaSentInStream(const KdbPublishedRelation *entry, TransactionId xid);
extern void KdbSetSchemaSentInStream(KdbOutput *output, KdbPublishedRelation *entry, TransactionId xid);
extern void KdbRelationCacheForgetStream(KdbOutput *output, TransactionId xid, bool committed);

/* publication.c */
extern void KdbPublicationsInit(KdbOutput *output, MemoryContext parent);
extern List *KdbFindPublications(KdbOutput *output, Relation relation,
								 PublicationActions *actions, Oid *publish_as);

/* row_filter.c */
extern KdbRowFilter *KdbBuildRowFilter(List *publications, Oid publish_as, MemoryContext context);
extern bool KdbRowFilterPasses(KdbRowFilter *filter, KdbRowAction *action,
							   TupleTableSlot *old_slot, TupleTableSlot **new_slot);

/* column_list.c */
extern Bitmapset *KdbBuildColumnList(List *publications, Relation target, MemoryContext context);

/* row_write.c */
extern KdbRowWriter *KdbRowWriterOf(KdbOutput *output, KdbPublishedRelation *entry, Relation target);
extern void KdbWriteRowChange(StringInfo out, KdbRowWriter *writer, TransactionId xid,
							  Relation target, KdbRowAction action,
							  TupleTableSlot *old_slot, TupleTableSlot *new_slot);
extern void KdbRowWriterInit(void);

/* value_format.c */
typedef enum KdbValueFormat
{
	KDB_VALUE_TEXT,				/* by the type's output function */
	KDB_VALUE_BINARY,			/* by the type's send function */
	KDB_VALUE_INTEGER,			/* binary form is the datum in network byte order */
	KDB_VALUE_STRING,			/* binary form is the string itself */
	KDB_VALUE_DATUM				/* the datum without its length, for one who keeps it alike */
} KdbValueFormat;

extern KdbValueFormat KdbChooseValueFormat(const KdbOutputParameters *parameters,
										   Form_pg_attribute att, Oid *function);

#endif							/* KRAHODB_OUTPUT_PRIVATE_H */
