/*
 * commands_private.h
 *		What the files of commands/ share.  Nobody else includes this.
 *
 *	utility.c		the utility hook: which command is whose
 *	subscription.c	CREATE and ALTER SUBSCRIPTION
 *	copy_origin.c	warning about copied data of other origins
 *	table.c			CREATE TABLE, CREATE TABLE AS, ALTER TABLE
 *	column.c		ALTER TABLE ... ALTER COLUMN; what merged columns do not allow
 *	drop.c			object access hook: labels of dropped subscriptions; rewritten tables
 */
#ifndef COMMANDS_PRIVATE_H
#define COMMANDS_PRIVATE_H

#include "postgres.h"

#include "nodes/plannodes.h"
#include "tcop/utility.h"

#include "krahodb/stream.h"

/* The arguments of the utility hook. */
typedef struct KdbUtilityCall
{
	PlannedStmt *pstmt;
	const char *query_string;
	bool		read_only_tree;
	ProcessUtilityContext context;
	ParamListInfo params;
	QueryEnvironment *query_env;
	DestReceiver *dest;
	QueryCompletion *completion;
} KdbUtilityCall;

/* utility.c: run the command as it stands in the call, by the next hook or the engine. */
extern void KdbRunUtility(const KdbUtilityCall *call);

/*
 * utility.c: the same call with a copy of the parse tree, which may be changed.
 * The original may be a cached plan's.
 */
extern void KdbCopyUtilityCall(const KdbUtilityCall *call, KdbUtilityCall *copy);

/* utility.c: raise the engine's errors unless this transaction may write. */
extern void KdbPreventIfReadOnly(Node *stmt);

/* The commands; each runs the engine's part too. */
extern void KdbCreateSubscription(const KdbUtilityCall *call);
extern void KdbAlterSubscription(const KdbUtilityCall *call);
extern void KdbCreateTable(const KdbUtilityCall *call);
extern void KdbCreateTableAs(const KdbUtilityCall *call);
extern void KdbAlterTable(const KdbUtilityCall *call);
extern void KdbCreateIndex(const KdbUtilityCall *call);

/* table.c: a table was made; if the engine is to write another one's rows into it, these are read. */
extern void KdbTableCreated(Oid relid);

/* table.c: parameters of name space "krahodb" in a list; Take takes them out. */
extern bool KdbHasParameters(List *options);
extern List *KdbTakeParameters(List **list);

/*
 * column.c: the parameters of columns in ALTER TABLE.  Changes are taken out of the
 * statement (a List of KdbColumnChange) and stored when the rest of it has run.
 */
typedef struct KdbColumnChange
{
	char	   *column;
	List	   *options;		/* normalised */
} KdbColumnChange;

extern bool KdbAltersColumns(AlterTableStmt *stmt);
extern List *KdbTakeColumnChanges(AlterTableStmt *stmt);
extern void KdbStoreColumnChanges(Oid relid, List *changes);

/* column.c: may the merged columns of a table that was altered still be merged? */
extern void KdbCheckAltered(RangeVar *relation);

/* column.c: CREATE TABLE ... PARTITION OF has made that table, in this call. */
extern void KdbPartitionCreated(const KdbUtilityCall *call, RangeVar *relation);

/*
 * copy_origin.c: warn if tables of the publications, except those of relations
 * (SubscriptionRelState), are themselves subscribed to from elsewhere.
 */
extern void KdbWarnAboutCopiedOrigins(WalReceiverConn *conn, const char *subname,
									  List *publications, List *relations);

/*
 * doubled_deltas.c: warn if tables of a subscription, whose publisher is that node (0: it has not told), or one
 * table, have columns that are added up and come from the same publisher by another subscription.
 */
extern void KdbWarnAboutDoubledDeltas(Oid subid, uint64 node);
extern void KdbWarnAboutDoubledTable(Oid relid);

/* drop.c */
extern void KdbDropInit(void);

#endif							/* COMMANDS_PRIVATE_H */
