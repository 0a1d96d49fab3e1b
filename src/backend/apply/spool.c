/*
 * spool.c
 *		Transactions that arrive before they end, in files until they do.
 *
 * With streaming = on the publisher sends a large transaction in blocks while
 * it still runs:
 *
 *	STREAM START(xid) change* STREAM STOP		any number of times, blocks of
 *												several transactions alternating
 *	STREAM ABORT(xid, subxid)					a subtransaction rolled back
 *	STREAM COMMIT(xid) | STREAM PREPARE(xid) | STREAM ABORT(xid, xid)
 *
 * Each top-level transaction has one file of changes.  At its end the file is
 * replayed through the ordinary message functions.  Files belong to the worker:
 * they are removed when it exits, and after a restart the publisher sends the
 * transaction again from its start.
 *
 * FORMAT of a record in the file: uint32 length (native), then the message as
 * it came but without the xid that stream blocks put behind the type byte.  So
 * a replayed message decodes as one outside a stream, and it is decoded once
 * only.  The file never leaves this process.
 *
 * SUBTRANSACTIONS.  Of each one we remember where its first change stands in
 * the file; rolling it back cuts the file off there.  That also drops what came
 * later, which can only be changes of subtransactions inside it (a change of
 * the parent comes after the rollback), and their entries with it.  Entries
 * are in the order of the file.  They are kept in memory with a hash on the
 * xid, so that a transaction of many subtransactions costs one probe per
 * change.  All transactions together keep at most KDB_SPOOL_MAX_KEPT entries
 * between blocks; those of the one that would exceed it wait in a file.
 *
 * RESOURCES.  A file is open only between STREAM START and STREAM STOP, or
 * while it is replayed, inside a local transaction whose resource owner closes
 * it on errors.
 */
#include "postgres.h"

#include <fcntl.h>

#include "access/transam.h"
#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/pg_bswap.h"
#include "storage/buffile.h"
#include "storage/fileset.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "krahodb/fault.h"
#include "apply_private.h"

#define KDB_SPOOL_MAX_KEPT		262144	/* entries in memory between blocks */
#define KDB_SPOOL_XID_OFFSET	1	/* of the xid in a message of a block */
#define KDB_SPOOL_HEADER		(KDB_SPOOL_XID_OFFSET + sizeof(uint32))
#define KDB_SPOOL_LOG_EVERY		1000	/* replayed changes per DEBUG1 line */

/* Where the first change of a subtransaction stands. */
typedef struct SubxactEntry
{
	TransactionId xid;
	int			fileno;
	off_t		offset;
} SubxactEntry;

/* Hash entry: number of the subtransaction in SpoolTransaction.entries. */
typedef struct SubxactIndex
{
	TransactionId xid;			/* key */
	uint32		number;
} SubxactIndex;

/* A top-level transaction in progress. */
typedef struct SpoolTransaction
{
	TransactionId xid;			/* key */
	uint32		nentries;
	uint32		capacity;
	SubxactEntry *entries;		/* NULL if none, or if on_disk */
	HTAB	   *index;			/* of SubxactIndex; as entries */
	MemoryContext context;		/* of entries and index; as entries */
	bool		on_disk;		/* nentries entries are in the subxacts file */
} SpoolTransaction;

static HTAB *transactions = NULL;
static uint32 entries_kept = 0; /* of all transactions, between blocks */

/* The open block. */
static SpoolTransaction *current = NULL;
static BufFile *current_file = NULL;
static TransactionId current_subxid = InvalidTransactionId; /* of the last change */

bool
KdbSpoolActive(void)
{
	return current != NULL;
}

static void
changes_name(char *name, TransactionId xid)
{
	snprintf(name, MAXPGPATH, "%u-%u.changes", MyLogicalRepWorker->subid, xid);
}

static void
subxacts_name(char *name, TransactionId xid)
{
	snprintf(name, MAXPGPATH, "%u-%u.subxacts", MyLogicalRepWorker->subid, xid);
}

/*
 * The worker's set of files, made at the first use.  The engine's exit function
 * of workers removes it.
 */
static FileSet *
fileset(void)
{
	if (MyLogicalRepWorker->stream_fileset == NULL)
	{
		FileSet    *set = MemoryContextAlloc(ApplyContext, sizeof(FileSet));

		FileSetInit(set);
		MyLogicalRepWorker->stream_fileset = set;
	}
	return MyLogicalRepWorker->stream_fileset;
}

