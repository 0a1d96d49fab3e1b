/*
 * drop.c
 *		What the engine leaves behind of a dropped subscription or table.
 *
 * DROP TABLE deletes the labels of a table; DROP SUBSCRIPTION of the engine does
 * not look for any, and the label of a subscription would be found again by the
 * next one with the same OID.  What was copied by an initial copy that was not
 * finished stays marked (sync/copy_marks.c) until the table is dropped.
 *
 * The same hook tells when a table is about to be rewritten: the engine creates the one that takes
 * its rows (table.c).
 */
#include "postgres.h"

#include "catalog/objectaccess.h"
#include "catalog/pg_class.h"
#include "catalog/pg_subscription.h"
#include "commands/seclabel.h"

#include "krahodb/copy_marks.h"
#include "krahodb/origin_nodes.h"
#include "krahodb/seen_state.h"

#include "commands_private.h"

static object_access_hook_type next_access_hook = NULL;

/* What it has applied stays seen when its origin is gone. */
static void
keep_progress(Oid subid)
{
	char		name[NAMEDATALEN];
	RepOriginId origin;

	snprintf(name, sizeof(name), "pg_%u", subid);
	origin = replorigin_by_name(name, true);
	if (origin == InvalidRepOriginId)
		return;
	KdbSeenKeepProgress(origin);
	KdbRememberOriginCluster(origin, 0);
}

static void
access_hook(ObjectAccessType access, Oid classid, Oid objectid, int subid, void *arg)
{
	if (next_access_hook)
		next_access_hook(access, classid, objectid, subid, arg);
	if (access == OAT_DROP && classid == SubscriptionRelationId)
	{
		DeleteSharedSecurityLabel(objectid, classid);
		keep_progress(objectid);
	}
	else if (access == OAT_DROP && classid == RelationRelationId && subid == 0)
		KdbCopyUnmarkAll(objectid);
	else if (access == OAT_POST_CREATE && classid == RelationRelationId && subid == 0 &&
			 ((ObjectAccessPostCreate *) arg)->is_internal)
		KdbTableCreated(objectid);
}

void
KdbDropInit(void)
{
	next_access_hook = object_access_hook;
	object_access_hook = access_hook;
}
