/*
 * fetch_view.c
 *		The function behind view krahodb.fetch_stats.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "fmgr.h"
#include "funcapi.h"

#include "krahodb/compat.h"
#include "krahodb/shared.h"

KDB_SQL_FUNCTION(krahodb_fetch_state);

#define FETCH_COLUMNS	3

Datum
krahodb_fetch_state(PG_FUNCTION_ARGS)
{
	Datum		values[FETCH_COLUMNS];
	bool		nulls[FETCH_COLUMNS] = {false};
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = Int64GetDatum(pg_atomic_read_u64(&KdbShared->fetched_rows));
	values[1] = Float8GetDatum(pg_atomic_read_u64(&KdbShared->fetch_us) / 1000.0);
	values[2] = Int64GetDatum(pg_atomic_read_u64(&KdbShared->fetch_failures));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}
