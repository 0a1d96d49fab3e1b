/*
 * lane_leader.c
 *		The apply worker with lanes: it receives and hands over, they apply.
 *
 * STATES of the leader, seen from the messages that come:
 *
 *	idle		between transactions; some may be on their way in the lanes
 *	collecting	BEGIN has come, messages are kept (in_remote_transaction is true, but
 *				nothing has been done); COMMIT hands the transaction over
 *	by itself	a transaction is applied here, as without lanes; none is on its way
 *
 * BY ITSELF it applies what is not an ordinary transaction, or cannot be one beside
 * others: streamed and two-phase transactions, TRUNCATE, a transaction larger than
 * KDB_LANES_LARGE; everything while a table is being synchronised, a skip LSN is set,
 * or, after a failure, up to the transaction that failed.  It
 * waits for all lanes before ("drain"); what it has collected of that transaction it
 * applies first.
 *
 * ORIGIN.  While transactions are on their way, whoever commits has the origin
 * (lane_turn.c).  The leader takes it back when it has drained the lanes, and when it
 * waits for data and nothing is on its way: so nobody else can drop or advance it, as without
 * lanes.  Without it replorigin_session_origin is not set: what the leader commits then is
 * local.
 *
 * RELATIONS are told to the leader's own relation.c and to all lanes.  A table that
 * really changes at the publisher ends all lanes; new ones know it as it is then.
 *
 * BACK-PRESSURE.  When the table of transactions or the ring is full, the leader waits
 * until half of them are done, and does not receive; but it reports to the publisher,
 * so that a lane that waits for a lock does not cost the connection.
 */
#include "postgres.h"

#include "access/xact.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "replication/walreceiver.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "krahodb/fault.h"
#include "lanes_private.h"

#define FIRST_LANES		2		/* started at once; more when there is work for them */
#define START_AGAIN_MS	60000	/* after the server had no room for a lane */
#define NAP				100L	/* ms; while waiting for lanes */
#define MAX_SUPERSEDED	1024	/* relations that lanes know in vain */

/* The transaction that is collected, from its BEGIN on. */
static bool collecting = false;
static StringInfoData collected;	/* the messages as they go to the ring */
static KdbLaneTransaction next;
static uint32 nchanges;			/* of it */

static uint64 reaped = 0;		/* transactions whose end has been noted */
static uint32 ring_head = 0;	/* where the next one goes */
static bool holds_origin = true;
static TimestampTz no_room_since = 0;
static bool relation_states_changed = false;

/* RELATION messages by relation, as they were sent last. */
typedef struct KnownRelation
{
	uint32		relid;			/* hash key */
	size_t		length;
	char	   *message;
} KnownRelation;

static HTAB *known_relations = NULL;

/* ---- the origin ---- */

static void
take_origin(void)
{
	if (holds_origin)
		return;
	replorigin_session_setup(KdbApply.origin);
	replorigin_session_origin = KdbApply.origin;
	holds_origin = true;
}

static void
let_go_of_origin(void)
{
	if (!holds_origin)
		return;
	replorigin_session_reset();
	replorigin_session_origin = InvalidRepOriginId;
	holds_origin = false;
}

/* See apply_private.h. */
void
KdbLeaderTakeOrigin(void)
{
	take_origin();
}

/* See apply_private.h. */
void
KdbLeaderLetGoOfOrigin(void)
{
	let_go_of_origin();
}

/* ---- what is on its way ---- */

static uint64
appended(void)
{
	return KdbMyLaneGroup ? pg_atomic_read_u64(&KdbMyLaneGroup->appended) : 0;
}

/* See apply_private.h. */
bool
KdbLeaderBusy(void)
{
	return reaped < appended();
}

/* Note which of the transactions that are on their way have ended. */
static void
reap(void)
{
	uint64		committed;

	if (!KdbLeaderBusy())
		return;
	committed = pg_atomic_read_u64(&KdbMyLaneGroup->committed);
	pg_read_barrier();
	if (reaped == committed)
		return;
	while (reaped < committed)
	{
		KdbLaneTransaction *transaction = KdbLaneTransactionOf(KdbMyLaneGroup, ++reaped);

		KdbFeedbackCommitted(transaction->end_lsn, transaction->local_end);
		KdbApply.applied_end = transaction->end_lsn;
	}
	KdbRetrySucceeded(KdbApply.applied_end);
}

