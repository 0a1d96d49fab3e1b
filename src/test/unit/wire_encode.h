/*
 * wire_encode.h
 *		The other direction of KdbWireDecode, for tests.
 *
 * Writes a decoded message back to bytes.  A message has exactly one form, so
 * what was decoded must come out byte for byte as it went in.
 */
#ifndef WIRE_ENCODE_H
#define WIRE_ENCODE_H

#include "krahodb/wire.h"

#include <stdlib.h>
#include <string.h>

typedef struct wire_bytes
{
	char	   *data;
	size_t		len;
	size_t		size;
} wire_bytes;

static void
put_bytes(wire_bytes *out, const void *data, size_t len)
{
	if (out->len + len > out->size)
	{
		out->size = 2 * (out->len + len);
		out->data = realloc(out->data, out->size);
		if (out->data == NULL)
			abort();
	}
	if (len > 0)
		memcpy(out->data + out->len, data, len);
	out->len += len;
}

static void
put_int(wire_bytes *out, uint64_t value, int bytes)
{
	while (bytes-- > 0)
	{
		char		byte = (char) (value >> (8 * bytes));

		put_bytes(out, &byte, 1);
	}
}

static void
put_string(wire_bytes *out, const char *string)
{
	put_bytes(out, string, strlen(string) + 1);
}

static void
put_tuple(wire_bytes *out, char kind, const KdbWireTuple *tuple)
{
	put_int(out, (unsigned char) kind, 1);
	put_int(out, (uint64_t) tuple->ncolumns, 2);
	for (int i = 0; i < tuple->ncolumns; i++)
	{
		const KdbWireColumn *column = &tuple->columns[i];

		put_bytes(out, &column->kind, 1);
		if (column->kind == 'n' || column->kind == 'u')
			continue;
		put_int(out, column->length, 4);
		put_bytes(out, column->data, column->length);
	}
}

static void
put_row(wire_bytes *out, const KdbWireMessage *m)
{
	put_int(out, m->u.row.relid, 4);
	if (m->u.row.old_kind != 0)
		put_tuple(out, m->u.row.old_kind, &m->u.row.old_row);
	if (m->type != KDB_WIRE_DELETE)
		put_tuple(out, 'N', &m->u.row.new_row);
}

static void
put_relation(wire_bytes *out, const KdbWireMessage *m)
{
	put_int(out, m->u.relation.relid, 4);
	put_string(out, m->u.relation.nspname);
	put_string(out, m->u.relation.relname);
	put_bytes(out, &m->u.relation.replident, 1);
	put_int(out, (uint64_t) m->u.relation.natts, 2);
	for (int i = 0; i < m->u.relation.natts; i++)
	{
		const KdbWireAttribute *att = &m->u.relation.atts[i];

		put_int(out, att->key, 1);
		put_string(out, att->name);
		put_int(out, att->type, 4);
		put_int(out, (uint32_t) att->typmod, 4);
	}
}

static void
put_truncate(wire_bytes *out, const KdbWireMessage *m)
{
	put_int(out, m->u.truncate.nrelids, 4);
	put_int(out, (m->u.truncate.cascade ? 1 : 0) | (m->u.truncate.restart_seqs ? 2 : 0), 1);
	for (uint32_t i = 0; i < m->u.truncate.nrelids; i++)
		put_int(out, KdbWireRelid(m, i), 4);
}

static void
put_message(wire_bytes *out, const KdbWireMessage *m)
{
	put_int(out, m->u.message.transactional, 1);
	put_int(out, m->u.message.lsn, 8);
	put_string(out, m->u.message.prefix);
	put_int(out, m->u.message.length, 4);
	put_bytes(out, m->u.message.content, m->u.message.length);
}

static void
put_commit(wire_bytes *out, const KdbWireMessage *m)
{
	put_int(out, m->u.commit.flags, 1);
	put_int(out, m->u.commit.commit_lsn, 8);
	put_int(out, m->u.commit.end_lsn, 8);
	put_int(out, (uint64_t) m->u.commit.commit_time, 8);
}

static void
put_prepare(wire_bytes *out, const KdbWireMessage *m)
{
	if (m->type != KDB_WIRE_BEGIN_PREPARE)
		put_int(out, m->u.prepare.flags, 1);
	put_int(out, m->u.prepare.prepare_lsn, 8);
	put_int(out, m->u.prepare.end_lsn, 8);
	put_int(out, (uint64_t) m->u.prepare.prepare_time, 8);
	put_int(out, m->u.prepare.xid, 4);
	put_string(out, m->u.prepare.gid);
}

static void
put_commit_prepared(wire_bytes *out, const KdbWireMessage *m)
{
	put_int(out, m->u.commit_prepared.flags, 1);
	put_int(out, m->u.commit_prepared.commit_lsn, 8);
	put_int(out, m->u.commit_prepared.end_lsn, 8);
	put_int(out, (uint64_t) m->u.commit_prepared.commit_time, 8);
	put_int(out, m->u.commit_prepared.xid, 4);
	put_string(out, m->u.commit_prepared.gid);
}

