/*
 * merged_values.c
 *		A merged column: what a write contributes, and how that combines.
 *
 * Everything here is a function of values that are the same on all nodes, and its
 * result must be so too, whatever the order of combining.
 *
 * DELTA.  Integers and money are added up as numeric, so that no sum overflows on
 * the way to a result that fits.  Numbers that cannot be subtracted (NaN, infinite)
 * are assigned.  Equal is what looks equal: 1.0 to 1.00 is a change of 0.00.
 *
 * MAX, MIN.  By the default btree order of the type with the column's collation;
 * values that are equal by it and do not look so are ordered by their bytes, else
 * the first to arrive would win.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/cash.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

#include "merged_private.h"

/* See relation_private.h. */
void
KdbTargetBuildMerged(KdbApplyTarget *target)
{
	ListCell   *lc;
	List	   *columns = KdbMergedColumns(target->relid);

	target->nmerged = list_length(columns);
	target->merged_columns = palloc0_array(KdbMergedColumn, target->nmerged + 1);
	foreach(lc, columns)
	{
		KdbColumnMerge *merge = lfirst(lc);
		KdbMergedColumn *column = &target->merged_columns[foreach_current_index(lc)];
		Form_pg_attribute att = TupleDescAttr(target->tupdesc, merge->attnum - 1);

		KdbCheckMergedType(target->relid, merge);
		column->attnum = merge->attnum;
		column->kind = merge->kind;
		column->type = att->atttypid;
		column->typmod = att->atttypmod;
		column->base_type = getBaseTypeAndTypmod(att->atttypid, &column->typmod);
		column->collation = att->attcollation;
		column->typlen = att->attlen;
		column->typbyval = att->attbyval;
		column->is_domain = column->base_type != column->type;
		column->context = CurrentMemoryContext;
		if (merge->kind != KDB_MERGE_DELTA)
			column->order = lookup_type_cache(column->base_type, TYPECACHE_CMP_PROC_FINFO);
	}
}

/* ---- order ---------------------------------------------------------------- */

static int
compare_bytes(const char *a, Size alen, const char *b, Size blen)
{
	int			result = memcmp(a, b, Min(alen, blen));

	return result != 0 ? result : (alen > blen) - (alen < blen);
}

static int
compare_images(const KdbMergedColumn *column, Datum a, Datum b)
{
	if (column->typbyval)
		return (a > b) - (a < b);
	if (column->typlen == -1)
	{
		struct varlena *x = PG_DETOAST_DATUM_PACKED(a);
		struct varlena *y = PG_DETOAST_DATUM_PACKED(b);

		return compare_bytes(VARDATA_ANY(x), VARSIZE_ANY_EXHDR(x),
							 VARDATA_ANY(y), VARSIZE_ANY_EXHDR(y));
	}
	if (column->typlen == -2)
		return strcmp(DatumGetCString(a), DatumGetCString(b));
	return memcmp(DatumGetPointer(a), DatumGetPointer(b), column->typlen);
}

static int
order_of(const KdbMergedColumn *column, Datum a, Datum b)
{
	int			order = 0;

	if (column->order)
		order = DatumGetInt32(FunctionCall2Coll(&column->order->cmp_proc_finfo,
												column->collation, a, b));
	return order != 0 ? order : compare_images(column, a, b);
}

/* ---- arithmetic ------------------------------------------------------------ */

/* See merged_private.h. */
Oid
KdbMergedChangeType(const KdbMergedColumn *column)
{
	if (column->kind != KDB_MERGE_DELTA)
		return column->type;
	return column->base_type == INTERVALOID ? INTERVALOID : NUMERICOID;
}

static Datum
widen(const KdbMergedColumn *column, Datum value)
{
	if (column->kind != KDB_MERGE_DELTA)
		return value;
	switch (column->base_type)
	{
		case INT2OID:
			return NumericGetDatum(int64_to_numeric(DatumGetInt16(value)));
		case INT4OID:
			return NumericGetDatum(int64_to_numeric(DatumGetInt32(value)));
		case INT8OID:
			return NumericGetDatum(int64_to_numeric(DatumGetInt64(value)));
		case CASHOID:
			return NumericGetDatum(int64_to_numeric(DatumGetCash(value)));
		default:
			return value;
	}
}

static bool
can_subtract(const KdbMergedColumn *column, Datum value)
{
	Numeric		number;

	if (column->base_type != NUMERICOID)
		return true;
	number = DatumGetNumeric(value);
	return !numeric_is_nan(number) && !numeric_is_inf(number);
}

static Datum
subtract(const KdbMergedColumn *column, Datum a, Datum b)
{
	if (column->base_type == INTERVALOID)
		return DirectFunctionCall2(interval_mi, a, b);
	return DirectFunctionCall2(numeric_sub, widen(column, a), widen(column, b));
}

