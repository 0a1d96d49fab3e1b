/*
 * handshake.c
 *		The first message of a KrahoDB stream: who is speaking.
 *
 * A plugin may not write before the first transaction (the startup callback has
 * no place to write to), so the handshake is not sent on its own: frame.c puts
 * it in front of the first frame of the connection.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/guc.h"

#include "krahodb/init.h"
#include "krahodb/node.h"
#include "krahodb/wire.h"
#include "output_private.h"

/* Append the handshake message, without a frame's length prefix. */
void
KdbAppendHandshake(StringInfo buf)
{
	int			server_version = atoi(GetConfigOption("server_version_num", false, false));
	size_t		length;

	enlargeStringInfo(buf, KDB_WIRE_HANDSHAKE_SIZE);
	length = KdbWireHandshakeWrite(buf->data + buf->len, KDB_WIRE_VERSION,
								   KRAHODB_VERSION_NUM, server_version,
								   KdbLocalNodeIdentity(), GetDatabaseEncodingName());
	if (length == 0)
		elog(ERROR, "name of encoding \"%s\" is too long", GetDatabaseEncodingName());
	buf->len += length;
	buf->data[buf->len] = '\0';
}
