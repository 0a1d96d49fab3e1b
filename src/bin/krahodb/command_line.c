/*
 * command_line.c
 *		Messages, strings and neighbours of the krahodb tool.
 */
#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tool.h"

#define PATH_LIMIT	4096

static void message(const char *severity, const char *fmt, va_list args) __attribute__((format(printf, 2, 0)));

static void
message(const char *severity, const char *fmt, va_list args)
{
	fflush(stdout);
	fprintf(stderr, "krahodb: %s: ", severity);
	vfprintf(stderr, fmt, args);
	fputc('\n', stderr);
}

void
KdbWarn(const char *fmt,...)
{
	va_list		args;

	va_start(args, fmt);
	message("warning", fmt, args);
	va_end(args);
}

void
KdbDie(KdbExitCode code, const char *fmt,...)
{
	va_list		args;

	va_start(args, fmt);
	message("error", fmt, args);
	va_end(args);
	exit(code);
}

char *
KdbFormat(const char *fmt,...)
{
	char	   *result;
	va_list		args;
	int			length;

	va_start(args, fmt);
	length = vasprintf(&result, fmt, args);
	va_end(args);
	if (length < 0)
		KdbDie(KDB_EXIT_USAGE, "out of memory");
	return result;
}

const char *
KdbPlainText(const char *string)
{
	static const char digits[] = "0123456789ABCDEF";
	char	   *result = malloc(strlen(string) * 4 + 1);
	char	   *end = result;

	if (result == NULL)
		KdbDie(KDB_EXIT_USAGE, "out of memory");
	for (const unsigned char *p = (const unsigned char *) string; *p != '\0'; p++)
	{
		if (*p >= 0x20 && *p != 0x7f)
		{
			*end++ = *p;
			continue;
		}
		*end++ = '\\';
		*end++ = 'x';
		*end++ = digits[*p >> 4];
		*end++ = digits[*p & 15];
	}
	*end = '\0';
	return result;
}

char *
KdbSiblingProgram(const char *name)
{
	char		self[PATH_LIMIT];
	ssize_t		length = readlink("/proc/self/exe", self, sizeof(self) - 1);

	if (length <= 0)
		KdbDie(KDB_EXIT_USAGE, "could not find own path: %s", strerror(errno));
	self[length] = '\0';
	*strrchr(self, '/') = '\0';
	return KdbFormat("%s/%s", self, name);
}

/* Values of long options, which no letter has. */
enum
{
	OPTION_JSON = 1,
	OPTION_HELP
};

/* The option that getopt_long has refused: of letters in one argument it is one. */
static const char *
refused_option(char **argv)
{
	return optopt > OPTION_HELP ? KdbFormat("-%c", optopt) : argv[optind - 1];
}

const char *
KdbReadArguments(int argc, char **argv, void (*print_help) (void), bool *json)
{
	static const struct option long_options[] = {
		{"json", no_argument, NULL, OPTION_JSON},
		{"help", no_argument, NULL, OPTION_HELP},
		{NULL, 0, NULL, 0}
	};
	int			c;

	*json = false;
	opterr = 0;
	while ((c = getopt_long(argc, argv, "h", long_options, NULL)) != -1)
	{
		if (c == OPTION_JSON)
			*json = true;
		else if (c == OPTION_HELP || c == 'h' || optopt == '?')
		{
			print_help();
			exit(KDB_EXIT_OK);
		}
		else
			KdbDie(KDB_EXIT_USAGE, "unknown option \"%s\"; try \"krahodb %s --help\"", refused_option(argv), argv[0]);
	}
	if (argc - optind > 1)
		KdbDie(KDB_EXIT_USAGE, "too many arguments; put a connection string with blanks in quotes");
	return optind < argc ? argv[optind] : NULL;
}
