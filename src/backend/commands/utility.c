/*
 * utility.c
 *		The utility hook: KrahoDB's options in the engine's commands.
 *
 * A command that may carry options of KrahoDB goes to the function for it,
 * which takes them out of a copy of the parse tree, checks them completely,
 * runs the engine's command with the rest, and stores them; everything else,
 * and every such command without one, passes through as it is.  All happens in
 * the command's own transaction, so whatever fails leaves nothing behind here;
 * what must not be left behind on a publisher is checked before the engine
 * creates it.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_namespace.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "krahodb/clock.h"
#include "krahodb/copy_marks.h"
#include "krahodb/init.h"
#include "krahodb/record.h"
#include "krahodb/seen_state.h"

#include "commands_private.h"

/* By its control file. */
#define EXTENSION_SCHEMA	"krahodb"

static ProcessUtility_hook_type next_utility_hook = NULL;

void
KdbRunUtility(const KdbUtilityCall *call)
{
	ProcessUtility_hook_type run = next_utility_hook ? next_utility_hook : standard_ProcessUtility;

	run(call->pstmt, call->query_string, call->read_only_tree, call->context,
		call->params, call->query_env, call->dest, call->completion);
}

void
KdbCopyUtilityCall(const KdbUtilityCall *call, KdbUtilityCall *copy)
{
	*copy = *call;
	copy->pstmt = copyObject(call->pstmt);
	copy->read_only_tree = false;
}

void
KdbPreventIfReadOnly(Node *stmt)
{
	const char *command = CreateCommandName(stmt);

	PreventCommandIfReadOnly(command);
	PreventCommandIfParallelMode(command);
	PreventCommandDuringRecovery(command);
}

/*
 * The prepared transaction commits inside the command, where no transaction
 * callback sees it.
 */
static void
run_transaction_command(const KdbUtilityCall *call)
{
	TransactionStmt *stmt = castNode(TransactionStmt, call->pstmt->utilityStmt);
	TransactionId xid;

	if (stmt->kind != TRANS_STMT_COMMIT_PREPARED)
	{
		KdbRunUtility(call);
		return;
	}
	xid = KdbPreparedTransactionId(stmt->gid);
	KdbClockBeforeCommit();
	KdbRunUtility(call);
	KdbClockCommitted();
	KdbSeenCommittedPrepared(xid, XactLastRecEnd);
}

/* It would empty a store of records; see record/store.c. */
static void
refuse_to_refresh_records(RefreshMatViewStmt *stmt)
{
	Oid			relid = RangeVarGetRelid(stmt->relation, NoLock, true);

	if (OidIsValid(relid) && KdbRecordIsGeneration(relid))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("cannot refresh materialized view \"%s\"", stmt->relation->relname),
				 errdetail("It holds records of KrahoDB.")));
}

/*
 * CREATE EXTENSION takes a schema that is there, and its owner could make functions in it that fit a
 * call somewhat better than the extension's, and are called by superusers, of other servers too.
 */
static void
check_schema_owner(const CreateExtensionStmt *stmt)
{
	Oid			namespace;
	HeapTuple	tuple;
	Oid			owner;

	/* if it is there already, IF NOT EXISTS is no error, whoever has got the schema since */
	if (strcmp(stmt->extname, KRAHODB_LIBRARY) != 0 ||
		OidIsValid(get_extension_oid(KRAHODB_LIBRARY, true)))
		return;
	namespace = get_namespace_oid(EXTENSION_SCHEMA, true);
	tuple = SearchSysCache1(NAMESPACEOID, ObjectIdGetDatum(namespace));
	if (!HeapTupleIsValid(tuple))
		return;
	owner = ((Form_pg_namespace) GETSTRUCT(tuple))->nspowner;
	ReleaseSysCache(tuple);
	if (!superuser_arg(owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("schema \"%s\" belongs to role \"%s\", which is not a superuser",
						EXTENSION_SCHEMA, GetUserNameFromId(owner, false)),
				 errdetail("It could make functions there that are called instead of the extension's."),
				 errhint("Drop or rename the schema.")));
}

/* The provider is there for those who name it. */
static void
set_label(const KdbUtilityCall *call)
{
	SecLabelStmt *stmt = castNode(SecLabelStmt, call->pstmt->utilityStmt);

	if (stmt->provider != NULL && strcmp(stmt->provider, KDB_LABEL_PROVIDER) == 0)
		KdbRegisterLabelProvider();
	KdbRunUtility(call);
}

/*
 * DROP and ALTER SUBSCRIPTION stop the workers of tables that they remove.  If one was
 * in the middle of a copy, its helpers' origins are left.
 */
static void
run_subscription_command(const KdbUtilityCall *call, const char *subname,
						 void (*run) (const KdbUtilityCall *call))
{
	Oid			subid = get_subscription_oid(subname, true);

	run(call);
	if (!OidIsValid(subid))
		return;
	CommandCounterIncrement();
	KdbCopyDropHelperOrigins(subid);
}

static void
utility_hook(PlannedStmt *pstmt, const char *query_string, bool read_only_tree,
			 ProcessUtilityContext context, ParamListInfo params,
			 QueryEnvironment *query_env, DestReceiver *dest, QueryCompletion *completion)
{
	KdbUtilityCall call = {pstmt, query_string, read_only_tree, context,
						   params, query_env, dest, completion};

	switch (nodeTag(pstmt->utilityStmt))
	{
		case T_CreateSubscriptionStmt:
			KdbCreateSubscription(&call);
			break;
		case T_AlterSubscriptionStmt:
			run_subscription_command(&call,
									 castNode(AlterSubscriptionStmt, pstmt->utilityStmt)->subname,
									 KdbAlterSubscription);
			break;
		case T_DropSubscriptionStmt:
			run_subscription_command(&call,
									 castNode(DropSubscriptionStmt, pstmt->utilityStmt)->subname,
									 KdbRunUtility);
			break;
		case T_CreateStmt:
			KdbCreateTable(&call);
			break;
		case T_CreateTableAsStmt:
			KdbCreateTableAs(&call);
			break;
		case T_AlterTableStmt:
			KdbAlterTable(&call);
			break;
		case T_IndexStmt:
			KdbCreateIndex(&call);
			break;
		case T_RefreshMatViewStmt:
			refuse_to_refresh_records(castNode(RefreshMatViewStmt, pstmt->utilityStmt));
			KdbRunUtility(&call);
			break;
		case T_CreateExtensionStmt:
			check_schema_owner(castNode(CreateExtensionStmt, pstmt->utilityStmt));
			KdbRunUtility(&call);
			break;
		case T_SecLabelStmt:
			set_label(&call);
			break;
		case T_TransactionStmt:
			run_transaction_command(&call);
			break;
		default:
			KdbRunUtility(&call);
			break;
	}
}

void
KdbCommandsInit(void)
{
	next_utility_hook = ProcessUtility_hook;
	ProcessUtility_hook = utility_hook;
	KdbDropInit();
}
