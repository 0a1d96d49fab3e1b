/*
 * seen.c
 *		What the writer of a transaction had seen of other nodes; see seen.h.
 */
#include "krahodb/seen.h"

#include <stddef.h>

const KdbSeenEntry *
KdbSeenFind(const KdbSeen *seen, uint64_t node)
{
	for (int i = 0; i < seen->nentries; i++)
	{
		if (seen->entries[i].node == node)
			return &seen->entries[i];
	}
	return NULL;
}

bool
KdbSeenSurely(const KdbSeen *seen, uint64_t node, uint64_t position)
{
	const KdbSeenEntry *entry = KdbSeenFind(seen, node);

	return entry != NULL && position <= entry->surely;
}
