/*
 * stream_private.h
 *		What the files of stream/ share.  Nobody else includes this.
 *
 *	publisher.c		what the publisher is; wraps WalReceiverFunctions
 *	query.c			commands and queries on a replication connection
 *	slot.c			CREATE_REPLICATION_SLOT
 *	start.c			START_REPLICATION
 */
#ifndef STREAM_PRIVATE_H
#define STREAM_PRIVATE_H

#include "postgres.h"

#include "lib/stringinfo.h"

#include "krahodb/stream.h"

/* The engine's own functions, as libpqwalreceiver gave them. */
extern WalReceiverFunctionsType KdbEngineWalReceiver;

/* What is known of a connection; false if it is not a logical one. */
extern bool KdbStreamKnown(WalReceiverConn *conn, KdbPublisher *publisher);

/* KdbStreamCheckOptions without what can be done without (compression). */
extern void KdbStreamCheckFilters(const KdbPublisher *publisher,
								  const KdbSubscriptionOptions *options);

/* What the publisher said. */
typedef struct KdbStreamError
{
	int			sqlstate;		/* 0 if it did not say */
	char	   *message;		/* palloc'd */
} KdbStreamError;

/* As KdbStreamQuery, but returns false and sets *error if it fails. */
extern bool KdbStreamTryQuery(WalReceiverConn *conn, const char *query,
							  int ncolumns, List **rows, KdbStreamError *error);

/* Append a string in quotes, for the replication grammar: quotes are doubled. */
extern void KdbAppendQuoted(StringInfo buf, const char *string, char quote);

#endif							/* STREAM_PRIVATE_H */
