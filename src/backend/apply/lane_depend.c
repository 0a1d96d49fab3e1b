/*
 * lane_depend.c
 *		Which transactions had better wait for which?
 *
 * The leader remembers for each key that is on its way which transaction touched it
 * last, and tells a later one that touches it to wait for that.  This is for speed
 * only: what it does not see is found by the lanes themselves, who then wait, or roll
 * back and repeat (lane_turn.c).  So it looks at the bytes of the publisher's key
 * columns as they were sent, without knowing what equality means for them, and
 * forgets nothing but by collision, which only makes somebody wait for too much.
 *
 * With REPLICA IDENTITY FULL every column is a key column.  A table's key is in its
 * first columns nearly always, so the first one stands for it.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "lanes_private.h"

#define SLOTS			16384	/* keys; a power of two */
#define MAX_KEY_COLUMNS	32		/* further ones are not looked at */

typedef struct RelationKey
{
	uint32		relid;			/* hash key; the publisher's */
	int			ncolumns;		/* 0: it has none */
	uint16		columns[MAX_KEY_COLUMNS];
} RelationKey;

static HTAB *relations = NULL;
static uint64 last_touched[SLOTS];	/* by which transaction */

/* See lanes_private.h. */
void
KdbLaneDependRelation(const KdbWireMessage *message)
{
	uint32		relid = message->u.relation.relid;
	bool		full = message->u.relation.replident == 'f';
	RelationKey *key;

	if (relations == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(uint32), .entrysize = sizeof(RelationKey),
		.hcxt = ApplyContext};

		relations = hash_create("KrahoDB keys of relations", 128, &ctl,
								HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	key = hash_search(relations, &relid, HASH_ENTER, NULL);
	key->ncolumns = 0;
	for (int i = 0; i < message->u.relation.natts && key->ncolumns < MAX_KEY_COLUMNS; i++)
	{
		if (message->u.relation.atts[i].key && !(full && key->ncolumns > 0))
			key->columns[key->ncolumns++] = i;
	}
}

/* See lanes_private.h. */
void
KdbLaneDependForget(uint32 relid)
{
	(void) hash_search(relations, &relid, HASH_REMOVE, NULL);
}

static uint64
touch(const RelationKey *key, const KdbWireTuple *tuple, uint64 seq)
{
	uint32		hash = key->relid;
	uint64	   *slot;
	uint64		before;

	for (int i = 0; i < key->ncolumns; i++)
	{
		const KdbWireColumn *column;

		if (key->columns[i] >= tuple->ncolumns)
			return 0;			/* whoever applies it says what is wrong */
		column = &tuple->columns[key->columns[i]];
		if (column->data == NULL)
			continue;
		hash = hash_combine(hash, hash_bytes((const unsigned char *) column->data, column->length));
	}
	slot = &last_touched[hash & (SLOTS - 1)];
	before = *slot;
	*slot = seq;
	return before < seq ? before : 0;
}

/* See lanes_private.h. */
uint64
KdbLaneDependChange(const KdbWireMessage *message, uint64 seq)
{
	uint32		relid = message->u.row.relid;
	RelationKey *key = relations ? hash_search(relations, &relid, HASH_FIND, NULL) : NULL;
	uint64		before_old = 0;
	uint64		before_new = 0;

	if (key == NULL || key->ncolumns == 0)
		return 0;
	if (message->u.row.old_kind)
		before_old = touch(key, &message->u.row.old_row, seq);
	if (message->type != KDB_WIRE_DELETE)
		before_new = touch(key, &message->u.row.new_row, seq);
	return Max(before_old, before_new);
}

/* The numbers of transactions begin anew. */
void
KdbLaneDependReset(void)
{
	memset(last_touched, 0, sizeof(last_touched));
}
