/*
 * connection.c
 *		Asking one peer, without ever waiting for it.
 *
 * The worker has many peers, and one that does not answer must not keep it from
 * hearing the others.  So connections are libpq's non-blocking ones, and each
 * step does what can be done at once:
 *
 *	CLOSED		after a failure, until it is time for the next attempt
 *	CONNECTING	handshake and authentication
 *	IDLE		connected, nothing asked
 *	ASKING		waiting for the answer
 *
 * Connecting and asking have a limit, PEER_TIMEOUT.  (libpq resolves host names
 * without one; that is the resolver's.)
 *
 * An ordinary connection is used, not a replication connection, so that peers
 * need no more walsenders.  It is closed after CONNECTION_AGE, because a server
 * that is shut down in "smart" mode waits for its clients.
 *
 * THE QUESTION is one statement that any PostgreSQL from 10 on understands, with
 * or without KrahoDB, in any database and for any role.  The order of its parts
 * matters, see peers.c: the time is that of the message's arrival, so before the
 * snapshot; the LSN is read after it.  OFFSET 0 keeps the inner query apart, so
 * that it is computed first.
 *
 * A snapshot does not know of running transactions that are younger than all that have ended.  So
 * the age of an old transaction id, which is a difference to the next one, tells how far ids had been given out.
 *
 * Two settings say the same of KrahoDB peers: whoever reads krahodb.frontiers_now
 * also has the peer look at once how far it is itself (worker.c).
 */
#include "postgres.h"

#include "access/transam.h"
#include "pgstat.h"
#include "storage/fd.h"
#include "utils/timestamp.h"

#include "horizon_private.h"

#define PEER_TIMEOUT		10000	/* ms */
#define CONNECTION_AGE		30000	/* ms */
#define FIRST_PAUSE			1000	/* ms; until the next attempt, doubled each time */
#define LONGEST_PAUSE		30000

#define ANSWER_COLUMNS		8

#define QUESTION(setting) \
	"SELECT s.*, pg_catalog.pg_current_wal_insert_lsn()" \
	" FROM (SELECT (EXTRACT(epoch FROM pg_catalog.statement_timestamp())" \
	" OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8," \
	" pg_catalog.current_setting('" setting "', true)," \
	" pg_catalog.txid_snapshot_xmin(pg_catalog.txid_current_snapshot())," \
	" pg_catalog.txid_snapshot_xmax(pg_catalog.txid_current_snapshot())," \
	" pg_catalog.current_setting('krahodb.version_num', true)," \
	" pg_catalog.current_setting('krahodb.node', true)," \
	" pg_catalog.age('3'::pg_catalog.xid)" \
	" OFFSET 0) s"

static const char *const question = QUESTION("krahodb.frontiers");
static const char *const urging_question = QUESTION("krahodb.frontiers_now");

/* See horizon_private.h. */
void
KdbPeerConnectionClose(PeerConnection *connection)
{
	if (connection->conn != NULL)
	{
		PQfinish(connection->conn);
		ReleaseExternalFD();
	}
	connection->conn = NULL;
	connection->phase = PHASE_CLOSED;
}

/* The first line of a message, which may be in connection->error already. */
static void
keep_error(PeerConnection *connection, const char *message)
{
	size_t		len = strcspn(message, "\n");

	if (len >= sizeof(connection->error))
		len = sizeof(connection->error) - 1;
	memmove(connection->error, message, len);
	connection->error[len] = '\0';
	if (len == 0)
		strlcpy(connection->error, "unknown error", sizeof(connection->error));
}

static void
failed(PeerConnection *connection, const char *message, KdbTicks now)
{
	int			pause = FIRST_PAUSE;

	keep_error(connection, message);
	KdbPeerConnectionClose(connection);
	for (int i = 0; i < connection->failures && pause < LONGEST_PAUSE; i++)
		pause *= 2;
	connection->connect_at = now + Min(pause, LONGEST_PAUSE);
	connection->failures++;
}

