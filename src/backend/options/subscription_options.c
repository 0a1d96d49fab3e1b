/*
 * subscription_options.c
 *		KrahoDB's options of a subscription as a whole.
 *
 * NORMALISE checks each option by itself and writes its value in one form, so
 * that a label compares and reads well.  PARSE looks at all of them together:
 * contradictions, then the defaults that depend on other options.  ALTER
 * normalises what it was given, merges it into what the label has, and parses
 * the result before anything is changed.
 *
 * One element of a label is no option: the mark of a stale subscription.  A label
 * may hold it, so that it survives as the options do, a dump included.
 *
 * Options that the engine knows too (origin and run_as_owner from version 16)
 * are KrahoDB's as long as the engine's parser would refuse them.
 */
#include "postgres.h"

#include "access/commit_ts.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_subscription.h"
#include "commands/defrem.h"
#include "commands/seclabel.h"
#include "commands/subscriptioncmds.h"
#include "lib/stringinfo.h"
#include "nodes/makefuncs.h"
#include "nodes/value.h"
#include "replication/logicallauncher.h"
#include "utils/inval.h"
#include "utils/syscache.h"

#include "krahodb/fault.h"

#include "options_private.h"

static const char *const single_options[] = {
	"origin",
	"filter_origins",
	"replication_origin_id",
	"conflict_resolution",
	"compression",
	"run_as_owner",
	"apply_workers"};

/* The mark of a stale subscription: a TimestampTz in decimal. */
#define STALE_SINCE		"stale_since"

bool
KdbIsSubscriptionOption(const char *name)
{
	KdbConflictType type;

	for (int i = 0; i < lengthof(single_options); i++)
	{
		if (strcmp(name, single_options[i]) == 0)
			return true;
	}
	return KdbConflictTypeFromName(name, &type);
}

static char *
normal_origin_ids(const char *name, const char *value)
{
	StringInfoData text;
	RepOriginId *ids;
	int			n = KdbReadOriginIds(name, value, &ids);

	if (n == 0)
		return NULL;
	initStringInfo(&text);
	for (int i = 0; i < n; i++)
		appendStringInfo(&text, "%s%u", i == 0 ? "" : ", ", ids[i]);
	return text.data;
}

static TimestampTz
read_stale_since(const char *value)
{
	char	   *end;
	long long since;

	errno = 0;
	since = strtoll(value, &end, 10);
	if (errno != 0 || end == value || *end != '\0' || since <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for parameter \"%s\"", STALE_SINCE)));
	return since;
}

/* The value of an option in normal form; NULL if it asks for the default. */
static char *
normal_value(DefElem *def)
{
	const char *name = def->defname;
	char	   *value;
	KdbConflictType type;

	if (strcmp(name, "run_as_owner") == 0)
		return pstrdup(defGetBoolean(def) ? "true" : "false");

	value = defGetString(def);
	if (strcmp(name, STALE_SINCE) == 0)
		return psprintf(INT64_FORMAT, read_stale_since(value));
	if (strcmp(name, "origin") == 0)
		return pstrdup(KdbReadOriginFilter(value) == KDB_ORIGIN_NONE ? "none" : "any");
	if (strcmp(name, "filter_origins") == 0)
		return normal_origin_ids(name, value);
	if (strcmp(name, "replication_origin_id") == 0)
		return psprintf("%u", KdbReadOriginId(name, value));
	if (strcmp(name, "compression") == 0)
		return pstrdup(KdbCompressionName(KdbReadCompression(name, value)));
	if (KdbIsDefaultValue(value))
		return NULL;
	if (strcmp(name, "apply_workers") == 0)
		return psprintf("%d", KdbReadApplyWorkers(name, value));
	if (strcmp(name, "conflict_resolution") == 0)
		return pstrdup(KdbResolverName(KdbReadGeneralResolver(name, value)));
	if (KdbConflictTypeFromName(name, &type))
		return pstrdup(KdbResolverName(KdbReadTypeResolver(type, value)));
	elog(ERROR, "unexpected subscription option \"%s\"", name);
}

List *
KdbNormaliseSubscriptionOptions(ParseState *pstate, List *defs)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, defs)
	{
		DefElem    *def = lfirst_node(DefElem, lc);
		char	   *value;
		ListCell   *other;

		/* Only a label can hold one that is not ours. */
		if (!KdbIsSubscriptionOption(def->defname) && strcmp(def->defname, STALE_SINCE) != 0)
			ereport(ERROR,
					(errcode(ERRCODE_SYNTAX_ERROR),
					 errmsg("unrecognized subscription parameter: \"%s\"", def->defname)));
		foreach(other, result)
		{
			if (strcmp(((DefElem *) lfirst(other))->defname, def->defname) == 0)
				errorConflictingDefElem(def, pstate);
		}
		value = normal_value(def);
		result = lappend(result,
						 makeDefElem(pstrdup(def->defname),
									 value ? (Node *) makeString(value) : NULL,
									 def->location));
	}
	return result;
}

