/*
 * options.h
 *		KrahoDB's own options of subscriptions, tables and columns.
 *
 * They are stored as a security label of provider "krahodb" on the object: a
 * JSON object of option name to string value, holding what the user set and no
 * defaults.  Labels are transactional, belong to the object and
 * are dumped and restored by pg_dump.  Every way in (CREATE/ALTER ... WITH/SET
 * through the utility hook, SECURITY LABEL as pg_dump emits it) goes through
 * the same parser, so an invalid label cannot be stored.
 */
#ifndef KRAHODB_OPTIONS_H
#define KRAHODB_OPTIONS_H

#include "postgres.h"
#include "catalog/objectaddress.h"
#include "datatype/timestamp.h"
#include "nodes/parsenodes.h"
#include "nodes/pg_list.h"
#include "parser/parse_node.h"
#include "replication/origin.h"
#include "krahodb/compress.h"
#include "krahodb/conflict_rules.h"
#include "krahodb/merge.h"

#define KDB_LABEL_PROVIDER	"krahodb"

/* Greatest value of apply_workers. */
#define KDB_MAX_APPLY_WORKERS	64

typedef enum KdbOriginFilter
{
	KDB_ORIGIN_ANY,				/* changes of every origin, as the engine does */
	KDB_ORIGIN_NONE				/* only changes made on the publisher itself */
} KdbOriginFilter;

/* What a subscription asks for; defaults filled in. */
typedef struct KdbSubscriptionOptions
{
	KdbOriginFilter origin;
	int			nfilter_origins;
	RepOriginId *filter_origins;	/* sorted, distinct */
	RepOriginId replication_origin_id;	/* InvalidRepOriginId: the engine's choice */
	KdbCompression compression; /* of the stream */
	bool		run_as_owner;	/* default true: what PostgreSQL 15 does */
	int			apply_workers;	/* 1: the apply worker alone; else that many lanes */
	KdbResolver conflict_resolution;	/* the general one after defaulting */
	KdbResolvers resolvers;		/* of each type, general and specific combined */
	TimestampTz stale_since;	/* not an option: KdbMarkSubscriptionStale; 0 if it is not */
} KdbSubscriptionOptions;

/* What a table asks for. */
typedef struct KdbTableOptions
{
	bool		has_conflict_resolution;
	KdbResolver conflict_resolution;
} KdbTableOptions;

/*
 * The options of a subscription or table, from its label in the current
 * snapshot.  Result is palloc'd in the current context.  Needs a transaction.
 * Objects without label have the defaults.
 */
extern KdbSubscriptionOptions *KdbGetSubscriptionOptions(Oid subid);

/*
 * The same for who is connected to no database, and looks at all subscriptions: NULL instead of
 * an error if they cannot be read.
 */
extern KdbSubscriptionOptions *KdbTryGetSubscriptionOptions(Oid subid);

extern void KdbGetTableOptions(Oid relid, KdbTableOptions *options);

/* Do two sets differ in anything that a running worker must know? */
extern bool KdbSubscriptionOptionsEqual(const KdbSubscriptionOptions *a,
										const KdbSubscriptionOptions *b);

/* The resolvers of a table under a subscription: the table's go first. */
extern void KdbTableResolvers(const KdbSubscriptionOptions *subscription,
							  const KdbTableOptions *table,
							  KdbResolvers *resolvers);

/*
 * OPTION LISTS.  Between the ways in and the label, options are a List of
 * DefElem whose args are String nodes with normalised values.  A normalised
 * list of changes may also hold an element without arg: back to the default.
 */

/* The options in an object's label; NIL if it has none. */
extern List *KdbReadOptions(Oid classid, Oid objectid);

/* The old list with the changes made; elements are shared with both. */
extern List *KdbMergeOptions(List *old, List *changes);

/* Is this one of KrahoDB's subscription options? */
extern bool KdbIsSubscriptionOption(const char *name);

