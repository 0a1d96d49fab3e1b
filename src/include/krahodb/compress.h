/*
 * compress.h
 *		Compressed frames of a KrahoDB stream (doc/internals/wire.md).
 *
 * A stream whose subscriber asked for it carries its frames compressed, each one
 * with what was sent before it as a dictionary: the rows of small transactions
 * look like those of the transaction before, and like nothing within their own
 * frame.  So compressor and decompressor are states of one connection, and both
 * see the same frames in the same order.
 *
 *		'L' lz4:  uint32 raw length, then blocks { uint32 length, bytes } of
 *				  KDB_WIRE_BLOCK raw bytes each, the last one of what is left
 *		'Z' zstd: uint32 raw length, then bytes: a part of one endless zstd frame,
 *				  ended by a flush
 *
 * The raw bytes are what follows the 'F' of a plain frame.
 *
 * Pure C: no server calls.  Memory comes from malloc.
 */
#ifndef KRAHODB_COMPRESS_H
#define KRAHODB_COMPRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "krahodb/wire.h"

#define KDB_WIRE_FRAME_LZ4		'L'
#define KDB_WIRE_FRAME_ZSTD		'Z'

#define KDB_WIRE_BLOCK			(64 * 1024) /* raw bytes of an lz4 block, and its history */
#define KDB_WIRE_ZSTD_WINDOW	18	/* history of zstd: 2^18 bytes; larger is refused */
#define KDB_WIRE_MAX_RAW		0x3fffffff	/* raw bytes of a frame: no payload of the
											 * engine is larger */

typedef enum KdbCompression
{
	KDB_COMPRESSION_OFF,
	KDB_COMPRESSION_LZ4,
	KDB_COMPRESSION_ZSTD
} KdbCompression;

/* "off", "lz4" or "zstd", as options spell them; false for any other name. */
extern bool KdbCompressionFromName(const char *name, KdbCompression *compression);
extern const char *KdbCompressionName(KdbCompression compression);

typedef struct KdbCompressor KdbCompressor;
typedef struct KdbDecompressor KdbDecompressor;

/* Not for KDB_COMPRESSION_OFF.  NULL: out of memory. */
extern KdbCompressor *KdbCompressorCreate(KdbCompression compression);
extern void KdbCompressorFree(KdbCompressor *compressor);

/* How large the payload of len raw bytes can become. */
extern size_t KdbCompressBound(const KdbCompressor *compressor, size_t len);

/*
 * Compress the raw bytes of one frame (1 to KDB_WIRE_MAX_RAW) to a payload in out,
 * which has room for KdbCompressBound of it.  Returns the payload's length; 0 if
 * the library fails, after which the compressor is of no more use.
 */
extern size_t KdbCompress(KdbCompressor *compressor, const char *raw, size_t len, char *out);

extern KdbDecompressor *KdbDecompressorCreate(KdbCompression compression);
extern void KdbDecompressorFree(KdbDecompressor *decompressor);

/*
 * Decompress a payload.  *raw lies in memory of the decompressor and lives until
 * its next call; the byte behind it may be written until then.  Memory grows with what has been decompressed, not with what the
 * payload claims, and is given back above KDB_WIRE_KEEP_RAW by the next call.
 * Returns false, with *error set, for anything that is not exactly one frame of
 * this stream; the decompressor is of no more use then.
 */
#define KDB_WIRE_KEEP_RAW		(1024 * 1024)
extern bool KdbDecompress(KdbDecompressor *decompressor, const char *payload, size_t len,
						  const char **raw, size_t *raw_len, KdbWireError *error);

#endif							/* KRAHODB_COMPRESS_H */
