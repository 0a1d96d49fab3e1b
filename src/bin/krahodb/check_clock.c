/*
 * check_clock.c
 *		Does the server's clock agree with ours?
 *
 * Conflicts are resolved by time, so the nodes' clocks must agree.  One server can
 * only be compared with the machine that asks: the server's time is read between
 * two readings of our own, and half the time between these is how far the
 * comparison can be wrong.  The best of a few rounds counts.
 *
 * On the server's own machine that says nothing, but the kernel can be asked if
 * something keeps its clock.  Its "no" is a warning, not a finding: inside a
 * container or a virtual machine the clock may well be kept from outside.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/timex.h>
#include <time.h>

#include "tool.h"

#define ROUNDS				5
#define SKEW_LIMIT_MS		500.0

static double
now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return now.tv_sec * 1000.0 + now.tv_nsec / 1e6;
}

/* Server's time minus ours, in ms; *uncertainty is what the round trip leaves open. */
static double
clock_difference(PGconn *conn, double *uncertainty)
{
	double		difference = 0;

	*uncertainty = -1;
	for (int i = 0; i < ROUNDS; i++)
	{
		double		before = now_ms();
		char	   *server = KdbQueryValue(conn,
										   "SELECT extract(epoch FROM pg_catalog.clock_timestamp()) * 1000");
		double		after = now_ms();
		double		half = (after - before) / 2;

		if (*uncertainty < 0 || half < *uncertainty)
		{
			*uncertainty = half;
			difference = strtod(server, NULL) - (before + half);
		}
	}
	return difference;
}

static bool
is_local(PGconn *conn)
{
	char	   *address = KdbQueryValue(conn, "SELECT pg_catalog.host(pg_catalog.inet_server_addr())");

	return address == NULL || strncmp(address, "127.", 4) == 0 || strcmp(address, "::1") == 0;
}

static void
warn_unsynchronised(void)
{
	struct timex state = {0};
	int			status = adjtimex(&state);

	if (status == TIME_ERROR || (status >= 0 && (state.status & STA_UNSYNC) != 0))
		KdbWarn("clock: the kernel says that nothing synchronises this machine's clock; "
				"run an NTP service (chrony, systemd-timesyncd), unless its host keeps it");
}

void
KdbCheckClock(KdbFindings *findings, PGconn *conn)
{
	double		uncertainty;
	double		difference = clock_difference(conn, &uncertainty);
	double		distance = difference < 0 ? -difference : difference;
	char	   *value = KdbFormat("%+.1f ms (+/- %.1f)", difference, uncertainty);

	if (distance - uncertainty > SKEW_LIMIT_MS)
		KdbMissing(findings, "clock", value,
				   KdbFormat("the server's clock is %.0f ms %s of this machine's",
							 distance, difference > 0 ? "ahead" : "behind"),
				   "synchronise the clocks of all nodes (chrony, systemd-timesyncd)");
	else
		KdbFound(findings, "clock", value);
	if (is_local(conn))
		warn_unsynchronised();
}