/* The transaction that could not be applied, if any: all before it have committed.  See retry.c. */
static XLogRecPtr
first_not_committed(void)
{
	uint64		seq = pg_atomic_read_u64(&KdbMyLaneGroup->committed) + 1;

	return seq > appended() ? InvalidXLogRecPtr :
		KdbLaneTransactionOf(KdbMyLaneGroup, seq)->end_lsn - 1;
}

/*
 * A lane has ended, or cannot go on.  A change of the subscription may be why: then that
 * is the reason to end.  Else start anew; the transaction that failed is the first one
 * then.
 */
static void
look_for_trouble(bool thoroughly)
{
	KdbLaneGroup *group = KdbMyLaneGroup;
	int			n = KdbLanesStarted();
	const char *failure = NULL;

	if (pg_atomic_read_u32(&group->trouble) == 0 && !(thoroughly && KdbLaneHasStopped()))
		return;
	AcceptInvalidationMessages();
	KdbSubscriptionReread();
	for (int i = 0; i < n; i++)
	{
		if (pg_atomic_read_u32(&KdbLaneOf(group, i)->state) == KDB_LANE_FAILED)
			failure = pstrdup(group->failure);
	}
	if (KdbRetrySchedule(first_not_committed()) > 0)
		elog(DEBUG1, "a lane has failed again");
	ereport(LOG,
			(errmsg("logical replication apply worker for subscription \"%s\" will restart and apply the next transaction without lanes",
					MySubscription->name),
			 failure ? errdetail_internal("%s", failure) :
			 errdetail("A lane has ended.")));
	proc_exit(0);
}

/* Wait until that transaction has committed, and all before it. */
static void
wait_for_lanes(uint64 seq)
{
	KdbLaneGroup *group = KdbMyLaneGroup;

	pg_atomic_write_u64(&group->leader_waits_for, seq);
	pg_memory_barrier();
	while (!KdbLaneIsCommitted(group, seq))
	{
		int			rc = WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
								   NAP, PG_WAIT_EXTENSION);

		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		look_for_trouble(rc & WL_TIMEOUT);
		AcceptInvalidationMessages();
		KdbSubscriptionReread();
		reap();
		KdbFeedbackWhileBusy();
	}
	pg_atomic_write_u64(&group->leader_waits_for, 0);
	reap();
}

/* Nothing is on its way any more, and the origin is the leader's. */
static void
drain(void)
{
	if (KdbLeaderBusy())
		wait_for_lanes(appended());
	take_origin();
}

/* ---- lanes ---- */

/* Was there room the last time, or is it time to look again? */
static bool
may_have_room(TimestampTz now)
{
	return no_room_since == 0 || TimestampDifferenceExceeds(no_room_since, now, START_AGAIN_MS);
}

/* nlanes: with so many it goes on; why: what has failed; NULL if the server has no room for another process. */
static void
note_no_room(TimestampTz now, int nlanes, const char *why)
{
	if (no_room_since == 0)
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("subscription \"%s\" applies with %d of %d lanes", MySubscription->name,
						nlanes, KdbMyOptions->apply_workers),
				 why ? errdetail_internal("%s", why) :
				 errdetail("There are no more background worker slots."),
				 why ? errhint("Lanes need shared memory, which may be limited by the size of /dev/shm.") :
				 errhint("You might need to increase max_worker_processes.")));
	no_room_since = now;
}

static bool
share_known_relations(char **why)
{
	HASH_SEQ_STATUS status;
	KnownRelation *known;

	if (known_relations == NULL)
		return true;
	hash_seq_init(&status, known_relations);
	while ((known = hash_seq_search(&status)) != NULL)
	{
		if (!KdbLaneShareRelation(known->message, known->length, why))
		{
			hash_seq_term(&status);
			return false;
		}
	}
	return true;
}

/* The memory that is shared with lanes, if the server has room. */
static bool
start_group(void)
{
	TimestampTz now = GetCurrentTimestamp();
	char	   *why;

	if (!may_have_room(now))
		return false;
	if (!KdbLaneGroupCreate(&why) || !share_known_relations(&why))
	{
		KdbLaneGroupEnd();
		note_no_room(now, 0, why);
		return false;
	}
	KdbLaneDependReset();
	KdbLanePaceReset();
	reaped = 0;
	ring_head = 0;
	return true;
}

