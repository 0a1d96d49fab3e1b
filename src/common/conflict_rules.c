/*
 * conflict_rules.c
 *		What to do with an incoming change, given what is known of the local row.
 *
 * A decision takes two steps, and each is a table.
 *
 * 1. What is this?  row_rules[operation][state of the local row] names the
 *	  conflict, what is done if the remote side wins it, and what the stock
 *	  server does.  If the local side wins, the change is always skipped.
 *	  is_conflict() says when the change follows the local row instead of
 *	  competing with it; then it is applied, and there is nothing to report.
 *
 * 2. Who wins?  judge() asks the resolver of that conflict, most of which do
 *	  not look at the versions at all.
 *
 * With w the incoming version and v the local one:
 *
 *	incoming  local   conflict					remote wins		stock server
 *	--------  ------  ------------------------	--------------	------------
 *	INSERT    absent  -							insert			insert
 *	INSERT    live    insert_exists				overwrite		insert (1)
 *	INSERT    dead    update_deleted (2)		insert			insert
 *	UPDATE    absent  update_missing			insert			skip
 *	UPDATE    live    update_origin_differs (3)	overwrite		overwrite
 *	UPDATE    dead    update_deleted			insert			skip
 *	DELETE    absent  delete_missing			skip (4)		skip
 *	DELETE    live    delete_origin_differs (3)	delete			delete
 *	DELETE    dead    delete_missing (5)		skip (4)		skip
 *
 * (1) The engine's unique index then raises the error by itself.
 *
 * (2) PostgreSQL has no name for an insert that meets a deletion.  A key that
 *	   is free may be inserted: only last_update_wins compares versions here, so
 *	   that an insert which the deletion had overtaken does not bring the row
 *	   back.  The insert itself is no conflict; one that is dropped is reported,
 *	   as update_deleted, which says what happened, but it is the resolver of
 *	   insert_exists that decides.
 *
 * (3) No conflict if the row was written by the node that the change comes from
 *	   (it saw its own row), or if the change's writer is known to have seen it
 *	   (see seen.h), and none if the row's version is no longer known:
 *	   such a row is older than any change in flight, so its writer saw it too.
 *	   Reporting it would make noise of every update to an old row.  The stock
 *	   engine of version 18 and later decides likewise.
 *
 * (4) There is nothing to do to a row that is not there; the resolver only says
 *	   whether it is an error.
 *
 * (5) No conflict if the same node had deleted it, or the writer had seen that.
 *
 * Writes of one remote transaction never conflict with each other on their key:
 * each follows the one before it.
 *
 * Equal versions are writes of one transaction, or one that is delivered again.
 * Either way the one that arrives later follows the other in its origin's own
 * order, so it wins, under last_update_wins and under first_update_wins.  A local
 * version that is not known is less than any incoming one.
 *
 * Under last_update_wins each key ends with its greatest version, in any order of
 * arrival, as long as deletions are remembered.  first_update_wins keeps the
 * lower version wherever two meet, which cannot promise the same: a row's first
 * version is gone once it was updated.
 *
 * Places kept for what is to come: an action's further effects (a version to be
 * remembered, a row to be fetched, columns to be merged) are members of
 * KdbDecision.
 */
#include "krahodb/conflict_rules.h"

#include <string.h>

#define KDB_OPERATIONS	(KDB_DELETE + 1)
#define KDB_ROW_STATES	(KDB_ROW_DEAD + 1)

typedef struct row_rule
{
	KdbConflictType conflict;
	KdbConflictType decided_by; /* whose resolver is asked */
	KdbAction	remote;			/* the remote side wins, or nobody contests it */
	KdbAction	engine;			/* what the stock server does */
} row_rule;

