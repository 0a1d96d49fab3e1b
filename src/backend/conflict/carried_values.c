/*
 * carried_values.c
 *		What ALTER TABLE makes of the values of a table's columns.
 *
 * Dead keys and unique values that rows had before are in no row that the command
 * converts.  They are converted here, as the command converts those of the live rows: by the
 * expression of USING, or by the assignment cast from the old to the new type.  (Not by way of
 * text: 1.5 would be no integer, and USING may make anything of a value.)
 *
 * USING is read before the command, when the table's columns have the types that it speaks of;
 * casts are looked for afterwards.
 *
 * What cannot be computed: expressions with volatile functions or references to whole rows; and if only
 * some of the old row's columns are known (a version record has those of a key), whatever needs others.
 *
 * Contributions to merged columns are single values of a column, whose new value must be made of it alone
 * (KdbCarriedValueConvert).
 *
 * An error of a conversion is no error of the command: a value that has no counterpart in the new
 * type is one that no row will have.  So conversions run in a subtransaction.  Errors that are not the
 * value's (out of memory, a lock that is not to be had) do end the command: it may be tried again.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_coerce.h"
#include "parser/parse_collate.h"
#include "parser/parse_expr.h"
#include "parser/parse_relation.h"
#include "utils/rel.h"
#include "utils/resowner.h"

#include "conflict_private.h"

typedef struct Column
{
	bool		using;			/* the command has an expression: */
	Node	   *expression;		/* NULL: it cannot be used */
	Bitmapset  *needed;			/* columns of the old row that the new value is made of */
	bool		casts;			/* the expression does nothing but cast the column */
	bool		possible;
	bool		same;			/* as it was */
	ExprState  *state;			/* else */
} Column;

struct KdbCarriedValues
{
	TupleDesc	old_desc;
	Column	   *columns;
	ExprContext *context;
	TupleTableSlot *one;		/* an old row of which one value is known */
	TupleTableSlot *converted;	/* the new one */
};

/* Or of the server, which may not raise it the next time? */
static bool
is_of_the_value(int sqlstate)
{
	switch (ERRCODE_TO_CATEGORY(sqlstate))
	{
		case ERRCODE_TRANSACTION_ROLLBACK:
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_OPERATOR_INTERVENTION:
		case ERRCODE_SYSTEM_ERROR:
			return false;
		default:
			return sqlstate != ERRCODE_LOCK_NOT_AVAILABLE;
	}
}

/* See conflict_private.h. */
bool
KdbTry(void (*work)(void *arg), void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;
	volatile bool done = false;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		work(arg);
		done = true;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		if (!is_of_the_value(geterrcode()))
			error = CopyErrorData();
		FlushErrorState();
	}
	PG_END_TRY();
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	if (error)
		ReThrowError(error);
	return done;
}

/* ---- expressions ---- */

typedef struct Using
{
	Relation	rel;
	Node	   *raw;
	Node	   *expression;
} Using;

static void
read_using(void *arg)
{
	Using	   *using = arg;
	ParseState *pstate = make_parsestate(NULL);
	ParseNamespaceItem *item = addRangeTableEntryForRelation(pstate, using->rel, AccessShareLock,
															 NULL, false, true);

	addNSItemToQuery(pstate, item, false, true, true);
	using->expression = transformExpr(pstate, copyObject(using->raw), EXPR_KIND_ALTER_COL_TRANSFORM);
	assign_expr_collations(pstate, using->expression);
	free_parsestate(pstate);
}

/* Columns of the old row in an expression; false if it has others than ordinary ones. */
static bool
find_needed(Node *expression, Bitmapset **needed)
{
	Bitmapset  *attributes = NULL;
	int			member = -1;

	pull_varattnos(expression, 1, &attributes);
	while ((member = bms_next_member(attributes, member)) >= 0)
	{
		if (member + FirstLowInvalidHeapAttributeNumber <= 0)
			return false;
		*needed = bms_add_member(*needed, member + FirstLowInvalidHeapAttributeNumber);
	}
	return true;
}

