/*
 * status.c
 *		krahodb status: the subscriptions of a database, and what is still copied.
 *
 * It only reads, and any role may ask.  The text has one line per subscription and one
 * per table that is not ready:
 *
 *		subscription b_from_a ... applying
 *		copy b_from_a public.account ... copying, 45.3 %, 12.5 MB at 3.1 MB/s, 00:00:05 left
 *
 * How far a copy is comes from view krahodb.copy_progress.  In a database without the
 * extension only the tables and their states are known.
 */
#include <stdlib.h>
#include <string.h>

#include "tool.h"

/*
 * Each query has the members of the JSON objects as columns, in that order; numbers
 * are of types that JSON writes without quotes.
 */
#define SUBSCRIPTIONS \
	"SELECT s.subname AS name," \
	" CASE WHEN NOT s.subenabled THEN 'disabled' WHEN w.pid IS NULL THEN 'no worker' ELSE 'applying' END AS state," \
	" w.pid, w.received_lsn, e.apply_error_count AS apply_errors, e.sync_error_count AS sync_errors" \
	" FROM pg_catalog.pg_subscription s" \
	" JOIN pg_catalog.pg_database d ON d.oid = s.subdbid AND d.datname = pg_catalog.current_database()" \
	" LEFT JOIN pg_catalog.pg_stat_subscription w ON w.subid = s.oid AND w.relid IS NULL" \
	" LEFT JOIN pg_catalog.pg_stat_subscription_stats e ON e.subid = s.oid" \
	" ORDER BY s.subname"

#define COPIES_WITH_PROGRESS \
	"SELECT subscription, schema, \"table\", state, workers, percent, rows, bytes, bytes_per_second," \
	" pg_catalog.round(EXTRACT(epoch FROM elapsed)) AS elapsed_seconds," \
	" pg_catalog.round(EXTRACT(epoch FROM remaining)) AS remaining_seconds," \
	" percent || ' %' AS percent_text, pg_catalog.pg_size_pretty(bytes) AS bytes_text," \
	" pg_catalog.pg_size_pretty(bytes_per_second) AS rate_text," \
	" pg_catalog.date_trunc('second', remaining) AS remaining_text" \
	" FROM krahodb.copy_progress ORDER BY 1, 2, 3"

#define COPIES_WITHOUT_PROGRESS \
	"SELECT s.subname AS subscription, n.nspname AS schema, c.relname AS \"table\"," \
	" CASE WHEN r.srsubstate IN ('f', 's') THEN 'catching up' WHEN r.srsubstate = 'd' THEN 'copying' ELSE 'waiting' END AS state" \
	" FROM pg_catalog.pg_subscription_rel r" \
	" JOIN pg_catalog.pg_subscription s ON s.oid = r.srsubid" \
	" JOIN pg_catalog.pg_database d ON d.oid = s.subdbid AND d.datname = pg_catalog.current_database()" \
	" JOIN pg_catalog.pg_class c ON c.oid = r.srrelid" \
	" JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace" \
	" WHERE r.srsubstate <> 'r' ORDER BY 1, 2, 3"

#define INT4OID		23
#define INT8OID		20
#define NUMERICOID	1700

static void
print_help(void)
{
	puts("krahodb status shows the subscriptions of a database and the progress of initial copies.\n"
		 "\n"
		 "Usage:\n"
		 "  krahodb status [--json] [CONNINFO]\n"
		 "\n"
		 "CONNINFO is a database name, a connection string or a URI; what it leaves open\n"
		 "is taken from PGHOST, PGPORT, PGDATABASE, ... as psql does.\n"
		 "\n"
		 "  --json      the same as JSON\n"
		 "  -h, --help  this text\n"
		 "\n"
		 "Prints one line per subscription, and one per table whose initial copy is not finished.\n"
		 "Exit codes: 0 all enabled subscriptions have a worker, 1 wrong usage, 2 no connection,\n"
		 "3 one of them has none.");
}

/* The value in that column; NULL if it is null, or there is no such column. */
static const char *
value_of(const PGresult *result, int row, const char *column)
{
	int			number = PQfnumber(result, column);

	if (number < 0 || PQgetisnull(result, row, number))
		return NULL;
	return PQgetvalue(result, row, number);
}

static bool
has_suffix(const char *string, const char *suffix)
{
	size_t		length = strlen(string);

	return length >= strlen(suffix) && strcmp(string + length - strlen(suffix), suffix) == 0;
}

static bool
is_number(Oid type)
{
	return type == INT4OID || type == INT8OID || type == NUMERICOID;
}

