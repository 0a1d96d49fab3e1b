/*
 * convert.c
 *		From the columns of a message to the datums of a local row.
 *
 * Text goes through the local type's input function.  Binary goes through its
 * receive function if the publisher's type is the same; if it is another
 * built-in type (its OID means the same on both sides), through that type's
 * receive and output functions and then the local input function, so that a
 * column may be int here and bigint there whatever the format.  The text must be what
 * the publisher would have sent, as the initial copy has it: a date by its format, a
 * timestamp by its time zone, all digits of a float.
 *
 * Numbers and strings in binary are most of what there is, and their receive functions copy and
 * ask more than they have to do.  What these would give is made here, as the publisher's
 * value_format.c does without the send functions.
 *
 * A publisher's datum (jsonb, from a server that keeps values as this one does) is used as it is, once
 * all of it has been looked at.
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/pg_type_d.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "krahodb/jsonb_datum.h"

#include "relation_private.h"

static Datum
convert_text(KdbApplyRelation *rel, KdbColumnInput *input, Form_pg_attribute att,
			 char *text)
{
	if (!input->text_ready)
	{
		Oid			function;

		getTypeInputInfo(att->atttypid, &function, &input->text_ioparam);
		fmgr_info_cxt(function, &input->text_function, rel->context);
		input->text_ready = true;
	}
	return InputFunctionCall(&input->text_function, text, input->text_ioparam,
							 att->atttypmod);
}

/* Is the type the same on every server of any version? */
static bool
is_built_in(Oid type)
{
	return type < FirstGenbkiObjectId;
}

/* Does its output depend on settings?  True if in doubt. */
static bool
text_varies(Oid type)
{
	switch (type)
	{
		case BOOLOID:
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case OIDOID:
		case NUMERICOID:
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
		case NAMEOID:
		case UUIDOID:
		case JSONOID:
		case JSONBOID:
		case INETOID:
		case CIDROID:
			return false;
		default:
			return true;
	}
}

/* The values of a receive function that are made without it. */
static KdbReceive
receive_form(Oid function, Form_pg_attribute att)
{
	switch (function)
	{
		case F_INT2RECV:
		case F_INT4RECV:
		case F_INT8RECV:
		case F_OIDRECV:
		case F_FLOAT4RECV:
		case F_FLOAT8RECV:
			return att->attbyval ? KDB_RECEIVE_NUMBER : KDB_RECEIVE_CALL;
		case F_TIMESTAMP_RECV:
		case F_TIMESTAMPTZ_RECV:
			return att->attbyval && att->atttypmod < 0 ? KDB_RECEIVE_TIMESTAMP : KDB_RECEIVE_CALL;
		case F_TEXTRECV:
			return KDB_RECEIVE_TEXT;
		case F_VARCHARRECV:
			return KDB_RECEIVE_VARCHAR;
		case F_BPCHARRECV:
			return KDB_RECEIVE_BPCHAR;
		default:
			return KDB_RECEIVE_CALL;
	}
}

static void
prepare_binary(KdbApplyRelation *rel, KdbColumnInput *input, Form_pg_attribute att)
{
	Oid			function;
	Oid			type = att->atttypid;
	bool		is_varlena;

	input->via_text = is_built_in(input->remote_type) && input->remote_type != type;
	if (input->via_text)
	{
		type = input->remote_type;
		getTypeOutputInfo(type, &function, &is_varlena);
		fmgr_info_cxt(function, &input->output_function, rel->context);
		input->text_varies = text_varies(type);
	}
	getTypeBinaryInputInfo(type, &function, &input->receive_ioparam);
	fmgr_info_cxt(function, &input->receive_function, rel->context);
	input->receive = input->via_text ? KDB_RECEIVE_CALL : receive_form(function, att);
	input->binary_ready = true;
}

/* The text that the publisher would have sent. */
static char *
text_of_remote(KdbColumnInput *input, Datum value)
{
	char	   *text;
	int			level;

	if (!input->text_varies)
		return OutputFunctionCall(&input->output_function, value);
	level = KdbStreamTextFormatsOf(&KdbApply.remote_text);
	text = OutputFunctionCall(&input->output_function, value);
	AtEOXact_GUC(true, level);
	return text;
}

static Datum
read_number(const char *data, int width)
{
	uint16		two;
	uint32		four;
	uint64		eight;

	switch (width)
	{
		case sizeof(uint16):
			memcpy(&two, data, sizeof(two));
			return Int16GetDatum((int16) pg_ntoh16(two));
		case sizeof(uint32):
			memcpy(&four, data, sizeof(four));
			return Int32GetDatum((int32) pg_ntoh32(four));
		default:
			Assert(width == sizeof(uint64));
			memcpy(&eight, data, sizeof(eight));
			return Int64GetDatum((int64) pg_ntoh64(eight));
	}
}

