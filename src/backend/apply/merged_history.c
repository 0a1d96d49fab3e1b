/*
 * merged_history.c
 *		What writes have contributed to the merged columns of a key.
 *
 * WHERE IT IS.  Each write that was newer than all others left a version of the row
 * in the heap, and what it contributed is the difference to the version before: so
 * do all writes of local users, who need no more than that, and most writes that are
 * applied.  Contributions that left no row, or one that shows something else (a write
 * that lost, or came to a dead key, an INSERT over a row, a value to or from NULL
 * over one that its writer had not seen) are in version records.
 *
 * A transaction of which anything is recorded for the key has all its contributions
 * to the key recorded (KdbMergedBeforePut sees to it), so that its rows in the heap
 * count for nothing: that is what a record's "shown" is for.
 *
 * CHAINS.  What vacuum has left in the heap are chains of versions (merged_rows.c).  The
 * first of a chain is an assignment: it was inserted, or what was before it has been
 * vacuumed, so is behind the horizon.
 *
 * HORIZON.  What is behind it counts as one assignment.  Vacuum and the removal of
 * records do not happen at the same time, and changes do not arrive in the order of
 * their versions, so there is no place in a chain before which all is behind the
 * horizon and after which nothing.  The assignment's value is that of the last version
 * in the chain whose transaction is behind, with what newer transactions had contributed
 * by then taken out again: these count by themselves.  (To take out is to subtract. A
 * maximum need not be: it counts again, with the same result.  If one of them was an
 * assignment, the value does not matter.)  Records of transactions that are in it do not
 * count; so it does not matter which of them are left.  Nothing that is newer than the
 * horizon has been removed.
 *
 * The chain's first versions, and with them the greatest, may be gone while records that are older are
 * left: of changes that had come to the key when it was dead.  None of them counts beside the row that
 * lives.  An INSERT has overwritten them; an update that has revived the key has sealed them; or it was
 * of the same transaction as they, then its row contains all of these (with_row).
 *
 * SEALS.  That works as long as the row lives: whatever contributes leaves a version in the
 * last chain, and the last one behind the horizon contains all that is.  It does not
 * once the row has been deleted:
 *
 * - what then arrives is in records alone.  When the horizon has passed it and the
 *   chain's end, but not the deletion, the assignment that stands for the chain would be
 *   of a later version, and lack it;
 * - an update that revives the key begins another chain with a version that is no
 *   assignment.  When the horizon has passed the deletion, but not that update,
 *   vacuum takes the older chain, and nothing is left to begin with.
 *
 * So whoever does one or the other copies the whole history as it is at that
 * moment into a record of its own, and seals what it was made of: rows and records of
 * these transactions do not count any more.  (For another change to a dead key that is
 * not necessary: then nothing of the history is in rows.)  Nothing is cut in the copy until the horizon
 * has passed the time at which it was written.  Then the deletion is behind the horizon, and
 * nothing that depends on what was before it can arrive; or the reviving update is, and
 * the chain that begins with it is cut as above.  A lock on the key keeps two workers from
 * sealing at the same time.
 *
 *	here                      horizon   history
 *	------------------------  -------   ---------------------------------------
 *	INSERT n = 1 at 1                   1@1
 *	n = n + 5 at 10                     1@1, +5@10
 *	DELETE at 12                        1@1, +5@10
 *	n = n + 3 of 8 arrives              1@1, +5@10, +3@8: copied, and sealed
 *	                          10        the same; without the seal 6@10, and +3@8
 *	                                    would come before that
 *	n = n + 100 of 14 arrives           109
 *
 * COPIES.  A row of an initial copy is one version, older than all, though it consists of
 * contributions that are newer than the horizon.  The publisher has listed them (merged_listed.c),
 * and they are in a SEALED record of the copy: they count instead of its row version, each behind
 * the horizon or not by its own version.
 *
 * REWRITTEN ROWS.  The same is with rows that ALTER TABLE has written anew (merged_rewritten.c); what their version is
 * called says merged_rows.c.
 *
 * ORDER.  Only that of contributions of the same version matters: in a chain as the
 * chain goes, of several chains in one transaction as they ended, which the command
 * ids of their last versions tell.
 *
 * COST.  One look at each version of the row since the horizon, and one at each of its
 * records; a row that is updated all the time has thousands.  So all that is looked up
 * in between is sorted first.
 */
