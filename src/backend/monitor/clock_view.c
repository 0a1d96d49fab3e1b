/*
 * clock_view.c
 *		The function behind view krahodb.clock.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/timestamp.h"

#include "krahodb/compat.h"
#include "krahodb/shared.h"

KDB_SQL_FUNCTION(krahodb_clock_state);

#define CLOCK_COLUMNS	6

static Datum
milliseconds(pg_atomic_uint64 *us)
{
	return Float8GetDatum(pg_atomic_read_u64(us) / 1000.0);
}

Datum
krahodb_clock_state(PG_FUNCTION_ARGS)
{
	Datum		values[CLOCK_COLUMNS];
	bool		nulls[CLOCK_COLUMNS] = {false};
	TupleDesc	desc;
	TimestampTz newest = (TimestampTz) pg_atomic_read_u64(&KdbShared->clock_max);

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = BoolGetDatum(KdbClockHolds());
	values[1] = TimestampTzGetDatum(newest);
	nulls[1] = newest == 0;
	values[2] = Int64GetDatum(pg_atomic_read_u64(&KdbShared->clock_commit_waits));
	values[3] = milliseconds(&KdbShared->clock_commit_wait_us);
	values[4] = Int64GetDatum(pg_atomic_read_u64(&KdbShared->clock_apply_waits));
	values[5] = milliseconds(&KdbShared->clock_apply_wait_us);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}
