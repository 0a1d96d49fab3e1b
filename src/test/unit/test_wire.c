/*
 * test_wire.c
 *		The decoder reads what publishers write, and refuses everything else.
 *
 * Each message is decoded from a block of exactly its length, so that
 * AddressSanitizer sees a read behind its end.  What was decoded is encoded again
 * and must give the same bytes.  Messages are those of a real pgoutput (wire_golden.h), and
 * of our own making where a value matters or a stock publisher of version 15
 * does not write them.
 */
#include "krahodb/wire.h"

#include "tap.h"
#include "wire_encode.h"
#include "wire_golden.h"

#define MUTATIONS_PER_MESSAGE	20000

static KdbWireBuffers buffers;
static KdbWireMessage message;
static KdbWireError error;

/* Decode from an exact copy, which stays until the next call. */
static bool
decode(const char *data, size_t len, bool in_stream)
{
	static char *copy = NULL;

	free(copy);
	copy = malloc(len > 0 ? len : 1);
	if (copy == NULL)
		abort();
	memcpy(copy, data, len);
	error.what = NULL;
	return KdbWireDecode(len > 0 ? copy : copy + 1, len, in_stream, &buffers, &message, &error);
}

/*
 * Does the decoded message give these bytes again?  (Of a handshake of a later
 * protocol, all that we know of it.)
 */
static bool
encodes_to(const char *data, size_t len)
{
	wire_bytes	out = {0};
	bool		same;

	wire_encode(&out, &message);
	if (message.type == KDB_WIRE_HANDSHAKE &&
		message.u.handshake.protocol > KDB_WIRE_VERSION && len > out.len)
		len = out.len;
	same = out.len == len && memcmp(out.data, data, len) == 0;
	free(out.data);
	return same;
}

static bool
refused_with(const char *what)
{
	if (error.what != NULL && strcmp(error.what, what) == 0)
		return true;
	diag("expected \"%s\", got \"%s\"", what, error.what ? error.what : "(accepted)");
	return false;
}

static wire_bytes
from_hex(const char *hex)
{
	wire_bytes	out = {0};

	for (; *hex != '\0'; hex += 2)
	{
		char		digits[3] = {hex[0], hex[1], '\0'};

		put_int(&out, strtoul(digits, NULL, 16), 1);
	}
	return out;
}

/* ---- what every message must stand ---- */

static bool
every_truncation_refused(const wire_bytes *bytes, bool in_stream)
{
	for (size_t len = 0; len < bytes->len; len++)
	{
		/* The short form of a stream abort is the long one's beginning. */
		if (bytes->data[0] == KDB_WIRE_STREAM_ABORT && len == 9)
			continue;
		if (decode(bytes->data, len, in_stream) ||
			error.what == NULL || error.offset > len)
		{
			diag("at %zu of %zu bytes", len, bytes->len);
			return false;
		}
	}
	return true;
}

static bool
trailing_byte_refused(const wire_bytes *bytes, bool in_stream)
{
	wire_bytes	longer = {0};
	bool		refused;

	put_bytes(&longer, bytes->data, bytes->len);
	put_int(&longer, 0, 1);
	refused = !decode(longer.data, longer.len, in_stream);
	free(longer.data);
	return refused;
}

/* Change a few bytes: refused, or a message that encodes to just these bytes. */
static bool
mutations_handled(const wire_bytes *bytes, bool in_stream)
{
	char	   *mutant = malloc(bytes->len);
	bool		handled = true;

	if (mutant == NULL)
		abort();
	for (int i = 0; handled && i < MUTATIONS_PER_MESSAGE; i++)
	{
		memcpy(mutant, bytes->data, bytes->len);
		for (uint32_t n = 1 + random_below(3); n > 0; n--)
			mutant[random_below((uint32_t) bytes->len)] = (char) random_u64();
		if (decode(mutant, bytes->len, in_stream))
			handled = encodes_to(mutant, bytes->len);
		else
			handled = error.what != NULL && error.offset <= bytes->len;
	}
	free(mutant);
	return handled;
}

static void
test_message(const wire_bytes *bytes, bool in_stream, const char *name)
{
	bool		decoded = decode(bytes->data, bytes->len, in_stream);

	if (!ok(decoded && encodes_to(bytes->data, bytes->len), "%s: there and back", name))
		diag("%s at %zu", decoded ? "other bytes" : error.what, error.offset);
	ok(every_truncation_refused(bytes, in_stream), "%s: truncated anywhere", name);
	ok(trailing_byte_refused(bytes, in_stream), "%s: trailing byte", name);
	ok(mutations_handled(bytes, in_stream), "%s: mutated", name);
}