#include "postgres.h"

#include "krahodb/fault.h"
#include "krahodb/horizon_shared.h"

#include "merged_private.h"

/* A set of transactions, by their versions. */
typedef struct Transactions
{
	KdbVersion *versions;		/* sorted */
	int			n;
} Transactions;

typedef struct History
{
	KdbConverge *c;
	KdbMergedChange *change;
	TimestampTz horizon;
	List	   *records;		/* of KdbContributed, not sealed */
	Transactions sealed;
	Transactions recorded;		/* that have any of these */
	Transactions with_row;		/* of these, those that have left a row version */
	List	   *versions;		/* of KdbRowVersion, in the order of their places */
	List	   *behind;			/* of KdbRowVersion: cut off, see above */
	List	   *result;			/* of KdbContributed */
} History;

/* ---- records ---------------------------------------------------------------- */

typedef struct RecordLook
{
	List	   *merged;			/* of KdbVersionRecord: MERGED */
	List	   *seals;			/* SEALED */
	bool		own;
} RecordLook;

static void
look_at_record(void *arg, const KdbVersionRecord *record)
{
	RecordLook *look = arg;
	KdbVersionRecord *copy;

	if (record->kind != KDB_RECORD_MERGED && record->kind != KDB_RECORD_SEALED)
		return;
	copy = palloc(sizeof(KdbVersionRecord));
	*copy = *record;
	if (record->kind == KDB_RECORD_SEALED)
	{
		look->seals = lappend(look->seals, copy);
		return;
	}
	look->merged = lappend(look->merged, copy);
	look->own |= record->own;
}

static void
read_records(KdbConverge *c, RecordLook *look)
{
	KdbConvergeSide *side = KdbSideOf(c, KDB_KEY_NEW);
	KdbRecordedKey key;

	if (!KdbVersionRecordsAny(side->target->relid, &side->target->records))
		return;
	KdbKeyOfRow(side->target, side->key, &key);
	if (c->merged->as_of)
		KdbVersionRecordsOfKeyIn(side->target->relid, &key, c->merged->as_of, look_at_record, look);
	else
		KdbVersionRecordsOfKey(side->target->relid, &key, look_at_record, look);
}

static int
count_foreign(List *records)
{
	int			n = 0;
	ListCell   *lc;

	foreach(lc, records)
	{
		if (!((KdbVersionRecord *) lfirst(lc))->own)
			n++;
	}
	return n;
}

/* See merged_private.h. */
int
KdbMergedForeignRecords(KdbConverge *c)
{
	RecordLook	look = {0};

	read_records(c, &look);
	return count_foreign(look.merged);
}

/* See merged_private.h. */
bool
KdbMergedRecording(KdbConverge *c)
{
	RecordLook	look = {0};

	if (!c->merged->recording_known)
	{
		read_records(c, &look);
		c->merged->recording = look.own;
		c->merged->recording_known = true;
	}
	return c->merged->recording;
}

/* ---- contributions ------------------------------------------------------------ */

static int
compare_versions(const void *a, const void *b)
{
	return KdbVersionCompare(*(const KdbVersion *) a, *(const KdbVersion *) b);
}

static void
begin_transactions(Transactions *set, int max)
{
	set->versions = palloc_array(KdbVersion, max + 1);
	set->n = 0;
}

static void
sort_transactions(Transactions *set)
{
	qsort(set->versions, set->n, sizeof(KdbVersion), compare_versions);
}

static bool
has_transaction(const Transactions *set, KdbVersion version)
{
	return bsearch(&version, set->versions, set->n, sizeof(KdbVersion), compare_versions) != NULL;
}