/* Nothing but casts of the column?  They leave numbers as they are, or round them. */
static bool
is_cast_of(const Node *node, AttrNumber attnum)
{
	for (;;)
	{
		switch (nodeTag(node))
		{
			case T_Var:
				return ((const Var *) node)->varattno == attnum;
			case T_RelabelType:
				node = (const Node *) ((const RelabelType *) node)->arg;
				break;
			case T_CoerceViaIO:
				node = (const Node *) ((const CoerceViaIO *) node)->arg;
				break;
			case T_CoerceToDomain:
				node = (const Node *) ((const CoerceToDomain *) node)->arg;
				break;
			case T_CollateExpr:
				node = (const Node *) ((const CollateExpr *) node)->arg;
				break;
			case T_FuncExpr:
				if (((const FuncExpr *) node)->funcformat != COERCE_EXPLICIT_CAST &&
					((const FuncExpr *) node)->funcformat != COERCE_IMPLICIT_CAST)
					return false;
				node = linitial(((const FuncExpr *) node)->args);
				break;
			default:
				return false;
		}
	}
}

static void
prepare_using(KdbCarriedValues *values, Relation rel, const AlterTableCmd *command)
{
	ColumnDef  *def = castNode(ColumnDef, command->def);
	Using		using = {rel, def->raw_default, NULL};

	for (int i = 0; def->raw_default && i < values->old_desc->natts; i++)
	{
		Column	   *column = &values->columns[i];
		Form_pg_attribute att = TupleDescAttr(values->old_desc, i);

		if (att->attisdropped || strcmp(NameStr(att->attname), command->name) != 0)
			continue;
		column->using = true;
		column->needed = NULL;
		column->casts = false;
		if (!KdbTry(read_using, &using) || !find_needed(using.expression, &column->needed))
			continue;
		column->expression = using.expression;
		column->casts = is_cast_of(using.expression, att->attnum);
	}
}

/* See conflict_private.h. */
KdbCarriedValues *
KdbCarriedValuesPrepare(Relation rel, List *commands)
{
	KdbCarriedValues *values = palloc0(sizeof(KdbCarriedValues));
	ListCell   *lc;

	values->old_desc = CreateTupleDescCopy(RelationGetDescr(rel));
	values->columns = palloc0_array(Column, values->old_desc->natts + 1);
	for (int i = 0; i < values->old_desc->natts; i++)
	{
		values->columns[i].needed = bms_make_singleton(i + 1);
		values->columns[i].casts = true;
	}
	foreach(lc, commands)
	{
		const AlterTableCmd *command = lfirst_node(AlterTableCmd, lc);

		if (command->subtype == AT_AlterColumnType)
			prepare_using(values, rel, command);
	}
	return values;
}

/* See conflict_private.h. */
Bitmapset *
KdbCarriedValuesNeeded(const KdbCarriedValues *values, const Bitmapset *columns)
{
	Bitmapset  *result = NULL;
	int			attnum = -1;

	while ((attnum = bms_next_member(columns, attnum)) >= 0)
		result = bms_add_members(result, values->columns[attnum - 1].needed);
	return result;
}

/* ---- conversions ---- */

typedef struct Conversion
{
	KdbCarriedValues *values;
	Column	   *column;
	Form_pg_attribute from;
	Form_pg_attribute to;
} Conversion;

/* As the engine does it: ATPrepAlterColumnType. */
static void
build_conversion(void *arg)
{
	Conversion *conversion = arg;
	Column	   *column = conversion->column;
	Form_pg_attribute from = conversion->from;
	ParseState *pstate = make_parsestate(NULL);
	Node	   *node = column->expression;

	if (!column->using)
		node = (Node *) makeVar(1, from->attnum, from->atttypid, from->atttypmod, from->attcollation, 0);
	node = coerce_to_target_type(pstate, node, exprType(node), conversion->to->atttypid,
								 conversion->to->atttypmod, COERCION_ASSIGNMENT,
								 COERCE_IMPLICIT_CAST, -1);
	if (node == NULL || contain_volatile_functions(node))
		return;
	assign_expr_collations(pstate, node);
	column->state = ExecInitExpr((Expr *) expression_planner((Expr *) node), NULL);
	column->possible = true;
}

