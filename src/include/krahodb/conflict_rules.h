/*
 * conflict_rules.h
 *		What to do with an incoming change, given what is known of the local row.
 *
 * The rule table of the design (doc/internals/conflict-rules.md) as a pure
 * function: everything that a decision depends on comes in as an argument, an
 * action comes out.  The server, the tests and the simulator run this same code.
 *
 * Pure C: no server calls, no allocation.
 */
#ifndef KRAHODB_CONFLICT_RULES_H
#define KRAHODB_CONFLICT_RULES_H

#include "krahodb/version.h"

/* Conflict types, named as PostgreSQL 18/19 name them. */
typedef enum KdbConflictType
{
	KDB_CONFLICT_NONE = -1,
	KDB_CONFLICT_INSERT_EXISTS = 0,
	KDB_CONFLICT_UPDATE_ORIGIN_DIFFERS,
	KDB_CONFLICT_UPDATE_EXISTS,
	KDB_CONFLICT_UPDATE_DELETED,
	KDB_CONFLICT_UPDATE_MISSING,
	KDB_CONFLICT_DELETE_ORIGIN_DIFFERS,
	KDB_CONFLICT_DELETE_MISSING,
	KDB_CONFLICT_MULTIPLE_UNIQUE_CONFLICTS
} KdbConflictType;

#define KDB_CONFLICT_TYPES	8

/*
 * Resolvers.  ENGINE is what the stock server does with the change (an error
 * for *_exists, apply for *_origin_differs, skip for *_missing and
 * *_deleted), without a record: a plain subscription has it everywhere.
 */
typedef enum KdbResolver
{
	KDB_RESOLVER_ENGINE = 0,
	KDB_RESOLVER_ERROR,
	KDB_RESOLVER_SKIP,
	KDB_RESOLVER_INSERT,
	KDB_RESOLVER_APPLY_REMOTE,
	KDB_RESOLVER_KEEP_LOCAL,
	KDB_RESOLVER_LAST_UPDATE_WINS,
	KDB_RESOLVER_FIRST_UPDATE_WINS
} KdbResolver;

#define KDB_RESOLVERS	8

/* The resolver of each conflict type. */
typedef struct KdbResolvers
{
	uint8_t		by_type[KDB_CONFLICT_TYPES];	/* KdbResolver */
} KdbResolvers;

typedef enum KdbOperation
{
	KDB_INSERT,
	KDB_UPDATE,
	KDB_DELETE
} KdbOperation;

/* What the node knows of the key that a change names. */
typedef enum KdbRowState
{
	KDB_ROW_ABSENT,				/* nothing known */
	KDB_ROW_LIVE,				/* a visible row with a version */
	KDB_ROW_DEAD				/* deleted, the deletion's version known */
} KdbRowState;

typedef struct KdbLocalRow
{
	KdbRowState state;

	/*
	 * Its version.  When the engine no longer knows the timestamp (frozen,
	 * truncated), version_known is false and the row counts as older than any
	 * change in flight: an update or delete of it is no conflict.
	 */
	bool		version_known;
	KdbVersion	version;
	uint16_t	origin;			/* this node's id of the writer's origin, 0 if local; for the record */
	uint32_t	xid;			/* local transaction that wrote or deleted it; for the record */

	/*
	 * Its version is not known, but not for its age: it may be anybody's row, and gives no
	 * values to one that was not sent as a whole.
	 */
	bool		rewritten;

	/* Written by the node that the change comes from. */
	bool		same_origin;

	/* Written by another node, and the writer of the change surely had seen it. */
	bool		seen;

	/* Written earlier in the transaction that is being applied. */
	bool		same_transaction;
} KdbLocalRow;

typedef enum KdbAction
{
	KDB_ACTION_INSERT,			/* insert the full row */
	KDB_ACTION_UPDATE,			/* overwrite the local row */
	KDB_ACTION_DELETE,			/* delete the local row */
	KDB_ACTION_SKIP,			/* leave the local state as it is */
	KDB_ACTION_ERROR			/* raise an error, nothing applied */
} KdbAction;

typedef struct KdbDecision
{
	KdbAction	action;
	KdbConflictType conflict;	/* KDB_CONFLICT_NONE if there was none */
	KdbResolver resolver;		/* what decided it, if there was a conflict */
} KdbDecision;

/*
 * Decide a change on its own key (replica identity).  DELETE with SKIP and
 * delete_missing: there was nothing to delete.  An INSERT that is dropped
 * because a greater version had deleted the row is reported as update_deleted;
 * the resolver of insert_exists decides it.
 */
extern KdbDecision KdbResolveRow(KdbOperation operation, KdbVersion incoming,
								 const KdbLocalRow *local,
								 const KdbResolvers *resolvers);

/*
 * Decide a write whose values collide with nholders > 0 other live rows on
 * unique keys (other keys than its own replica identity's row).  UPDATE or
 * INSERT as action says: remove all holders, then do the write (operation
 * gives which); SKIP: drop the write; ERROR: raise.
 */
extern KdbDecision KdbResolveUnique(KdbOperation operation, KdbVersion incoming,
									const KdbLocalRow *holders, int nholders,
									const KdbResolvers *resolvers);

/*
 * Names as in SQL and in log lines: "insert_exists", "last_update_wins".
 * ENGINE is called "engine", for views; no user may set it.
 */
extern const char *KdbConflictTypeName(KdbConflictType type);
extern const char *KdbResolverName(KdbResolver resolver);
extern bool KdbConflictTypeFromName(const char *name, KdbConflictType *type);
extern bool KdbResolverFromName(const char *name, KdbResolver *resolver);

/* May this resolver be set for this conflict type? */
extern bool KdbResolverAllowed(KdbConflictType type, KdbResolver resolver);

/* May this resolver be the value of conflict_resolution (all types at once)? */
extern bool KdbResolverIsGeneral(KdbResolver resolver);

/*
 * Set each type's resolver from one general resolver, or from ENGINE; ENGINE gives the stock
 * behaviour everywhere.  E.g. last_update_wins: update_missing becomes insert,
 * delete_missing becomes skip.
 */
extern void KdbResolversSetAll(KdbResolvers *resolvers, KdbResolver general);

/* Is any type's resolver other than ENGINE? */
extern bool KdbResolversActive(const KdbResolvers *resolvers);

#endif							/* KRAHODB_CONFLICT_RULES_H */
