/*
 * wire.h
 *		Reading the replication stream: every byte is hostile until checked.
 *
 * The stream of a KrahoDB publisher (plugin krahodb_output) and of a stock one
 * (pgoutput, protocol 1 to 4) become the same in-memory message.  Messages are
 * pgoutput's own (documented in PostgreSQL's manual, "Logical Replication
 * Message Formats"), of protocol 3, plus KrahoDB's (doc/internals/wire.md):
 *
 *	'H' handshake, first message of a KrahoDB stream:
 *		uint16 protocol version (KDB_WIRE_VERSION)
 *		uint32 KrahoDB version of the publisher (KRAHODB_VERSION_NUM)
 *		uint32 server_version_num of the publisher
 *		uint64 node identity of the publisher's database
 *		uint16 length, then bytes: server encoding name, no terminator
 *	  A later protocol only appends to it.  The decoder accepts any protocol
 *	  version; whether we speak it is for the caller to check.
 *
 *	'V' seen vector, what the next or the current transaction's writer had seen
 *	of other nodes (seen.h), as far as that has changed since the last one:
 *		uint16 number of entries, at least 1, at most KDB_WIRE_MAX_SEEN
 *		per entry, in the order of nodes:
 *			uint64 node, uint64 surely, uint64 maybe (not less than surely)
 *
 * A KrahoDB stream is framed: one CopyData payload holds
 *		byte 'F', then one or more of { uint32 length, message bytes }.
 * Frames never split a message.  All integers are big-endian.
 *
 * Decoding does not copy: the pointers of a message point into the caller's
 * buffer and live as long as that.  Nothing is allocated; tuple columns go to
 * arrays that the caller gives.
 *
 * Pure C: no server calls, no allocation.
 */
#ifndef KRAHODB_WIRE_H
#define KRAHODB_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "krahodb/seen.h"

#define KDB_WIRE_VERSION		1
#define KDB_WIRE_FRAME			'F'
#define KDB_WIRE_MAX_COLUMNS	1664	/* the engine's MaxTupleAttributeNumber */
#define KDB_WIRE_MAX_RELATIONS	65536	/* of one TRUNCATE */
#define KDB_WIRE_MAX_GID		199		/* bytes; the engine's GIDSIZE - 1 */
#define KDB_WIRE_MAX_ENCODING	63		/* bytes of an encoding's name */
#define KDB_WIRE_MAX_SEEN		1024	/* nodes of a seen vector */

#define KDB_WIRE_FRAME_PREFIX	4		/* bytes of a message's length in a frame */
#define KDB_WIRE_SEEN_ENTRY_SIZE (8 + 8 + 8)
#define KDB_WIRE_SEEN_SIZE(nentries) (1 + 2 + (nentries) * KDB_WIRE_SEEN_ENTRY_SIZE)
#define KDB_WIRE_HANDSHAKE_SIZE (1 + 2 + 4 + 4 + 8 + 2 + KDB_WIRE_MAX_ENCODING)

typedef enum KdbWireType
{
	KDB_WIRE_HANDSHAKE = 'H',
	KDB_WIRE_SEEN = 'V',
	KDB_WIRE_BEGIN = 'B',
	KDB_WIRE_COMMIT = 'C',
	KDB_WIRE_ORIGIN = 'O',
	KDB_WIRE_RELATION = 'R',
	KDB_WIRE_TYPE = 'Y',
	KDB_WIRE_INSERT = 'I',
	KDB_WIRE_UPDATE = 'U',
	KDB_WIRE_DELETE = 'D',
	KDB_WIRE_TRUNCATE = 'T',
	KDB_WIRE_MESSAGE = 'M',
	KDB_WIRE_BEGIN_PREPARE = 'b',
	KDB_WIRE_PREPARE = 'P',
	KDB_WIRE_COMMIT_PREPARED = 'K',
	KDB_WIRE_ROLLBACK_PREPARED = 'r',
	KDB_WIRE_STREAM_START = 'S',
	KDB_WIRE_STREAM_STOP = 'E',
	KDB_WIRE_STREAM_COMMIT = 'c',
	KDB_WIRE_STREAM_ABORT = 'A',
	KDB_WIRE_STREAM_PREPARE = 'p'
} KdbWireType;

#define KDB_WIRE_DATUM	'd'

/* One column of a tuple. */
typedef struct KdbWireColumn
{
	char		kind;			/* 'n' null, 'u' unchanged TOAST (never in an
								 * old row), 't' text, 'b' binary,
								 * KDB_WIRE_DATUM the publisher's datum */
	uint32_t	length;			/* bytes of data, 0 for 'n' and 'u' */
	const char *data;			/* not terminated; NULL for 'n' and 'u' */
} KdbWireColumn;

typedef struct KdbWireTuple
{
	int			ncolumns;
	KdbWireColumn *columns;		/* the caller's array, KDB_WIRE_MAX_COLUMNS long */
} KdbWireTuple;

typedef struct KdbWireAttribute
{
	bool		key;			/* part of the replica identity */
	const char *name;			/* terminated, inside the buffer */
	uint32_t	type;			/* type OID at the publisher */
	int32_t		typmod;
} KdbWireAttribute;

