/*
 * client.c
 *		Clients of the chaos test: random transactions until told to stop.
 *
 *	client CONNINFO TEMPLATES SEED NODE SESSIONS PREFIX PAUSE OPTIONS
 *
 * Starts SESSIONS processes.  Each runs transactions of one to six statements
 * chosen from the file TEMPLATES ("weight<TAB>statement" a line), and in each
 * inserts one row (node, session, seq) into the table "event", seq being counted
 * up.  What became of each transaction goes to the file PREFIX.session, one line
 * "state seq":
 *
 *	A	acknowledged: COMMIT has returned
 *	F	failed: the server said that it rolled back
 *	U	unknown: the connection broke while it was being committed
 *
 * A connection that breaks earlier is F, too.  In statements stand for
 *
 *	{rand N}	a number from 0 to N - 1
 *	{word}		eight random hexadecimal digits
 *	{tag}		node, session and seq: who wrote this
 *	{node}		NODE
 *
 * SIGTERM ends it when the transactions that run have ended.  PAUSE is the most
 * microseconds between two transactions.  OPTIONS are letters:
 *
 *	s	some statements are in a savepoint, which is released or rolled back
 *	p	some transactions are prepared, then committed or rolled back.  One that is
 *		left prepared is committed afterwards.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif
#include <sys/wait.h>
#include <unistd.h>

#include "libpq-fe.h"

#define MAX_TEMPLATES	200
#define MAX_STATEMENTS	6
#define MAX_SESSIONS	64
#define STATEMENT_SIZE	4096
#define RECONNECT_MS	100
#define PREPARED_MS		100

typedef struct Template
{
	int			weight;
	char	   *text;
} Template;

static Template templates[MAX_TEMPLATES];
static int	ntemplates;
static int	total_weight;

static const char *conninfo;
static const char *node;
static int	session;
static long seq;
static int	pause_us;
static bool with_savepoints;
static bool with_prepare;
static char left_prepared[200];	/* name of a transaction that may be, or "" */
static uint64_t random_state;
static volatile sig_atomic_t stopping = 0;

static void
stop(int signo)
{
	stopping = 1;
}

static void
fail(const char *what)
{
	fprintf(stderr, "chaos client: %s: %s\n", what, strerror(errno));
	exit(2);
}