static void
test_goldens(void)
{
	for (size_t i = 0; i < WIRE_GOLDENS; i++)
	{
		wire_bytes	bytes = from_hex(wire_goldens[i].hex);
		char		name[64];

		snprintf(name, sizeof(name), "pgoutput's %c, sample %zu%s", bytes.data[0], i,
				 wire_goldens[i].in_stream ? " in a stream" : "");
		test_message(&bytes, wire_goldens[i].in_stream, name);
		free(bytes.data);
	}
}

/* Every type of pgoutput came by; our own are tested below. */
static void
test_goldens_complete(void)
{
	static const char types[] = "BCORYIUDTMbPKrSEcAp";
	char		missing[sizeof(types)] = "";

	for (const char *type = types; *type != '\0'; type++)
	{
		bool		found = false;

		for (size_t i = 0; i < WIRE_GOLDENS; i++)
		{
			wire_bytes	bytes = from_hex(wire_goldens[i].hex);

			found |= bytes.data[0] == *type;
			free(bytes.data);
		}
		if (!found)
			strncat(missing, type, 1);
	}
	ok(missing[0] == '\0', "pgoutput samples of each message type, missing: \"%s\"", missing);
}

/* ---- values ---- */

static bool
column_is(const KdbWireColumn *column, char kind, const char *data)
{
	return column->kind == kind && column->length == strlen(data) &&
		memcmp(column->data, data, column->length) == 0;
}

/* Fields of some real messages, as the server's tables were known to be. */
static void
test_values(void)
{
	wire_bytes	bytes;

	/* update t set m = 'sad' where id = 1, with an unchanged toasted column */
	bytes = from_hex("55000040054e00047400000001317574000000037361647400000004312e3530");
	ok(decode(bytes.data, bytes.len, false) && message.type == KDB_WIRE_UPDATE &&
	   message.stream_xid == 0 && message.u.row.relid == 16389 &&
	   message.u.row.old_kind == 0 && message.u.row.new_row.ncolumns == 4 &&
	   column_is(&message.u.row.new_row.columns[0], 't', "1") &&
	   message.u.row.new_row.columns[1].kind == 'u' &&
	   message.u.row.new_row.columns[1].data == NULL &&
	   column_is(&message.u.row.new_row.columns[2], 't', "sad") &&
	   column_is(&message.u.row.new_row.columns[3], 't', "1.50"), "update");
	free(bytes.data);

	/* update with the old key */
	bytes = from_hex("55000040054b00047400000001326e6e6e4e00047400000001336e6e6e");
	ok(decode(bytes.data, bytes.len, false) && message.u.row.old_kind == 'K' &&
	   message.u.row.old_row.ncolumns == 4 &&
	   column_is(&message.u.row.old_row.columns[0], 't', "2") &&
	   message.u.row.old_row.columns[3].kind == 'n' &&
	   column_is(&message.u.row.new_row.columns[0], 't', "3"), "update of a key");
	free(bytes.data);

	/* truncate t, f restart identity cascade */
	bytes = from_hex("540000000203000040050000400c");
	ok(decode(bytes.data, bytes.len, false) && message.u.truncate.nrelids == 2 &&
	   message.u.truncate.cascade && message.u.truncate.restart_seqs &&
	   KdbWireRelid(&message, 0) == 16389 && KdbWireRelid(&message, 1) == 16396, "truncate");
	free(bytes.data);

	/* create table f (a int, b text), replica identity full */
	bytes = from_hex("520000400c7075626c696300660066000201610000000017ffffffff01620000"
					 "000019ffffffff");
	ok(decode(bytes.data, bytes.len, false) && message.u.relation.relid == 16396 &&
	   strcmp(message.u.relation.nspname, "public") == 0 &&
	   strcmp(message.u.relation.relname, "f") == 0 &&
	   message.u.relation.replident == 'f' && message.u.relation.natts == 2 &&
	   message.u.relation.atts[0].key && strcmp(message.u.relation.atts[0].name, "a") == 0 &&
	   message.u.relation.atts[0].type == 23 && message.u.relation.atts[0].typmod == -1 &&
	   message.u.relation.atts[1].type == 25, "relation");
	free(bytes.data);

	/* pg_logical_emit_message(true, 'pfx', 'content') */
	bytes = from_hex("4d01000000000154bf887066780000000007636f6e74656e74");
	ok(decode(bytes.data, bytes.len, false) && message.u.message.transactional &&
	   message.u.message.lsn == 0x154bf88 && strcmp(message.u.message.prefix, "pfx") == 0 &&
	   message.u.message.length == 7 && memcmp(message.u.message.content, "content", 7) == 0,
	   "message");
	free(bytes.data);
}