/* A decoded message.  Only the member that the type names is set. */
typedef struct KdbWireMessage
{
	KdbWireType type;

	/* I U D T R Y M inside a stream block carry the (sub)transaction first. */
	uint32_t	stream_xid;		/* 0 if not in a stream block */

	union
	{
		struct
		{
			uint16_t	protocol;
			uint32_t	krahodb_version;
			uint32_t	server_version;
			uint64_t	node;
			const char *encoding;	/* encoding_length bytes, not terminated */
			uint16_t	encoding_length;
		}			handshake;
		struct
		{
			uint16_t	nentries;
			const char *entries;	/* see KdbWireSeenEntry */
		}			seen;
		struct
		{
			uint64_t	final_lsn;
			int64_t		commit_time;
			uint32_t	xid;
		}			begin;
		struct					/* commit, stream commit (xid only there) */
		{
			uint32_t	xid;
			uint8_t		flags;
			uint64_t	commit_lsn;
			uint64_t	end_lsn;
			int64_t		commit_time;
		}			commit;
		struct					/* begin prepare, prepare, stream prepare */
		{
			uint8_t		flags;
			uint64_t	prepare_lsn;
			uint64_t	end_lsn;
			int64_t		prepare_time;
			uint32_t	xid;
			const char *gid;	/* terminated */
		}			prepare;
		struct
		{
			uint8_t		flags;
			uint64_t	commit_lsn;
			uint64_t	end_lsn;
			int64_t		commit_time;
			uint32_t	xid;
			const char *gid;
		}			commit_prepared;
		struct
		{
			uint8_t		flags;
			uint64_t	prepare_end_lsn;
			uint64_t	rollback_end_lsn;
			int64_t		prepare_time;
			int64_t		rollback_time;
			uint32_t	xid;
			const char *gid;
		}			rollback_prepared;
		struct
		{
			uint64_t	lsn;
			const char *name;	/* terminated */
		}			origin;
		struct
		{
			uint32_t	relid;	/* at the publisher */
			const char *nspname;	/* terminated; empty means pg_catalog */
			const char *relname;
			char		replident;
			int			natts;
			KdbWireAttribute *atts; /* the caller's array */
		}			relation;
		struct
		{
			uint32_t	typid;
			const char *nspname;
			const char *typname;
		}			type_info;
		struct					/* insert: new; update: old if any, new; delete: old */
		{
			uint32_t	relid;
			char		old_kind;	/* 'K' key, 'O' full old row, 0 none */
			KdbWireTuple old_row;
			KdbWireTuple new_row;
		}			row;
		struct
		{
			uint32_t	nrelids;
			bool		cascade;
			bool		restart_seqs;
			const char *relids; /* nrelids big-endian uint32, see KdbWireRelid */
		}			truncate;
		struct
		{
			bool		transactional;
			uint64_t	lsn;
			const char *prefix; /* terminated */
			uint32_t	length;
			const char *content;
		}			message;
		struct
		{
			uint32_t	xid;
			bool		first_segment;
		}			stream_start;
		struct
		{
			uint32_t	xid;
			uint32_t	subxid;
			bool		has_abort_info; /* protocol 4 */
			uint64_t	abort_lsn;
			int64_t		abort_time;
		}			stream_abort;
	}			u;
} KdbWireMessage;

/* Where the caller wants tuples and attributes to go. */
typedef struct KdbWireBuffers
{
	KdbWireColumn old_columns[KDB_WIRE_MAX_COLUMNS];
	KdbWireColumn new_columns[KDB_WIRE_MAX_COLUMNS];
	KdbWireAttribute atts[KDB_WIRE_MAX_COLUMNS];
} KdbWireBuffers;

typedef struct KdbWireError
{
	size_t		offset;			/* into the message */
	const char *what;			/* static text: "column count out of range" */
} KdbWireError;

/*
 * Decode one message of len bytes.  in_stream: we are between STREAM START and
 * STREAM STOP.  Returns false, with *error set, for anything that is not
 * exactly one well-formed message.
 */
extern bool KdbWireDecode(const char *data, size_t len, bool in_stream,
						  KdbWireBuffers *buffers, KdbWireMessage *message,
						  KdbWireError *error);

/* relid number i of a decoded TRUNCATE. */
extern uint32_t KdbWireRelid(const KdbWireMessage *message, uint32_t i);

/* Entry number i of a decoded seen vector. */
extern KdbSeenEntry KdbWireSeenEntry(const KdbWireMessage *message, uint16_t i);

/*
 * Step through a frame.  data/len is the payload behind the 'F'; *position
 * starts at 0.  Returns true with the next message, false at the end, or false
 * with error->what set if the frame is malformed.
 */
extern bool KdbWireFrameNext(const char *data, size_t len, size_t *position,
							 const char **message, size_t *message_len,
							 KdbWireError *error);

/*
 * Write a handshake message to buf, which has room for KDB_WIRE_HANDSHAKE_SIZE
 * bytes.  encoding is terminated, at most KDB_WIRE_MAX_ENCODING long.  Returns
 * the message's length, or 0 if the encoding's name is too long.
 */
extern size_t KdbWireHandshakeWrite(char *buf, uint16_t protocol,
									uint32_t krahodb_version,
									uint32_t server_version, uint64_t node,
									const char *encoding);

/*
 * Write a seen vector to buf, which has room for KDB_WIRE_SEEN_SIZE(nentries)
 * bytes: 1 to KDB_WIRE_MAX_SEEN entries, ordered by distinct nodes.  Returns the
 * message's length.
 */
extern size_t KdbWireSeenWrite(char *buf, const KdbSeenEntry *entries, uint16_t nentries);

/*
 * Write a message's length to the KDB_WIRE_FRAME_PREFIX bytes that a writer has
 * left free before it.
 */
extern void KdbWireFrameSetLength(char *prefix, uint32_t length);

#endif							/* KRAHODB_WIRE_H */
