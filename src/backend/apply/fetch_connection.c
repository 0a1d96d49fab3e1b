/*
 * fetch_connection.c
 *		A connection to the publisher for rows that are fetched one by one.
 *
 * The replication connection is busy with the stream, so this is another one, an
 * ordinary one by the subscription's connection string.  It is made at the first fetch
 * and closed when it has not been used for KEPT_MS, because a server that is shut down in
 * "smart" mode waits for its clients; who never fetches never connects.
 *
 * The worker is inside a transaction and holds locks, so a fetch as a whole has a
 * limit, krahodb.fetch_timeout.  All waiting is for the socket and the latch together,
 * with libpq's non-blocking functions, so that the worker can be stopped at any time; and
 * the publisher, which hears nothing else meanwhile, is told that there is somebody (feedback.c).
 * (libpq resolves host names without a limit; that is the resolver's.)
 *
 * ERRORS.  Nothing is tried again here: the remote transaction fails and is applied
 * again as after any error.  An error may leave an answer under way, so a connection
 * that is found to be in use when the next fetch begins is closed.  One that the
 * publisher has closed meanwhile is made anew.
 */
#include "postgres.h"

#include "libpq-fe.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/timestamp.h"

#include "krahodb/shared.h"

#include "apply_private.h"
#include "fetch_private.h"

#define KEPT_MS		10000
#define NAP_MS		250L		/* behind which the stream's publisher hears of us */

int			KdbFetchTimeout = 10000;

static PGconn *connection = NULL;
static bool in_use = false;
static int	session_timeout;	/* as the publisher's session knows it */
static TimestampTz deadline;
static TimestampTz begun;
static const KdbFetchSubject *subject;

/* ---- errors ---------------------------------------------------------------- */

/* See fetch_private.h. */
int
KdbFetchErrorDetail(const KdbFetchSubject *s)
{
	return errdetail("Key %s: the change does not contain column \"%s\", an unchanged out-of-line value, and the row here is not provably the one that was changed.",
					 s->key, s->column);
}

static void
close_connection(void)
{
	if (connection != NULL)
	{
		PQfinish(connection);
		ReleaseExternalFD();
	}
	connection = NULL;
	in_use = false;
}

/* The first line of libpq's message, palloc'd. */
static char *
first_line(const char *message)
{
	size_t		len = strcspn(message, "\n");

	return len > 0 ? pnstrdup(message, len) : pstrdup(_("unknown error"));
}

static void pg_attribute_noreturn()
connection_failed(void)
{
	char	   *message = first_line(connection ? PQerrorMessage(connection) : "");

	close_connection();
	pg_atomic_fetch_add_u64(&KdbShared->fetch_failures, 1);
	ereport(ERROR,
			(errcode(ERRCODE_CONNECTION_FAILURE),
			 errmsg("could not fetch a row of table \"%s.%s\" from the publisher: %s",
					subject->nspname, subject->relname, message),
			 KdbFetchErrorDetail(subject),
			 errhint("The transaction is tried again. Fetching uses an ordinary connection by the subscription's connection string, beside the replication connection.")));
}

static void pg_attribute_noreturn()
timed_out(void)
{
	close_connection();
	pg_atomic_fetch_add_u64(&KdbShared->fetch_failures, 1);
	ereport(ERROR,
			(errcode(ERRCODE_CONNECTION_FAILURE),
			 errmsg("could not fetch a row of table \"%s.%s\" from the publisher within %d ms",
					subject->nspname, subject->relname, KdbFetchTimeout),
			 KdbFetchErrorDetail(subject),
			 errhint("The transaction is tried again. The limit is \"%s\".", "krahodb.fetch_timeout")));
}

/* Is the function that is asked for not there?  (The extension of another version, or dropped just now.) */
static bool
lacks_function(const char *sqlstate, const char *message)
{
	return strcmp(sqlstate, "42883") == 0 ||
		(strcmp(sqlstate, "3F000") == 0 && strstr(message, "\"krahodb\"") != NULL);
}

