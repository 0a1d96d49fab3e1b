/*
 * datum_format.c
 *		How this server keeps values, in words that can be compared.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"

#include "krahodb/compat.h"
#include "krahodb/datum_format.h"

#ifdef WORDS_BIGENDIAN
#define BYTE_ORDER_NAME "big-endian"
#else
#define BYTE_ORDER_NAME "little-endian"
#endif

/* See datum_format.h. */
char *
KdbDatumFormat(void)
{
	return psprintf("%d %s %d %d %s", KDB_PG_MAJOR, BYTE_ORDER_NAME,
					MAXIMUM_ALIGNOF, SIZEOF_DATUM, GetDatabaseEncodingName());
}