/* One more lane, if the server has room. */
static bool
start_lane(void)
{
	TimestampTz now = GetCurrentTimestamp();

	if (!may_have_room(now))
		return false;
	if (KdbLaneStart())
		return true;
	note_no_room(now, KdbLanesStarted(), NULL);
	return false;
}

/* Transactions wait, and all lanes have work. */
static void
start_more_lanes(void)
{
	KdbLaneGroup *group = KdbMyLaneGroup;
	int			n = KdbLanesStarted();

	if (n < KdbMyOptions->apply_workers && KdbLanesReady() == n &&
		pg_atomic_read_u64(&group->appended) - pg_atomic_read_u64(&group->taken) > (uint64) n)
		(void) start_lane();
}

/* Have one of those who sleep look for a transaction. */
static void
wake_a_lane(void)
{
	KdbLaneGroup *group = KdbMyLaneGroup;
	int			n = Min(KdbLanesStarted(), pg_atomic_read_u32(&group->working));

	for (int i = 0; i < n; i++)
	{
		if (KdbLaneWake(KdbLaneOf(group, i)))
			return;
	}
}

/*
 * May the transaction that begins go to a lane?  The first ones are applied here, while
 * lanes start.
 */
static bool
lanes_are_there(void)
{
	if (KdbMyLaneGroup == NULL && !start_group())
		return false;
	if (KdbLanesStarted() == 0)
	{
		for (int i = 0; i < Min(FIRST_LANES, KdbMyOptions->apply_workers); i++)
		{
			if (!start_lane())
				break;
		}
	}
	return KdbLanesReady() > 0;
}

static bool
may_use_lanes(void)
{
	if (KdbMyOptions->apply_workers == 1 || am_tablesync_worker())
		return false;
	return KdbSync->tables_ready() && MySubscription->skiplsn == InvalidXLogRecPtr &&
		!KdbRetrying() && lanes_are_there();
}

/* ---- handing over ---- */

/* Is there room in the ring for so many bytes at ring_head, or at its start? */
static bool
find_room(uint32 length)
{
	KdbLaneTransaction *oldest;
	uint32		tail;

	if (!KdbLeaderBusy())
	{
		ring_head = 0;
		return true;
	}
	if (appended() - reaped >= KDB_LANES_TRANSACTIONS)
		return false;
	oldest = KdbLaneTransactionOf(KdbMyLaneGroup, reaped + 1);
	tail = oldest->offset;
	if (ring_head > tail)
	{
		if (KDB_LANES_RING - ring_head >= length)
			return true;
		if (tail <= length)
			return false;
		ring_head = 0;
		return true;
	}
	return tail - ring_head > length;
}

static void
wait_for_room(uint32 length)
{
	reap();
	while (!find_room(length))
		wait_for_lanes(reaped + Max((appended() - reaped) / 2, 1));
}

static void
hand_over(void)
{
	KdbLaneGroup *group = KdbMyLaneGroup;
	uint32		seen_length = KdbApply.seen.nentries * sizeof(KdbSeenEntry);
	uint32		length = seen_length + collected.len;
	uint64		seq = appended() + 1;
	KdbLaneTransaction *transaction;

	wait_for_room(length);
	let_go_of_origin();
	memcpy(group->ring + ring_head, KdbApply.seen.entries, seen_length);
	memcpy(group->ring + ring_head + seen_length, collected.data, collected.len);

	transaction = KdbLaneTransactionOf(group, seq);
	*transaction = next;
	transaction->offset = ring_head;
	transaction->length = length;
	transaction->nseen = KdbApply.seen.nentries;
	transaction->relations = pg_atomic_read_u64(&group->nrelations);
	if (KdbLaneIsCommitted(group, transaction->after))
		transaction->after = 0;
	ring_head += length;
	KDB_FAULT_POINT("leader_before_append");
	pg_write_barrier();
	pg_atomic_write_u64(&group->appended, seq);
	pg_memory_barrier();
	KdbLanePace(reaped, seq);
	wake_a_lane();
	start_more_lanes();
	look_for_trouble(false);
}

/* ---- collecting ---- */

