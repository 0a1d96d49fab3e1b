/*
 * copy_estimate.c
 *		About how many rows a table has that is copied as a whole.
 *
 * Copies in ranges count pages.  One COPY says nothing of where in the table it is,
 * so its progress is told by rows: those that have come, of those that the publisher
 * has by its statistics, scaled to the table's size of today as the planner does.
 * A table that has not been analysed there is asked for some rows and on how many
 * pages they are.
 *
 * It is for people to look at only, and must not be what a copy fails of: tables
 * that we may not read as a whole are not asked.  Row filters are not accounted for.
 */
#include "postgres.h"

#include "catalog/pg_class.h"
#include "lib/stringinfo.h"
#include "replication/walreceiver.h"

#include "krahodb/stream.h"

#include "sync_private.h"

#define SAMPLE_ROWS		"2000"

typedef struct Sizes
{
	double		rows;			/* of relations with statistics */
	double		unknown_pages;	/* of those without */
	double		known_pages;
	char	   *sample;			/* the largest one of these that we may read, or NULL */
} Sizes;

static Sizes
fetch_sizes(const KdbRemoteTable *table)
{
	Sizes		sizes = {0};
	StringInfoData query;
	ListCell   *lc;

	initStringInfo(&query);
	appendStringInfoString(&query,
						   "SELECT pg_catalog.pg_relation_size(c.oid) / pg_catalog.current_setting('block_size')::pg_catalog.int8,"
						   " CASE WHEN c.relpages > 0 AND c.reltuples > 0 THEN c.reltuples / c.relpages END,"
						   " pg_catalog.has_table_privilege(c.oid, 'SELECT')"
						   " AND pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE')"
						   " AND NOT pg_catalog.row_security_active(c.oid),"
						   " pg_catalog.format('%I.%I', n.nspname, c.relname)"
						   " FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
						   " WHERE c.relkind = 'r' AND ");
	if (table->relkind == RELKIND_PARTITIONED_TABLE)
		appendStringInfo(&query, "c.oid IN (SELECT t.relid FROM pg_catalog.pg_partition_tree(%u) t WHERE t.isleaf)", table->relid);
	else
		appendStringInfo(&query, "c.oid = %u", table->relid);
	appendStringInfoString(&query, " ORDER BY 1");
	foreach(lc, KdbStreamQuery(LogRepWorkerWalRcvConn, query.data, 4, "sizes of tables"))
	{
		char	  **row = lfirst(lc);
		double		pages = row[0] ? strtod(row[0], NULL) : 0;

		if (row[1] != NULL)
		{
			sizes.rows += pages * strtod(row[1], NULL);
			sizes.known_pages += pages;
			continue;
		}
		sizes.unknown_pages += pages;
		if (pages > 0 && row[2] != NULL && row[2][0] == 't')
			sizes.sample = row[3];
	}
	return sizes;
}

/* Rows per page, of the first ones that a scan meets; 0 if there are none. */
static double
sample_density(const char *relation)
{
	List	   *rows;
	char	  **row;
	double		pages;

	rows = KdbStreamQuery(LogRepWorkerWalRcvConn,
						  psprintf("SELECT pg_catalog.count(*), pg_catalog.max(s.page) - pg_catalog.min(s.page) + 1"
								   " FROM (SELECT (ctid::pg_catalog.text::pg_catalog.point)[0] AS page FROM ONLY %s LIMIT " SAMPLE_ROWS ") s",
								   relation),
						  2, "rows of a table");
	if (rows == NIL)
		return 0;
	row = linitial(rows);
	pages = row[1] ? strtod(row[1], NULL) : 0;
	return pages > 0 && row[0] ? strtod(row[0], NULL) / pages : 0;
}

/* See sync_private.h. */
uint64
KdbCopyEstimateRows(const KdbRemoteTable *table)
{
	Sizes		sizes = fetch_sizes(table);
	double		density = 0;

	if (sizes.known_pages > 0)
		density = sizes.rows / sizes.known_pages;
	else if (sizes.sample != NULL)
		density = sample_density(sizes.sample);
	return (uint64) (sizes.rows + sizes.unknown_pages * density);
}
