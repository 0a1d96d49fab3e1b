/*
 * wire.c
 *		Reading the replication stream: every byte is hostile until checked.
 *
 * One pass over the message, without copies and without calls per value: this
 * runs for every row.  A reader holds the bytes that are left; each read_*
 * function asks once for the bytes of the fixed fields that follow, then takes
 * them without further checks.
 *
 * INVARIANTS
 *	- take_* is only called for bytes that has() has granted.
 *	- A read_* function that returns false has set the reader's error; nothing
 *	  that it left in the message may be used.
 *	- A message is accepted only if its last byte was read.  So whatever is
 *	  accepted has exactly one reading, and a publisher that says more than we
 *	  know is refused instead of half understood.  (Except the handshake of a
 *	  later protocol, which is read for its version only.)
 *	- Flags that we do not know are refused for the same reason.
 *
 * What is checked here is form, and the few values that the engine refuses on
 * sight as well (zero LSNs and transactions where there must be one).  Whether
 * a message may come at this place of the stream, and whether its relation is
 * known, is for the caller to check.
 */
#include "krahodb/wire.h"

#include <limits.h>
#include <string.h>

/* Flag bits, as the manual numbers them. */
#define ATTRIBUTE_IS_KEY		0x01
#define TRUNCATE_CASCADE		0x01
#define TRUNCATE_RESTART_SEQS	0x02
#define MESSAGE_TRANSACTIONAL	0x01

/* Bytes of an 'A' body up to protocol 3, and with protocol 4. */
#define STREAM_ABORT_SHORT		8
#define STREAM_ABORT_LONG		24

typedef struct reader
{
	const unsigned char *pos;
	const unsigned char *end;
	const char *what;			/* the error, or NULL */
} reader;

static bool
refuse(reader *r, const char *what)
{
	r->what = what;
	return false;
}

static inline size_t
bytes_left(const reader *r)
{
	return (size_t) (r->end - r->pos);
}

static inline bool
has(reader *r, size_t n)
{
	if (bytes_left(r) < n)
		return refuse(r, "message ends too early");
	return true;
}

static inline uint16_t
get_u16(const unsigned char *p)
{
	return (uint16_t) ((p[0] << 8) | p[1]);
}

static inline uint32_t
get_u32(const unsigned char *p)
{
	return ((uint32_t) p[0] << 24) | ((uint32_t) p[1] << 16) |
		((uint32_t) p[2] << 8) | (uint32_t) p[3];
}

static inline uint64_t
get_u64(const unsigned char *p)
{
	return ((uint64_t) get_u32(p) << 32) | get_u32(p + 4);
}

static inline uint8_t
take_u8(reader *r)
{
	return *r->pos++;
}

static inline uint16_t
take_u16(reader *r)
{
	uint16_t	value = get_u16(r->pos);

	r->pos += 2;
	return value;
}

static inline uint32_t
take_u32(reader *r)
{
	uint32_t	value = get_u32(r->pos);

	r->pos += 4;
	return value;
}

static inline uint64_t
take_u64(reader *r)
{
	uint64_t	value = get_u64(r->pos);

	r->pos += 8;
	return value;
}

/* A terminated string; *value points into the message. */
static bool
read_string(reader *r, const char **value)
{
	const unsigned char *nul = memchr(r->pos, '\0', bytes_left(r));

	if (nul == NULL)
		return refuse(r, "string is not terminated");
	*value = (const char *) r->pos;
	r->pos = nul + 1;
	return true;
}

static bool
read_gid(reader *r, const char **gid)
{
	const unsigned char *start = r->pos;

	if (!read_string(r, gid))
		return false;
	if (r->pos - start > KDB_WIRE_MAX_GID + 1)
		return refuse(r, "transaction identifier is too long");
	return true;
}

/* Refuse at pos. */
static bool
refuse_at(reader *r, const unsigned char *pos, const char *what)
{
	r->pos = pos;
	return refuse(r, what);
}

/* Of the kinds of a column. */
static const bool has_value[UCHAR_MAX + 1] = {['t'] = true, ['b'] = true, [KDB_WIRE_DATUM] = true};

/*
 * A tuple's columns.  Most of the stream's bytes pass through this loop; the
 * position is a local variable so that it stays in a register.
 */
