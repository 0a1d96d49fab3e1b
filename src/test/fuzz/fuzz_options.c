/*
 * fuzz_options.c
 *		Any options may come with START_REPLICATION: the output plugin must stand them.
 *
 * An input is a list of names and values, each ended by a zero byte; a value of one byte
 * '\1' stands for an option without a value.  The plugin's own files are compiled in, with
 * what they need of the server below: memory that is watched, errors that jump, and the
 * engine's readers of booleans and lists of names as far as they matter here.
 *
 * Options are accepted or refused with an SQLSTATE that says why.  Of what is accepted is
 * checked that the filter is a set, and that it filters what the text says.
 */
#include "postgres.h"

#include <setjmp.h>
#include <strings.h>

#undef qsort
#define pg_strcasecmp strcasecmp

/* How these are declared makes no difference to their callers. */
#include "../../backend/output/parameters.c"
#include "../../backend/output/origin_filter.c"

#undef printf
#undef fprintf
#undef vfprintf
#undef snprintf
#undef vsnprintf
#undef strerror
#undef strerror_r
#undef vprintf
#undef sprintf
#undef vsprintf

#include "../unit/wire_encode.h"

#define MAX_OPTIONS		16
#define MAX_BLOCKS		4096
#define NO_VALUE		"\1"

extern int	LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
require(bool condition)
{
	if (!condition)
		abort();
}

/* ---- what is the server's: memory ---- */

static void *blocks[MAX_BLOCKS];
static int	nblocks = 0;

void *
palloc(Size size)
{
	void	   *block = malloc(size ? size : 1);

	require(block != NULL && nblocks < MAX_BLOCKS);
	return blocks[nblocks++] = block;
}

char *
pstrdup(const char *in)
{
	size_t		len = strlen(in) + 1;

	return memcpy(palloc(len), in, len);
}

static void
free_blocks(void)
{
	while (nblocks > 0)
		free(blocks[--nblocks]);
}

List *
lappend(List *list, void *datum)
{
	List	   *result = palloc(sizeof(List));
	int			n = list ? list->length : 0;

	result->type = T_List;
	result->length = n + 1;
	result->max_length = n + 1;
	result->elements = palloc((n + 1) * sizeof(ListCell));
	if (n > 0)
		memcpy(result->elements, list->elements, n * sizeof(ListCell));
	result->elements[n].ptr_value = datum;
	return result;
}

/* ---- errors ---- */

static jmp_buf failed;
static int	sqlstate;

bool
errstart(int elevel, const char *domain)
{
	require(elevel >= ERROR);
	sqlstate = ERRCODE_INTERNAL_ERROR;
	return true;
}

bool
errstart_cold(int elevel, const char *domain)
{
	return errstart(elevel, domain);
}

int
errcode(int code)
{
	sqlstate = code;
	return 0;
}

/* Reads all that the message has to say. */
static void
format(const char *fmt, va_list args)
{
	static volatile char sink;
	char	   *text;
	int			len = vasprintf(&text, fmt, args);

	require(len >= 0);
	for (int i = 0; i < len; i++)
		sink = text[i];
	(void) sink;
	free(text);
}

#define MESSAGE_FUNCTION(name) \
	int name(const char *fmt, ...) \
	{ \
		va_list		args; \
		va_start(args, fmt); \
		format(fmt, args); \
		va_end(args); \
		return 0; \
	}

MESSAGE_FUNCTION(errmsg)
MESSAGE_FUNCTION(errmsg_internal)
MESSAGE_FUNCTION(errdetail)
MESSAGE_FUNCTION(errhint)

void
errfinish(const char *filename, int lineno, const char *funcname)
{
	longjmp(failed, 1);
}

/* ---- reading options ---- */

char *
defGetString(DefElem *def)
{
	if (def->arg == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("%s requires a parameter", def->defname)));
	return ((String *) def->arg)->sval;
}

bool
defGetBoolean(DefElem *def)
{
	static const char *const yes[] = {"true", "on", "yes", "1"};
	static const char *const no[] = {"false", "off", "no", "0"};

	if (def->arg == NULL)
		return true;
	for (int i = 0; i < (int) lengthof(yes); i++)
	{
		if (strcasecmp(defGetString(def), yes[i]) == 0)
			return true;
		if (strcasecmp(defGetString(def), no[i]) == 0)
			return false;
	}
	ereport(ERROR,
			(errcode(ERRCODE_SYNTAX_ERROR),
			 errmsg("%s requires a Boolean value", def->defname)));
}

/* Without quotes; in place as the engine's. */
bool
SplitIdentifierString(char *rawstring, char separator, List **namelist)
{
	char	   *name = rawstring;

	*namelist = NIL;
	for (char *p = rawstring;; p++)
	{
		bool		end = *p == '\0';

		if (!end && *p != separator)
			continue;
		if (p == name)
			return false;
		*p = '\0';
		*namelist = lappend(*namelist, name);
		if (end)
			return true;
		name = p + 1;
	}
}

