/*
 * node_view.c
 *		The node identity in SQL.
 */
#include "postgres.h"

#include "fmgr.h"

#include "krahodb/compat.h"
#include "krahodb/node.h"

KDB_SQL_FUNCTION(krahodb_reset_node_identity);

/* Who may call it is up to SQL. */
Datum
krahodb_reset_node_identity(PG_FUNCTION_ARGS)
{
	KdbNodeReset();
	ereport(NOTICE,
			(errmsg("all databases of this server get new node identities when it is restarted")));
	PG_RETURN_VOID();
}