static bool
read_tuple(reader *r, bool old, KdbWireColumn *columns, KdbWireTuple *tuple)
{
	const unsigned char *pos;
	const unsigned char *end = r->end;
	uint32_t	ncolumns;

	if (!has(r, 2))
		return false;
	ncolumns = take_u16(r);
	if (ncolumns > KDB_WIRE_MAX_COLUMNS)
		return refuse(r, "column count out of range");

	pos = r->pos;
	for (uint32_t i = 0; i < ncolumns; i++)
	{
		KdbWireColumn *column = &columns[i];
		char		kind;

		if (pos == end)
			return refuse_at(r, pos, "message ends too early");
		column->kind = kind = (char) *pos++;

		if (has_value[(unsigned char) kind])
		{
			uint32_t	length;

			if (end - pos < 4)
				return refuse_at(r, pos, "message ends too early");
			length = get_u32(pos);
			pos += 4;
			if ((size_t) (end - pos) < length)
				return refuse_at(r, pos, "column length out of range");
			column->length = length;
			column->data = (const char *) pos;
			pos += length;
		}
		else if (kind == 'n' || (kind == 'u' && !old))
		{
			column->length = 0;
			column->data = NULL;
		}
		else
			return refuse_at(r, pos, kind == 'u' ?
							 "unchanged column in an old row" :
							 "unrecognized column kind");
	}

	r->pos = pos;
	tuple->ncolumns = (int) ncolumns;
	tuple->columns = columns;
	return true;
}

static bool
read_insert(reader *r, KdbWireBuffers *buffers, KdbWireMessage *m)
{
	if (!has(r, 5))
		return false;
	m->u.row.relid = take_u32(r);
	m->u.row.old_kind = 0;
	if (take_u8(r) != 'N')
		return refuse(r, "new row expected");
	return read_tuple(r, false, buffers->new_columns, &m->u.row.new_row);
}

static bool
read_update(reader *r, KdbWireBuffers *buffers, KdbWireMessage *m)
{
	char		kind;

	if (!has(r, 5))
		return false;
	m->u.row.relid = take_u32(r);
	m->u.row.old_kind = 0;
	kind = (char) take_u8(r);

	if (kind == 'K' || kind == 'O')
	{
		m->u.row.old_kind = kind;
		if (!read_tuple(r, true, buffers->old_columns, &m->u.row.old_row))
			return false;
		if (!has(r, 1))
			return false;
		kind = (char) take_u8(r);
	}
	if (kind != 'N')
		return refuse(r, "new row expected");
	return read_tuple(r, false, buffers->new_columns, &m->u.row.new_row);
}

static bool
read_delete(reader *r, KdbWireBuffers *buffers, KdbWireMessage *m)
{
	if (!has(r, 5))
		return false;
	m->u.row.relid = take_u32(r);
	m->u.row.old_kind = (char) take_u8(r);
	if (m->u.row.old_kind != 'K' && m->u.row.old_kind != 'O')
		return refuse(r, "old row expected");
	return read_tuple(r, true, buffers->old_columns, &m->u.row.old_row);
}

static bool
read_truncate(reader *r, KdbWireMessage *m)
{
	uint8_t		flags;

	if (!has(r, 5))
		return false;
	m->u.truncate.nrelids = take_u32(r);
	if (m->u.truncate.nrelids > KDB_WIRE_MAX_RELATIONS)
		return refuse(r, "relation count out of range");

	flags = take_u8(r);
	if ((flags & ~(TRUNCATE_CASCADE | TRUNCATE_RESTART_SEQS)) != 0)
		return refuse(r, "unrecognized flags");
	m->u.truncate.cascade = (flags & TRUNCATE_CASCADE) != 0;
	m->u.truncate.restart_seqs = (flags & TRUNCATE_RESTART_SEQS) != 0;

	if (!has(r, 4 * (size_t) m->u.truncate.nrelids))
		return false;
	m->u.truncate.relids = (const char *) r->pos;
	r->pos += 4 * (size_t) m->u.truncate.nrelids;
	return true;
}

static bool
read_attribute(reader *r, KdbWireAttribute *att)
{
	uint8_t		flags;

	if (!has(r, 1))
		return false;
	flags = take_u8(r);
	if ((flags & ~ATTRIBUTE_IS_KEY) != 0)
		return refuse(r, "unrecognized flags");
	att->key = (flags & ATTRIBUTE_IS_KEY) != 0;

	if (!read_string(r, &att->name) || !has(r, 8))
		return false;
	att->type = take_u32(r);
	att->typmod = (int32_t) take_u32(r);
	return true;
}

