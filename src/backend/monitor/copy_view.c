/*
 * copy_view.c
 *		The function behind view krahodb.copy_progress.
 *
 * Shows entries of shared memory as they are at one moment each; it waits for
 * nobody.
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/spin.h"
#include "utils/timestamp.h"

#include "krahodb/compat.h"
#include "krahodb/copy_shared.h"

KDB_SQL_FUNCTION(krahodb_copies);

typedef enum CopyColumn
{
	COPY_SUBID,
	COPY_RELID,
	COPY_STARTED,
	COPY_WORKERS,
	COPY_RANGES,
	COPY_RANGES_DONE,
	COPY_PAGES,
	COPY_PAGES_DONE,
	COPY_PAGES_KEPT,
	COPY_ROWS,
	COPY_BYTES,
	COPY_ROWS_EXPECTED,
	COPY_COLUMNS
} CopyColumn;

/* False if nothing of this database is copied there. */
static bool
read_copy(KdbSharedCopy *copy, Datum *values, bool *nulls)
{
	bool		shown;
	bool		ranges;

	SpinLockAcquire(&copy->mutex);
	shown = OidIsValid(copy->subid) && copy->dbid == MyDatabaseId;
	ranges = copy->nranges > 0;
	values[COPY_SUBID] = ObjectIdGetDatum(copy->subid);
	values[COPY_RELID] = ObjectIdGetDatum(copy->relid);
	values[COPY_STARTED] = TimestampTzGetDatum(copy->started);
	values[COPY_WORKERS] = Int32GetDatum(copy->nworkers);
	values[COPY_RANGES] = Int32GetDatum(copy->nranges);
	values[COPY_RANGES_DONE] = Int32GetDatum(copy->nranges_done);
	values[COPY_PAGES] = Int64GetDatum(copy->pages);
	values[COPY_PAGES_DONE] = Int64GetDatum(copy->pages_done);
	values[COPY_PAGES_KEPT] = Int64GetDatum(copy->pages_kept);
	values[COPY_ROWS_EXPECTED] = Int64GetDatum(copy->rows_expected);
	SpinLockRelease(&copy->mutex);
	values[COPY_ROWS] = Int64GetDatum(pg_atomic_read_u64(&copy->rows));
	values[COPY_BYTES] = Int64GetDatum(pg_atomic_read_u64(&copy->bytes));

	/* one that is copied as a whole is one piece */
	for (int i = 0; i < COPY_COLUMNS; i++)
		nulls[i] = !ranges && i >= COPY_RANGES && i <= COPY_PAGES_KEPT;
	nulls[COPY_ROWS_EXPECTED] = DatumGetInt64(values[COPY_ROWS_EXPECTED]) == 0;
	return shown;
}

/* One row for each table of this database that is being copied. */
Datum
krahodb_copies(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < KdbCopies->ncopies; i++)
	{
		Datum		values[COPY_COLUMNS];
		bool		nulls[COPY_COLUMNS];

		if (read_copy(&KdbCopies->copies[i], values, nulls))
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
