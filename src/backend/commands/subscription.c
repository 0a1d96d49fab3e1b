/*
 * subscription.c
 *		CREATE and ALTER SUBSCRIPTION with KrahoDB's options.
 *
 * ORDER OF CREATE.  Our options are checked, alone and together; the origin id
 * is reserved; then the engine's command runs.  It checks its own options and
 * privileges, writes its rows and connects; our callback then asks whether that
 * publisher can do what is wanted; only after that the engine creates the slot,
 * the one thing that a rollback leaves behind.  Then the label is stored and
 * the origin gets its id.
 *
 * ORDER OF ALTER ... SET.  The subscription is locked, as the engine will do,
 * before its label is read: two sessions that each change one option must not
 * overwrite each other's.  The engine's command runs even if nothing is left of
 * its options: it checks ownership, and writes the row that running workers
 * watch.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/pg_subscription.h"
#include "catalog/pg_subscription_rel.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "commands/subscriptioncmds.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_node.h"
#include "replication/origin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"

#include "krahodb/horizon_shared.h"
#include "krahodb/init.h"
#include "krahodb/origin_nodes.h"
#include "krahodb/stream.h"
#include "commands_private.h"

/* What the connect callback needs of the command that is running. */
typedef struct connecting_command
{
	const char *subname;
	const KdbSubscriptionOptions *options;
	List	   *publications;
	List	   *relations;		/* tables that have been copied before */
	List	   *definition;		/* the engine's options */
	bool		creating;
} connecting_command;

static const connecting_command *connecting = NULL;

/* Of the publisher that the command has connected to; 0 if it has not told, or there was none. */
static uint64 connected_node;

/* Take KrahoDB's options out of *list; returns them. */
static List *
take_options(List **list)
{
	List	   *ours = NIL;
	ListCell   *lc;

	foreach(lc, *list)
	{
		DefElem    *def = lfirst_node(DefElem, lc);

		if (def->defnamespace == NULL && KdbIsSubscriptionOption(def->defname))
		{
			ours = lappend(ours, def);
			*list = foreach_delete_current(*list, lc);
		}
	}
	return ours;
}

static List *
normalise(List *defs, const char *query_string)
{
	ParseState *pstate = make_parsestate(NULL);
	List	   *result;

	pstate->p_sourcetext = query_string;
	result = KdbNormaliseSubscriptionOptions(pstate, defs);
	free_parsestate(pstate);
	return result;
}

static DefElem *
find_option(List *options, const char *name)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);

		if (strcmp(def->defname, name) == 0)
			return def;
	}
	return NULL;
}

/* An option of the engine's, which has checked it. */
static bool
bool_option(List *options, const char *name, bool default_value)
{
	DefElem    *def = find_option(options, name);

	return def ? defGetBoolean(def) : default_value;
}

/* The slot that the subscription is to use; NULL if it has none. */
static const char *
slot_name(const connecting_command *command)
{
	DefElem    *def = find_option(command->definition, "slot_name");
	const char *name = def ? defGetString(def) : command->subname;

	return strcmp(name, "none") == 0 ? NULL : name;
}

static void
check_publisher(WalReceiverConn *conn, const KdbPublisher *publisher)
{
	const connecting_command *command = connecting;

	connected_node = publisher->node;
	if (command->creating)
	{
		KdbStreamCheckOptions(publisher, command->options);
		KdbStreamCheckNode(publisher, command->options);
		KdbStreamCheckTwoPhase(publisher->krahodb_version > 0,
							   bool_option(command->definition, "two_phase", false),
							   command->options);
		if (!bool_option(command->definition, "create_slot", true) && slot_name(command))
			KdbStreamCheckSlot(conn, publisher, slot_name(command), command->options);
	}
	if (command->options->origin == KDB_ORIGIN_NONE &&
		bool_option(command->definition, "copy_data", true))
		KdbWarnAboutCopiedOrigins(conn, command->subname, command->publications,
								  command->relations);
}

/* Run the engine's command; what it connects to is checked. */
static void
run_checking_publisher(const KdbUtilityCall *call, const connecting_command *command)
{
	const connecting_command *previous = connecting;
	KdbStreamConnectCallback previous_callback = KdbStreamSetConnectCallback(check_publisher);

	connecting = command;
	connected_node = 0;
	PG_TRY();
	{
		KdbRunUtility(call);
	}
	PG_FINALLY();
	{
		connecting = previous;
		KdbStreamSetConnectCallback(previous_callback);
	}
	PG_END_TRY();
}