static bool
read_relation(reader *r, KdbWireBuffers *buffers, KdbWireMessage *m)
{
	int			natts;

	if (!has(r, 4))
		return false;
	m->u.relation.relid = take_u32(r);
	if (!read_string(r, &m->u.relation.nspname) ||
		!read_string(r, &m->u.relation.relname) ||
		!has(r, 3))
		return false;

	m->u.relation.replident = (char) take_u8(r);
	if (m->u.relation.replident == '\0' ||
		strchr("dnfi", m->u.relation.replident) == NULL)
		return refuse(r, "unrecognized replica identity");

	natts = take_u16(r);
	if (natts > KDB_WIRE_MAX_COLUMNS)
		return refuse(r, "column count out of range");
	for (int i = 0; i < natts; i++)
	{
		if (!read_attribute(r, &buffers->atts[i]))
			return false;
	}

	m->u.relation.natts = natts;
	m->u.relation.atts = buffers->atts;
	return true;
}

static bool
read_type(reader *r, KdbWireMessage *m)
{
	if (!has(r, 4))
		return false;
	m->u.type_info.typid = take_u32(r);
	return read_string(r, &m->u.type_info.nspname) &&
		read_string(r, &m->u.type_info.typname);
}

static bool
read_message(reader *r, KdbWireMessage *m)
{
	uint8_t		flags;

	if (!has(r, 9))
		return false;
	flags = take_u8(r);
	if ((flags & ~MESSAGE_TRANSACTIONAL) != 0)
		return refuse(r, "unrecognized flags");
	m->u.message.transactional = (flags & MESSAGE_TRANSACTIONAL) != 0;
	m->u.message.lsn = take_u64(r);

	if (!read_string(r, &m->u.message.prefix) || !has(r, 4))
		return false;
	m->u.message.length = take_u32(r);
	if (bytes_left(r) < m->u.message.length)
		return refuse(r, "content length out of range");
	m->u.message.content = (const char *) r->pos;
	r->pos += m->u.message.length;
	return true;
}

/*
 * The one message that is read in every version, so that the caller can say
 * which one it has met: later ones only append to it.
 */
static bool
read_handshake(reader *r, KdbWireMessage *m)
{
	if (!has(r, 20))
		return false;
	m->u.handshake.protocol = take_u16(r);
	if (m->u.handshake.protocol == 0)
		return refuse(r, "invalid protocol version");
	m->u.handshake.krahodb_version = take_u32(r);
	m->u.handshake.server_version = take_u32(r);
	m->u.handshake.node = take_u64(r);
	m->u.handshake.encoding_length = take_u16(r);
	if (m->u.handshake.encoding_length > KDB_WIRE_MAX_ENCODING)
		return refuse(r, "encoding name is too long");
	if (!has(r, m->u.handshake.encoding_length))
		return false;
	if (memchr(r->pos, '\0', m->u.handshake.encoding_length) != NULL)
		return refuse(r, "zero byte in encoding name");
	m->u.handshake.encoding = (const char *) r->pos;
	r->pos += m->u.handshake.encoding_length;

	if (m->u.handshake.protocol > KDB_WIRE_VERSION)
		r->pos = r->end;
	return true;
}

static KdbSeenEntry
get_seen_entry(const unsigned char *p)
{
	KdbSeenEntry entry = {get_u64(p), get_u64(p + 8), get_u64(p + 16)};

	return entry;
}

static bool
read_seen(reader *r, KdbWireMessage *m)
{
	uint16_t	nentries;
	KdbSeenEntry previous = {0};

	if (!has(r, 2))
		return false;
	nentries = take_u16(r);
	if (nentries == 0 || nentries > KDB_WIRE_MAX_SEEN)
		return refuse(r, "entry count out of range");
	m->u.seen.nentries = nentries;
	m->u.seen.entries = (const char *) r->pos;
	if (!has(r, (size_t) nentries * KDB_WIRE_SEEN_ENTRY_SIZE))
		return false;

	for (uint16_t i = 0; i < nentries; i++)
	{
		KdbSeenEntry entry = get_seen_entry(r->pos);

		if (i > 0 && entry.node <= previous.node)
			return refuse(r, "nodes are not in order");
		if (entry.surely > entry.maybe)
			return refuse(r, "lower bound is above the upper one");
		previous = entry;
		r->pos += KDB_WIRE_SEEN_ENTRY_SIZE;
	}
	return true;
}