static void
start_collecting(const KdbWireMessage *begin)
{
	if (collected.data == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(ApplyContext);

		initStringInfo(&collected);
		MemoryContextSwitchTo(old);
	}
	resetStringInfo(&collected);
	memset(&next, 0, sizeof(next));
	nchanges = 0;
	next.xid = begin->u.begin.xid;
	collecting = true;
	in_remote_transaction = true;
}

static void
stop_collecting(void)
{
	collecting = false;
	in_remote_transaction = false;
}

static void
collect(const char *data, size_t len)
{
	uint32		length = len;

	appendBinaryStringInfo(&collected, (char *) &length, sizeof(length));
	appendBinaryStringInfo(&collected, data, len);
	appendStringInfoChar(&collected, '\0');
}

/* The transaction is not for lanes after all: go on with it here. */
static void
apply_collected(void)
{
	int			position = 0;

	drain();
	stop_collecting();
	while (position < collected.len)
	{
		uint32		len;

		memcpy(&len, collected.data + position, sizeof(uint32));
		CHECK_FOR_INTERRUPTS();
		KdbApplyDispatch(collected.data + position + sizeof(uint32), len);
		position += KDB_LANE_MESSAGE_SIZE(len);
	}
}

static void
collect_change(const KdbWireMessage *message, const char *data, size_t len)
{
	uint64		after = KdbLaneDependChange(message, appended() + 1);

	if (after != 0 && !KdbLaneIsCommitted(KdbMyLaneGroup, after))
	{
		if (next.after == 0)
			next.after_change = nchanges;
		next.after = Max(next.after, after);
	}
	nchanges++;
	collect(data, len);
}

/* ---- relations ---- */

static void
decode(const char *data, size_t len, KdbWireMessage *message)
{
	static KdbWireBuffers buffers;
	KdbWireError error;

	if (!KdbWireDecode(data, len, false, &buffers, message, &error))
		message->type = 0;		/* KdbApplyDispatch says what is wrong */
}

static void
remember_relation(KnownRelation *known, const char *data, size_t len)
{
	known->message = MemoryContextAlloc(ApplyContext, len);
	memcpy(known->message, data, len);
	known->length = len;
}

/* Where the message names the table: behind type and id, schema and name, each with its end. */
static void
name_of(const char *message, const char **nspname, const char **relname)
{
	*nspname = message + 1 + sizeof(uint32);
	*relname = *nspname + strlen(*nspname) + 1;
}

static bool
has_name(const KnownRelation *known, const char *nspname, const char *relname)
{
	const char *its_nspname;
	const char *its_relname;

	name_of(known->message, &its_nspname, &its_relname);
	return strcmp(its_relname, relname) == 0 && strcmp(its_nspname, nspname) == 0;
}

/* Forget the one that had the name before, which was dropped or renamed: see relation.c. */
static void
forget_other(uint32 relid, const char *message)
{
	static HTAB *names = NULL;
	const char *nspname;
	const char *relname;
	uint32		before;
	KnownRelation *other;

	name_of(message, &nspname, &relname);
	before = KdbTakeName(&names, nspname, relname, relid);
	other = before == relid ? NULL : hash_search(known_relations, &before, HASH_FIND, NULL);
	if (other == NULL || !has_name(other, nspname, relname))
		return;
	pfree(other->message);
	(void) hash_search(known_relations, &before, HASH_REMOVE, NULL);
	KdbLaneDependForget(before);
}

/* Is most of what lanes have learnt not needed any more? */
static bool
lanes_know_too_much(void)
{
	return pg_atomic_read_u64(&KdbMyLaneGroup->nrelations) >
		(uint64) (2 * hash_get_num_entries(known_relations) + MAX_SUPERSEDED);
}

/* All lanes are to know it, too; false if there is no room. */
static bool
share_relation(const char *data, size_t len)
{
	char	   *why;

	if (KdbMyLaneGroup == NULL || KdbLaneShareRelation(data, len, &why))
		return true;
	note_no_room(GetCurrentTimestamp(), 0, why);
	return false;
}

/*
 * A publisher sends the same again whenever it is not sure.  Returns true if lanes must
 * end because they know it otherwise, or cannot know it, or know too many others.
 */
