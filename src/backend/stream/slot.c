/*
 * slot.c
 *		Creating logical slots on a publisher, with the plugin that suits it.
 *
 * The plugin is a property of the slot, fixed when it is created: a KrahoDB
 * publisher gets krahodb_output, which can do all that a subscription may ask
 * for later, and any other one pgoutput, by the engine's own function.
 *
 * A publisher names the plugins that slots may use in output_plugin_libraries.
 * KrahoDB never widens that setting by itself; where krahodb_output is missing,
 * the error says what to add.
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/pg_lsn.h"

#include "stream_private.h"

/* Servers from this version on may give up a slot, and say so. */
#define WAL_STATUS_VERSION		130000

/* Servers from this version on take the options in parentheses. */
#define OPTION_LIST_VERSION		150000

static void
append_action(StringInfo cmd, CRSSnapshotAction action, bool option_list)
{
	switch (action)
	{
		case CRS_EXPORT_SNAPSHOT:
			appendStringInfoString(cmd, option_list ? "SNAPSHOT 'export'" : "EXPORT_SNAPSHOT");
			break;
		case CRS_NOEXPORT_SNAPSHOT:
			appendStringInfoString(cmd, option_list ? "SNAPSHOT 'nothing'" : "NOEXPORT_SNAPSHOT");
			break;
		case CRS_USE_SNAPSHOT:
			appendStringInfoString(cmd, option_list ? "SNAPSHOT 'use'" : "USE_SNAPSHOT");
			break;
	}
}

static char *
create_command(const KdbPublisher *publisher, const char *slotname, bool temporary,
			   bool two_phase, CRSSnapshotAction action)
{
	bool		option_list = publisher->server_version >= OPTION_LIST_VERSION;
	StringInfoData cmd;

	initStringInfo(&cmd);
	appendStringInfoString(&cmd, "CREATE_REPLICATION_SLOT ");
	KdbAppendQuoted(&cmd, slotname, '"');
	appendStringInfo(&cmd, "%s LOGICAL %s %s", temporary ? " TEMPORARY" : "",
					 KDB_OUTPUT_PLUGIN, option_list ? "(" : "");
	if (two_phase)
		appendStringInfoString(&cmd, option_list ? "TWO_PHASE, " : "TWO_PHASE ");
	append_action(&cmd, action, option_list);
	if (option_list)
		appendStringInfoChar(&cmd, ')');
	return cmd.data;
}

static void
refuse_plugin(const char *slotname)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("could not create replication slot \"%s\": the publisher does not allow output plugin \"%s\"",
					slotname, KDB_OUTPUT_PLUGIN),
			 errdetail("The setting \"%s\" of the publisher does not list \"%s\".",
					   "output_plugin_libraries", KDB_OUTPUT_PLUGIN),
			 errhint("Add this line to postgresql.conf on the publisher, with any other plugins in use there, and reload it: output_plugin_libraries = 'pgoutput, test_decoding, %s'",
					 KDB_OUTPUT_PLUGIN)));
}

XLogRecPtr	KdbStreamSlotStart = InvalidXLogRecPtr;

char *
KdbStreamCreateSlot(WalReceiverConn *conn, const char *slotname, bool temporary,
					bool two_phase, CRSSnapshotAction snapshot_action, XLogRecPtr *lsn)
{
	KdbPublisher publisher;
	List	   *rows;
	char	  **row;
	XLogRecPtr	point;
	KdbStreamError error;

	/* Physical connections are never identified. */
	if (!KdbStreamKnown(conn, &publisher) || publisher.krahodb_version == 0)
		return (KdbEngineWalReceiver.walrcv_create_slot)(conn, slotname, temporary, two_phase,
														 snapshot_action, lsn);
	if (!publisher.plugin_allowed)
		refuse_plugin(slotname);

	/* Slot name, consistent point, snapshot name, plugin. */
	if (!KdbStreamTryQuery(conn,
						   create_command(&publisher, slotname, temporary, two_phase, snapshot_action),
						   4, &rows, &error))
	{
		if (error.sqlstate == ERRCODE_INSUFFICIENT_PRIVILEGE &&
			strstr(error.message, KDB_OUTPUT_PLUGIN) != NULL)
			refuse_plugin(slotname);
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("could not create replication slot \"%s\": %s", slotname, error.message)));
	}
	if (list_length(rows) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("could not create replication slot \"%s\": %s", slotname,
						"unexpected number of rows")));
	row = linitial(rows);
	point = DatumGetLSN(DirectFunctionCall1(pg_lsn_in, CStringGetDatum(row[1] ? row[1] : "")));
	if (lsn)
		*lsn = point;
	if (!temporary && snapshot_action == CRS_NOEXPORT_SNAPSHOT)
		KdbStreamSlotStart = point;
	return row[2];
}

char *
KdbStreamSlotPlugin(WalReceiverConn *conn, const char *slotname)
{
	List	   *rows;

	rows = KdbStreamQuery(conn,
						  psprintf("SELECT plugin FROM pg_catalog.pg_replication_slots WHERE slot_name OPERATOR(pg_catalog.=) %s",
								   quote_literal_cstr(slotname)),
						  1, "replication slot information");
	return rows == NIL ? NULL : ((char **) linitial(rows))[0];
}

XLogRecPtr
KdbStreamSlotConfirmed(WalReceiverConn *conn, const char *slotname)
{
	List	   *rows;
	char	   *lsn;

	rows = KdbStreamQuery(conn,
						  psprintf("SELECT confirmed_flush_lsn FROM pg_catalog.pg_replication_slots WHERE slot_name OPERATOR(pg_catalog.=) %s",
								   quote_literal_cstr(slotname)),
						  1, "replication slot information");
	lsn = rows == NIL ? NULL : ((char **) linitial(rows))[0];
	return lsn ? DatumGetLSN(DirectFunctionCall1(pg_lsn_in, CStringGetDatum(lsn))) : InvalidXLogRecPtr;
}

bool
KdbStreamSlotIsUsable(WalReceiverConn *conn, const char *slotname)
{
	KdbPublisher publisher;
	List	   *rows;

	KdbStreamIdentify(conn, &publisher);
	rows = KdbStreamQuery(conn,
						  psprintf("SELECT 1 FROM pg_catalog.pg_replication_slots WHERE slot_name OPERATOR(pg_catalog.=) %s%s",
								   quote_literal_cstr(slotname),
								   publisher.server_version < WAL_STATUS_VERSION ? "" :
								   " AND wal_status IS DISTINCT FROM 'lost'"),
						  1, "replication slot information");
	return rows != NIL;
}