static void
test_stream_abort(void)
{
	static const char *const with_info =
	"41000002a1000002a2" "00000000abcdef01" "0002000300040005";
	wire_bytes	bytes = from_hex(with_info);

	test_message(&bytes, false, "stream abort of protocol 4");
	ok(decode(bytes.data, bytes.len, false) && message.u.stream_abort.has_abort_info &&
	   message.u.stream_abort.xid == 0x2a1 && message.u.stream_abort.subxid == 0x2a2 &&
	   message.u.stream_abort.abort_lsn == 0xabcdef01 &&
	   message.u.stream_abort.abort_time == INT64_C(0x0002000300040005), "its values");
	ok(decode(bytes.data, 9, false) && !message.u.stream_abort.has_abort_info &&
	   message.u.stream_abort.subxid == 0x2a2, "the short form");
	free(bytes.data);
}

static void
test_handshake(void)
{
	char		buf[KDB_WIRE_HANDSHAKE_SIZE];
	char		long_name[KDB_WIRE_MAX_ENCODING + 2];
	wire_bytes	bytes = {0};

	put_bytes(&bytes, buf, KdbWireHandshakeWrite(buf, KDB_WIRE_VERSION, 100, 150020,
												 UINT64_C(0x0123456789abcdef), "UTF8"));
	test_message(&bytes, false, "handshake");
	ok(bytes.len == 25 && memcmp(bytes.data, "H\0\1\0\0\0\x64\0\2\x4a\x04"
								 "\x01\x23\x45\x67\x89\xab\xcd\xef" "\0\4UTF8", 25) == 0,
	   "its bytes");
	ok(decode(bytes.data, bytes.len, false) && message.u.handshake.protocol == KDB_WIRE_VERSION &&
	   message.u.handshake.krahodb_version == 100 && message.u.handshake.server_version == 150020 &&
	   message.u.handshake.node == UINT64_C(0x0123456789abcdef) &&
	   message.u.handshake.encoding_length == 4 &&
	   memcmp(message.u.handshake.encoding, "UTF8", 4) == 0, "its values");

	bytes.data[2] = 0;
	ok(!decode(bytes.data, bytes.len, false) && refused_with("invalid protocol version"),
	   "protocol 0");
	bytes.data[2] = KDB_WIRE_VERSION;
	bytes.data[22] = '\0';
	ok(!decode(bytes.data, bytes.len, false) && refused_with("zero byte in encoding name"),
	   "zero byte in the encoding's name");

	bytes.data[2] = KDB_WIRE_VERSION + 1;
	bytes.data[22] = 'U';
	put_bytes(&bytes, "more", 4);
	ok(decode(bytes.data, bytes.len, false) &&
	   message.u.handshake.protocol == KDB_WIRE_VERSION + 1 &&
	   message.u.handshake.krahodb_version == 100, "a later protocol says which one it is");
	free(bytes.data);

	memset(long_name, 'x', sizeof(long_name));
	long_name[sizeof(long_name) - 1] = '\0';
	ok(KdbWireHandshakeWrite(buf, 1, 1, 1, 1, long_name) == 0, "encoding name too long to send");
	ok(KdbWireHandshakeWrite(buf, 1, 1, 1, 1, long_name + 1) == KDB_WIRE_HANDSHAKE_SIZE,
	   "encoding name of the greatest length");
}

/* ---- limits ---- */

