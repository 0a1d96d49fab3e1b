/*
 * copy_marks.c
 *		What has been copied of a table, durably.
 *
 * The plan of a table that is copied in ranges, and a mark for each range that is
 * done, are rows of pg_seclabel: the engine's only storage that is transactional,
 * needs no relation of our own (and so no CREATE EXTENSION), and lets processes
 * add rows without waiting for each other.  The object is (pg_subscription_rel,
 * the table's OID, 0 for the plan or the number of the range from 1), the provider
 * is one that nobody registers, so that SECURITY LABEL cannot touch them, and as
 * there are no objects of that class pg_dump does not see them.
 *
 *	plan	"subscription's OID, plan" (copy_plan.c)
 *	mark	"xid, xmin, LSN, rows, resolved"; written in the transaction of the range's rows
 *
 * They are deleted in the transaction that makes the table FINISHEDCOPY.  Until
 * then they are also kept when the subscription is dropped: its rows are still
 * there, and the next subscription of that table may go on with them
 * (copy_resume.c).  Whoever drops the table drops them (commands/drop.c).
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/pg_seclabel.h"
#include "catalog/pg_subscription_rel.h"
#include "commands/seclabel.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"

#include "krahodb/copy_marks.h"

#include "sync_private.h"

/* Under a snapshot: a plan may be so long that pg_seclabel stores it out of line. */
static void
set_label(Oid relid, int number, const char *text)
{
	ObjectAddress object;

	ObjectAddressSubSet(object, SubscriptionRelRelationId, relid, number);
	PushActiveSnapshot(GetTransactionSnapshot());
	SetSecurityLabel(&object, KDB_COPY_LABEL_PROVIDER, text);
	PopActiveSnapshot();
}

void
KdbCopyMarkPlan(Oid relid, const KdbCopyPlan *plan)
{
	set_label(relid, 0, psprintf("%u\n%s", MySubscription->oid, KdbCopyPlanToText(plan)));
}

/* The plan, and whose it is; NULL if there is none that can be read. */
KdbCopyPlan *
KdbCopyMarkedPlan(Oid relid, Oid *subid)
{
	ObjectAddress object;
	char	   *text;
	char	   *plan;

	*subid = InvalidOid;
	ObjectAddressSubSet(object, SubscriptionRelRelationId, relid, 0);
	text = GetSecurityLabel(&object, KDB_COPY_LABEL_PROVIDER);
	if (text == NULL)
		return NULL;
	*subid = strtoul(text, NULL, 10);
	plan = strchr(text, '\n');
	return plan ? KdbCopyPlanFromText(plan + 1) : NULL;
}

void
KdbCopyMarkDone(Oid relid, const KdbCopyMark *mark)
{
	set_label(relid, mark->range + 1,
			  psprintf(UINT64_FORMAT " " UINT64_FORMAT " " UINT64_FORMAT " " UINT64_FORMAT " %d",
					   U64FromFullTransactionId(mark->xid), mark->xmin, mark->lsn,
					   mark->rows, mark->resolved));
}

static SysScanDesc
begin_scan(Relation rel, Oid relid)
{
	ScanKeyData keys[2];

	ScanKeyInit(&keys[0], Anum_pg_seclabel_objoid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(relid));
	ScanKeyInit(&keys[1], Anum_pg_seclabel_classoid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(SubscriptionRelRelationId));
	return systable_beginscan(rel, SecLabelObjectIndexId, true, NULL, 2, keys);
}

static bool
read_mark(HeapTuple tuple, TupleDesc desc, KdbCopyMark *mark)
{
	bool		isnull;
	Datum		label = heap_getattr(tuple, Anum_pg_seclabel_label, desc, &isnull);
	char	   *string = TextDatumGetCString(label);
	uint64		xid;
	int			resolved;

	mark->range = ((FormData_pg_seclabel *) GETSTRUCT(tuple))->objsubid - 1;
	if (mark->range < 0 ||
		sscanf(string, UINT64_FORMAT " " UINT64_FORMAT " " UINT64_FORMAT " " UINT64_FORMAT " %d",
			   &xid, &mark->xmin, &mark->lsn, &mark->rows, &resolved) != 5)
		return false;
	mark->xid = FullTransactionIdFromU64(xid);
	mark->resolved = resolved != 0;
	return true;
}

/* List of KdbCopyMark. */
List *
KdbCopyMarks(Oid relid)
{
	Relation	rel = table_open(SecLabelRelationId, AccessShareLock);
	SysScanDesc scan = begin_scan(rel, relid);
	List	   *marks = NIL;
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		KdbCopyMark *mark = palloc0(sizeof(KdbCopyMark));

		if (read_mark(tuple, RelationGetDescr(rel), mark))
			marks = lappend(marks, mark);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return marks;
}

bool
KdbCopyIsMarked(Oid relid, int range)
{
	ObjectAddress object;

	ObjectAddressSubSet(object, SubscriptionRelRelationId, relid, range + 1);
	return GetSecurityLabel(&object, KDB_COPY_LABEL_PROVIDER) != NULL;
}

/* Forget that a range is done. */
void
KdbCopyUnmark(Oid relid, int range)
{
	set_label(relid, range + 1, NULL);
}

/* Forget everything.  See copy_marks.h. */
void
KdbCopyUnmarkAll(Oid relid)
{
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;

	PushActiveSnapshot(GetTransactionSnapshot());
	rel = table_open(SecLabelRelationId, RowExclusiveLock);
	scan = begin_scan(rel, relid);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		CatalogTupleDelete(rel, &tuple->t_self);
	systable_endscan(scan);
	table_close(rel, RowExclusiveLock);
	PopActiveSnapshot();
}