static void
note_sealed(History *history, List *seals)
{
	Transactions *sealed = &history->sealed;
	KdbMergedSeal *names = palloc_array(KdbMergedSeal, list_length(seals) + 1);
	int			n = 0;
	ListCell   *lc;

	foreach(lc, seals)
	{
		KdbMergedSeal *seal = &names[foreach_current_index(lc)];

		KdbMergedSealNames(lfirst(lc), seal);
		n += seal->n;
	}
	begin_transactions(sealed, n);
	for (int i = 0; i < list_length(seals); i++)
	{
		memcpy(sealed->versions + sealed->n, names[i].versions, names[i].n * sizeof(KdbVersion));
		sealed->n += names[i].n;
	}
	sort_transactions(sealed);
}

static void
add_merged(History *history, const KdbVersionRecord *record)
{
	KdbContributed *contributed = palloc0(sizeof(KdbContributed));

	contributed->version = record->version;
	contributed->shown = record->shown;
	contributed->own = record->own;
	contributed->recorded = true;
	KdbMergedDecode(history->change, record->merged, contributed);
	history->records = lappend(history->records, contributed);
}

/* What is sealed is not looked at: it may be of a type that the column had once. */
static void
add_unsealed(History *history, List *records)
{
	ListCell   *lc;

	foreach(lc, records)
	{
		const KdbVersionRecord *record = lfirst(lc);
		KdbMergedSeal seal;

		if (has_transaction(&history->sealed, record->shown))
			continue;
		if (record->kind == KDB_RECORD_MERGED)
		{
			add_merged(history, record);
			continue;
		}
		KdbMergedDecodeSeal(history->change, record, &seal);
		history->records = list_concat(history->records, seal.contributed);
	}
}

/*
 * A transaction may have found the key dead, and brought it back with another change:
 * then its row version contains both.
 */
static void
note_recorded(History *history)
{
	ListCell   *lc;

	begin_transactions(&history->recorded, list_length(history->records));
	begin_transactions(&history->with_row, list_length(history->records));
	foreach(lc, history->records)
	{
		const KdbContributed *record = lfirst(lc);

		history->recorded.versions[history->recorded.n++] = record->shown;
		if (record->has_row)
			history->with_row.versions[history->with_row.n++] = record->shown;
	}
	sort_transactions(&history->recorded);
	sort_transactions(&history->with_row);
}

/* The last version was written and ended by the transaction that wrote the other one, or by its subtransactions. */
static bool
has_ended_itself(const KdbRowVersion *version, const KdbRowVersion *last)
{
	return TransactionIdIsValid(last->ender) && last->combo && last->own == version->own &&
		KdbVersionCompare(last->version, version->version) == 0;
}

/*
 * The place among contributions of the same transaction: chains that it has ended
 * itself first, in the order of their ends.
 */
static uint64
place_of(const KdbRowVersion *version, const KdbRowVersion *last, int position)
{
	uint64		chain = PG_UINT32_MAX;

	if (has_ended_itself(version, last))
		chain = last->command;
	return (chain << 24) | position;
}

static KdbContributed *
add_contributed(History *history, const KdbRowVersion *version, uint64 place)
{
	KdbContributed *contributed = palloc0(sizeof(KdbContributed));

	contributed->version = version->version;
	contributed->own = version->own;
	contributed->order = place;
	contributed->columns = palloc0_array(KdbColumnContribution, history->change->n);
	history->result = lappend(history->result, contributed);
	return contributed;
}

static KdbContributed *
add_assignment(History *history, const KdbRowVersion *version, KdbVersion at, uint64 place)
{
	KdbContributed *contributed = add_contributed(history, version, place);

	contributed->version = at;
	for (int i = 0; i < history->change->n; i++)
	{
		contributed->columns[i] = version->values[i];
		contributed->columns[i].kind = KDB_CONTRIBUTES_VALUE;
	}
	return contributed;
}

/* The difference of a version to the one before it. */
static void
step_of(const History *history, const KdbRowVersion *version, KdbColumnContribution *columns)
{
	for (int i = 0; i < history->change->n; i++)
	{
		const KdbColumnContribution *old = &version->previous->values[i];
		const KdbColumnContribution *new = &version->values[i];

		KdbMergedContribution(history->change->columns[i], old->value, old->isnull,
							  new->value, new->isnull, &columns[i]);
	}
}