/* A tuple of n columns, all null, or a relation of n attributes. */
static wire_bytes
wide_message(char type, int n)
{
	wire_bytes	out = {0};

	put_bytes(&out, &type, 1);
	put_int(&out, 1, 4);
	if (type == 'R')
		put_bytes(&out, "s\0t\0d", 5);
	else
		put_bytes(&out, type == 'D' ? "O" : "N", 1);
	put_int(&out, (uint64_t) n, 2);
	for (int i = 0; i < n; i++)
	{
		if (type == 'R')
			put_bytes(&out, "\0c\0\0\0\0\x17\xff\xff\xff\xff", 11);
		else
			put_bytes(&out, "n", 1);
	}
	return out;
}

static void
test_column_limit(void)
{
	static const char types[] = "IUDR";

	for (const char *type = types; *type != '\0'; type++)
	{
		wire_bytes	most = wide_message(*type, KDB_WIRE_MAX_COLUMNS);
		wire_bytes	more = wide_message(*type, KDB_WIRE_MAX_COLUMNS + 1);

		ok(decode(most.data, most.len, false) && encodes_to(most.data, most.len),
		   "%c with the most columns", *type);
		ok(!decode(more.data, more.len, false) && refused_with("column count out of range"),
		   "%c with one more", *type);
		free(most.data);
		free(more.data);
	}
}

static void
test_relation_limit(void)
{
	wire_bytes	bytes = {0};

	put_bytes(&bytes, "T", 1);
	put_int(&bytes, KDB_WIRE_MAX_RELATIONS, 4);
	put_int(&bytes, 0, 1);
	for (int i = 0; i < KDB_WIRE_MAX_RELATIONS; i++)
		put_int(&bytes, (uint64_t) i, 4);
	ok(decode(bytes.data, bytes.len, false) &&
	   KdbWireRelid(&message, KDB_WIRE_MAX_RELATIONS - 1) == KDB_WIRE_MAX_RELATIONS - 1,
	   "truncate of the most relations");
	free(bytes.data);

	/* Four times this count is 4 in 32 bits. */
	bytes = from_hex("5440000001000000000a");
	ok(!decode(bytes.data, bytes.len, false) && refused_with("relation count out of range"),
	   "relation count that overflows");
	free(bytes.data);
}

static void
test_gid_limit(void)
{
	for (int len = KDB_WIRE_MAX_GID; len <= KDB_WIRE_MAX_GID + 1; len++)
	{
		wire_bytes	bytes = from_hex("62" "0000000000000001" "0000000000000002"
									 "0000000000000003" "00000004");

		for (int i = 0; i < len; i++)
			put_bytes(&bytes, "g", 1);
		put_int(&bytes, 0, 1);
		if (len <= KDB_WIRE_MAX_GID)
			ok(decode(bytes.data, bytes.len, false) && strlen(message.u.prepare.gid) == (size_t) len,
			   "identifier of the greatest length");
		else
			ok(!decode(bytes.data, bytes.len, false) &&
			   refused_with("transaction identifier is too long"), "identifier too long");
		free(bytes.data);
	}
}

/* ---- refusals ---- */

