/*
 * copy_shared.c
 *		Shared memory of initial copies, and the meters of their rate.
 *
 * A rate limit is kept by the clock, not by a budget: every piece that is
 * received moves the subscription's paid_until forward by the time that it may
 * take, and whoever received it waits until then.  So any number of workers
 * share a limit without knowing of each other, no piece is free, and what is not
 * used is not saved up.  When the limit changes, what was paid with the old one
 * is forgotten.  The clock is the monotonic one: if the other is set back by an hour,
 * what was paid before would have to be waited for that long.
 */
#include "postgres.h"

#include "portability/instr_time.h"
#include "replication/logicallauncher.h"
#include "storage/shmem.h"
#include "storage/spin.h"

#include "krahodb/copy_shared.h"

KdbCopyShared *KdbCopies = NULL;

int			KdbCopyWorkersPerTable = 2;
int			KdbCopyRangeSize = 64 * 1024;
int			KdbCopyRateLimit = 0;

static Size
meters_offset(void)
{
	return MAXALIGN(sizeof(KdbCopyShared));
}

static Size
copies_offset(void)
{
	return MAXALIGN(add_size(meters_offset(),
							 mul_size(max_logical_replication_workers, sizeof(KdbCopyMeter))));
}

Size
KdbCopySharedSize(void)
{
	return MAXALIGN(add_size(copies_offset(),
							 mul_size(max_logical_replication_workers, sizeof(KdbSharedCopy))));
}

void
KdbCopySharedStart(void)
{
	bool		found;

	KdbCopies = ShmemInitStruct("KrahoDB copies", KdbCopySharedSize(), &found);
	if (found)
		return;
	memset(KdbCopies, 0, KdbCopySharedSize());
	SpinLockInit(&KdbCopies->meter_mutex);
	KdbCopies->ncopies = max_logical_replication_workers;
	KdbCopies->meters = (KdbCopyMeter *) ((char *) KdbCopies + meters_offset());
	KdbCopies->copies = (KdbSharedCopy *) ((char *) KdbCopies + copies_offset());
	for (int i = 0; i < KdbCopies->ncopies; i++)
	{
		SpinLockInit(&KdbCopies->copies[i].mutex);
		pg_atomic_init_u64(&KdbCopies->copies[i].rows, 0);
		pg_atomic_init_u64(&KdbCopies->copies[i].bytes, 0);
	}
}

/* See copy_shared.h. */
int64
KdbCopyMeterNow(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return (int64) INSTR_TIME_GET_MICROSEC(now);
}

/*
 * The subscription's meter, or one that says nothing.  There is one: not more
 * subscriptions than entries copy at a time.  meter_mutex is held.
 */
static KdbCopyMeter *
find_meter(Oid subid, int64 now)
{
	KdbCopyMeter *idle = NULL;

	for (int i = 0; i < KdbCopies->ncopies; i++)
	{
		KdbCopyMeter *meter = &KdbCopies->meters[i];

		if (meter->subid == subid)
			return meter;
		if (meter->paid_until <= now)
			idle = meter;
	}
	if (idle == NULL)
		idle = &KdbCopies->meters[0];
	idle->subid = subid;
	idle->rate = 0;
	return idle;
}

int64
KdbCopyMeterPay(Oid subid, int64 bytes)
{
	int64		now = KdbCopyMeterNow();
	int			rate = KdbCopyRateLimit;
	KdbCopyMeter *meter;
	int64		wait;

	if (rate == 0)
		return 0;

	SpinLockAcquire(&KdbCopies->meter_mutex);
	meter = find_meter(subid, now);
	if (meter->rate != rate || meter->paid_until < now)
		meter->paid_until = now;
	meter->rate = rate;
	meter->paid_until += bytes * USECS_PER_SEC / ((int64) rate * 1024);
	wait = meter->paid_until - now;
	SpinLockRelease(&KdbCopies->meter_mutex);
	return wait;
}
