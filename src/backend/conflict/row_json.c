/*
 * row_json.c
 *		Rows as jsonb, for the record of a conflict.
 *
 * A conflict must not stop replication because its record cannot be written.  So
 * only values of built-in types whose conversion cannot fail become numbers,
 * booleans, arrays and so on; everything else is the string that its output
 * function gives, which the log line has anyway.  Casts to json that users have
 * made are not called.  And a row has a limit of size: values beyond it are left out,
 * with their size in their place.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/transam.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "nodes/makefuncs.h"
#include "utils/fmgroids.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"

#include "conflict_private.h"

/*
 * Bytes of values per row; what they become must stay far below jsonb's limit of
 * 256 MB, and some grow eightfold.
 */
#define ROW_LIMIT	(8 * 1024 * 1024)

/*
 * Of built-in types, json is an exception: it may hold \u0000, which jsonb
 * refuses.
 */
static bool
converts_safely(Oid type)
{
	Oid			base = getBaseType(type);
	Oid			element = get_element_type(base);

	if (OidIsValid(element))
		base = element;
	return base < FirstGenbkiObjectId && base != JSONOID &&
		get_typtype(base) == TYPTYPE_BASE;
}

static void
push_string(JsonbParseState **state, char *string)
{
	JsonbValue	v;

	v.type = jbvString;
	v.val.string.val = string;
	v.val.string.len = strlen(string);
	pushJsonbValue(state, WJB_VALUE, &v);
}

static void
push_jsonb(JsonbParseState **state, JsonbIteratorToken where, Datum datum)
{
	Jsonb	   *jsonb = DatumGetJsonbP(datum);
	JsonbValue	v;

	v.type = jbvBinary;
	v.val.binary.data = &jsonb->root;
	v.val.binary.len = VARSIZE(jsonb) - VARHDRSZ;
	pushJsonbValue(state, where, &v);
}

/* to_jsonb(), which learns the type of its argument from the expression. */
static Datum
to_jsonb_of(Oid type, Datum value)
{
	FmgrInfo	function;
	Node	   *expr;

	expr = (Node *) makeFuncExpr(F_TO_JSONB, JSONBOID,
								 list_make1(makeNullConst(type, -1, InvalidOid)),
								 InvalidOid, InvalidOid, COERCE_EXPLICIT_CALL);
	fmgr_info(F_TO_JSONB, &function);
	fmgr_info_set_expr(expr, &function);
	return FunctionCall1(&function, value);
}

/* Adds the value's size to *size. */
static void
push_value(JsonbParseState **state, Oid type, int16 typlen, Datum value, Size *size)
{
	Size		bytes = typlen == -1 ? toast_raw_datum_size(value) : 0;

	if (bytes + *size > ROW_LIMIT)
	{
		push_string(state, psprintf("(%zu bytes)", bytes));
		return;
	}
	*size += bytes;
	if (converts_safely(type))
		push_jsonb(state, WJB_VALUE, to_jsonb_of(type, value));
	else
	{
		Oid			function;
		bool		is_varlena;
		char	   *text;

		getTypeOutputInfo(type, &function, &is_varlena);
		text = OidOutputFunctionCall(function, value);
		if (strlen(text) > ROW_LIMIT)
			text = psprintf("(%zu bytes)", strlen(text));
		push_string(state, text);
	}
}

/* See conflict_private.h. */
Datum
KdbRowToJsonb(TupleTableSlot *slot, const bool *wanted)
{
	TupleDesc	desc = slot->tts_tupleDescriptor;
	JsonbParseState *state = NULL;
	Size		size = 0;

	slot_getallattrs(slot);
	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		JsonbValue	v;

		if (att->attisdropped || (wanted && !wanted[i]))
			continue;
		v.type = jbvString;
		v.val.string.val = NameStr(att->attname);
		v.val.string.len = strlen(NameStr(att->attname));
		pushJsonbValue(&state, WJB_KEY, &v);
		if (slot->tts_isnull[i])
		{
			v.type = jbvNull;
			pushJsonbValue(&state, WJB_VALUE, &v);
		}
		else
			push_value(&state, att->atttypid, att->attlen, slot->tts_values[i], &size);
	}
	return JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL)));
}

/* See conflict_private.h. */
Datum
KdbJsonbArray(const Datum *rows, int nrows)
{
	JsonbParseState *state = NULL;

	pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
	for (int i = 0; i < nrows; i++)
		push_jsonb(&state, WJB_ELEM, rows[i]);
	return JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_ARRAY, NULL)));
}
