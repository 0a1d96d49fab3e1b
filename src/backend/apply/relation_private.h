/*
 * relation_private.h
 *		Relations of the apply worker: what is kept between changes.
 *
 * KdbApplyRelation	a relation as the publisher names it, and how its columns
 *					map to the local table of the same name.
 * KdbApplyTarget	a local table that rows are written to: that table itself,
 *					or a partition of it.  Holds what the engine's executor
 *					needs, built once and kept until the table changes.
 *
 * Kept across transactions: names, attribute map, conversion functions, default
 * expressions, executor state, index infos, scan keys, slots (their tuple
 * descriptors are copies, so no resource owner knows them).  Opened anew in
 * each transaction: the relation, its indexes, the index scan.  The engine's
 * rules for locks and relcache references are so kept without exceptions.
 *
 * INVALIDATION.  A relcache callback marks entries invalid at any time; they
 * are rebuilt when they are next opened, which is never while they are open:
 * what can change under our RowExclusiveLock (a new index being built
 * concurrently, statistics) waits for this transaction where it must.  A table that was
 * dropped is never opened again, so invalid entries are swept when a cache has doubled.
 */
#ifndef RELATION_PRIVATE_H
#define RELATION_PRIVATE_H

#include "apply_private.h"

#include "access/relscan.h"
#include "access/skey.h"
#include "executor/execPartition.h"
#include "utils/typcache.h"

#include "krahodb/version_record.h"

#define KDB_MIN_SWEEP_SIZE	256 /* entries of a cache, before those that are of no use are looked for */

/* What makes a value of its binary form. */
typedef enum KdbReceive
{
	KDB_RECEIVE_CALL,			/* the type's receive function */
	KDB_RECEIVE_NUMBER,			/* passed by value, any bits are valid */
	KDB_RECEIVE_TIMESTAMP,		/* in full precision */
	KDB_RECEIVE_TEXT,
	KDB_RECEIVE_VARCHAR,
	KDB_RECEIVE_BPCHAR
} KdbReceive;

/* How one local column gets its value from the wire. */
typedef struct KdbColumnInput
{
	int			remote;			/* index of the publisher's column, -1 if none */
	Oid			remote_type;	/* at the publisher */
	bool		text_ready;
	bool		binary_ready;
	bool		via_text;		/* binary of another built-in type: through its text */
	bool		text_varies;	/* which depends on settings */
	FmgrInfo	text_function;
	Oid			text_ioparam;
	KdbReceive	receive;
	FmgrInfo	receive_function;
	Oid			receive_ioparam;
	FmgrInfo	output_function;	/* of the remote type, if via_text */
} KdbColumnInput;

/* A row to be written, in the format of one table. */
typedef struct KdbRemoteRow
{
	TupleTableSlot *slot;		/* virtual */
	bool	   *sent;			/* per column: the publisher sent a value */
} KdbRemoteRow;

/* Keys in ascending order are looked up by walking along the index; walk.c. */
typedef struct KdbWalk
{
	/* kept */
	bool		prepared;
	bool		possible;
	FmgrInfo	order[INDEX_MAX_KEYS];
	FmgrInfo	greater_equal;	/* of the first column */
	MemoryContext context;		/* of the scan */
	int			pause;			/* lookups until keys are counted again */
	int			last_pause;

	/* waiting */
	int			ascending;		/* keys in a row */
	Datum		last[INDEX_MAX_KEYS];

	/* walking; in this transaction */
	IndexScanDesc scan;
	SnapshotData dirty;
	bool		at_entry;		/* the scan's entry is yet to be looked at */
	int			misses;			/* in a row */
	int			rows;			/* found */
	int			next_ones;		/* rows in a row whose entry was the next one */
	bool		among_live;		/* the last lookup: see walk.c */
} KdbWalk;

/* All changes of a node until then are in what the table was copied from. */
typedef struct KdbFloor
{
	TimestampTz until;
	XLogRecPtr	position;		/* of the node's stream, for merged columns */
	uint64		node;
	uint64		floors;			/* KdbShared->floors at that time; 0: not known */
	struct KdbCopiedAgain *again;	/* merged_again.c */
	int			nagain;
} KdbFloor;

/* Where rows are that this worker has written lately; recall.c. */
typedef struct KdbRecall
{
	struct KdbRecallPlace *places;	/* kept; NULL if there are none yet */
	BlockNumber blocks;			/* the table has at least that many, in this transaction */
} KdbRecall;