void
KdbOutputSeenNote(LogicalDecodingContext *ctx, RepOriginId origin_id)
{
	abort();
}

/* ---- one input ---- */

/* The next string of the input, copied; NULL if there is none. */
static char *
next_string(const uint8_t **data, size_t *size)
{
	const uint8_t *end = memchr(*data, '\0', *size);
	char	   *result;

	if (end == NULL)
		return NULL;
	result = pstrdup((const char *) *data);
	*size -= end + 1 - *data;
	*data = end + 1;
	return result;
}

static List *
read_options(const uint8_t *data, size_t size)
{
	List	   *options = NIL;

	for (int i = 0; i < MAX_OPTIONS; i++)
	{
		char	   *name = next_string(&data, &size);
		char	   *value = name ? next_string(&data, &size) : NULL;
		DefElem    *option;
		String	   *string;

		if (value == NULL)
			break;
		string = palloc(sizeof(String));
		string->type = T_String;
		string->sval = value;
		option = palloc(sizeof(DefElem));
		memset(option, 0, sizeof(DefElem));
		option->type = T_DefElem;
		option->defname = name;
		option->arg = strcmp(value, NO_VALUE) == 0 ? NULL : (Node *) string;
		options = lappend(options, option);
	}
	return options;
}

static const char *
value_of(List *options, const char *name)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *option = lfirst(lc);

		if (strcmp(option->defname, name) == 0)
			return option->arg ? ((String *) option->arg)->sval : "";
	}
	return NULL;
}

/* Every number of the text is filtered, and no other one. */
static void
check_filter(const char *text, const KdbOutputParameters *parameters)
{
	static bool wanted[MAX_ORIGIN_ID + 1];
	int			n = 0;

	memset(wanted, 0, sizeof(wanted));
	for (const char *p = text; *p != '\0'; p += strspn(p, " \t,"))
	{
		char	   *end;
		unsigned long id = strtoul(p, &end, 10);

		require(end > p && id >= MIN_ORIGIN_ID && id <= MAX_ORIGIN_ID);
		n += !wanted[id];
		wanted[id] = true;
		p = end;
	}
	require(n == parameters->nfilter_origins);
	for (int id = 1; id <= MAX_ORIGIN_ID; id++)
		require(wanted[id] == (bsearch(&(RepOriginId){id}, parameters->filter_origins, n,
									   sizeof(RepOriginId), compare_origin_ids) != NULL));
}

static void
check_accepted(List *options, const KdbOutputParameters *parameters)
{
	const char *filter = value_of(options, "filter_origins");
	ListCell   *lc;

	require(parameters->nfilter_origins == 0 || filter != NULL);
	if (filter != NULL)
	{
		filter += strspn(filter, " \t");
		check_filter(filter, parameters);
	}
	require(!KdbOriginIsFiltered(parameters, InvalidRepOriginId));
	require(parameters->framed == (value_of(options, "krahodb") != NULL));
	require(parameters->compression == KDB_COMPRESSION_OFF || parameters->framed);
	foreach(lc, parameters->publication_names)
		require(strlen(lfirst(lc)) > 0);
}

static bool
is_refusal(int code)
{
	return code == ERRCODE_INVALID_PARAMETER_VALUE || code == ERRCODE_SYNTAX_ERROR ||
		code == ERRCODE_INVALID_NAME || code == ERRCODE_FEATURE_NOT_SUPPORTED;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static KdbOutputParameters parameters;
	static List *options;

	options = read_options(data, size);
	memset(&parameters, 0, sizeof(parameters));
	if (setjmp(failed) == 0)
	{
		KdbParseOutputParameters(options, &parameters);
		check_accepted(options, &parameters);
	}
	else
		require(is_refusal(sqlstate));
	free_blocks();
	return 0;
}

#ifdef FUZZ_MAIN

#include "fuzz_main.h"

static void
put_options(const char *directory, const char *name, int n, const char *const *strings)
{
	wire_bytes	seed = {0};

	for (int i = 0; i < n; i++)
		put_bytes(&seed, strings[i], strlen(strings[i]) + 1);
	write_seed(directory, name, &seed);
	free(seed.data);
}

#define SEED(name, ...) \
	do { \
		static const char *const strings[] = {__VA_ARGS__}; \
		put_options(directory, name, lengthof(strings), strings); \
	} while (0)

void
write_seeds(const char *directory)
{
	SEED("pgoutput", "proto_version", "3", "publication_names", "a,b", "binary", "true",
		 "messages", "off", "streaming", "on", "two_phase", "yes");
	SEED("krahodb", "proto_version", "1", "publication_names", "p", "krahodb", "1",
		 "compression", "zstd", "prepared_at_commit", NO_VALUE);
	SEED("origins", "origin", "any", "filter_origins", "1, 2,65534 , 2,\t77");
	SEED("none", "origin", "none", "compression", "lz4", "krahodb", "1");
	SEED("twice", "binary", "1", "binary", "0");
	SEED("numbers", "proto_version", "4294967296", "krahodb", "99999999999999999999");
}

#endif							/* FUZZ_MAIN */