/*
 * The transaction table.
 */

static SpoolTransaction *
find_transaction(TransactionId xid)
{
	if (transactions == NULL)
		return NULL;
	return hash_search(transactions, &xid, HASH_FIND, NULL);
}

static SpoolTransaction *
add_transaction(TransactionId xid)
{
	SpoolTransaction *txn;

	if (transactions == NULL)
	{
		HASHCTL		ctl = {0};

		ctl.keysize = sizeof(TransactionId);
		ctl.entrysize = sizeof(SpoolTransaction);
		ctl.hcxt = ApplyContext;
		transactions = hash_create("KrahoDB streamed transactions", 32, &ctl,
								   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}

	txn = hash_search(transactions, &xid, HASH_ENTER, NULL);
	memset(txn, 0, sizeof(*txn));
	txn->xid = xid;
	return txn;
}

static void
free_entries(SpoolTransaction *txn)
{
	if (txn->context != NULL)
		MemoryContextDelete(txn->context);
	txn->context = NULL;
	txn->entries = NULL;
	txn->index = NULL;
	txn->capacity = 0;
}

/*
 * Subtransaction entries in memory.
 */

static void
make_entries(SpoolTransaction *txn, uint32 capacity)
{
	HASHCTL		ctl = {0};

	txn->context = AllocSetContextCreate(ApplyContext,
										 "KrahoDB streamed subtransactions",
										 ALLOCSET_DEFAULT_SIZES);
	ctl.keysize = sizeof(TransactionId);
	ctl.entrysize = sizeof(SubxactIndex);
	ctl.hcxt = txn->context;
	txn->index = hash_create("KrahoDB streamed subtransactions", capacity, &ctl,
							 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	txn->capacity = capacity;
	txn->entries = MemoryContextAllocHuge(txn->context, (Size) capacity * sizeof(SubxactEntry));
}

static void
index_entry(SpoolTransaction *txn, uint32 number)
{
	SubxactIndex *slot = hash_search(txn->index, &txn->entries[number].xid,
									 HASH_ENTER, NULL);

	slot->number = number;
}

/* A change of subxid comes next: remember where, if it is the first one. */
static void
note_subxact(SpoolTransaction *txn, TransactionId subxid)
{
	SubxactEntry *entry;

	if (subxid == txn->xid || subxid == current_subxid)
		return;
	current_subxid = subxid;

	if (txn->entries == NULL)
		make_entries(txn, 64);
	if (hash_search(txn->index, &subxid, HASH_FIND, NULL) != NULL)
		return;

	if (txn->nentries == txn->capacity)
	{
		txn->capacity *= 2;
		txn->entries = repalloc_huge(txn->entries,
									 (Size) txn->capacity * sizeof(SubxactEntry));
	}
	entry = &txn->entries[txn->nentries];
	entry->xid = subxid;
	BufFileTell(current_file, &entry->fileno, &entry->offset);
	index_entry(txn, txn->nentries);
	txn->nentries++;
}

/* Drop the entries from number on. */
static void
truncate_entries(SpoolTransaction *txn, uint32 number)
{
	for (uint32 i = number; i < txn->nentries; i++)
		hash_search(txn->index, &txn->entries[i].xid, HASH_REMOVE, NULL);
	txn->nentries = number;
}

/*
 * Subtransaction entries on disk.
 */

static void
write_entries(SpoolTransaction *txn)
{
	char		name[MAXPGPATH];
	BufFile    *file;

	subxacts_name(name, txn->xid);
	BufFileDeleteFileSet(fileset(), name, true);
	file = BufFileCreateFileSet(fileset(), name);
	BufFileWrite(file, txn->entries, (Size) txn->nentries * sizeof(SubxactEntry));
	BufFileClose(file);
	txn->on_disk = true;
}

static void
read_entries(SpoolTransaction *txn)
{
	char		name[MAXPGPATH];
	BufFile    *file;
	Size		size = (Size) txn->nentries * sizeof(SubxactEntry);
	size_t		nread;

	subxacts_name(name, txn->xid);
	file = BufFileOpenFileSet(fileset(), name, O_RDONLY, false);
	make_entries(txn, Max(txn->nentries, 64));
	nread = BufFileRead(file, txn->entries, size);
	if (nread != size)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not read from streaming transaction's subxact file \"%s\": read only %zu of %zu bytes",
						name, nread, size)));
	BufFileClose(file);

	for (uint32 i = 0; i < txn->nentries; i++)
		index_entry(txn, i);
	txn->on_disk = false;
}

