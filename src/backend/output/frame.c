/*
 * frame.c
 *		From messages to writes.
 *
 * To a client of pgoutput's protocol each message is one write.  A write costs
 * a system call, a look at the clock and a message of the frontend protocol,
 * which for a row is more than decoding it.  So a KrahoDB subscriber gets
 * frames: 'F', then messages with their lengths (wire.h).
 *
 * A frame is written out
 *	- when a message that ends a transaction, a prepared transaction or a part of
 *	  a streamed one, or a message outside of transactions (KDB_MESSAGE_FINAL), finds
 *	  nothing more to decode; else it waits for more such, see hold.c;
 *	- behind any change, when it has reached FRAME_SIZE.
 *
 * A frame is never cut between the messages of one change, and it carries the
 * greatest log position of its messages.  That is the position of a change, or of
 * the end of a transaction, as with pgoutput.
 *
 * Errors: decoding a transaction that is still in progress can meet its
 * concurrent abort anywhere, also while a message is being written.  The engine
 * then goes on with STREAM STOP or PREPARE.  The part of a message that was
 * written is not counted in "complete", and the next message overwrites it.
 * After other errors the session's memory is gone.
 *
 * Memory: the buffer holds less than FRAME_SIZE bytes when a change starts, so
 * its limit is FRAME_SIZE plus the messages of one change.  When it has grown
 * above FRAME_KEEP for a large row, it is given back with the write.  A compressed
 * stream takes about 0.3 MB (lz4) or 1.5 MB (zstd) more, see compress.c.
 */
#include "postgres.h"

#include "krahodb/wire.h"
#include "output_private.h"

#define FRAME_SIZE		(64 * 1024)
#define FRAME_KEEP		(1024 * 1024)

static const char no_length[KDB_WIRE_FRAME_PREFIX] = {0};

static void
free_compressor(void *arg)
{
	KdbCompressorFree(arg);
}

/* Its memory is the library's own, and goes with the session's. */
static KdbCompressor *
make_compressor(LogicalDecodingContext *ctx, KdbCompression compression)
{
	MemoryContextCallback *callback = MemoryContextAlloc(ctx->context, sizeof(*callback));
	KdbCompressor *compressor = KdbCompressorCreate(compression);

	if (compressor == NULL)
		elog(ERROR, "out of memory for compression of the stream");
	callback->func = free_compressor;
	callback->arg = compressor;
	MemoryContextRegisterResetCallback(ctx->context, callback);
	return compressor;
}

/* Prepare an empty frame; called in ctx->context. */
void
KdbFrameInit(LogicalDecodingContext *ctx, KdbOutput *output)
{
	KdbFrame   *frame = &output->frame;

	initStringInfo(&frame->buffer);
	frame->complete = 0;
	frame->handshake_pending = true;
	if (!output->parameters.framed)
		return;
	if (output->parameters.compression != KDB_COMPRESSION_OFF)
		frame->compressor = make_compressor(ctx, output->parameters.compression);
	KdbHoldInit(ctx, frame);
}

static void
start_frame_message(KdbFrame *frame)
{
	frame->message_start = frame->buffer.len;
	appendBinaryStringInfo(&frame->buffer, no_length, KDB_WIRE_FRAME_PREFIX);
}

static void
end_frame_message(KdbFrame *frame)
{
	int			length = frame->buffer.len - frame->message_start - KDB_WIRE_FRAME_PREFIX;

	KdbWireFrameSetLength(frame->buffer.data + frame->message_start, length);
}

static void
start_frame(KdbFrame *frame)
{
	appendStringInfoCharMacro(&frame->buffer, KDB_WIRE_FRAME);
	if (frame->handshake_pending)
	{
		start_frame_message(frame);
		KdbAppendHandshake(&frame->buffer);
		end_frame_message(frame);
	}
}

static void
append_payload(KdbFrame *frame, StringInfo out)
{
	const char *raw = frame->buffer.data + 1;
	size_t		len = frame->complete - 1;
	size_t		written;

	if (frame->compressor == NULL)
	{
		appendBinaryStringInfo(out, frame->buffer.data, frame->complete);
		return;
	}
	enlargeStringInfo(out, KdbCompressBound(frame->compressor, len));
	written = KdbCompress(frame->compressor, raw, len, out->data + out->len);
	if (written == 0)
		elog(ERROR, "could not compress %zu bytes of the stream", len);
	out->len += written;
	out->data[out->len] = '\0';
}

/*
 * Append the payload of the frame, which has messages, to out, and begin a new
 * one.  The frame must not be there twice if writing it meets an error.
 */
void
KdbFrameTake(LogicalDecodingContext *ctx, KdbFrame *frame, StringInfo out)
{
	append_payload(frame, out);
	frame->handshake_pending = false;
	frame->complete = 0;
	frame->lsn = InvalidXLogRecPtr;
	frame->held = false;
	if (frame->buffer.maxlen > FRAME_KEEP)
	{
		MemoryContext old = MemoryContextSwitchTo(ctx->context);

		pfree(frame->buffer.data);
		initStringInfo(&frame->buffer);
		MemoryContextSwitchTo(old);
	}
}

/* The engine's way: it waits until the client takes it. */
static void
write_frame(LogicalDecodingContext *ctx, KdbFrame *frame)
{
	ctx->write_location = frame->lsn;
	OutputPluginPrepareWrite(ctx, true);
	KdbFrameTake(ctx, frame, ctx->out);
	OutputPluginWrite(ctx, true);
}

/* Where to write the next message; lasts until KdbMessageEnd. */
StringInfo
KdbMessageStart(LogicalDecodingContext *ctx, KdbMessagePosition position)
{
	KdbOutput  *output = KdbOutputOf(ctx);
	KdbFrame   *frame = &output->frame;

	if (!output->parameters.framed)
	{
		OutputPluginPrepareWrite(ctx, position != KDB_MESSAGE_INNER);
		return ctx->out;
	}

	frame->buffer.len = frame->complete;
	if (frame->complete == 0)
		start_frame(frame);
	start_frame_message(frame);
	return &frame->buffer;
}

/* End the message that was started with the same position. */
void
KdbMessageEnd(LogicalDecodingContext *ctx, KdbMessagePosition position)
{
	KdbOutput  *output = KdbOutputOf(ctx);
	KdbFrame   *frame = &output->frame;

	if (!output->parameters.framed)
	{
		OutputPluginWrite(ctx, position != KDB_MESSAGE_INNER);
		return;
	}

	end_frame_message(frame);
	frame->complete = frame->buffer.len;
	frame->lsn = Max(frame->lsn, ctx->write_location);
	if (position == KDB_MESSAGE_INNER)
		return;
	if (frame->complete >= FRAME_SIZE ||
		(position == KDB_MESSAGE_FINAL && !KdbHoldFrame(ctx, frame)))
		write_frame(ctx, frame);
}
