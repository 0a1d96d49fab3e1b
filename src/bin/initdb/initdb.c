/*
 * initdb.c
 *		KrahoDB's initdb: the engine's initdb, and then KrahoDB's settings.
 *
 * All arguments go to the engine's initdb as they are; its output, prompts and
 * exit code are the user's.  If it has created a cluster, a marked block is
 * appended to the new postgresql.conf: the settings that make the server a
 * KrahoDB server and that multi-master replication needs.  Nothing else about
 * the cluster differs from the engine's: no extension, no other file.
 *
 * "Has created a cluster" is decided by looking, not by knowing the options:
 * the data directory had no PG_VERSION before and has one now.  So --show,
 * --sync-only, --help, --version and a failure leave everything alone, and so
 * does an option that a later release adds.  Only the data directory's name has
 * to be found among the arguments, by the same rules as the engine: the last
 * -D or --pgdata wins, then the first other argument, then PGDATA.
 *
 * The engine's initdb names the pg_ctl beside its own argv[0] in its closing
 * words.  It is started under our argv[0] where the engine's programs are linked
 * beside us, so that it names the one that the user has in PATH.  Where the engine was
 * installed with all its directories below one, it would look for its input files beside
 * that argv[0] too: it is told where they are, by an option in front of the user's.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "settings.h"

#define ENGINE_INITDB	ENGINE_BINDIR "/initdb"
#define PATH_LIMIT		4096

/* What KrahoDB must know of the engine's command line. */
typedef struct InitdbArguments
{
	const char *datadir;		/* NULL if there is none anywhere */
	bool		sync;			/* false with --no-sync */
} InitdbArguments;

static const struct option long_options[] = {
	{"pgdata", required_argument, NULL, 'D'},
	{"encoding", required_argument, NULL, 'E'},
	{"locale", required_argument, NULL, 1},
	{"lc-collate", required_argument, NULL, 1},
	{"lc-ctype", required_argument, NULL, 1},
	{"lc-monetary", required_argument, NULL, 1},
	{"lc-numeric", required_argument, NULL, 1},
	{"lc-time", required_argument, NULL, 1},
	{"lc-messages", required_argument, NULL, 1},
	{"no-locale", no_argument, NULL, 1},
	{"text-search-config", required_argument, NULL, 'T'},
	{"auth", required_argument, NULL, 'A'},
	{"auth-local", required_argument, NULL, 1},
	{"auth-host", required_argument, NULL, 1},
	{"pwprompt", no_argument, NULL, 'W'},
	{"pwfile", required_argument, NULL, 1},
	{"username", required_argument, NULL, 'U'},
	{"help", no_argument, NULL, '?'},
	{"version", no_argument, NULL, 'V'},
	{"debug", no_argument, NULL, 'd'},
	{"show", no_argument, NULL, 's'},
	{"noclean", no_argument, NULL, 'n'},
	{"no-clean", no_argument, NULL, 'n'},
	{"nosync", no_argument, NULL, 'N'},
	{"no-sync", no_argument, NULL, 'N'},
	{"no-instructions", no_argument, NULL, 1},
	{"sync-only", no_argument, NULL, 'S'},
	{"waldir", required_argument, NULL, 'X'},
	{"wal-segsize", required_argument, NULL, 1},
	{"data-checksums", no_argument, NULL, 'k'},
	{"allow-group-access", no_argument, NULL, 'g'},
	{"discard-caches", no_argument, NULL, 1},
	{"locale-provider", required_argument, NULL, 1},
	{"icu-locale", required_argument, NULL, 1},
	{NULL, 0, NULL, 0}
};

static pid_t child = 0;

static void fail(const char *fmt,...) __attribute__((noreturn, format(printf, 1, 2)));