/* See merged_private.h. */
void
KdbMergedContribution(const KdbMergedColumn *column, Datum old, bool old_null,
					  Datum new, bool new_null, KdbColumnContribution *result)
{
	int			order = old_null || new_null ? 0 : order_of(column, new, old);

	result->kind = KdbContributionOf(column->kind, old_null, new_null, order);
	result->value = new;
	result->isnull = new_null;
	if (result->kind != KDB_CONTRIBUTES_CHANGE || column->kind != KDB_MERGE_DELTA)
		return;
	if (can_subtract(column, old) && can_subtract(column, new))
		result->value = subtract(column, new, old);
	else
		result->kind = KDB_CONTRIBUTES_VALUE;
}

/* See merged_private.h. */
void
KdbMergedWiden(const KdbMergedColumn *column, KdbColumnContribution *value)
{
	if (!value->isnull && !value->wide)
		value->value = widen(column, value->value);
	value->wide = true;
}

/* See merged_private.h. */
void
KdbMergedTakeOut(const KdbMergedColumn *column, KdbColumnContribution *value,
				 const KdbColumnContribution *change)
{
	if (column->kind != KDB_MERGE_DELTA || value->isnull)
		return;
	KdbMergedWiden(column, value);
	value->value = DirectFunctionCall2(column->base_type == INTERVALOID ? interval_mi : numeric_sub,
									   value->value, change->value);
}

static bool
is_better(const KdbMergedColumn *column, Datum a, Datum b)
{
	int			order = order_of(column, a, b);

	return column->kind == KDB_MERGE_MAX ? order > 0 : order < 0;
}

/* See merged_private.h. */
void
KdbMergedCombine(const KdbMergedColumn *column, KdbColumnContribution *value,
				 const KdbColumnContribution *change)
{
	if (column->kind == KDB_MERGE_DELTA)
	{
		if (!value->isnull)
			value->value = DirectFunctionCall2(column->base_type == INTERVALOID ?
											   interval_pl : numeric_add,
											   value->value, change->value);
	}
	else if (value->isnull || is_better(column, change->value, value->value))
	{
		value->value = change->value;
		value->isnull = false;
	}
}

/* ---- back to the column's type ---------------------------------------------- */

static void
out_of_range(const KdbMergedColumn *column, Relation rel, Datum sum)
{
	ereport(ERROR,
			(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
			 errmsg("merged value of column \"%s\" of table \"%s.%s\" is out of range for type %s",
					NameStr(TupleDescAttr(RelationGetDescr(rel), column->attnum - 1)->attname),
					get_namespace_name(RelationGetNamespace(rel)), RelationGetRelationName(rel),
					format_type_with_typemod(column->base_type, column->typmod)),
			 errdetail("The value with all changes added up is %s.",
					   DatumGetCString(DirectFunctionCall1(numeric_out, sum))),
			 errhint("Make room with an UPDATE of the row on this server, which is replicated and added up like any other: the change is then applied when it is tried again.  Then give the column a type with a greater range on all nodes.")));
}

static Datum
to_integer(const KdbMergedColumn *column, Relation rel, Datum sum, int64 min, int64 max)
{
	if (DatumGetBool(DirectFunctionCall2(numeric_lt, sum, NumericGetDatum(int64_to_numeric(min)))) ||
		DatumGetBool(DirectFunctionCall2(numeric_gt, sum, NumericGetDatum(int64_to_numeric(max)))))
		out_of_range(column, rel, sum);
	return DirectFunctionCall1(numeric_int8, sum);
}

/* With the column's precision and scale. */
static Datum
to_numeric(const KdbMergedColumn *column, Relation rel, Datum sum)
{
	MemoryContext context = CurrentMemoryContext;
	volatile Datum result = sum;

	PG_TRY();
	{
		result = DirectFunctionCall2(numeric, sum, Int32GetDatum(column->typmod));
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (error->sqlerrcode != ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE)
			PG_RE_THROW();
		FlushErrorState();
		out_of_range(column, rel, sum);
	}
	PG_END_TRY();
	return result;
}

static Datum
narrow(const KdbMergedColumn *column, Relation rel, Datum sum)
{
	switch (column->base_type)
	{
		case INT2OID:
			return Int16GetDatum((int16) DatumGetInt64(to_integer(column, rel, sum, PG_INT16_MIN, PG_INT16_MAX)));
		case INT4OID:
			return Int32GetDatum((int32) DatumGetInt64(to_integer(column, rel, sum, PG_INT32_MIN, PG_INT32_MAX)));
		case INT8OID:
			return to_integer(column, rel, sum, PG_INT64_MIN, PG_INT64_MAX);
		case CASHOID:
			return CashGetDatum(DatumGetInt64(to_integer(column, rel, sum, PG_INT64_MIN, PG_INT64_MAX)));
		case NUMERICOID:
			return to_numeric(column, rel, sum);
		default:
			return sum;
	}
}

/* See merged_private.h. */
void
KdbMergedNarrow(const KdbMergedColumn *column, Relation rel, Datum *value, bool *isnull)
{
	if (!*isnull && column->kind == KDB_MERGE_DELTA)
		*value = narrow(column, rel, *value);
	if (column->is_domain)
		domain_check(*value, *isnull, column->type, &((KdbMergedColumn *) column)->domain, column->context);
}
