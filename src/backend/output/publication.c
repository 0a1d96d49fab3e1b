/*
 * publication.c
 *		By which of the client's publications a relation is published, and as what.
 *
 * The engine's relcache knows all publications of a relation; here only those
 * count that the client named.  They are loaded at the first change and again
 * after a change of pg_publication: a publication need not exist when the
 * connection starts, but must when a change is decoded.
 *
 * A partition is published by its own publications and by those of its
 * ancestors.  A publication with publish_via_partition_root publishes it as the
 * topmost ancestor that it contains (the root, if it is FOR ALL TABLES).  When
 * several publications disagree, the topmost wins, and only publications that
 * name that relation decide on filters and columns; what is published at all is
 * the sum of all of them.
 */
#include "postgres.h"

#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "output_private.h"

/* A relation that is looked for in publications. */
typedef struct Candidate
{
	Oid			relid;
	List	   *publications;	/* OIDs of those that have it itself or its schema */
	List	   *ancestors;		/* OIDs from the parent to the root; NIL for no partition */
} Candidate;

/* Is KdbOutput.publications what the catalog says? */
static bool publications_valid = false;

static void
publication_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	publications_valid = false;
	KdbRelationCacheInvalidateAll();
}

/* Prepare the session; what it loads goes into a child of parent. */
void
KdbPublicationsInit(KdbOutput *output, MemoryContext parent)
{
	static bool registered = false;

	output->publication_context = AllocSetContextCreate(parent, "krahodb output publications",
														ALLOCSET_SMALL_SIZES);
	publications_valid = false;
	if (!registered)
	{
		CacheRegisterSyscacheCallback(PUBLICATIONOID, publication_changed, (Datum) 0);
		registered = true;
	}
}

/* Raises an error for a publication that does not exist. */
static void
load_publications(KdbOutput *output)
{
	MemoryContext old;
	ListCell   *lc;

	output->publications = NIL;
	MemoryContextReset(output->publication_context);
	old = MemoryContextSwitchTo(output->publication_context);
	foreach(lc, output->parameters.publication_names)
		output->publications = lappend(output->publications,
									   GetPublicationByName(lfirst(lc), false));
	MemoryContextSwitchTo(old);
	publications_valid = true;
}

static void
describe_candidate(Relation relation, Candidate *candidate)
{
	candidate->relid = RelationGetRelid(relation);
	candidate->publications =
		list_concat(GetRelationPublications(candidate->relid),
					GetSchemaPublications(RelationGetNamespace(relation)));
	candidate->ancestors = NIL;
	if (relation->rd_rel->relispartition)
		candidate->ancestors = get_partition_ancestors(candidate->relid);
}

/*
 * Does the publication publish the candidate?  If so, *publish_as is what it
 * publishes it as, and *level how many steps up in the partition tree that is.
 */
static bool
publishes(const Publication *publication, const Candidate *candidate,
		  Oid *publish_as, int *level)
{
	Oid			ancestor = InvalidOid;
	int			ancestor_level = 0;

	*publish_as = candidate->relid;
	*level = 0;
	if (candidate->ancestors != NIL)
	{
		if (publication->alltables)
		{
			ancestor = llast_oid(candidate->ancestors);
			ancestor_level = list_length(candidate->ancestors);
		}
		else
			ancestor = GetTopMostAncestorInPublication(publication->oid, candidate->ancestors,
													   &ancestor_level);
	}
	if (OidIsValid(ancestor) && publication->pubviaroot)
	{
		*publish_as = ancestor;
		*level = ancestor_level;
	}
	return publication->alltables || OidIsValid(ancestor) ||
		list_member_oid(candidate->publications, publication->oid);
}

static void
add_actions(PublicationActions *actions, const PublicationActions *more)
{
	actions->pubinsert |= more->pubinsert;
	actions->pubupdate |= more->pubupdate;
	actions->pubdelete |= more->pubdelete;
	actions->pubtruncate |= more->pubtruncate;
}

/*
 * Find out what of a relation is published (*actions, zeroed by the caller),
 * and as which relation.  Returns the publications (Publication *) that publish
 * it as that one.  The list is in the current memory context; what it points to
 * lasts until the next call.
 */
List *
KdbFindPublications(KdbOutput *output, Relation relation,
					PublicationActions *actions, Oid *publish_as)
{
	Candidate	candidate;
	List	   *result = NIL;
	int			top_level = 0;
	ListCell   *lc;

	if (!publications_valid)
		load_publications(output);
	describe_candidate(relation, &candidate);
	*publish_as = candidate.relid;

	foreach(lc, output->publications)
	{
		Publication *publication = lfirst(lc);
		Oid			as;
		int			level;

		if (!publishes(publication, &candidate, &as, &level))
			continue;

		/* The changes of its partitions are what is published of it. */
		if (relation->rd_rel->relkind == RELKIND_PARTITIONED_TABLE && !publication->pubviaroot)
			continue;

		add_actions(actions, &publication->pubactions);
		if (level < top_level)
			continue;
		if (level > top_level)
		{
			*publish_as = as;
			top_level = level;
			result = NIL;
		}
		Assert(*publish_as == as);
		result = lappend(result, publication);
	}
	return result;
}
