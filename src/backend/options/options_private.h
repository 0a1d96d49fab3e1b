/*
 * options_private.h
 *		What the files of options/ share.  Nobody else includes this.
 *
 *	label.c					the label's text, the provider, the catalogs
 *	subscription_options.c	a subscription's options as a whole
 *	subscription_values.c	the value of one of them
 *	table_options.c			tables
 *	column_options.c		columns: what is merged
 *	column_checks.c			what may be merged
 *	parameters.c			those of tables and columns in SQL
 *	origin_id.c				replication_origin_id in pg_replication_origin
 */
#ifndef OPTIONS_PRIVATE_H
#define OPTIONS_PRIVATE_H

#include "postgres.h"

#include "krahodb/options.h"

/* label.c */
extern List *KdbLabelToOptions(const char *label);
extern char *KdbOptionsToLabel(List *options);

/* Can the label of a shared object be read without a database, and so without TOAST? */
extern bool KdbLabelIsInLine(Oid classid, Oid objectid);

/* subscription_options.c: does its label say so, whatever else that says? */
extern bool KdbIsMarkedStale(Oid subid);

/* Tell who caches the options, at commit. */
extern void KdbSubscriptionOptionsChanged(Oid subid);	/* subscription_options.c */
extern void KdbTableOptionsChanged(Oid relid);	/* table_options.c */

/* column_options.c: raises an error if this may not be the label of the column. */
extern void KdbCheckColumnLabel(Oid relid, AttrNumber attnum, const char *label);

/* A parameter's value in normal form; NULL if it asks for the default. */
typedef const char *(*KdbNormalValue) (const char *value);

/*
 * parameters.c: the list with values in normal form, which are NULL for RESET and for
 * defaults.  Raises an error if it has anything but the parameter of that name, once.
 */
extern List *KdbNormaliseParameters(List *defs, bool reset, const char *name, KdbNormalValue normal_value);

/*
 * subscription_values.c.  Each reads one value and raises an error that names
 * the option if it is not valid.
 */
extern KdbOriginFilter KdbReadOriginFilter(const char *value);
extern KdbCompression KdbReadCompression(const char *name, const char *value);
extern int	KdbReadOriginIds(const char *name, const char *value, RepOriginId **ids);
extern RepOriginId KdbReadOriginId(const char *name, const char *value);
extern int	KdbReadApplyWorkers(const char *name, const char *value);
extern KdbResolver KdbReadGeneralResolver(const char *name, const char *value);
/* Is the value the word that sets an option back to its default? */
extern bool KdbIsDefaultValue(const char *value);

extern KdbResolver KdbReadTypeResolver(KdbConflictType type, const char *value);

#endif							/* OPTIONS_PRIVATE_H */
