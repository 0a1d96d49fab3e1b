/*
 * fault.c
 *		Stopping, failing or waiting at named points, in test builds only.
 *
 * Some branches are taken only if a process dies between two given lines.  A
 * test names such a point in the GUC krahodb.fault_point, says what is to happen
 * there, and reads the server log to learn that it did:
 *		LOG:  fault point "apply-before-commit" reached: wait
 * The setting is looked at each time the point is reached, so a test can arm and
 * disarm it by reloading the configuration.
 */
#include "postgres.h"

#include "krahodb/fault.h"

#ifdef KRAHODB_FAULT_POINTS

#include <signal.h>
#include <unistd.h>

#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/latch.h"
#include "utils/guc.h"

#define LOOK_AGAIN_MS	500

char	   *KdbFaultPointSetting = NULL;
int			KdbTestApplyWorkers = 1;
int			KdbTestAwaitSeen = KDB_AWAIT_MS;

/*
 * The action if the setting arms the point, else NULL.  With "name@number=action"
 * a point is armed from the time on that it has been reached that often.
 */
static const char *
armed_action(const char *name, uint64 reached)
{
	const char *rest = KdbFaultPointSetting;
	size_t		len = strlen(name);

	if (rest == NULL || strncmp(rest, name, len) != 0)
		return NULL;
	rest += len;
	if (*rest == '@')
	{
		char	   *end;

		if (strtoul(rest + 1, &end, 10) > reached)
			return NULL;
		rest = end;
	}
	return *rest == '=' ? rest + 1 : NULL;
}

/* How often this process has been at the point that the setting names. */
static uint64
count_reached(const char *name)
{
	static char counted[NAMEDATALEN];
	static uint64 reached = 0;

	if (KdbFaultPointSetting == NULL ||
		strncmp(KdbFaultPointSetting, name, strlen(name)) != 0)
		return reached;
	if (strcmp(counted, name) != 0)
	{
		strlcpy(counted, name, sizeof(counted));
		reached = 0;
	}
	return ++reached;
}

static void
reload_if_asked(void)
{
	if (!ConfigReloadPending)
		return;
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
}

/*
 * Until the setting is another one.  Reloads the configuration as main loops do,
 * first of all: that may have been asked for while the process waited for something
 * else, which took the latch.  And now and then without being asked: a background worker that was
 * forked just before the reload ignores the signal, as the engine's own start of one does.
 */
static void
wait_until_disarmed(void)
{
	char	   *armed = pstrdup(KdbFaultPointSetting);

	reload_if_asked();
	while (KdbFaultPointSetting != NULL && strcmp(KdbFaultPointSetting, armed) == 0)
	{
		int			rc = WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
								   LOOK_AGAIN_MS, PG_WAIT_EXTENSION);

		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		reload_if_asked();
		if (rc & WL_TIMEOUT)
			ProcessConfigFile(PGC_SIGHUP);
	}
	pfree(armed);
}

void
KdbFaultPoint(const char *name)
{
	const char *action = armed_action(name, count_reached(name));

	if (action == NULL)
		return;

	ereport(LOG,
			(errmsg("fault point \"%s\" reached: %s", name, action)));
	if (strcmp(action, "kill") == 0)
		kill(getpid(), SIGKILL);
	else if (strcmp(action, "crash") == 0)
		ereport(PANIC,
				(errmsg("crash at fault point \"%s\"", name)));
	else if (strcmp(action, "error") == 0)
		ereport(ERROR,
				(errmsg("error at fault point \"%s\"", name)));
	else if (strcmp(action, "wait") == 0)
		wait_until_disarmed();
	else
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unrecognized action of fault point \"%s\": \"%s\"", name, action)));
}

/* Is what the point guards to be left out? */
bool
KdbFaultSkips(const char *name)
{
	const char *action = armed_action(name, 0);

	return action != NULL && strcmp(action, "skip") == 0;
}

#endif							/* KRAHODB_FAULT_POINTS */
