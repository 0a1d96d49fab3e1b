/*
 * pg_ctl.c
 *		The engine's pg_ctl, whose "initdb" runs KrahoDB's initdb.
 *
 * The engine's pg_ctl looks for initdb beside itself, following links, and so
 * would create a plain PostgreSQL cluster when called through a link in
 * KrahoDB's bin directory.  Its -p option names the program to run, for "initdb"
 * as for "start": in that mode we put it in front, where a -p of the user's own
 * still wins.  Everything else is handed to the engine untouched.
 */
#include <errno.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ENGINE_PG_CTL	ENGINE_BINDIR "/pg_ctl"
#define PATH_LIMIT		4096

static const struct option long_options[] = {
	{"help", no_argument, NULL, '?'},
	{"version", no_argument, NULL, 'V'},
	{"log", required_argument, NULL, 'l'},
	{"mode", required_argument, NULL, 'm'},
	{"pgdata", required_argument, NULL, 'D'},
	{"options", required_argument, NULL, 'o'},
	{"silent", no_argument, NULL, 's'},
	{"timeout", required_argument, NULL, 't'},
	{"core-files", no_argument, NULL, 'c'},
	{"wait", no_argument, NULL, 'w'},
	{"no-wait", no_argument, NULL, 'W'},
	{NULL, 0, NULL, 0}
};

static void
fail(const char *what)
{
	fprintf(stderr, "pg_ctl: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* Is the first argument that is not an option "init" or "initdb"? */
static bool
is_initdb_mode(int argc, char **argv)
{
	char	  **copy = malloc((argc + 1) * sizeof(char *));

	if (copy == NULL)
		fail("out of memory");
	memcpy(copy, argv, (argc + 1) * sizeof(char *));
	opterr = 0;
	while (getopt_long(argc, copy, "cD:e:l:m:N:o:p:P:sS:t:U:wW", long_options, NULL) != -1)
		;
	if (optind >= argc)
		return false;
	return strcmp(copy[optind], "init") == 0 || strcmp(copy[optind], "initdb") == 0;
}

/* The initdb beside this program. */
static const char *
own_initdb(void)
{
	static char path[PATH_LIMIT];
	ssize_t		length = readlink("/proc/self/exe", path, sizeof(path) - sizeof("/initdb"));
	char	   *slash;

	if (length <= 0)
		fail("could not find own path");
	path[length] = '\0';
	slash = strrchr(path, '/');
	memcpy(slash, "/initdb", sizeof("/initdb"));
	return path;
}

int
main(int argc, char **argv)
{
	char	  **arguments = malloc((argc + 3) * sizeof(char *));
	int			n = 0;

	if (arguments == NULL)
		fail("out of memory");
	/* The engine finds its other programs from argv[0]. */
	arguments[n++] = ENGINE_PG_CTL;
	if (is_initdb_mode(argc, argv))
	{
		arguments[n++] = "-p";
		arguments[n++] = (char *) own_initdb();
	}
	for (int i = 1; i <= argc; i++)
		arguments[n++] = argv[i];	/* with the closing NULL */

	execv(ENGINE_PG_CTL, arguments);
	fail("could not execute \"" ENGINE_PG_CTL "\"");
}
