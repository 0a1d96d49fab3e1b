/*
 * clock.h
 *		The clock rule: later by causality is later by version.
 *
 * See clock.c for the rule and why it holds.
 */
#ifndef KRAHODB_CLOCK_H
#define KRAHODB_CLOCK_H

#include "postgres.h"
#include "datatype/timestamp.h"

#include "krahodb/shared.h"

/* krahodb.max_clock_skew, milliseconds. */
extern int	KdbMaxClockSkew;

/* Register the transaction callback; once, from _PG_init. */
extern void KdbClockInit(void);

/*
 * The rule holds in this server while there is a reason: a subscription that
 * resolves conflicts (the launcher, which sees all of them, says so, and workers
 * when they start), or a table that does under a plain subscription (its worker
 * says so; until the next start of the server).  The reasons are in shared.h.
 */
extern void KdbClockEnforce(uint32 reason);

/*
 * For the launcher: there is no such reason any more, unless somebody has said that there is one since
 * KdbClockState was asked.
 */
extern uint32 KdbClockState(void);
extern void KdbClockRelax(uint32 reason, uint32 state);

/*
 * Before a local commit whose transaction the callback does not see (COMMIT
 * PREPARED): wait until the clock has passed every timestamp committed here.
 */
extern void KdbClockBeforeCommit(void);

/* After such a commit: its timestamp is not known, but not later than now. */
extern void KdbClockCommitted(void);

/* Nothing is to be committed here at an earlier time than now any more. */
extern void KdbClockReached(void);

/*
 * The time, not before any timestamp that was committed here under the clock rule: a clock that
 * was set back says less, also while the server was down, and the horizon would pass what is
 * stamped with it too early.
 */
extern TimestampTz KdbTimeHere(void);

/*
 * Before a remote transaction with timestamp ts is applied: wait until the
 * local clock has passed ts.  Error if that would take longer than
 * krahodb.max_clock_skew.  Meanwhile "waiting" is called several times a second, if it is
 * not NULL.
 */
extern void KdbClockBeforeApply(TimestampTz ts, void (*waiting) (void));

/*
 * A number that is another one once a local transaction has committed; 0 if one
 * may be committing at this moment.  Whoever looks at rows takes it before.  All timestamps that
 * were committed here are at most that.  Orders reads only: who has written something that others
 * are to see issues a memory barrier before.
 */
extern uint64 KdbClockMark(void);

#endif							/* KRAHODB_CLOCK_H */
