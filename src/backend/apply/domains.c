/*
 * domains.c
 *		Do expressions of a table convert to domains?
 *
 * What is kept of a table has its expressions ready to be evaluated: defaults, generated
 * columns, CHECK constraints, index expressions, conditions of triggers.  Where one
 * converts to a domain, the executor puts the domain's constraints into it.  ALTER DOMAIN
 * changes no table, so no relcache event comes; it changes pg_type, and so does each
 * CREATE TABLE.  Hence this question: only what says yes is built again.
 *
 * Values that come from the publisher are converted by input functions, which look at a
 * domain's constraints themselves.
 */
#include "postgres.h"

#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "rewrite/rewriteHandler.h"

#include "relation_private.h"

static bool
converts(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, CoerceToDomain))
		return true;
	return expression_tree_walker(node, converts, context);
}

/* See relation_private.h. */
bool
KdbConvertsToDomain(Node *planned)
{
	return converts(planned, NULL);
}

/* One that is kept as text; functions in it may be inlined. */
static bool
text_converts(char *expression)
{
	return expression != NULL &&
		converts((Node *) expression_planner((Expr *) stringToNode(expression)), NULL);
}

static bool
constraints_convert(Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);

	if (desc->constr == NULL)
		return false;
	for (int i = 0; i < desc->constr->num_check; i++)
	{
		if (text_converts(desc->constr->check[i].ccbin))
			return true;
	}
	for (int i = 0; i < desc->natts && desc->constr->has_generated_stored; i++)
	{
		if (TupleDescAttr(desc, i)->attgenerated &&
			converts((Node *) expression_planner((Expr *) build_column_default(rel, i + 1)), NULL))
			return true;
	}
	return false;
}

static bool
triggers_convert(const TriggerDesc *triggers)
{
	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		if (text_converts(triggers->triggers[i].tgqual))
			return true;
	}
	return false;
}

/* See relation_private.h. */
bool
KdbTargetConvertsToDomain(KdbApplyTarget *target)
{
	for (int i = 0; i < target->nindexes; i++)
	{
		IndexInfo  *info = target->relinfo->ri_IndexRelationInfo[i];

		if (converts((Node *) info->ii_Expressions, NULL) ||
			converts((Node *) info->ii_Predicate, NULL))
			return true;
	}
	return constraints_convert(target->rel) || triggers_convert(target->relinfo->ri_TrigDesc);
}