static void
warn_about_old_snapshots(const char *subname, const KdbSubscriptionOptions *options)
{
	if (!KdbResolversActive(&options->resolvers) || !KdbHorizonIsOverridden())
		return;
	ereport(WARNING,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("deleted rows are not kept for resolving conflicts of subscription \"%s\"", subname),
			 errdetail("The setting \"%s\" lets vacuum remove rows that replication slots hold back.", "old_snapshot_threshold"),
			 errhint("Set \"%s\" to -1 and restart the server.", "old_snapshot_threshold")));
}

/* The rules of last_update_wins remember what the heap does not show. */
static void
notice_missing_extension(const char *subname, const KdbSubscriptionOptions *options)
{
	KdbResolvers last_update;

	KdbResolversSetAll(&last_update, KDB_RESOLVER_LAST_UPDATE_WINS);
	if (memcmp(&last_update, &options->resolvers, sizeof(KdbResolvers)) != 0 ||
		OidIsValid(get_extension_oid(KRAHODB_LIBRARY, true)))
		return;
	ereport(NOTICE,
			(errmsg("subscription \"%s\" cannot record row versions in this database", subname),
			 errdetail("Deletions that arrive before the row, and claims of unique values by changes that are dropped, are not remembered: nodes may end with different rows."),
			 errhint("Run CREATE EXTENSION krahodb.")));
}

/* What two_phase does here is not what it does on PostgreSQL. */
static void
notice_two_phase(const CreateSubscriptionStmt *stmt, const KdbSubscriptionOptions *options)
{
	if (!KdbOptionsCompareTimes(options) || !bool_option(stmt->options, "two_phase", false))
		return;
	ereport(NOTICE,
			(errmsg("subscription \"%s\" receives prepared transactions when they are committed",
					stmt->subname),
			 errdetail("Conflicts are resolved by time, which a transaction has when it is committed.")));
}

/*
 * Whether prepared transactions come at PREPARE or at COMMIT PREPARED cannot change
 * between the two.
 */
static void
check_two_phase_stays(Oid subid, const KdbSubscriptionOptions *before,
					  const KdbSubscriptionOptions *after)
{
	if (KdbOptionsCompareTimes(before) == KdbOptionsCompareTimes(after) ||
		GetSubscription(subid, false)->twophasestate == LOGICALREP_TWOPHASE_STATE_DISABLED)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("cannot change whether conflicts are resolved by time for a subscription with \"%s\"", "two_phase"),
			 errhint("Create the subscription anew.")));
}

/*
 * Who the publisher is, and from where its changes come, for who copies tables from another node before this
 * subscription has run.  (The origin's id may have been another one's.)
 */
static void
remember_publisher(Oid subid)
{
	char		name[NAMEDATALEN];

	snprintf(name, sizeof(name), "pg_%u", subid);
	KdbRememberOriginStart(replorigin_by_name(name, false), connected_node, KdbStreamSlotStart);
}

void
KdbCreateSubscription(const KdbUtilityCall *call)
{
	KdbUtilityCall copy;
	CreateSubscriptionStmt *stmt;
	List	   *ours;
	connecting_command command = {0};
	KdbSubscriptionOptions *options;
	Oid			subid;

	KdbCopyUtilityCall(call, &copy);
	stmt = castNode(CreateSubscriptionStmt, copy.pstmt->utilityStmt);
	ours = take_options(&stmt->options);
	if (ours == NIL)
	{
		KdbRunUtility(call);
		return;
	}

	KdbPreventIfReadOnly((Node *) stmt);
	ours = KdbMergeOptions(NIL, normalise(ours, call->query_string));
	options = KdbParseSubscriptionOptions(ours);

	/* Others get the engine's error. */
	if (superuser() && options->replication_origin_id != InvalidRepOriginId)
		KdbReserveOriginId(options->replication_origin_id);

	command.subname = stmt->subname;
	command.options = options;
	command.publications = stmt->publication;
	command.definition = stmt->options;
	command.creating = true;
	KdbStreamSlotStart = InvalidXLogRecPtr;
	connected_node = 0;
	run_checking_publisher(&copy, &command);

	CommandCounterIncrement();
	subid = get_subscription_oid(stmt->subname, false);
	KdbStoreSubscriptionOptions(subid, ours);
	if (options->replication_origin_id != InvalidRepOriginId)
		KdbAssignOriginId(subid, options->replication_origin_id);
	KdbWarnAboutTimestamps(stmt->subname, options);
	remember_publisher(subid);
	warn_about_old_snapshots(stmt->subname, options);
	notice_two_phase(stmt, options);
	notice_missing_extension(stmt->subname, options);
	if (KdbResolversActive(&options->resolvers))
		KdbWarnAboutDoubledDeltas(subid, connected_node);
}

