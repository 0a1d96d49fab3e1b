/*
 * partition.c
 *		Which partition does a row of a partitioned table go to?
 *
 * The engine's tuple routing finds it; routing state is built once in a
 * transaction.  Writing then happens through the partition's own KdbApplyTarget,
 * like to any other table.
 */
#include "postgres.h"

#include "access/tupconvert.h"
#include "catalog/pg_subscription_rel.h"
#include "executor/execPartition.h"
#include "executor/executor.h"
#include "nodes/makefuncs.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "relation_private.h"

/* Routing of one partitioned table, for one transaction. */
typedef struct KdbApplyRouting
{
	MemoryContext context;
	EState	   *estate;
	ModifyTableState *mtstate;
	ResultRelInfo *root;
	PartitionTupleRouting *proute;
} KdbApplyRouting;

static KdbApplyRouting *
begin_routing(KdbApplyRelation *rel)
{
	MemoryContext context = AllocSetContextCreate(ApplyContext, "KrahoDB partition routing",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	KdbApplyRouting *routing = palloc0(sizeof(KdbApplyRouting));
	RangeTblEntry *rte = makeNode(RangeTblEntry);

	routing->context = context;
	routing->estate = CreateExecutorState();
	MemoryContextSwitchTo(routing->estate->es_query_cxt);

	rte->rtekind = RTE_RELATION;
	rte->relid = rel->localreloid;
	rte->relkind = rel->rel->rd_rel->relkind;
	rte->rellockmode = AccessShareLock;
	ExecInitRangeTable(routing->estate, list_make1(rte));

	routing->root = makeNode(ResultRelInfo);
	InitResultRelInfo(routing->root, rel->rel, 1, NULL, 0);

	routing->mtstate = makeNode(ModifyTableState);
	routing->mtstate->ps.plan = NULL;
	routing->mtstate->ps.state = routing->estate;
	routing->mtstate->operation = CMD_INSERT;
	routing->mtstate->resultRelInfo = routing->root;
	routing->proute = ExecSetupPartitionTupleRouting(routing->estate, rel->rel);
	MemoryContextSwitchTo(old);
	return routing;
}

/* End routing; the partitions that it opened are closed. */
void
KdbRoutingClose(KdbApplyRelation *rel)
{
	KdbApplyRouting *routing = rel->routing;

	ExecCleanupTupleRouting(routing->mtstate, routing->proute);
	ExecResetTupleTable(routing->estate->es_tupleTable, false);
	FreeExecutorState(routing->estate);
	MemoryContextDelete(routing->context);
	rel->routing = NULL;
}

/* The transaction has been aborted, and has let go of what routing held. */
void
KdbRoutingAbandon(KdbApplyRelation *rel)
{
	if (rel->routing)
		MemoryContextDelete(rel->routing->context);
	rel->routing = NULL;
}

/* The partition's result relation as tuple routing knows it. */
static ResultRelInfo *
find_partition(KdbApplyRelation *rel, TupleTableSlot *slot)
{
	ResultRelInfo *partition;
	Relation	leaf;

	if (rel->routing == NULL)
		rel->routing = begin_routing(rel);
	partition = ExecFindPartition(rel->routing->mtstate, rel->routing->root,
								  rel->routing->proute, slot, rel->routing->estate);
	ResetPerTupleExprContext(rel->routing->estate);

	leaf = partition->ri_RelationDesc;
	if (leaf->rd_rel->relkind != RELKIND_RELATION)
		CheckSubscriptionRelkind(leaf->rd_rel->relkind,
								 get_namespace_name(RelationGetNamespace(leaf)),
								 RelationGetRelationName(leaf));
	return partition;
}

/* See relation_private.h. */
AttrMap *
KdbRouteMap(KdbApplyRelation *rel, KdbApplyTarget *target)
{
	return build_attrmap_by_name_if_req(rel->tupdesc, target->tupdesc);
}

/* See relation_private.h. */
TupleTableSlot *
KdbReformat(AttrMap *map, TupleTableSlot *from, TupleTableSlot *to)
{
	int			natts = to->tts_tupleDescriptor->natts;

	if (map)
		return execute_attr_map_slot(map, from, to);
	slot_getallattrs(from);
	ExecClearTuple(to);
	memcpy(to->tts_values, from->tts_values, natts * sizeof(Datum));
	memcpy(to->tts_isnull, from->tts_isnull, natts * sizeof(bool));
	return ExecStoreVirtualTuple(to);
}

/* See relation_private.h. */
KdbApplyTarget *
KdbRouteTo(KdbApplyRelation *rel, TupleTableSlot *slot)
{
	ResultRelInfo *partition = find_partition(rel, slot);

	return KdbTargetOpen(RelationGetRelid(partition->ri_RelationDesc), RowExclusiveLock, rel);
}

/* Likewise; *routed becomes the row in the partition's format, in its search slot. */
KdbApplyTarget *
KdbRoute(KdbApplyRelation *rel, TupleTableSlot *slot, TupleTableSlot **routed)
{
	KdbApplyTarget *target = KdbRouteTo(rel, slot);

	*routed = KdbReformat(KdbRouteMap(rel, target), slot, target->search);
	return target;
}

/*
 * A row in the partitioned table's format, in the partition's format: in
 * target->remote.
 */
KdbRemoteRow *
KdbRouteRow(KdbApplyRelation *rel, KdbApplyTarget *target, const KdbRemoteRow *row)
{
	AttrMap    *map = KdbRouteMap(rel, target);

	KdbReformat(map, row->slot, target->remote.slot);
	for (int i = 0; i < target->tupdesc->natts; i++)
	{
		int			attnum = map ? map->attnums[i] : i + 1;

		target->remote.sent[i] = attnum > 0 && row->sent[attnum - 1];
	}
	return &target->remote;
}

/* A partition's row in the partitioned table's format: in rel->search. */
TupleTableSlot *
KdbRouteBack(KdbApplyRelation *rel, KdbApplyTarget *target, TupleTableSlot *slot)
{
	return KdbReformat(build_attrmap_by_name_if_req(target->tupdesc, rel->tupdesc),
					   slot, rel->search);
}
