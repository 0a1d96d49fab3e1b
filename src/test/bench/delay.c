/*
 * delay.c
 *		How long after its commit does a row show at the subscriber?
 *
 *	delay PUBLISHER SUBSCRIBER PAUSE COUNT
 *
 * Inserts COUNT rows, one after the other, into the table "delay" of the publisher,
 * PAUSE microseconds after the last one has arrived.  An ALWAYS trigger of the
 * subscriber's table notifies the channel "delay" of it, so the time is from when
 * COMMIT has returned to when the notification, which is sent behind the
 * subscriber's commit, has come to a client.  Prints the sorted delays, in
 * milliseconds, a line each.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "libpq-fe.h"

#define ARRIVAL_LIMIT_MS	60000

static void
die(const char *what)
{
	fprintf(stderr, "delay: %s\n", what);
	exit(1);
}

static double
now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000.0 + now.tv_nsec / 1e6;
}

static PGconn *
connect_to(const char *conninfo)
{
	PGconn	   *conn = PQconnectdb(conninfo);

	if (PQstatus(conn) != CONNECTION_OK)
		die(PQerrorMessage(conn));
	return conn;
}

static void
run(PGconn *conn, const char *command)
{
	PGresult   *result = PQexec(conn, command);

	if (PQresultStatus(result) != PGRES_COMMAND_OK)
		die(PQerrorMessage(conn));
	PQclear(result);
}

/* Until the row of that number has been notified. */
static void
wait_for(PGconn *conn, int number)
{
	for (;;)
	{
		struct pollfd fd = {PQsocket(conn), POLLIN, 0};
		PGnotify   *notify;

		while ((notify = PQnotifies(conn)) != NULL)
		{
			int			arrived = atoi(notify->extra);

			PQfreemem(notify);
			if (arrived == number)
				return;
		}
		if (poll(&fd, 1, ARRIVAL_LIMIT_MS) == 0)
			die("a row did not arrive");
		if (PQconsumeInput(conn) == 0)
			die(PQerrorMessage(conn));
	}
}

static int
compare(const void *a, const void *b)
{
	double		x = *(const double *) a;
	double		y = *(const double *) b;

	return (x > y) - (x < y);
}

int
main(int argc, char **argv)
{
	PGconn	   *publisher;
	PGconn	   *subscriber;
	double	   *delays;
	int			count;

	if (argc != 5 || (count = atoi(argv[4])) <= 0)
		die("usage: delay PUBLISHER SUBSCRIBER PAUSE COUNT");
	publisher = connect_to(argv[1]);
	subscriber = connect_to(argv[2]);
	delays = calloc((size_t) count, sizeof(double));
	if (delays == NULL)
		die("out of memory");
	run(subscriber, "LISTEN delay");
	run(publisher, "TRUNCATE delay");
	for (int i = 0; i < count; i++)
	{
		char		command[100];
		double		committed;

		usleep((useconds_t) atoi(argv[3]));
		snprintf(command, sizeof(command), "INSERT INTO delay VALUES (%d)", i);
		run(publisher, command);
		committed = now_ms();
		wait_for(subscriber, i);
		delays[i] = now_ms() - committed;
	}
	qsort(delays, (size_t) count, sizeof(double), compare);
	for (int i = 0; i < count; i++)
		printf("%.3f\n", delays[i]);
	PQfinish(publisher);
	PQfinish(subscriber);
	return 0;
}
