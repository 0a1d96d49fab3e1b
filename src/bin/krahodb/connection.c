/*
 * connection.c
 *		The connection to the server that a command asks, and queries on it.
 */
#include <stdlib.h>
#include <string.h>

#include "tool.h"

#define CONNECT_TIMEOUT		"10"	/* seconds, unless the user says otherwise */

/*
 * A message of libpq's on one line: it has a line for each address that was tried, and
 * below that an indented one, which asks if the server is running.
 */
static char *
one_line(const char *message)
{
	char	   *result = KdbFormat("%s", "");

	while (*message != '\0')
	{
		size_t		length = strcspn(message, "\n");

		if (length > 0 && message[0] != '\t')
			result = KdbFormat("%s%s%.*s", result, result[0] != '\0' ? "; " : "", (int) length, message);
		message += length;
		message += strspn(message, "\n");
	}
	return result;
}

PGconn *
KdbConnect(const char *conninfo, char **error)
{
	const char *keywords[] = {"connect_timeout", "dbname", "fallback_application_name", "client_encoding", NULL};
	const char *values[] = {getenv("PGCONNECT_TIMEOUT") ? NULL : CONNECT_TIMEOUT, conninfo, "krahodb", "UTF8", NULL};
	PGconn	   *conn = PQconnectdbParams(keywords, values, 1);

	if (PQstatus(conn) == CONNECTION_OK)
	{
		PQclear(PQexec(conn, "SET search_path = ''; SET intervalstyle = 'postgres'"));
		return conn;
	}
	*error = one_line(PQerrorMessage(conn));
	return NULL;
}

PGresult *
KdbQuery(PGconn *conn, const char *query)
{
	PGresult   *result = PQexec(conn, query);

	if (PQresultStatus(result) == PGRES_TUPLES_OK)
		return result;
	KdbDie(PQstatus(conn) == CONNECTION_BAD ? KDB_EXIT_CONNECTION : KDB_EXIT_USAGE,
		   "query failed: %s", PQerrorMessage(conn));
}

/* The first column of the first row; NULL if there is none. */
char *
KdbQueryValue(PGconn *conn, const char *query)
{
	PGresult   *result = KdbQuery(conn, query);
	char	   *value = NULL;

	if (PQntuples(result) > 0 && !PQgetisnull(result, 0, 0))
		value = KdbFormat("%s", PQgetvalue(result, 0, 0));
	PQclear(result);
	return value;
}
