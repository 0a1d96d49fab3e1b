/*
 * check_capacity.c
 *		Are there enough workers, slots and senders for what the server does?
 *
 * Each limit must hold what is in use now, and the copy of tables of one more
 * subscription.  Lanes of parallel apply (apply_workers) and the helpers of a table's
 * copy (krahodb.copy_workers_per_table) are worker processes besides the engine's
 * logical replication workers; a helper has an origin and a walsender, too.  One query
 * fetches all the numbers.
 */
#include <stdlib.h>

#include "tool.h"

/* Two other nodes, and the table copies of one of them. */
#define MINIMUM		4

typedef struct Capacity
{
	int			subscriptions;	/* enabled, in all databases */
	int			slots;
	int			origins;
	int			senders;
	int			sync_workers;
	int			lanes;
	int			helpers;		/* of sync_workers copies */
	int			max_slots;
	int			max_senders;
	int			max_logical_workers;
	int			max_workers;
} Capacity;

static Capacity
read_capacity(PGconn *conn)
{
	PGresult   *result = KdbQuery(conn,
								  "SELECT (SELECT count(*) FROM pg_catalog.pg_subscription WHERE subenabled),"
								  " (SELECT count(*) FROM pg_catalog.pg_replication_slots),"
								  " (SELECT count(*) FROM pg_catalog.pg_replication_origin),"
								  " (SELECT count(*) FROM pg_catalog.pg_stat_replication),"
								  " pg_catalog.current_setting('max_sync_workers_per_subscription'),"
								  " (SELECT coalesce(sum((l.label::json ->> 'apply_workers')::int), 0)"
								  "  FROM pg_catalog.pg_shseclabel l JOIN pg_catalog.pg_subscription s ON s.oid = l.objoid"
								  "  WHERE l.classoid = 'pg_catalog.pg_subscription'::regclass AND l.provider = 'krahodb'"
								  "  AND s.subenabled AND l.label::json ->> 'apply_workers' <> '1'),"
								  " pg_catalog.current_setting('max_sync_workers_per_subscription')::int *"
								  "  greatest(pg_catalog.current_setting('krahodb.copy_workers_per_table', true)::int - 1, 0),"
								  " pg_catalog.current_setting('max_replication_slots'),"
								  " pg_catalog.current_setting('max_wal_senders'),"
								  " pg_catalog.current_setting('max_logical_replication_workers'),"
								  " pg_catalog.current_setting('max_worker_processes')");
	Capacity	capacity;
	int		   *members[] = {&capacity.subscriptions, &capacity.slots, &capacity.origins,
		&capacity.senders, &capacity.sync_workers, &capacity.lanes, &capacity.helpers,
		&capacity.max_slots, &capacity.max_senders, &capacity.max_logical_workers, &capacity.max_workers};

	for (size_t i = 0; i < sizeof(members) / sizeof(members[0]); i++)
		*members[i] = atoi(PQgetvalue(result, 0, i));
	PQclear(result);
	return capacity;
}

static int
larger(int a, int b)
{
	return a > b ? a : b;
}

static void
check_limit(KdbFindings *findings, const char *name, int value, int needed, const char *why)
{
	char	   *found = KdbFormat("%d", value);

	if (value >= needed)
		KdbFound(findings, name, found);
	else
		KdbMissing(findings, name, found,
				   KdbFormat("it is %d, and %d are needed for %s", value, needed, why),
				   KdbFormat("set %s = %d or more in postgresql.conf and restart the server", name, needed));
}

void
KdbCheckCapacity(KdbFindings *findings, PGconn *conn)
{
	Capacity	have = read_capacity(conn);

	check_limit(findings, "max_logical_replication_workers", have.max_logical_workers,
				larger(MINIMUM, have.subscriptions + have.sync_workers),
				"the subscriptions and their table copies");
	check_limit(findings, "max_worker_processes", have.max_workers,
				have.max_logical_workers + 2 + have.lanes + have.helpers,
				"the logical replication workers, their launcher, the horizon worker, lanes and helpers of table copies");
	check_limit(findings, "max_replication_slots", have.max_slots,
				larger(MINIMUM, larger(have.slots, have.origins) + have.sync_workers + have.helpers),
				"the slots of subscribers, the origins of subscriptions and table copies");
	check_limit(findings, "max_wal_senders", have.max_senders,
				larger(MINIMUM, larger(have.slots, have.senders) + have.sync_workers + have.helpers),
				"the subscribers and their table copies");
}