static bool
is_ascii(const char *data, int length)
{
	char		bits = 0;

	for (int i = 0; i < length; i++)
		bits |= data[i];
	return !IS_HIGHBIT_SET(bits);
}

/* Is the string surely one of the length that the column asks for, so that it is stored as it is? */
static bool
fits_length(KdbReceive form, int32 typmod, const KdbWireColumn *column)
{
	uint32		limit = typmod - VARHDRSZ;

	if (form == KDB_RECEIVE_TEXT || typmod < (int32) VARHDRSZ)
		return true;
	if (form == KDB_RECEIVE_VARCHAR)
		return column->length <= limit;
	return column->length == limit && is_ascii(column->data, column->length);
}

static bool
is_timestamp(Timestamp value)
{
	return TIMESTAMP_NOT_FINITE(value) || IS_VALID_TIMESTAMP(value);
}

/* False if the receive function has to see to it: for what is unusual, or wrong. */
static bool
convert_here(const KdbColumnInput *input, Form_pg_attribute att, const KdbWireColumn *column,
			 Datum *value)
{
	switch (input->receive)
	{
		case KDB_RECEIVE_TIMESTAMP:
			if (column->length != sizeof(Timestamp))
				return false;
			*value = read_number(column->data, sizeof(Timestamp));
			return is_timestamp(DatumGetTimestamp(*value));
		case KDB_RECEIVE_NUMBER:
			if (column->length != (uint32) att->attlen)
				return false;
			*value = read_number(column->data, att->attlen);
			return true;
		case KDB_RECEIVE_TEXT:
		case KDB_RECEIVE_VARCHAR:
		case KDB_RECEIVE_BPCHAR:
			pg_verify_mbstr(GetDatabaseEncoding(), column->data, column->length, false);
			if (!fits_length(input->receive, att->atttypmod, column))
				return false;
			*value = PointerGetDatum(cstring_to_text_with_len(column->data, column->length));
			return true;
		default:
			return false;
	}
}

static Datum
convert_binary(KdbApplyRelation *rel, KdbColumnInput *input, Form_pg_attribute att,
			   const KdbWireColumn *column)
{
	StringInfoData buf;
	Datum		value;

	if (!input->binary_ready)
		prepare_binary(rel, input, att);
	if (convert_here(input, att, column, &value))
		return value;

	buf.data = unconstify(char *, column->data);
	buf.len = column->length;
	buf.maxlen = column->length;
	buf.cursor = 0;
	value = ReceiveFunctionCall(&input->receive_function, &buf, input->receive_ioparam,
								input->via_text ? -1 : att->atttypmod);
	if (buf.cursor != buf.len)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
				 errmsg("incorrect binary data format in logical replication column %d",
						input->remote + 1)));
	if (!input->via_text)
		return value;
	return convert_text(rel, input, att, text_of_remote(input, value));
}

/* See relation_private.h.  With the text formats of the caller. */
char *
KdbRemoteText(const KdbColumnInput *input, const KdbWireColumn *column)
{
	StringInfoData buf;
	Oid			function;
	Oid			ioparam;
	bool		is_varlena;
	Datum		value;

	/* Text of money is made by lc_monetary, which is not the caller's. */
	if (input->remote_type == MONEYOID || input->remote_type == MONEYARRAYOID)
		return NULL;
	if (column->kind == 't')
		return pnstrdup(column->data, column->length);
	if (column->kind != 'b' || !is_built_in(input->remote_type))
		return NULL;
	initStringInfo(&buf);
	appendBinaryStringInfo(&buf, column->data, column->length);
	getTypeBinaryInputInfo(input->remote_type, &function, &ioparam);
	value = OidReceiveFunctionCall(function, &buf, ioparam, -1);
	getTypeOutputInfo(input->remote_type, &function, &is_varlena);
	return OidOutputFunctionCall(function, value);
}

/* ---- datums of the publisher ---- */

static bool
is_text(const char *data, uint32 length)
{
	return pg_verify_mbstr(GetDatabaseEncoding(), data, length, true);
}

static bool
enter_level(void)
{
	check_stack_depth();
	return true;
}

static Datum
convert_datum(KdbApplyRelation *rel, KdbColumnInput *input, Form_pg_attribute att,
			  const KdbWireColumn *column)
{
	static const KdbJsonbChecks checks = {is_text, enter_level};
	Size		size = (Size) column->length + VARHDRSZ;
	struct varlena *value;

	if (input->remote_type != JSONBOID || !AllocSizeIsValid(size))
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("unexpected datum in logical replication column %d", input->remote + 1)));
	value = palloc(size);
	SET_VARSIZE(value, size);
	memcpy(VARDATA(value), column->data, column->length);
	if (!KdbJsonbIsValid(VARDATA(value), column->length, &checks))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
				 errmsg("invalid jsonb datum in logical replication column %d", input->remote + 1)));
	if (att->atttypid == JSONBOID)
		return PointerGetDatum(value);
	if (!input->binary_ready)
		prepare_binary(rel, input, att);
	return convert_text(rel, input, att, text_of_remote(input, PointerGetDatum(value)));
}

