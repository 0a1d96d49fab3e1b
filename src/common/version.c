/*
 * version.c
 *		The total order of row versions; see version.h.
 */
#include "krahodb/version.h"

int
KdbVersionCompare(KdbVersion a, KdbVersion b)
{
	if (a.ts != b.ts)
		return a.ts < b.ts ? -1 : 1;
	if (a.node != b.node)
		return a.node < b.node ? -1 : 1;
	return 0;
}
