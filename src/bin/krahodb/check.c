/*
 * check.c
 *		krahodb check: what a running server lacks for multi-master replication.
 *
 * Every item says "ok", or what is missing and what to do about it.  Nothing is
 * changed anywhere.  Any role may ask; where a setting or process is hidden from
 * it, the item says so instead of guessing.
 */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "tool.h"

#define WAL_WRITER_DELAY_LIMIT	10	/* ms */

/* The server has output_plugin_libraries from this minor release on. */
#define PLUGIN_LIST_VERSION		150019

#define RESTART(setting)	"set " setting " in postgresql.conf and restart the server"

static void
print_help(void)
{
	puts("krahodb check tells what a running server lacks for multi-master replication.\n"
		 "\n"
		 "Usage:\n"
		 "  krahodb check [--json] [CONNINFO]\n"
		 "\n"
		 "CONNINFO is a database name, a connection string or a URI; what it leaves open\n"
		 "is taken from PGHOST, PGPORT, PGDATABASE, ... as psql does.  Tables are those of\n"
		 "that database; connect as a superuser or a member of pg_monitor to see all.\n"
		 "\n"
		 "  --json      the same as JSON\n"
		 "  -h, --help  this text\n"
		 "\n"
		 "Prints one line per item: \"name ... ok\", or \"name ... MISSING: what; what to do\".\n"
		 "Exit codes: 0 nothing is missing, 1 wrong usage, 2 no connection, 3 something is missing.");
}

/* A setting; NULL if the server does not know it or hides it from this role. */
static char *
setting(PGconn *conn, const char *name)
{
	return KdbQueryValue(conn, KdbFormat("SELECT setting FROM pg_catalog.pg_settings WHERE name = '%s'", name));
}

/* Is name one of the comma-separated elements of list? */
static bool
list_contains(const char *list, const char *name)
{
	size_t		length = strlen(name);

	for (const char *p = list; *p != '\0';)
	{
		size_t		element;

		p += strspn(p, " \t\n,\"");
		element = strcspn(p, " \t\n,\"");
		if (element == length && strncmp(p, name, length) == 0)
			return true;
		p += element;
	}
	return false;
}

static void
check_version(KdbFindings *findings, PGconn *conn)
{
	int			major = PQserverVersion(conn) / 10000;
	char	   *version = KdbFormat("%s", PQparameterStatus(conn, "server_version"));

	if (major == PG_MAJOR)
		KdbFound(findings, "server_version", version);
	else
		KdbMissing(findings, "server_version", version,
				   KdbFormat("this is PostgreSQL %s, this KrahoDB is for PostgreSQL %d", version, PG_MAJOR),
				   "use the KrahoDB that was built for this server");
}

static void
check_preload(KdbFindings *findings, PGconn *conn)
{
	char	   *version = KdbQueryValue(conn, "SELECT pg_catalog.current_setting('krahodb.version', true)");
	char	   *libraries = setting(conn, "shared_preload_libraries");

	if (version != NULL && version[0] != '\0')
		KdbFound(findings, "shared_preload_libraries", KdbFormat("KrahoDB %s", version));
	else if (libraries != NULL && list_contains(libraries, "krahodb"))
		KdbMissing(findings, "shared_preload_libraries", libraries,
				   "krahodb is listed, but does not answer",
				   "look into the server's log, and install the krahodb.so of this release");
	else
		KdbMissing(findings, "shared_preload_libraries", libraries,
				   "krahodb is not loaded, this is a plain PostgreSQL server",
				   "add krahodb to shared_preload_libraries in postgresql.conf and restart the server");
}

static void
check_setting(KdbFindings *findings, PGconn *conn, const char *name, const char *needed, const char *action)
{
	char	   *value = setting(conn, name);

	if (value != NULL && strcmp(value, needed) == 0)
		KdbFound(findings, name, value);
	else
		KdbMissing(findings, name, value, KdbFormat("it is %s", value != NULL ? value : "hidden"), action);
}

/*
 * A walsender sends only what is flushed, and what was committed with
 * synchronous_commit = off is flushed by the WAL writer, in up to three rounds.
 */
static void
check_wal_writer(KdbFindings *findings, PGconn *conn)
{
	char	   *value = setting(conn, "wal_writer_delay");
	int			delay = value != NULL ? atoi(value) : 0;

	if (delay <= WAL_WRITER_DELAY_LIMIT)
		KdbFound(findings, "wal_writer_delay", value);
	else
		KdbMissing(findings, "wal_writer_delay", value,
				   KdbFormat("it is %d ms, and other nodes get transactions with synchronous_commit = off that late or later", delay),
				   "set wal_writer_delay = 2ms in postgresql.conf and reload the server");
}

/* It lets vacuum remove what replication slots hold back.  PostgreSQL 17 has it no more. */
static void
check_old_snapshots(KdbFindings *findings, PGconn *conn)
{
	char	   *value = setting(conn, "old_snapshot_threshold");

	if (value == NULL)
		KdbFound(findings, "old_snapshot_threshold", "not known by this server");
	else if (strcmp(value, "-1") == 0)
		KdbFound(findings, "old_snapshot_threshold", value);
	else
		KdbMissing(findings, "old_snapshot_threshold", value,
				   "with it vacuum removes deleted rows that are needed to resolve conflicts",
				   RESTART("old_snapshot_threshold = -1"));
}