/*
 * One column.  The functions want terminated strings (receive functions too:
 * some look at the byte behind), and the message is not; so the byte behind the
 * value is set to zero for the call.  Whoever keeps messages has room for it: it is
 * the next column's kind, or the terminator that libpq puts behind the payload, or
 * one byte more in the buffers of spool_read.c, the lanes and the decompressor.
 */
static Datum
convert_column(KdbApplyRelation *rel, KdbColumnInput *input, Form_pg_attribute att,
			   const KdbWireColumn *column)
{
	char	   *end = unconstify(char *, column->data) + column->length;
	char		saved = *end;
	Datum		value;

	*end = '\0';
	if (column->kind == 't')
		value = convert_text(rel, input, att, unconstify(char *, column->data));
	else if (column->kind == KDB_WIRE_DATUM)
		value = convert_datum(rel, input, att, column);
	else
		value = convert_binary(rel, input, att, column);
	*end = saved;
	return value;
}

/*
 * Convert a tuple of the stream to the local table's format, into the virtual
 * slot.  Values are allocated in the current memory context.  Columns that
 * are not sent ('u', or unknown to the publisher) become NULL; "sent", if not
 * NULL, says which were.
 */
void
KdbConvertTuple(KdbApplyRelation *rel, const KdbWireTuple *tuple,
				TupleTableSlot *slot, bool *sent)
{
	ExecClearTuple(slot);
	for (int i = 0; i < rel->nlocal; i++)
	{
		KdbColumnInput *input = &rel->inputs[i];
		const KdbWireColumn *column;
		bool		has_value;

		slot->tts_values[i] = (Datum) 0;
		slot->tts_isnull[i] = true;
		if (sent)
			sent[i] = false;
		if (input->remote < 0)
			continue;
		if (input->remote >= tuple->ncolumns)
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg_internal("tuple has %d columns, column %d of \"%s.%s\" expected",
									 tuple->ncolumns, input->remote + 1,
									 rel->nspname, rel->relname)));
		column = &tuple->columns[input->remote];
		has_value = column->kind != 'n' && column->kind != 'u';
		if (sent)
			sent[i] = column->kind != 'u';
		if (!has_value)
			continue;

		KdbApplyErrorContext.attname = rel->attnames[input->remote];
		slot->tts_values[i] = convert_column(rel, input,
											 TupleDescAttr(rel->tupdesc, i), column);
		slot->tts_isnull[i] = false;
		KdbApplyErrorContext.attname = NULL;
	}
	ExecStoreVirtualTuple(slot);
}

/*
 * Defaults of columns that the publisher does not have; for a row to insert.  Who reads here
 * by the numbers of a sequence must not find a smaller one behind a greater one: a lane
 * draws them when all earlier transactions have.  And what a function reads must be what they
 * have written.
 */
void
KdbFillDefaults(KdbApplyRelation *rel, TupleTableSlot *slot)
{
	ExprContext *econtext;

	if (rel->ndefaults == 0)
		return;
	if (rel->ordered_defaults && KdbInLane)
	{
		(void) KdbLaneSettle();
		KdbApplyFreshSnapshot();
	}
	econtext = CreateStandaloneExprContext();
	for (int i = 0; i < rel->ndefaults; i++)
	{
		AttrNumber	attnum = rel->default_attnums[i];

		/* evaluated in the caller's context: the value lives as long as the row */
		slot->tts_values[attnum] = ExecEvalExpr(rel->default_exprs[i], econtext,
												&slot->tts_isnull[attnum]);
	}
	FreeExprContext(econtext, true);
}

/*
 * The local row with the columns that were sent put over it.  By-reference
 * values are shared with both slots, which must outlive the use of "merged".
 */
void
KdbMergeRow(TupleTableSlot *merged, TupleTableSlot *local, const KdbRemoteRow *remote)
{
	int			natts = merged->tts_tupleDescriptor->natts;

	slot_getallattrs(local);
	ExecClearTuple(merged);
	for (int i = 0; i < natts; i++)
	{
		TupleTableSlot *from = remote->sent[i] ? remote->slot : local;

		merged->tts_values[i] = from->tts_values[i];
		merged->tts_isnull[i] = from->tts_isnull[i];
	}
	ExecStoreVirtualTuple(merged);
}
