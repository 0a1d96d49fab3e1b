/*
 * conflict_private.h
 *		What the files of conflict/ share.  Nobody else includes this.
 */
#ifndef CONFLICT_PRIVATE_H
#define CONFLICT_PRIVATE_H

#include "krahodb/conflict.h"
#include "krahodb/conflict_counters.h"

extern KdbConflictOutcome KdbConflictOutcomeOf(KdbAction action);

/*
 * count.c: count a conflict on a table, when the transaction commits; an error
 * at once.
 */
extern void KdbCountConflict(Oid relid, KdbConflictType type, KdbConflictOutcome outcome);

/*
 * log.c: a row for krahodb.conflict_log, in this transaction; for an error it is
 * kept for KdbConflictLogFailed.
 */
extern void KdbLogConflict(Relation rel, const KdbDecision *decision,
						   TupleTableSlot *search,
						   const KdbConflictSide *local, int nlocal,
						   const KdbConflictSide *remote, TupleTableSlot *applied);

/*
 * row_json.c: columns of a row as jsonb, in the current memory context; those
 * for which wanted (by attnum - 1; NULL: all) is true.
 */
extern Datum KdbRowToJsonb(TupleTableSlot *slot, const bool *wanted);

/* Several rows, as a jsonb array. */
extern Datum KdbJsonbArray(const Datum *rows, int nrows);

#endif							/* CONFLICT_PRIVATE_H */