static bool
read_origin(reader *r, KdbWireMessage *m)
{
	if (!has(r, 8))
		return false;
	m->u.origin.lsn = take_u64(r);
	return read_string(r, &m->u.origin.name);
}

static bool
read_begin(reader *r, KdbWireMessage *m)
{
	if (!has(r, 20))
		return false;
	m->u.begin.final_lsn = take_u64(r);
	if (m->u.begin.final_lsn == 0)
		return refuse(r, "final LSN is not set");
	m->u.begin.commit_time = (int64_t) take_u64(r);
	m->u.begin.xid = take_u32(r);
	return true;
}

/* COMMIT, and STREAM COMMIT behind its transaction. */
static bool
read_commit(reader *r, uint32_t xid, KdbWireMessage *m)
{
	if (!has(r, 25))
		return false;
	m->u.commit.xid = xid;
	m->u.commit.flags = take_u8(r);
	if (m->u.commit.flags != 0)
		return refuse(r, "unrecognized flags");
	m->u.commit.commit_lsn = take_u64(r);
	m->u.commit.end_lsn = take_u64(r);
	m->u.commit.commit_time = (int64_t) take_u64(r);
	return true;
}

/* BEGIN PREPARE; PREPARE and STREAM PREPARE, which carry flags first. */
static bool
read_prepare(reader *r, bool flags, KdbWireMessage *m)
{
	if (!has(r, flags ? 29 : 28))
		return false;
	m->u.prepare.flags = flags ? take_u8(r) : 0;
	if (m->u.prepare.flags != 0)
		return refuse(r, "unrecognized flags");
	m->u.prepare.prepare_lsn = take_u64(r);
	if (m->u.prepare.prepare_lsn == 0)
		return refuse(r, "prepare LSN is not set");
	m->u.prepare.end_lsn = take_u64(r);
	if (m->u.prepare.end_lsn == 0)
		return refuse(r, "end LSN is not set");
	m->u.prepare.prepare_time = (int64_t) take_u64(r);
	m->u.prepare.xid = take_u32(r);
	if (m->u.prepare.xid == 0)
		return refuse(r, "invalid transaction ID");
	return read_gid(r, &m->u.prepare.gid);
}

static bool
read_commit_prepared(reader *r, KdbWireMessage *m)
{
	if (!has(r, 29))
		return false;
	m->u.commit_prepared.flags = take_u8(r);
	if (m->u.commit_prepared.flags != 0)
		return refuse(r, "unrecognized flags");
	m->u.commit_prepared.commit_lsn = take_u64(r);
	if (m->u.commit_prepared.commit_lsn == 0)
		return refuse(r, "commit LSN is not set");
	m->u.commit_prepared.end_lsn = take_u64(r);
	if (m->u.commit_prepared.end_lsn == 0)
		return refuse(r, "end LSN is not set");
	m->u.commit_prepared.commit_time = (int64_t) take_u64(r);
	m->u.commit_prepared.xid = take_u32(r);
	if (m->u.commit_prepared.xid == 0)
		return refuse(r, "invalid transaction ID");
	return read_gid(r, &m->u.commit_prepared.gid);
}

static bool
read_rollback_prepared(reader *r, KdbWireMessage *m)
{
	if (!has(r, 37))
		return false;
	m->u.rollback_prepared.flags = take_u8(r);
	if (m->u.rollback_prepared.flags != 0)
		return refuse(r, "unrecognized flags");
	m->u.rollback_prepared.prepare_end_lsn = take_u64(r);
	if (m->u.rollback_prepared.prepare_end_lsn == 0)
		return refuse(r, "prepare end LSN is not set");
	m->u.rollback_prepared.rollback_end_lsn = take_u64(r);
	if (m->u.rollback_prepared.rollback_end_lsn == 0)
		return refuse(r, "rollback end LSN is not set");
	m->u.rollback_prepared.prepare_time = (int64_t) take_u64(r);
	m->u.rollback_prepared.rollback_time = (int64_t) take_u64(r);
	m->u.rollback_prepared.xid = take_u32(r);
	if (m->u.rollback_prepared.xid == 0)
		return refuse(r, "invalid transaction ID");
	return read_gid(r, &m->u.rollback_prepared.gid);
}

