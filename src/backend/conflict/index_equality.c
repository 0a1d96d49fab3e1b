/*
 * index_equality.c
 *		Indexes whose equality is not that of their columns' types.
 *
 * What is remembered of keys and unique values (version_record.c) is found by the types'
 * hash functions and compared by the types' equality.  An index decides by its operator
 * class.  Mostly that has the same operator: the default class of course, and the "pattern"
 * classes.  One that somebody made to ignore case has not.  Then its values are compared by
 * its own operators, as those of exclusion constraints are, and without a hash: all
 * records of the table, or of the index, are looked through.
 *
 * Collations need none of this: both equality and hash get that of the index.
 *
 * KdbIndexOperatorFunction is for all who build scan keys on an index of their own.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/stratnum.h"
#include "catalog/pg_am.h"
#include "nodes/nodeFuncs.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/typcache.h"

#include "krahodb/conflict.h"

/* Type of a column of the index; not the one that an operator class may store. */
static Oid
indexed_type(const IndexInfo *info, TupleDesc desc, int column)
{
	ListCell   *expression = list_head(info->ii_Expressions);

	if (info->ii_IndexAttrNumbers[column] != 0)
		return TupleDescAttr(desc, info->ii_IndexAttrNumbers[column] - 1)->atttypid;
	for (int i = 0; i < column; i++)
	{
		if (info->ii_IndexAttrNumbers[i] == 0)
			expression = lnext(info->ii_Expressions, expression);
	}
	return exprType(lfirst(expression));
}

/* See conflict.h. */
void
KdbIndexedTypes(Relation index, const IndexInfo *info, TupleDesc desc, KdbRecordedKey *key)
{
	key->n = info->ii_NumIndexKeyAttrs;
	for (int i = 0; i < key->n; i++)
	{
		key->types[i] = indexed_type(info, desc, i);
		key->collations[i] = index->rd_indcollation[i];
		key->columns[i] = 0;
	}
}

static Oid
operator_of(Relation index, int column, StrategyNumber strategy)
{
	Oid			type = index->rd_opcintype[column];

	return get_opfamily_member(index->rd_opfamily[column], type, type, strategy);
}

/* See conflict.h. */
Oid
KdbIndexOperatorFunction(Relation index, int column, StrategyNumber strategy)
{
	Oid			operator = operator_of(index, column, strategy);

	if (!OidIsValid(operator))
		elog(ERROR, "missing operator %d(%u,%u) in opfamily %u", strategy,
			 index->rd_opcintype[column], index->rd_opcintype[column], index->rd_opfamily[column]);
	return get_opcode(operator);
}

/* See conflict.h. */
bool
KdbIndexHasOwnEquality(Relation index, const KdbRecordedKey *key)
{
	if (index->rd_rel->relam != BTREE_AM_OID)
		return false;
	for (int i = 0; i < key->n; i++)
	{
		if (operator_of(index, i, BTEqualStrategyNumber) != lookup_type_cache(key->types[i], TYPECACHE_EQ_OPR)->eq_opr)
			return true;
	}
	return false;
}

/* See conflict.h. */
const ScanKeyData *
KdbIndexOwnEquality(Relation index, const KdbRecordedKey *key)
{
	ScanKeyData *result;

	if (!KdbIndexHasOwnEquality(index, key))
		return NULL;
	result = palloc(key->n * sizeof(ScanKeyData));
	for (int i = 0; i < key->n; i++)
		ScanKeyEntryInitialize(&result[i], 0, i + 1, BTEqualStrategyNumber, InvalidOid,
							   index->rd_indcollation[i],
							   KdbIndexOperatorFunction(index, i, BTEqualStrategyNumber), (Datum) 0);
	return result;
}
