/*
 * node.c
 *		The identity of this node.
 *
 * Derived from the cluster's system identifier, the salt that distinguishes copies
 * of a cluster (shared/node_state.c), and the database's OID.  So it is known
 * before any extension is created, a database that is made from a template is
 * another node than the template, and so is a cluster that pg_upgrade or
 * pg_createsubscriber has made, as they give it another system identifier.
 *
 * FORMER IDENTITIES.  Rows that a copy was born with were written by the node that
 * it is a copy of, and have its identity in their versions everywhere else.
 * They have no origin here, but they are older than the copy's salt; so the salt
 * that was in effect at a transaction's time gives its node.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "utils/timestamp.h"

#include "krahodb/node.h"

static uint64
identity_with(uint64 salt, Oid dbid)
{
	struct
	{
		uint64		system;
		uint64		salt;
		uint64		database;
	}			key = {GetSystemIdentifier(), salt, dbid};
	uint64		identity;

	Assert(OidIsValid(dbid));
	identity = hash_bytes_extended((const unsigned char *) &key, sizeof(key), 0);
	return identity != 0 ? identity : 1;
}

/* See node.h. */
uint64
KdbNodeIdentityOf(Oid dbid)
{
	return identity_with(KdbNodeSalt(), dbid);
}

/* See node.h. */
uint64
KdbLocalNodeIdentity(void)
{
	static uint64 identity = 0;

	if (identity == 0)
		identity = KdbNodeIdentityOf(MyDatabaseId);
	return identity;
}

/* See node.h. */
uint64
KdbLocalNodeAt(TimestampTz when)
{
	static uint64 former_salt = 0;
	static uint64 former_identity = 0;
	uint64		salt = KdbNodeSaltAt(when);

	if (salt == KdbNodeSalt())
		return KdbLocalNodeIdentity();
	if (former_identity == 0 || salt != former_salt)
	{
		former_salt = salt;
		former_identity = identity_with(salt, MyDatabaseId);
	}
	return former_identity;
}

static uint64
incarnation(void)
{
	uint64		key[2] = {(uint64) PgStartTime, (uint64) PostmasterPid};

	return hash_bytes_extended((const unsigned char *) key, sizeof(key), 0);
}

/* See node.h. */
const char *
KdbShowNode(void)
{
	static char buffer[64];

	buffer[0] = '\0';
	if (OidIsValid(MyDatabaseId))
		snprintf(buffer, sizeof(buffer), UINT64_FORMAT "/" UINT64_FORMAT,
				 KdbLocalNodeIdentity(), incarnation());
	return buffer;
}
