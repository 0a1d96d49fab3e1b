/*
 * main.c
 *		The krahodb tool: finds the subcommand and runs it.
 *
 * A command is a row in the table below and a function that returns an exit code.
 */
#include <errno.h>
#include <string.h>

#include "tool.h"

static const KdbCommand commands[] = {
	{"check", "[--json] [CONNINFO]",
		"tell what a running server lacks for multi-master replication",
	KdbCheckCommand},
	{"init", "[INITDB-OPTION]... [DATADIR]",
		"create a cluster with KrahoDB's settings (runs KrahoDB's initdb)",
	KdbInitCommand},
	{"status", "[--json] [CONNINFO]",
		"show the subscriptions of a database and the progress of initial copies",
	KdbStatusCommand},
};

#define NCOMMANDS	(sizeof(commands) / sizeof(commands[0]))

static void
print_help(void)
{
	printf("krahodb is the command line tool of KrahoDB, PostgreSQL with multi-master replication.\n\n"
		   "Usage:\n");
	for (size_t i = 0; i < NCOMMANDS; i++)
		printf("  krahodb %s %s\n      %s\n", commands[i].name, commands[i].arguments, commands[i].summary);
	printf("\n"
		   "  krahodb COMMAND --help      about one command\n"
		   "  krahodb --version\n"
		   "\n"
		   "Answers are written to stdout, everything else to stderr.\n"
		   "Exit codes: 0 all is well, 1 wrong usage or failure, 2 no connection, 3 something is missing.\n");
}

/* An answer that has not arrived is none: the exit code says so. */
static KdbExitCode
finish(KdbExitCode code)
{
	if (fflush(stdout) != 0 || ferror(stdout))
		KdbDie(KDB_EXIT_USAGE, "could not write the answer: %s", strerror(errno));
	return code;
}

int
main(int argc, char **argv)
{
	if (argc < 2)
	{
		fprintf(stderr, "krahodb: no command given\nTry \"krahodb --help\" for more information.\n");
		return KDB_EXIT_USAGE;
	}
	if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-?") == 0 || strcmp(argv[1], "help") == 0)
	{
		print_help();
		return finish(KDB_EXIT_OK);
	}
	if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0)
	{
		puts("krahodb (KrahoDB) " PACKAGE_VERSION);
		return finish(KDB_EXIT_OK);
	}
	for (size_t i = 0; i < NCOMMANDS; i++)
	{
		if (strcmp(argv[1], commands[i].name) == 0)
			return finish(commands[i].run(argc - 1, argv + 1));
	}
	fprintf(stderr, "krahodb: unknown command \"%s\"\nTry \"krahodb --help\" for more information.\n", argv[1]);
	return KDB_EXIT_USAGE;
}
