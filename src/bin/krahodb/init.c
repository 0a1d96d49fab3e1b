/*
 * init.c
 *		krahodb init: KrahoDB's initdb under another name.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "tool.h"

KdbExitCode
KdbInitCommand(int argc, char **argv)
{
	char	   *initdb = KdbSiblingProgram("initdb");

	(void) argc;
	argv[0] = initdb;
	execv(initdb, argv);
	KdbDie(KDB_EXIT_USAGE, "could not execute \"%s\": %s", initdb, strerror(errno));
}
