/*
 * index_place.c
 *		What an index is, whatever its OID.
 *
 * Claims of unique values are recorded for an index.  But that may be built anew while they are
 * needed: REINDEX CONCURRENTLY and ALTER TABLE make another one and drop it, and so does who
 * builds one beside it and exchanges the two.  So a record has no OID, but a number that is made of
 * the table's columns, expressions, predicate and, of an exclusion constraint, operators of the index.  Types and collations
 * are in the hash of the values.
 *
 * Two indexes that are alike have the same number: what is claimed in one is in the other, too.
 *
 * Trees of expressions say where in the text of a command they stood, which does not count.
 *
 * On another server columns have other numbers, so there it is found by its text.
 */
#include "postgres.h"

#include "catalog/pg_index.h"
#include "common/hashfn.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/ruleutils.h"
#include "utils/syscache.h"

#include "krahodb/conflict.h"

#define LOCATION	" :location "

/* Take the places in the command out of a tree's text. */
static void
forget_locations(char *tree)
{
	char	   *to = tree;
	char	   *next;

	while ((next = strstr(tree, LOCATION)) != NULL)
	{
		memmove(to, tree, next - tree);
		to += next - tree;
		tree = next + strlen(LOCATION);
		tree += strspn(tree, "-0123456789");
	}
	memmove(to, tree, strlen(tree) + 1);
}

static uint32
hash_of_tree(Relation index, AttrNumber column)
{
	bool		isnull;
	Datum		datum = SysCacheGetAttr(INDEXRELID, index->rd_indextuple, column, &isnull);
	char	   *tree;
	uint32		hash;

	if (isnull)
		return 0;
	tree = TextDatumGetCString(datum);
	forget_locations(tree);
	hash = hash_bytes((const unsigned char *) tree, strlen(tree));
	pfree(tree);
	return hash;
}

static const Oid *
exclusion_operators(Relation index)
{
	Oid		   *operators;
	Oid		   *functions;
	uint16	   *strategies;

	RelationGetExclusionInfo(index, &operators, &functions, &strategies);
	return operators;
}

/* See conflict.h. */
Oid
KdbIndexPlace(Relation index)
{
	Form_pg_index form = index->rd_index;
	uint32		hash = hash_bytes((const unsigned char *) form->indkey.values,
								  form->indnkeyatts * sizeof(form->indkey.values[0]));

	hash = hash_combine(hash, hash_of_tree(index, Anum_pg_index_indexprs));
	hash = hash_combine(hash, hash_of_tree(index, Anum_pg_index_indpred));
	if (form->indisexclusion)
		hash = hash_combine(hash, hash_bytes((const unsigned char *) exclusion_operators(index),
											 form->indnkeyatts * sizeof(Oid)));
	return hash != InvalidOid ? hash : 1;
}

/* See conflict.h. */
char *
KdbIndexText(Relation index)
{
	Form_pg_index form = index->rd_index;
	StringInfoData result;
	bool		isnull;
	Datum		predicate = SysCacheGetAttr(INDEXRELID, index->rd_indextuple, Anum_pg_index_indpred, &isnull);

	initStringInfo(&result);
	appendStringInfoString(&result, pg_get_indexdef_columns(RelationGetRelid(index), false));
	if (!isnull)
		appendStringInfo(&result, " WHERE %s",
						 TextDatumGetCString(DirectFunctionCall2(pg_get_expr, predicate,
																 ObjectIdGetDatum(form->indrelid))));
	if (form->indnullsnotdistinct)
		appendStringInfoString(&result, " NULLS NOT DISTINCT");
	for (int i = 0; form->indisexclusion && i < form->indnkeyatts; i++)
		appendStringInfo(&result, " WITH %s", get_opname(exclusion_operators(index)[i]));
	return result.data;
}
