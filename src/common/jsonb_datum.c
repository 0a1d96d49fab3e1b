/*
 * jsonb_datum.c
 *		The form of jsonb values, as utils/jsonb.h and numeric.c of PostgreSQL define it.
 *
 *	container	uint32 count and flags, an entry for each child (for an object all keys, then
 *				all values), then what the entries speak of, one after the other
 *	entry		uint32 type, and the length or (in every 32nd, but that is not relied upon)
 *				the end of the child
 *	child		a string without anything; a numeric or a container behind padding to 4 bytes,
 *				which is a part of its length; nothing for null, false and true
 *
 * A value that is no array or object is an array of one, with a flag of its own.  The
 * engine finds a child by adding up lengths from the last entry that has an end; here
 * each end must be where the lengths before it lead, so both ways lead to the same place.
 */
#include "krahodb/jsonb_datum.h"

#include <string.h>

#define COUNT			0x0FFFFFFFu
#define IS_SCALAR		0x10000000u
#define IS_OBJECT		0x20000000u
#define IS_ARRAY		0x40000000u

#define LENGTH_OR_END	0x0FFFFFFFu
#define TYPE			0x70000000u
#define HAS_END			0x80000000u
#define TYPE_STRING		0x00000000u
#define TYPE_NUMERIC	0x10000000u
#define TYPE_FALSE		0x20000000u
#define TYPE_TRUE		0x30000000u
#define TYPE_NULL		0x40000000u
#define TYPE_CONTAINER	0x50000000u

#define WORD			4		/* sizeof(uint32_t), and what children are padded to */

#define NUMERIC_SPECIAL	0xC000u /* NaN and infinities; both bits set */
#define NUMERIC_SHORT	0x8000u
#define NUMERIC_BASE	10000

/* What the children of a container lie in. */
typedef struct Children
{
	const KdbJsonbChecks *checks;
	const char *base;
	size_t		size;
	bool		scalars_only;
} Children;

static bool is_container(const char *data, size_t length, bool outermost, const KdbJsonbChecks *checks);

static uint32_t
word_at(const char *data)
{
	uint32_t	word;

	memcpy(&word, data, WORD);
	return word;
}

static unsigned
half_word_at(const char *data)
{
	uint16_t	half;

	memcpy(&half, data, sizeof(half));
	return half;
}

/* ---- numbers ---- */

/*
 * Take the length in front of a value that is neither compressed nor stored elsewhere: a word, or a byte
 * for a short one.  False if it is not that, or more than there is.
 */
static bool
take_length(const char **data, size_t *length)
{
	unsigned	first = *length > 0 ? (unsigned char) **data : 0;
	bool		is_short;
	size_t		header;
	size_t		claimed;

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	is_short = (first & 0x01) != 0;
	if (is_short ? first == 0x01 : (first & 0x03) != 0)
		return false;
	header = is_short ? 1 : WORD;
	if (*length < header)
		return false;
	claimed = is_short ? first >> 1 : word_at(*data) >> 2;
#else
	is_short = (first & 0x80) != 0;
	if (is_short ? first == 0x80 : (first & 0xC0) != 0)
		return false;
	header = is_short ? 1 : WORD;
	if (*length < header)
		return false;
	claimed = is_short ? first & 0x7F : word_at(*data) & 0x3FFFFFFFu;
#endif
	if (claimed < header || claimed > *length)
		return false;
	*data += header;
	*length = claimed - header;
	return true;
}

static bool
is_numeric(const char *data, size_t length)
{
	unsigned	header;
	size_t		digits = sizeof(uint16_t);	/* where they begin */

	if (!take_length(&data, &length) || length < digits)
		return false;
	header = half_word_at(data);
	if ((header & NUMERIC_SPECIAL) == NUMERIC_SPECIAL)
		return true;
	if ((header & NUMERIC_SHORT) == 0)
		digits += sizeof(uint16_t);
	if (length < digits || (length - digits) % sizeof(uint16_t) != 0)
		return false;
	for (size_t i = digits; i < length; i += sizeof(uint16_t))
	{
		if (half_word_at(data + i) >= NUMERIC_BASE)
			return false;
	}
	return true;
}

/* ---- containers ---- */

static bool
is_child(const Children *children, uint32_t type, size_t offset, size_t length)
{
	size_t		padding = (WORD - offset % WORD) % WORD;
	const char *data = children->base + offset;

	switch (type)
	{
		case TYPE_STRING:
			return children->checks->is_text(data, (uint32_t) length);
		case TYPE_FALSE:
		case TYPE_TRUE:
		case TYPE_NULL:
			return length == 0;
		case TYPE_NUMERIC:
			return length >= padding && is_numeric(data + padding, length - padding);
		case TYPE_CONTAINER:
			return !children->scalars_only && length >= padding && children->checks->enter() &&
				is_container(data + padding, length - padding, false, children->checks);
		default:
			return false;
	}
}

/* Keys are ordered by their length first, and by their bytes then. */
static bool
is_greater_key(const char *key, size_t length, const char *before, size_t length_before)
{
	if (length != length_before)
		return length > length_before;
	return memcmp(key, before, length) > 0;
}

static bool
are_children(const Children *children, const char *entries, uint32_t nentries, uint32_t nkeys)
{
	size_t		offset = 0;
	const char *key = NULL;
	size_t		key_length = 0;

	for (uint32_t i = 0; i < nentries; i++)
	{
		uint32_t	entry = word_at(entries + (size_t) i * WORD);
		size_t		length = entry & LENGTH_OR_END;

		if (entry & HAS_END)
		{
			if (length < offset)
				return false;
			length -= offset;
		}
		if (length > children->size - offset ||
			!is_child(children, entry & TYPE, offset, length))
			return false;
		if (i < nkeys)
		{
			if ((entry & TYPE) != TYPE_STRING ||
				(key && !is_greater_key(children->base + offset, length, key, key_length)))
				return false;
			key = children->base + offset;
			key_length = length;
		}
		offset += length;
	}
	return true;
}

static bool
is_container(const char *data, size_t length, bool outermost, const KdbJsonbChecks *checks)
{
	Children	children = {.checks = checks};
	uint32_t	header;
	uint32_t	nentries;
	uint32_t	nkeys = 0;

	if (length < WORD)
		return false;
	header = word_at(data);
	nentries = header & COUNT;
	switch (header & ~COUNT)
	{
		case IS_OBJECT:
			nkeys = nentries;
			nentries *= 2;
			break;
		case IS_ARRAY:
			break;
		case IS_ARRAY | IS_SCALAR:
			if (!outermost || nentries != 1)
				return false;
			children.scalars_only = true;
			break;
		default:
			return false;
	}
	if (nentries > (length - WORD) / WORD)
		return false;
	children.base = data + WORD + (size_t) nentries * WORD;
	children.size = length - WORD - (size_t) nentries * WORD;
	return are_children(&children, data + WORD, nentries, nkeys);
}

/* See jsonb_datum.h. */
bool
KdbJsonbIsValid(const void *data, size_t length, const KdbJsonbChecks *checks)
{
	return is_container(data, length, true, checks);
}
