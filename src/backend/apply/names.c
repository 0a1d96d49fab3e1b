/*
 * names.c
 *		Which of the publisher's relations has a name.
 *
 * Who had it before was dropped or renamed: see relation.c.  A name that nobody has any more is kept, as
 * is the relation that nobody has heard of since.
 */
#include "postgres.h"

#include "utils/hsearch.h"

#include "apply_private.h"

typedef struct RelationName
{
	char		nspname[NAMEDATALEN];	/* hash key, with relname; filled up with zeros */
	char		relname[NAMEDATALEN];
	uint32		remoteid;
} RelationName;

/* See apply_private.h. */
uint32
KdbTakeName(HTAB **names, const char *nspname, const char *relname, uint32 remoteid)
{
	RelationName key = {0};
	RelationName *name;
	uint32		before;
	bool		found;

	if (*names == NULL)
	{
		HASHCTL		ctl = {.keysize = offsetof(RelationName, remoteid), .entrysize = sizeof(RelationName), .hcxt = ApplyContext};

		*names = hash_create("KrahoDB names of relations", 128, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	strlcpy(key.nspname, nspname, NAMEDATALEN);
	strlcpy(key.relname, relname, NAMEDATALEN);
	name = hash_search(*names, &key, HASH_ENTER, &found);
	before = found ? name->remoteid : remoteid;
	name->remoteid = remoteid;
	return before;
}
