/*
 * test_compress.c
 *		Compressed frames: what goes in comes out, and nothing else gets through.
 *
 * A stream of frames is compressed and decompressed; then each payload is cut at
 * every byte, changed at random, repeated, left out.  AddressSanitizer watches,
 * with payloads in blocks of exact size.  What is accepted after a change must
 * still be as long as it says; whether its bytes are right no decompressor can
 * tell, and the decoder of messages looks at them next.
 */
#include "krahodb/compress.h"

#include <string.h>
#include <zstd.h>

#include "tap.h"
#include "compress_golden.h"

#define MAX_FRAME	(300 * 1000)
#define NFRAMES		60
#define FULL_FRAME	1024		/* just the size of the decompressor's first buffer */

typedef struct Payload
{
	char	   *data;
	size_t		len;
} Payload;

typedef struct Frame
{
	char	   *raw;
	size_t		len;
	Payload		payload;
} Frame;

static uint64_t sum = 0;		/* of what was given out, so that it is read */

/* Bytes as of rows, which repeat, or of nothing. */
static void
fill(char *raw, size_t len, bool random)
{
	static const char row[] = "U....N...b....1234b....0000t....                              C........";

	for (size_t i = 0; i < len; i++)
	{
		bool		row_byte = !random && random_u64() % 20 != 0;

		raw[i] = row_byte ? row[i % (sizeof(row) - 1)] : (char) random_u64();
	}
}

static Payload
compress(KdbCompressor *compressor, const char *raw, size_t len)
{
	char	   *out = malloc(KdbCompressBound(compressor, len));
	Payload		payload;

	payload.len = KdbCompress(compressor, raw, len, out);
	payload.data = malloc(payload.len + 1);
	memcpy(payload.data, out, payload.len);
	free(out);
	return payload;
}

static void
make_stream(KdbCompression compression, Frame *frames)
{
	KdbCompressor *compressor = KdbCompressorCreate(compression);
	size_t		raw = 0;
	size_t		small_raw = 0;
	size_t		small = 0;

	for (int i = 0; i < NFRAMES; i++)
	{
		Frame	   *frame = &frames[i];

		frame->len = i % 10 == 7 ? 1 + random_u64() % MAX_FRAME : 1 + random_u64() % 700;
		if (i == 0)
			frame->len = FULL_FRAME;
		frame->raw = malloc(frame->len);
		fill(frame->raw, frame->len, i % 10 == 3 || i % 20 == 7);
		frame->payload = compress(compressor, frame->raw, frame->len);
		raw += frame->len;
		if (i > 0 && i % 10 != 3 && i % 10 != 7)
		{
			small_raw += frame->len;
			small += frame->payload.len;
		}
	}
	KdbCompressorFree(compressor);
	ok(small * 2 < small_raw, "%s: small frames are compressed with what was before them: %zu to %zu",
	   KdbCompressionName(compression), small_raw, small);
}

static void
free_stream(Frame *frames)
{
	for (int i = 0; i < NFRAMES; i++)
	{
		free(frames[i].raw);
		free(frames[i].payload.data);
	}
}

/* Decompress a copy of exact size; what comes out must have the length claimed. */
static bool
try_payload(KdbDecompressor *decompressor, const char *data, size_t len, const char **raw, size_t *raw_len)
{
	char	   *copy = malloc(len + (len == 0));
	KdbWireError error = {0, NULL};
	bool		accepted;

	memcpy(copy, data, len);
	accepted = KdbDecompress(decompressor, copy, len, raw, raw_len, &error);
	free(copy);
	if (accepted != (error.what == NULL) || error.offset > len)
		return ok(false, "an error is reported as one");
	if (accepted)
		((char *) *raw)[*raw_len] = '\0'; /* as the server does */
	return accepted;
}

/* Frames up to n decompressed; NULL if one of them was not equal. */
static KdbDecompressor *
decompressor_behind(KdbCompression compression, const Frame *frames, int n)
{
	KdbDecompressor *decompressor = KdbDecompressorCreate(compression);

	for (int i = 0; i < n; i++)
	{
		const char *raw;
		size_t		len;

		if (!try_payload(decompressor, frames[i].payload.data, frames[i].payload.len, &raw, &len) ||
			len != frames[i].len || memcmp(raw, frames[i].raw, len) != 0)
		{
			KdbDecompressorFree(decompressor);
			return NULL;
		}
	}
	return decompressor;
}