static const row_rule row_rules[KDB_OPERATIONS][KDB_ROW_STATES] = {
	[KDB_INSERT] = {
		[KDB_ROW_ABSENT] = {KDB_CONFLICT_NONE, KDB_CONFLICT_INSERT_EXISTS,
		KDB_ACTION_INSERT, KDB_ACTION_INSERT},
		[KDB_ROW_LIVE] = {KDB_CONFLICT_INSERT_EXISTS, KDB_CONFLICT_INSERT_EXISTS,
		KDB_ACTION_UPDATE, KDB_ACTION_INSERT},
		[KDB_ROW_DEAD] = {KDB_CONFLICT_UPDATE_DELETED, KDB_CONFLICT_INSERT_EXISTS,
		KDB_ACTION_INSERT, KDB_ACTION_INSERT},
	},
	[KDB_UPDATE] = {
		[KDB_ROW_ABSENT] = {KDB_CONFLICT_UPDATE_MISSING, KDB_CONFLICT_UPDATE_MISSING,
		KDB_ACTION_INSERT, KDB_ACTION_SKIP},
		[KDB_ROW_LIVE] = {KDB_CONFLICT_UPDATE_ORIGIN_DIFFERS, KDB_CONFLICT_UPDATE_ORIGIN_DIFFERS,
		KDB_ACTION_UPDATE, KDB_ACTION_UPDATE},
		[KDB_ROW_DEAD] = {KDB_CONFLICT_UPDATE_DELETED, KDB_CONFLICT_UPDATE_DELETED,
		KDB_ACTION_INSERT, KDB_ACTION_SKIP},
	},
	[KDB_DELETE] = {
		[KDB_ROW_ABSENT] = {KDB_CONFLICT_DELETE_MISSING, KDB_CONFLICT_DELETE_MISSING,
		KDB_ACTION_SKIP, KDB_ACTION_SKIP},
		[KDB_ROW_LIVE] = {KDB_CONFLICT_DELETE_ORIGIN_DIFFERS, KDB_CONFLICT_DELETE_ORIGIN_DIFFERS,
		KDB_ACTION_DELETE, KDB_ACTION_DELETE},
		[KDB_ROW_DEAD] = {KDB_CONFLICT_DELETE_MISSING, KDB_CONFLICT_DELETE_MISSING,
		KDB_ACTION_SKIP, KDB_ACTION_SKIP},
	},
};

static const char *const conflict_type_names[KDB_CONFLICT_TYPES] = {
	[KDB_CONFLICT_INSERT_EXISTS] = "insert_exists",
	[KDB_CONFLICT_UPDATE_ORIGIN_DIFFERS] = "update_origin_differs",
	[KDB_CONFLICT_UPDATE_EXISTS] = "update_exists",
	[KDB_CONFLICT_UPDATE_DELETED] = "update_deleted",
	[KDB_CONFLICT_UPDATE_MISSING] = "update_missing",
	[KDB_CONFLICT_DELETE_ORIGIN_DIFFERS] = "delete_origin_differs",
	[KDB_CONFLICT_DELETE_MISSING] = "delete_missing",
	[KDB_CONFLICT_MULTIPLE_UNIQUE_CONFLICTS] = "multiple_unique_conflicts",
};

static const char *const resolver_names[KDB_RESOLVERS] = {
	[KDB_RESOLVER_ENGINE] = "engine",
	[KDB_RESOLVER_ERROR] = "error",
	[KDB_RESOLVER_SKIP] = "skip",
	[KDB_RESOLVER_INSERT] = "insert",
	[KDB_RESOLVER_APPLY_REMOTE] = "apply_remote",
	[KDB_RESOLVER_KEEP_LOCAL] = "keep_local",
	[KDB_RESOLVER_LAST_UPDATE_WINS] = "last_update_wins",
	[KDB_RESOLVER_FIRST_UPDATE_WINS] = "first_update_wins",
};

/*
 * Which resolvers a conflict type may have.  Two rows compete: every one but
 * insert, and skip is keep_local's other name.  One side is a deletion: insert
 * and skip are the two outcomes, or the versions choose.  Nothing is there:
 * nothing to compare with.
 */
#define BIT(resolver)	(1u << (resolver))

#define ROWS_COMPETE \
	(BIT(KDB_RESOLVER_ERROR) | BIT(KDB_RESOLVER_SKIP) | \
	 BIT(KDB_RESOLVER_APPLY_REMOTE) | BIT(KDB_RESOLVER_KEEP_LOCAL) | \
	 BIT(KDB_RESOLVER_LAST_UPDATE_WINS) | BIT(KDB_RESOLVER_FIRST_UPDATE_WINS))

static const unsigned int resolvers_allowed[KDB_CONFLICT_TYPES] = {
	[KDB_CONFLICT_INSERT_EXISTS] = ROWS_COMPETE,
	[KDB_CONFLICT_UPDATE_ORIGIN_DIFFERS] = ROWS_COMPETE,
	[KDB_CONFLICT_UPDATE_EXISTS] = ROWS_COMPETE,
	[KDB_CONFLICT_UPDATE_DELETED] =
	BIT(KDB_RESOLVER_ERROR) | BIT(KDB_RESOLVER_SKIP) | BIT(KDB_RESOLVER_INSERT) |
	BIT(KDB_RESOLVER_LAST_UPDATE_WINS) | BIT(KDB_RESOLVER_FIRST_UPDATE_WINS),
	[KDB_CONFLICT_UPDATE_MISSING] =
	BIT(KDB_RESOLVER_ERROR) | BIT(KDB_RESOLVER_SKIP) | BIT(KDB_RESOLVER_INSERT),
	[KDB_CONFLICT_DELETE_ORIGIN_DIFFERS] = ROWS_COMPETE,
	[KDB_CONFLICT_DELETE_MISSING] =
	BIT(KDB_RESOLVER_ERROR) | BIT(KDB_RESOLVER_SKIP),
	[KDB_CONFLICT_MULTIPLE_UNIQUE_CONFLICTS] = ROWS_COMPETE,
};

