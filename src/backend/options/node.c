/*
 * node.c
 *		The identity of this node.
 *
 * Derived from the cluster's system identifier and the database's OID: nothing
 * to store, the same after every restart, and known before any extension is
 * created.  A base backup shares it with the cluster that it was taken from.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "common/hashfn.h"
#include "miscadmin.h"

#include "krahodb/node.h"

/* See node.h. */
uint64
KdbLocalNodeIdentity(void)
{
	static uint64 identity = 0;

	if (identity == 0)
	{
		struct
		{
			uint64		system;
			uint64		database;
		}			key = {GetSystemIdentifier(), MyDatabaseId};

		Assert(OidIsValid(MyDatabaseId));
		identity = hash_bytes_extended((const unsigned char *) &key, sizeof(key), 0);
		if (identity == 0)
			identity = 1;
	}
	return identity;
}