static void
test_round_trip(KdbCompression compression, const Frame *frames)
{
	KdbDecompressor *decompressor = decompressor_behind(compression, frames, NFRAMES);

	if (ok(decompressor != NULL, "%s: all frames come back", KdbCompressionName(compression)))
		KdbDecompressorFree(decompressor);
}

static bool
accepted_behind(KdbCompression compression, const Frame *frames, int n, const char *data, size_t len)
{
	KdbDecompressor *decompressor = decompressor_behind(compression, frames, n);
	const char *raw;
	size_t		raw_len;
	bool		accepted = try_payload(decompressor, data, len, &raw, &raw_len);

	/* touches every byte that was given out */
	if (accepted)
		for (size_t i = 0; i < raw_len; i++)
			sum += (unsigned char) raw[i];
	KdbDecompressorFree(decompressor);
	return accepted;
}

static void
test_truncated(KdbCompression compression, const Frame *frames)
{
	int			accepted = 0;

	for (int n = 0; n < 3; n++)
	{
		for (size_t len = 0; len < frames[n].payload.len; len++)
			accepted += accepted_behind(compression, frames, n, frames[n].payload.data, len);
	}
	ok(accepted == 0, "%s: no truncated payload is accepted", KdbCompressionName(compression));
}

static void
test_mutated(KdbCompression compression, const Frame *frames)
{
	int			refused = 0;

	for (int round = 0; round < 5000; round++)
	{
		int			n = (int) (random_u64() % 7);
		const Payload *payload = &frames[n].payload;
		size_t		len = payload->len + random_u64() % 3;
		char	   *data = calloc(1, len);
		int			changes = 1 + (int) (random_u64() % 4);

		memcpy(data, payload->data, payload->len);
		for (int i = 0; i < changes; i++)
			data[random_u64() % len] = (char) random_u64();
		refused += !accepted_behind(compression, frames, n, data, len);
		free(data);
	}
	ok(refused > 1000, "%s: payloads changed at random do no harm (%d of 5000 refused)",
	   KdbCompressionName(compression), refused);
}

/* Of a stream, not just a payload: another kind, another place, more than it says. */
static void
test_stream(KdbCompression compression, const Frame *frames)
{
	const char *name = KdbCompressionName(compression);
	const Payload *payload = &frames[1].payload;
	char	   *data = malloc(payload->len + 1);

	memcpy(data, payload->data, payload->len);
	data[payload->len] = 0;
	/* to zstd it is the beginning of the next frame's first block */
	if (compression == KDB_COMPRESSION_LZ4)
		ok(!accepted_behind(compression, frames, 1, data, payload->len + 1), "%s: a byte too many", name);

	data[0] = compression == KDB_COMPRESSION_LZ4 ? KDB_WIRE_FRAME_ZSTD : KDB_WIRE_FRAME_LZ4;
	ok(!accepted_behind(compression, frames, 1, data, payload->len), "%s: the other library's frame", name);
	data[0] = KDB_WIRE_FRAME;
	ok(!accepted_behind(compression, frames, 1, data, payload->len), "%s: a plain frame", name);
	memcpy(data, payload->data, payload->len);

	memset(data + 1, 0, 4);
	ok(!accepted_behind(compression, frames, 1, data, payload->len), "%s: no raw bytes", name);
	memcpy(data + 1, "\x40\0\0\0", 4);
	ok(!accepted_behind(compression, frames, 1, data, payload->len), "%s: more raw bytes than allowed", name);
	memcpy(data + 1, "\x3f\xff\xff\xff", 4);
	ok(!accepted_behind(compression, frames, 1, data, payload->len), "%s: a claim of raw bytes that do not come", name);
	memcpy(data, payload->data, payload->len);
	data[4]--;
	ok(!accepted_behind(compression, frames, 1, data, payload->len), "%s: a raw byte more than was claimed", name);
	memcpy(data, payload->data, payload->len);
	data[4]++;
	ok(!accepted_behind(compression, frames, 1, data, payload->len), "%s: a raw byte less than was claimed", name);
	free(data);

	/* the same bytes with other history */
	if (compression == KDB_COMPRESSION_ZSTD)
		ok(!accepted_behind(compression, frames, 0, payload->data, payload->len),
		   "%s: not the beginning of the stream", name);
}