/* splitmix64: small, and the same everywhere */
static uint64_t
next_random(void)
{
	uint64_t	z = (random_state += UINT64_C(0x9e3779b97f4a7c15));

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

static unsigned
random_below(unsigned n)
{
	return n == 0 ? 0 : (unsigned) (next_random() % n);
}

static void
wait_ms(int ms)
{
	poll(NULL, 0, ms);
}

static void
read_templates(const char *file)
{
	char		line[STATEMENT_SIZE];
	FILE	   *in = fopen(file, "r");

	if (in == NULL)
		fail(file);
	while (fgets(line, sizeof(line), in) != NULL)
	{
		char	   *tab = strchr(line, '\t');

		line[strcspn(line, "\n")] = '\0';
		if (tab == NULL || ntemplates == MAX_TEMPLATES)
			continue;
		*tab = '\0';
		templates[ntemplates].weight = atoi(line);
		templates[ntemplates].text = strdup(tab + 1);
		total_weight += templates[ntemplates++].weight;
	}
	fclose(in);
	if (total_weight <= 0)
	{
		fprintf(stderr, "chaos client: no statements in %s\n", file);
		exit(2);
	}
}

static const char *
choose_template(void)
{
	int			at = (int) random_below((unsigned) total_weight);

	for (int i = 0; i < ntemplates; i++)
	{
		at -= templates[i].weight;
		if (at < 0)
			return templates[i].text;
	}
	return templates[0].text;
}

/* The value of what stands between the braces. */
static int
expand_one(const char *name, char *out, size_t size)
{
	if (strncmp(name, "rand ", 5) == 0)
		return snprintf(out, size, "%u", random_below((unsigned) atoi(name + 5)));
	if (strncmp(name, "word", 4) == 0)
		return snprintf(out, size, "%08x", random_below(0xffffffffu));
	if (strncmp(name, "tag", 3) == 0)
		return snprintf(out, size, "%s.%d.%ld", node, session, seq);
	return snprintf(out, size, "%s", node);
}

static void
expand(const char *text, char *out, size_t size)
{
	size_t		used = 0;

	while (*text && used + 64 < size)
	{
		if (*text != '{')
			out[used++] = *text++;
		else
		{
			used += (size_t) expand_one(text + 1, out + used, size - used);
			text += strcspn(text, "}");
			text += *text == '}';
		}
	}
	out[used] = '\0';
}

static bool
run(PGconn *conn, const char *sql)
{
	PGresult   *result = PQexec(conn, sql);
	ExecStatusType status = PQresultStatus(result);

	PQclear(result);
	return status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK;
}

/* Run what ends the transaction.  COMMIT that answers with ROLLBACK has not committed. */
static char
finish(PGconn *conn, const char *sql)
{
	PGresult   *result = PQexec(conn, sql);
	char		state = 'U';

	if (PQresultStatus(result) == PGRES_COMMAND_OK)
		state = strncmp(PQcmdStatus(result), "ROLLBACK", 8) != 0 ? 'A' : 'F';
	else if (PQstatus(conn) == CONNECTION_OK &&
			 PQtransactionStatus(conn) == PQTRANS_IDLE)
		state = 'F';
	PQclear(result);
	return state;
}

static char
prepare_and_finish(PGconn *conn)
{
	char		statement[STATEMENT_SIZE];
	const char *how = random_below(5) == 0 ? "ROLLBACK" : "COMMIT";
	char		state;

	snprintf(left_prepared, sizeof(left_prepared), "%s.%d.%ld", node, session, seq);
	snprintf(statement, sizeof(statement), "PREPARE TRANSACTION '%s'", left_prepared);
	state = finish(conn, statement);
	if (state == 'F')
		left_prepared[0] = '\0';
	if (state != 'A')
		return state;
	wait_ms((int) random_below(PREPARED_MS));
	snprintf(statement, sizeof(statement), "%s PREPARED '%s'", how, left_prepared);
	if (!run(conn, statement))
		return 'U';				/* it is still prepared, or the connection has broken */
	left_prepared[0] = '\0';
	return *how == 'C' ? 'A' : 'F';
}

static void
finish_left_prepared(PGconn *conn)
{
	char		statement[STATEMENT_SIZE];

	if (left_prepared[0] == '\0')
		return;
	snprintf(statement, sizeof(statement), "COMMIT PREPARED '%s'", left_prepared);
	(void) run(conn, statement);
	if (PQstatus(conn) == CONNECTION_OK)
		left_prepared[0] = '\0';
}

/* A statement in a savepoint: if it fails, or by chance, it is taken back. */
static bool
run_in_savepoint(PGconn *conn, const char *sql)
{
	bool		good;

	if (!run(conn, "SAVEPOINT s"))
		return false;
	good = run(conn, sql);
	return run(conn, good && random_below(3) > 0 ? "RELEASE s" : "ROLLBACK TO s");
}

static char
transaction(PGconn *conn)
{
	char		statement[STATEMENT_SIZE];
	int			n = 1 + (int) random_below(MAX_STATEMENTS);
	bool		good;

	good = run(conn, "BEGIN");
	for (int i = 0; good && i < n; i++)
	{
		expand(choose_template(), statement, sizeof(statement));
		if (with_savepoints && random_below(4) == 0)
			good = run_in_savepoint(conn, statement);
		else
			good = run(conn, statement);
	}
	if (good)
	{
		snprintf(statement, sizeof(statement), "INSERT INTO event VALUES ('%s', %d, %ld)",
				 node, session, seq);
		good = run(conn, statement);
	}
	if (good && with_prepare && random_below(10) == 0)
		return prepare_and_finish(conn);
	if (good)
		return finish(conn, "COMMIT");
	if (PQstatus(conn) == CONNECTION_OK)
		run(conn, "ROLLBACK");
	return 'F';
}

static PGconn *
connect_again(PGconn *conn)
{
	if (conn != NULL)
		PQfinish(conn);
	conn = PQconnectdb(conninfo);
	if (PQstatus(conn) == CONNECTION_OK)
		return conn;
	PQfinish(conn);
	wait_ms(RECONNECT_MS);
	return NULL;
}

static void
run_session(const char *prefix, uint64_t seed)
{
	char		file[1024];
	PGconn	   *conn = NULL;
	FILE	   *out;

	random_state = seed * 1000003 + (uint64_t) session;
	snprintf(file, sizeof(file), "%s.%d", prefix, session);
	out = fopen(file, "w");
	if (out == NULL)
		fail(file);
	while (!stopping)
	{
		if (conn == NULL || PQstatus(conn) != CONNECTION_OK)
		{
			conn = connect_again(conn);
			continue;
		}
		finish_left_prepared(conn);
		seq++;
		fprintf(out, "%c %ld\n", transaction(conn), seq);
		if (pause_us > 0)
			wait_ms((int) random_below((unsigned) pause_us + 1) / 1000);
	}
	if (conn != NULL)
	{
		finish_left_prepared(conn);
		PQfinish(conn);
	}
	if (fclose(out) != 0)
		fail(file);
}

/* A test that was broken off needs no clients. */
static void
end_with_parent(void)
{
#ifdef __linux__
	prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
}

int
main(int argc, char **argv)
{
	struct sigaction action = {0};
	pid_t		pids[MAX_SESSIONS];
	int			sessions;
	int			status = 0;

	if (argc != 9)
	{
		fprintf(stderr, "usage: client CONNINFO TEMPLATES SEED NODE SESSIONS PREFIX PAUSE OPTIONS\n");
		return 2;
	}
	conninfo = argv[1];
	read_templates(argv[2]);
	node = argv[4];
	sessions = atoi(argv[5]);
	end_with_parent();
	pause_us = atoi(argv[7]);
	with_savepoints = strchr(argv[8], 's') != NULL;
	with_prepare = strchr(argv[8], 'p') != NULL;
	if (sessions < 1 || sessions > MAX_SESSIONS)
		sessions = MAX_SESSIONS;
	action.sa_handler = stop;
	sigaction(SIGTERM, &action, NULL);
	signal(SIGPIPE, SIG_IGN);
	for (session = 0; session < sessions; session++)
	{
		pids[session] = fork();
		if (pids[session] < 0)
			fail("fork");
		if (pids[session] == 0)
		{
			end_with_parent();
			run_session(argv[6], strtoull(argv[3], NULL, 10));
			return 0;
		}
	}
	for (int i = 0; i < sessions; i++)
	{
		int			one;

		while (waitpid(pids[i], &one, 0) < 0 && errno == EINTR)
		{
			for (int j = 0; j < sessions; j++)
				kill(pids[j], SIGTERM);
		}
		status |= one;
	}
	return status == 0 ? 0 : 1;
}
