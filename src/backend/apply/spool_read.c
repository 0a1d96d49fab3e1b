/*
 * spool_read.c
 *		Reading a streamed transaction's file, and applying what is in it.
 *
 * By the worker itself when the transaction has ended; or by another process while the
 * file still grows (early_worker.c).  That one knows how many records are complete, and
 * asks for no more.  A file consists of segments that are opened together: when one
 * seems to end, it may be that a new segment has been begun, so it is opened again.
 */
#include "postgres.h"

#include <fcntl.h>

#include "access/xact.h"
#include "miscadmin.h"
#include "storage/buffile.h"
#include "utils/memutils.h"

#include "apply_private.h"

#define LOG_EVERY	1000		/* replayed changes per DEBUG1 line */
#define REPORT_EVERY	16		/* replayed changes per look whether a report is due */

struct KdbSpoolReader
{
	TransactionId xid;
	char		name[KDB_SPOOL_NAME];
	BufFile    *file;
	uint64		nread;			/* records */
	uint32		capacity;		/* of buffer */
	char	   *buffer;
};

/* See apply_private.h. */
KdbSpoolReader *
KdbSpoolReaderOpen(TransactionId xid)
{
	/* KdbApplyMessageContext is reset behind each message. */
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	KdbSpoolReader *reader = palloc(sizeof(KdbSpoolReader));

	reader->xid = xid;
	reader->file = KdbSpoolOpenChanges(xid, reader->name);
	reader->nread = 0;
	reader->capacity = BLCKSZ;
	reader->buffer = palloc(reader->capacity);
	MemoryContextSwitchTo(old);
	return reader;
}

/* See apply_private.h. */
uint64
KdbSpoolReaderCount(const KdbSpoolReader *reader)
{
	return reader->nread;
}

/* See apply_private.h. */
void
KdbSpoolReaderClose(KdbSpoolReader *reader)
{
	BufFileClose(reader->file);
	pfree(reader->buffer);
	pfree(reader);
}

/* At the same position, with all segments that there are now. */
static void
open_again(KdbSpoolReader *reader)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	int			fileno;
	off_t		offset;

	BufFileTell(reader->file, &fileno, &offset);
	BufFileClose(reader->file);
	reader->file = KdbSpoolOpenChanges(reader->xid, reader->name);
	if (BufFileSeek(reader->file, fileno, offset, SEEK_SET) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not seek in streaming transaction's changes file \"%s\": %m",
						reader->name)));
	MemoryContextSwitchTo(old);
}

/* Read exactly size bytes; false if the file ends before the first of them. */
static bool
read_exactly(KdbSpoolReader *reader, void *ptr, size_t size)
{
	size_t		nread = BufFileRead(reader->file, ptr, size);

	if (nread < size && KdbInEarly())
	{
		open_again(reader);
		nread += BufFileRead(reader->file, (char *) ptr + nread, size - nread);
	}
	if (nread == 0)
		return false;
	if (nread != size)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not read from streaming transaction's changes file \"%s\": read only %zu of %zu bytes",
						reader->name, nread, size)));
	return true;
}

static void
read_record(KdbSpoolReader *reader, uint32 length)
{
	if (length == 0 || length > MaxAllocSize)
		elog(ERROR, "incorrect length %u in streaming transaction's changes file \"%s\"",
			 length, reader->name);
	if (length > reader->capacity)
	{
		reader->capacity = length;
		pfree(reader->buffer);
		reader->buffer = MemoryContextAlloc(TopTransactionContext, reader->capacity);
	}
	if (!read_exactly(reader, reader->buffer, length))
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not read from streaming transaction's changes file \"%s\": read only %zu of %zu bytes",
						reader->name, (size_t) 0, (size_t) length)));
}

/* See apply_private.h. */
bool
KdbSpoolReaderApply(KdbSpoolReader *reader)
{
	uint32		length;

	CHECK_FOR_INTERRUPTS();
	if (!read_exactly(reader, &length, sizeof(length)))
		return false;
	read_record(reader, length);
	reader->nread++;
	KdbApplyDispatch(reader->buffer, length);
	if (reader->nread % LOG_EVERY == 0)
		elog(DEBUG1, "replayed " UINT64_FORMAT " changes from file \"%s\"",
			 reader->nread, reader->name);
	return true;
}

/* See apply_private.h. */
void
KdbSpoolReplay(TransactionId xid)
{
	KdbSpoolReader *reader;

	KdbApplyBeginStep();
	reader = KdbSpoolReaderOpen(xid);
	KdbApplyEndStep();

	while (KdbSpoolReaderApply(reader))
	{
		if (reader->nread % REPORT_EVERY == 0)
			KdbFeedbackWhileBusy();
	}

	elog(DEBUG1, "replayed " UINT64_FORMAT " (all) changes from file \"%s\"",
		 reader->nread, reader->name);
	KdbSpoolReaderClose(reader);
}
