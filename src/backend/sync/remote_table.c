/*
 * remote_table.c
 *		What the publisher says of a table before it is copied.
 *
 * Its columns and row filters are those of the subscription's publications at
 * the copy's snapshot.  The queries ask the publisher's catalogs by what its
 * version has: column lists and row filters came with 15,
 * publish_via_partition_root with 13, generated columns with 12.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "lib/stringinfo.h"
#include "nodes/value.h"
#include "replication/walreceiver.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#include "sync_private.h"

/* Longer than any query's row. */
#define MAX_COLUMNS	4

/*
 * Ask for rows of ncolumns (not more than MAX_COLUMNS) columns of type text;
 * each row becomes an array of strings (NULL for SQL NULL) in the returned
 * list.  what names the question in the error message.  nulls: may a string be NULL?
 */
static List *
query_strings(const KdbRemoteTable *table, const char *query, int ncolumns,
			  bool nulls, const char *what)
{
	Oid			types[MAX_COLUMNS] = {TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	List	   *rows = NIL;
	WalRcvExecResult *res;
	TupleTableSlot *slot;

	Assert(ncolumns <= MAX_COLUMNS);
	res = walrcv_exec(LogRepWorkerWalRcvConn, query, ncolumns, types);
	if (res->status != WALRCV_OK_TUPLES)
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("could not fetch %s info for table \"%s.%s\" from publisher: %s",
						what, table->nspname, table->relname, res->err)));

	slot = MakeSingleTupleTableSlot(res->tupledesc, &TTSOpsMinimalTuple);
	while (tuplestore_gettupleslot(res->tuplestore, true, false, slot))
	{
		char	  **row = palloc(ncolumns * sizeof(char *));

		for (int i = 0; i < ncolumns; i++)
		{
			bool		isnull;
			Datum		value = slot_getattr(slot, i + 1, &isnull);

			row[i] = isnull ? NULL : TextDatumGetCString(value);
			if (isnull && !nulls)
				ereport(ERROR,
						(errcode(ERRCODE_PROTOCOL_VIOLATION),
						 errmsg("could not fetch %s info for table \"%s.%s\" from publisher: %s",
								what, table->nspname, table->relname, _("unexpected answer"))));
		}
		rows = lappend(rows, row);
		ExecClearTuple(slot);
	}
	ExecDropSingleTupleTableSlot(slot);
	walrcv_clear_result(res);
	return rows;
}

/* "'pub1', 'pub2'" of the subscription's publications. */
static char *
publication_literals(void)
{
	StringInfoData names;
	ListCell   *lc;

	initStringInfo(&names);
	foreach(lc, MySubscription->publications)
	{
		if (foreach_current_index(lc) > 0)
			appendStringInfoString(&names, ", ");
		appendStringInfoString(&names, quote_literal_cstr(strVal(lfirst(lc))));
	}
	return names.data;
}

static Oid
parse_oid(const char *text)
{
	return DatumGetObjectId(DirectFunctionCall1(oidin, CStringGetDatum(text)));
}

static void
fetch_relation(KdbRemoteTable *table)
{
	char	   *query;
	List	   *rows;
	char	  **row;

	query = psprintf("SELECT c.oid::pg_catalog.text, c.relkind::pg_catalog.text,"
					 " pg_catalog.has_table_privilege(c.oid, 'SELECT')::pg_catalog.text"
					 " FROM pg_catalog.pg_class c"
					 " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
					 " WHERE n.nspname = %s AND c.relname = %s",
					 quote_literal_cstr(table->nspname),
					 quote_literal_cstr(table->relname));
	rows = query_strings(table, query, 3, false, "table");
	if (rows == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("table \"%s.%s\" not found on publisher",
						table->nspname, table->relname)));

	row = linitial(rows);
	table->relid = parse_oid(row[0]);
	table->relkind = row[1][0];
	table->readable = row[2] != NULL && row[2][0] == 't';
}

/*
 * The columns that are sent, as text of an int2vector; NULL if there are none.  It was
 * checked when the subscription was made that the publications agree, but
 * they may have been changed since.
 */
static char *
fetch_column_list(const KdbRemoteTable *table, const char *publications)
{
	char	   *query;
	List	   *rows;

	query = psprintf("SELECT DISTINCT (SELECT pg_catalog.string_agg(a.attnum::pg_catalog.text, ' ' ORDER BY a.attnum)"
					 " FROM pg_catalog.pg_attribute a"
					 " WHERE a.attrelid = t.relid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''"
					 " AND (t.attrs IS NULL OR a.attnum = ANY (t.attrs)))"
					 " FROM pg_catalog.pg_publication p,"
					 " LATERAL pg_catalog.pg_get_publication_tables(p.pubname) t"
					 " WHERE t.relid = %u AND p.pubname IN (%s)",
					 table->relid, publications);
	rows = query_strings(table, query, 1, true, "column list");
	if (list_length(rows) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot use different column lists for table \"%s.%s\" in different publications",
						table->nspname, table->relname)));
	return rows == NIL ? NULL : ((char **) linitial(rows))[0];
}