static bool
note_relation(const KdbWireMessage *message, const char *data, size_t len)
{
	uint32		relid = message->u.relation.relid;
	KnownRelation *known;
	bool		found;

	if (known_relations == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(uint32), .entrysize = sizeof(KnownRelation),
		.hcxt = ApplyContext};

		known_relations = hash_create("KrahoDB relations for lanes", 128, &ctl,
									  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	known = hash_search(known_relations, &relid, HASH_ENTER, &found);
	if (found && known->length == len && memcmp(known->message, data, len) == 0)
		return false;
	if (found)
		pfree(known->message);
	remember_relation(known, data, len);
	KdbLaneDependRelation(message);
	forget_other(relid, data);
	return (!found && !share_relation(data, len)) || (KdbMyLaneGroup && (found || lanes_know_too_much()));
}

/* See apply_private.h. */
void
KdbLeaderRelation(const char *data, size_t len)
{
	KdbWireMessage message;

	if (KdbInLane || am_tablesync_worker() || KdbMyOptions->apply_workers == 1)
		return;
	decode(data, len, &message);
	if (message.type != KDB_WIRE_RELATION || !note_relation(&message, data, len))
		return;
	if (collecting)
		apply_collected();
	drain();
	KdbLaneGroupEnd();
	reaped = 0;
}

/* ---- messages ---- */

/* BEGIN.  Returns whether it is collected. */
static bool
take_begin(const KdbWireMessage *message, const char *data, size_t len)
{
	AcceptInvalidationMessages();
	KdbSubscriptionReread();
	if (relation_states_changed)
	{
		relation_states_changed = false;
		drain();
		if (KdbApply.applied_end != InvalidXLogRecPtr)
			KdbSync->process_syncing_tables(KdbApply.applied_end);
	}
	if (!may_use_lanes())
	{
		drain();
		return false;
	}
	start_collecting(message);
	collect(data, len);
	return true;
}

/* A message inside a transaction that is collected.  Returns whether it is done with. */
static bool
take_inner(const KdbWireMessage *message, const char *data, size_t len)
{
	switch (message->type)
	{
		case KDB_WIRE_INSERT:
		case KDB_WIRE_UPDATE:
		case KDB_WIRE_DELETE:
			if (collected.len + len > KDB_LANES_LARGE)
			{
				apply_collected();
				return false;
			}
			collect_change(message, data, len);
			return true;
		case KDB_WIRE_ORIGIN:
		case KDB_WIRE_MESSAGE:
		case KDB_WIRE_TYPE:
			return true;
		case KDB_WIRE_SEEN:
			return false;		/* collected in KdbApply.seen */
		case KDB_WIRE_COMMIT:
			collect(data, len);
			next.end_lsn = message->u.commit.end_lsn;
			hand_over();
			stop_collecting();
			return true;
		default:
			apply_collected();
			return false;
	}
}

/* Outside of transactions: does it change nothing here? */
static bool
is_harmless(KdbWireType type)
{
	return type == KDB_WIRE_HANDSHAKE || type == KDB_WIRE_SEEN || type == KDB_WIRE_TYPE ||
		type == KDB_WIRE_MESSAGE ||
		type == KDB_WIRE_STREAM_START;	/* what follows goes to a file */
}

/* See apply_private.h. */
bool
KdbLeaderTake(const char *data, size_t len)
{
	KdbWireMessage message;

	if (KdbMyOptions->apply_workers == 1 || am_tablesync_worker() || len == 0 ||
		*data == KDB_WIRE_RELATION || KdbSpoolActive() ||
		(in_remote_transaction && !collecting))
		return false;

	decode(data, len, &message);
	if (collecting)
		return take_inner(&message, data, len);
	if (message.type == KDB_WIRE_BEGIN)
		return take_begin(&message, data, len);
	if (!is_harmless(message.type))
		drain();
	return false;
}

/* See apply_private.h. */
void
KdbLeaderRelationStatesChanged(void)
{
	relation_states_changed = true;
}

/* See apply_private.h. */
void
KdbLeaderLook(void)
{
	if (KdbMyLaneGroup == NULL)
		return;
	look_for_trouble(false);
	reap();
}

/* See apply_private.h. */
void
KdbLeaderBeforeWait(void)
{
	if (KdbMyLaneGroup == NULL)
		return;
	pg_atomic_write_u64(&KdbMyLaneGroup->leader_waits_for, KdbLeaderBusy() ? appended() : 0);
	pg_memory_barrier();
	if (!KdbLeaderBusy())
		take_origin();
}
