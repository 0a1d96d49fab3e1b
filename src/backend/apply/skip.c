/*
 * skip.c
 *		ALTER SUBSCRIPTION ... SKIP (lsn = ...): leaving out one transaction.
 *
 * The user names the finish LSN of a remote transaction, as the error context
 * shows it.  When a transaction with that LSN begins, all its row changes are
 * dropped (dispatch.c looks at KdbApply.skipping); that goes on until its end
 * even if the catalog is changed meanwhile.  A streamed transaction is received
 * as always and skipped when it is replayed.
 *
 * pg_subscription.subskiplsn is cleared in the same local transaction that
 * records the progress, so a crash neither skips twice nor forgets.  A
 * non-empty transaction with another LSN clears it as well, with a warning: the
 * LSN was wrong, and must not lie in wait.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_subscription.h"
#include "storage/lmgr.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "apply_private.h"

static XLogRecPtr skipping_lsn = InvalidXLogRecPtr;

/* A remote transaction begins: is it the one to be skipped? */
void
KdbSkipMaybeStart(XLogRecPtr finish_lsn)
{
	Assert(!KdbApply.skipping);

	if (likely(XLogRecPtrIsInvalid(MySubscription->skiplsn) ||
			   MySubscription->skiplsn != finish_lsn))
		return;

	KdbApply.skipping = true;
	skipping_lsn = finish_lsn;
	ereport(LOG,
			(errmsg("logical replication starts skipping transaction at LSN %X/%X",
					LSN_FORMAT_ARGS(finish_lsn))));
}

/* The remote transaction has ended. */
void
KdbSkipStop(void)
{
	if (!KdbApply.skipping)
		return;

	ereport(LOG,
			(errmsg("logical replication completed skipping transaction at LSN %X/%X",
					LSN_FORMAT_ARGS(skipping_lsn))));
	KdbApply.skipping = false;
	skipping_lsn = InvalidXLogRecPtr;
}

/*
 * Set subskiplsn to 0 in the catalog, unless the user has changed it since we
 * read it.  finish_lsn is that of the transaction that ends.
 */
static void
clear_in_catalog(XLogRecPtr skiplsn, XLogRecPtr finish_lsn)
{
	Relation	rel;
	HeapTuple	tuple;

	LockSharedObject(SubscriptionRelationId, MySubscription->oid, 0,
					 AccessShareLock);
	rel = table_open(SubscriptionRelationId, RowExclusiveLock);

	tuple = SearchSysCacheCopy1(SUBSCRIPTIONOID, ObjectIdGetDatum(MySubscription->oid));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "subscription \"%s\" does not exist", MySubscription->name);

	if (((Form_pg_subscription) GETSTRUCT(tuple))->subskiplsn == skiplsn)
	{
		/* subskiplsn is in the fixed part, so it can be set in place in the copy */
		((Form_pg_subscription) GETSTRUCT(tuple))->subskiplsn = InvalidXLogRecPtr;
		CatalogTupleUpdate(rel, &tuple->t_self, tuple);

		if (skiplsn != finish_lsn)
			ereport(WARNING,
					(errmsg("skip-LSN of subscription \"%s\" cleared",
							MySubscription->name),
					 errdetail("Remote transaction's finish WAL location (LSN) %X/%X did not match skip-LSN %X/%X.",
							   LSN_FORMAT_ARGS(finish_lsn),
							   LSN_FORMAT_ARGS(skiplsn))));
	}

	heap_freetuple(tuple);
	table_close(rel, NoLock);
}

/*
 * Clear the skip LSN, if one is set, in the current transaction or, if there is
 * none, in one of its own.
 */
void
KdbSkipClear(XLogRecPtr finish_lsn)
{
	XLogRecPtr	skiplsn = MySubscription->skiplsn;
	bool		own_transaction = !IsTransactionState();

	if (likely(XLogRecPtrIsInvalid(skiplsn)))
		return;

	if (own_transaction)
		StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());

	clear_in_catalog(skiplsn, finish_lsn);

	PopActiveSnapshot();
	if (own_transaction)
		CommitTransactionCommand();
}