/* The entries are about to be used. */
static void
take_entries(SpoolTransaction *txn)
{
	if (txn->on_disk)
		read_entries(txn);
	else
		entries_kept -= txn->nentries;
}

/* They are not used for a while. */
static void
put_entries(SpoolTransaction *txn)
{
	if (txn->nentries == 0)
		free_entries(txn);
	else if (entries_kept + txn->nentries <= KDB_SPOOL_MAX_KEPT)
		entries_kept += txn->nentries;
	else
	{
		write_entries(txn);
		free_entries(txn);
	}
}

/* The transaction has ended: nothing of it is needed any more. */
void
KdbSpoolForget(TransactionId xid)
{
	SpoolTransaction *txn = find_transaction(xid);
	char		name[MAXPGPATH];

	if (txn == NULL)
		return;

	changes_name(name, xid);
	BufFileDeleteFileSet(fileset(), name, true);
	if (txn->on_disk)
	{
		subxacts_name(name, xid);
		BufFileDeleteFileSet(fileset(), name, true);
	}
	else
		entries_kept -= txn->nentries;
	free_entries(txn);
	hash_search(transactions, &xid, HASH_REMOVE, NULL);
}

/*
 * Blocks.
 */

static BufFile *
open_changes(TransactionId xid, bool create)
{
	char		name[MAXPGPATH];
	BufFile    *file;

	changes_name(name, xid);
	elog(DEBUG1, "opening file \"%s\" for streamed changes", name);

	if (create)
		return BufFileCreateFileSet(fileset(), name);

	file = BufFileOpenFileSet(fileset(), name, O_RDWR, false);
	if (BufFileSeek(file, 0, 0, SEEK_END) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not seek in streaming transaction's changes file \"%s\": %m",
						name)));
	return file;
}

void
KdbApplyStreamStart(const KdbWireMessage *message)
{
	TransactionId xid = message->u.stream_start.xid;
	bool		first = message->u.stream_start.first_segment;
	SpoolTransaction *txn;
	MemoryContext oldcxt;

	if (KdbSpoolActive())
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg_internal("duplicate STREAM START message")));
	if (in_remote_transaction)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg_internal("STREAM START message inside a remote transaction")));
	if (!TransactionIdIsValid(xid))
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg_internal("invalid transaction ID in streamed replication transaction")));

	/* A local transaction for the block: its resource owner holds the file. */
	KdbApplyBeginStep();
	KdbApplyErrorSetTransaction(xid, InvalidXLogRecPtr);

	if (first)
	{
		KdbSpoolForget(xid);
		txn = add_transaction(xid);
	}
	else
	{
		txn = find_transaction(xid);
		if (txn == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg_internal("streamed transaction %u goes on without having begun", xid)));
	}

	oldcxt = MemoryContextSwitchTo(TopTransactionContext);
	take_entries(txn);
	current_file = open_changes(xid, first);
	MemoryContextSwitchTo(oldcxt);

	current_subxid = InvalidTransactionId;
	current = txn;
	pgstat_report_activity(STATE_RUNNING, NULL);
	KdbApplyEndStep();
}

void
KdbApplyStreamStop(const KdbWireMessage *message)
{
	if (!KdbSpoolActive())
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg_internal("STREAM STOP message without STREAM START")));

	put_entries(current);
	BufFileClose(current_file);
	current_file = NULL;
	current = NULL;

	PopActiveSnapshot();
	CommitTransactionCommand();

	pgstat_report_activity(STATE_IDLE, NULL);
	KdbApplyErrorReset();
}

/* Write a change of the open block to its transaction's file. */
void
KdbSpoolChange(const char *data, size_t len)
{
	TransactionId subxid;
	uint32		length;

	Assert(KdbSpoolActive());

	if (len < KDB_SPOOL_HEADER)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("message of a streamed transaction ends too early")));
	memcpy(&subxid, data + KDB_SPOOL_XID_OFFSET, sizeof(subxid));
	subxid = pg_ntoh32(subxid);
	if (!TransactionIdIsValid(subxid))
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg_internal("invalid transaction ID in streamed replication transaction")));

	KDB_FAULT_POINT("spool_write");
	note_subxact(current, subxid);

	length = len - sizeof(uint32);
	BufFileWrite(current_file, &length, sizeof(length));
	BufFileWrite(current_file, unconstify(char *, data), KDB_SPOOL_XID_OFFSET);
	BufFileWrite(current_file, unconstify(char *, data) + KDB_SPOOL_HEADER,
				 len - KDB_SPOOL_HEADER);
}