static void
put_rollback_prepared(wire_bytes *out, const KdbWireMessage *m)
{
	put_int(out, m->u.rollback_prepared.flags, 1);
	put_int(out, m->u.rollback_prepared.prepare_end_lsn, 8);
	put_int(out, m->u.rollback_prepared.rollback_end_lsn, 8);
	put_int(out, (uint64_t) m->u.rollback_prepared.prepare_time, 8);
	put_int(out, (uint64_t) m->u.rollback_prepared.rollback_time, 8);
	put_int(out, m->u.rollback_prepared.xid, 4);
	put_string(out, m->u.rollback_prepared.gid);
}

static void
put_stream_abort(wire_bytes *out, const KdbWireMessage *m)
{
	put_int(out, m->u.stream_abort.xid, 4);
	put_int(out, m->u.stream_abort.subxid, 4);
	if (m->u.stream_abort.has_abort_info)
	{
		put_int(out, m->u.stream_abort.abort_lsn, 8);
		put_int(out, (uint64_t) m->u.stream_abort.abort_time, 8);
	}
}

static void
put_handshake(wire_bytes *out, const KdbWireMessage *m)
{
	char		buf[KDB_WIRE_HANDSHAKE_SIZE];
	char		encoding[KDB_WIRE_MAX_ENCODING + 1] = "";
	size_t		len;

	memcpy(encoding, m->u.handshake.encoding, m->u.handshake.encoding_length);
	len = KdbWireHandshakeWrite(buf, m->u.handshake.protocol,
								m->u.handshake.krahodb_version,
								m->u.handshake.server_version,
								m->u.handshake.node, encoding);
	put_bytes(out, buf + 1, len - 1);
}

static void
put_seen(wire_bytes *out, const KdbWireMessage *m)
{
	static KdbSeenEntry entries[KDB_WIRE_MAX_SEEN];
	static char buf[KDB_WIRE_SEEN_SIZE(KDB_WIRE_MAX_SEEN)];

	for (uint16_t i = 0; i < m->u.seen.nentries; i++)
		entries[i] = KdbWireSeenEntry(m, i);
	put_bytes(out, buf + 1, KdbWireSeenWrite(buf, entries, m->u.seen.nentries) - 1);
}

/* Append the message to *out, which starts zeroed. */
__attribute__((unused))
static void
wire_encode(wire_bytes *out, const KdbWireMessage *m)
{
	put_int(out, (unsigned char) m->type, 1);
	if (m->stream_xid != 0)
		put_int(out, m->stream_xid, 4);

	switch (m->type)
	{
		case KDB_WIRE_HANDSHAKE:
			put_handshake(out, m);
			break;
		case KDB_WIRE_SEEN:
			put_seen(out, m);
			break;
		case KDB_WIRE_BEGIN:
			put_int(out, m->u.begin.final_lsn, 8);
			put_int(out, (uint64_t) m->u.begin.commit_time, 8);
			put_int(out, m->u.begin.xid, 4);
			break;
		case KDB_WIRE_STREAM_COMMIT:
			put_int(out, m->u.commit.xid, 4);
			put_commit(out, m);
			break;
		case KDB_WIRE_COMMIT:
			put_commit(out, m);
			break;
		case KDB_WIRE_ORIGIN:
			put_int(out, m->u.origin.lsn, 8);
			put_string(out, m->u.origin.name);
			break;
		case KDB_WIRE_RELATION:
			put_relation(out, m);
			break;
		case KDB_WIRE_TYPE:
			put_int(out, m->u.type_info.typid, 4);
			put_string(out, m->u.type_info.nspname);
			put_string(out, m->u.type_info.typname);
			break;
		case KDB_WIRE_INSERT:
		case KDB_WIRE_UPDATE:
		case KDB_WIRE_DELETE:
			put_row(out, m);
			break;
		case KDB_WIRE_TRUNCATE:
			put_truncate(out, m);
			break;
		case KDB_WIRE_MESSAGE:
			put_message(out, m);
			break;
		case KDB_WIRE_BEGIN_PREPARE:
		case KDB_WIRE_PREPARE:
		case KDB_WIRE_STREAM_PREPARE:
			put_prepare(out, m);
			break;
		case KDB_WIRE_COMMIT_PREPARED:
			put_commit_prepared(out, m);
			break;
		case KDB_WIRE_ROLLBACK_PREPARED:
			put_rollback_prepared(out, m);
			break;
		case KDB_WIRE_STREAM_START:
			put_int(out, m->u.stream_start.xid, 4);
			put_int(out, m->u.stream_start.first_segment, 1);
			break;
		case KDB_WIRE_STREAM_STOP:
			break;
		case KDB_WIRE_STREAM_ABORT:
			put_stream_abort(out, m);
			break;
	}
}

#endif							/* WIRE_ENCODE_H */
