/*
 * compress.c
 *		Compressed frames: see compress.h.
 *
 * LZ4 finds what was there before in the 64 kB of raw bytes that lie directly in
 * front of those that it works on.  Both ends therefore keep the raw stream in a
 * buffer, one frame behind the other, and when its end is reached move the last
 * 64 kB to its beginning:
 *
 *		|<- history ->|<- this frame ->|        free        |
 *
 * ZSTD keeps its own window.  Its frame never ends: each of ours is ended by a
 * flush, after which the decompressor can give out everything.
 *
 * HOSTILE BYTES.  The decompressors of both libraries never write behind the room
 * that they are given, and never read behind their input.  What is checked here:
 *	- a block gives exactly the raw bytes that it has to, no more are waiting
 *	  inside the library, and no input is left over;
 *	- the raw length is limited, and memory is taken as raw bytes appear, so a
 *	  claim alone costs nothing (what a payload can really become is limited by
 *	  KDB_WIRE_MAX_RAW, as a plain frame is);
 *	- zstd's window is limited; its frame may not end, as another one could follow.
 */
#include "krahodb/compress.h"

#include <lz4.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#define HEADER_SIZE			(1 + 4) /* kind, raw length */
#define BLOCK_HEADER_SIZE	4
#define LZ4_ACCELERATION	1
#define ZSTD_LEVEL			1
#define BUFFER_SIZE			(4 * KDB_WIRE_BLOCK)	/* history and three blocks */
#define MIN_BUFFER_SIZE		1024

/* Raw bytes of the stream: the last ones, up to len. */
typedef struct RawBuffer
{
	char	   *data;
	size_t		len;
	size_t		size;
} RawBuffer;

struct KdbCompressor
{
	KdbCompression compression;
	RawBuffer	raw;			/* lz4 */
	LZ4_stream_t lz4;
	ZSTD_CCtx  *zstd;
};

struct KdbDecompressor
{
	KdbCompression compression;
	RawBuffer	raw;
	ZSTD_DCtx  *zstd;
};

static const char *const names[] = {
	[KDB_COMPRESSION_OFF] = "off",
	[KDB_COMPRESSION_LZ4] = "lz4",
	[KDB_COMPRESSION_ZSTD] = "zstd"
};

#define NNAMES	(sizeof(names) / sizeof(names[0]))

bool
KdbCompressionFromName(const char *name, KdbCompression *compression)
{
	for (size_t i = 0; i < NNAMES; i++)
	{
		if (strcmp(names[i], name) == 0)
		{
			*compression = (KdbCompression) i;
			return true;
		}
	}
	return false;
}

const char *
KdbCompressionName(KdbCompression compression)
{
	return names[compression];
}

static size_t
smaller(size_t a, size_t b)
{
	return a < b ? a : b;
}

static void
put_u32(char *p, uint32_t value)
{
	p[0] = (char) (value >> 24);
	p[1] = (char) (value >> 16);
	p[2] = (char) (value >> 8);
	p[3] = (char) value;
}

static uint32_t
get_u32(const char *data)
{
	const unsigned char *p = (const unsigned char *) data;

	return ((uint32_t) p[0] << 24) | ((uint32_t) p[1] << 16) |
		((uint32_t) p[2] << 8) | (uint32_t) p[3];
}

/* ---- the raw buffer ---- */

/* Keep the last 64 kB only. */
static void
raw_rewind(RawBuffer *raw)
{
	size_t		history = smaller(raw->len, KDB_WIRE_BLOCK);

	if (history > 0)
		memmove(raw->data, raw->data + raw->len - history, history);
	raw->len = history;
}

/* Room for n more bytes behind len: the buffer grows to twice its size at least. */
static bool
raw_reserve(RawBuffer *raw, size_t n)
{
	size_t		size = raw->size > 0 ? raw->size : MIN_BUFFER_SIZE;
	char	   *data;

	if (raw->size - raw->len >= n)
		return true;
	while (size - raw->len < n)
		size *= 2;
	data = realloc(raw->data, size);
	if (data == NULL)
		return false;
	raw->data = data;
	raw->size = size;
	return true;
}

/* Before a frame of n bytes, or of more than was believed. */
static void
raw_start_frame(RawBuffer *raw, size_t n)
{
	if (raw->size > KDB_WIRE_KEEP_RAW)
	{
		char	   *data;

		raw_rewind(raw);
		data = realloc(raw->data, BUFFER_SIZE);
		if (data != NULL)
		{
			raw->data = data;
			raw->size = BUFFER_SIZE;
		}
	}
	else if (raw->size - raw->len < n)
		raw_rewind(raw);
}

/* ---- compressing ---- */

