/*
 * horizon_view.c
 *		The functions behind view krahodb.horizon.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "catalog/pg_authid.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/shmem.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "krahodb/compat.h"
#include "krahodb/conflict.h"
#include "krahodb/horizon.h"

KDB_SQL_FUNCTION(krahodb_horizon_state);
KDB_SQL_FUNCTION(krahodb_horizon_peers);
KDB_SQL_FUNCTION(krahodb_hold_horizon);
KDB_SQL_FUNCTION(krahodb_release_horizon);

#define STATE_COLUMNS	2
#define PEER_COLUMNS	6

/* The horizon and the slot's xmin; NULL if not known, or if there is none. */
Datum
krahodb_horizon_state(PG_FUNCTION_ARGS)
{
	Datum		values[STATE_COLUMNS];
	bool		nulls[STATE_COLUMNS];
	TupleDesc	desc;
	TimestampTz horizon = KdbHorizonTimestamp();
	TransactionId xid;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	LWLockAcquire(KdbHorizon->lock, LW_SHARED);
	xid = KdbHorizon->xid;
	LWLockRelease(KdbHorizon->lock);

	values[0] = TimestampTzGetDatum(horizon);
	nulls[0] = horizon == 0;
	values[1] = TransactionIdGetDatum(xid);
	nulls[1] = !TransactionIdIsValid(xid);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}

/*
 * An error of another server may be cut off in the middle of a character, and be in the encoding of
 * the database that the subscription is in.
 */
static Datum
text_of_reason(const char *reason)
{
	char	   *text = pstrdup(reason);
	int			len = strlen(text);
	int			valid = 0;

	while ((valid += pg_encoding_verifymbstr(GetDatabaseEncoding(), text + valid, len - valid)) < len)
		text[valid++] = '?';
	return CStringGetTextDatum(text);
}

/* What is known of each subscription that resolves conflicts, of all databases. */
Datum
krahodb_horizon_peers(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	bool		may_see = has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_STATS);
	KdbSharedPeer *peers;
	int			n;

	InitMaterializedSRF(fcinfo, 0);

	peers = palloc(mul_size(KdbHorizon->max_peers, sizeof(KdbSharedPeer)));
	LWLockAcquire(KdbHorizon->lock, LW_SHARED);
	n = KdbHorizon->npeers;
	memcpy(peers, KdbHorizon->peers, n * sizeof(KdbSharedPeer));
	LWLockRelease(KdbHorizon->lock);

	for (int i = 0; i < n; i++)
	{
		Datum		values[PEER_COLUMNS];
		bool		nulls[PEER_COLUMNS] = {false};

		values[0] = ObjectIdGetDatum(peers[i].subid);
		values[1] = CStringGetTextDatum(KdbPeerStateName(peers[i].state));
		values[2] = TimestampTzGetDatum(peers[i].since);
		values[3] = TimestampTzGetDatum(peers[i].frontier);
		nulls[3] = peers[i].frontier == 0;
		values[4] = TimestampTzGetDatum(peers[i].received);
		nulls[4] = peers[i].received == 0;
		/* an error message may name hosts and roles */
		values[5] = text_of_reason(may_see || peers[i].state != KDB_PEER_UNREACHABLE ?
									   peers[i].reason :
									   "<insufficient privilege>");
		nulls[5] = peers[i].reason[0] == '\0';
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* For whoever may replicate, as deleted rows pile up meanwhile. */
Datum
krahodb_hold_horizon(PG_FUNCTION_ARGS)
{
	TimestampTz horizon;

	if (!superuser() && !has_rolreplication(GetUserId()))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be superuser or replication role to hold the retention horizon")));
	horizon = KdbHorizonHold();
	KdbTableVersionsNote();
	PG_RETURN_INT64(horizon);
}

Datum
krahodb_release_horizon(PG_FUNCTION_ARGS)
{
	KdbHorizonRelease();
	PG_RETURN_VOID();
}
