/*
 * fuzz_wire.c
 *		Any bytes may come down the connection: the decoder must stand them.
 *
 * The first byte of an input chooses: bit 0, inside a stream block; bit 1, the
 * rest is a frame of messages instead of one.  What is accepted is checked for
 * more than not crashing: each pointer of the message lies in the input, and
 * the message encodes to the bytes that it was read from.
 *
 * With libFuzzer (clang -fsanitize=fuzzer) this is a fuzzer; else see fuzz_main.h.
 */
#include "krahodb/wire.h"

#include "../unit/wire_encode.h"

#define INPUT_IN_STREAM	0x01
#define INPUT_FRAME		0x02

extern int	LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
require(bool condition)
{
	if (!condition)
		abort();
}

/* Is data[0 .. n] inside the message? */
static void
require_inside(const char *data, size_t n, const char *bytes, size_t len)
{
	require(data >= bytes && (size_t) (data - bytes) <= len &&
			n <= len - (size_t) (data - bytes));
}

static void
check_tuple(const KdbWireTuple *tuple, const char *bytes, size_t len)
{
	require(tuple->ncolumns >= 0 && tuple->ncolumns <= KDB_WIRE_MAX_COLUMNS);
	for (int i = 0; i < tuple->ncolumns; i++)
	{
		const KdbWireColumn *column = &tuple->columns[i];

		if (column->kind != 'n' && column->kind != 'u')
			require_inside(column->data, column->length, bytes, len);
		else
			require(column->data == NULL && column->length == 0);
	}
}

static void
check_row(const KdbWireMessage *message, const char *bytes, size_t len)
{
	if (message->u.row.old_kind != 0)
		check_tuple(&message->u.row.old_row, bytes, len);
	if (message->type != KDB_WIRE_DELETE)
		check_tuple(&message->u.row.new_row, bytes, len);
}

static void
check_same_bytes(const KdbWireMessage *message, const char *bytes, size_t len)
{
	wire_bytes	out = {0};

	wire_encode(&out, message);
	if (message->type == KDB_WIRE_HANDSHAKE &&
		message->u.handshake.protocol > KDB_WIRE_VERSION)
	{
		require(len >= out.len);	/* later protocols append to it */
		len = out.len;
	}
	require(out.len == len && memcmp(out.data, bytes, len) == 0);
	free(out.data);
}

static void
try_message(const char *bytes, size_t len, bool in_stream)
{
	static KdbWireBuffers buffers;
	KdbWireMessage message;
	KdbWireError error = {0, NULL};

	if (!KdbWireDecode(bytes, len, in_stream, &buffers, &message, &error))
	{
		require(error.what != NULL && error.offset <= len);
		return;
	}

	if (message.type == KDB_WIRE_INSERT || message.type == KDB_WIRE_UPDATE ||
		message.type == KDB_WIRE_DELETE)
		check_row(&message, bytes, len);
	check_same_bytes(&message, bytes, len);
}

static void
try_frame(const char *bytes, size_t len, bool in_stream)
{
	size_t		position = 0;
	const char *message;
	size_t		message_len;
	KdbWireError error;

	while (KdbWireFrameNext(bytes, len, &position, &message, &message_len, &error))
	{
		require(message_len > 0);
		require_inside(message, message_len, bytes, len);
		try_message(message, message_len, in_stream);
	}
	require(error.what != NULL || (position == len && len > 0));
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *bytes = (const char *) data + 1;
	bool		in_stream;

	if (size == 0)
		return 0;
	in_stream = (data[0] & INPUT_IN_STREAM) != 0;
	if ((data[0] & INPUT_FRAME) != 0)
		try_frame(bytes, size - 1, in_stream);
	else
		try_message(bytes, size - 1, in_stream);
	return 0;
}

#ifdef FUZZ_MAIN

#include "../unit/wire_golden.h"

#include "fuzz_main.h"

static void
put_hex(wire_bytes *out, const char *hex)
{
	for (; *hex != '\0'; hex += 2)
	{
		char		digits[3] = {hex[0], hex[1], '\0'};

		put_int(out, strtoul(digits, NULL, 16), 1);
	}
}

/* One seed for each message of a real pgoutput and for our own, and a frame of all of them. */
void
write_seeds(const char *directory)
{
	char		buf[KDB_WIRE_HANDSHAKE_SIZE];
	wire_bytes	handshake = {0};
	static const KdbSeenEntry entries[] = {{1, 2, 3}, {UINT64_MAX, 0, UINT64_MAX}};
	char		seen_buf[KDB_WIRE_SEEN_SIZE(2)];
	size_t		seen_len = KdbWireSeenWrite(seen_buf, entries, 2);
	wire_bytes	seen = {0};
	wire_bytes	frame = {0};
	size_t		len = KdbWireHandshakeWrite(buf, KDB_WIRE_VERSION, 100, 150020, 42, "UTF8");

	put_int(&handshake, 0, 1);
	put_bytes(&handshake, buf, len);
	write_seed(directory, "handshake", &handshake);

	put_int(&seen, 0, 1);
	put_bytes(&seen, seen_buf, seen_len);
	write_seed(directory, "seen", &seen);

	put_int(&frame, INPUT_FRAME, 1);
	put_int(&frame, len, KDB_WIRE_FRAME_PREFIX);
	put_bytes(&frame, buf, len);
	put_int(&frame, seen_len, KDB_WIRE_FRAME_PREFIX);
	put_bytes(&frame, seen_buf, seen_len);
	for (size_t i = 0; i < WIRE_GOLDENS; i++)
	{
		wire_bytes	seed = {0};
		char		name[32];

		put_int(&seed, wire_goldens[i].in_stream ? INPUT_IN_STREAM : 0, 1);
		put_hex(&seed, wire_goldens[i].hex);
		snprintf(name, sizeof(name), "pgoutput-%02zu", i);
		write_seed(directory, name, &seed);

		put_int(&frame, seed.len - 1, KDB_WIRE_FRAME_PREFIX);
		put_bytes(&frame, seed.data + 1, seed.len - 1);
		free(seed.data);
	}
	write_seed(directory, "frame", &frame);
	free(handshake.data);
	free(seen.data);
	free(frame.data);
}

#endif							/* FUZZ_MAIN */