static bool
init_zstd_compressor(KdbCompressor *compressor)
{
	compressor->zstd = ZSTD_createCCtx();
	return compressor->zstd != NULL &&
		!ZSTD_isError(ZSTD_CCtx_setParameter(compressor->zstd, ZSTD_c_compressionLevel, ZSTD_LEVEL)) &&
		!ZSTD_isError(ZSTD_CCtx_setParameter(compressor->zstd, ZSTD_c_windowLog, KDB_WIRE_ZSTD_WINDOW));
}

KdbCompressor *
KdbCompressorCreate(KdbCompression compression)
{
	KdbCompressor *compressor = calloc(1, sizeof(KdbCompressor));
	bool		done;

	if (compressor == NULL)
		return NULL;
	compressor->compression = compression;
	if (compression == KDB_COMPRESSION_LZ4)
		done = raw_reserve(&compressor->raw, BUFFER_SIZE) &&
			LZ4_initStream(&compressor->lz4, sizeof(compressor->lz4)) != NULL;
	else
		done = init_zstd_compressor(compressor);
	if (!done)
	{
		KdbCompressorFree(compressor);
		return NULL;
	}
	return compressor;
}

void
KdbCompressorFree(KdbCompressor *compressor)
{
	free(compressor->raw.data);
	ZSTD_freeCCtx(compressor->zstd);
	free(compressor);
}

size_t
KdbCompressBound(const KdbCompressor *compressor, size_t len)
{
	if (compressor->compression == KDB_COMPRESSION_LZ4)
		return HEADER_SIZE + (len / KDB_WIRE_BLOCK + 1) *
			(BLOCK_HEADER_SIZE + (size_t) LZ4_COMPRESSBOUND(KDB_WIRE_BLOCK));
	return HEADER_SIZE + ZSTD_compressBound(len) + ZSTD_CStreamOutSize();
}

/* One block behind the history; returns the bytes written, 0 if it failed. */
static size_t
compress_block(KdbCompressor *compressor, const char *block, size_t len, char *out)
{
	RawBuffer  *raw = &compressor->raw;
	int			written;

	if (raw->size - raw->len < len)
		raw->len = (size_t) LZ4_saveDict(&compressor->lz4, raw->data, KDB_WIRE_BLOCK);
	memcpy(raw->data + raw->len, block, len);
	written = LZ4_compress_fast_continue(&compressor->lz4, raw->data + raw->len,
										 out + BLOCK_HEADER_SIZE, (int) len,
										 LZ4_COMPRESSBOUND(KDB_WIRE_BLOCK), LZ4_ACCELERATION);
	if (written <= 0)
		return 0;
	raw->len += len;
	put_u32(out, (uint32_t) written);
	return BLOCK_HEADER_SIZE + (size_t) written;
}

static size_t
compress_lz4(KdbCompressor *compressor, const char *raw, size_t len, char *out)
{
	size_t		written = 0;

	for (size_t done = 0; done < len; done += KDB_WIRE_BLOCK)
	{
		size_t		n = compress_block(compressor, raw + done,
									   smaller(len - done, KDB_WIRE_BLOCK), out + written);

		if (n == 0)
			return 0;
		written += n;
	}
	return written;
}

static size_t
compress_zstd(KdbCompressor *compressor, const char *raw, size_t len, char *out, size_t room)
{
	ZSTD_inBuffer input = {raw, len, 0};
	ZSTD_outBuffer output = {out, room, 0};
	size_t		left;

	do
	{
		size_t		before = output.pos;

		left = ZSTD_compressStream2(compressor->zstd, &output, &input, ZSTD_e_flush);
		if (ZSTD_isError(left) || (left > 0 && output.pos == before))
			return 0;
	} while (left > 0);
	return output.pos;
}

size_t
KdbCompress(KdbCompressor *compressor, const char *raw, size_t len, char *out)
{
	bool		lz4 = compressor->compression == KDB_COMPRESSION_LZ4;
	size_t		written;

	out[0] = lz4 ? KDB_WIRE_FRAME_LZ4 : KDB_WIRE_FRAME_ZSTD;
	put_u32(out + 1, (uint32_t) len);
	if (lz4)
		written = compress_lz4(compressor, raw, len, out + HEADER_SIZE);
	else
		written = compress_zstd(compressor, raw, len, out + HEADER_SIZE,
								KdbCompressBound(compressor, len) - HEADER_SIZE);
	return written == 0 ? 0 : HEADER_SIZE + written;
}

/* ---- decompressing ---- */

static bool
refuse(KdbWireError *error, size_t offset, const char *what)
{
	error->offset = offset;
	error->what = what;
	return false;
}