typedef struct KdbApplyTarget
{
	Oid			relid;			/* hash key */
	bool		valid;
	MemoryContext context;		/* all below lives here */

	/* executor state */
	EState	   *estate;
	ResultRelInfo *relinfo;
	RangeTblEntry *rte;
	int			nindexes;
	Oid		   *index_oids;		/* as ri_IndexRelationDescs goes */
	Oid		   *index_places;	/* per index: KdbIndexPlace, if it is unique or has exclusion operators */
	TupleDesc	tupdesc;		/* a copy, for the slots */
	TupleTableSlot *local;		/* row found */
	TupleTableSlot *scratch;	/* row in the way, on a unique key */
	TupleTableSlot *search;		/* virtual: key to look for */
	TupleTableSlot *merged;		/* virtual: the row as it will be written */
	KdbRemoteRow remote;

	/* how to find a row */
	Oid			identity_index; /* or InvalidOid: full row match */
	int			nkeys;
	ScanKeyData key_template[INDEX_MAX_KEYS];
	AttrNumber	key_attnum[INDEX_MAX_KEYS];
	TypeCacheEntry **equality;	/* per column, for full row match; lazily */

	/* how the publisher's relation fits it */
	uint64		bound_to;		/* generation of that KdbApplyRelation */
	bool		updatable;		/* the identity's columns are part of what is sent as key */
	bool	   *compared;		/* per column: sent, so part of a full row match */
	Bitmapset  *all_columns;	/* KdbSentColumns() of a row that was sent as a whole */

	bool		row_triggers;	/* BEFORE ROW triggers fire: rows are locked first */
	bool		insert_triggers;	/* row triggers fire on INSERT */
	bool		fires;			/* some triggers fire when changes are applied */
	bool		reading_checks; /* CHECK constraints may read tables, this one perhaps */
	struct KdbRunIndex **run_indexes;	/* gaps.c; NULL until there is a run */
	bool		has_unique;		/* unique or exclusion indexes besides the identity's */
	bool		has_deferrable; /* some of them are deferrable */
	bool		has_exclusion;	/* there are exclusion indexes */
	bool		maybe_taken;	/* a deferrable key, by the row that was just updated */
	bool		has_generated;	/* stored generated columns */
	bool		domains;		/* expressions convert to some */
	bool		own_key_equality;	/* the identity index compares otherwise than its types */
	bool	   *own_equality;	/* per index: likewise, if it is unique; conflict/index_equality.c */
	Bitmapset **index_columns;	/* per index: table columns it depends on, NULL if expressions */
	bool		lacks_tuples;	/* some indexes lack dead tuples; then: */
	TransactionId *lacks_before;	/* per index: ended before, or invalid; conflict/left_out.c */
	KdbLeftOut **left_out;		/* per index; NULL until they are needed */
	KdbResolvers resolvers;
	bool		resolving;		/* any of them is not the engine's */
	bool		converging;		/* the last update wins in all, and there is a key: converge.c */
	KdbVersionRecordsKnown records;	/* are there any of this table? */
	KdbRewrites rewrites;
	KdbFloor	floor;
	int			nmerged;
	struct KdbMergedColumn *merged_columns;	/* merged_private.h */

	/* open in this transaction */
	Relation	rel;
	bool		indexes_open;
	IndexScanDesc scan;			/* on the identity index */
	MemoryContext scan_context; /* of the scan; lasts as long as "context" */
	int			scan_rows;		/* looked up by this scan */
	SnapshotData dirty;
	KdbWalk		walk;			/* on the identity index, too */
	KdbRecall	recall;
	AclMode		checked;		/* privileges verified for this role, as roles were then: */
	Oid			checked_role;
	uint64		checked_roles;
	dlist_node	open_link;
	struct KdbBatchPart *part;	/* its rows that are collected, or NULL; batch.c */
	bool		looked_in;		/* scans and slots may hold pages */
	dlist_node	looked_in_link;
} KdbApplyTarget;

struct KdbApplyRelation
{
	uint32		remoteid;		/* hash key */
	uint64		generation;		/* of this definition; never reused */
	bool		superseded;		/* another relation has its name now */
	MemoryContext remote_context;	/* what the publisher said */
	char	   *nspname;
	char	   *relname;
	char		replident;
	int			natts;
	char	  **attnames;
	Oid		   *atttypes;
	bool	   *attkeys;

