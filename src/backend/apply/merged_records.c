/*
 * merged_records.c
 *		Contributions to merged columns as version records keep them.
 *
 * The image of a record: format, whether there is a row version in the heap, a number
 * that orders the records of one transaction, and for each column its number, kind, type and value.  Read in a
 * later life of the table: columns that are gone are not looked at, a value of
 * another type than the column has now is converted through its text.
 *
 * The image of a seal: numbers; whom it names; versions and images of its contributions.
 * One record, as there may be thousands.
 */
#include "postgres.h"

#include "utils/datum.h"
#include "utils/lsyscache.h"

#include "merged_private.h"

#define FORMAT	1

typedef struct Header
{
	int16		format;
	int16		ncolumns;
	bool		has_row;		/* a row version of the transaction was written for it */
	uint64		order;
} Header;

typedef struct ColumnHeader
{
	AttrNumber	attnum;
	char		kind;			/* a KdbContributionKind */
	Oid			type;
} ColumnHeader;

/* See merged_private.h: a value that others were taken out of has no bounds. */
Oid
KdbMergedContributionType(const KdbMergedColumn *column, const KdbColumnContribution *contribution)
{
	return contribution->kind == KDB_CONTRIBUTES_CHANGE || contribution->wide ?
		KdbMergedChangeType(column) : column->type;
}

static Datum
flat_value(Oid type, Datum value, bool isnull)
{
	if (!isnull && get_typlen(type) == -1)
		return PointerGetDatum(PG_DETOAST_DATUM(value));
	return value;
}

/* See merged_private.h. */
bytea *
KdbMergedEncode(const KdbMergedChange *change, const KdbColumnContribution *columns, bool has_row)
{
	static uint64 order = 0;
	Header		header = {FORMAT, (int16) change->n, has_row, ++order};
	StringInfoData image;

	initStringInfo(&image);
	appendStringInfoSpaces(&image, VARHDRSZ);
	appendBinaryStringInfo(&image, (char *) &header, sizeof(header));
	for (int i = 0; i < change->n; i++)
	{
		ColumnHeader head = {0};
		bool		isnull = columns[i].isnull || columns[i].kind == KDB_CONTRIBUTES_NOTHING;
		Datum		value;
		int16		len;
		bool		byval;
		Size		size;
		char	   *p;

		head.attnum = change->columns[i]->attnum;
		head.kind = (char) columns[i].kind;
		head.type = KdbMergedContributionType(change->columns[i], &columns[i]);
		appendBinaryStringInfo(&image, (char *) &head, sizeof(head));
		value = flat_value(head.type, columns[i].value, isnull);
		get_typlenbyval(head.type, &len, &byval);
		size = datumEstimateSpace(value, isnull, byval, len);
		enlargeStringInfo(&image, size);
		p = image.data + image.len;
		datumSerialize(value, isnull, byval, len, &p);
		image.len += size;
	}
	SET_VARSIZE(image.data, image.len);
	return (bytea *) image.data;
}

static Datum
converted(Datum value, Oid from, Oid to)
{
	Oid			output;
	Oid			input;
	Oid			ioparam;
	bool		is_varlena;

	getTypeOutputInfo(from, &output, &is_varlena);
	getTypeInputInfo(to, &input, &ioparam);
	return OidInputFunctionCall(input, OidOutputFunctionCall(output, value), ioparam, -1);
}

/* The change's column of that number, -1 if it has none. */
static int
find_column(const KdbMergedChange *change, AttrNumber attnum)
{
	for (int i = 0; i < change->n; i++)
	{
		if (change->columns[i]->attnum == attnum)
			return i;
	}
	return -1;
}

static void
take_column(const KdbMergedChange *change, const ColumnHeader *head, Datum value, bool isnull,
			KdbContributed *result)
{
	int			i = find_column(change, head->attnum);
	KdbColumnContribution *column;
	Oid			type;

	if (i < 0)
		return;
	column = &result->columns[i];
	column->kind = (KdbContributionKind) head->kind;
	column->isnull = isnull;
	column->value = value;
	column->wide = column->kind == KDB_CONTRIBUTES_VALUE && head->type != change->columns[i]->type &&
		head->type == KdbMergedChangeType(change->columns[i]);
	type = KdbMergedContributionType(change->columns[i], column);
	if (type != head->type && !isnull)
		column->value = converted(value, head->type, type);
}

