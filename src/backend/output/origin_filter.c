/*
 * origin_filter.c
 *		Changes of which origins are not sent.
 *
 * The engine asks for each change, and for each commit, with the origin id that
 * stands in the log record: 0 for what was written here, else the local id of
 * the origin that the writing session had set up (an apply worker's).  A
 * filtered change is not even queued.
 *
 *	origin = none		filters everything that was not written here
 *	filter_origins		filters the ids of a list
 *
 * With both, either filters.  The callback runs for each log record and outside
 * of transactions, so it looks nothing up: a table synchronisation worker of
 * KrahoDB marks what it writes with its subscription's own origin id, therefore
 * one id stands for all that a subscription writes.
 */
#include "postgres.h"

#include "output_private.h"

#define MIN_ORIGIN_ID	1
#define MAX_ORIGIN_ID	(DoNotReplicateId - 1)

static int
compare_origin_ids(const void *a, const void *b)
{
	return (int) *(const RepOriginId *) a - (int) *(const RepOriginId *) b;
}

static void
refuse_filter_origins(const char *value)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for filter_origins: \"%s\"", value),
			 errdetail("The value must be a list of replication origin ids between %d and %d, separated by commas.",
					   MIN_ORIGIN_ID, MAX_ORIGIN_ID)));
}

static const char *
skip_blanks(const char *p)
{
	while (*p == ' ' || *p == '\t')
		p++;
	return p;
}

/* Read a decimal id at *p and step behind it; returns 0 if there is none. */
static int
read_origin_id(const char **p)
{
	int			id = 0;

	while (**p >= '0' && **p <= '9')
	{
		id = id * 10 + (**p - '0');
		if (id > MAX_ORIGIN_ID)
			return 0;
		(*p)++;
	}
	return id;
}

/* Sort and remove what is there more than once. */
static void
make_set(KdbOutputParameters *parameters)
{
	RepOriginId *ids = parameters->filter_origins;
	int			distinct = 1;

	qsort(ids, parameters->nfilter_origins, sizeof(RepOriginId), compare_origin_ids);
	for (int i = 1; i < parameters->nfilter_origins; i++)
	{
		if (ids[i] != ids[distinct - 1])
			ids[distinct++] = ids[i];
	}
	parameters->nfilter_origins = distinct;
}

/*
 * Read the value of filter_origins, "id, id, ...", into the parameters.  The
 * array is allocated in the current memory context.
 */
void
KdbParseFilterOrigins(const char *value, KdbOutputParameters *parameters)
{
	const char *p = skip_blanks(value);

	/* An id takes at least two bytes of the text, with what ends it. */
	parameters->filter_origins = palloc((strlen(value) / 2 + 1) * sizeof(RepOriginId));
	for (;;)
	{
		int			id = read_origin_id(&p);

		if (id < MIN_ORIGIN_ID)
			refuse_filter_origins(value);
		parameters->filter_origins[parameters->nfilter_origins++] = id;
		p = skip_blanks(p);
		if (*p == '\0')
			break;
		if (*p != ',')
			refuse_filter_origins(value);
		p = skip_blanks(p + 1);
	}
	make_set(parameters);
}

/* Is what that origin wrote to be left out? */
bool
KdbOriginIsFiltered(const KdbOutputParameters *parameters, RepOriginId origin_id)
{
	if (origin_id == InvalidRepOriginId)
		return false;
	if (parameters->origin == KDB_ORIGIN_NONE)
		return true;
	return parameters->nfilter_origins > 0 &&
		bsearch(&origin_id, parameters->filter_origins, parameters->nfilter_origins,
				sizeof(RepOriginId), compare_origin_ids) != NULL;
}

/*
 * Filter callback.  It is asked about commit records too, after the database was
 * found to be the right one, and for each that is not skipped for being before the
 * session's start; so this is where what was applied here is learned of.
 */
bool
KdbOutputFilterByOrigin(LogicalDecodingContext *ctx, RepOriginId origin_id)
{
	KdbOutput  *output = KdbOutputOf(ctx);

	if (output->seen != NULL)
		KdbOutputSeenNote(ctx, origin_id);
	return KdbOriginIsFiltered(&output->parameters, origin_id);
}