/*
 * The list of output plugins that slots may use exists in newer minor releases
 * only.  Where the server does not know it, nothing is missing.
 */
static void
check_output_plugin(KdbFindings *findings, PGconn *conn)
{
	char	   *list = setting(conn, "output_plugin_libraries");
	bool		hidden = list == NULL && PQserverVersion(conn) >= PLUGIN_LIST_VERSION &&
		strcmp(KdbQueryValue(conn, "SELECT pg_catalog.pg_has_role(current_user, 'pg_read_all_settings', 'USAGE')"), "f") == 0;

	if (hidden)
		KdbMissing(findings, "output_plugin_libraries", NULL, "this role may not see it",
				   "ask as a superuser or a member of pg_monitor");
	else if (list == NULL)
		KdbFound(findings, "output_plugin_libraries", "not needed by this server");
	else if (list_contains(list, "krahodb_output"))
		KdbFound(findings, "output_plugin_libraries", list);
	else
		KdbMissing(findings, "output_plugin_libraries", list,
				   "it does not list krahodb_output",
				   KdbFormat("set output_plugin_libraries = '%s%skrahodb_output' in postgresql.conf and reload the server",
							 list, list[0] != '\0' ? ", " : ""));
}

static void
check_launcher(KdbFindings *findings, PGconn *conn)
{
	char	   *count = KdbQueryValue(conn,
									  "SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity"
									  " WHERE backend_type = 'logical replication launcher'");
	char	   *hidden = KdbQueryValue(conn,
									   "SELECT NOT pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')");

	if (strcmp(count, "0") != 0)
		KdbFound(findings, "launcher", "running");
	else if (strcmp(hidden, "t") == 0)
		KdbMissing(findings, "launcher", NULL, "this role may not see it",
				   "ask as a superuser or a member of pg_monitor");
	else
		KdbMissing(findings, "launcher", "not running",
				   "the logical replication launcher does not run",
				   "set max_logical_replication_workers and max_worker_processes above 0; on a standby, it starts with promotion");
}

/*
 * Subscriptions of this database that record versions, which they cannot do without the extension:
 * the last update wins where that is said, or by default with a filter of origins.
 */
static void
check_extension(KdbFindings *findings, PGconn *conn)
{
	char	   *version = KdbQueryValue(conn, "SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'krahodb'");
	char	   *subscriptions;

	if (version != NULL)
	{
		KdbFound(findings, "extension", version);
		return;
	}
	subscriptions = KdbQueryValue(conn,
								  "SELECT pg_catalog.string_agg(pg_catalog.quote_ident(s.subname), ', ' ORDER BY s.subname)"
								  " FROM pg_catalog.pg_shseclabel l JOIN pg_catalog.pg_subscription s ON s.oid = l.objoid"
								  " WHERE l.classoid = 'pg_catalog.pg_subscription'::regclass AND l.provider = 'krahodb'"
								  " AND s.subdbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())"
								  " AND (pg_catalog.strpos(l.label, 'last_update_wins') > 0 OR l.label::json ->> 'conflict_resolution' IS NULL"
								  "  AND (l.label::json ->> 'origin' = 'none' OR l.label::json ->> 'filter_origins' IS NOT NULL))");
	if (subscriptions == NULL)
		KdbFound(findings, "extension", "not needed in this database");
	else
		KdbMissing(findings, "extension", subscriptions,
				   KdbFormat("this database does not have extension krahodb, so subscriptions where the last update wins cannot record versions: %s",
							 subscriptions),
				   "CREATE EXTENSION krahodb, on every node");
}

/* Connect; NULL with the item added if that is impossible. */
static PGconn *
connect_server(KdbFindings *findings, const char *conninfo)
{
	char	   *error;
	PGconn	   *conn = KdbConnect(conninfo, &error);

	if (conn != NULL)
		KdbFound(findings, "connection", NULL);
	else
		KdbMissing(findings, "connection", NULL, error, "start the server, or correct the connection string");
	return conn;
}

static void
check_server(KdbFindings *findings, PGconn *conn)
{
	check_version(findings, conn);
	check_preload(findings, conn);
	check_setting(findings, conn, "wal_level", "logical", RESTART("wal_level = logical"));
	check_setting(findings, conn, "track_commit_timestamp", "on", RESTART("track_commit_timestamp = on"));
	check_old_snapshots(findings, conn);
	check_wal_writer(findings, conn);
	check_output_plugin(findings, conn);
	check_launcher(findings, conn);
	KdbCheckCapacity(findings, conn);
	KdbCheckTables(findings, conn);
	check_extension(findings, conn);
	KdbCheckClock(findings, conn);
}

KdbExitCode
KdbCheckCommand(int argc, char **argv)
{
	static KdbFindings findings;
	bool		json;
	const char *conninfo = KdbReadArguments(argc, argv, print_help, &json);
	PGconn	   *conn = connect_server(&findings, conninfo);

	if (conn != NULL)
		check_server(&findings, conn);
	KdbPrintFindings(&findings, "check", json);
	if (conn == NULL)
		return KDB_EXIT_CONNECTION;
	PQfinish(conn);
	return findings.nmissing == 0 ? KDB_EXIT_OK : KDB_EXIT_MISSING;
}
