/*
 * subscription_values.c
 *		Reading the value of one option.
 *
 * Values come as text from two sides (WITH and SET clauses, labels), either of
 * which may hold anything.  Every error names the option, repeats no more than
 * the start of the value, and says which values there are.
 */
#include "postgres.h"

#include <ctype.h>

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "port.h"
#include "utils/builtins.h"
#include "utils/formatting.h"

#include "options_private.h"

#define MAX_QUOTED_BYTES	64

/* The greatest id that an origin can have; one more is DoNotReplicateId. */
#define MAX_ORIGIN_ID		(DoNotReplicateId - 1)

static void bad_value(const char *name, const char *value, const char *detail,
					  const char *hint) pg_attribute_noreturn();

static void
bad_value(const char *name, const char *value, const char *detail, const char *hint)
{
	int			len = pg_mbcliplen(value, strlen(value), MAX_QUOTED_BYTES);

	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for parameter \"%s\": \"%.*s%s\"", name, len, value,
					value[len] == '\0' ? "" : "..."),
			 errdetail("%s", detail),
			 hint ? errhint("%s", hint) : 0));
}

bool
KdbIsDefaultValue(const char *value)
{
	return pg_strcasecmp(value, "default") == 0;
}

/* Same words and same error as the engine's own option of version 16. */
KdbOriginFilter
KdbReadOriginFilter(const char *value)
{
	if (pg_strcasecmp(value, "any") == 0)
		return KDB_ORIGIN_ANY;
	if (pg_strcasecmp(value, "none") == 0)
		return KDB_ORIGIN_NONE;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unrecognized origin value: \"%.*s\"",
					pg_mbcliplen(value, strlen(value), MAX_QUOTED_BYTES), value),
			 errdetail("Valid values of \"%s\" are \"any\" and \"none\".", "origin")));
}

/*
 * Read one id at *position, white space around it, and step behind it.
 * Returns 0 for anything else.
 */
static RepOriginId
next_origin_id(const char **position)
{
	const char *p = *position;
	unsigned int id = 0;

	while (isspace((unsigned char) *p))
		p++;
	for (; isdigit((unsigned char) *p) && id <= MAX_ORIGIN_ID; p++)
		id = id * 10 + (*p - '0');
	while (isspace((unsigned char) *p))
		p++;
	*position = p;
	return id <= MAX_ORIGIN_ID ? (RepOriginId) id : InvalidRepOriginId;
}

RepOriginId
KdbReadOriginId(const char *name, const char *value)
{
	const char *position = value;
	RepOriginId id = next_origin_id(&position);

	if (id == InvalidRepOriginId || *position != '\0')
		bad_value(name, value,
				  psprintf("A replication origin id is a number from 1 to %d.", MAX_ORIGIN_ID), NULL);
	return id;
}

static int
compare_origin_ids(const void *a, const void *b)
{
	return (int) *(const RepOriginId *) a - (int) *(const RepOriginId *) b;
}

/*
 * A list of ids, or "none" for an empty one.  *ids is palloc'd, sorted and
 * distinct; returns how many there are.
 */
int
KdbReadOriginIds(const char *name, const char *value, RepOriginId **ids)
{
	const char *position = value;
	RepOriginId *result;
	int			n = 0;

	*ids = NULL;
	if (pg_strcasecmp(value, "none") == 0)
		return 0;

	/* An id and its comma take two bytes at least. */
	result = palloc((strlen(value) / 2 + 1) * sizeof(RepOriginId));
	for (;;)
	{
		result[n] = next_origin_id(&position);
		if (result[n] == InvalidRepOriginId || (*position != ',' && *position != '\0'))
			bad_value(name, value,
					  psprintf("It must be a list of replication origin ids from 1 to %d, separated by commas, or \"none\".", MAX_ORIGIN_ID),
					  "The ids are those of the publisher, as its pg_replication_origin shows them.");
		n++;
		if (*position == '\0')
			break;
		position++;
	}

	qsort(result, n, sizeof(RepOriginId), compare_origin_ids);
	for (int i = 1; i < n; i++)
	{
		if (result[i - 1] == result[i])
			bad_value(name, value,
					  psprintf("Replication origin id %u is given more than once.", result[i]), NULL);
	}
	*ids = result;
	return n;
}

int
KdbReadApplyWorkers(const char *name, const char *value)
{
	char	   *end;
	long		n;

	errno = 0;
	n = strtol(value, &end, 10);
	if (errno != 0 || end == value || *end != '\0' || n < 1 || n > KDB_MAX_APPLY_WORKERS)
		bad_value(name, value,
				  psprintf("The number of apply workers is from 1 to %d.", KDB_MAX_APPLY_WORKERS), NULL);
	return (int) n;
}

KdbCompression
KdbReadCompression(const char *name, const char *value)
{
	KdbCompression compression;

	if (!KdbCompressionFromName(asc_tolower(value, strlen(value)), &compression))
		bad_value(name, value, "Valid values are \"off\", \"lz4\" and \"zstd\".", NULL);
	return compression;
}

/* The resolvers that an option may have, as a sentence. */
static char *
valid_resolvers(const char *name, bool (*valid) (int type, KdbResolver resolver), int type)
{
	StringInfoData detail;
	const char *separator = "";

	initStringInfo(&detail);
	appendStringInfo(&detail, "Valid values of \"%s\" are ", name);
	for (int i = 0; i < KDB_RESOLVERS; i++)
	{
		if (!valid(type, (KdbResolver) i))
			continue;
		appendStringInfo(&detail, "%s\"%s\"", separator, KdbResolverName((KdbResolver) i));
		separator = ", ";
	}
	appendStringInfoString(&detail, " and \"default\".");
	return detail.data;
}

static bool
valid_general(int type, KdbResolver resolver)
{
	return KdbResolverIsGeneral(resolver);
}

static bool
valid_for_type(int type, KdbResolver resolver)
{
	return KdbResolverAllowed((KdbConflictType) type, resolver);
}

static KdbResolver
read_resolver(const char *name, const char *value,
			  bool (*valid) (int type, KdbResolver resolver), int type)
{
	char	   *word = asc_tolower(value, strlen(value));
	KdbResolver resolver;
	bool		known = KdbResolverFromName(word, &resolver) && resolver != KDB_RESOLVER_ENGINE;
	const char *hint = NULL;

	if (known && valid(type, resolver))
		return resolver;
	if (known)
		hint = valid == valid_general ?
			"This resolver is for single conflict types, such as \"update_missing\"." :
			"This resolver is for other conflict types.";
	bad_value(name, value, valid_resolvers(name, valid, type), hint);
}

KdbResolver
KdbReadGeneralResolver(const char *name, const char *value)
{
	return read_resolver(name, value, valid_general, 0);
}

KdbResolver
KdbReadTypeResolver(KdbConflictType type, const char *value)
{
	return read_resolver(KdbConflictTypeName(type), value, valid_for_type, (int) type);
}