	/* local side; valid until invalidated */
	bool		valid;
	MemoryContext context;
	Oid			localreloid;
	bool		partitioned;
	int			nlocal;
	KdbColumnInput *inputs;		/* per local column */
	int			ndefaults;
	AttrNumber *default_attnums;	/* 0-based */
	ExprState **default_exprs;
	bool		volatile_defaults;	/* some may read tables, or differ each time; but for nextval */
	bool		ordered_defaults;	/* those, and nextval: they tell who was first */
	bool		domains;		/* some convert to a domain */
	TupleDesc	tupdesc;
	TupleTableSlot *search;		/* virtual, format of the local table */
	KdbRemoteRow remote;

	/* table sync state, as pg_subscription_rel has it */
	char		state;
	XLogRecPtr	statelsn;
	bool		state_known;

	/* open in this transaction */
	Relation	rel;
	LOCKMODE	lockmode;
	const KdbWireMessage *message;	/* the change that is being applied, or NULL */
	KdbApplyTarget *target;		/* itself, if not partitioned */
	struct KdbApplyRouting *routing;	/* if partitioned; partition.c */
	dlist_node	open_link;
};

/* relation.c */
/*
 * A change of rel is about to be made in target, which has been opened.  Triggers that fire there may do
 * what needs a table that nobody has open, as TRUNCATE and ALTER TABLE: closes all that earlier
 * changes of the transaction have left open, but for the partition that a row comes from (or NULL).  They, and
 * CHECKs that read tables, see what earlier transactions have written.
 */
extern void KdbReadyToRead(KdbApplyRelation *rel, KdbApplyTarget *target, KdbApplyTarget *from);

/* Index of the publisher's column of that name, -1 if it has none. */
extern int	KdbRemoteColumn(KdbApplyRelation *rel, const char *name);

/* target.c */
extern KdbApplyTarget *KdbTargetOpen(Oid relid, LOCKMODE lockmode,
									 KdbApplyRelation *remote);
extern void KdbTargetOpenIndexes(KdbApplyTarget *target);

/*
 * As much of a target as finding a key's row versions and records needs, for a session that only
 * reads: rel is open, what is built is in the current memory context.  False, and nothing to be
 * closed, if rows have no key.
 */
extern bool KdbTargetOpenToRead(KdbApplyTarget *target, Relation rel);
extern void KdbTargetCloseRead(KdbApplyTarget *target);
extern void KdbTargetsClose(void);
extern void KdbTargetsCloseOthers(KdbApplyTarget *target, KdbApplyTarget *from);

/*
 * Rows are looked for in the target: scans are kept for the next one, and with them pinned
 * pages.  Behind each change: of a few tables only.
 */
extern void KdbTargetLookedIn(KdbApplyTarget *target);
extern void KdbTargetsLetGo(void);

/* All of them were abandoned open by an aborted transaction, or may have been. */
extern void KdbTargetsAbandon(void);
extern void KdbTargetsForgetOptions(void);

/*
 * Slots that the trigger code has made: they pin the relcache's descriptor and
 * buffers, for the resource owner of the time.
 */
extern void KdbTargetDropTriggerSlots(KdbApplyTarget *target);
extern void KdbTargetCheck(KdbApplyTarget *target, AclMode mode);

/* Raise the engine's error if updates and deletes cannot find their row there. */
extern void KdbTargetCheckUpdatable(KdbApplyTarget *target, KdbApplyRelation *rel);

/*
 * domains.c: does an expression, or one that is evaluated when the target is written to,
 * convert to a domain?
 */
extern bool KdbConvertsToDomain(Node *planned);
extern bool KdbTargetConvertsToDomain(KdbApplyTarget *target);

/* relation.c: does an expression call functions of users that may read tables? */
extern bool KdbMayReadTables(Node *planned);

/* merged_values.c: which columns of the target are merged, and how. */
extern void KdbTargetBuildMerged(KdbApplyTarget *target);

/* convert.c */
extern void KdbConvertTuple(KdbApplyRelation *rel, const KdbWireTuple *tuple,
							TupleTableSlot *slot, bool *sent);

/*
 * The value of a local column as text of the publisher's type, which it may have lost something of here;
 * NULL if that type is not known, and so is the local one, or its text depends on settings.
 */
extern char *KdbRemoteText(const KdbColumnInput *input, const KdbWireColumn *column);
extern void KdbFillDefaults(KdbApplyRelation *rel, TupleTableSlot *slot);
extern void KdbMergeRow(TupleTableSlot *merged, TupleTableSlot *local,
						const KdbRemoteRow *remote);

/* lookup.c */

