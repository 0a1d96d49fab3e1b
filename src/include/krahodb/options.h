/*
 * options.h
 *		KrahoDB's own options of subscriptions and tables.
 *
 * They are stored as a security label of provider "krahodb" on the object: a
 * JSON object of option name to string value, exactly as the user wrote the
 * values after validation.  Labels are transactional, belong to the object and
 * are dumped and restored by pg_dump.  Every way in (CREATE/ALTER ... WITH/SET
 * through the utility hook, SECURITY LABEL as pg_dump emits it) goes through
 * the same parser, so an invalid label cannot be stored.
 */
#ifndef KRAHODB_OPTIONS_H
#define KRAHODB_OPTIONS_H

#include "postgres.h"
#include "catalog/objectaddress.h"
#include "nodes/pg_list.h"
#include "replication/origin.h"
#include "krahodb/conflict_rules.h"

#define KDB_LABEL_PROVIDER	"krahodb"

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
	bool		run_as_owner;	/* default true: what PostgreSQL 15 does */
	KdbResolver conflict_resolution;	/* the general one after defaulting */
	KdbResolvers resolvers;		/* of each type, general and specific combined */
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
extern void KdbGetTableOptions(Oid relid, KdbTableOptions *options);

/* Do two sets differ in anything that a running worker must know? */
extern bool KdbSubscriptionOptionsEqual(const KdbSubscriptionOptions *a,
										const KdbSubscriptionOptions *b);

/* The resolvers of a table under a subscription: the table's go first. */
extern void KdbTableResolvers(const KdbSubscriptionOptions *subscription,
							  const KdbTableOptions *table,
							  KdbResolvers *resolvers);

/* Register the label provider; once, from _PG_init. */
extern void KdbOptionsInit(void);

#endif							/* KRAHODB_OPTIONS_H */