/*
 * The horizon is not known for some time after a server's start, but the heap tells
 * how far it has been: a version whose predecessor is gone was behind it, as the
 * predecessor was vacuumed.  Or the predecessor had another key, and the version is an
 * assignment, which may as well be taken for the base: what is older does not count.
 */
static void
extend_horizon(History *history)
{
	ListCell   *lc;

	foreach(lc, history->versions)
	{
		KdbRowVersion *version = lfirst(lc);

		if (version->update && version->previous == NULL && !version->own)
			history->horizon = Max(history->horizon, version->version.ts);
	}
}

static bool
is_behind(const History *history, const KdbRowVersion *version)
{
	return !version->own && version->version.ts <= history->horizon;
}

/* A copy's records have other versions than its row shows. */
static bool
is_record_behind(const History *history, const KdbContributed *record)
{
	return !record->own && record->version.ts <= history->horizon;
}

/* The last version of a chain that is behind the horizon, or NULL. */
static KdbRowVersion *
find_cut(const History *history, KdbRowVersion *first)
{
	KdbRowVersion *cut = NULL;

	if (!is_behind(history, first))
		return NULL;
	for (KdbRowVersion *v = first; v; v = v->following)
	{
		if (is_behind(history, v))
			cut = v;
	}
	return cut;
}

/* Take the changes to deltas out of the value at the cut; all other columns are idempotent. */
static void
take_out(History *history, KdbContributed *base, const KdbColumnContribution *columns)
{
	for (int i = 0; i < history->change->n; i++)
	{
		if (columns[i].kind == KDB_CONTRIBUTES_CHANGE)
			KdbMergedTakeOut(history->change->columns[i], &base->columns[i], &columns[i]);
	}
}

/* Take out what newer transactions have contributed up to the cut; recorded: who records there. */
static void
take_out_newer(History *history, KdbRowVersion *first, KdbRowVersion *cut,
			   const Transactions *recorded, KdbContributed *base)
{
	KdbColumnContribution *step = palloc_array(KdbColumnContribution, history->change->n);
	ListCell   *lc;

	for (KdbRowVersion *v = first; v != cut; v = v->following)
	{
		if (is_behind(history, v) || has_transaction(recorded, v->version))
			continue;
		step_of(history, v, step);
		take_out(history, base, step);
	}
	foreach(lc, history->records)
	{
		KdbContributed *record = lfirst(lc);

		if (has_transaction(recorded, record->shown) && !is_record_behind(history, record))
			take_out(history, base, record->columns);
	}
}

/*
 * The version of what is behind the horizon.  Of the row that lives it is all that is, whatever
 * version was the last to leave one in the heap: what it lacks was overwritten, as
 * the changes to a dead key are by the INSERT that began the row.
 */
static KdbVersion
version_behind(const History *history, const KdbRowVersion *first, const KdbRowVersion *cut,
			   const Transactions *recorded, bool live)
{
	KdbVersion	greatest = {0, 0};
	ListCell   *lc;

	for (const KdbRowVersion *v = first; v != cut->following; v = v->following)
	{
		if (is_behind(history, v) && KdbVersionCompare(v->version, greatest) > 0)
			greatest = v->version;
	}
	foreach(lc, history->records)
	{
		const KdbContributed *record = lfirst(lc);

		if ((live || has_transaction(recorded, record->shown)) && is_record_behind(history, record) &&
			KdbVersionCompare(record->version, greatest) > 0)
			greatest = record->version;
	}
	return greatest;
}

/* What is behind the horizon, as one assignment. */
static void
add_base(History *history, KdbRowVersion *first, KdbRowVersion *cut, uint64 place, bool live)
{
	Transactions recorded;
	KdbContributed *base;

	begin_transactions(&recorded, list_length(history->versions));
	for (KdbRowVersion *v = first; v != cut->following; v = v->following)
	{
		if (has_transaction(&history->recorded, v->version))
			recorded.versions[recorded.n++] = v->version;
		if (is_behind(history, v))
			history->behind = lappend(history->behind, v);
	}
	sort_transactions(&recorded);
	base = add_assignment(history, cut, version_behind(history, first, cut, &recorded, live), place);
	take_out_newer(history, first, cut, &recorded, base);
}

