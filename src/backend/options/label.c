/*
 * label.c
 *		Security labels of provider "krahodb": where options are kept.
 *
 * Why labels: they are the only per-object storage of the engine that needs no
 * relation of our own, is transactional, goes away with the object, is open to
 * extensions, and is dumped and restored by the engine's pg_dump.  KrahoDB
 * needs all of that before CREATE EXTENSION.
 *
 * The label is one JSON object of option name to string value, e.g.
 *		{"origin": "none", "replication_origin_id": "2"}
 *
 * A label has two writers: the utility hook, which stores what ALTER and CREATE
 * said, and SECURITY LABEL, as pg_dump emits it or as somebody types it.  The
 * provider's check runs only for the second; both go through the same reader,
 * so that every stored label can be read.  The text is nevertheless checked at
 * each reading: a newer KrahoDB may have written it.
 *
 * Whoever caches options learns of a change at commit: for subscriptions by an
 * invalidation of the pg_subscription row, for tables by one of the relcache
 * entry (of each partition, if the table is partitioned).
 *
 * SECURITY LABEL without FOR takes the only provider there is, so another one (sepgsql)
 * must not find itself beside ours.  A session registers ours when it first says FOR
 * krahodb.
 *
 * The engine deletes a table's labels with the table, but leaves the labels of
 * a subscription behind; KdbCommandsInit's object access hook deletes those.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_shseclabel.h"
#include "catalog/pg_subscription.h"
#include "commands/seclabel.h"
#include "common/jsonapi.h"
#include "mb/pg_wchar.h"
#include "nodes/makefuncs.h"
#include "nodes/value.h"
#include "utils/json.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/relcache.h"

#include "options_private.h"

/* filter_origins can name every one of 65534 origins: 7 bytes each. */
#define KDB_LABEL_MAX_BYTES		(1024 * 1024)

/* How much of a hostile text an error message repeats. */
#define KDB_QUOTED_MAX_BYTES	64

typedef struct label_reader
{
	int			depth;			/* 1 inside the object */
	char	   *name;			/* of the field that is being read */
	List	   *options;
} label_reader;

static void
bad_label(const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid security label for provider \"%s\"", KDB_LABEL_PROVIDER),
			 errdetail("%s", detail),
			 errhint("The label is a JSON object of option names and string values, like {\"conflict_resolution\": \"last_update_wins\"}.")));
}

static char *
abbreviated(const char *text)
{
	int			len = strlen(text);

	if (len <= KDB_QUOTED_MAX_BYTES)
		return pstrdup(text);
	len = pg_mbcliplen(text, len, KDB_QUOTED_MAX_BYTES);
	return psprintf("%.*s...", len, text);
}

static void
label_object_start(void *state)
{
	label_reader *reader = state;

	if (reader->depth > 0)
		bad_label(psprintf("The value of \"%s\" is not a string.", abbreviated(reader->name)));
	reader->depth++;
}

static void
label_object_end(void *state)
{
	((label_reader *) state)->depth--;
}

static void
label_array_start(void *state)
{
	label_reader *reader = state;

	if (reader->depth == 0)
		bad_label("It is an array.");
	bad_label(psprintf("The value of \"%s\" is not a string.", abbreviated(reader->name)));
}

static void
label_field_start(void *state, char *name, bool isnull)
{
	label_reader *reader = state;
	ListCell   *lc;

	foreach(lc, reader->options)
	{
		if (strcmp(((DefElem *) lfirst(lc))->defname, name) == 0)
			bad_label(psprintf("Option \"%s\" is given more than once.", abbreviated(name)));
	}
	reader->name = name;
}

static void
label_scalar(void *state, char *token, JsonTokenType type)
{
	label_reader *reader = state;

	if (reader->depth == 0)
		bad_label("It is a single value.");
	if (type != JSON_TOKEN_STRING)
		bad_label(psprintf("The value of \"%s\" is not a string.", abbreviated(reader->name)));
	reader->options = lappend(reader->options,
							  makeDefElem(reader->name, (Node *) makeString(token), -1));
}

/* The option list of a label, values as they are written there. */
List *
KdbLabelToOptions(const char *label)
{
	label_reader reader = {0};
	JsonSemAction actions = {0};
	JsonLexContext *lex;
	JsonParseErrorType error;
	size_t		len = strlen(label);

	if (len > KDB_LABEL_MAX_BYTES)
		bad_label(psprintf("It is %zu bytes long, the limit is %d bytes.", len, KDB_LABEL_MAX_BYTES));

	actions.semstate = &reader;
	actions.object_start = label_object_start;
	actions.object_end = label_object_end;
	actions.array_start = label_array_start;
	actions.object_field_start = label_field_start;
	actions.scalar = label_scalar;

	lex = makeJsonLexContextCstringLen(pstrdup(label), (int) len, GetDatabaseEncoding(), true);
	error = pg_parse_json(lex, &actions);
	if (error != JSON_SUCCESS)
		bad_label(abbreviated(json_errdetail(error, lex)));
	return reader.options;
}