/* libpq would print it, at each connection that is made. */
static void
note_notice(void *arg, const char *message)
{
	elog(DEBUG1, "publisher says: %s", message);
}

static void
start_connecting(PeerConnection *connection, const char *conninfo, KdbTicks now)
{
	const char *const keywords[] = {"dbname", "fallback_application_name", NULL};
	const char *const values[] = {conninfo, "krahodb horizon", NULL};

	ReserveExternalFD();
	connection->conn = PQconnectStartParams(keywords, values, 1);
	if (connection->conn == NULL)
	{
		ReleaseExternalFD();
		failed(connection, "out of memory", now);
		return;
	}
	PQsetNoticeProcessor(connection->conn, note_notice, NULL);
	connection->phase = PHASE_CONNECTING;
	connection->deadline = now + PEER_TIMEOUT;
	connection->polling = PGRES_POLLING_WRITING;
	if (PQstatus(connection->conn) == CONNECTION_BAD)
		failed(connection, PQerrorMessage(connection->conn), now);
}

/* Not called unless the socket may be ready: libpq might block otherwise. */
static void
go_on_connecting(PeerConnection *connection, KdbTicks now)
{
	connection->polling = PQconnectPoll(connection->conn);
	if (connection->polling == PGRES_POLLING_FAILED)
		failed(connection, PQerrorMessage(connection->conn), now);
	else if (connection->polling == PGRES_POLLING_OK)
	{
		connection->phase = PHASE_IDLE;
		connection->connected_at = now;
		PQsetnonblocking(connection->conn, 1);
	}
}

static void
send_question(PeerConnection *connection, KdbTicks now)
{
	if (PQsendQuery(connection->conn, connection->urge ? urging_question : question))
	{
		connection->phase = PHASE_ASKING;
		connection->deadline = now + PEER_TIMEOUT;
	}
	else
		failed(connection, PQerrorMessage(connection->conn), now);
}

/* The next transaction id there: not before the snapshot's xmax; age is that of id 3, and may have overflowed. */
static uint64
next_xid(uint64 snapshot_xmax, const char *age)
{
	uint32		next = FirstNormalTransactionId + (uint32) strtol(age, NULL, 10);
	uint32		ahead = next - (uint32) snapshot_xmax;

	return (int32) ahead > 0 ? snapshot_xmax + ahead : snapshot_xmax;
}

static bool
read_answer(const PGresult *result, PeerAnswer *answer)
{
	const TimestampTz epoch = (TimestampTz) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;
	uint64		snapshot_xmax;
	uint32		hi,
		lo;

	if (PQntuples(result) != 1 || PQnfields(result) != ANSWER_COLUMNS)
		return false;
	answer->now = strtoll(PQgetvalue(result, 0, 0), NULL, 10) - epoch;
	answer->frontiers_cut = strlcpy(answer->frontiers, PQgetvalue(result, 0, 1),
									sizeof(answer->frontiers)) >= sizeof(answer->frontiers);
	answer->snapshot_xmin = strtoull(PQgetvalue(result, 0, 2), NULL, 10);
	snapshot_xmax = strtoull(PQgetvalue(result, 0, 3), NULL, 10);
	answer->is_krahodb = !PQgetisnull(result, 0, 4);
	strlcpy(answer->server, PQgetvalue(result, 0, 5), sizeof(answer->server));
	answer->next_xid = next_xid(snapshot_xmax, PQgetvalue(result, 0, 6));
	if (sscanf(PQgetvalue(result, 0, 7), "%X/%X", &hi, &lo) != 2)
		return false;
	answer->insert_lsn = ((uint64) hi) << 32 | lo;
	return answer->snapshot_xmin > 0 && snapshot_xmax > 0 && answer->now > 0;
}