/*
 * Lock a subscription that the user may change; InvalidOid if there is none, of
 * which the engine will complain.
 */
static Oid
lock_own_subscription(const char *subname)
{
	Oid			subid = get_subscription_oid(subname, true);

	if (!OidIsValid(subid) || !pg_subscription_ownercheck(subid, GetUserId()))
		return InvalidOid;
	LockSharedObject(SubscriptionRelationId, subid, 0, AccessExclusiveLock);
	return subid;
}

/* ALTER SUBSCRIPTION ... SET (...). */
static void
alter_options(const KdbUtilityCall *call)
{
	KdbUtilityCall copy;
	AlterSubscriptionStmt *stmt;
	List	   *ours;
	KdbSubscriptionOptions *options;
	Oid			subid;

	KdbCopyUtilityCall(call, &copy);
	stmt = castNode(AlterSubscriptionStmt, copy.pstmt->utilityStmt);
	ours = take_options(&stmt->options);
	if (ours == NIL)
	{
		KdbRunUtility(call);
		return;
	}

	KdbPreventIfReadOnly((Node *) stmt);
	ours = normalise(ours, call->query_string);
	if (find_option(ours, "replication_origin_id"))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot change \"%s\" of a subscription", "replication_origin_id"),
				 errdetail("It is fixed when the subscription is created.")));
	subid = lock_own_subscription(stmt->subname);
	if (!OidIsValid(subid))
	{
		KdbRunUtility(&copy);
		return;
	}
	ours = KdbMergeOptions(KdbNormaliseSubscriptionOptions(NULL, KdbReadOptions(SubscriptionRelationId, subid)),
						   ours);
	options = KdbParseSubscriptionOptions(ours);
	check_two_phase_stays(subid, KdbGetSubscriptionOptions(subid), options);

	KdbRunUtility(&copy);
	CommandCounterIncrement();
	KdbStoreSubscriptionOptions(subid, ours);
	KdbWarnAboutTimestamps(stmt->subname, options);
	warn_about_old_snapshots(stmt->subname, options);
	notice_missing_extension(stmt->subname, options);
}

/* Commands that may start to copy tables: REFRESH, SET/ADD/DROP PUBLICATION. */
static void
alter_publications(const KdbUtilityCall *call)
{
	AlterSubscriptionStmt *stmt = castNode(AlterSubscriptionStmt, call->pstmt->utilityStmt);
	Oid			subid = get_subscription_oid(stmt->subname, true);
	KdbSubscriptionOptions *options;
	connecting_command command = {0};

	options = OidIsValid(subid) ? KdbGetSubscriptionOptions(subid) : NULL;
	if (options == NULL || (options->origin == KDB_ORIGIN_ANY && !KdbResolversActive(&options->resolvers)))
	{
		KdbRunUtility(call);
		return;
	}
	command.subname = stmt->subname;
	command.options = options;
	command.relations = GetSubscriptionRelations(subid);
	command.definition = stmt->options;
	command.publications = stmt->publication;
	if (stmt->kind == ALTER_SUBSCRIPTION_REFRESH)
		command.publications = GetSubscription(subid, false)->publications;
	run_checking_publisher(call, &command);
	CommandCounterIncrement();
	if (KdbResolversActive(&options->resolvers))
		KdbWarnAboutDoubledDeltas(subid, connected_node);
}

void
KdbAlterSubscription(const KdbUtilityCall *call)
{
	switch (castNode(AlterSubscriptionStmt, call->pstmt->utilityStmt)->kind)
	{
		case ALTER_SUBSCRIPTION_OPTIONS:
			alter_options(call);
			break;
		case ALTER_SUBSCRIPTION_SET_PUBLICATION:
		case ALTER_SUBSCRIPTION_ADD_PUBLICATION:
		case ALTER_SUBSCRIPTION_REFRESH:
			alter_publications(call);
			break;
		default:
			KdbRunUtility(call);
			break;
	}
}
