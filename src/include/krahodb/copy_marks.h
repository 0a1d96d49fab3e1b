/*
 * copy_marks.h
 *		Marks of an initial copy that is not finished; see sync/copy_marks.c.
 */
#ifndef KRAHODB_COPY_MARKS_H
#define KRAHODB_COPY_MARKS_H

#include "postgres.h"

#define KDB_COPY_LABEL_PROVIDER	"krahodb initial copy"

/* Delete all marks of a table of this database; needs a transaction. */
extern void KdbCopyUnmarkAll(Oid relid);

/*
 * Drop the origins of helpers that copied tables of a subscription which are not, or
 * no longer, its tables; none of them runs any more.
 */
extern void KdbCopyDropHelperOrigins(Oid subid);

#endif							/* KRAHODB_COPY_MARKS_H */
