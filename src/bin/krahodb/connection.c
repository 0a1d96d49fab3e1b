/*
 * connection.c
 *		The connection to the server that a command asks, and queries on it.
 */
#include <stdlib.h>
#include <string.h>

#include "tool.h"

#define CONNECT_TIMEOUT		"10"	/* seconds, unless the user says otherwise */

PGconn *
KdbConnect(const char *conninfo, char **error)
{
	const char *keywords[] = {"connect_timeout", "dbname", "fallback_application_name", "client_encoding", NULL};
	const char *values[] = {getenv("PGCONNECT_TIMEOUT") ? NULL : CONNECT_TIMEOUT, conninfo, "krahodb", "UTF8", NULL};
	PGconn	   *conn = PQconnectdbParams(keywords, values, 1);

	if (PQstatus(conn) == CONNECTION_OK)
	{
		PQclear(PQexec(conn, "SET search_path = ''"));
		return conn;
	}
	*error = KdbFormat("%s", PQerrorMessage(conn));
	(*error)[strcspn(*error, "\n")] = '\0';
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