/* What else is in a sealed chain was written by who has sealed it, and is recorded. */
static bool
is_sealed(const History *history, const KdbRowVersion *first)
{
	for (const KdbRowVersion *v = first; v; v = v->following)
	{
		if (has_transaction(&history->sealed, v->version))
			return true;
	}
	return false;
}

static void
add_chain(History *history, KdbRowVersion *first)
{
	KdbRowVersion *last = first;
	KdbRowVersion *cut = find_cut(history, first);
	int			position = 0;

	while (last->following)
		last = last->following;
	if (cut)
		add_base(history, first, cut, place_of(cut, last, position++), !TransactionIdIsValid(last->ender));
	for (KdbRowVersion *v = first; v; v = v->following)
	{
		uint64		place = place_of(v, last, position++);

		/* A recorded transaction's row versions do not count. */
		if ((cut && is_behind(history, v)) || has_transaction(&history->recorded, v->version))
			continue;
		if (v->previous)
			step_of(history, v, add_contributed(history, v, place)->columns);
		else
			(void) add_assignment(history, v, v->version, place);
	}
}

static void
collect_transactions(Transactions *set, List *versions)
{
	ListCell   *lc;

	begin_transactions(set, list_length(versions));
	foreach(lc, versions)
		set->versions[set->n++] = ((KdbRowVersion *) lfirst(lc))->version;
	sort_transactions(set);
}

/*
 * Those of transactions that were cut off do not count, nor those whose row version
 * was vacuumed: what has followed it contains them.
 */
static void
add_records(History *history)
{
	Transactions behind;
	Transactions present;
	ListCell   *lc;

	collect_transactions(&behind, history->behind);
	collect_transactions(&present, history->versions);
	foreach(lc, history->records)
	{
		KdbContributed *record = lfirst(lc);

		if (has_transaction(&behind, record->shown) && is_record_behind(history, record))
			continue;
		if (record->own || !has_transaction(&history->with_row, record->shown) ||
			has_transaction(&present, record->shown) ||
			(history->change->row_comes &&
			 KdbVersionCompare(record->shown, history->c->context->version) == 0))
			history->result = lappend(history->result, record);
	}
}

/* The base that an update brings comes before all else of version {0, 0}. */
static int
in_order(const ListCell *a, const ListCell *b)
{
	const KdbContributed *x = lfirst(a);
	const KdbContributed *y = lfirst(b);
	int			order = KdbVersionCompare(x->version, y->version);

	if (order == 0)
		order = (int) y->recorded - (int) x->recorded;
	return order != 0 ? order : (x->order > y->order) - (x->order < y->order);
}

/* Records that contribute nothing say only that the heap does not count. */
static bool
contributes(const KdbMergedChange *change, const KdbContributed *contributed)
{
	for (int i = 0; i < change->n; i++)
	{
		if (contributed->columns[i].kind != KDB_CONTRIBUTES_NOTHING)
			return true;
	}
	return false;
}

static bool
assigns_all(const KdbMergedChange *change, const KdbContributed *contributed)
{
	for (int i = 0; i < change->n; i++)
	{
		if (contributed->columns[i].kind != KDB_CONTRIBUTES_VALUE)
			return false;
	}
	return true;
}

/*
 * Does it begin with anything?  Records of changes to a row that was deleted are kept
 * longer than the row, and say nothing of the next row of that key.
 */
static bool
has_assignment(const KdbMergedChange *change)
{
	for (int i = 0; i < change->nhistory; i++)
	{
		if (assigns_all(change, &change->history[i]))
			return true;
	}
	return false;
}

/* ---- seals ------------------------------------------------------------------- */

static void
add_earlier(KdbMergedChange *change, KdbVersion version)
{
	if (version.ts != 0)
		change->earlier[change->nearlier++] = version;
}

