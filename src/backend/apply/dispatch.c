/*
 * dispatch.c
 *		One message: decoded, then given to the function for its type.
 *
 * The list below is the only one of message types in the server: name (the
 * engine's words), function, and what may be done with the message.
 */
#include "postgres.h"

#include "access/transam.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#include "krahodb/fault.h"
#include "krahodb/init.h"
#include "krahodb/origin_nodes.h"

#include "apply_private.h"

/* What a message is, beyond its type. */
#define SPOOLED		0x01		/* goes to the file inside a stream block */
#define ROW_CHANGE	0x02		/* left out of a skipped transaction; needs one */
#define IGNORED		0x04		/* not even decoded */

typedef struct MessageKind
{
	const char *name;			/* NULL: no such message */
	void		(*apply) (const KdbWireMessage *message);
	int			flags;
} MessageKind;

static void apply_handshake(const KdbWireMessage *message);
static void apply_type(const KdbWireMessage *message);

static const MessageKind kinds[256] = {
	[KDB_WIRE_HANDSHAKE] = {"HANDSHAKE", apply_handshake, 0},
	[KDB_WIRE_SEEN] = {"SEEN", KdbApplySeen, 0},
	[KDB_WIRE_BEGIN] = {"BEGIN", KdbApplyBegin, 0},
	[KDB_WIRE_COMMIT] = {"COMMIT", KdbApplyCommit, 0},
	[KDB_WIRE_ORIGIN] = {"ORIGIN", KdbApplyOrigin, 0},
	[KDB_WIRE_RELATION] = {"RELATION", KdbApplyHandleRelation, SPOOLED},
	[KDB_WIRE_TYPE] = {"TYPE", apply_type, SPOOLED},
	[KDB_WIRE_INSERT] = {"INSERT", KdbApplyInsert, SPOOLED | ROW_CHANGE},
	[KDB_WIRE_UPDATE] = {"UPDATE", KdbApplyUpdate, SPOOLED | ROW_CHANGE},
	[KDB_WIRE_DELETE] = {"DELETE", KdbApplyDelete, SPOOLED | ROW_CHANGE},
	[KDB_WIRE_TRUNCATE] = {"TRUNCATE", KdbApplyTruncate, SPOOLED | ROW_CHANGE},
	[KDB_WIRE_MESSAGE] = {"MESSAGE", NULL, IGNORED},
	[KDB_WIRE_BEGIN_PREPARE] = {"BEGIN PREPARE", KdbApplyBeginPrepare, 0},
	[KDB_WIRE_PREPARE] = {"PREPARE", KdbApplyPrepare, 0},
	[KDB_WIRE_COMMIT_PREPARED] = {"COMMIT PREPARED", KdbApplyCommitPrepared, 0},
	[KDB_WIRE_ROLLBACK_PREPARED] = {"ROLLBACK PREPARED", KdbApplyRollbackPrepared, 0},
	[KDB_WIRE_STREAM_START] = {"STREAM START", KdbApplyStreamStart, 0},
	[KDB_WIRE_STREAM_STOP] = {"STREAM STOP", KdbApplyStreamStop, 0},
	[KDB_WIRE_STREAM_COMMIT] = {"STREAM COMMIT", KdbApplyStreamCommit, 0},
	[KDB_WIRE_STREAM_ABORT] = {"STREAM ABORT", KdbApplyStreamAbort, 0},
	[KDB_WIRE_STREAM_PREPARE] = {"STREAM PREPARE", KdbApplyStreamPrepare, 0},
};

KdbApplyState KdbApply;
MemoryContext KdbApplyMessageContext = NULL;

static bool handshake_done = false;

/* The name of a message type; in a static buffer if there is no such type. */
const char *
KdbApplyMessageName(char type)
{
	static char unknown[20];
	const MessageKind *kind = &kinds[(unsigned char) type];

	if (kind->name != NULL)
		return kind->name;
	snprintf(unknown, sizeof(unknown), "??? (%d)", type);
	return unknown;
}

/* First message of a KrahoDB stream: who speaks, and which protocol. */
static void
apply_handshake(const KdbWireMessage *message)
{
	if (handshake_done)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("publisher sent more than one handshake")));

	if (message->u.handshake.protocol != KDB_WIRE_VERSION)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("publisher speaks version %u of the KrahoDB replication protocol, but this server speaks version %u",
						(unsigned int) message->u.handshake.protocol,
						(unsigned int) KDB_WIRE_VERSION),
				 errdetail("The publisher runs KrahoDB %u.%u.%u, this server %s.",
						   message->u.handshake.krahodb_version / 10000,
						   message->u.handshake.krahodb_version / 100 % 100,
						   message->u.handshake.krahodb_version % 100,
						   KRAHODB_VERSION),
				 errhint("Install the same version of KrahoDB on both servers.")));

	KdbApply.remote_node = message->u.handshake.node;
	KdbRememberOriginNode(KdbApply.origin, KdbApply.remote_node);
	handshake_done = true;
}

/* See apply_private.h. */
void
KdbDispatchInLane(void)
{
	handshake_done = true;
}

/* Names of types are of no use: values go by the local columns' types. */
static void
apply_type(const KdbWireMessage *message)
{
}

static void
decode(const char *data, size_t len, KdbWireMessage *message)
{
	static KdbWireBuffers buffers;
	KdbWireError error;

	if (!KdbWireDecode(data, len, KdbSpoolActive(), &buffers, message, &error))
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("invalid \"%s\" message from the publisher: %s",
						KdbApplyMessageName(data[0]), error.what),
				 errdetail("At byte %zu of %zu.", error.offset, len)));
}

/* A KrahoDB stream begins with the handshake, and another one has none. */
static void
check_handshake(char type)
{
	if (KdbApply.krahodb_stream)
	{
		if (!handshake_done && type != KDB_WIRE_HANDSHAKE)
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("publisher did not begin the stream with a handshake")));
	}
	else if (type == KDB_WIRE_HANDSHAKE || type == KDB_WIRE_SEEN)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("unexpected handshake in the stream of a publisher that is not a KrahoDB")));
}

static void
apply_decoded(const MessageKind *kind, const KdbWireMessage *message)
{
	if (kind->flags & ROW_CHANGE)
	{
		if (!in_remote_transaction)
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("\"%s\" message outside a remote transaction", kind->name)));
		if (unlikely(KdbApply.skipping))
			return;
		KDB_FAULT_POINT("apply_change");
	}
	kind->apply(message);
}

void
KdbApplyDispatch(const char *data, size_t len)
{
	char		type = len > 0 ? data[0] : 0;
	char		outer_command = KdbApplyErrorContext.command;
	const MessageKind *kind = &kinds[(unsigned char) type];

	MemoryContextSwitchTo(KdbApplyMessageContext);

	/* Replay comes here from within STREAM COMMIT: its name comes back after. */
	KdbApplyErrorContext.command = type;

	if (kind->name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("invalid logical replication message type \"??? (%d)\"", type)));
	check_handshake(type);
	if (type == KDB_WIRE_RELATION && !KdbSpoolActive())
		KdbLeaderRelation(data, len);

	if ((kind->flags & SPOOLED) && KdbSpoolActive())
		KdbSpoolChange(data, len);
	else if (!(kind->flags & IGNORED))
	{
		KdbWireMessage message;

		decode(data, len, &message);
		apply_decoded(kind, &message);
	}

	KdbApplyErrorContext.command = outer_command;
	MemoryContextReset(KdbApplyMessageContext);
	MemoryContextSwitchTo(KdbApplyMessageContext);
}
