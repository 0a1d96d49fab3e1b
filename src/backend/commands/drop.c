/*
 * drop.c
 *		The labels of a dropped subscription.
 *
 * DROP TABLE deletes the labels of a table; DROP SUBSCRIPTION of the engine does
 * not look for any, and the label of a subscription would be found again by the
 * next one with the same OID.
 */
#include "postgres.h"

#include "catalog/objectaccess.h"
#include "catalog/pg_subscription.h"
#include "commands/seclabel.h"

#include "commands_private.h"

static object_access_hook_type next_access_hook = NULL;

static void
access_hook(ObjectAccessType access, Oid classid, Oid objectid, int subid, void *arg)
{
	if (next_access_hook)
		next_access_hook(access, classid, objectid, subid, arg);
	if (access == OAT_DROP && classid == SubscriptionRelationId)
		DeleteSharedSecurityLabel(objectid, classid);
}

void
KdbDropInit(void)
{
	next_access_hook = object_access_hook;
	object_access_hook = access_hook;
}
