/*
 * error.c
 *		The context line of every error, warning and log line of applying.
 *
 * It names the origin, the message, the target and the remote transaction, in
 * the engine's words, which monitoring scripts parse.  "finished at" is the LSN
 * that ALTER SUBSCRIPTION ... SKIP takes.
 */
#include "postgres.h"

#include "access/transam.h"
#include "apply_private.h"

KdbErrorContext KdbApplyErrorContext;

void
KdbApplyErrorSetTransaction(TransactionId xid, XLogRecPtr finish_lsn)
{
	KdbApplyErrorContext.remote_xid = xid;
	KdbApplyErrorContext.finish_lsn = finish_lsn;
}

/* Outside of any message again. */
void
KdbApplyErrorReset(void)
{
	KdbApplyErrorContext.command = 0;
	KdbApplyErrorContext.nspname = NULL;
	KdbApplyErrorContext.relname = NULL;
	KdbApplyErrorContext.attname = NULL;
	KdbApplyErrorSetTransaction(InvalidTransactionId, InvalidXLogRecPtr);
}

static void
context_without_relation(const KdbErrorContext *ctx)
{
	const char *command = KdbApplyMessageName(ctx->command);

	if (!TransactionIdIsValid(ctx->remote_xid))
		errcontext("processing remote data for replication origin \"%s\" during message type \"%s\"",
				   ctx->origin_name, command);
	else if (XLogRecPtrIsInvalid(ctx->finish_lsn))
		errcontext("processing remote data for replication origin \"%s\" during message type \"%s\" in transaction %u",
				   ctx->origin_name, command, ctx->remote_xid);
	else
		errcontext("processing remote data for replication origin \"%s\" during message type \"%s\" in transaction %u, finished at %X/%X",
				   ctx->origin_name, command, ctx->remote_xid,
				   LSN_FORMAT_ARGS(ctx->finish_lsn));
}

static void
context_with_relation(const KdbErrorContext *ctx)
{
	const char *command = KdbApplyMessageName(ctx->command);

	if (ctx->attname == NULL)
		errcontext("processing remote data for replication origin \"%s\" during message type \"%s\" for replication target relation \"%s.%s\" in transaction %u, finished at %X/%X",
				   ctx->origin_name, command, ctx->nspname, ctx->relname,
				   ctx->remote_xid, LSN_FORMAT_ARGS(ctx->finish_lsn));
	else
		errcontext("processing remote data for replication origin \"%s\" during message type \"%s\" for replication target relation \"%s.%s\" column \"%s\" in transaction %u, finished at %X/%X",
				   ctx->origin_name, command, ctx->nspname, ctx->relname, ctx->attname,
				   ctx->remote_xid, LSN_FORMAT_ARGS(ctx->finish_lsn));
}

/* An ErrorContextCallback. */
void
KdbApplyErrorCallback(void *arg)
{
	const KdbErrorContext *ctx = &KdbApplyErrorContext;

	if (ctx->command == 0)
		return;
	if (ctx->relname == NULL)
		context_without_relation(ctx);
	else
		context_with_relation(ctx);
}
