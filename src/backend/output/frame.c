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
 *	- with each message that ends a transaction, a prepared transaction or a
 *	  part of a streamed one, and with each message outside of transactions
 *	  (KDB_MESSAGE_FINAL).  The engine calls the plugin only between BEGIN and
 *	  such a message, or for a single one; therefore nothing is ever left in
 *	  the frame when the walsender idles or ends in order;
 *	- between two changes, when it has reached FRAME_SIZE.
 *
 * A frame is never cut between the messages of one change, and it carries the
 * log position of its last message.  That is the position of a change, or of
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
 * above FRAME_KEEP for a large row, it is given back with the write.
 */
#include "postgres.h"

#include "krahodb/wire.h"
#include "output_private.h"

#define FRAME_SIZE		(64 * 1024)
#define FRAME_KEEP		(1024 * 1024)

static const char no_length[KDB_WIRE_FRAME_PREFIX] = {0};

/* Prepare an empty frame; the buffer is in the current memory context. */
void
KdbFrameInit(KdbFrame *frame)
{
	initStringInfo(&frame->buffer);
	frame->complete = 0;
	frame->handshake_pending = true;
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
write_frame(LogicalDecodingContext *ctx, KdbFrame *frame)
{
	OutputPluginPrepareWrite(ctx, true);
	appendBinaryStringInfo(ctx->out, frame->buffer.data, frame->buffer.len);

	/* The frame must not be there twice if the write meets an error. */
	frame->handshake_pending = false;
	frame->complete = 0;
	if (frame->buffer.maxlen > FRAME_KEEP)
	{
		MemoryContext old = MemoryContextSwitchTo(ctx->context);

		pfree(frame->buffer.data);
		initStringInfo(&frame->buffer);
		MemoryContextSwitchTo(old);
	}
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
	if (position == KDB_MESSAGE_FINAL ||
		(position == KDB_MESSAGE_LAST && frame->complete >= FRAME_SIZE))
		write_frame(ctx, frame);
}