/*
 * Scan keys on the identity index, which is open, with the values of "search"; false
 * if one is NULL (no such row).
 */
extern bool KdbIdentityKey(KdbApplyTarget *target, TupleTableSlot *search, ScanKeyData *key);
extern Relation KdbIdentityRelation(KdbApplyTarget *target);

/*
 * Find the local row of the key in "search" (target's format): into
 * target->local, holding a pin.  Waits for transactions that are changing it.
 * Not locked.
 */
extern bool KdbFindRow(KdbApplyTarget *target, TupleTableSlot *search);

/*
 * recall.c: find the row of the key in "search" if this worker has written it lately;
 * false says nothing.  Put: the row in the (virtual) slot was just written.
 */
extern bool KdbRecallFind(KdbApplyTarget *target, TupleTableSlot *search);
extern void KdbRecallPut(KdbApplyTarget *target, TupleTableSlot *slot);

/*
 * walk.c: find the row of the key on the identity index if keys come in ascending order;
 * false says nothing.  Let go of the index: before a wait, and at the end.
 */
extern bool KdbWalkFind(KdbApplyTarget *target, Relation index, const ScanKeyData *key);
extern void KdbWalkEnd(KdbApplyTarget *target);

/*
 * gaps.c: do unique and exclusion indexes, that of the identity too, have no tuple, dead or
 * alive, with values of these rows?  Generated columns are computed.
 */
extern bool KdbRunIsNew(KdbApplyTarget *target, TupleTableSlot **slots, int n);

/* Lock the row in target->local; false if it has changed meanwhile. */
extern bool KdbLockRow(KdbApplyTarget *target, LockTupleMode mode);

/*
 * The version of the row in the slot, as KdbLocalRowVersion says, or unknown if a command has only
 * written it anew; and that command, or NULL.  The first one returns what records of the row's truth
 * name as shown; {0, 0}: there are none.
 */
extern KdbVersion KdbTargetRowVersion(KdbApplyTarget *target, TupleTableSlot *slot, KdbLocalRow *row);
extern const KdbRewrite *KdbTargetRewrite(KdbApplyTarget *target, TupleTableSlot *slot, TransactionId xmin);

/* What an index of the target, which is open, lacks of dead tuples, or NULL. */
extern KdbLeftOut *KdbTargetLeftOut(KdbApplyTarget *target, Relation index);

/*
 * The newest deletion of the key in "search" among dead tuples; false if none.
 */
extern bool KdbFindDead(KdbApplyTarget *target, TupleTableSlot *search,
						KdbLocalRow *row);

/*
 * Does the identity index find any tuple of the key, dead or alive?  Needs an
 * identity index.
 */
extern bool KdbKeyHasTuples(KdbApplyTarget *target, TupleTableSlot *search);

/* Does the index find any tuple, dead or alive, with these keys? */
extern bool KdbIndexHasTuples(KdbApplyTarget *target, Relation index,
							  const ScanKeyData *key, int nkeys);

/*
 * Likewise, with truth called for each candidate: it may set another version, and
 * same_transaction counts for nothing by itself.
 */
extern bool KdbFindTrueDeath(KdbApplyTarget *target, TupleTableSlot *search,
							 KdbLocalRow *row, KdbDeathTruth truth, void *arg);

/* unique.c */
#define KDB_MAX_HOLDERS	INDEX_MAX_KEYS

typedef struct KdbHolder
{
	ItemPointerData tid;
	Oid			index;
	KdbLocalRow row;
	TupleTableSlot *copy;		/* for the record; in the message context */
} KdbHolder;

/*
 * Live rows, other than the one at "self" (NULL: none), that hold a value of
 * "slot" in a unique index or exclude it by a constraint.  Looks only at
 * indexes on changed columns if "changed" is not NULL.  Fills at most "max"
 * distinct rows into holders, returns how many there are (at most max).
 *
 * The filter says which rows are in the way, of those that the index has found.  With NULL: a
 * deferrable key may be taken for a while inside a transaction, so rows of the node that the change
 * comes from are not.
 */
typedef bool (*KdbHolderFilter) (void *arg, Relation index, TupleTableSlot *existing);

extern int	KdbFindHolders(KdbApplyTarget *target, TupleTableSlot *slot,
						   ItemPointer self, const Bitmapset *changed,
						   KdbHolderFilter filter, void *arg,
						   KdbHolder *holders, int max);

