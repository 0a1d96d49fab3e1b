/*
 * fetch.c
 *		The row of a key from the publisher, when a change did not contain all of it.
 *
 * The stream leaves out unchanged values that are stored out of line.  The rules
 * (merge_unsent.c) let the row here give them if that is provably the row that the
 * writer overwrote; else they ask for this.  What is fetched is the state that the key
 * has at the publisher now, with its version there: the write, or a later state, or a
 * death.  It is merged as that version, so nothing is ever put together from two
 * rows.
 *
 * ORDER.  First the row, then what the publisher had seen (krahodb.seen): the row
 * contains nothing that it had not.  Before the row is used here, that is noted
 * (KdbSeenAheadFromText, durable), since whoever overwrites it here has then seen as
 * much; and the clock rule counts the row's version.
 *
 * WHICH STATE.  krahodb.row_state at the publisher answers (fetch/row_state.c).  A row
 * that the publications' row filters do not let through any more has been taken
 * away from subscribers, as of its version; if it is the very write that is applied here, it
 * had passed them.  "own" says that the state is what the transaction that is applied
 * here has made of it: then it has that transaction's version, which
 * the publisher may not know yet (a commit that still waits, a prepared transaction).
 *
 * LAGGING STREAMS.  Under load, what the writer had just seen of a third node is often
 * still on its way here, and comes in a moment, which is cheaper than a fetch.  The
 * first change of a transaction waits for it a little (KdbAwaitSeen); no row is locked
 * then, so nobody waits in turn for this worker.
 *
 * A state of another version than the write's needs a version record here, as the heap says
 * the version of the transaction that writes it: so the extension.  Where that or
 * anything else is missing, the change cannot be applied without a guess, and an error says
 * what to do.
 */
#include "postgres.h"

#include "access/attmap.h"
#include "access/tupconvert.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "portability/instr_time.h"
#include "storage/condition_variable.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "krahodb/clock.h"
#include "krahodb/fault.h"
#include "krahodb/node.h"
#include "krahodb/seen_state.h"
#include "krahodb/shared.h"
#include "krahodb/stream.h"

#include "converge_private.h"
#include "fetch_private.h"

/*
 * Columns of the answer: one row for each of the publisher's columns, with what is
 * the same for all in front.
 */
enum
{
	ANSWER_NODE,
	ANSWER_STATE,
	ANSWER_OWN,
	ANSWER_TS,
	ANSWER_WRITER,
	ANSWER_VALUE,
	ANSWER_COLUMNS
};

static const char *const row_query =
	"SELECT s.node, s.state, s.own, s.written_at, s.written_by, v.value"
	" FROM krahodb.row_state($1, $2, $3, $4, $5, $6, $7) s"
	" LEFT JOIN LATERAL pg_catalog.unnest(s.row_values)"
	" WITH ORDINALITY AS v(value, n) ON true ORDER BY v.n";

static const char *const seen_query = "SELECT pg_catalog.current_setting('krahodb.seen')";

/* ---- making do without ----------------------------------------------------- */

/*
 * Other streams are waited for before a row is fetched; for how long not to do so again after
 * that was in vain (a peer is down, or far behind).
 */
#define NO_AWAIT_MS		1000

/* Is there something that the writer may have seen and that is not here yet? */
static bool
streams_lag(void)
{
	const KdbSeen *seen = KdbSeenOfTransaction();

	for (int i = 0; i < seen->nentries; i++)
	{
		if (seen->entries[i].node != KdbApply.remote_node &&
			KdbSeenProgress(seen->entries[i].node) < seen->entries[i].maybe)
			return true;
	}
	return false;
}

static long
ms_since(instr_time start)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	INSTR_TIME_SUBTRACT(now, start);
	return (long) INSTR_TIME_GET_MILLISEC(now);
}

/* Wait for the other streams; false if that was in vain. */
static bool
await_streams(void)
{
	instr_time	start;
	long		left = KDB_AWAIT_SEEN;
	bool		lag;

	INSTR_TIME_SET_CURRENT(start);
	ConditionVariablePrepareToSleep(&KdbShared->seen_moved);
	while ((lag = streams_lag()) && left > 0)
	{
		(void) ConditionVariableTimedSleep(&KdbShared->seen_moved, left, PG_WAIT_EXTENSION);
		left = KDB_AWAIT_SEEN - ms_since(start);
	}
	ConditionVariableCancelSleep();
	return !lag;
}

