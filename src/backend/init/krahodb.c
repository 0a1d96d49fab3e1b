/*
 * krahodb.c
 *		_PG_init of krahodb.so: replaces the engine's logical replication
 *		subsystem while the postmaster starts.
 *
 * Everything that other folders put into the server (hooks, GUCs, the
 * launcher's entry, the label provider) is wired here and nowhere else, in
 * one order.  See doc/internals/subsystem.md.
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"

#include "krahodb/clock.h"
#include "krahodb/compat.h"
#include "krahodb/horizon.h"
#include "krahodb/init.h"
#include "krahodb/seen_state.h"
#include "krahodb/shared.h"
#include "krahodb/stream.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	if (!process_shared_preload_libraries_in_progress)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("KrahoDB must be loaded when the server starts"),
				 errhint("Add \"krahodb\" to shared_preload_libraries in postgresql.conf and restart the server.")));

	KdbSharedInit();
	KdbGucInit();
	KdbClockInit();
	KdbSeenPositionsInit();
	KdbStreamInit();
	KdbSyncInit();
	KdbCommandsInit();
	KdbLauncherInit();
	KdbHorizonInit();
}