/* What to do about an error of the publisher's. */
static const char *
advice(const char *sqlstate)
{
	/* schema, table, column, partition, not a table, no key any more */
	static const char *const changed[] = {"3F000", "42P01", "42703", "23514", "42809", "55000"};

	for (int i = 0; i < lengthof(changed); i++)
	{
		if (strcmp(sqlstate, changed[i]) == 0)
			return _("The publisher's table was changed or dropped after it was written to. Have it there again, with this name and these columns, until the change is applied; it may be empty.");
	}
	return _("The role of the subscription's connection string must be allowed to read the table. With REPLICA IDENTITY FULL on the publisher's table nothing is fetched.");
}

static void pg_attribute_noreturn()
extension_missing(const char *message)
{
	close_connection();
	pg_atomic_fetch_add_u64(&KdbShared->fetch_failures, 1);
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("could not fetch a row of table \"%s.%s\" from the publisher: %s",
					subject->nspname, subject->relname, message),
			 KdbFetchErrorDetail(subject),
			 errhint("Run CREATE EXTENSION krahodb in the publisher's database, or set REPLICA IDENTITY FULL on the table there.")));
}

/* The publisher has answered with an error. */
static void pg_attribute_noreturn()
query_failed(PGresult *result)
{
	const char *state = PQresultErrorField(result, PG_DIAG_SQLSTATE);
	const char *primary = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
	char		code[6];
	char	   *message;

	if (state == NULL || strlen(state) != 5 || primary == NULL)
	{
		PQclear(result);
		connection_failed();
	}
	strlcpy(code, state, sizeof(code));
	message = pstrdup(primary);
	PQclear(result);
	if (strcmp(code, "57014") == 0)
		timed_out();
	if (lacks_function(code, message))
		extension_missing(message);
	close_connection();
	pg_atomic_fetch_add_u64(&KdbShared->fetch_failures, 1);
	ereport(ERROR,
			(errcode(MAKE_SQLSTATE(code[0], code[1], code[2], code[3], code[4])),
			 errmsg("could not fetch a row of table \"%s.%s\" from the publisher: %s",
					subject->nspname, subject->relname, message),
			 KdbFetchErrorDetail(subject),
			 errhint("%s", advice(code))));
}

/* ---- waiting --------------------------------------------------------------- */

/* Until the socket is ready; false if it was something else. */
static bool
wait_for_socket(int events)
{
	long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
	int			happened;

	if (left <= 0)
		timed_out();
	happened = WaitLatchOrSocket(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH | events,
								 PQsocket(connection), Min(left, NAP_MS), PG_WAIT_EXTENSION);
	KdbFeedbackWhileBusy();
	if (happened & WL_LATCH_SET)
	{
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return (happened & events) != 0;
}

/* libpq would print it. */
static void
note_notice(void *arg, const char *message)
{
	elog(DEBUG1, "publisher says: %s", message);
}

static void
connect_to_publisher(void)
{
	const char *const keywords[] = {"dbname", "fallback_application_name", "client_encoding", NULL};
	const char *const values[] = {MySubscription->conninfo, "krahodb fetch",
	GetDatabaseEncodingName(), NULL};
	PostgresPollingStatusType polling = PGRES_POLLING_WRITING;

	ReserveExternalFD();
	connection = PQconnectStartParams(keywords, values, 1);
	if (connection == NULL)
	{
		ReleaseExternalFD();
		connection_failed();
	}
	while (polling != PGRES_POLLING_OK)
	{
		if (polling == PGRES_POLLING_FAILED || PQstatus(connection) == CONNECTION_BAD)
			connection_failed();
		if (wait_for_socket(polling == PGRES_POLLING_READING ? WL_SOCKET_READABLE : WL_SOCKET_CONNECTED))
			polling = PQconnectPoll(connection);
	}
	if (PQsetnonblocking(connection, 1) != 0)
		connection_failed();
	PQsetNoticeProcessor(connection, note_notice, NULL);
}

/* Send all of the query; the server may have to get rid of something before. */
static void
flush_query(void)
{
	int			rest;

	while ((rest = PQflush(connection)) != 0)
	{
		if (rest < 0)
			connection_failed();
		(void) wait_for_socket(WL_SOCKET_WRITEABLE | WL_SOCKET_READABLE);
		if (PQconsumeInput(connection) == 0)
			connection_failed();
	}
}

static PGresult *
next_result(void)
{
	while (PQisBusy(connection))
	{
		if (wait_for_socket(WL_SOCKET_READABLE) && PQconsumeInput(connection) == 0)
			connection_failed();
	}
	return PQgetResult(connection);
}

/* ---- queries --------------------------------------------------------------- */

static List *
copy_rows(const PGresult *result, int ncolumns)
{
	List	   *rows = NIL;

	for (int i = 0; i < PQntuples(result); i++)
	{
		char	  **row = palloc0_array(char *, ncolumns);

		for (int j = 0; j < ncolumns; j++)
		{
			if (!PQgetisnull(result, i, j))
				row[j] = pstrdup(PQgetvalue(result, i, j));
		}
		rows = lappend(rows, row);
	}
	return rows;
}

/* See fetch_private.h. */
List *
KdbFetchQuery(const char *query, int nparams, const char *const *params, int ncolumns)
{
	List	   *rows = NIL;
	PGresult   *result;

	if (PQsendQueryParams(connection, query, nparams, NULL, params, NULL, NULL, 0) == 0)
		connection_failed();
	flush_query();
	while ((result = next_result()) != NULL)
	{
		if (PQresultStatus(result) != PGRES_TUPLES_OK)
			query_failed(result);
		if (PQnfields(result) == ncolumns)
			rows = copy_rows(result, ncolumns);
		PQclear(result);
	}
	if (rows == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("unexpected answer to the query for a row of table \"%s.%s\" from the publisher",
						subject->nspname, subject->relname)));
	return rows;
}