static bool
is_same(const Column *column, Form_pg_attribute from, Form_pg_attribute to)
{
	return !column->using && from->atttypid == to->atttypid && from->atttypmod == to->atttypmod &&
		from->attcollation == to->attcollation;
}

/* See conflict_private.h. */
void
KdbCarriedValuesBuild(KdbCarriedValues *values, Relation rel, const Bitmapset *columns)
{
	int			attnum = -1;

	values->context = CreateStandaloneExprContext();
	values->one = MakeSingleTupleTableSlot(values->old_desc, &TTSOpsVirtual);
	values->converted = MakeSingleTupleTableSlot(CreateTupleDescCopy(RelationGetDescr(rel)), &TTSOpsVirtual);
	while ((attnum = bms_next_member(columns, attnum)) >= 0)
	{
		Column	   *column = &values->columns[attnum - 1];
		Conversion	conversion = {values, column, TupleDescAttr(values->old_desc, attnum - 1),
								 TupleDescAttr(RelationGetDescr(rel), attnum - 1)};

		if (conversion.from->attisdropped || conversion.to->attisdropped)
			continue;
		column->possible = column->same = is_same(column, conversion.from, conversion.to);
		if (!column->same && (!column->using || column->expression))
			(void) KdbTry(build_conversion, &conversion);
	}
}

/* See conflict_private.h. */
bool
KdbCarriedValueIsSame(const KdbCarriedValues *values, AttrNumber attnum)
{
	return values->columns[attnum - 1].same;
}

/* See conflict_private.h. */
bool
KdbCarriedValueIsCast(const KdbCarriedValues *values, AttrNumber attnum)
{
	return values->columns[attnum - 1].casts;
}

static void
convert(const KdbCarriedValues *values, int i, TupleTableSlot *old_row, TupleTableSlot *new_row)
{
	const Column *column = &values->columns[i];

	if (column->same)
	{
		new_row->tts_values[i] = old_row->tts_values[i];
		new_row->tts_isnull[i] = old_row->tts_isnull[i];
		return;
	}
	values->context->ecxt_scantuple = old_row;
	new_row->tts_values[i] = ExecEvalExpr(column->state, values->context, &new_row->tts_isnull[i]);
}

/* See conflict_private.h. */
Bitmapset *
KdbCarriedValuesConvert(const KdbCarriedValues *values, TupleTableSlot *old_row,
						const Bitmapset *available, TupleTableSlot *new_row)
{
	Bitmapset  *result = NULL;

	ExecClearTuple(new_row);
	memset(new_row->tts_isnull, true, new_row->tts_tupleDescriptor->natts * sizeof(bool));
	for (int i = 0; i < values->old_desc->natts; i++)
	{
		if (!values->columns[i].possible || !bms_is_subset(values->columns[i].needed, available))
			continue;
		convert(values, i, old_row, new_row);
		result = bms_add_member(result, i + 1);
	}
	ExecStoreVirtualTuple(new_row);
	return result;
}

/* See conflict_private.h. */
bool
KdbCarriedValueConvert(const KdbCarriedValues *values, AttrNumber attnum, Datum *value, bool *isnull)
{
	int			i = attnum - 1;
	Bitmapset  *available = bms_make_singleton(attnum);
	bool		possible = values->columns[i].possible && bms_is_subset(values->columns[i].needed, available);

	bms_free(available);
	if (!possible)
		return false;
	ExecClearTuple(values->one);
	memset(values->one->tts_isnull, true, values->old_desc->natts * sizeof(bool));
	values->one->tts_values[i] = *value;
	values->one->tts_isnull[i] = *isnull;
	ExecStoreVirtualTuple(values->one);
	convert(values, i, values->one, values->converted);
	*value = values->converted->tts_values[i];
	*isnull = values->converted->tts_isnull[i];
	return true;
}
