/*
 * query.c
 *		Commands and queries on a replication connection.
 *
 * walrcv_exec builds a tuple descriptor and runs the types' input functions, so
 * it needs a transaction; whoever connects an apply worker has none.  All
 * results here are text and small.
 *
 * Answers are the publisher's, and may be anything: who reads one asks for rows without
 * NULL, or looks for it.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"

#include "stream_private.h"

#define MAX_COLUMNS		8

static List *
read_rows(WalRcvExecResult *result, int ncolumns, MemoryContext context)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(result->tupledesc, &TTSOpsMinimalTuple);
	List	   *rows = NIL;

	while (tuplestore_gettupleslot(result->tuplestore, true, false, slot))
	{
		MemoryContext old = MemoryContextSwitchTo(context);
		char	  **row = palloc0(ncolumns * sizeof(char *));

		for (int i = 0; i < ncolumns; i++)
		{
			bool		isnull;
			Datum		value = slot_getattr(slot, i + 1, &isnull);

			row[i] = isnull ? NULL : TextDatumGetCString(value);
		}
		rows = lappend(rows, row);
		MemoryContextSwitchTo(old);
		ExecClearTuple(slot);
	}
	ExecDropSingleTupleTableSlot(slot);
	return rows;
}

bool
KdbStreamTryQuery(WalReceiverConn *conn, const char *query, int ncolumns,
				  List **rows, KdbStreamError *error)
{
	static const Oid types[MAX_COLUMNS] = {
		TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID
	};
	MemoryContext context = CurrentMemoryContext;
	bool		own_transaction = !IsTransactionState();
	WalRcvExecResult *result;
	bool		ok;

	Assert(ncolumns <= MAX_COLUMNS);

	*rows = NIL;
	memset(error, 0, sizeof(*error));
	if (own_transaction)
		StartTransactionCommand();
	result = walrcv_exec(conn, query, ncolumns, types);
	ok = result->status == WALRCV_OK_TUPLES;
	if (ok)
		*rows = read_rows(result, ncolumns, context);
	else
	{
		error->sqlstate = result->sqlstate;
		error->message = MemoryContextStrdup(context, result->err ? result->err : "unexpected result");
	}
	walrcv_clear_result(result);
	if (own_transaction)
		CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	return ok;
}

static void
refuse_answer(const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_PROTOCOL_VIOLATION),
			 errmsg("could not receive %s from the publisher: %s", what, _("unexpected answer"))));
}

List *
KdbStreamQuery(WalReceiverConn *conn, const char *query, int ncolumns, const char *what)
{
	List	   *rows;
	KdbStreamError error;

	if (!KdbStreamTryQuery(conn, query, ncolumns, &rows, &error))
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("could not receive %s from the publisher: %s", what, error.message)));
	return rows;
}

/* See stream.h. */
List *
KdbStreamQueryNotNull(WalReceiverConn *conn, const char *query, int ncolumns, const char *what)
{
	List	   *rows = KdbStreamQuery(conn, query, ncolumns, what);
	ListCell   *lc;

	foreach(lc, rows)
	{
		for (int i = 0; i < ncolumns; i++)
		{
			if (((char **) lfirst(lc))[i] == NULL)
				refuse_answer(what);
		}
	}
	return rows;
}

/* See stream.h. */
char **
KdbStreamQueryRow(WalReceiverConn *conn, const char *query, int ncolumns, const char *what)
{
	List	   *rows = KdbStreamQueryNotNull(conn, query, ncolumns, what);

	if (list_length(rows) != 1)
		refuse_answer(what);
	return linitial(rows);
}

void
KdbAppendQuoted(StringInfo buf, const char *string, char quote)
{
	appendStringInfoChar(buf, quote);
	for (const char *p = string; *p; p++)
	{
		if (*p == quote)
			appendStringInfoChar(buf, quote);
		appendStringInfoChar(buf, *p);
	}
	appendStringInfoChar(buf, quote);
}

/* See stream.h. */
int
KdbStreamTextFormats(void)
{
	int			level = NewGUCNestLevel();

	(void) set_config_option("datestyle", "ISO", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("intervalstyle", "postgres", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("extra_float_digits", "3", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	return level;
}

/* See stream.h. */
int
KdbStreamRowFormats(void)
{
	int			level = KdbStreamTextFormats();

	(void) set_config_option("lc_monetary", "C", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	return level;
}

/* See stream.h.  A time zone that is not known here is no error: ours is used then. */
int
KdbStreamTextFormatsOf(const KdbTextSettings *settings)
{
	int			level = KdbStreamTextFormats();

	(void) set_config_option("timezone", settings->timezone, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, DEBUG1, false);
	(void) set_config_option("bytea_output", settings->bytea_output, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, DEBUG1, false);
	return level;
}