static void
print_json_row(const PGresult *result, int row)
{
	for (int i = 0; i < PQnfields(result); i++)
	{
		const char *name = PQfname(result, i);

		if (has_suffix(name, "_text"))
			continue;
		printf("%s\"%s\": ", i > 0 ? ", " : "{", name);
		if (is_number(PQftype(result, i)) && !PQgetisnull(result, row, i))
			fputs(PQgetvalue(result, row, i), stdout);
		else
			KdbJsonString(stdout, value_of(result, row, name));
	}
	putchar('}');
}

static void
print_json_rows(const char *name, const PGresult *result)
{
	printf(", \"%s\": [", name);
	for (int row = 0; row < PQntuples(result); row++)
	{
		fputs(row > 0 ? ",\n  " : "\n  ", stdout);
		print_json_row(result, row);
	}
	fputs(PQntuples(result) > 0 ? "\n]" : "]", stdout);
}

static void
print_json(const PGresult *subscriptions, const PGresult *copies, bool ok)
{
	printf("{\"command\": \"status\", \"ok\": %s", ok ? "true" : "false");
	print_json_rows("subscriptions", subscriptions);
	print_json_rows("copies", copies);
	puts("}");
}

static const char *
text_of(const PGresult *result, int row, const char *column)
{
	return KdbPlainText(value_of(result, row, column));
}

/* ", before VALUE after", unless there is no value. */
static void
print_part(const char *before, const char *value, const char *after)
{
	if (value != NULL)
		printf("%s%s%s", before, value, after);
}

static void
print_text(const PGresult *subscriptions, const PGresult *copies)
{
	for (int row = 0; row < PQntuples(subscriptions); row++)
		printf("subscription %s ... %s\n", text_of(subscriptions, row, "name"),
			   value_of(subscriptions, row, "state"));
	for (int row = 0; row < PQntuples(copies); row++)
	{
		printf("copy %s %s.%s ... %s", text_of(copies, row, "subscription"), text_of(copies, row, "schema"),
			   text_of(copies, row, "table"), value_of(copies, row, "state"));
		print_part(", ", value_of(copies, row, "percent_text"), "");
		print_part(", ", value_of(copies, row, "bytes_text"), "");
		print_part(" at ", value_of(copies, row, "rate_text"), "/s");
		print_part(", ", value_of(copies, row, "remaining_text"), " left");
		putchar('\n');
	}
}

/* Has each enabled subscription a worker? */
static bool
all_work(const PGresult *subscriptions)
{
	for (int row = 0; row < PQntuples(subscriptions); row++)
	{
		if (strcmp(value_of(subscriptions, row, "state"), "no worker") == 0)
			return false;
	}
	return true;
}

static PGresult *
ask_for_copies(PGconn *conn)
{
	PGresult   *copies;
	/* Not by the view's name: anybody can give that to a view of his own. */
	bool		extension = KdbQueryValue(conn, "SELECT extname FROM pg_catalog.pg_extension WHERE extname = 'krahodb'") != NULL;
	bool		loaded = KdbQueryValue(conn, "SELECT pg_catalog.current_setting('krahodb.version', true)") != NULL;

	if (extension && loaded)
		return KdbQuery(conn, COPIES_WITH_PROGRESS);
	copies = KdbQuery(conn, COPIES_WITHOUT_PROGRESS);
	if (PQntuples(copies) > 0 && !loaded)
		KdbWarn("how far copies are is known only by a server that has loaded KrahoDB");
	else if (PQntuples(copies) > 0)
		KdbWarn("how far copies are is known only with the extension; run CREATE EXTENSION krahodb in this database");
	return copies;
}

KdbExitCode
KdbStatusCommand(int argc, char **argv)
{
	bool		json;
	const char *conninfo = KdbReadArguments(argc, argv, print_help, &json);
	char	   *error;
	PGconn	   *conn = KdbConnect(conninfo, &error);
	PGresult   *subscriptions;
	PGresult   *copies;
	bool		ok;

	if (conn == NULL)
		KdbDie(KDB_EXIT_CONNECTION, "%s", error);
	subscriptions = KdbQuery(conn, SUBSCRIPTIONS);
	copies = ask_for_copies(conn);
	ok = all_work(subscriptions);
	if (json)
		print_json(subscriptions, copies, ok);
	else
		print_text(subscriptions, copies);
	PQfinish(conn);
	return ok ? KDB_EXIT_OK : KDB_EXIT_MISSING;
}