/* The transaction that a message of a stream block belongs to. */
static bool
read_stream_xid(reader *r, uint32_t *xid)
{
	if (!has(r, 4))
		return false;
	*xid = take_u32(r);
	if (*xid == 0)
		return refuse(r, "invalid transaction ID");
	return true;
}

static bool
read_stream_start(reader *r, KdbWireMessage *m)
{
	uint8_t		first;

	if (!read_stream_xid(r, &m->u.stream_start.xid) || !has(r, 1))
		return false;
	first = take_u8(r);
	if (first > 1)
		return refuse(r, "unrecognized flags");
	m->u.stream_start.first_segment = first == 1;
	return true;
}

static bool
read_stream_commit(reader *r, KdbWireMessage *m)
{
	uint32_t	xid;

	return read_stream_xid(r, &xid) && read_commit(r, xid, m);
}

static bool
read_stream_abort(reader *r, KdbWireMessage *m)
{
	size_t		body = bytes_left(r);

	if (body != STREAM_ABORT_SHORT && body != STREAM_ABORT_LONG)
		return refuse(r, "message length out of range");
	if (!read_stream_xid(r, &m->u.stream_abort.xid) ||
		!read_stream_xid(r, &m->u.stream_abort.subxid))
		return false;

	m->u.stream_abort.has_abort_info = body == STREAM_ABORT_LONG;
	m->u.stream_abort.abort_lsn = 0;
	m->u.stream_abort.abort_time = 0;
	if (m->u.stream_abort.has_abort_info)
	{
		m->u.stream_abort.abort_lsn = take_u64(r);
		m->u.stream_abort.abort_time = (int64_t) take_u64(r);
	}
	return true;
}

/* Messages that carry a transaction first if they are in a stream block. */
static bool
read_change(reader *r, bool in_stream, KdbWireBuffers *buffers, KdbWireMessage *m)
{
	if (in_stream && !read_stream_xid(r, &m->stream_xid))
		return false;

	switch (m->type)
	{
		case KDB_WIRE_INSERT:
			return read_insert(r, buffers, m);
		case KDB_WIRE_UPDATE:
			return read_update(r, buffers, m);
		case KDB_WIRE_DELETE:
			return read_delete(r, buffers, m);
		case KDB_WIRE_TRUNCATE:
			return read_truncate(r, m);
		case KDB_WIRE_RELATION:
			return read_relation(r, buffers, m);
		case KDB_WIRE_TYPE:
			return read_type(r, m);
		case KDB_WIRE_MESSAGE:
			return read_message(r, m);
		default:
			return refuse(r, "unrecognized message type");
	}
}

static bool
read_body(reader *r, bool in_stream, KdbWireBuffers *buffers, KdbWireMessage *m)
{
	switch (m->type)
	{
		case KDB_WIRE_INSERT:
		case KDB_WIRE_UPDATE:
		case KDB_WIRE_DELETE:
		case KDB_WIRE_TRUNCATE:
		case KDB_WIRE_RELATION:
		case KDB_WIRE_TYPE:
		case KDB_WIRE_MESSAGE:
			return read_change(r, in_stream, buffers, m);
		case KDB_WIRE_BEGIN:
			return read_begin(r, m);
		case KDB_WIRE_COMMIT:
			return read_commit(r, 0, m);
		case KDB_WIRE_ORIGIN:
			return read_origin(r, m);
		case KDB_WIRE_HANDSHAKE:
			return read_handshake(r, m);
		case KDB_WIRE_SEEN:
			return read_seen(r, m);
		case KDB_WIRE_BEGIN_PREPARE:
			return read_prepare(r, false, m);
		case KDB_WIRE_PREPARE:
			return read_prepare(r, true, m);
		case KDB_WIRE_COMMIT_PREPARED:
			return read_commit_prepared(r, m);
		case KDB_WIRE_ROLLBACK_PREPARED:
			return read_rollback_prepared(r, m);
		case KDB_WIRE_STREAM_START:
			return read_stream_start(r, m);
		case KDB_WIRE_STREAM_STOP:
			return true;
		case KDB_WIRE_STREAM_COMMIT:
			return read_stream_commit(r, m);
		case KDB_WIRE_STREAM_ABORT:
			return read_stream_abort(r, m);
		case KDB_WIRE_STREAM_PREPARE:
			return read_prepare(r, true, m);
	}
	return refuse(r, "unrecognized message type");
}