/* Take what has arrived; true when the answer is complete. */
static bool
take_results(PeerConnection *connection, KdbTicks now)
{
	while (!PQisBusy(connection->conn))
	{
		PGresult   *result = PQgetResult(connection->conn);
		bool		ok;

		if (result == NULL)
			return true;
		ok = PQresultStatus(result) == PGRES_TUPLES_OK && read_answer(result, &connection->answer);
		if (PQresultStatus(result) != PGRES_TUPLES_OK)
			keep_error(connection, PQresultErrorMessage(result));
		else
			keep_error(connection, "unexpected answer");
		PQclear(result);
		if (!ok)
		{
			failed(connection, connection->error, now);
			return false;
		}
	}
	return false;
}

/* Connected: anything new on the socket? */
static bool
receive(PeerConnection *connection, KdbTicks now, PeerAnswer *answer)
{
	if (PQconsumeInput(connection->conn) == 0)
	{
		failed(connection, PQerrorMessage(connection->conn), now);
		return false;
	}
	if (connection->phase != PHASE_ASKING)
		return false;
	if (PQflush(connection->conn) < 0)
	{
		failed(connection, PQerrorMessage(connection->conn), now);
		return false;
	}
	if (!take_results(connection, now))
		return false;
	connection->phase = PHASE_IDLE;
	connection->failures = 0;
	connection->error[0] = '\0';
	*answer = connection->answer;
	return true;
}

static bool
socket_is_ready(const PeerConnection *connection)
{
	pgsocket	socket;
	KdbTicks	until;
	int			events = KdbPeerConnectionEvents(connection, &socket, &until);
	WaitEventSet *set = CreateWaitEventSet(CurrentMemoryContext, 1);
	WaitEvent	event;
	int			n;

	AddWaitEventToSet(set, events, socket, NULL, NULL);
	n = WaitEventSetWait(set, 0, &event, 1, PG_WAIT_EXTENSION);
	FreeWaitEventSet(set);
	return n > 0;
}

/* See horizon_private.h. */
bool
KdbPeerConnectionStep(PeerConnection *connection, const char *conninfo, bool ask,
					  KdbTicks now, PeerAnswer *answer)
{
	bool		answered = false;

	switch (connection->phase)
	{
		case PHASE_CLOSED:
			if (ask && now >= connection->connect_at)
				start_connecting(connection, conninfo, now);
			return false;
		case PHASE_CONNECTING:
			if (socket_is_ready(connection))
				go_on_connecting(connection, now);
			break;
		case PHASE_IDLE:
		case PHASE_ASKING:
			answered = receive(connection, now, answer);
			break;
	}

	if ((connection->phase == PHASE_CONNECTING || connection->phase == PHASE_ASKING) &&
		now >= connection->deadline)
		failed(connection, connection->phase == PHASE_ASKING ? "timed out waiting for an answer" : "timed out connecting", now);
	if (connection->phase == PHASE_IDLE && now >= connection->connected_at + CONNECTION_AGE)
		KdbPeerConnectionClose(connection);
	if (connection->phase == PHASE_IDLE && ask && !answered)
		send_question(connection, now);
	return answered;
}

/* See horizon_private.h. */
int
KdbPeerConnectionEvents(const PeerConnection *connection, pgsocket *socket, KdbTicks *until)
{
	switch (connection->phase)
	{
		case PHASE_CLOSED:
			*until = connection->connect_at;
			return 0;
		case PHASE_CONNECTING:
			*until = connection->deadline;
			*socket = PQsocket(connection->conn);
			return connection->polling == PGRES_POLLING_READING ? WL_SOCKET_READABLE : WL_SOCKET_WRITEABLE;
		case PHASE_IDLE:
			*until = connection->connected_at + CONNECTION_AGE;
			*socket = PQsocket(connection->conn);
			return WL_SOCKET_READABLE;
		case PHASE_ASKING:
			*until = connection->deadline;
			*socket = PQsocket(connection->conn);
			return WL_SOCKET_READABLE;
	}
	pg_unreachable();
}