/* See converge_private.h. */
void
KdbAwaitSeen(void)
{
	static instr_time in_vain;

	if ((!INSTR_TIME_IS_ZERO(in_vain) && ms_since(in_vain) < NO_AWAIT_MS) || !streams_lag())
		return;
	if (await_streams())
		INSTR_TIME_SET_ZERO(in_vain);
	else
		INSTR_TIME_SET_CURRENT(in_vain);
}

/* ---- what to ask for ------------------------------------------------------- */

/* The publisher's column in the new row: which is it there? */
static int
local_column(KdbConverge *c, const char *name)
{
	TupleDesc	desc = c->row->slot->tts_tupleDescriptor;

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped && strcmp(NameStr(att->attname), name) == 0)
			return i;
	}
	elog(ERROR, "column \"%s\" is not among those of the row", name);
}

static char *
value_as_text(TupleTableSlot *slot, int column)
{
	Oid			function;
	bool		is_varlena;

	if (slot->tts_isnull[column])
		return NULL;
	getTypeOutputInfo(TupleDescAttr(slot->tts_tupleDescriptor, column)->atttypid,
					  &function, &is_varlena);
	return OidOutputFunctionCall(function, slot->tts_values[column]);
}

static char *
text_array(Datum *elements, int n)
{
	ArrayType  *array = construct_array(elements, n, TEXTOID, -1, false, TYPALIGN_INT);

	return OidOutputFunctionCall(F_ARRAY_OUT, PointerGetDatum(array));
}

typedef struct Request
{
	char	   *key_columns;	/* arrays, as text */
	char	   *key_values;
	char	   *columns;
	KdbFetchSubject subject;
} Request;

/*
 * Where the publisher has sent the column of a key: with the new row, or with the old one what is
 * out of line and has not changed.  NULL: nowhere, or it is NULL.
 */
static const KdbWireColumn *
sent_column(const KdbWireMessage *message, int remote)
{
	const KdbWireColumn *column;

	if (message == NULL)
		return NULL;
	column = &message->u.row.new_row.columns[remote];
	if (column->kind == 'u' && message->u.row.old_kind)
		column = &message->u.row.old_row.columns[remote];
	return column->kind == 'u' || column->kind == 'n' ? NULL : column;
}

/*
 * The publisher's own value: of the local type it may be another one, a char(n) padded or a numeric
 * rounded, and not be found there.
 */
static char *
key_as_text(KdbConverge *c, int remote)
{
	KdbApplyRelation *rel = c->rel;
	const KdbWireColumn *column = sent_column(rel->message, remote);
	char	   *text = NULL;

	for (int i = 0; column != NULL && i < rel->nlocal; i++)
	{
		if (rel->inputs[i].remote == remote)
			text = KdbRemoteText(&rel->inputs[i], column);
	}
	return text ? text : value_as_text(c->row->slot, local_column(c, rel->attnames[remote]));
}

/* The key's values: those of the publisher's replica identity, which are always sent. */
static void
describe_key(KdbConverge *c, Request *request)
{
	KdbApplyRelation *rel = c->rel;
	Datum	   *names = palloc_array(Datum, rel->natts + 1);
	Datum	   *values = palloc_array(Datum, rel->natts + 1);
	StringInfoData columns;
	StringInfoData shown;
	int			n = 0;

	initStringInfo(&columns);
	initStringInfo(&shown);
	for (int i = 0; i < rel->natts; i++)
	{
		char	   *value;

		if (!rel->attkeys[i])
			continue;
		value = key_as_text(c, i);
		if (value == NULL)
			continue;
		names[n] = CStringGetTextDatum(rel->attnames[i]);
		values[n++] = CStringGetTextDatum(value);
		appendStringInfo(&columns, "%s%s", n > 1 ? ", " : "", rel->attnames[i]);
		appendStringInfo(&shown, "%s%s", n > 1 ? ", " : "", value);
	}
	request->key_columns = text_array(names, n);
	request->key_values = text_array(values, n);
	request->subject.key = psprintf("(%s)=(%s)", columns.data, shown.data);
}

static const char *
missing_column(KdbConverge *c)
{
	for (int i = 0; i < c->rel->natts; i++)
	{
		if (!c->row->sent[local_column(c, c->rel->attnames[i])])
			return c->rel->attnames[i];
	}
	return "";
}