bool
KdbWireDecode(const char *data, size_t len, bool in_stream,
			  KdbWireBuffers *buffers, KdbWireMessage *message,
			  KdbWireError *error)
{
	const unsigned char *start = (const unsigned char *) data;
	reader		r = {start, start + len, NULL};
	bool		ok;

	message->stream_xid = 0;

	ok = has(&r, 1);
	if (ok)
	{
		message->type = (KdbWireType) take_u8(&r);
		ok = read_body(&r, in_stream, buffers, message);
	}
	if (ok && r.pos != r.end)
		ok = refuse(&r, "bytes behind the end of the message");

	if (!ok)
	{
		error->offset = (size_t) (r.pos - start);
		error->what = r.what;
	}
	return ok;
}

uint32_t
KdbWireRelid(const KdbWireMessage *message, uint32_t i)
{
	return get_u32((const unsigned char *) message->u.truncate.relids + 4 * (size_t) i);
}

KdbSeenEntry
KdbWireSeenEntry(const KdbWireMessage *message, uint16_t i)
{
	return get_seen_entry((const unsigned char *) message->u.seen.entries +
						  (size_t) i * KDB_WIRE_SEEN_ENTRY_SIZE);
}

static bool
refuse_frame(KdbWireError *error, size_t offset, const char *what)
{
	error->offset = offset;
	error->what = what;
	return false;
}

bool
KdbWireFrameNext(const char *data, size_t len, size_t *position,
				 const char **message, size_t *message_len,
				 KdbWireError *error)
{
	size_t		left = len - *position;
	uint32_t	length;

	error->what = NULL;
	error->offset = *position;
	if (left == 0)
		return len > 0 ? false : refuse_frame(error, 0, "frame is empty");

	if (left < KDB_WIRE_FRAME_PREFIX)
		return refuse_frame(error, *position, "frame ends too early");
	length = get_u32((const unsigned char *) data + *position);
	left -= KDB_WIRE_FRAME_PREFIX;
	if (length == 0 || length > left)
		return refuse_frame(error, *position, "message length out of range");

	*message = data + *position + KDB_WIRE_FRAME_PREFIX;
	*message_len = length;
	*position += KDB_WIRE_FRAME_PREFIX + (size_t) length;
	return true;
}

static char *
put_uint(char *p, uint64_t value, int bytes)
{
	for (int shift = 8 * (bytes - 1); shift >= 0; shift -= 8)
		*p++ = (char) (value >> shift);
	return p;
}

size_t
KdbWireHandshakeWrite(char *buf, uint16_t protocol, uint32_t krahodb_version,
					  uint32_t server_version, uint64_t node,
					  const char *encoding)
{
	size_t		length = strlen(encoding);
	char	   *p = buf;

	if (length > KDB_WIRE_MAX_ENCODING)
		return 0;

	*p++ = KDB_WIRE_HANDSHAKE;
	p = put_uint(p, protocol, 2);
	p = put_uint(p, krahodb_version, 4);
	p = put_uint(p, server_version, 4);
	p = put_uint(p, node, 8);
	p = put_uint(p, length, 2);
	memcpy(p, encoding, length);
	return (size_t) (p - buf) + length;
}

size_t
KdbWireSeenWrite(char *buf, const KdbSeenEntry *entries, uint16_t nentries)
{
	char	   *p = buf;

	*p++ = KDB_WIRE_SEEN;
	p = put_uint(p, nentries, 2);
	for (uint16_t i = 0; i < nentries; i++)
	{
		p = put_uint(p, entries[i].node, 8);
		p = put_uint(p, entries[i].surely, 8);
		p = put_uint(p, entries[i].maybe, 8);
	}
	return (size_t) (p - buf);
}

void
KdbWireFrameSetLength(char *prefix, uint32_t length)
{
	put_uint(prefix, length, KDB_WIRE_FRAME_PREFIX);
}