static const char *
option_value(List *options, const char *name)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *option = lfirst_node(DefElem, lc);

		if (strcmp(option->defname, name) == 0)
			return option->arg ? strVal(option->arg) : NULL;
	}
	return NULL;
}

static void
check_contradictions(const KdbSubscriptionOptions *result)
{
	if (result->origin == KDB_ORIGIN_NONE && result->nfilter_origins > 0)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("%s and %s are mutually exclusive options",
						"origin = none", "filter_origins"),
				 errdetail("With \"origin = none\" the publisher already leaves out the changes of every origin."),
				 errhint("Use \"origin = any\" with filter_origins, or \"filter_origins = none\" with \"origin = none\".")));
}

/* Resolvers of all types: the general one, then those that are set by themselves. */
static void
set_resolvers(List *options, KdbSubscriptionOptions *result)
{
	const char *general = option_value(options, "conflict_resolution");

	if (general)
		result->conflict_resolution = KdbReadGeneralResolver("conflict_resolution", general);
	else if (result->origin == KDB_ORIGIN_NONE || result->nfilter_origins > 0)
		result->conflict_resolution = KDB_RESOLVER_LAST_UPDATE_WINS;
	else
		result->conflict_resolution = KDB_RESOLVER_ENGINE;
	KdbResolversSetAll(&result->resolvers, result->conflict_resolution);

	for (int type = 0; type < KDB_CONFLICT_TYPES; type++)
	{
		const char *value = option_value(options, KdbConflictTypeName((KdbConflictType) type));

		if (value)
			result->resolvers.by_type[type] = (uint8) KdbReadTypeResolver((KdbConflictType) type, value);
	}
}

KdbSubscriptionOptions *
KdbParseSubscriptionOptions(List *options)
{
	KdbSubscriptionOptions *result = palloc0(sizeof(KdbSubscriptionOptions));
	const char *value;

	value = option_value(options, "origin");
	result->origin = value ? KdbReadOriginFilter(value) : KDB_ORIGIN_ANY;
	value = option_value(options, "filter_origins");
	if (value)
		result->nfilter_origins = KdbReadOriginIds("filter_origins", value, &result->filter_origins);
	value = option_value(options, "replication_origin_id");
	result->replication_origin_id =
		value ? KdbReadOriginId("replication_origin_id", value) : InvalidRepOriginId;
	value = option_value(options, "compression");
	result->compression = value ? KdbReadCompression("compression", value) : KDB_COMPRESSION_OFF;
	value = option_value(options, "run_as_owner");
	result->run_as_owner = value == NULL || strcmp(value, "true") == 0;
	value = option_value(options, "apply_workers");
	result->apply_workers = value ? KdbReadApplyWorkers("apply_workers", value) : KDB_DEFAULT_APPLY_WORKERS;
	value = option_value(options, STALE_SINCE);
	result->stale_since = value ? read_stale_since(value) : 0;

	check_contradictions(result);
	set_resolvers(options, result);
	return result;
}

static void
name_subscription(void *arg)
{
	errcontext("options of the subscription with OID %u", *(Oid *) arg);
}

KdbSubscriptionOptions *
KdbGetSubscriptionOptions(Oid subid)
{
	ErrorContextCallback callback = {.previous = error_context_stack,
		.callback = name_subscription, .arg = &subid};
	KdbSubscriptionOptions *result;
	List	   *options;

	error_context_stack = &callback;
	options = KdbReadOptions(SubscriptionRelationId, subid);
	result = KdbParseSubscriptionOptions(KdbNormaliseSubscriptionOptions(NULL, options));
	error_context_stack = callback.previous;
	return result;
}

/*
 * See options.h.  Only what an error has allocated is left to clean up: text that is in memory
 * is being read, and nothing else.
 */
KdbSubscriptionOptions *
KdbTryGetSubscriptionOptions(Oid subid)
{
	MemoryContext context = CurrentMemoryContext;
	KdbSubscriptionOptions *volatile result = NULL;
	ObjectAddress object;
	char	   *label;

	if (!KdbLabelIsInLine(SubscriptionRelationId, subid))
		return NULL;
	ObjectAddressSet(object, SubscriptionRelationId, subid);
	label = GetSecurityLabel(&object, KDB_LABEL_PROVIDER);
	if (label == NULL)
		return KdbParseSubscriptionOptions(NIL);
	PG_TRY();
	{
		result = KdbParseSubscriptionOptions(KdbNormaliseSubscriptionOptions(NULL, KdbLabelToOptions(label)));
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		FlushErrorState();
	}
	PG_END_TRY();
	return result;
}

