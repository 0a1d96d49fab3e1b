/*
 * plugin.c
 *		The output plugin krahodb_output: its callbacks, start and end.
 *
 * The plugin does what the engine's pgoutput does, and speaks its protocol
 * byte for byte to a client that does not ask for more; so a client cannot tell
 * the two apart, and PostgreSQL's own tests run against it.  A KrahoDB
 * subscriber gives the option "krahodb" and gets the same messages framed, with
 * a handshake first and values in binary where that is safe.  On top of both
 * there are the origin filters, which pgoutput of 15 lacks.
 *
 *	parameters.c	options of the client
 *	origin_filter.c changes of which origins are sent at all
 *	transaction.c	BEGIN to COMMIT, two-phase commit, progress
 *	streamed.c		transactions that are sent before they commit
 *	change.c		rows, TRUNCATE, logical messages
 *	relation_cache.c, publication.c, column_list.c, row_filter.c
 *					what of a relation is published, and as what
 *	schema.c		RELATION and TYPE messages
 *	row_write.c, value_format.c
 *					rows and values as bytes
 *	seen.c			what the writers had seen of other nodes
 *	frame.c, hold.c, handshake.c
 *					messages as writes
 *	decode_run.c	log records, several for a turn of the walsender's loop
 *
 * Memory: everything hangs below the decoding context and goes with it, also
 * when decoding ends with an error.  Per session: the frame (see frame.c), one
 * cache entry per relation that changes (relation_cache.c), and scratch memory
 * that is reset after each change.  Nothing grows with the length of a
 * transaction.
 */
#include "postgres.h"

#include "replication/logicalproto.h"
#include "utils/memutils.h"

#include "krahodb/datum_format.h"
#include "krahodb/output.h"
#include "output_private.h"

static void
check_protocol_version(const KdbOutputParameters *parameters)
{
	if (parameters->protocol_version > LOGICALREP_PROTO_MAX_VERSION_NUM)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("client sent proto_version=%d but we only support protocol %d or lower",
						parameters->protocol_version, LOGICALREP_PROTO_MAX_VERSION_NUM)));
	if (parameters->protocol_version < LOGICALREP_PROTO_MIN_VERSION_NUM)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("client sent proto_version=%d but we only support protocol %d or higher",
						parameters->protocol_version, LOGICALREP_PROTO_MIN_VERSION_NUM)));
}

/* Large transactions are streamed only to a client that asked for it. */
static void
negotiate_streaming(LogicalDecodingContext *ctx, const KdbOutputParameters *parameters)
{
	if (!parameters->streaming)
		ctx->streaming = false;
	else if (parameters->protocol_version < LOGICALREP_PROTO_STREAM_VERSION_NUM)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("requested proto_version=%d does not support streaming, need %d or higher",
						parameters->protocol_version, LOGICALREP_PROTO_STREAM_VERSION_NUM)));
	else if (!ctx->streaming)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("streaming requested, but not supported by output plugin")));
}

/*
 * The client may turn two-phase decoding on; a slot that has it on keeps it, so
 * not asking for it does not turn it off (the caller of the startup callback
 * combines both).  A client that compares the times of changes wants prepared
 * transactions with the time of their commit, so as ordinary ones, whatever the slot
 * has.
 */
static void
negotiate_two_phase(LogicalDecodingContext *ctx, const KdbOutputParameters *parameters)
{
	if (!parameters->two_phase)
		ctx->twophase_opt_given = false;
	else if (parameters->protocol_version < LOGICALREP_PROTO_TWOPHASE_VERSION_NUM)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("requested proto_version=%d does not support two-phase commit, need %d or higher",
						parameters->protocol_version, LOGICALREP_PROTO_TWOPHASE_VERSION_NUM)));
	else if (!ctx->twophase)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("two-phase commit requested, but not supported by output plugin")));
	else
		ctx->twophase_opt_given = true;
	if (parameters->prepared_at_commit)
		ctx->twophase = false;
}

/*
 * Startup callback.  is_init: a slot is being created, nothing will be sent.
 * Called in ctx->context, without a transaction in a walsender.
 */
static void
output_startup(LogicalDecodingContext *ctx, OutputPluginOptions *options, bool is_init)
{
	KdbOutput  *output = palloc0(sizeof(KdbOutput));

	ctx->output_plugin_private = output;
	options->output_type = OUTPUT_PLUGIN_BINARY_OUTPUT;

	if (is_init)
	{
		ctx->streaming = false;
		ctx->twophase = false;
		return;
	}

	KdbParseOutputParameters(ctx->output_plugin_options, &output->parameters);
	check_protocol_version(&output->parameters);
	if (output->parameters.publication_names == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("publication_names parameter missing")));
	output->parameters.datums = output->parameters.datum_format != NULL &&
		strcmp(output->parameters.datum_format, KdbDatumFormat()) == 0;
	negotiate_streaming(ctx, &output->parameters);
	negotiate_two_phase(ctx, &output->parameters);

	output->change_context = AllocSetContextCreate(ctx->context,
												   "krahodb output change",
												   ALLOCSET_DEFAULT_SIZES);
	KdbPublicationsInit(output, ctx->context);
	KdbRelationCacheInit(output, ctx->context);
	KdbRowWriterInit();
	KdbFrameInit(ctx, output);
	KdbDecodeRunInit(ctx);
	if (output->parameters.framed)
		KdbOutputSeenInit(ctx, output, ctx->context);
}

/* Fills the callbacks; see output.h. */
void
KdbOutputPluginInit(OutputPluginCallbacks *cb)
{
	cb->startup_cb = output_startup;
	cb->filter_by_origin_cb = KdbOutputFilterByOrigin;

	cb->begin_cb = KdbOutputBegin;
	cb->change_cb = KdbOutputChange;
	cb->truncate_cb = KdbOutputTruncate;
	cb->message_cb = KdbOutputMessage;
	cb->commit_cb = KdbOutputCommit;

	cb->begin_prepare_cb = KdbOutputBeginPrepare;
	cb->prepare_cb = KdbOutputPrepare;
	cb->commit_prepared_cb = KdbOutputCommitPrepared;
	cb->rollback_prepared_cb = KdbOutputRollbackPrepared;

	cb->stream_start_cb = KdbOutputStreamStart;
	cb->stream_stop_cb = KdbOutputStreamStop;
	cb->stream_abort_cb = KdbOutputStreamAbort;
	cb->stream_prepare_cb = KdbOutputStreamPrepare;
	cb->stream_commit_cb = KdbOutputStreamCommit;
	cb->stream_change_cb = KdbOutputChange;
	cb->stream_message_cb = KdbOutputMessage;
	cb->stream_truncate_cb = KdbOutputTruncate;
}
