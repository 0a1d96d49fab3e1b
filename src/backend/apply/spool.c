/*
 * spool.c
 *		Transactions that arrive before they end, in files until they do.
 *
 * With streaming = on, and by default from a KrahoDB publisher, a large transaction is sent
 * in blocks while it still runs:
 *
 *	STREAM START(xid) change* STREAM STOP		any number of times, blocks of
 *												several transactions alternating
 *	STREAM ABORT(xid, subxid)					a subtransaction rolled back
 *	STREAM COMMIT(xid) | STREAM PREPARE(xid) | STREAM ABORT(xid, xid)
 *
 * Each top-level transaction has one file of changes.  At its end the file is
 * replayed (spool_read.c) through the ordinary message functions, unless it has been
 * applied meanwhile.  Files belong to the worker: they are removed when it exits, and
 * after a restart the publisher sends the transaction again from its start.
 *
 * FORMAT of a record in the file: uint32 length (native), then the message as
 * it came but without the xid that stream blocks put behind the type byte.  So
 * a replayed message decodes as one outside a stream, and it is decoded once
 * only.  The file does not outlive this process.
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
 * WHO APPLIES IT EARLY (early_leader.c) reads the file behind this process, as far as it
 * has been told.  What has been told never changes; before a part is cut off, it stops.
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
#define KDB_SPOOL_FLUSH_SIZE	(64 * 1024) /* bytes; for who applies it early */

/* Where the first change of a subtransaction stands. */
typedef struct SubxactEntry
{
	TransactionId xid;
	int			fileno;
	off_t		offset;
	uint64		nrecords;		/* before it */
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
	uint64		nrecords;		/* in the file */
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
static size_t unflushed = 0;	/* bytes that who applies it early does not see yet */

bool
KdbSpoolActive(void)
{
	return current != NULL;
}

static void
changes_name(char *name, TransactionId xid)
{
	snprintf(name, KDB_SPOOL_NAME, "%u-%u.changes", MyLogicalRepWorker->subid, xid);
}

static void
subxacts_name(char *name, TransactionId xid)
{
	snprintf(name, KDB_SPOOL_NAME, "%u-%u.subxacts", MyLogicalRepWorker->subid, xid);
}

/*
 * See apply_private.h.  Made at the first use; the engine's exit function of workers
 * removes it.
 */
FileSet *
KdbSpoolFiles(void)
{
	if (MyLogicalRepWorker->stream_fileset == NULL)
	{
		MemoryContext context = CurrentMemoryContext;
		FileSet    *set = MemoryContextAlloc(ApplyContext, sizeof(FileSet));
		bool		own_transaction = !IsTransactionState();

		/* Outside of transactions the engine does not look temp_tablespaces up. */
		if (own_transaction)
			StartTransactionCommand();
		FileSetInit(set);
		if (own_transaction)
			CommitTransactionCommand();
		MemoryContextSwitchTo(context);
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
	entry->nrecords = txn->nrecords;
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
	char		name[KDB_SPOOL_NAME];
	BufFile    *file;

	subxacts_name(name, txn->xid);
	file = BufFileCreateFileSet(KdbSpoolFiles(), name);
	BufFileWrite(file, txn->entries, (Size) txn->nentries * sizeof(SubxactEntry));
	BufFileClose(file);
	txn->on_disk = true;
}

static void
read_entries(SpoolTransaction *txn)
{
	char		name[KDB_SPOOL_NAME];
	BufFile    *file;
	Size		size = (Size) txn->nentries * sizeof(SubxactEntry);
	size_t		nread;

	subxacts_name(name, txn->xid);
	file = BufFileOpenFileSet(KdbSpoolFiles(), name, O_RDONLY, false);
	make_entries(txn, Max(txn->nentries, 64));
	nread = BufFileRead(file, txn->entries, size);
	if (nread != size)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not read from streaming transaction's subxact file \"%s\": read only %zu of %zu bytes",
						name, nread, size)));
	BufFileClose(file);
	BufFileDeleteFileSet(KdbSpoolFiles(), name, false); /* they may fit into memory from now on */

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
	char		name[KDB_SPOOL_NAME];

	if (txn == NULL)
		return;

	KdbEarlyStop(xid);
	changes_name(name, xid);
	BufFileDeleteFileSet(KdbSpoolFiles(), name, true);
	if (txn->on_disk)
	{
		subxacts_name(name, xid);
		BufFileDeleteFileSet(KdbSpoolFiles(), name, true);
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
	char		name[KDB_SPOOL_NAME];
	BufFile    *file;

	changes_name(name, xid);
	elog(DEBUG1, "opening file \"%s\" for streamed changes", name);

	if (create)
		return BufFileCreateFileSet(KdbSpoolFiles(), name);

	file = BufFileOpenFileSet(KdbSpoolFiles(), name, O_RDWR, false);
	if (BufFileSeek(file, 0, 0, SEEK_END) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not seek in streaming transaction's changes file \"%s\": %m",
						name)));
	return file;
}

/* See apply_private.h. */
BufFile *
KdbSpoolOpenChanges(TransactionId xid, char *name)
{
	changes_name(name, xid);
	elog(DEBUG1, "replaying changes from file \"%s\"", name);
	return BufFileOpenFileSet(KdbSpoolFiles(), name, O_RDONLY, false);
}

/* What was written so far is for others to read. */
static void
flush_changes(void)
{
	char		name[KDB_SPOOL_NAME];
	int			fileno;
	off_t		offset;

	changes_name(name, current->xid);
	BufFileTell(current_file, &fileno, &offset);
	if (BufFileSeek(current_file, 0, 0, SEEK_SET) != 0 ||
		BufFileSeek(current_file, fileno, offset, SEEK_SET) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not seek in streaming transaction's changes file \"%s\": %m", name)));
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

	if (first)
		KdbEarlyBegin(xid);

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
	unflushed = 0;
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
	if (KdbEarlyApplies(current->xid))
		KdbEarlyArrived(current->nrecords);
	current = NULL;

	PopActiveSnapshot();
	CommitTransactionCommand();

	pgstat_report_activity(STATE_IDLE, NULL);
	KdbApplyErrorReset();
}

/* The record that was just written, for who applies the transaction early. */
static void
tell_early(const char *data, size_t len)
{
	if (data[0] == KDB_WIRE_RELATION)
	{
		char	   *record = palloc(len - sizeof(uint32));

		record[0] = data[0];
		memcpy(record + 1, data + KDB_SPOOL_HEADER, len - KDB_SPOOL_HEADER);
		KdbEarlyRelation(record, len - sizeof(uint32));
		pfree(record);
	}
	unflushed += len;
	if (unflushed < KDB_SPOOL_FLUSH_SIZE)
		return;
	unflushed = 0;
	flush_changes();
	KdbEarlyArrived(current->nrecords);
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
	current->nrecords++;
	if (KdbEarlyApplies(current->xid))
		tell_early(data, len);
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
		char		name[KDB_SPOOL_NAME];
		BufFile    *file;

		KdbEarlyStop(txn->xid); /* who applies it early has read what is cut off */
		changes_name(name, txn->xid);
		file = BufFileOpenFileSet(KdbSpoolFiles(), name, O_RDWR, false);
		txn->nrecords = entry->nrecords;
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
