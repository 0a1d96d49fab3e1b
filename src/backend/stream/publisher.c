/*
 * publisher.c
 *		What a publisher is, and the seam to the engine's connections.
 *
 * Slots are created and streams are started according to what the publisher
 * is, by the engine's own commands and by KrahoDB's workers.  It is asked once,
 * right after a logical connection is made, and remembered with the connection:
 * later there may be no room for a question.  Table synchronisation creates its
 * slot inside a transaction of the publisher whose snapshot the slot is to be,
 * and any query before that would have taken another one.
 *
 * So walrcv_connect, walrcv_disconnect and walrcv_create_slot are wrapped in a
 * copy of WalReceiverFunctions, which the postmaster sets up and every process
 * inherits.  Physical connections pass through untouched.
 */
#include "postgres.h"

#include <limits.h>

#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/varlena.h"

#include "krahodb/node.h"

#include "stream_private.h"

/* From this version on pgoutput itself filters by origin. */
#define ORIGIN_OPTION_VERSION	160000

typedef struct known_publisher
{
	WalReceiverConn *conn;
	KdbPublisher publisher;
	struct known_publisher *next;
} known_publisher;

WalReceiverFunctionsType KdbEngineWalReceiver;

/* Connections that are open now; seldom more than one.  In TopMemoryContext. */
static known_publisher *known_publishers = NULL;

static KdbStreamConnectCallback connect_callback = NULL;

static void
forget(WalReceiverConn *conn)
{
	for (known_publisher **link = &known_publishers; *link; link = &(*link)->next)
	{
		if ((*link)->conn == conn)
		{
			known_publisher *gone = *link;

			*link = gone->next;
			pfree(gone);
			return;
		}
	}
}

static void
remember(WalReceiverConn *conn, const KdbPublisher *publisher)
{
	known_publisher *known;

	forget(conn);
	known = MemoryContextAlloc(TopMemoryContext, sizeof(known_publisher));
	known->conn = conn;
	known->publisher = *publisher;
	known->next = known_publishers;
	known_publishers = known;
}

/* A non-negative number as a setting shows it; 0 for anything else. */
static int
setting_number(const char *value)
{
	char	   *end;
	long		number;

	if (value == NULL || *value == '\0')
		return 0;
	errno = 0;
	number = strtol(value, &end, 10);
	if (errno != 0 || *end != '\0' || number < 0 || number > INT_MAX)
		return 0;
	return (int) number;
}

/* "identity/incarnation", as a setting shows it. */
static void
read_node(const char *value, KdbPublisher *publisher)
{
	char	   *end;

	publisher->node = publisher->incarnation = 0;
	if (value == NULL)
		return;
	publisher->node = strtou64(value, &end, 10);
	if (*end == '/')
		publisher->incarnation = strtou64(end + 1, NULL, 10);
}

/*
 * Does output_plugin_libraries, as the engine reads it, list the plugin?
 * Servers that do not know the setting allow every plugin; where it is hidden
 * the publisher itself will tell.
 */
static bool
list_has_plugin(const char *setting)
{
	List	   *names;
	ListCell   *lc;

	if (setting == NULL)
		return true;
	if (!SplitGUCList(pstrdup(setting), ',', &names))
		return false;
	foreach(lc, names)
	{
		if (strcmp(lfirst(lc), KDB_OUTPUT_PLUGIN) == 0)
			return true;
	}
	return false;
}

/*
 * Ask for what every role may see.  output_plugin_libraries is shown to
 * superusers and members of pg_read_all_settings only; from others pg_settings
 * hides it, and they learn from CREATE_REPLICATION_SLOT.
 */
static bool
ask(WalReceiverConn *conn, KdbPublisher *publisher, KdbStreamError *error)
{
	List	   *rows;
	char	  **row;

	if (!KdbStreamTryQuery(conn,
						   "SELECT pg_catalog.current_setting('server_version_num'),"
						   " pg_catalog.current_setting('krahodb.version_num', true),"
						   " CASE WHEN pg_catalog.current_setting('krahodb.version_num', true) IS NOT NULL"
						   " THEN (SELECT s.setting FROM pg_catalog.pg_settings s"
						   " WHERE s.name OPERATOR(pg_catalog.=) 'output_plugin_libraries') END,"
						   " pg_catalog.current_setting('krahodb.node', true),"
						   " pg_catalog.current_setting('timezone'),"
						   " pg_catalog.current_setting('bytea_output')",
						   6, &rows, error))
		return false;
	if (list_length(rows) != 1)
	{
		error->message = pstrdup("unexpected number of rows");
		return false;
	}
	row = linitial(rows);
	if (row[4] == NULL || row[5] == NULL)
	{
		error->message = pstrdup("unexpected answer");
		return false;
	}
	publisher->server_version = setting_number(row[0]);
	publisher->krahodb_version = setting_number(row[1]);
	publisher->plugin_allowed = list_has_plugin(row[2]);
	read_node(row[3], publisher);
	strlcpy(publisher->text.timezone, row[4], sizeof(publisher->text.timezone));
	strlcpy(publisher->text.bytea_output, row[5], sizeof(publisher->text.bytea_output));
	return true;
}