KdbDecompressor *
KdbDecompressorCreate(KdbCompression compression)
{
	KdbDecompressor *decompressor = calloc(1, sizeof(KdbDecompressor));

	if (decompressor == NULL)
		return NULL;
	decompressor->compression = compression;
	if (compression != KDB_COMPRESSION_ZSTD)
		return decompressor;

	decompressor->zstd = ZSTD_createDCtx();
	if (decompressor->zstd == NULL ||
		ZSTD_isError(ZSTD_DCtx_setParameter(decompressor->zstd, ZSTD_d_windowLogMax,
											KDB_WIRE_ZSTD_WINDOW)))
	{
		KdbDecompressorFree(decompressor);
		return NULL;
	}
	return decompressor;
}

void
KdbDecompressorFree(KdbDecompressor *decompressor)
{
	free(decompressor->raw.data);
	ZSTD_freeDCtx(decompressor->zstd);
	free(decompressor);
}

static bool
decompress_block(RawBuffer *raw, const char *block, size_t len, size_t raw_len)
{
	size_t		history = smaller(raw->len, KDB_WIRE_BLOCK);
	char	   *end = raw->data + raw->len;
	int			n = LZ4_decompress_safe_usingDict(block, end, (int) len, (int) raw_len,
												  end - history, (int) history);

	if (n < 0 || (size_t) n != raw_len)
		return false;
	raw->len += raw_len;
	return true;
}

static bool
decompress_lz4(RawBuffer *raw, const char *payload, size_t len, size_t left, KdbWireError *error)
{
	size_t		pos = HEADER_SIZE;

	while (left > 0)
	{
		size_t		raw_block = smaller(left, KDB_WIRE_BLOCK);
		size_t		block;

		if (len - pos < BLOCK_HEADER_SIZE)
			return refuse(error, pos, "compressed frame ends too early");
		block = get_u32(payload + pos);
		if (block == 0 || block > len - pos - BLOCK_HEADER_SIZE ||
			block > (size_t) LZ4_COMPRESSBOUND(KDB_WIRE_BLOCK))
			return refuse(error, pos, "block length out of range");
		pos += BLOCK_HEADER_SIZE;
		if (!raw_reserve(raw, raw_block + 1))
			return refuse(error, pos, "out of memory");
		if (!decompress_block(raw, payload + pos, block, raw_block))
			return refuse(error, pos, "invalid lz4 data");
		pos += block;
		left -= raw_block;
	}
	return pos == len || refuse(error, pos, "bytes behind the end of a compressed frame");
}

/*
 * Behind the last raw byte one more is asked for, which must not come: nothing
 * may be left inside the library.
 */
static bool
decompress_zstd(KdbDecompressor *decompressor, const char *payload, size_t len, size_t left,
				KdbWireError *error)
{
	RawBuffer  *raw = &decompressor->raw;
	ZSTD_inBuffer input = {payload + HEADER_SIZE, len - HEADER_SIZE, 0};

	for (;;)
	{
		size_t		room = smaller(left, KDB_WIRE_BLOCK) + 1;
		ZSTD_outBuffer output = {NULL, room, 0};
		size_t		consumed = input.pos;
		size_t		result;

		if (!raw_reserve(raw, room))
			return refuse(error, HEADER_SIZE + input.pos, "out of memory");
		output.dst = raw->data + raw->len;
		result = ZSTD_decompressStream(decompressor->zstd, &output, &input);
		if (ZSTD_isError(result) || result == 0)
			return refuse(error, HEADER_SIZE + input.pos, "invalid zstd data");
		if (output.pos > left)
			return refuse(error, HEADER_SIZE + input.pos, "raw length out of range");
		raw->len += output.pos;
		left -= output.pos;
		if (output.pos == 0 && input.pos == consumed)
			break;
	}
	if (left > 0 || input.pos < input.size)
		return refuse(error, HEADER_SIZE + input.pos, "compressed frame ends too early");
	return true;
}

bool
KdbDecompress(KdbDecompressor *decompressor, const char *payload, size_t len,
			  const char **raw, size_t *raw_len, KdbWireError *error)
{
	RawBuffer  *buffer = &decompressor->raw;
	bool		lz4 = decompressor->compression == KDB_COMPRESSION_LZ4;
	size_t		start;
	size_t		claimed;

	error->what = NULL;
	if (len < HEADER_SIZE || payload[0] != (lz4 ? KDB_WIRE_FRAME_LZ4 : KDB_WIRE_FRAME_ZSTD))
		return refuse(error, 0, "not a compressed frame");
	claimed = get_u32(payload + 1);
	if (claimed == 0 || claimed > KDB_WIRE_MAX_RAW)
		return refuse(error, 1, "raw length out of range");

	raw_start_frame(buffer, claimed + 1);
	start = buffer->len;
	if (!(lz4 ? decompress_lz4(buffer, payload, len, claimed, error) :
		  decompress_zstd(decompressor, payload, len, claimed, error)))
		return false;
	*raw = buffer->data + start;
	*raw_len = claimed;
	return true;
}
