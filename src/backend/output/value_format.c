/*
 * value_format.c
 *		In which form the values of a column are sent.
 *
 * pgoutput's protocol: text, or binary if the client asks for it and the type
 * has a send function.
 *
 * Between KrahoDB servers binary is the rule, where both sides surely mean the
 * same by it: types with a hand-assigned OID, which exist with the same binary
 * form on every server.  Text remains
 *	- types of users, which may differ, or have no receive function, there;
 *	- types whose binary form is the OID of an object (regclass and its
 *	  family): the name is what it means elsewhere;
 *	- composite types, whose binary form has the OIDs of column types;
 *	- int2vector and oidvector, whose receive functions refuse one without elements;
 *	- name, whose receive function refuses one that is too long in another encoding (text is
 *	  truncated);
 *	- arrays of anything that is listed here, or that has no binary form (aclitem);
 *	- xml, whose binary form may come back with a declaration added;
 *	- money, whose binary form loses the number of decimals of the server's
 *	  locale.
 * A client that asks for binary gets what pgoutput would give it.
 *
 * A jsonb value is sent as it is kept if the client keeps it alike: its binary form is text,
 * and writing and parsing that was two fifths of the work for rows that have one, on both sides.  Of
 * other types the binary form is the datum in another order of bytes, or costs little more;
 * the client has to look at all of a datum before it may be used (common/jsonb_datum.c), so each type
 * that is sent so must be worth that.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "catalog/pg_type.h"
#include "utils/fmgroids.h"
#include "utils/syscache.h"

#include "output_private.h"

/* Of those that have a binary form. */
static bool
needs_text(Oid type)
{
	switch (type)
	{
		case INT2VECTOROID:
		case OIDVECTOROID:
		case NAMEOID:
		case REGPROCOID:
		case REGPROCEDUREOID:
		case REGOPEROID:
		case REGOPERATOROID:
		case REGCLASSOID:
		case REGCOLLATIONOID:
		case REGTYPEOID:
		case REGROLEOID:
		case REGNAMESPACEOID:
		case REGCONFIGOID:
		case REGDICTIONARYOID:
		case XMLOID:
		case MONEYOID:
			return true;
		default:
			return false;
	}
}

static bool
is_portable(Form_pg_type type)
{
	return type->oid < FirstGenbkiObjectId && OidIsValid(type->typsend) &&
		!needs_text(type->oid) &&
		type->typtype != TYPTYPE_COMPOSITE && type->typtype != TYPTYPE_PSEUDO;
}

/* Does the binary form of the type mean the same on every server? */
static bool
binary_is_portable(Form_pg_type type)
{
	HeapTuple	tuple;
	bool		result;

	if (!is_portable(type) || type->typsend != F_ARRAY_SEND)
		return is_portable(type);
	tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(type->typelem));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for type %u", type->typelem);
	result = is_portable((Form_pg_type) GETSTRUCT(tuple));
	ReleaseSysCache(tuple);
	return result;
}

static bool
send_in_binary(const KdbOutputParameters *parameters, Form_pg_type type)
{
	if (!OidIsValid(type->typsend))
		return false;
	return parameters->binary || (parameters->framed && binary_is_portable(type));
}

/* Forms that we can write without a call of the send function. */
static KdbValueFormat
binary_format(Oid send, Form_pg_attribute att)
{
	switch (send)
	{
		case F_BOOLSEND:
		case F_INT2SEND:
		case F_INT4SEND:
		case F_INT8SEND:
		case F_OIDSEND:
		case F_FLOAT4SEND:
		case F_FLOAT8SEND:
		case F_DATE_SEND:
		case F_TIMESTAMP_SEND:
		case F_TIMESTAMPTZ_SEND:
			return att->attbyval ? KDB_VALUE_INTEGER : KDB_VALUE_BINARY;
		case F_TEXTSEND:
		case F_VARCHARSEND:
		case F_BPCHARSEND:
			return KDB_VALUE_STRING;
		default:
			return KDB_VALUE_BINARY;
	}
}

/*
 * The form of a column's values, and the function that makes it (the output or
 * send function of the type).  Reads the catalog.
 */
KdbValueFormat
KdbChooseValueFormat(const KdbOutputParameters *parameters, Form_pg_attribute att, Oid *function)
{
	HeapTuple	tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(att->atttypid));
	Form_pg_type type;
	KdbValueFormat format;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for type %u", att->atttypid);
	type = (Form_pg_type) GETSTRUCT(tuple);
	if (parameters->datums && type->oid == JSONBOID)
	{
		*function = type->typsend;
		format = KDB_VALUE_DATUM;
	}
	else if (send_in_binary(parameters, type))
	{
		*function = type->typsend;
		format = binary_format(type->typsend, att);
	}
	else
	{
		*function = type->typoutput;
		format = KDB_VALUE_TEXT;
	}
	ReleaseSysCache(tuple);
	return format;
}
