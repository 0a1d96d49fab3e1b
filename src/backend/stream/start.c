/*
 * start.c
 *		START_REPLICATION with the options that the slot's plugin understands.
 *
 * Which plugin a slot has is asked, not remembered: the slot may be older than
 * KrahoDB on either side, or made by hand.  The command goes through
 * walrcv_exec, as libpqwalreceiver's own function has no room for other
 * options; a COPY BOTH answer leaves the connection streaming just the same.
 */
#include "postgres.h"

#include "nodes/value.h"
#include "utils/builtins.h"
#include "utils/guc.h"

#include "krahodb/datum_format.h"
#include "krahodb/wire.h"

#include "stream_private.h"

/* pgoutput's protocol versions and options, by the version that brought them. */
#define BINARY_VERSION			140000
#define STREAMING_VERSION		140000	/* protocol 2 */
#define TWO_PHASE_VERSION		150000	/* protocol 3 */
#define ORIGIN_VERSION			160000

bool		KdbStreamInProgress = true;

static int
protocol_version(int server_version)
{
	if (server_version >= TWO_PHASE_VERSION)
		return 3;
	if (server_version >= STREAMING_VERSION)
		return 2;
	return 1;
}

/* A list of identifiers in a string, each one quoted. */
static char *
publication_names(List *publications)
{
	StringInfoData names;
	ListCell   *lc;

	initStringInfo(&names);
	foreach(lc, publications)
	{
		if (names.len > 0)
			appendStringInfoChar(&names, ',');
		KdbAppendQuoted(&names, strVal(lfirst(lc)), '"');
	}
	return names.data;
}

/*
 * Large transactions in parts?  The engine's answer to a transaction that outgrows its
 * memory, a file with a system call or two for each change, is most of what such a
 * transaction costs; the file that a subscriber has it in costs next to nothing (see
 * doc/internals/performance.md).  But it is a temporary file, for which the user may have
 * set a limit.
 */
static bool
wants_parts(const KdbStreamStart *start, bool krahodb_stream)
{
	return start->streaming || (krahodb_stream && KdbStreamInProgress && temp_file_limit < 0);
}

/* What both plugins understand. */
static void
append_common_options(StringInfo cmd, const KdbStreamStart *start, bool krahodb_stream,
					  int server_version)
{
	appendStringInfo(cmd, "proto_version '%d'", protocol_version(server_version));
	if (wants_parts(start, krahodb_stream) && server_version >= STREAMING_VERSION)
		appendStringInfoString(cmd, ", streaming 'on'");
	if (start->two_phase && server_version >= TWO_PHASE_VERSION)
		appendStringInfoString(cmd, ", two_phase 'on'");
	appendStringInfoString(cmd, ", publication_names ");
	KdbAppendQuoted(cmd, publication_names(start->publications), '\'');
	if (start->binary && server_version >= BINARY_VERSION)
		appendStringInfoString(cmd, ", binary 'true'");
}

static void
append_krahodb_options(StringInfo cmd, const KdbSubscriptionOptions *options)
{
	appendStringInfo(cmd, ", krahodb '%d', datum_format ", KDB_WIRE_VERSION);
	KdbAppendQuoted(cmd, KdbDatumFormat(), '\'');
	appendStringInfo(cmd, ", origin '%s'", options->origin == KDB_ORIGIN_NONE ? "none" : "any");
	if (KdbOptionsCompareTimes(options))
		appendStringInfoString(cmd, ", prepared_at_commit 'on'");
	if (options->compression != KDB_COMPRESSION_OFF)
		appendStringInfo(cmd, ", compression '%s'", KdbCompressionName(options->compression));
	if (options->nfilter_origins == 0)
		return;
	appendStringInfoString(cmd, ", filter_origins '");
	for (int i = 0; i < options->nfilter_origins; i++)
		appendStringInfo(cmd, "%s%u", i == 0 ? "" : ", ", options->filter_origins[i]);
	appendStringInfoChar(cmd, '\'');
}

