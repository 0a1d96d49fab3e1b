/*
 * test_version.c
 *		The order of versions is total: what two nodes compare, they compare alike.
 */
#include "krahodb/version.h"

#include "tap.h"

static const int64_t times[] = {INT64_MIN, -1, 0, 1, INT64_C(750000000000000), INT64_MAX};
static const uint64_t nodes[] = {0, 1, 2, UINT64_C(1) << 63, UINT64_MAX};

#define NTIMES	(sizeof(times) / sizeof(times[0]))
#define NNODES	(sizeof(nodes) / sizeof(nodes[0]))
#define NVERSIONS (NTIMES * NNODES)

/* Versions in ascending order. */
static KdbVersion
version(size_t i)
{
	KdbVersion	v = {times[i / NNODES], nodes[i % NNODES]};

	return v;
}

static int
sign(int x)
{
	return (x > 0) - (x < 0);
}

int
main(void)
{
	bool		ordered = true;
	bool		antisymmetric = true;

	for (size_t i = 0; i < NVERSIONS; i++)
	{
		for (size_t j = 0; j < NVERSIONS; j++)
		{
			int			order = sign(KdbVersionCompare(version(i), version(j)));

			ordered &= order == (i > j) - (i < j);
			antisymmetric &= order == -sign(KdbVersionCompare(version(j), version(i)));
		}
	}
	ok(ordered, "timestamp first, then node, at the ends of both ranges too");
	ok(antisymmetric, "both sides of a comparison agree");
	return done_testing();
}
