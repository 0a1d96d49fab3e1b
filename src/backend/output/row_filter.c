/*
 * row_filter.c
 *		Which rows of a relation are published.
 *
 * Each publication may have a WHERE for a table.  A row is published for an
 * action (insert, update, delete) if any of the publications that publish that
 * action has no filter for the table, or has one that is true for the row.  A
 * filter that is null is not true.  FOR ALL TABLES and FOR TABLES IN SCHEMA are
 * no filter.
 *
 * An update has two rows, and what the subscriber has to do depends on both:
 *
 *		old row		new row		sent
 *		no match	no match	nothing
 *		no match	match		INSERT of the new row: it was not there
 *		match		no match	DELETE of the old row: it is no longer wanted
 *		match		match		UPDATE
 *
 * The old row is in the log only if the replica identity changed or is FULL (or
 * has a value that is stored out of line).  If it is not, the columns that an
 * update's filter can use have not changed, so the new row answers for both.
 *
 * A value that is stored out of line and did not change is in the log only with
 * the old row, if it belongs to the replica identity.  The new row takes it
 * from there, to be tested, and to be complete in it if it is sent as INSERT.
 */
#include "postgres.h"

#include "catalog/partition.h"
#include "catalog/pg_publication_rel.h"
#include "executor/executor.h"
#include "nodes/makefuncs.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "krahodb/output.h"

#include "output_private.h"

struct KdbRowFilter
{
	EState	   *estate;
	ExprState  *expressions[KDB_NROW_ACTIONS];	/* NULL: every row matches */
	TupleTableSlot *completed_slot; /* a new row with values of the old one, made at need */
	MemoryContext context;		/* holds all of it */
};

/* What the publications say of one action. */
typedef struct ActionFilters
{
	bool		every_row;		/* one of them has no filter */
	List	   *conditions;		/* node trees as text */
} ActionFilters;

static void
add_filter(ActionFilters *filters, bool published, char *condition)
{
	if (!published || filters->every_row)
		return;
	if (condition == NULL)
		filters->every_row = true;
	else
		filters->conditions = lappend(filters->conditions, condition);
}

/* The publication's condition for the relation as text of a node tree, or NULL. */
static char *
condition_of(const Publication *publication, Oid relid, Oid schema)
{
	HeapTuple	tuple;
	Datum		datum;
	bool		no_condition;
	char	   *condition = NULL;

	if (publication->alltables ||
		SearchSysCacheExists2(PUBLICATIONNAMESPACEMAP,
							  ObjectIdGetDatum(schema),
							  ObjectIdGetDatum(publication->oid)))
		return NULL;
	tuple = SearchSysCache2(PUBLICATIONRELMAP,
							ObjectIdGetDatum(relid),
							ObjectIdGetDatum(publication->oid));
	if (!HeapTupleIsValid(tuple))
		return NULL;
	datum = SysCacheGetAttr(PUBLICATIONRELMAP, tuple, Anum_pg_publication_rel_prqual,
							&no_condition);
	if (!no_condition)
		condition = TextDatumGetCString(datum);
	ReleaseSysCache(tuple);
	return condition;
}

/*
 * Returns NULL if every row matches.  The current memory context must last as
 * long as the filter: the executor goes on using the constants of the tree.
 */
static ExprState *
prepare_action(const ActionFilters *filters, EState *estate)
{
	List	   *conditions = NIL;
	ListCell   *lc;

	if (filters->every_row || filters->conditions == NIL)
		return NULL;
	foreach(lc, filters->conditions)
		conditions = lappend(conditions, stringToNode(lfirst(lc)));
	if (list_length(conditions) == 1)
		return ExecPrepareExpr(linitial(conditions), estate);
	return ExecPrepareExpr(make_orclause(conditions), estate);
}

static KdbRowFilter *
prepare_filter(const ActionFilters filters[], MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	KdbRowFilter *filter = palloc0(sizeof(KdbRowFilter));

	filter->context = context;
	filter->estate = CreateExecutorState();
	for (int i = 0; i < KDB_NROW_ACTIONS; i++)
		filter->expressions[i] = prepare_action(&filters[i], filter->estate);
	MemoryContextSwitchTo(old);
	return filter;
}

/*
 * The filter of a relation under the publications that publish it as
 * publish_as; NULL if every row is published.  It is in context.
 */
KdbRowFilter *
KdbBuildRowFilter(List *publications, Oid publish_as, MemoryContext context)
{
	ActionFilters filters[KDB_NROW_ACTIONS] = {{0}};
	Oid			schema = get_rel_namespace(publish_as);
	bool		needed = false;
	ListCell   *lc;

	foreach(lc, publications)
	{
		const Publication *publication = lfirst(lc);
		char	   *condition = condition_of(publication, publish_as, schema);

		add_filter(&filters[KDB_ROW_INSERT], publication->pubactions.pubinsert, condition);
		add_filter(&filters[KDB_ROW_UPDATE], publication->pubactions.pubupdate, condition);
		add_filter(&filters[KDB_ROW_DELETE], publication->pubactions.pubdelete, condition);
	}
	for (int i = 0; i < KDB_NROW_ACTIONS; i++)
		needed |= !filters[i].every_row && filters[i].conditions != NIL;
	return needed ? prepare_filter(filters, context) : NULL;
}

