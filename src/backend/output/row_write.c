/*
 * row_write.c
 *		INSERT, UPDATE and DELETE messages.
 *
 * The bytes are those of the engine's logicalrep_write_insert and its siblings.
 * Those look up each value's type and function anew; here a relation's writer
 * holds a list of the columns that are sent, each with its form and its
 * function, looked up once.
 *
 * A writer belongs to an entry of the relation cache and goes with it.  A
 * function or a type can also change without its tables (CREATE OR REPLACE
 * FUNCTION, ALTER TYPE): pg_proc and pg_type events count up a generation, and
 * a writer of an earlier one is built again at its next row.
 */
#include "postgres.h"

#include "fmgr.h"
#include "libpq/pqformat.h"
#include "mb/pg_wchar.h"
#include "replication/logicalproto.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "krahodb/wire.h"
#include "output_private.h"

typedef struct ColumnWriter
{
	int			index;			/* of the value in the slot */
	bool		varlena;		/* may be stored out of line */
	int16		width;			/* bytes, for KDB_VALUE_INTEGER */
	KdbValueFormat format;
	FmgrInfo	function;
} ColumnWriter;

struct KdbRowWriter
{
	MemoryContext context;		/* holds all of it, child of the entry's */
	uint64		generation;
	int			natts;			/* of the relation that it was built for */
	int			last_attribute; /* greatest attribute number that is sent */
	int			ncolumns;
	ColumnWriter columns[FLEXIBLE_ARRAY_MEMBER];
};

static uint64 current_generation = 0;

static void
type_or_function_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	current_generation++;
}

/* Called at each start of the plugin. */
void
KdbRowWriterInit(void)
{
	static bool registered = false;

	if (registered)
		return;
	CacheRegisterSyscacheCallback(TYPEOID, type_or_function_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(PROCOID, type_or_function_changed, (Datum) 0);
	registered = true;
}

static bool
is_sent(Form_pg_attribute att, const Bitmapset *columns)
{
	return !att->attisdropped && !att->attgenerated &&
		(columns == NULL || bms_is_member(att->attnum, columns));
}

static void
build_column(KdbRowWriter *writer, const KdbOutputParameters *parameters, Form_pg_attribute att)
{
	ColumnWriter *column = &writer->columns[writer->ncolumns++];
	Oid			function;

	column->index = att->attnum - 1;
	column->varlena = att->attlen == -1;
	column->width = att->attlen;
	column->format = KdbChooseValueFormat(parameters, att, &function);
	fmgr_info_cxt(function, &column->function, writer->context);
	writer->last_attribute = att->attnum;
}

static KdbRowWriter *
build_writer(KdbOutput *output, KdbPublishedRelation *entry, Relation target)
{
	TupleDesc	desc = RelationGetDescr(target);
	uint64		generation = current_generation;
	MemoryContext context = AllocSetContextCreate(entry->context, "krahodb output row writer",
												  ALLOCSET_SMALL_SIZES);
	KdbRowWriter *writer = MemoryContextAllocZero(context,
												  offsetof(KdbRowWriter, columns) +
													  desc->natts * sizeof(ColumnWriter));

	writer->context = context;
	writer->generation = generation;
	writer->natts = desc->natts;
	for (int i = 0; i < desc->natts; i++)
	{
		if (is_sent(TupleDescAttr(desc, i), entry->columns))
			build_column(writer, &output->parameters, TupleDescAttr(desc, i));
	}
	return writer;
}

/*
 * The writer of an entry; target is the relation that its changes are published
 * as.  It can be used for one change.
 */
KdbRowWriter *
KdbRowWriterOf(KdbOutput *output, KdbPublishedRelation *entry, Relation target)
{
	KdbRowWriter *writer = entry->writer;

	if (writer != NULL && writer->generation == current_generation)
	{
		Assert(writer->natts == RelationGetNumberOfAttributes(target));
		return writer;
	}
	entry->writer = NULL;
	if (writer != NULL)
		MemoryContextDelete(writer->context);
	entry->writer = build_writer(output, entry, target);
	return entry->writer;
}

static void
write_text(StringInfo out, ColumnWriter *column, Datum value)
{
	char	   *text = OutputFunctionCall(&column->function, value);

	pq_sendbyte(out, LOGICALREP_COLUMN_TEXT);
	pq_sendcountedtext(out, text, strlen(text), false);
	pfree(text);
}

static void
write_binary(StringInfo out, ColumnWriter *column, Datum value)
{
	bytea	   *bytes = SendFunctionCall(&column->function, value);
	int			length = VARSIZE(bytes) - VARHDRSZ;

	pq_sendbyte(out, LOGICALREP_COLUMN_BINARY);
	pq_sendint32(out, length);
	pq_sendbytes(out, VARDATA(bytes), length);
	pfree(bytes);
}

static void
write_integer(StringInfo out, ColumnWriter *column, Datum value)
{
	pq_sendbyte(out, LOGICALREP_COLUMN_BINARY);
	pq_sendint32(out, column->width);
	switch (column->width)
	{
		case sizeof(uint8):
			pq_sendint8(out, DatumGetUInt8(value));
			break;
		case sizeof(uint16):
			pq_sendint16(out, DatumGetUInt16(value));
			break;
		case sizeof(uint32):
			pq_sendint32(out, DatumGetUInt32(value));
			break;
		default:
			Assert(column->width == sizeof(uint64));
			pq_sendint64(out, DatumGetUInt64(value));
			break;
	}
}

/* The send functions of strings convert to the client's encoding, so do we. */
static void
write_string(StringInfo out, Datum value)
{
	struct varlena *string = PG_DETOAST_DATUM_PACKED(value);

	pq_sendbyte(out, LOGICALREP_COLUMN_BINARY);
	pq_sendcountedtext(out, VARDATA_ANY(string), VARSIZE_ANY_EXHDR(string), false);
	if ((Pointer) string != DatumGetPointer(value))
		pfree(string);
}

static void
write_datum(StringInfo out, Datum value)
{
	struct varlena *datum = PG_DETOAST_DATUM_PACKED(value);

	pq_sendbyte(out, KDB_WIRE_DATUM);
	pq_sendint32(out, VARSIZE_ANY_EXHDR(datum));
	pq_sendbytes(out, VARDATA_ANY(datum), VARSIZE_ANY_EXHDR(datum));
	if ((Pointer) datum != DatumGetPointer(value))
		pfree(datum);
}

static void
write_value(StringInfo out, ColumnWriter *column, Datum value)
{
	/* Not in the log: it did not change and is stored out of line. */
	if (column->varlena && VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(value)))
	{
		pq_sendbyte(out, LOGICALREP_COLUMN_UNCHANGED);
		return;
	}
	switch (column->format)
	{
		case KDB_VALUE_TEXT:
			write_text(out, column, value);
			break;
		case KDB_VALUE_BINARY:
			write_binary(out, column, value);
			break;
		case KDB_VALUE_INTEGER:
			write_integer(out, column, value);
			break;
		case KDB_VALUE_STRING:
			write_string(out, value);
			break;
		case KDB_VALUE_DATUM:
			write_datum(out, value);
			break;
	}
}

