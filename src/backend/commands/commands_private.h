/*
 * commands_private.h
 *		What the files of commands/ share.  Nobody else includes this.
 *
 *	utility.c		the utility hook: which command is whose
 *	subscription.c	CREATE and ALTER SUBSCRIPTION
 *	copy_origin.c	warning about copied data of other origins
 *	table.c			CREATE TABLE, CREATE TABLE AS, ALTER TABLE
 *	drop.c			object access hook: labels of dropped subscriptions
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

/*
 * copy_origin.c: warn if tables of the publications, except those of relations
 * (SubscriptionRelState), are themselves subscribed to from elsewhere.
 */
extern void KdbWarnAboutCopiedOrigins(WalReceiverConn *conn, const char *subname,
									  List *publications, List *relations);

/* drop.c */
extern void KdbDropInit(void);

#endif							/* COMMANDS_PRIVATE_H */
