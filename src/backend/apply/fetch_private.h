/*
 * fetch_private.h
 *		Asking the publisher for a row, beside the stream.
 *
 *	fetch.c				which row, what the answer means
 *	fetch_connection.c	the connection: limited in time, interruptible
 */
#ifndef FETCH_PRIVATE_H
#define FETCH_PRIVATE_H

#include "postgres.h"
#include "nodes/pg_list.h"

/* What is fetched, for whoever reads an error. */
typedef struct KdbFetchSubject
{
	const char *nspname;		/* the publisher's table */
	const char *relname;
	const char *key;			/* "(id)=(5)" */
	const char *column;			/* of which a value is missing */
} KdbFetchSubject;

/* errdetail for an error about it; use it in ereport. */
extern int	KdbFetchErrorDetail(const KdbFetchSubject *subject);

/*
 * A fetch begins: what follows until KdbFetchDone must be over in
 * krahodb.fetch_timeout from now.  Connects if there is no connection yet.  An error that
 * is raised between the two leaves the connection to be closed by the next one.
 */
extern void KdbFetchBegin(const KdbFetchSubject *subject);

/*
 * Run a query there, parameters as text.  Result is a List, one entry for each row,
 * of arrays of ncolumns strings (NULL for null), palloc'd.
 */
extern List *KdbFetchQuery(const char *query, int nparams, const char *const *params,
						   int ncolumns);
extern void KdbFetchDone(void);

/* For how many ms the connection will be kept if nothing is fetched; -1 if there is none. */
extern long KdbFetchKeptFor(void);

/* Close it if it has not been used for long; not between KdbFetchBegin and KdbFetchDone. */
extern void KdbFetchCloseUnused(void);

#endif							/* FETCH_PRIVATE_H */
