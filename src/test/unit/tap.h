/*
 * tap.h
 *		What a unit test needs to speak TAP, so that prove can run it.
 *
 * Header only: a unit test is one file, linked with src/common.
 */
#ifndef TAP_H
#define TAP_H

#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static int	tap_count = 0;
static int	tap_failures = 0;

/* One test point.  Returns whether it passed. */
__attribute__((format(printf, 2, 3), unused))
static bool
ok(bool passed, const char *format,...)
{
	va_list		args;

	printf("%sok %d - ", passed ? "" : "not ", ++tap_count);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
	if (!passed)
		tap_failures++;
	return passed;
}

/* A remark for whoever reads the output of a failure. */
__attribute__((format(printf, 1, 2), unused))
static void
diag(const char *format,...)
{
	va_list		args;

	fputs("# ", stdout);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
}

/* Print the plan; the exit code of main. */
static int
done_testing(void)
{
	printf("1..%d\n", tap_count);
	return tap_failures == 0 ? 0 : 1;
}

/*
 * Random numbers that are the same on each machine (splitmix64).  The seed is
 * KRAHODB_TEST_SEED from the environment, else fixed; a test that uses it prints
 * it.
 */
static uint64_t random_state = 20180731;

__attribute__((unused))
static void
random_init(void)
{
	const char *seed = getenv("KRAHODB_TEST_SEED");

	if (seed != NULL)
		random_state = strtoull(seed, NULL, 10);
	diag("KRAHODB_TEST_SEED=%" PRIu64, random_state);
}

__attribute__((unused))
static uint64_t
random_u64(void)
{
	uint64_t	z = (random_state += UINT64_C(0x9e3779b97f4a7c15));

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

/* Uniform enough in 0 .. n - 1. */
__attribute__((unused))
static uint32_t
random_below(uint32_t n)
{
	return (uint32_t) (random_u64() % n);
}

#endif							/* TAP_H */
