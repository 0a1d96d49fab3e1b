/*
 * jsonb_datum.h
 *		Are these bytes a jsonb value as the engine keeps it?
 *
 * Between servers that keep values alike (datum_format.h) a jsonb value is sent as it is,
 * since writing it as text and parsing that again is most of what such rows cost.  The
 * engine's functions believe what a value says of itself; so whoever takes one from
 * elsewhere looks at all of it first.
 */
#ifndef KRAHODB_JSONB_DATUM_H
#define KRAHODB_JSONB_DATUM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What is left to the caller. */
typedef struct KdbJsonbChecks
{
	bool		(*is_text) (const char *data, uint32_t length);	/* in the database's encoding */
	bool		(*enter) (void);	/* one level deeper; false: that is too deep */
} KdbJsonbChecks;

/*
 * data: the value without its length word, as it would stand behind that (on an address that is a
 * multiple of 4).  Reads nothing but data[0 .. length - 1] and allocates nothing; takes
 * one call of itself for each level.
 *
 * True if every offset, length and type in it is one that the engine could have written:
 * whatever the engine's functions read of it then is inside.  Keys of objects are in the
 * engine's order and there once, strings are valid text, digits of numbers are digits.
 */
extern bool KdbJsonbIsValid(const void *data, size_t length, const KdbJsonbChecks *checks);

#endif							/* KRAHODB_JSONB_DATUM_H */