/* A zstd frame with this window, ended or not, as a payload. */
static Payload
zstd_payload(int window, ZSTD_EndDirective end)
{
	ZSTD_CCtx  *context = ZSTD_createCCtx();
	char		raw[100] = {0};
	Payload		payload = {malloc(1000), 5};
	ZSTD_inBuffer input = {raw, sizeof(raw), 0};
	ZSTD_outBuffer output = {payload.data + 5, 995, 0};

	memcpy(payload.data, "Z\0\0\0\x64", 5);
	ZSTD_CCtx_setParameter(context, ZSTD_c_windowLog, window);
	ZSTD_compressStream2(context, &output, &input, end);
	payload.len += output.pos;
	ZSTD_freeCCtx(context);
	return payload;
}

static void
test_zstd_frames(void)
{
	Payload		right = zstd_payload(KDB_WIRE_ZSTD_WINDOW, ZSTD_e_flush);
	Payload		large = zstd_payload(KDB_WIRE_ZSTD_WINDOW + 1, ZSTD_e_flush);
	Payload		ended = zstd_payload(KDB_WIRE_ZSTD_WINDOW, ZSTD_e_end);

	ok(accepted_behind(KDB_COMPRESSION_ZSTD, NULL, 0, right.data, right.len), "a window of the agreed size");
	ok(!accepted_behind(KDB_COMPRESSION_ZSTD, NULL, 0, large.data, large.len), "a larger window is refused");
	ok(!accepted_behind(KDB_COMPRESSION_ZSTD, NULL, 0, ended.data, ended.len), "an end of the zstd frame is refused");
	free(right.data);
	free(large.data);
	free(ended.data);
}

/* Golden payloads: two frames, the second one of nothing but history. */
static void
test_golden(KdbCompression compression, const char *first, size_t first_len,
			const char *second, size_t second_len)
{
	static const char text[] = "the same words, the same words, the same words again";
	KdbDecompressor *decompressor = KdbDecompressorCreate(compression);
	const char *raw;
	size_t		len;

	ok(try_payload(decompressor, first, first_len, &raw, &len) &&
	   len == sizeof(text) - 1 && memcmp(raw, text, len) == 0,
	   "%s: a golden payload", KdbCompressionName(compression));
	ok(try_payload(decompressor, second, second_len, &raw, &len) &&
	   len == sizeof(text) - 1 && memcmp(raw, text, len) == 0,
	   "%s: ... and its repetition", KdbCompressionName(compression));
	KdbDecompressorFree(decompressor);
}

/* A frame of several megabytes, and that its memory does not stay. */
static void
test_large(KdbCompression compression)
{
	size_t		len = 10 * 1000 * 1000;
	char	   *raw = malloc(len);
	KdbCompressor *compressor = KdbCompressorCreate(compression);
	KdbDecompressor *decompressor = KdbDecompressorCreate(compression);
	bool		equal = true;

	fill(raw, len, false);
	for (int i = 0; i < 4; i++)
	{
		size_t		n = i % 2 == 0 ? len : 100;
		Payload		payload = compress(compressor, raw, n);
		const char *got;
		size_t		got_len;

		equal &= try_payload(decompressor, payload.data, payload.len, &got, &got_len) &&
			got_len == n && memcmp(got, raw, n) == 0;
		free(payload.data);
	}
	ok(equal, "%s: large frames between small ones", KdbCompressionName(compression));
	KdbCompressorFree(compressor);
	KdbDecompressorFree(decompressor);
	free(raw);
}

static void
test_names(void)
{
	KdbCompression compression;

	ok(KdbCompressionFromName("lz4", &compression) && compression == KDB_COMPRESSION_LZ4 &&
	   KdbCompressionFromName("zstd", &compression) && compression == KDB_COMPRESSION_ZSTD &&
	   KdbCompressionFromName("off", &compression) && compression == KDB_COMPRESSION_OFF,
	   "names");
	ok(!KdbCompressionFromName("gzip", &compression) && !KdbCompressionFromName("", &compression), "no names");
}

int
main(void)
{
	random_init();
	test_names();
	for (KdbCompression compression = KDB_COMPRESSION_LZ4; compression <= KDB_COMPRESSION_ZSTD; compression++)
	{
		Frame		frames[NFRAMES];

		make_stream(compression, frames);
		test_round_trip(compression, frames);
		test_truncated(compression, frames);
		test_mutated(compression, frames);
		test_stream(compression, frames);
		test_large(compression);
		free_stream(frames);
	}
	test_zstd_frames();
	test_golden(KDB_COMPRESSION_LZ4, lz4_first, sizeof(lz4_first), lz4_second, sizeof(lz4_second));
	test_golden(KDB_COMPRESSION_ZSTD, zstd_first, sizeof(zstd_first), zstd_second, sizeof(zstd_second));
	return done_testing();
}
