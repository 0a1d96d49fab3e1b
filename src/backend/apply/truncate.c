/*
 * truncate.c
 *		TRUNCATE of one or more tables in one message.
 *
 * All tables of the message that are wanted here are truncated by one command,
 * as foreign keys between them allow it only together.  CASCADE on the
 * publisher has put the tables that it reached there into the message; it is
 * not done again here, where other tables may refer to them.  A partitioned
 * target takes its partitions along.
 *
 * Index relations that earlier changes of the transaction keep open would make
 * the engine refuse to rebuild them, so everything is closed first; locks stay.
 * A table that is not wanted (its synchronisation is not finished) stays locked
 * to the end of the transaction as well.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/catalog.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "commands/tablecmds.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/rel.h"

#include "apply_private.h"

/* What is to be truncated; partitions are opened here, the rest by relation.c. */
typedef struct TruncateTargets
{
	List	   *rels;			/* of Relation */
	List	   *relids;
	List	   *relids_logged;	/* those that are decoded here in turn */
	List	   *partitions;		/* of Relation, subset of rels */
} TruncateTargets;

static void
add_target(TruncateTargets *targets, Relation rel)
{
	Oid			relid = RelationGetRelid(rel);

	KdbCheckTargetPrivileges(rel, ACL_TRUNCATE);
	targets->rels = lappend(targets->rels, rel);
	targets->relids = lappend_oid(targets->relids, relid);
	if (RelationIsLogicallyLogged(rel))
		targets->relids_logged = lappend_oid(targets->relids_logged, relid);
}

static void
add_partitions(TruncateTargets *targets, Relation parent)
{
	ListCell   *lc;

	foreach(lc, find_all_inheritors(RelationGetRelid(parent), AccessExclusiveLock, NULL))
	{
		Oid			relid = lfirst_oid(lc);
		Relation	rel;

		if (list_member_oid(targets->relids, relid))
			continue;

		rel = table_open(relid, NoLock);
		if (RELATION_IS_OTHER_TEMP(rel))
		{
			table_close(rel, AccessExclusiveLock);
			continue;
		}
		add_target(targets, rel);
		targets->partitions = lappend(targets->partitions, rel);
	}
}

static void
collect_targets(TruncateTargets *targets, const KdbWireMessage *message)
{
	for (uint32 i = 0; i < message->u.truncate.nrelids; i++)
	{
		KdbApplyRelation *entry = KdbApplyRelationOpen(KdbWireRelid(message, i),
													   AccessExclusiveLock);
		Relation	rel = KdbApplyRelationLocal(entry);

		if (!KdbApplyRelationWanted(entry) ||
			list_member_oid(targets->relids, RelationGetRelid(rel)))
			continue;

		add_target(targets, rel);
		if (rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
			add_partitions(targets, rel);
	}
}

static bool
has_truncate_triggers(Relation rel)
{
	return rel->trigdesc != NULL &&
		(rel->trigdesc->trig_truncate_before_statement ||
		 rel->trigdesc->trig_truncate_after_statement);
}

/*
 * Whose rights the command needs.  One command has one user, so with
 * run_as_owner = false the tables must have one owner.  Several owners are
 * accepted where no code of theirs would run.
 */
static Relation
find_owner_table(List *rels)
{
	Relation	first = linitial(rels);
	bool		triggers = false;
	bool		same_owner = true;
	ListCell   *lc;

	foreach(lc, rels)
	{
		Relation	rel = lfirst(lc);
		KdbUserContext user;

		/* may we act as this one at all? */
		KdbSwitchToTableOwner(rel, &user);
		KdbRestoreUser(&user);

		triggers |= has_truncate_triggers(rel);
		same_owner &= rel->rd_rel->relowner == first->rd_rel->relowner;
	}

	if (same_owner)
		return first;
	if (triggers && !KdbMyOptions->run_as_owner)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot replicate TRUNCATE of tables with triggers and different owners"),
				 errhint("Set run_as_owner = true for subscription \"%s\", or give the tables one owner.",
						 MySubscription->name)));
	return NULL;
}

static void
truncate_targets(const TruncateTargets *targets, bool restart_seqs)
{
	Relation	owner_table = find_owner_table(targets->rels);
	KdbUserContext user = {0};

	if (owner_table != NULL)
		KdbSwitchToTableOwner(owner_table, &user);

	ExecuteTruncateGuts(targets->rels, targets->relids, targets->relids_logged,
						DROP_RESTRICT, restart_seqs);

	KdbRestoreUser(&user);
}

void
KdbApplyTruncate(const KdbWireMessage *message)
{
	TruncateTargets targets = {0};
	ListCell   *lc;

	KdbLaneMustBeFirst();
	KdbApplyBeginStep();
	KdbApplyRelationsClose();

	collect_targets(&targets, message);
	if (targets.rels != NIL)
		truncate_targets(&targets, message->u.truncate.restart_seqs);

	foreach(lc, targets.partitions)
		table_close(lfirst(lc), NoLock);
	KdbApplyRelationsClose();

	KdbApplyEndStep();
}
