/*
 * fuzz_compress.c
 *		Any payload may come in a compressed stream: the decompressor must stand them,
 *		and what it gives out is read as frames.
 *
 * The first byte of an input chooses: bit 0, zstd instead of lz4; bit 1, the rest is
 * raw bytes to be compressed and decompressed.  Else the rest is payloads, each
 * behind its length in two bytes, of one stream.
 */
#include "krahodb/compress.h"

#include <string.h>

#include "../unit/wire_encode.h"

#define INPUT_ZSTD		0x01
#define INPUT_RAW		0x02

extern int	LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
require(bool condition)
{
	if (!condition)
		abort();
}

/* Reads every byte that was given out: as messages as far as it goes, and then all. */
static void
read_raw(const char *raw, size_t len)
{
	static KdbWireBuffers buffers;
	static volatile unsigned char sum;
	KdbWireMessage message;
	KdbWireError error;
	size_t		position = 0;
	const char *bytes;
	size_t		bytes_len;

	require(len >= 1 && len <= KDB_WIRE_MAX_RAW);
	while (KdbWireFrameNext(raw, len, &position, &bytes, &bytes_len, &error))
		(void) KdbWireDecode(bytes, bytes_len, false, &buffers, &message, &error);
	for (size_t i = 0; i < len; i++)
		sum = sum ^ (unsigned char) raw[i];
	(void) sum;
}

static void
try_payloads(KdbCompression compression, const char *data, size_t size)
{
	KdbDecompressor *decompressor = KdbDecompressorCreate(compression);
	bool		accepted = true;

	require(decompressor != NULL);
	while (accepted && size >= 2)
	{
		size_t		len = ((size_t) (unsigned char) data[0] << 8) | (unsigned char) data[1];
		const char *raw;
		size_t		raw_len;
		KdbWireError error = {0, NULL};

		data += 2;
		size -= 2;
		if (len > size)
			len = size;
		accepted = KdbDecompress(decompressor, data, len, &raw, &raw_len, &error);
		require(accepted == (error.what == NULL) && error.offset <= len);
		if (accepted)
			read_raw(raw, raw_len);
		data += len;
		size -= len;
	}
	KdbDecompressorFree(decompressor);
}

/* Frames of one to 256 bytes: the first byte of each says how many. */
static void
try_raw(KdbCompression compression, const char *data, size_t size)
{
	KdbCompressor *compressor = KdbCompressorCreate(compression);
	KdbDecompressor *decompressor = KdbDecompressorCreate(compression);

	require(compressor != NULL && decompressor != NULL);
	while (size > 0)
	{
		size_t		len = (size_t) (unsigned char) data[0] + 1;
		char	   *payload;
		size_t		payload_len;
		const char *raw;
		size_t		raw_len;
		KdbWireError error;

		if (len > size)
			len = size;
		payload = malloc(KdbCompressBound(compressor, len));
		payload_len = KdbCompress(compressor, data, len, payload);
		require(payload_len > 0 && payload_len <= KdbCompressBound(compressor, len));
		require(KdbDecompress(decompressor, payload, payload_len, &raw, &raw_len, &error));
		require(raw_len == len && memcmp(raw, data, len) == 0);
		free(payload);
		data += len;
		size -= len;
	}
	KdbCompressorFree(compressor);
	KdbDecompressorFree(decompressor);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	KdbCompression compression;

	if (size == 0)
		return 0;
	compression = (data[0] & INPUT_ZSTD) != 0 ? KDB_COMPRESSION_ZSTD : KDB_COMPRESSION_LZ4;
	if ((data[0] & INPUT_RAW) != 0)
		try_raw(compression, (const char *) data + 1, size - 1);
	else
		try_payloads(compression, (const char *) data + 1, size - 1);
	return 0;
}

#ifdef FUZZ_MAIN

#include "fuzz_main.h"

static void
put_payload(wire_bytes *seed, KdbCompressor *compressor, const char *raw, size_t len)
{
	char	   *payload = malloc(KdbCompressBound(compressor, len));
	size_t		payload_len = KdbCompress(compressor, raw, len, payload);

	put_int(seed, payload_len, 2);
	put_bytes(seed, payload, payload_len);
	free(payload);
}

/* Frames of a row and of its repetitions, of one byte, and of more than a block. */
static void
write_stream(const char *directory, KdbCompression compression)
{
	static const char row[] = "\0\0\0\x1fI\0\0@\1N\0\2b\0\0\0\4\0\0\0\1t\0\0\0\x0bhello hello";
	KdbCompressor *compressor = KdbCompressorCreate(compression);
	wire_bytes	stream = {0};
	wire_bytes	raw = {0};
	size_t		large = KDB_WIRE_BLOCK + 1;
	char	   *zeros = calloc(1, large);
	char		name[32];

	put_int(&stream, compression == KDB_COMPRESSION_ZSTD ? INPUT_ZSTD : 0, 1);
	put_int(&raw, INPUT_RAW | (compression == KDB_COMPRESSION_ZSTD ? INPUT_ZSTD : 0), 1);
	for (int i = 0; i < 3; i++)
	{
		put_payload(&stream, compressor, row, sizeof(row) - 1);
		put_bytes(&raw, row, sizeof(row) - 1);
	}
	put_payload(&stream, compressor, row, 1);
	put_payload(&stream, compressor, zeros, large);
	put_payload(&stream, compressor, row, sizeof(row) - 1);

	snprintf(name, sizeof(name), "stream-%s", KdbCompressionName(compression));
	write_seed(directory, name, &stream);
	snprintf(name, sizeof(name), "raw-%s", KdbCompressionName(compression));
	write_seed(directory, name, &raw);
	KdbCompressorFree(compressor);
	free(zeros);
	free(stream.data);
	free(raw.data);
}

void
write_seeds(const char *directory)
{
	write_stream(directory, KDB_COMPRESSION_LZ4);
	write_stream(directory, KDB_COMPRESSION_ZSTD);
}

#endif							/* FUZZ_MAIN */
