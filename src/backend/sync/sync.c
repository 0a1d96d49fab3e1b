/*
 * sync.c
 *		Table synchronisation's way into the workers.
 */
#include "postgres.h"

#include "krahodb/init.h"

#include "sync_private.h"

static void
advance_tables(XLogRecPtr current_lsn)
{
	if (am_tablesync_worker())
		KdbSyncCatchup(current_lsn);
	else
		KdbSyncSupervise(current_lsn);
}

void
KdbSyncInit(void)
{
	static const KdbSyncCallbacks callbacks = {
		.start_table_sync = KdbSyncStart,
		.process_syncing_tables = advance_tables,
		.before_commit = KdbSyncBeforeCommit,
		.tables_ready = KdbSyncNoneLeft,
		.relation_state = KdbSyncRelationState,
	};

	KdbRegisterSync(&callbacks);
}
