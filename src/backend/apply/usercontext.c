/*
 * usercontext.c
 *		Acting as a table's owner while a change is applied.
 *
 * A worker runs as the owner of its subscription.  Triggers, default
 * expressions, index expressions and check constraints of a table are code of
 * the table's owner; with run_as_owner = false they run with that role's
 * rights, so that a table's owner gains nothing by having a subscription of a
 * stronger role write into the table.
 *
 * Where the table's owner could not become the subscription's owner by itself,
 * the code also runs as a security-restricted operation in a GUC nest level of
 * its own: it can neither change the session's role nor leave settings behind.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/rel.h"

#include "apply_private.h"

/*
 * Become the owner of rel unless the subscription says otherwise.  Pairs with
 * KdbRestoreUser; pairs must not nest.
 */
void
KdbSwitchToTableOwner(Relation rel, KdbUserContext *context)
{
	Oid			owner = rel->rd_rel->relowner;

	context->switched = false;
	if (KdbMyOptions->run_as_owner)
		return;

	GetUserIdAndSecContext(&context->save_userid, &context->save_sec_context);
	if (owner == context->save_userid)
		return;

	if (!is_member_of_role(context->save_userid, owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\" cannot SET ROLE to \"%s\"",
						GetUserNameFromId(context->save_userid, false),
						GetUserNameFromId(owner, false))));

	context->switched = true;
	if (is_member_of_role(owner, context->save_userid))
	{
		context->save_nestlevel = 0;
		SetUserIdAndSecContext(owner, context->save_sec_context);
	}
	else
	{
		SetUserIdAndSecContext(owner, context->save_sec_context |
							   SECURITY_RESTRICTED_OPERATION);
		context->save_nestlevel = NewGUCNestLevel();
	}
}

/*
 * Likewise, for preparing expressions of the table, as what is constant in them is evaluated then.  Nobody is asked
 * whether this may be: a table that is not written to is no error.  Nothing if the worker acts as an owner
 * already.  Pairs with KdbRestoreUser.
 */
void
KdbSwitchToPrepare(Relation rel, KdbUserContext *context)
{
	Oid			owner = rel->rd_rel->relowner;

	context->switched = false;
	GetUserIdAndSecContext(&context->save_userid, &context->save_sec_context);
	if (KdbMyOptions->run_as_owner || context->save_userid != GetSessionUserId() ||
		context->save_userid == owner)
		return;
	context->switched = true;
	context->save_nestlevel = NewGUCNestLevel();
	SetUserIdAndSecContext(owner, context->save_sec_context | SECURITY_RESTRICTED_OPERATION);
}

void
KdbRestoreUser(const KdbUserContext *context)
{
	if (!context->switched)
		return;
	if (context->save_nestlevel > 0)
		AtEOXact_GUC(false, context->save_nestlevel);
	SetUserIdAndSecContext(context->save_userid, context->save_sec_context);
}