static const struct
{
	const char *hex;
	bool		in_stream;
	const char *what;
}			refusals[] = {
	{"", false, "message ends too early"},
	{"00", false, "unrecognized message type"},
	{"7a", false, "unrecognized message type"},
	{"ff", true, "unrecognized message type"},
	{"4900000001" "58" "0000", false, "new row expected"},
	{"4900000001" "4b" "0000", false, "new row expected"},
	{"5500000001" "4b0000" "4f0000", false, "new row expected"},
	{"4400000001" "4e0000", false, "old row expected"},
	{"4900000001" "4e0001" "78", false, "unrecognized column kind"},
	{"4400000001" "4b0001" "75", false, "unchanged column in an old row"},
	{"5500000001" "4f0001" "75" "4e0000", false, "unchanged column in an old row"},
	{"4900000001" "4e0001" "74" "ffffffff", false, "column length out of range"},
	{"4900000001" "4e0001" "62" "00000002" "aa", false, "column length out of range"},
	{"49" "00000000" "00000001" "4e0000", true, "invalid transaction ID"},
	{"5400000000" "04", false, "unrecognized flags"},
	{"5200000001" "0000" "78" "0000", false, "unrecognized replica identity"},
	{"5200000001" "0000" "00" "0000", false, "unrecognized replica identity"},
	{"5200000001" "0000" "64" "0001" "02" "00" "0000000000000000", false, "unrecognized flags"},
	{"5200000001" "6161", false, "string is not terminated"},
	{"4d" "02" "0000000000000001" "00" "00000000", false, "unrecognized flags"},
	{"4d" "00" "0000000000000001" "00" "00000001", false, "content length out of range"},
	{"42" "0000000000000000" "0000000000000001" "00000001", false, "final LSN is not set"},
	{"43" "01" "0000000000000001" "0000000000000001" "0000000000000001", false, "unrecognized flags"},
	{"62" "0000000000000000" "0000000000000001" "0000000000000001" "00000001" "00", false, "prepare LSN is not set"},
	{"62" "0000000000000001" "0000000000000000" "0000000000000001" "00000001" "00", false, "end LSN is not set"},
	{"62" "0000000000000001" "0000000000000001" "0000000000000001" "00000000" "00", false, "invalid transaction ID"},
	{"50" "01" "0000000000000001" "0000000000000001" "0000000000000001" "00000001" "00", false, "unrecognized flags"},
	{"4b" "00" "0000000000000000" "0000000000000001" "0000000000000001" "00000001" "00", false, "commit LSN is not set"},
	{"4b" "01" "0000000000000001" "0000000000000001" "0000000000000001" "00000001" "00", false, "unrecognized flags"},
	{"72" "00" "0000000000000000" "0000000000000001" "0000000000000001" "0000000000000001" "00000001" "00", false, "prepare end LSN is not set"},
	{"72" "00" "0000000000000001" "0000000000000000" "0000000000000001" "0000000000000001" "00000001" "00", false, "rollback end LSN is not set"},
	{"53" "00000000" "01", false, "invalid transaction ID"},
	{"53" "00000001" "02", false, "unrecognized flags"},
	{"63" "00000000" "00" "0000000000000001" "0000000000000001" "0000000000000001", false, "invalid transaction ID"},
	{"56" "0000", false, "entry count out of range"},
	{"56" "0002" "0000000000000001" "0000000000000000" "0000000000000000"
	"0000000000000001" "0000000000000000" "0000000000000000", false, "nodes are not in order"},
	{"56" "0001" "0000000000000001" "0000000000000002" "0000000000000001", false, "lower bound is above the upper one"},
	{"41" "00000001" "00000000", false, "invalid transaction ID"},
	{"41" "00000001" "00000001" "0000000000000001", false, "message length out of range"},
};

/* A seen vector of n entries. */
static wire_bytes
seen_message(int n)
{
	static KdbSeenEntry entries[KDB_WIRE_MAX_SEEN];
	static char buf[KDB_WIRE_SEEN_SIZE(KDB_WIRE_MAX_SEEN)];
	wire_bytes	out = {0};

	for (int i = 0; i < n; i++)
	{
		entries[i].node = UINT64_MAX - (uint64_t) (n - 1 - i) * 0x0102030405060708;
		entries[i].surely = (uint64_t) i << 33;
		entries[i].maybe = UINT64_MAX - (uint64_t) i;
	}
	put_bytes(&out, buf, KdbWireSeenWrite(buf, entries, (uint16_t) n));
	return out;
}

static void
test_seen(void)
{
	wire_bytes	bytes = seen_message(3);
	KdbSeenEntry entry;

	test_message(&bytes, false, "seen vector");
	free(bytes.data);

	bytes = from_hex("560002" "0000000000000000" "0000000000000001" "0000000000000001"
					 "00000000000000ff" "0000000000000000" "000000010000abcd");
	ok(decode(bytes.data, bytes.len, false) && message.type == KDB_WIRE_SEEN &&
	   message.u.seen.nentries == 2, "seen vector of two entries");
	entry = KdbWireSeenEntry(&message, 0);
	ok(entry.node == 0 && entry.surely == 1 && entry.maybe == 1, "... the first");
	entry = KdbWireSeenEntry(&message, 1);
	ok(entry.node == 255 && entry.surely == 0 && entry.maybe == 0x10000abcd, "... the second");
	free(bytes.data);
}