/* The values of a row in a unique index or exclusion constraint. */
typedef struct KdbUniqueValues
{
	Relation	index;
	Oid			place;			/* KdbIndexPlace */
	IndexInfo  *info;
	int			nkeys;
	ScanKeyData key[INDEX_MAX_KEYS];	/* finds rows with these values */
	KdbRecordedKey values;
} KdbUniqueValues;

/*
 * Call back for each unique index, but that of the identity, that the row has
 * values in, until one says true; returns what the last one has said.
 */
typedef bool (*KdbUniqueCallback) (void *arg, const KdbUniqueValues *unique);

extern bool KdbForEachUnique(KdbApplyTarget *target, TupleTableSlot *slot,
							 KdbUniqueCallback callback, void *arg);

/* Does no tuple, dead or alive, have one of the row's unique values? */
extern bool KdbHasNewValues(KdbApplyTarget *target, TupleTableSlot *row);

/* Recheck of a row that a lossy index has found. */
extern bool KdbUniqueMatches(KdbApplyTarget *target, const KdbUniqueValues *unique,
							 TupleTableSlot *existing);

/* Columns in which two rows differ (attnum - FirstLowInvalid...), by image. */
extern Bitmapset *KdbChangedColumns(TupleDesc tupdesc, TupleTableSlot *a,
									TupleTableSlot *b);

/* Does any unique index depend on these columns? */
extern bool KdbUniqueDependsOn(KdbApplyTarget *target, const Bitmapset *columns);

/*
 * row.c: changes by the resolver of each conflict, in the target's format.  search: what
 * the row is looked for by, the full old row if that was sent.
 */
extern void KdbRowInsert(KdbApplyRelation *rel, KdbApplyTarget *target,
						 TupleTableSlot *search, KdbRemoteRow *row);
extern void KdbRowUpdate(KdbApplyRelation *rel, KdbApplyTarget *target,
						 TupleTableSlot *search, bool old_is_full, KdbRemoteRow *row);
extern void KdbRowDelete(KdbApplyRelation *rel, KdbApplyTarget *target,
						 TupleTableSlot *search);

/*
 * converge.c: changes of a table that is "converging".  In rel's format for a
 * partitioned table and an UPDATE, else in the target's.  old: NULL if the key was
 * not sent, as it has not changed.
 */
extern void KdbConvergeInsert(KdbApplyRelation *rel, KdbApplyTarget *target,
							  KdbRemoteRow *row);
extern void KdbConvergeInserts(KdbApplyRelation *rel, KdbApplyTarget *target,
							   TupleTableSlot **slots, int n);
extern void KdbConvergeUpdate(KdbApplyRelation *rel, KdbApplyTarget *target,
							  TupleTableSlot *old, bool old_is_full);
extern void KdbConvergeCopiedRow(KdbApplyRelation *rel, KdbApplyTarget *target,
								 KdbRemoteRow *row);
extern void KdbConvergeCopied(KdbApplyRelation *rel, KdbApplyTarget *target,
							  KdbRemoteRow *row, KdbVersionRecordKind kind, KdbVersion version);
extern void KdbConvergeCopiedClaim(KdbApplyTarget *target, KdbRemoteRow *row,
								   const KdbCopiedVersion *claim, KdbVersion version);
extern void KdbConvergeCopiedHistory(KdbApplyRelation *rel, KdbApplyTarget *target, KdbRemoteRow *row,
									 bool live, List *contributions, TimestampTz since);
extern void KdbConvergeDelete(KdbApplyRelation *rel, KdbApplyTarget *target,
							  TupleTableSlot *old);

/* write.c */
typedef enum KdbWriteResult
{
	KDB_WRITE_DONE,				/* written, or a trigger said not to */
	KDB_WRITE_CONFLICT,			/* a unique key is taken (only if asked to notice) */
	KDB_WRITE_CHANGED			/* the local row has changed: look again */
} KdbWriteResult;

/* Which taken unique keys an insert notices; the others are the engine's business. */
typedef enum KdbNotice
{
	KDB_NOTICE_NONE,			/* the engine's error */
	KDB_NOTICE_IMMEDIATE,		/* not the deferrable ones, nor does the engine */
	KDB_NOTICE_ALL
} KdbNotice;

extern bool KdbHasBeforeInsertTriggers(KdbApplyTarget *target);
extern bool KdbBeforeInsert(KdbApplyTarget *target, TupleTableSlot *slot);
extern bool KdbBeforeInsertOf(KdbApplyTarget *target, KdbRemoteRow *row);
extern void KdbComputeGenerated(KdbApplyTarget *target, TupleTableSlot *slot);
extern KdbWriteResult KdbWriteInsert(KdbApplyTarget *target, TupleTableSlot *slot,
									 KdbNotice notice);
