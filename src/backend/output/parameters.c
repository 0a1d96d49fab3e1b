/*
 * parameters.c
 *		The options that a client gives at START_REPLICATION.
 *
 * A table of names and readers: each option may be given once, an unknown one
 * is refused.  pgoutput's options have its meaning and its errors.
 */
#include "postgres.h"

#include "commands/defrem.h"
#include "nodes/parsenodes.h"
#include "utils/varlena.h"

#include "krahodb/wire.h"
#include "output_private.h"

#define OPTION_BASE		10

typedef void (*KdbParameterReader)(DefElem *option, KdbOutputParameters *parameters);

static void
read_proto_version(DefElem *option, KdbOutputParameters *parameters)
{
	const char *value = defGetString(option);
	unsigned long parsed;
	char	   *end;

	errno = 0;
	parsed = strtoul(value, &end, OPTION_BASE);
	if (errno != 0 || *end != '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid proto_version")));
	if (parsed > PG_UINT32_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("proto_version \"%s\" out of range", value)));
	parameters->protocol_version = (uint32) parsed;
}

static void
read_publication_names(DefElem *option, KdbOutputParameters *parameters)
{
	/* The names point into the string, which is split in place. */
	if (!SplitIdentifierString(pstrdup(defGetString(option)), ',',
							   &parameters->publication_names))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid publication_names syntax")));
}

static void
read_binary(DefElem *option, KdbOutputParameters *parameters)
{
	parameters->binary = defGetBoolean(option);
}

static void
read_messages(DefElem *option, KdbOutputParameters *parameters)
{
	parameters->messages = defGetBoolean(option);
}

static void
read_streaming(DefElem *option, KdbOutputParameters *parameters)
{
	parameters->streaming = defGetBoolean(option);
}

static void
read_two_phase(DefElem *option, KdbOutputParameters *parameters)
{
	parameters->two_phase = defGetBoolean(option);
}

static void
read_prepared_at_commit(DefElem *option, KdbOutputParameters *parameters)
{
	parameters->prepared_at_commit = defGetBoolean(option);
}

static void
read_origin(DefElem *option, KdbOutputParameters *parameters)
{
	const char *value = defGetString(option);

	if (pg_strcasecmp(value, "none") == 0)
		parameters->origin = KDB_ORIGIN_NONE;
	else if (pg_strcasecmp(value, "any") == 0)
		parameters->origin = KDB_ORIGIN_ANY;
	else
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unrecognized origin value: \"%s\"", value)));
}

static void
read_filter_origins(DefElem *option, KdbOutputParameters *parameters)
{
	KdbParseFilterOrigins(defGetString(option), parameters);
}

static void
read_krahodb(DefElem *option, KdbOutputParameters *parameters)
{
	const char *value = defGetString(option);
	unsigned long parsed;
	char	   *end;

	errno = 0;
	parsed = strtoul(value, &end, OPTION_BASE);
	if (errno != 0 || end == value || *end != '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid krahodb protocol version \"%s\"", value)));
	if (parsed != KDB_WIRE_VERSION)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("client asked for KrahoDB protocol %lu but this server speaks KrahoDB protocol %d",
						parsed, KDB_WIRE_VERSION),
				 errhint("Use the same version of KrahoDB on both servers, or a subscription to a slot of pgoutput.")));
	parameters->framed = true;
}

static void
read_compression(DefElem *option, KdbOutputParameters *parameters)
{
	const char *value = defGetString(option);

	if (!KdbCompressionFromName(value, &parameters->compression))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unrecognized compression value: \"%s\"", value)));
}

/* Any words; those of datum_format.h, or some that we do not know. */
static void
read_datum_format(DefElem *option, KdbOutputParameters *parameters)
{
	parameters->datum_format = defGetString(option);
}

static const struct
{
	const char *name;
	KdbParameterReader read;
} readers[] =
	{
		{"proto_version", read_proto_version},
		{"publication_names", read_publication_names},
		{"binary", read_binary},
		{"messages", read_messages},
		{"streaming", read_streaming},
		{"two_phase", read_two_phase},
		{"prepared_at_commit", read_prepared_at_commit},
		{"origin", read_origin},
		{"filter_origins", read_filter_origins},
		{"krahodb", read_krahodb},
		{"compression", read_compression},
		{"datum_format", read_datum_format},
};

static int
find_reader(const char *name)
{
	for (int i = 0; i < lengthof(readers); i++)
	{
		if (strcmp(name, readers[i].name) == 0)
			return i;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unrecognized krahodb_output option: %s", name)));
}

/*
 * Read options (a list of DefElem with String or no argument) into
 * *parameters, which the caller has zeroed.  What they point to is allocated in
 * the current memory context.  Raises an error for what is not valid.
 */
void
KdbParseOutputParameters(List *options, KdbOutputParameters *parameters)
{
	bool		given[lengthof(readers)] = {false};
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *option = lfirst_node(DefElem, lc);
		int			i = find_reader(option->defname);

		if (given[i])
			ereport(ERROR,
					(errcode(ERRCODE_SYNTAX_ERROR),
					 errmsg("conflicting or redundant options")));
		given[i] = true;
		readers[i].read(option, parameters);
	}
	if (parameters->compression != KDB_COMPRESSION_OFF && !parameters->framed)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option \"%s\" needs option \"%s\"", "compression", "krahodb")));
	if (parameters->datum_format != NULL && !parameters->framed)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option \"%s\" needs option \"%s\"", "datum_format", "krahodb")));
}