/*
 * What a general resolver means where it cannot be meant literally: for an
 * update of a row that was deleted, of one that is missing, and for a delete of
 * one that is missing.  Every other type gets the general resolver itself.
 */
typedef struct general_meaning
{
	bool		general;		/* may be conflict_resolution */
	KdbResolver update_deleted;
	KdbResolver update_missing;
	KdbResolver delete_missing;
} general_meaning;

static const general_meaning general_meanings[KDB_RESOLVERS] = {
	[KDB_RESOLVER_ENGINE] = {false, KDB_RESOLVER_ENGINE,
	KDB_RESOLVER_ENGINE, KDB_RESOLVER_ENGINE},
	[KDB_RESOLVER_ERROR] = {true, KDB_RESOLVER_ERROR,
	KDB_RESOLVER_ERROR, KDB_RESOLVER_ERROR},
	[KDB_RESOLVER_APPLY_REMOTE] = {true, KDB_RESOLVER_INSERT,
	KDB_RESOLVER_INSERT, KDB_RESOLVER_SKIP},
	[KDB_RESOLVER_KEEP_LOCAL] = {true, KDB_RESOLVER_SKIP,
	KDB_RESOLVER_SKIP, KDB_RESOLVER_SKIP},
	[KDB_RESOLVER_LAST_UPDATE_WINS] = {true, KDB_RESOLVER_LAST_UPDATE_WINS,
	KDB_RESOLVER_INSERT, KDB_RESOLVER_SKIP},
	[KDB_RESOLVER_FIRST_UPDATE_WINS] = {true, KDB_RESOLVER_FIRST_UPDATE_WINS,
	KDB_RESOLVER_INSERT, KDB_RESOLVER_SKIP},
};

/* How a conflict ends. */
typedef enum verdict
{
	VERDICT_REMOTE,
	VERDICT_LOCAL,
	VERDICT_ERROR
} verdict;

/* Less than, equal to or greater than 0 as the incoming version is to the local one. */
static int
compare_with_local(KdbVersion incoming, const KdbLocalRow *local)
{
	if (!local->version_known)
		return 1;
	return KdbVersionCompare(incoming, local->version);
}

/*
 * order is that of compare_with_local.  ENGINE is not decided here.
 */
static verdict
judge(KdbResolver resolver, int order)
{
	switch (resolver)
	{
		case KDB_RESOLVER_ERROR:
			return VERDICT_ERROR;
		case KDB_RESOLVER_SKIP:
		case KDB_RESOLVER_KEEP_LOCAL:
			return VERDICT_LOCAL;
		case KDB_RESOLVER_LAST_UPDATE_WINS:
			return order >= 0 ? VERDICT_REMOTE : VERDICT_LOCAL;
		case KDB_RESOLVER_FIRST_UPDATE_WINS:
			return order <= 0 ? VERDICT_REMOTE : VERDICT_LOCAL;
		case KDB_RESOLVER_INSERT:
		case KDB_RESOLVER_APPLY_REMOTE:
		case KDB_RESOLVER_ENGINE:
			break;
	}
	return VERDICT_REMOTE;
}

/* Had the writer of the change the local state before its eyes? */
static bool
writer_saw(const KdbLocalRow *local)
{
	return local->same_origin || local->seen;
}

/*
 * Does the change compete with the local state, or does it follow it?
 */
static bool
is_conflict(KdbOperation operation, KdbVersion incoming,
			const KdbLocalRow *local, KdbResolver resolver)
{
	if (local->same_transaction)
		return false;

	switch (local->state)
	{
		case KDB_ROW_ABSENT:
			return operation != KDB_INSERT;

		case KDB_ROW_LIVE:
			if (operation == KDB_INSERT)
				return true;
			return !writer_saw(local) && local->version_known;

		case KDB_ROW_DEAD:
			if (operation == KDB_INSERT)
				return resolver == KDB_RESOLVER_LAST_UPDATE_WINS &&
					compare_with_local(incoming, local) < 0;
			if (operation == KDB_DELETE)
				return !writer_saw(local);
			return true;
	}
	return true;
}

static KdbDecision
no_conflict(KdbAction action)
{
	KdbDecision decision = {action, KDB_CONFLICT_NONE, KDB_RESOLVER_ENGINE};

	return decision;
}

