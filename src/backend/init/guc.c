/*
 * guc.c
 *		The settings of name space "krahodb"; nothing else defines any.
 */
#include "postgres.h"

#include <limits.h>

#include "miscadmin.h"
#include "utils/guc.h"

#include "krahodb/apply.h"
#include "krahodb/clock.h"
#include "krahodb/conflict.h"
#include "krahodb/copy_shared.h"
#include "krahodb/fault.h"
#include "krahodb/horizon.h"
#include "krahodb/init.h"
#include "krahodb/node.h"
#include "krahodb/seen_state.h"
#include "krahodb/stream.h"

/*
 * The version as settings: a subscriber asks its publisher for them, in any
 * database and without an extension there.
 */
static char *version;
static int	version_num;

/* Its show hook says what it is. */
static char *frontiers;
static char *frontiers_now;

static char *seen_setting;
static char *node_setting;

static const char *
show_seen(void)
{
	return OidIsValid(MyDatabaseId) ? KdbSeenText(KdbLocalNodeIdentity()) : "";
}

/* What is kept, and for how long. */
static void
define_retention_settings(void)
{
	DefineCustomIntVariable("krahodb.conflict_log_retention",
							"Sets how long rows of krahodb.conflict_log are kept at least.",
							"Zero means that none are written.",
							&KdbConflictLogRetention,
							7 * 24 * 3600, 0, INT_MAX,
							PGC_SIGHUP,
							GUC_UNIT_S,
							NULL, NULL, NULL);

	DefineCustomIntVariable("krahodb.max_retention",
							"Sets how long deleted rows are kept for a peer that stays away.",
							"The subscription is then stale: it must be synchronised again. -1 means no limit.",
							&KdbMaxRetention,
							12 * 3600, -1, INT_MAX,
							PGC_SIGHUP,
							GUC_UNIT_S,
							NULL, NULL, NULL);

	DefineCustomIntVariable("krahodb.max_retention_size",
							"Sets how much WAL may be written while deleted rows are kept for a peer that stays away.",
							"The subscription is then stale: it must be synchronised again. -1 means no limit.",
							&KdbMaxRetentionSize,
							-1, -1, INT_MAX,
							PGC_SIGHUP,
							GUC_UNIT_MB,
							NULL, NULL, NULL);
}

/* The initial copy. */
static void
define_copy_settings(void)
{
	DefineCustomIntVariable("krahodb.copy_workers_per_table",
							"Sets how many processes copy one table at a time, the synchronisation worker among them.",
							"Zero means that each table is copied in one transaction.",
							&KdbCopyWorkersPerTable,
							2, 0, KDB_COPY_MAX_WORKERS,
							PGC_SIGHUP,
							0,
							NULL, NULL, NULL);

	DefineCustomIntVariable("krahodb.copy_range_size",
							"Sets the size of the pieces in which a table is copied.",
							"Tables of less than two pieces are copied in one transaction.",
							&KdbCopyRangeSize,
							64 * 1024, 64, INT_MAX,
							PGC_SIGHUP,
							GUC_UNIT_KB,
							NULL, NULL, NULL);

	DefineCustomIntVariable("krahodb.copy_rate_limit",
							"Sets how much the initial copies of a subscription may receive in a second.",
							"Zero means no limit.",
							&KdbCopyRateLimit,
							0, 0, INT_MAX,
							PGC_SIGHUP,
							GUC_UNIT_KB,
							NULL, NULL, NULL);
}

static void
define_stream_settings(void)
{
	DefineCustomBoolVariable("krahodb.stream_in_progress",
							 "Has KrahoDB publishers send large transactions while they run.",
							 "They do so anyway for subscriptions with streaming = on.",
							 &KdbStreamInProgress,
							 true,
							 PGC_SIGHUP,
							 0,
							 NULL, NULL, NULL);
}

