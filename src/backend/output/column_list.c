/*
 * column_list.c
 *		Which columns of a relation are published.
 *
 * A publication may name columns of a table; FOR ALL TABLES and FOR TABLES IN
 * SCHEMA publish all.  The publications of one subscriber must agree on a table.
 * CREATE SUBSCRIPTION checks that, but publications change later: so here it is
 * an error when a change is decoded.
 *
 * A list of all columns that can be sent is the same as none, as in PostgreSQL 16: with
 * a dropped (or generated) column, 15 takes the two for different ones.
 */
#include "postgres.h"

#include "catalog/pg_publication_rel.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "output_private.h"

/* How many columns can be sent? */
static int
count_columns(Relation target)
{
	TupleDesc	desc = RelationGetDescr(target);
	int			count = 0;

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped && !att->attgenerated)
			count++;
	}
	return count;
}

/* The attribute numbers that the publication names, NULL for all columns. */
static Bitmapset *
column_list_of(const Publication *publication, Relation target, MemoryContext context)
{
	HeapTuple	tuple;
	Datum		list;
	bool		no_list;
	Bitmapset  *columns = NULL;

	if (publication->alltables)
		return NULL;

	/* There is no such row if the publication has the table by its schema. */
	tuple = SearchSysCache2(PUBLICATIONRELMAP,
							ObjectIdGetDatum(RelationGetRelid(target)),
							ObjectIdGetDatum(publication->oid));
	if (!HeapTupleIsValid(tuple))
		return NULL;
	list = SysCacheGetAttr(PUBLICATIONRELMAP, tuple, Anum_pg_publication_rel_prattrs, &no_list);
	if (!no_list)
		columns = pub_collist_to_bitmapset(NULL, list, context);
	ReleaseSysCache(tuple);

	/* Naming every column is the same as naming none. */
	if (bms_num_members(columns) == count_columns(target))
		return NULL;
	return columns;
}

/*
 * The columns of target that the publications (at least one) publish, NULL for
 * all.  The set is in context.
 */
Bitmapset *
KdbBuildColumnList(List *publications, Relation target, MemoryContext context)
{
	Bitmapset  *columns = column_list_of(linitial(publications), target, context);
	ListCell   *lc;

	for_each_from(lc, publications, 1)
	{
		if (!bms_equal(columns, column_list_of(lfirst(lc), target, context)))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("cannot use different column lists for table \"%s.%s\" in different publications",
							get_namespace_name(RelationGetNamespace(target)),
							RelationGetRelationName(target))));
	}
	return columns;
}