/*
 * Check and normalise subscription options (only KrahoDB's, as the user wrote
 * them).  pstate is for error positions; NULL if there is no source text.
 */
extern List *KdbNormaliseSubscriptionOptions(ParseState *pstate, List *defs);

/* What a normalised list without changes means; checks contradictions. */
extern KdbSubscriptionOptions *KdbParseSubscriptionOptions(List *options);

/* A WARNING if anything there needs commit timestamps of local rows, and there are none. */
extern void KdbWarnAboutTimestamps(const char *subname, const KdbSubscriptionOptions *options);

/*
 * Is the time of a change compared with that of the row that it meets?  That is
 * known of a prepared transaction only when it is committed.
 */
extern bool KdbOptionsCompareTimes(const KdbSubscriptionOptions *options);

/* Replace a subscription's label; running workers learn of it at commit. */
extern void KdbStoreSubscriptionOptions(Oid subid, List *options);

/* Check and normalise table options, without their name space; of RESET if reset. */
extern List *KdbNormaliseTableOptions(List *defs, bool reset);

/* Raises an error unless table options may be set on the relation. */
extern void KdbCheckTableForOptions(Oid relid);

/*
 * Mark a subscription as stale: its publisher was away for so long that the
 * retention horizon has moved on without it.  It stands in the label,
 * beside the options, but no command on options sets or removes it.  Both return
 * false if there is nothing to do.
 */
extern bool KdbMarkSubscriptionStale(Oid subid, TimestampTz since);
extern bool KdbClearSubscriptionStale(Oid subid);

/* Replace a table's label and have its users forget what they knew of it. */
extern void KdbStoreTableOptions(Oid relid, List *options);

/*
 * Whose options a table has: itself, the nearest partitioned table above it
 * that has any, or InvalidOid.
 */
extern Oid	KdbTableOptionsSource(Oid relid);

/*
 * replication_origin_id.  Reserve raises an error unless the id is free, and
 * keeps it so for this transaction.  Assign gives it to the subscription's
 * origin; the subscription must never have replicated.
 */
extern void KdbReserveOriginId(RepOriginId id);
extern void KdbAssignOriginId(Oid subid, RepOriginId id);

/*
 * COLUMNS.  krahodb.merge says that a column's values are merged instead of
 * chosen by version.  Stored as the label of the column.
 */
typedef struct KdbColumnMerge
{
	AttrNumber	attnum;			/* of the table in question */
	KdbMergeKind kind;
	Oid			source;			/* that table, or the partitioned table it has it from */
} KdbColumnMerge;

extern const char *KdbMergeKindName(KdbMergeKind kind);

/*
 * Merged columns of a table: a List of KdbColumnMerge in the order of columns.  Those
 * without a label have that of the column of the same name in the nearest
 * partitioned table above that has one.
 */
extern List *KdbMergedColumns(Oid relid);

/* Likewise as table options, but of ALTER COLUMN. */
extern List *KdbNormaliseColumnOptions(List *defs, bool reset);

/* Replace a column's label and have the users of the table forget what they knew. */
extern void KdbStoreColumnOptions(Oid relid, AttrNumber attnum, List *options);

/*
 * Raises an error if the column itself cannot be merged so, by its type, whatever else the table
 * has.  Whoever reads its values relies on that.
 */
extern void KdbCheckMergedType(Oid relid, const KdbColumnMerge *merge);

/*
 * Raises an error if a merged column of the table, or of a partition or child below it,
 * cannot be merged: its type, a unique key, the replica identity.  with_key: there
 * must be a primary key, too.  Cheap for tables without merged columns.
 */
extern void KdbCheckMergedColumns(Oid relid, bool with_key);

/* For SECURITY LABEL FOR krahodb, which needs the provider; once for each process. */
extern void KdbRegisterLabelProvider(void);

#endif							/* KRAHODB_OPTIONS_H */