static void
fetch_columns(KdbRemoteTable *table, const char *column_list, int server_version)
{
	StringInfoData query;
	ListCell   *lc;

	initStringInfo(&query);
	appendStringInfo(&query,
					 "SELECT a.attname::pg_catalog.text, a.attnum::pg_catalog.text,"
					 " a.atttypid::pg_catalog.oid::pg_catalog.text,");
	if (column_list == NULL)
		appendStringInfoString(&query, " 'true'");
	else
		appendStringInfo(&query, " (a.attnum = ANY (%s::pg_catalog.int2vector))::pg_catalog.text",
						 quote_literal_cstr(column_list));
	appendStringInfo(&query,
					 " FROM pg_catalog.pg_attribute a"
					 " WHERE a.attrelid = %u AND a.attnum > 0"
					 " AND NOT a.attisdropped",
					 table->relid);
	if (server_version >= 120000)
		appendStringInfoString(&query, " AND a.attgenerated = ''");
	appendStringInfoString(&query, " ORDER BY a.attnum");

	foreach(lc, query_strings(table, query.data, 4, false, "table"))
	{
		char	  **row = lfirst(lc);

		if (row[3][0] != 't')
		{
			table->partial = true;
			continue;
		}
		table->columns = lappend(table->columns, makeString(row[0]));
		table->attnums = lappend_int(table->attnums, atoi(row[1]));
		table->types = lappend_oid(table->types, parse_oid(row[2]));
	}
}

/*
 * A row is copied if it passes the filter of any publication; a publication
 * that has no filter on the table, is FOR ALL TABLES or of its schema, answers
 * NULL: all rows are.
 */
static void
fetch_filters(KdbRemoteTable *table, const char *publications)
{
	char	   *query;
	ListCell   *lc;

	query = psprintf("SELECT DISTINCT pg_catalog.pg_get_expr(t.qual, t.relid)"
					 " FROM pg_catalog.pg_publication p,"
					 " LATERAL pg_catalog.pg_get_publication_tables(p.pubname) t"
					 " WHERE t.relid = %u AND p.pubname IN (%s)",
					 table->relid, publications);
	foreach(lc, query_strings(table, query, 1, true, "table WHERE clause"))
	{
		char	   *filter = ((char **) lfirst(lc))[0];

		if (filter == NULL)
		{
			table->filters = NIL;
			return;
		}
		table->filters = lappend(table->filters, makeString(filter));
	}
}

/*
 * Does what is written to the table come as an ancestor's, by a publication with
 * publish_via_partition_root?  Then the ancestor is copied with these rows.
 */
static bool
comes_as_ancestor(const KdbRemoteTable *table, const char *publications)
{
	char	   *query;

	query = psprintf("SELECT 'true'::pg_catalog.text WHERE EXISTS (SELECT"
					 " FROM pg_catalog.pg_publication p,"
					 " LATERAL pg_catalog.pg_get_publication_tables(p.pubname) t"
					 " WHERE p.pubname IN (%s) AND p.pubviaroot AND t.relid <> %u"
					 " AND t.relid = ANY (SELECT a.relid FROM pg_catalog.pg_partition_ancestors(%u) a))",
					 publications, table->relid, table->relid);
	return query_strings(table, query, 1, false, "publications") != NIL;
}

/*
 * Ask for the table of this name; the names are kept in the result.  Allocated
 * in the current context.
 */
KdbRemoteTable *
KdbSyncFetchRemoteTable(char *nspname, char *relname)
{
	KdbRemoteTable *table = palloc0(sizeof(KdbRemoteTable));
	int			server_version = walrcv_server_version(LogRepWorkerWalRcvConn);
	char	   *publications = publication_literals();
	char	   *column_list = NULL;

	table->nspname = nspname;
	table->relname = relname;
	fetch_relation(table);
	if (server_version >= 150000)
		column_list = fetch_column_list(table, publications);
	fetch_columns(table, column_list, server_version);
	if (server_version >= 150000)
		fetch_filters(table, publications);
	if (server_version >= 130000 && comes_as_ancestor(table, publications))
	{
		table->as_ancestor = true;
		table->filters = list_make1(makeString("false"));
	}
	table->partial = table->partial || table->filters != NIL;
	return table;
}