/* See merged_private.h. */
void
KdbMergedDecode(const KdbMergedChange *change, const bytea *image, KdbContributed *result)
{
	Header		header;
	char	   *p = VARDATA_ANY(image);

	memcpy(&header, p, sizeof(header));
	p += sizeof(header);
	if (header.format != FORMAT)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("contributions to merged columns were recorded in format %d, but this version of KrahoDB knows format %d",
						header.format, FORMAT)));
	result->order = header.order;
	result->has_row = header.has_row;
	result->columns = palloc0_array(KdbColumnContribution, change->n);
	for (int i = 0; i < header.ncolumns; i++)
	{
		ColumnHeader head;
		bool		isnull;
		Datum		value;

		memcpy(&head, p, sizeof(head));
		p += sizeof(head);
		value = datumRestore(&p, &isnull);
		take_column(change, &head, value, isnull, result);
	}
}

/* ---- seals ---- */

typedef struct SealHeader
{
	int32		nversions;
	int32		ncontributed;
} SealHeader;

typedef struct SealEntry
{
	KdbVersion	version;
	int64		size;			/* of the image that follows */
} SealEntry;

/* See merged_private.h. */
bytea *
KdbMergedEncodeSeal(const KdbMergedChange *change, bool has_row)
{
	SealHeader	header = {change->nearlier, 0};
	StringInfoData image;

	initStringInfo(&image);
	appendStringInfoSpaces(&image, VARHDRSZ + sizeof(header));
	appendBinaryStringInfo(&image, (char *) change->earlier, change->nearlier * sizeof(KdbVersion));
	for (int i = 0; i < change->nhistory; i++)
	{
		const KdbContributed *contributed = &change->history[i];
		SealEntry	entry = {contributed->version};
		bytea	   *columns;

		if (contributed->own)
			continue;
		columns = KdbMergedEncode(change, contributed->columns, has_row);
		entry.size = VARSIZE(columns);
		appendBinaryStringInfo(&image, (char *) &entry, sizeof(entry));
		appendBinaryStringInfo(&image, (char *) columns, (int) entry.size);
		pfree(columns);
		header.ncontributed++;
	}
	memcpy(image.data + VARHDRSZ, &header, sizeof(header));
	SET_VARSIZE(image.data, image.len);
	return (bytea *) image.data;
}

/* Returns how many contributions there are, and where. */
static int
decode_names(const KdbVersionRecord *record, KdbMergedSeal *seal, char **p)
{
	SealHeader	header;

	*p = VARDATA_ANY(record->merged);
	memcpy(&header, *p, sizeof(header));
	*p += sizeof(header);
	seal->n = header.nversions;
	seal->versions = palloc_array(KdbVersion, seal->n + 1);
	memcpy(seal->versions, *p, seal->n * sizeof(KdbVersion));
	*p += seal->n * sizeof(KdbVersion);
	seal->contributed = NIL;
	return header.ncontributed;
}

/* See merged_private.h. */
void
KdbMergedSealNames(const KdbVersionRecord *record, KdbMergedSeal *seal)
{
	char	   *p;

	(void) decode_names(record, seal, &p);
}

/*
 * See merged_private.h.  What ALTER TABLE has recorded is nobody's own, and of its own transaction's version, which is only
 * known to the reader (KdbVersionOfRecord).
 */
void
KdbMergedDecodeSeal(const KdbMergedChange *change, const KdbVersionRecord *record, KdbMergedSeal *seal)
{
	char	   *p;
	int			ncontributed = decode_names(record, seal, &p);

	for (int i = 0; i < ncontributed; i++)
	{
		KdbContributed *contributed = palloc0(sizeof(KdbContributed));
		SealEntry	entry;
		bytea	   *image;

		memcpy(&entry, p, sizeof(entry));
		p += sizeof(entry);
		image = palloc(entry.size);
		memcpy(image, p, entry.size);
		p += entry.size;
		contributed->version = KdbIsVersionOfRecord(entry.version) ? record->version : entry.version;
		contributed->shown = record->shown;
		contributed->own = record->own && !KdbIsRewriteShown(record->shown);
		contributed->recorded = true;
		KdbMergedDecode(change, image, contributed);
		seal->contributed = lappend(seal->contributed, contributed);
	}
}
