/*
 * parameters.c
 *		Parameters of tables and columns in SQL: the name space "krahodb".
 *
 *		ALTER TABLE t SET (krahodb.conflict_resolution = ...)
 *		ALTER TABLE t ALTER COLUMN c RESET (krahodb.merge)
 *
 * A table has one, and a column has one; each reads its own values.
 */
#include "postgres.h"

#include "commands/defrem.h"
#include "nodes/makefuncs.h"
#include "nodes/value.h"

#include "options_private.h"

static void
check_name(const DefElem *def, const char *name)
{
	if (strcmp(def->defname, name) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unrecognized parameter \"%s.%s\"", KDB_LABEL_PROVIDER, def->defname),
				 errhint("The parameters of name space \"%s\" are: %s.%s.",
						 KDB_LABEL_PROVIDER, KDB_LABEL_PROVIDER, name)));
}

static void
check_no_value(const DefElem *def)
{
	if (def->arg != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("RESET must not include values for parameters")));
}

/* See options_private.h. */
List *
KdbNormaliseParameters(List *defs, bool reset, const char *name, KdbNormalValue normal_value)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, defs)
	{
		DefElem    *def = lfirst_node(DefElem, lc);
		const char *value = NULL;

		check_name(def, name);
		if (result != NIL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("parameter \"%s.%s\" specified more than once", KDB_LABEL_PROVIDER, name)));
		if (reset)
			check_no_value(def);
		else
			value = normal_value(defGetString(def));
		result = list_make1(makeDefElem(pstrdup(name), value ? (Node *) makeString(pstrdup(value)) : NULL,
										def->location));
	}
	return result;
}
