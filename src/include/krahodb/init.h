/*
 * init.h
 *		Version numbers and what _PG_init of krahodb.so wires together.
 */
#ifndef KRAHODB_INIT_H
#define KRAHODB_INIT_H

#define KRAHODB_VERSION			"0.1.0"
#define KRAHODB_VERSION_NUM		100	/* major * 10000 + minor * 100 + patch */
#define KRAHODB_LIBRARY			"krahodb"

#include "postgres.h"

/* Rewrite the engine's launcher entry in BackgroundWorkerList (launcher/). */
extern void KdbLauncherInit(void);
extern PGDLLEXPORT void KdbLauncherMain(Datum main_arg);

/* Hooks on SQL commands (commands/). */
extern void KdbCommandsInit(void);

/* Table synchronisation registers its callbacks (sync/). */
extern void KdbSyncInit(void);
extern PGDLLEXPORT void KdbCopyHelperMain(Datum main_arg);

/* Custom GUCs (init/guc.c). */
extern void KdbGucInit(void);

#endif							/* KRAHODB_INIT_H */