/* What the engine's updatedCols are: the columns that were sent.  Not to be changed or freed. */
extern Bitmapset *KdbSentColumns(KdbApplyTarget *target, const KdbRemoteRow *row);
extern KdbWriteResult KdbWriteUpdate(KdbApplyTarget *target, TupleTableSlot *slot,
									 Bitmapset *sent_columns, bool notice_conflicts);

/* Asked when the row is in heap and indexes: if it may not stay it is rolled back. */
typedef bool (*KdbMayStay) (void *arg, TupleTableSlot *row);

extern KdbWriteResult KdbWriteUpdateIf(KdbApplyTarget *target, TupleTableSlot *slot,
									   Bitmapset *sent_columns, KdbMayStay may_stay, void *arg);
extern KdbWriteResult KdbWriteDelete(KdbApplyTarget *target, ItemPointer tid);

/*
 * Insert rows of a table without row triggers on INSERT; the engine's error if a key is taken.
 * True if a deferrable one may be, which is no error.
 */
extern bool KdbWriteInserts(KdbApplyTarget *target, TupleTableSlot **slots, int nslots);

/*
 * run_inserts.c: insert rows that KdbRunIsNew.  If a key is taken all the same, a
 * serialization failure: the transaction is applied again, row by row.
 */
extern void KdbWriteNewRows(KdbApplyTarget *target, TupleTableSlot **slots, int n);

/* Which columns of a run's rows the publisher has sent: all that it has. */
extern bool *KdbSentInRun(KdbApplyRelation *rel, KdbApplyTarget *target);

/* Insert rows one by one; all the publisher's columns are known. */
extern void KdbInsertEach(KdbApplyRelation *rel, KdbApplyTarget *target,
						  TupleTableSlot **slots, int n);

/* Insert rows into a table with resolvers that is not "converging". */
extern void KdbResolveInserts(KdbApplyRelation *rel, KdbApplyTarget *target,
							  TupleTableSlot **slots, int n);

/*
 * entries.c: index entries of the row in the (virtual) slot, the new version of that in
 * target->local.  Returns the indexes to be checked again, as ExecInsertIndexTuples does.
 */
extern List *KdbInsertUpdatedEntries(KdbApplyTarget *target, TupleTableSlot *slot);

/*
 * batch.c.  Begin: may the row be collected with others of its table, as far as can be said before
 * it is converted?  *bytes is how much it is.  Then Convert, for a table that is not partitioned; or
 * Routed, with the row in the partitioned table's format, and not as another user.  False, from any of
 * them: it is to be inserted by itself, after KdbBatchFlush.
 */
extern bool KdbBatchBegin(KdbApplyRelation *rel, const KdbWireTuple *tuple, size_t *bytes);
extern bool KdbBatchConvert(KdbApplyRelation *rel, KdbApplyTarget *target, const KdbWireTuple *tuple,
							size_t bytes);
extern bool KdbBatchRouted(KdbApplyRelation *rel, KdbApplyTarget *target, TupleTableSlot *row,
						   size_t bytes);

/*
 * partition.c.  RouteTo: the partition that the row in "slot" (the partitioned table's format)
 * belongs to.  RouteMap: from that format to the partition's; NULL if it is the same.
 */
extern KdbApplyTarget *KdbRouteTo(KdbApplyRelation *rel, TupleTableSlot *slot);
extern AttrMap *KdbRouteMap(KdbApplyRelation *rel, KdbApplyTarget *target);

/* The row of one slot in the format of another, to; the values are shared, not copied. */
extern TupleTableSlot *KdbReformat(AttrMap *map, TupleTableSlot *from, TupleTableSlot *to);
extern KdbApplyTarget *KdbRoute(KdbApplyRelation *rel, TupleTableSlot *slot,
								TupleTableSlot **routed);
extern KdbRemoteRow *KdbRouteRow(KdbApplyRelation *rel, KdbApplyTarget *target,
								 const KdbRemoteRow *row);
extern TupleTableSlot *KdbRouteBack(KdbApplyRelation *rel, KdbApplyTarget *target,
									TupleTableSlot *slot);
extern void KdbRoutingClose(KdbApplyRelation *rel);
extern void KdbRoutingAbandon(KdbApplyRelation *rel);

#endif							/* RELATION_PRIVATE_H */
