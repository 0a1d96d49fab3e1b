/*
 * frame.c
 *		From a payload of a KrahoDB stream to its messages' bytes.
 *
 * All frames of a stream are of one kind, which was asked for when it was started:
 * plain or compressed in one way.  A decompressor remembers the stream so far, so
 * it is one for the connection, and every payload goes through it, in order, also
 * those that are not applied.  Its memory is the library's own (malloc): about
 * 0.3 MB with lz4 and 0.7 MB with zstd, and the raw bytes of one frame.
 */
#include "postgres.h"

#include "apply_private.h"

static KdbDecompressor *decompressor = NULL;

void
KdbApplyFramesStart(KdbCompression compression)
{
	if (decompressor != NULL)
		KdbDecompressorFree(decompressor);
	decompressor = NULL;
	if (compression == KDB_COMPRESSION_OFF)
		return;
	decompressor = KdbDecompressorCreate(compression);
	if (decompressor == NULL)
		elog(ERROR, "out of memory for decompression of the stream");
}

/*
 * What follows the 'F' of a plain frame, to be stepped through with
 * KdbWireFrameNext.  *raw lives as long as the payload, and until the next call.
 * False, with *error set, if the payload is not a frame of this stream.
 */
bool
KdbApplyFrameOpen(const char *payload, size_t len, const char **raw, size_t *raw_len,
				  KdbWireError *error)
{
	if (decompressor != NULL)
		return KdbDecompress(decompressor, payload, len, raw, raw_len, error);
	if (len == 0 || payload[0] != KDB_WIRE_FRAME)
	{
		error->offset = 0;
		error->what = "not a frame";
		return false;
	}
	*raw = payload + 1;
	*raw_len = len - 1;
	return true;
}