/*
 * Names in the session are taken as they are, and it does not outlive its use.  Without
 * the extension, schema krahodb and what is in it may be anybody's, and functions there
 * would have the rights of the session.
 */
static void
prepare_session(void)
{
	char		timeout[32];
	const char *params[] = {timeout};
	List	   *rows;

	snprintf(timeout, sizeof(timeout), "%d", KdbFetchTimeout);
	rows = KdbFetchQuery("SELECT pg_catalog.set_config('search_path', '', false),"
						 " pg_catalog.set_config('statement_timeout', $1, false),"
						 " (SELECT extname FROM pg_catalog.pg_extension WHERE extname OPERATOR(pg_catalog.=) 'krahodb')",
						 1, params, 3);
	if (((char **) linitial(rows))[2] == NULL)
		extension_missing("extension \"krahodb\" does not exist");
	session_timeout = KdbFetchTimeout;
}

/*
 * Is the connection of before still one?  The publisher has nothing to say on it but that
 * it has closed it.
 */
static bool
still_connected(void)
{
	if (connection == NULL || in_use || PQstatus(connection) != CONNECTION_OK)
		return false;
	return (WaitLatchOrSocket(NULL, WL_SOCKET_READABLE | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							  PQsocket(connection), 0, PG_WAIT_EXTENSION) & WL_SOCKET_READABLE) == 0;
}

/* See fetch_private.h. */
void
KdbFetchBegin(const KdbFetchSubject *what)
{
	bool		connected = still_connected();

	subject = what;
	begun = GetCurrentTimestamp();
	deadline = TimestampTzPlusMilliseconds(begun, KdbFetchTimeout);
	if (!connected)
	{
		close_connection();
		connect_to_publisher();
	}
	in_use = true;
	if (!connected || session_timeout != KdbFetchTimeout)
		prepare_session();
}

/* See fetch_private.h. */
void
KdbFetchDone(void)
{
	in_use = false;
	pg_atomic_fetch_add_u64(&KdbShared->fetched_rows, 1);
	pg_atomic_fetch_add_u64(&KdbShared->fetch_us, GetCurrentTimestamp() - begun);
}

/* See fetch_private.h. */
long
KdbFetchKeptFor(void)
{
	if (connection == NULL)
		return -1L;
	return TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
										   TimestampTzPlusMilliseconds(begun, KEPT_MS));
}

/* See fetch_private.h. */
void
KdbFetchCloseUnused(void)
{
	if (KdbFetchKeptFor() == 0)
		close_connection();
}
