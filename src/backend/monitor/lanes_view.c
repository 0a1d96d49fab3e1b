/*
 * lanes_view.c
 *		The function behind view krahodb.lanes.
 *
 * What a lane says is read while it works: parts of a row may be a moment apart.
 */
#include "postgres.h"

#include "catalog/pg_authid.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "krahodb/compat.h"
#include "krahodb/lanes_shared.h"

KDB_SQL_FUNCTION(krahodb_lane_states);

/* Columns of krahodb.lane_states(). */
typedef enum LaneColumn
{
	LANE_SUBID,
	LANE_NUMBER,
	LANE_PID,
	LANE_STATE,
	LANE_SINCE,
	LANE_REMOTE_XID,
	LANE_WAITS_FOR_XID,
	LANE_WAITS_FOR_PID,
	LANE_APPLIED,
	LANE_REPEATED,
	LANE_COLUMNS
} LaneColumn;

static const char *const state_names[] = {
	[KDB_LANE_FREE] = "ended",
	[KDB_LANE_STARTING] = "starting",
	[KDB_LANE_IDLE] = "idle",
	[KDB_LANE_APPLYING] = "applying",
	[KDB_LANE_WAITING] = "waiting for an earlier transaction",
	[KDB_LANE_WAITING_TO_COMMIT] = "waiting to commit",
	[KDB_LANE_WAITING_TO_REPEAT] = "waiting to repeat",
	[KDB_LANE_WAITING_FOR_STREAM] = "waiting for the stream",
	[KDB_LANE_FAILED] = "failed"
};

/* The lane of the subscription that has the first transaction of those not after seq. */
static const KdbLaneSlot *
first_lane(Oid subid, uint64 seq)
{
	const KdbLaneSlot *first = NULL;
	uint64		first_seq = 0;

	for (int i = 0; i < KdbLanes->nslots; i++)
	{
		KdbLaneSlot *slot = &KdbLanes->slots[i].slot;
		uint64		its_seq = pg_atomic_read_u64(&slot->seq);

		if (pg_atomic_read_u32(&slot->state) == KDB_LANE_FREE || slot->subid != subid ||
			its_seq == 0 || its_seq > seq || (first != NULL && its_seq >= first_seq))
			continue;
		first = slot;
		first_seq = its_seq;
	}
	return first;
}

static void
put_lane(ReturnSetInfo *rsinfo, KdbLaneSlot *slot, KdbLaneState state)
{
	Datum		values[LANE_COLUMNS];
	bool		nulls[LANE_COLUMNS] = {false};
	uint64		waits_for = pg_atomic_read_u64(&slot->waits_for);
	const KdbLaneSlot *other = waits_for ? first_lane(slot->subid, waits_for) : NULL;
	bool		working = pg_atomic_read_u64(&slot->seq) != 0;

	values[LANE_SUBID] = ObjectIdGetDatum(slot->subid);
	values[LANE_NUMBER] = Int32GetDatum(slot->number);
	values[LANE_PID] = Int32GetDatum(slot->pid);
	nulls[LANE_PID] = slot->pid == 0;
	values[LANE_STATE] = CStringGetTextDatum(state_names[state]);
	values[LANE_SINCE] = TimestampTzGetDatum(slot->since);
	values[LANE_REMOTE_XID] = TransactionIdGetDatum(slot->remote_xid);
	nulls[LANE_REMOTE_XID] = !working;
	nulls[LANE_WAITS_FOR_XID] = nulls[LANE_WAITS_FOR_PID] = other == NULL;
	if (other != NULL)
	{
		values[LANE_WAITS_FOR_XID] = TransactionIdGetDatum(other->remote_xid);
		values[LANE_WAITS_FOR_PID] = Int32GetDatum(other->pid);
	}
	values[LANE_APPLIED] = Int64GetDatum(slot->applied);
	values[LANE_REPEATED] = Int64GetDatum(slot->repeated);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/* One row for each lane of the server, for who may see statistics. */
Datum
krahodb_lane_states(PG_FUNCTION_ARGS)
{
	InitMaterializedSRF(fcinfo, 0);
	if (!has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_STATS))
		return (Datum) 0;
	LWLockAcquire(KdbLanes->lock, LW_SHARED);
	for (int i = 0; i < KdbLanes->nslots; i++)
	{
		KdbLaneSlot *slot = &KdbLanes->slots[i].slot;
		KdbLaneState state = (KdbLaneState) pg_atomic_read_u32(&slot->state);

		if (state != KDB_LANE_FREE)
			put_lane((ReturnSetInfo *) fcinfo->resultinfo, slot, state);
	}
	LWLockRelease(KdbLanes->lock);
	return (Datum) 0;
}
