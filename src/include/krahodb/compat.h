/*
 * compat.h
 *		The only place that knows which PostgreSQL version this is.
 *
 * The newest signature is the rule; older ones are shimmed under a Kdb name.
 * A macro never redefines a name of the engine.
 */
#ifndef KRAHODB_COMPAT_H
#define KRAHODB_COMPAT_H

#include "postgres.h"

#define KDB_MIN_PG_VERSION_NUM	150000
#define KDB_MAX_PG_VERSION_NUM	159999

#if PG_VERSION_NUM < KDB_MIN_PG_VERSION_NUM || PG_VERSION_NUM > KDB_MAX_PG_VERSION_NUM
#error "KrahoDB supports PostgreSQL 15; this is another major version"
#endif

#define KDB_PG_MAJOR	(PG_VERSION_NUM / 10000)

/* Does each asynchronous commit wake the WAL writer that has not flushed a full page? */
#define KDB_ASYNC_COMMIT_WAKES_WAL_WRITER	(PG_VERSION_NUM < 170000)

/* Pin a block of the relation's main fork if it is still in that buffer. */
#if PG_VERSION_NUM >= 160000
#define KdbReadRecentBuffer(rel, block, buffer) \
	ReadRecentBuffer((rel)->rd_locator, MAIN_FORKNUM, (block), (buffer))
#else
#define KdbReadRecentBuffer(rel, block, buffer) \
	ReadRecentBuffer((rel)->rd_node, MAIN_FORKNUM, (block), (buffer))
#endif

/* A function for CREATE FUNCTION: PG_FUNCTION_INFO_V1, which exports it only from 16 on. */
#define KDB_SQL_FUNCTION(name) \
	extern PGDLLEXPORT Datum name(PG_FUNCTION_ARGS); \
	PG_FUNCTION_INFO_V1(name)

#endif							/* KRAHODB_COMPAT_H */