static void
describe_request(KdbConverge *c, Request *request)
{
	KdbApplyRelation *rel = c->rel;
	Datum	   *names = palloc_array(Datum, rel->natts + 1);

	for (int i = 0; i < rel->natts; i++)
		names[i] = CStringGetTextDatum(rel->attnames[i]);
	request->columns = text_array(names, rel->natts);
	request->subject.nspname = rel->nspname;
	request->subject.relname = rel->relname;
	request->subject.column = missing_column(c);
	describe_key(c, request);
}

static char *
publications(void)
{
	int			n = list_length(MySubscription->publications);
	Datum	   *names = palloc_array(Datum, n + 1);
	ListCell   *lc;

	foreach(lc, MySubscription->publications)
		names[foreach_current_index(lc)] = CStringGetTextDatum(strVal(lfirst(lc)));
	return text_array(names, n);
}

static List *
ask(const Request *request)
{
	char		writer[16];
	const char *params[7];

	snprintf(writer, sizeof(writer), "%u", KdbApply.remote_xid);
	params[0] = request->subject.nspname;
	params[1] = request->subject.relname;
	params[2] = request->key_columns;
	params[3] = request->key_values;
	params[4] = request->columns;
	params[5] = publications();
	params[6] = writer;
	return KdbFetchQuery(row_query, 7, params, ANSWER_COLUMNS);
}

/* ---- what the answer is worth ---------------------------------------------- */

static void
require_krahodb(const KdbFetchSubject *subject)
{
	if (KdbApply.krahodb_stream)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("cannot apply a change to table \"%s.%s\" because its publisher did not send column \"%s\"",
					subject->nspname, subject->relname, subject->column),
			 KdbFetchErrorDetail(subject),
			 errhint("Rows can be fetched from a publisher that runs KrahoDB only. Set REPLICA IDENTITY FULL on the publisher's table.")));
}

static void
require_same_node(const KdbFetchSubject *subject, char **answer)
{
	if (answer[ANSWER_NODE] && (uint64) strtoll(answer[ANSWER_NODE], NULL, 10) == KdbApply.remote_node)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("could not fetch a row of table \"%s.%s\" from the publisher: another server has answered",
					subject->nspname, subject->relname),
			 KdbFetchErrorDetail(subject),
			 errhint("The subscription's connection string must always lead to the same database.")));
}

static void
require_state(const KdbFetchSubject *subject, char **answer)
{
	if (answer[ANSWER_STATE] && answer[ANSWER_OWN])
		return;
	ereport(ERROR,
			(errcode(ERRCODE_PROTOCOL_VIOLATION),
			 errmsg("unexpected answer to the query for a row of table \"%s.%s\" from the publisher",
					subject->nspname, subject->relname)));
}

/* A row that has left no trace, or is older than what came from there. */
static void pg_attribute_noreturn()
no_trace(const KdbFetchSubject *subject, const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("could not fetch a row of table \"%s.%s\" from the publisher: %s",
					subject->nspname, subject->relname, what),
			 KdbFetchErrorDetail(subject),
			 errhint("If the subscription was away for longer than deleted rows are kept, or the publisher was set back, synchronize it again. ALTER SUBSCRIPTION ... SKIP leaves the transaction out.")));
}

static void
read_version(const KdbFetchSubject *subject, char **answer, KdbVersion incoming,
			 KdbFetched *fetched)
{
	if (strcmp(answer[ANSWER_OWN], "t") == 0)
	{
		fetched->version = incoming;
		return;
	}
	if (answer[ANSWER_TS] == NULL || answer[ANSWER_WRITER] == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("could not fetch a row of table \"%s.%s\" from the publisher: it does not know when the row was written",
						subject->nspname, subject->relname),
				 KdbFetchErrorDetail(subject),
				 errhint("Set track_commit_timestamp = on at the publisher, or REPLICA IDENTITY FULL on its table.")));
	fetched->version.ts = strtoll(answer[ANSWER_TS], NULL, 10);
	fetched->version.node = (uint64) strtoll(answer[ANSWER_WRITER], NULL, 10);
	if (fetched->version.ts < incoming.ts)
		no_trace(subject, _("the row there is older than the change"));
}

static void
read_answer(const KdbFetchSubject *subject, char **answer, KdbVersion incoming,
			KdbFetched *fetched)
{
	const char *state = answer[ANSWER_STATE];

	if (strcmp(state, "absent") == 0)
		no_trace(subject, _("the row has left no trace there"));
	read_version(subject, answer, incoming, fetched);
	fetched->state = strcmp(state, "live") == 0 ? KDB_ROW_LIVE : KDB_ROW_DEAD;
	if (strcmp(state, "filtered") == 0 && KdbVersionCompare(fetched->version, incoming) == 0)
		fetched->state = KDB_ROW_LIVE;
}