/* Options of a slot that does not use krahodb_output. */
static void
check_other_plugin(const char *slotname, const KdbPublisher *publisher,
				   const KdbSubscriptionOptions *options)
{
	KdbStreamCheckFilters(publisher, options);
	if (options->nfilter_origins == 0 &&
		(options->origin == KDB_ORIGIN_ANY || publisher->server_version >= ORIGIN_VERSION))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("replication slot \"%s\" cannot filter changes by replication origin", slotname),
			 errdetail("The slot does not use output plugin \"%s\": it was created by hand, or before the publisher was a KrahoDB server.",
					   KDB_OUTPUT_PLUGIN),
			 errhint("Drop and create the subscription, or set \"origin = any\" and \"filter_origins = none\".")));
}

/* It may have become so since the subscription was made: no reason to stop. */
static void
report_uncompressed(const KdbStreamStart *start)
{
	ereport(LOG,
			(errmsg("the stream of replication slot \"%s\" is not compressed", start->slotname),
			 errdetail("The option \"%s = %s\" needs a slot with output plugin \"%s\" on the publisher.",
					   "compression", KdbCompressionName(start->options->compression), KDB_OUTPUT_PLUGIN),
			 errhint("Drop and create the subscription with a KrahoDB server as publisher, or set \"compression = off\".")));
}

void
KdbStreamCheckSlot(WalReceiverConn *conn, const KdbPublisher *publisher,
				   const char *slotname, const KdbSubscriptionOptions *options)
{
	char	   *plugin = KdbStreamSlotPlugin(conn, slotname);

	if (plugin == NULL || strcmp(plugin, KDB_OUTPUT_PLUGIN) == 0)
		return;
	check_other_plugin(slotname, publisher, options);
	if (options->compression != KDB_COMPRESSION_OFF)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the stream of replication slot \"%s\" cannot be compressed", slotname),
				 errdetail("The slot does not use output plugin \"%s\".", KDB_OUTPUT_PLUGIN),
				 errhint("Have the subscription create its slot, or set \"compression = off\".")));
}

bool
KdbStreamStartReplication(WalReceiverConn *conn, const KdbStreamStart *start)
{
	KdbPublisher publisher;
	char	   *plugin;
	bool		krahodb_stream;
	StringInfoData cmd;
	WalRcvExecResult *result;

	KdbStreamIdentify(conn, &publisher);
	KdbStreamCheckNode(&publisher, start->options);
	plugin = KdbStreamSlotPlugin(conn, start->slotname);
	krahodb_stream = plugin != NULL && strcmp(plugin, KDB_OUTPUT_PLUGIN) == 0;

	initStringInfo(&cmd);
	appendStringInfoString(&cmd, "START_REPLICATION SLOT ");
	KdbAppendQuoted(&cmd, start->slotname, '"');
	appendStringInfo(&cmd, " LOGICAL %X/%X (", LSN_FORMAT_ARGS(start->startpoint));
	append_common_options(&cmd, start, krahodb_stream, publisher.server_version);
	if (krahodb_stream)
		append_krahodb_options(&cmd, start->options);
	else if (plugin != NULL)
	{
		check_other_plugin(start->slotname, &publisher, start->options);
		if (start->options->compression != KDB_COMPRESSION_OFF)
			report_uncompressed(start);
		if (start->options->origin == KDB_ORIGIN_NONE)
			appendStringInfoString(&cmd, ", origin 'none'");
	}
	appendStringInfoChar(&cmd, ')');

	result = walrcv_exec(conn, cmd.data, 0, NULL);
	if (result->status != WALRCV_OK_COPY_BOTH)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("could not start WAL streaming: %s",
						result->err ? result->err : "unexpected result")));
	walrcv_clear_result(result);
	pfree(cmd.data);
	return krahodb_stream;
}