/* Cut the changes file of txn off at the first change of subxid, if it has any. */
static void
abort_subxact(SpoolTransaction *txn, TransactionId subxid)
{
	SubxactIndex *found = NULL;

	KdbApplyBeginStep();
	take_entries(txn);
	if (txn->index != NULL)
		found = hash_search(txn->index, &subxid, HASH_FIND, NULL);
	if (found != NULL)
	{
		uint32		number = found->number;
		SubxactEntry *entry = &txn->entries[number];
		char		name[MAXPGPATH];
		BufFile    *file;

		changes_name(name, txn->xid);
		file = BufFileOpenFileSet(fileset(), name, O_RDWR, false);
		BufFileTruncateFileSet(file, entry->fileno, entry->offset);
		BufFileClose(file);
		truncate_entries(txn, number);
	}
	put_entries(txn);

	PopActiveSnapshot();
	CommitTransactionCommand();
}

void
KdbApplyStreamAbort(const KdbWireMessage *message)
{
	TransactionId xid = message->u.stream_abort.xid;
	TransactionId subxid = message->u.stream_abort.subxid;

	if (KdbSpoolActive())
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg_internal("STREAM ABORT message without STREAM STOP")));

	KdbApplyErrorSetTransaction(subxid, InvalidXLogRecPtr);
	if (xid == subxid)
		KdbSpoolForget(xid);
	else
	{
		SpoolTransaction *txn = find_transaction(xid);

		if (txn != NULL)
			abort_subxact(txn, subxid);
	}
	KdbApplyErrorReset();
}

/*
 * Replay.
 */

/* Read exactly size bytes; false if the file ends before the first of them. */
static bool
read_exactly(BufFile *file, const char *name, void *ptr, size_t size)
{
	size_t		nread = BufFileRead(file, ptr, size);

	if (nread == 0)
		return false;
	if (nread != size)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not read from streaming transaction's changes file \"%s\": read only %zu of %zu bytes",
						name, nread, size)));
	return true;
}

/*
 * Apply all spooled changes of the transaction, in a local transaction that is
 * open afterwards.
 */
void
KdbSpoolReplay(TransactionId xid)
{
	char		name[MAXPGPATH];
	MemoryContext oldcxt;
	BufFile    *file;
	uint32		capacity = BLCKSZ;
	uint32		length;
	char	   *buffer;
	int			nchanges = 0;

	KdbApplyBeginStep();
	changes_name(name, xid);
	elog(DEBUG1, "replaying changes from file \"%s\"", name);

	/* KdbApplyMessageContext is reset behind each message. */
	oldcxt = MemoryContextSwitchTo(TopTransactionContext);
	file = BufFileOpenFileSet(fileset(), name, O_RDONLY, false);
	buffer = palloc(capacity);
	MemoryContextSwitchTo(oldcxt);
	KdbApplyEndStep();

	while (read_exactly(file, name, &length, sizeof(length)))
	{
		CHECK_FOR_INTERRUPTS();

		if (length == 0 || length > MaxAllocSize)
			elog(ERROR, "incorrect length %u in streaming transaction's changes file \"%s\"",
				 length, name);
		if (length > capacity)
		{
			capacity = length;
			pfree(buffer);
			buffer = MemoryContextAlloc(TopTransactionContext, capacity);
		}
		if (!read_exactly(file, name, buffer, length))
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not read from streaming transaction's changes file \"%s\": read only %zu of %zu bytes",
							name, (size_t) 0, (size_t) length)));

		KdbApplyDispatch(buffer, length);

		if (++nchanges % KDB_SPOOL_LOG_EVERY == 0)
			elog(DEBUG1, "replayed %d changes from file \"%s\"", nchanges, name);
	}

	BufFileClose(file);
	pfree(buffer);
	elog(DEBUG1, "replayed %d (all) changes from file \"%s\"", nchanges, name);
}