static void
require_records(const KdbFetchSubject *subject)
{
	if (KdbVersionRecordsPresent())
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("cannot keep the version of a row of table \"%s.%s\" that was fetched from the publisher",
					subject->nspname, subject->relname),
			 KdbFetchErrorDetail(subject),
			 errhint("Run CREATE EXTENSION krahodb in this database, or set REPLICA IDENTITY FULL on the publisher's table.")));
}

/* ---- the row --------------------------------------------------------------- */

/* The values, in the format of the partitioned table or of the table itself. */
static TupleTableSlot *
convert_row(KdbApplyRelation *rel, List *answer)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(rel->tupdesc, &TTSOpsVirtual);
	KdbWireTuple tuple = {0};
	ListCell   *lc;

	if (list_length(answer) != rel->natts)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("publisher has answered with %d columns of table \"%s.%s\" instead of %d",
						list_length(answer), rel->nspname, rel->relname, rel->natts)));
	tuple.ncolumns = rel->natts;
	tuple.columns = palloc0_array(KdbWireColumn, rel->natts + 1);
	foreach(lc, answer)
	{
		char	   *value = ((char **) lfirst(lc))[ANSWER_VALUE];
		KdbWireColumn *column = &tuple.columns[foreach_current_index(lc)];

		column->kind = value ? 't' : 'n';
		column->data = value;
		column->length = value ? strlen(value) : 0;
	}
	KdbConvertTuple(rel, &tuple, slot, NULL);
	return slot;
}

/* Keep the row for this change, in the format of the table that it is written to. */
static void
keep_row(KdbConverge *c, List *answer)
{
	KdbApplyTarget *target = c->sides[KDB_KEY_NEW].target;
	TupleTableSlot *slot = convert_row(c->rel, answer);
	AttrMap    *map = build_attrmap_by_name_if_req(c->rel->tupdesc, target->tupdesc);
	Size		size = target->tupdesc->natts * sizeof(bool);

	if (map)
		slot = execute_attr_map_slot(map, slot, MakeSingleTupleTableSlot(target->tupdesc, &TTSOpsVirtual));
	c->fetched.slot = slot;
	c->fetched.sent = memcpy(palloc(size), target->compared, size);
}

/* What the publisher had seen when it answered, and the row's version, count here. */
static void
count_as_seen(List *seen, KdbVersion version)
{
	char	   *text = ((char **) linitial(seen))[0];

	if (text)
		KdbSeenAheadFromText(text, KdbLocalNodeIdentity());
	KdbClockBeforeApply(version.ts, KdbFeedbackWhileBusy);
	KdbClockReached();
}

/* See merge.h. */
void
KdbFetchRow(void *arg, KdbFetched *fetched)
{
	KdbConverge *c = arg;
	MemoryContext old = MemoryContextSwitchTo(KdbApplyMessageContext);
	const char *attname = KdbApplyErrorContext.attname;
	int			level = KdbStreamRowFormats();
	Request		request;
	List	   *answer;
	List	   *seen;
	char	  **first;

	KdbLaneMustBeFirst();
	describe_request(c, &request);
	KdbApplyErrorContext.attname = request.subject.column;
	require_krahodb(&request.subject);
	KdbFetchBegin(&request.subject);
	answer = ask(&request);
	seen = KdbFetchQuery(seen_query, 0, NULL, 1);
	KdbFetchDone();

	first = linitial(answer);
	require_same_node(&request.subject, first);
	require_state(&request.subject, first);
	read_answer(&request.subject, first, c->context->version, fetched);
	if (KdbVersionCompare(fetched->version, c->context->version) != 0)
		require_records(&request.subject);
	if (fetched->state == KDB_ROW_LIVE)
		keep_row(c, answer);
	count_as_seen(seen, fetched->version);
	elog(DEBUG1, "fetched row with key %s of table \"%s.%s\": %s",
		 request.subject.key, request.subject.nspname, request.subject.relname, first[ANSWER_STATE]);
	KdbApplyErrorContext.attname = attname;
	AtEOXact_GUC(true, level);
	MemoryContextSwitchTo(old);
	KDB_FAULT_POINT("fetched");
}