bool
KdbStreamKnown(WalReceiverConn *conn, KdbPublisher *publisher)
{
	for (known_publisher *known = known_publishers; known; known = known->next)
	{
		if (known->conn == conn)
		{
			*publisher = known->publisher;
			return true;
		}
	}
	return false;
}

void
KdbStreamIdentify(WalReceiverConn *conn, KdbPublisher *publisher)
{
	KdbStreamError error;

	if (KdbStreamKnown(conn, publisher))
		return;
	if (!ask(conn, publisher, &error))
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("could not receive settings from the publisher: %s", error.message)));
	remember(conn, publisher);
}

static WalReceiverConn *
connect_and_identify(const char *conninfo, bool logical, const char *appname, char **err)
{
	WalReceiverConn *volatile conn = (KdbEngineWalReceiver.walrcv_connect) (conninfo, logical, appname, err);

	if (conn == NULL || !logical || !OidIsValid(MyDatabaseId))
		return conn;

	PG_TRY();
	{
		KdbPublisher publisher;
		KdbStreamError error;
		bool		ok = ask(conn, &publisher, &error);

		if (ok)
		{
			remember(conn, &publisher);
			if (connect_callback)
				connect_callback(conn, &publisher);
		}
		else
		{
			walrcv_disconnect(conn);
			conn = NULL;
			*err = error.message;
		}
	}
	PG_CATCH();
	{
		walrcv_disconnect(conn);
		PG_RE_THROW();
	}
	PG_END_TRY();
	return conn;
}

static void
disconnect_and_forget(WalReceiverConn *conn)
{
	forget(conn);
	(KdbEngineWalReceiver.walrcv_disconnect) (conn);
}

KdbStreamConnectCallback
KdbStreamSetConnectCallback(KdbStreamConnectCallback callback)
{
	KdbStreamConnectCallback previous = connect_callback;

	connect_callback = callback;
	return previous;
}

void
KdbStreamCheckFilters(const KdbPublisher *publisher, const KdbSubscriptionOptions *options)
{
	if (publisher->krahodb_version > 0)
		return;
	if (options->nfilter_origins > 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("the publisher cannot filter changes by replication origin"),
				 errdetail("The option \"%s\" needs a KrahoDB server as publisher.", "filter_origins"),
				 errhint("Add \"krahodb\" to shared_preload_libraries on the publisher and restart it.")));
	if (options->origin == KDB_ORIGIN_NONE && publisher->server_version < ORIGIN_OPTION_VERSION)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("the publisher cannot filter changes by replication origin"),
				 errdetail("The option \"%s\" needs a KrahoDB server, or PostgreSQL 16 or later, as publisher.", "origin = none"),
				 errhint("Add \"krahodb\" to shared_preload_libraries on the publisher and restart it.")));
}

void
KdbStreamCheckOptions(const KdbPublisher *publisher, const KdbSubscriptionOptions *options)
{
	KdbStreamCheckFilters(publisher, options);
	if (publisher->krahodb_version == 0 && options->compression != KDB_COMPRESSION_OFF)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("the publisher cannot compress the stream"),
				 errdetail("The option \"%s\" needs a KrahoDB server as publisher.", "compression"),
				 errhint("Add \"krahodb\" to shared_preload_libraries on the publisher and restart it.")));
}

void
KdbStreamCheckNode(const KdbPublisher *publisher, const KdbSubscriptionOptions *options)
{
	if (publisher->node != KdbLocalNodeIdentity() ||
		!KdbResolversActive(&options->resolvers))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the publisher has the node identity of this database"),
			 errdetail("One of the two servers is a copy of the other one, made in a way that cannot be noticed, such as a storage snapshot."),
			 errhint("Call krahodb.reset_node_identity() in the copy and restart it.")));
}

void
KdbStreamCheckTwoPhase(bool krahodb, bool two_phase, const KdbSubscriptionOptions *options)
{
	if (krahodb || !two_phase || !KdbOptionsCompareTimes(options))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("cannot resolve conflicts by time with \"%s\" and this publisher", "two_phase"),
			 errdetail("A prepared transaction has no time before it is committed; only KrahoDB's output plugin can send it then."),
			 errhint("Create the subscription with \"%s\".", "two_phase = false")));
}

void
KdbStreamInit(void)
{
	static WalReceiverFunctionsType wrapped;

	load_file("libpqwalreceiver", false);
	KdbEngineWalReceiver = *WalReceiverFunctions;
	wrapped = KdbEngineWalReceiver;
	wrapped.walrcv_connect = connect_and_identify;
	wrapped.walrcv_disconnect = disconnect_and_forget;
	wrapped.walrcv_create_slot = KdbStreamCreateSlot;
	WalReceiverFunctions = &wrapped;
}
