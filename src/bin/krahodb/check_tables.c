/*
 * check_tables.c
 *		Can the rows of published tables be found again on the other nodes?
 *
 * An update or delete is sent with the replica identity of its row: by default the
 * primary key.  Without one the server refuses updates and deletes of a published
 * table; with REPLICA IDENTITY FULL they work, but two writes of the same row on two
 * nodes cannot be told from writes of two rows.
 */
#include "tool.h"

/*
 * Tables and leaf partitions (it is these that are written) of publications of
 * updates or deletes, without a usable identity.
 */
static const char tables_query[] =
"SELECT pg_catalog.string_agg(DISTINCT leaf.oid::pg_catalog.regclass::pg_catalog.text, ', ')"
" FROM pg_catalog.pg_publication p,"
" LATERAL pg_catalog.pg_get_publication_tables(p.pubname) published,"
" LATERAL (SELECT published.relid AS oid WHERE NOT EXISTS"
"   (SELECT FROM pg_catalog.pg_class c WHERE c.oid = published.relid AND c.relkind = 'p')"
"  UNION SELECT t.relid FROM pg_catalog.pg_partition_tree(published.relid) t WHERE t.isleaf) part"
" JOIN pg_catalog.pg_class leaf ON leaf.oid = part.oid"
" WHERE (p.pubupdate OR p.pubdelete) AND leaf.relkind = 'r' AND NOT CASE leaf.relreplident"
"  WHEN 'f' THEN true"
"  WHEN 'd' THEN EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = leaf.oid AND i.indisprimary AND i.indimmediate AND i.indisvalid)"
"  WHEN 'i' THEN EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = leaf.oid AND i.indisreplident AND i.indisvalid)"
"  ELSE false END";

void
KdbCheckTables(KdbFindings *findings, PGconn *conn)
{
	char	   *tables = KdbQueryValue(conn, tables_query);

	if (tables == NULL)
		KdbFound(findings, "replica_identities", "all published tables have one");
	else
		KdbMissing(findings, "replica_identities", tables,
				   KdbFormat("published without a usable replica identity: %s", tables),
				   "give each a primary key, or ALTER TABLE ... REPLICA IDENTITY USING INDEX");
}