/* Of builds for tests. */
static void
define_test_settings(void)
{
#ifdef KRAHODB_FAULT_POINTS
	DefineCustomStringVariable("krahodb.fault_point",
							   "Stops, fails or waits at a named point, for tests.",
							   "The form is name=action; actions are kill, crash, error, wait and skip.",
							   &KdbFaultPointSetting,
							   "",
							   PGC_SUSET,
							   GUC_NOT_IN_SAMPLE,
							   NULL, NULL, NULL);

	DefineCustomIntVariable("krahodb.test_await_seen",
							"Sets for how long other streams are waited for before a row is fetched, for tests.",
							NULL,
							&KdbTestAwaitSeen,
							KdbTestAwaitSeen, 0, 600000,
							PGC_SIGHUP,
							GUC_NOT_IN_SAMPLE | GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("krahodb.test_apply_workers",
							"Sets apply_workers of subscriptions that do not say it, for tests.",
							NULL,
							&KdbTestApplyWorkers,
							1, 1, 64,
							PGC_POSTMASTER,
							GUC_NOT_IN_SAMPLE,
							NULL, NULL, NULL);
#endif
}

/* What other nodes ask this server for. */
static void
define_answers(void)
{
	DefineCustomStringVariable("krahodb.frontiers",
							   "Shows until when this server has the changes of its peers.",
							   "For subscribers to this server.",
							   &frontiers,
							   "",
							   PGC_INTERNAL,
							   GUC_NOT_IN_SAMPLE | GUC_DISALLOW_IN_FILE | GUC_NO_SHOW_ALL,
							   NULL, NULL, KdbShowFrontiers);

	DefineCustomStringVariable("krahodb.frontiers_now",
							   "Shows the same as krahodb.frontiers, and has this server find out how far it is.",
							   "For subscribers to this server.",
							   &frontiers_now,
							   "",
							   PGC_INTERNAL,
							   GUC_NOT_IN_SAMPLE | GUC_DISALLOW_IN_FILE | GUC_NO_SHOW_ALL,
							   NULL, NULL, KdbShowFrontiersNow);

	DefineCustomStringVariable("krahodb.seen",
							   "Shows how far this database has seen the streams of other nodes, and its own position.",
							   "Peers ask for it when they fetch or copy rows.",
							   &seen_setting,
							   "",
							   PGC_INTERNAL,
							   GUC_NOT_IN_SAMPLE | GUC_DISALLOW_IN_FILE | GUC_NO_SHOW_ALL,
							   NULL, NULL, show_seen);

	DefineCustomStringVariable("krahodb.node",
							   "Shows the identity of this database as a node, and a number for this run of the server.",
							   "For subscribers to this server.",
							   &node_setting,
							   "",
							   PGC_INTERNAL,
							   GUC_NOT_IN_SAMPLE | GUC_DISALLOW_IN_FILE | GUC_NO_SHOW_ALL,
							   NULL, NULL, KdbShowNode);
}

void
KdbGucInit(void)
{
	DefineCustomStringVariable("krahodb.version",
							   "Shows the version of KrahoDB.",
							   NULL,
							   &version,
							   KRAHODB_VERSION,
							   PGC_INTERNAL,
							   GUC_NOT_IN_SAMPLE | GUC_DISALLOW_IN_FILE,
							   NULL, NULL, NULL);

	DefineCustomIntVariable("krahodb.version_num",
							"Shows the version of KrahoDB as an integer.",
							NULL,
							&version_num,
							KRAHODB_VERSION_NUM,
							KRAHODB_VERSION_NUM, KRAHODB_VERSION_NUM,
							PGC_INTERNAL,
							GUC_NOT_IN_SAMPLE | GUC_DISALLOW_IN_FILE,
							NULL, NULL, NULL);

	DefineCustomIntVariable("krahodb.max_clock_skew",
							"Sets how far clocks of nodes may be apart.",
							"Commits and applied transactions wait for the clock up to this long, then fail.",
							&KdbMaxClockSkew,
							10000, 0, 3600000,
							PGC_SIGHUP,
							GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("krahodb.fetch_timeout",
							"Sets how long fetching a row from a publisher may take.",
							"Rows are fetched when a change does not contain all of its row.",
							&KdbFetchTimeout,
							10000, 100, 600000,
							PGC_SIGHUP,
							GUC_UNIT_MS,
							NULL, NULL, NULL);

	define_retention_settings();
	define_copy_settings();
	define_stream_settings();
	define_test_settings();
	define_answers();
	MarkGUCPrefixReserved("krahodb");
}