static void
write_row(StringInfo out, KdbRowWriter *writer, char kind, TupleTableSlot *slot)
{
	pq_sendbyte(out, kind);
	pq_sendint16(out, writer->ncolumns);
	slot_getsomeattrs(slot, writer->last_attribute);
	for (int i = 0; i < writer->ncolumns; i++)
	{
		ColumnWriter *column = &writer->columns[i];

		if (slot->tts_isnull[column->index])
			pq_sendbyte(out, LOGICALREP_COLUMN_NULL);
		else
			write_value(out, column, slot->tts_values[column->index]);
	}
}

/*
 * Write a change of a row as target's.  xid is invalid outside of stream
 * blocks.  old_slot is the old row of an UPDATE, if there is one, and of a
 * DELETE; values may be left in the current memory context.
 */
void
KdbWriteRowChange(StringInfo out, KdbRowWriter *writer, TransactionId xid,
				  Relation target, KdbRowAction action,
				  TupleTableSlot *old_slot, TupleTableSlot *new_slot)
{
	static const char types[KDB_NROW_ACTIONS] = {
		[KDB_ROW_INSERT] = LOGICAL_REP_MSG_INSERT,
		[KDB_ROW_UPDATE] = LOGICAL_REP_MSG_UPDATE,
		[KDB_ROW_DELETE] = LOGICAL_REP_MSG_DELETE};
	char		identity = target->rd_rel->relreplident;

	pq_sendbyte(out, types[action]);
	if (TransactionIdIsValid(xid))
		pq_sendint32(out, xid);
	pq_sendint32(out, RelationGetRelid(target));

	/* An UPDATE that became an INSERT has an old row too. */
	if (action != KDB_ROW_INSERT && old_slot != NULL)
	{
		Assert(identity != REPLICA_IDENTITY_NOTHING);
		write_row(out, writer, identity == REPLICA_IDENTITY_FULL ? 'O' : 'K', old_slot);
	}
	if (action != KDB_ROW_DELETE)
		write_row(out, writer, 'N', new_slot);
}