/* The other way; NULL for no options, which is no label. */
char *
KdbOptionsToLabel(List *options)
{
	StringInfoData label;
	ListCell   *lc;

	if (options == NIL)
		return NULL;

	initStringInfo(&label);
	foreach(lc, options)
	{
		DefElem    *option = lfirst_node(DefElem, lc);

		appendStringInfoString(&label, label.len == 0 ? "{" : ", ");
		escape_json(&label, option->defname);
		appendStringInfoString(&label, ": ");
		escape_json(&label, strVal(option->arg));
	}
	appendStringInfoChar(&label, '}');
	return label.data;
}

List *
KdbReadOptions(Oid classid, Oid objectid)
{
	ObjectAddress object;
	char	   *label;

	ObjectAddressSet(object, classid, objectid);
	label = GetSecurityLabel(&object, KDB_LABEL_PROVIDER);
	return label == NULL ? NIL : KdbLabelToOptions(label);
}

/* See options_private.h. */
bool
KdbLabelIsInLine(Oid classid, Oid objectid)
{
	Relation	rel = table_open(SharedSecLabelRelationId, AccessShareLock);
	ScanKeyData keys[3];
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		result = true;

	ScanKeyInit(&keys[0], Anum_pg_shseclabel_objoid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(objectid));
	ScanKeyInit(&keys[1], Anum_pg_shseclabel_classoid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(classid));
	ScanKeyInit(&keys[2], Anum_pg_shseclabel_provider, BTEqualStrategyNumber, F_TEXTEQ,
				CStringGetTextDatum(KDB_LABEL_PROVIDER));
	/* right after initdb, who has no database has no indexes either */
	scan = systable_beginscan(rel, SharedSecLabelObjectIndexId, criticalSharedRelcachesBuilt,
							  NULL, 3, keys);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;
		Datum		label = heap_getattr(tuple, Anum_pg_shseclabel_label, RelationGetDescr(rel),
										 &isnull);

		result = isnull || !VARATT_IS_EXTERNAL(DatumGetPointer(label));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return result;
}

List *
KdbMergeOptions(List *old, List *changes)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, old)
	{
		DefElem    *option = lfirst_node(DefElem, lc);
		bool		changed = false;
		ListCell   *change;

		foreach(change, changes)
			changed |= strcmp(((DefElem *) lfirst(change))->defname, option->defname) == 0;
		if (!changed && option->arg != NULL)
			result = lappend(result, option);
	}
	foreach(lc, changes)
	{
		if (lfirst_node(DefElem, lc)->arg != NULL)
			result = lappend(result, lfirst(lc));
	}
	return result;
}

/* Check a label that SECURITY LABEL is about to store on a subscription. */
static void
check_subscription_label(Oid subid, const char *label)
{
	List	   *options = NIL;
	KdbSubscriptionOptions *parsed;

	if (label != NULL)
		options = KdbNormaliseSubscriptionOptions(NULL, KdbLabelToOptions(label));
	parsed = KdbParseSubscriptionOptions(options);
	if (parsed->stale_since == 0 && KdbIsMarkedStale(subid))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot remove the mark of a stale subscription from its security label"),
				 errhint("Call krahodb.accept_stale_peer(), or drop the subscription and create it again.")));
	if (parsed->replication_origin_id != InvalidRepOriginId)
		KdbAssignOriginId(subid, parsed->replication_origin_id);

	KdbSubscriptionOptionsChanged(subid);
}

static void
check_table_label(Oid relid, const char *label)
{
	if (label != NULL)
	{
		KdbCheckTableForOptions(relid);
		(void) KdbNormaliseTableOptions(KdbLabelToOptions(label), false);
	}
	KdbTableOptionsChanged(relid);
}

static void
check_column_label(Oid relid, AttrNumber attnum, const char *label)
{
	if (label != NULL)
	{
		KdbCheckTableForOptions(relid);
		KdbCheckColumnLabel(relid, attnum, label);
	}
	KdbTableOptionsChanged(relid);
}

/*
 * The provider's check.  SECURITY LABEL has checked ownership and locked the
 * object; after this it stores the text.
 */
static void
check_label(const ObjectAddress *object, const char *label)
{
	if (object->classId == SubscriptionRelationId)
		check_subscription_label(object->objectId, label);
	else if (object->classId == RelationRelationId && object->objectSubId == 0)
		check_table_label(object->objectId, label);
	else if (object->classId == RelationRelationId)
		check_column_label(object->objectId, object->objectSubId, label);
	else if (label != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("security labels of provider \"%s\" are only supported on subscriptions, tables and columns",
						KDB_LABEL_PROVIDER)));
}

/* See options.h. */
void
KdbRegisterLabelProvider(void)
{
	static bool registered = false;

	if (registered)
		return;
	register_label_provider(KDB_LABEL_PROVIDER, check_label);
	registered = true;
}
