/*
 * conflict_view.c
 *		The functions behind krahodb.conflict_stats and krahodb.conflict_log.
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "krahodb/compat.h"
#include "krahodb/conflict.h"
#include "krahodb/conflict_counters.h"

KDB_SQL_FUNCTION(krahodb_conflict_counters);
KDB_SQL_FUNCTION(krahodb_reset_conflict_stats);
KDB_SQL_FUNCTION(krahodb_prune_conflict_log);

#define COUNTER_COLUMNS	7

/* One row for each counter of this database, and those for the rest. */
Datum
krahodb_conflict_counters(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	KdbConflictCounter *counters;
	int			n;

	InitMaterializedSRF(fcinfo, 0);
	n = KdbConflictCountersList(MyDatabaseId, &counters);
	for (int i = 0; i < n; i++)
	{
		const KdbConflictCounter *counter = &counters[i];
		Datum		values[COUNTER_COLUMNS];
		bool		nulls[COUNTER_COLUMNS] = {false};

		values[0] = ObjectIdGetDatum(counter->key.subid);
		values[1] = ObjectIdGetDatum(counter->key.relid);
		values[2] = CStringGetTextDatum(KdbConflictTypeName((KdbConflictType) counter->key.type));
		for (int j = 0; j < KDB_CONFLICT_OUTCOMES; j++)
			values[3 + j] = Int64GetDatum((int64) counter->counts[j]);
		values[6] = TimestampTzGetDatum(counter->last_time);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* Who may call it is up to SQL. */
Datum
krahodb_reset_conflict_stats(PG_FUNCTION_ARGS)
{
	KdbConflictCountersReset(MyDatabaseId);
	PG_RETURN_VOID();
}

/* Returns how many parts of the log were emptied. */
Datum
krahodb_prune_conflict_log(PG_FUNCTION_ARGS)
{
	int			busy = 0;
	int			emptied;

	PreventCommandIfReadOnly("krahodb.prune_conflict_log()");
	emptied = KdbConflictLogPrune(PG_GETARG_TIMESTAMPTZ(0), &busy);
	if (busy > 0)
		ereport(NOTICE,
				(errmsg_plural("%d part of the conflict log was in use and has been left as it is",
							   "%d parts of the conflict log were in use and have been left as they are",
							   busy, busy)));
	PG_RETURN_INT32(emptied);
}