bool
KdbSubscriptionOptionsEqual(const KdbSubscriptionOptions *a,
							const KdbSubscriptionOptions *b)
{
	return a->origin == b->origin &&
		a->nfilter_origins == b->nfilter_origins &&
		(a->nfilter_origins == 0 ||
		 memcmp(a->filter_origins, b->filter_origins,
				a->nfilter_origins * sizeof(RepOriginId)) == 0) &&
		a->replication_origin_id == b->replication_origin_id &&
		a->compression == b->compression &&
		a->run_as_owner == b->run_as_owner &&
		a->apply_workers == b->apply_workers &&
		a->conflict_resolution == b->conflict_resolution &&
		memcmp(&a->resolvers, &b->resolvers, sizeof(KdbResolvers)) == 0 &&
		a->stale_since == b->stale_since;
}

/* Telling whose row it is, or which of two is newer, takes the commit timestamp. */
static bool
need_timestamps(const KdbSubscriptionOptions *options)
{
	for (int type = 0; type < KDB_CONFLICT_TYPES; type++)
	{
		KdbResolver resolver = (KdbResolver) options->resolvers.by_type[type];

		if (resolver == KDB_RESOLVER_LAST_UPDATE_WINS ||
			resolver == KDB_RESOLVER_FIRST_UPDATE_WINS)
			return true;
		if (resolver != KDB_RESOLVER_ENGINE &&
			(type == KDB_CONFLICT_UPDATE_ORIGIN_DIFFERS || type == KDB_CONFLICT_DELETE_ORIGIN_DIFFERS))
			return true;
	}
	return false;
}

/* See options.h. */
void
KdbWarnAboutTimestamps(const char *subname, const KdbSubscriptionOptions *options)
{
	if (track_commit_timestamp || !need_timestamps(options))
		return;
	ereport(WARNING,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("conflicts of subscription \"%s\" cannot be detected and resolved by origin and time",
					subname),
			 errdetail("The setting \"%s\" is off.", "track_commit_timestamp"),
			 errhint("Set \"%s\" to on and restart the server.", "track_commit_timestamp")));
}

/*
 * The workers watch pg_subscription.  The launcher does not, and the engine wakes it for
 * enabled subscriptions only; but it decides whether the clock rule holds, and tells the horizon
 * worker of a new peer, which counts although it is disabled.
 */
void
KdbSubscriptionOptionsChanged(Oid subid)
{
	Relation	rel = table_open(SubscriptionRelationId, RowExclusiveLock);
	HeapTuple	tuple = SearchSysCache1(SUBSCRIPTIONOID, ObjectIdGetDatum(subid));

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for subscription %u", subid);
	CacheInvalidateHeapTuple(rel, tuple, NULL);
	ReleaseSysCache(tuple);
	table_close(rel, NoLock);
	ApplyLauncherWakeupAtCommit();
}

void
KdbStoreSubscriptionOptions(Oid subid, List *options)
{
	ObjectAddress object;

	ObjectAddressSet(object, SubscriptionRelationId, subid);
	SetSecurityLabel(&object, KDB_LABEL_PROVIDER, KdbOptionsToLabel(options));
	KdbSubscriptionOptionsChanged(subid);
}

/* The label with the mark set to value, or without it. */
static void
store_stale_since(Oid subid, List *options, Node *value)
{
	List	   *change = list_make1(makeDefElem(STALE_SINCE, value, -1));

	KdbStoreSubscriptionOptions(subid, KdbMergeOptions(options, change));
}

/* See options_private.h. */
bool
KdbIsMarkedStale(Oid subid)
{
	return option_value(KdbReadOptions(SubscriptionRelationId, subid), STALE_SINCE) != NULL;
}

bool
KdbMarkSubscriptionStale(Oid subid, TimestampTz since)
{
	List	   *options = KdbReadOptions(SubscriptionRelationId, subid);

	if (option_value(options, STALE_SINCE) != NULL)
		return false;
	store_stale_since(subid, options, (Node *) makeString(psprintf(INT64_FORMAT, since)));
	return true;
}

bool
KdbClearSubscriptionStale(Oid subid)
{
	List	   *options = KdbReadOptions(SubscriptionRelationId, subid);

	if (option_value(options, STALE_SINCE) == NULL)
		return false;
	store_stale_since(subid, options, NULL);
	return true;
}

/* See options.h. */
bool
KdbOptionsCompareTimes(const KdbSubscriptionOptions *options)
{
	for (int i = 0; i < KDB_CONFLICT_TYPES; i++)
	{
		if (options->resolvers.by_type[i] == KDB_RESOLVER_LAST_UPDATE_WINS ||
			options->resolvers.by_type[i] == KDB_RESOLVER_FIRST_UPDATE_WINS)
			return true;
	}
	return false;
}