/*
 * Whom would a seal name?  All others that have written, and who have been sealed, as
 * the older seal may be removed before their rows are.
 */
static void
note_earlier(History *history)
{
	KdbMergedChange *change = history->change;
	int			max = list_length(history->versions) + list_length(history->records) + history->sealed.n;
	ListCell   *lc;

	change->earlier = palloc_array(KdbVersion, max + 1);
	change->nearlier = 0;
	foreach(lc, change->rows_read ? NIL : history->versions)
	{
		if (!((KdbRowVersion *) lfirst(lc))->own)
			add_earlier(change, ((KdbRowVersion *) lfirst(lc))->version);
	}
	foreach(lc, history->records)
	{
		if (!((KdbContributed *) lfirst(lc))->own)
			add_earlier(change, ((KdbContributed *) lfirst(lc))->shown);
	}
	for (int i = 0; i < history->sealed.n; i++)
	{
		if (i == 0 || KdbVersionCompare(history->sealed.versions[i], history->sealed.versions[i - 1]) != 0)
			add_earlier(change, history->sealed.versions[i]);
	}
}

/* Is there anything for a seal to copy, and of that, anything that has not been? */
static void
look_at_others(History *history)
{
	KdbMergedChange *change = history->change;
	ListCell   *lc;

	change->others_count = change->unsealed = false;
	for (int i = 0; i < change->nhistory; i++)
		change->others_count |= !change->history[i].own;
	foreach(lc, history->versions)
	{
		const KdbRowVersion *version = lfirst(lc);

		change->unsealed |= version->previous == NULL && !version->own &&
			(version->version.ts != 0 || history->sealed.n == 0) && !is_sealed(history, version);
	}
}

static bool
is_live(const History *history)
{
	ListCell   *lc;

	foreach(lc, history->versions)
	{
		if (!TransactionIdIsValid(((KdbRowVersion *) lfirst(lc))->ender))
			return true;
	}
	return false;
}

/* Whoever may seal has the key to itself before it reads what there is. */
static bool
must_lock(const History *history)
{
	KdbConvergeSide *side = KdbSideOf(history->c, KDB_KEY_NEW);
	KdbRecordedKey key;

	if (history->change->as_of || history->change->key_locked || is_live(history))
		return false;
	KdbLaneMustBeFirst();
	KdbKeyOfRow(side->target, side->key, &key);
	KdbVersionRecordsLock(side->target->relid, &key);
	history->change->key_locked = true;
	KDB_FAULT_POINT("merged_locked");
	return true;
}

/* See merged_private.h. */
void
KdbMergedReadHistory(KdbConverge *c)
{
	KdbMergedChange *change = c->merged;
	History		history = {.c = c, .change = change};
	RecordLook	look;
	ListCell   *lc;

	do
	{
		memset(&look, 0, sizeof(look));
		read_records(c, &look);
		history.versions = KdbMergedRowVersions(c);
	} while (must_lock(&history));
	note_sealed(&history, look.seals);
	add_unsealed(&history, look.merged);
	add_unsealed(&history, look.seals);
	history.horizon = KdbHorizonTimestamp();
	note_recorded(&history);
	extend_horizon(&history);
	foreach(lc, history.versions)
	{
		KdbRowVersion *version = lfirst(lc);

		if (version->previous == NULL && !is_sealed(&history, version))
			add_chain(&history, version);
	}
	add_records(&history);
	note_earlier(&history);
	list_sort(history.result, in_order);

	change->history = palloc_array(KdbContributed, list_length(history.result) + 1);
	change->nhistory = 0;
	foreach(lc, history.result)
	{
		if (contributes(change, lfirst(lc)))
			change->history[change->nhistory++] = *(KdbContributed *) lfirst(lc);
	}
	if (!has_assignment(change))
		change->nhistory = 0;
	look_at_others(&history);
	change->foreign_records = count_foreign(look.merged);
	change->recording = look.own;
	change->recording_known = true;
	change->live = is_live(&history);
	change->history_known = true;
}
