/*
 * horizon.h
 *		The retention horizon: its worker, its settings, stale peers.
 *
 * What other parts need to read is in horizon_shared.h.
 */
#ifndef KRAHODB_HORIZON_H
#define KRAHODB_HORIZON_H

#include "postgres.h"

#include "krahodb/horizon_shared.h"

#define KDB_HORIZON_SLOT	"krahodb_horizon"

/* krahodb.max_retention in seconds, krahodb.max_retention_size in MB; -1: no limit. */
extern int	KdbMaxRetention;
extern int	KdbMaxRetentionSize;

/* Register the background worker; once, from _PG_init. */
extern void KdbHorizonInit(void);

extern PGDLLEXPORT void KdbHorizonMain(Datum main_arg);
extern PGDLLEXPORT void KdbStaleMarkMain(Datum main_arg);

/*
 * Show hook of krahodb.frontiers: what subscribers to this server need to know
 * about what it passes on to them; see status.c.
 */
extern const char *KdbShowFrontiers(void);

/* The same of krahodb.frontiers_now, which also has the horizon worker look how far peers are. */
extern const char *KdbShowFrontiersNow(void);

extern const char *KdbPeerStateName(KdbPeerState state);

#endif							/* KRAHODB_HORIZON_H */
