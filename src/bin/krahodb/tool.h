/*
 * tool.h
 *		What the parts of the krahodb tool share.
 *
 * Answers go to stdout, everything else to stderr.  Memory is not freed: the tool
 * runs one command and ends.
 */
#ifndef KRAHODB_BIN_TOOL_H
#define KRAHODB_BIN_TOOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "libpq-fe.h"

/* Exit codes, the same for all commands; scripts rely on them. */
typedef enum KdbExitCode
{
	KDB_EXIT_OK = 0,
	KDB_EXIT_USAGE = 1,			/* wrong command line, or a failure of our own */
	KDB_EXIT_CONNECTION = 2,	/* cannot connect, or the connection was lost */
	KDB_EXIT_MISSING = 3		/* the answer is "no": something is missing */
} KdbExitCode;

/* A subcommand.  run gets its own name as argv[0]. */
typedef struct KdbCommand
{
	const char *name;
	const char *arguments;
	const char *summary;
	KdbExitCode (*run) (int argc, char **argv);
} KdbCommand;

extern KdbExitCode KdbCheckCommand(int argc, char **argv);
extern KdbExitCode KdbInitCommand(int argc, char **argv);
extern KdbExitCode KdbStatusCommand(int argc, char **argv);

/* command_line.c: messages and strings */
extern void KdbWarn(const char *fmt,...) __attribute__((format(printf, 1, 2)));
extern void KdbDie(KdbExitCode code, const char *fmt,...) __attribute__((noreturn, format(printf, 2, 3)));
extern char *KdbFormat(const char *fmt,...) __attribute__((format(printf, 1, 2)));

/*
 * The string with its control characters written as \xNN, for a line of text: names may have
 * line ends, and what a terminal takes for commands.
 */
extern const char *KdbPlainText(const char *string);

/* The program of that name in the directory of this one. */
extern char *KdbSiblingProgram(const char *name);

/*
 * Read the arguments [--json] [CONNINFO] of a command; returns the latter, or NULL.
 * Ends the tool after --help, or if they are wrong.
 */
extern const char *KdbReadArguments(int argc, char **argv, void (*print_help) (void), bool *json);

/* json.c: a quoted and escaped JSON string; NULL gives null. */
extern void KdbJsonString(FILE *out, const char *string);

/*
 * findings.c: what a command found out, item by item.  ok, or missing says what is
 * not as it should be and action what to do about it.
 */
typedef struct KdbFinding
{
	const char *name;
	bool		ok;
	const char *value;			/* what was found; may be NULL */
	const char *missing;
	const char *action;
} KdbFinding;

#define KDB_MAX_FINDINGS	64

typedef struct KdbFindings
{
	int			count;
	int			nmissing;
	KdbFinding	items[KDB_MAX_FINDINGS];
} KdbFindings;

extern void KdbFound(KdbFindings *findings, const char *name, const char *value);
extern void KdbMissing(KdbFindings *findings, const char *name, const char *value,
					   const char *missing, const char *action);
extern void KdbPrintFindings(const KdbFindings *findings, const char *command, bool json);

/* connection.c: NULL with the reason, one line, if the server cannot be reached */
extern PGconn *KdbConnect(const char *conninfo, char **error);

/*
 * Queries; these end the tool if the query fails.  The value is the first column of the
 * first row, or NULL.
 */
extern PGresult *KdbQuery(PGconn *conn, const char *query);
extern char *KdbQueryValue(PGconn *conn, const char *query);

/* check_*.c: groups of items */
extern void KdbCheckCapacity(KdbFindings *findings, PGconn *conn);
extern void KdbCheckClock(KdbFindings *findings, PGconn *conn);
extern void KdbCheckTables(KdbFindings *findings, PGconn *conn);

#endif							/* KRAHODB_BIN_TOOL_H */