static void
test_seen_limit(void)
{
	wire_bytes	bytes = {0};

	put_bytes(&bytes, "V", 1);
	put_int(&bytes, KDB_WIRE_MAX_SEEN, 2);
	for (int i = 0; i < KDB_WIRE_MAX_SEEN + 1; i++)
	{
		put_int(&bytes, (uint64_t) i, 8);
		put_int(&bytes, 0, 8);
		put_int(&bytes, (uint64_t) i, 8);
	}
	bytes.len -= KDB_WIRE_SEEN_ENTRY_SIZE;
	ok(decode(bytes.data, bytes.len, false) && encodes_to(bytes.data, bytes.len),
	   "seen vector with the most entries");
	bytes.len += KDB_WIRE_SEEN_ENTRY_SIZE;
	bytes.data[1] = (KDB_WIRE_MAX_SEEN + 1) >> 8;
	bytes.data[2] = (KDB_WIRE_MAX_SEEN + 1) & 0xff;
	ok(!decode(bytes.data, bytes.len, false) && refused_with("entry count out of range"),
	   "seen vector with one more");
	free(bytes.data);
}

static void
test_refusals(void)
{
	for (size_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++)
	{
		wire_bytes	bytes = from_hex(refusals[i].hex);

		ok(!decode(bytes.data != NULL ? bytes.data : "", bytes.len, refusals[i].in_stream) &&
		   refused_with(refusals[i].what), "refused: \"%s\": %s", refusals[i].hex, refusals[i].what);
		free(bytes.data);
	}
}

/* Each of the 256 first bytes is a known type, or is refused as unknown. */
static void
test_types(void)
{
	static const char known[] = "HVBCORYIUDTMbPKrSEcAp";
	bool		right = true;

	for (int type = 0; type < 256; type++)
	{
		char		byte = (char) type;
		bool		unknown = type == 0 || strchr(known, type) == NULL;
		bool		accepted = decode(&byte, 1, false);

		if (type == KDB_WIRE_STREAM_STOP)
			right &= accepted;
		else
			right &= !accepted &&
				(strcmp(error.what, "unrecognized message type") == 0) == unknown;
	}
	ok(right, "each message type is known or refused");
}

/* ---- frames ---- */

/* Append a message to a frame, as the output plugin does. */
static void
put_framed(wire_bytes *frame, const char *data, size_t len)
{
	size_t		prefix = frame->len;

	put_int(frame, 0, KDB_WIRE_FRAME_PREFIX);
	put_bytes(frame, data, len);
	KdbWireFrameSetLength(frame->data + prefix, (uint32_t) len);
}

/* Messages in a frame of len bytes, -1 if it is malformed; from an exact copy. */
static int
count_framed(const char *data, size_t len)
{
	char	   *copy = malloc(len > 0 ? len : 1);
	const char *framed;
	size_t		framed_len;
	size_t		position = 0;
	size_t		sum = 0;
	int			count = 0;

	if (copy == NULL)
		abort();
	memcpy(copy, data, len);
	while (KdbWireFrameNext(copy, len, &position, &framed, &framed_len, &error))
	{
		for (size_t i = 0; i < framed_len; i++)
			sum += (unsigned char) framed[i];
		count++;
	}
	free(copy);
	if (error.what == NULL && position != len)
		return -2;
	return error.what == NULL && sum != SIZE_MAX ? count : -1;
}

static void
test_frames(void)
{
	wire_bytes	frame = {0};
	size_t		ends[3];
	bool		right = true;

	ok(count_framed("", 0) == -1 && refused_with("frame is empty"), "empty frame");

	put_framed(&frame, "E", 1);
	ends[0] = frame.len;
	put_framed(&frame, "some message", 12);
	ends[1] = frame.len;
	put_framed(&frame, "xyz", 3);
	ends[2] = frame.len;

	for (size_t len = 1; len <= frame.len; len++)
	{
		int			expected = len == ends[0] ? 1 : len == ends[1] ? 2 : len == ends[2] ? 3 : -1;

		right &= count_framed(frame.data, len) == expected;
	}
	ok(right, "a frame may end behind a message only");

	ok(count_framed("\0\0\0\0", KDB_WIRE_FRAME_PREFIX) == -1 && refused_with("message length out of range"),
	   "message of no bytes");
	KdbWireFrameSetLength(frame.data, UINT32_MAX);
	ok(count_framed(frame.data, frame.len) == -1 && refused_with("message length out of range"),
	   "message that is longer than the frame");
	free(frame.data);
}

int
main(void)
{
	random_init();
	test_goldens();
	test_goldens_complete();
	test_values();
	test_stream_abort();
	test_handshake();
	test_column_limit();
	test_relation_limit();
	test_gid_limit();
	test_seen();
	test_seen_limit();
	test_refusals();
	test_types();
	test_frames();
	return done_testing();
}
