/*
 * record_private.h
 *		What the files of record/ share.  Nobody else includes this.
 */
#ifndef RECORD_PRIVATE_H
#define RECORD_PRIVATE_H

#include "krahodb/record.h"

/* Column of the stamp. */
#define STAMP_COLUMN	1

/*
 * store.c: look the relations up, if that has not been done since the catalogs
 * changed.  Returns store->present.
 */
extern bool KdbRecordLookUp(KdbRecordStore *store);

/* The current generation is to be determined anew. */
extern void KdbRecordForgetCurrent(KdbRecordStore *store);

/* An index of rel that begins with these columns, opened; NULL if none does. */
extern Relation KdbRecordOpenIndex(Relation rel, const AttrNumber *columns,
								   int ncolumns, LOCKMODE lockmode);

/* rotate.c: find the current generation, if it is not known. */
extern void KdbRecordChooseCurrent(KdbRecordStore *store);

#endif							/* RECORD_PRIVATE_H */
