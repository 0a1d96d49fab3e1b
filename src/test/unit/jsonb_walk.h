/*
 * jsonb_walk.h
 *		Reads a jsonb value as the engine does: it believes all of it.
 *
 * For tests of KdbJsonbIsValid: of what that accepts, this must not read a byte outside,
 * which AddressSanitizer sees.  As in jsonb_util.c, each child is found from its entry alone, by
 * going back to the last one that has an end, and numbers are read as far as their own length says.
 */
#ifndef JSONB_WALK_H
#define JSONB_WALK_H

#include "krahodb/jsonb_datum.h"

#include <stdlib.h>
#include <string.h>

#define MAX_DEPTH	100

static unsigned walk_depth;
static uint64_t walk_sum;		/* of all bytes, so that they are read */

static bool
is_ascii(const char *data, uint32_t length)
{
	for (uint32_t i = 0; i < length; i++)
	{
		if (data[i] == 0 || ((unsigned char) data[i] & 0x80))
			return false;
	}
	return true;
}

/* The values of the tests have few levels; a limit on all that are entered is enough. */
static bool
enter(void)
{
	return ++walk_depth <= MAX_DEPTH;
}

static bool
is_latin1(const char *data, uint32_t length)
{
	return memchr(data, 0, length) == NULL;
}

static uint32_t
entry_of(const char *container, uint32_t i)
{
	uint32_t	entry;

	memcpy(&entry, container + 4 + 4 * (size_t) i, 4);
	return entry;
}

static uint32_t
offset_of(const char *container, uint32_t index)
{
	uint32_t	offset = 0;

	for (uint32_t i = index; i-- > 0;)
	{
		uint32_t	entry = entry_of(container, i);

		offset += entry & 0x0FFFFFFF;
		if (entry & 0x80000000)
			break;
	}
	return offset;
}

static void
touch(const char *data, size_t length)
{
	for (size_t i = 0; i < length; i++)
		walk_sum += (unsigned char) data[i];
}

static void
walk_numeric(const char *data)
{
	uint32_t	word;

	if ((unsigned char) data[0] & 1)
		touch(data, (unsigned char) data[0] >> 1);
	else
	{
		memcpy(&word, data, 4);
		touch(data, word >> 2);
	}
}

static void
walk(const char *container)
{
	uint32_t	header;
	uint32_t	n;
	const char *base;

	memcpy(&header, container, 4);
	n = header & 0x0FFFFFFF;
	if (header & 0x20000000)
		n *= 2;
	base = container + 4 + 4 * (size_t) n;
	for (uint32_t i = 0; i < n; i++)
	{
		uint32_t	entry = entry_of(container, i);
		uint32_t	offset = offset_of(container, i);
		uint32_t	length = entry & 0x0FFFFFFF;

		if (entry & 0x80000000)
			length -= offset;
		if ((entry & 0x70000000) == 0)
			touch(base + offset, length);
		else if ((entry & 0x70000000) == 0x10000000)
			walk_numeric(base + (offset + 3) / 4 * 4);
		else if ((entry & 0x70000000) == 0x50000000)
			walk(base + (offset + 3) / 4 * 4);
	}
}

/* Is it accepted?  Then it is read, from a block of just its size. */
static bool
try_jsonb(const void *data, size_t length, bool ascii)
{
	const KdbJsonbChecks checks = {ascii ? is_ascii : is_latin1, enter};
	char	   *copy = malloc(length + (length == 0));
	bool		accepted;

	memcpy(copy, data, length);
	walk_depth = 0;
	accepted = KdbJsonbIsValid(copy, length, &checks);
	if (accepted)
		walk(copy);
	free(copy);
	return accepted;
}

#endif							/* JSONB_WALK_H */