static bool
matches(KdbRowFilter *filter, ExprState *expression, TupleTableSlot *slot)
{
	ExprContext *econtext = GetPerTupleExprContext(filter->estate);
	bool		isnull;
	Datum		result;

	econtext->ecxt_scantuple = slot;
	result = ExecEvalExprSwitchContext(expression, econtext, &isnull);
	return !isnull && DatumGetBool(result);
}

/* A virtual slot with the values of the new row. */
static TupleTableSlot *
copy_values(KdbRowFilter *filter, TupleTableSlot *new_slot)
{
	TupleTableSlot *copy = filter->completed_slot;
	int			natts = new_slot->tts_tupleDescriptor->natts;

	if (copy == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(filter->context);

		filter->completed_slot = copy =
			MakeSingleTupleTableSlot(new_slot->tts_tupleDescriptor, &TTSOpsVirtual);
		MemoryContextSwitchTo(old);
	}
	ExecClearTuple(copy);
	memcpy(copy->tts_values, new_slot->tts_values, natts * sizeof(Datum));
	memcpy(copy->tts_isnull, new_slot->tts_isnull, natts * sizeof(bool));
	return copy;
}

/*
 * The new row with the unchanged out-of-line values that the old row has inline;
 * new_slot itself if there are none.  (Values that changed are in memory and
 * marked as indirect, so they do not count as on disk.)
 */
static TupleTableSlot *
complete_new_row(KdbRowFilter *filter, TupleTableSlot *old_slot, TupleTableSlot *new_slot)
{
	TupleDesc	desc = new_slot->tts_tupleDescriptor;
	TupleTableSlot *result = new_slot;

	slot_getallattrs(old_slot);
	slot_getallattrs(new_slot);
	for (int i = 0; i < desc->natts; i++)
	{
		if (TupleDescAttr(desc, i)->attlen != -1 ||
			new_slot->tts_isnull[i] || old_slot->tts_isnull[i] ||
			!VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(new_slot->tts_values[i])) ||
			VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(old_slot->tts_values[i])))
			continue;
		if (result == new_slot)
			result = copy_values(filter, new_slot);
		result->tts_values[i] = old_slot->tts_values[i];
	}
	if (result != new_slot)
		ExecStoreVirtualTuple(result);
	return result;
}

static bool
update_passes(KdbRowFilter *filter, ExprState *expression, KdbRowAction *action,
			  TupleTableSlot *old_slot, TupleTableSlot **new_slot)
{
	TupleTableSlot *completed = complete_new_row(filter, old_slot, *new_slot);
	bool		old_matches = matches(filter, expression, old_slot);
	bool		new_matches = matches(filter, expression, completed);

	if (!old_matches && new_matches)
	{
		*action = KDB_ROW_INSERT;
		*new_slot = completed;
	}
	else if (old_matches && !new_matches)
		*action = KDB_ROW_DELETE;
	return old_matches || new_matches;
}

/*
 * Is the change published?  Both slots hold rows as the published relation has
 * them, or are NULL where there is no such row.  *action and *new_slot become
 * what is to be sent.
 */
bool
KdbRowFilterPasses(KdbRowFilter *filter, KdbRowAction *action,
				   TupleTableSlot *old_slot, TupleTableSlot **new_slot)
{
	ExprState  *expression = filter->expressions[*action];

	if (expression == NULL)
		return true;
	ResetPerTupleExprContext(filter->estate);
	if (old_slot != NULL && *new_slot != NULL)
		return update_passes(filter, expression, action, old_slot, new_slot);
	return matches(filter, expression, *new_slot != NULL ? *new_slot : old_slot);
}

/* Is the relation, or one that it is a partition of, in the publication? */
static bool
is_in_publication(const Publication *publication, Oid relid)
{
	if (publication->alltables ||
		list_member_oid(GetRelationPublications(relid), publication->oid) ||
		list_member_oid(GetSchemaPublications(get_rel_namespace(relid)), publication->oid))
		return true;
	return get_rel_relispartition(relid) &&
		OidIsValid(GetTopMostAncestorInPublication(publication->oid,
												   get_partition_ancestors(relid), NULL));
}

/* See output.h. */
bool
KdbRowIsPublished(List *publications, Oid relid, TupleTableSlot *slot)
{
	List	   *those = NIL;
	KdbRowFilter *filter;
	KdbRowAction action = KDB_ROW_UPDATE;
	ListCell   *lc;

	foreach(lc, publications)
	{
		Publication *publication = GetPublicationByName(lfirst(lc), true);

		if (publication && is_in_publication(publication, relid))
			those = lappend(those, publication);
	}
	filter = KdbBuildRowFilter(those, relid, CurrentMemoryContext);
	return filter == NULL || KdbRowFilterPasses(filter, &action, NULL, &slot);
}