static void
fail(const char *fmt,...)
{
	va_list		args;

	fflush(stdout);
	fprintf(stderr, "initdb: error: ");
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

/*
 * Read what we need from the command line.  A wrong command line is left for the
 * engine to refuse.
 */
static InitdbArguments
parse_arguments(int argc, char **argv)
{
	InitdbArguments result = {NULL, true};
	char	  **copy = malloc((argc + 1) * sizeof(char *));
	int			c;

	if (copy == NULL)
		fail("out of memory");
	/* getopt_long reorders what it is given; the engine gets the original. */
	memcpy(copy, argv, (argc + 1) * sizeof(char *));
	opterr = 0;
	while ((c = getopt_long(argc, copy, "A:dD:E:gkL:nNsST:U:WX:", long_options, NULL)) != -1)
	{
		if (c == 'D')
			result.datadir = optarg;
		else if (c == 'N')
			result.sync = false;
	}
	if (result.datadir == NULL && optind < argc)
		result.datadir = copy[optind];
	if (result.datadir == NULL)
		result.datadir = getenv("PGDATA");
	if (result.datadir != NULL && result.datadir[0] == '\0')
		result.datadir = NULL;
	free(copy);
	return result;
}

static void
join_path(char *result, const char *directory, const char *name)
{
	if (snprintf(result, PATH_LIMIT, "%s/%s", directory, name) >= PATH_LIMIT)
		fail("path name is too long: \"%s/%s\"", directory, name);
}

static bool
is_cluster(const char *datadir)
{
	char		path[PATH_LIMIT];

	if (datadir == NULL)
		return false;
	join_path(path, datadir, "PG_VERSION");
	return access(path, F_OK) == 0;
}

/* The name that the engine's initdb is started under; see the file's top. */
static char *
engine_argv0(char *own_argv0)
{
	char		self[PATH_LIMIT];
	char		server[PATH_LIMIT];
	ssize_t		length = readlink("/proc/self/exe", self, sizeof(self) - 1);
	char	   *slash;

	if (length <= 0)
		return ENGINE_INITDB;
	self[length] = '\0';
	slash = strrchr(self, '/');
	if (slash == NULL || strcmp(slash, "/initdb") != 0)
		return ENGINE_INITDB;
	*slash = '\0';
	join_path(server, self, "postgres");
	return access(server, X_OK) == 0 ? own_argv0 : ENGINE_INITDB;
}

/*
 * The engine's arguments: the user's, behind the directory of the input files (an -L of the
 * user's comes later and wins).  --help and --version count only where they are the first.
 */
static char **
engine_arguments(int argc, char **argv)
{
	char	  **result = malloc((argc + 3) * sizeof(char *));
	int			n = 0;

	if (result == NULL)
		fail("out of memory");
	result[n++] = engine_argv0(argv[0]);
	if (argc < 2 || (strcmp(argv[1], "--help") != 0 && strcmp(argv[1], "-?") != 0 &&
					 strcmp(argv[1], "--version") != 0 && strcmp(argv[1], "-V") != 0))
	{
		result[n++] = "-L";
		result[n++] = ENGINE_SHAREDIR;
	}
	memcpy(result + n, argv + 1, argc * sizeof(char *));
	return result;
}

static void
forward_signal(int signo)
{
	if (child > 0)
		kill(child, signo);
}

/*
 * Run the engine's initdb and return its exit code.  If it is killed by a
 * signal, so are we.
 */
static int
run_engine_initdb(int argc, char **argv)
{
	int			status;

	fflush(NULL);
	child = fork();
	if (child < 0)
		fail("could not start \"%s\": %s", ENGINE_INITDB, strerror(errno));
	if (child == 0)
	{
		execv(ENGINE_INITDB, engine_arguments(argc, argv));
		fail("could not execute \"%s\": %s", ENGINE_INITDB, strerror(errno));
	}

	/* The terminal signals both of us; the engine decides what it means. */
	signal(SIGINT, SIG_IGN);
	signal(SIGQUIT, SIG_IGN);
	signal(SIGTERM, forward_signal);
	signal(SIGHUP, forward_signal);
	while (waitpid(child, &status, 0) < 0)
	{
		if (errno != EINTR)
			fail("could not wait for \"%s\": %s", ENGINE_INITDB, strerror(errno));
	}
	if (WIFSIGNALED(status))
	{
		signal(WTERMSIG(status), SIG_DFL);
		raise(WTERMSIG(status));
	}
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

/* Append KrahoDB's block to the new cluster's postgresql.conf. */
static void
append_settings(const char *datadir, bool sync)
{
	char		path[PATH_LIMIT];
	FILE	   *conf;

	join_path(path, datadir, "postgresql.conf");
	conf = fopen(path, "a");
	if (conf == NULL)
		fail("could not open file \"%s\" for writing: %s", path, strerror(errno));
	KdbWriteSettings(conf, ENGINE_BINDIR "/postgres");
	if (fflush(conf) != 0 || (sync && fsync(fileno(conf)) != 0) || ferror(conf))
		fail("could not write file \"%s\": %s", path, strerror(errno));
	if (fclose(conf) != 0)
		fail("could not close file \"%s\": %s", path, strerror(errno));
	printf("\nKrahoDB's settings are at the end of %s\n", path);
}

int
main(int argc, char **argv)
{
	InitdbArguments arguments = parse_arguments(argc, argv);
	bool		existed = is_cluster(arguments.datadir);
	int			exit_code = run_engine_initdb(argc, argv);

	if (exit_code == 0 && !existed && is_cluster(arguments.datadir))
		append_settings(arguments.datadir, arguments.sync);
	return exit_code;
}