static KdbDecision
decide(KdbConflictType conflict, KdbResolver resolver, int order, KdbAction remote)
{
	KdbDecision decision = {remote, conflict, resolver};

	switch (judge(resolver, order))
	{
		case VERDICT_REMOTE:
			break;
		case VERDICT_LOCAL:
			decision.action = KDB_ACTION_SKIP;
			break;
		case VERDICT_ERROR:
			decision.action = KDB_ACTION_ERROR;
			break;
	}
	return decision;
}

KdbDecision
KdbResolveRow(KdbOperation operation, KdbVersion incoming,
			  const KdbLocalRow *local, const KdbResolvers *resolvers)
{
	const row_rule *rule = &row_rules[operation][local->state];
	KdbResolver resolver = (KdbResolver) resolvers->by_type[rule->decided_by];

	if (resolver == KDB_RESOLVER_ENGINE)
		return no_conflict(rule->engine);
	if (!is_conflict(operation, incoming, local, resolver))
		return no_conflict(rule->remote);

	return decide(rule->conflict, resolver,
				  compare_with_local(incoming, local), rule->remote);
}

/*
 * The incoming write wins only if it wins against each holder, so the holder to
 * compare with is the one that is hardest to beat: the greatest version under
 * last_update_wins, the least under first_update_wins.
 */
static int
order_among_holders(KdbVersion incoming, const KdbLocalRow *holders,
					int nholders, KdbResolver resolver)
{
	int			hardest = compare_with_local(incoming, &holders[0]);

	for (int i = 1; i < nholders; i++)
	{
		int			order = compare_with_local(incoming, &holders[i]);

		if (resolver == KDB_RESOLVER_FIRST_UPDATE_WINS ? order > hardest : order < hardest)
			hardest = order;
	}
	return hardest;
}

KdbDecision
KdbResolveUnique(KdbOperation operation, KdbVersion incoming,
				 const KdbLocalRow *holders, int nholders,
				 const KdbResolvers *resolvers)
{
	KdbAction	write = operation == KDB_INSERT ? KDB_ACTION_INSERT : KDB_ACTION_UPDATE;
	KdbConflictType conflict;
	KdbResolver resolver;

	if (nholders > 1)
		conflict = KDB_CONFLICT_MULTIPLE_UNIQUE_CONFLICTS;
	else if (operation == KDB_INSERT)
		conflict = KDB_CONFLICT_INSERT_EXISTS;
	else
		conflict = KDB_CONFLICT_UPDATE_EXISTS;

	/* The engine's unique index raises the error. */
	resolver = (KdbResolver) resolvers->by_type[conflict];
	if (resolver == KDB_RESOLVER_ENGINE)
		return no_conflict(write);

	return decide(conflict, resolver,
				  order_among_holders(incoming, holders, nholders, resolver),
				  write);
}

const char *
KdbConflictTypeName(KdbConflictType type)
{
	return type == KDB_CONFLICT_NONE ? "none" : conflict_type_names[type];
}

const char *
KdbResolverName(KdbResolver resolver)
{
	return resolver_names[resolver];
}

bool
KdbConflictTypeFromName(const char *name, KdbConflictType *type)
{
	for (int i = 0; i < KDB_CONFLICT_TYPES; i++)
	{
		if (strcmp(name, conflict_type_names[i]) == 0)
		{
			*type = (KdbConflictType) i;
			return true;
		}
	}
	return false;
}

bool
KdbResolverFromName(const char *name, KdbResolver *resolver)
{
	for (int i = 0; i < KDB_RESOLVERS; i++)
	{
		if (strcmp(name, resolver_names[i]) == 0)
		{
			*resolver = (KdbResolver) i;
			return true;
		}
	}
	return false;
}

bool
KdbResolverAllowed(KdbConflictType type, KdbResolver resolver)
{
	return (resolvers_allowed[type] & BIT(resolver)) != 0;
}

bool
KdbResolverIsGeneral(KdbResolver resolver)
{
	return general_meanings[resolver].general;
}

void
KdbResolversSetAll(KdbResolvers *resolvers, KdbResolver general)
{
	const general_meaning *meaning = &general_meanings[general];

	for (int i = 0; i < KDB_CONFLICT_TYPES; i++)
		resolvers->by_type[i] = (uint8_t) general;

	resolvers->by_type[KDB_CONFLICT_UPDATE_DELETED] = (uint8_t) meaning->update_deleted;
	resolvers->by_type[KDB_CONFLICT_UPDATE_MISSING] = (uint8_t) meaning->update_missing;
	resolvers->by_type[KDB_CONFLICT_DELETE_MISSING] = (uint8_t) meaning->delete_missing;
}

bool
KdbResolversActive(const KdbResolvers *resolvers)
{
	for (int i = 0; i < KDB_CONFLICT_TYPES; i++)
	{
		if (resolvers->by_type[i] != KDB_RESOLVER_ENGINE)
			return true;
	}
	return false;
}
