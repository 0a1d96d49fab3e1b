/*
 * main.c
 *		Command line of the simulator.
 *
 *	krahodb_sim [--seed N] [--histories N | --seconds N]	random histories
 *	krahodb_sim --without RULE ...							the same with a rule switched off
 *	krahodb_sim --mutations ...								each rule switched off must fail
 *	krahodb_sim --replay FILE...							scenarios
 *	krahodb_sim --rules										their names
 *
 * Output is TAP.  A failing history is made small and written to --output DIR (the
 * current one) as sim-SEED.txt.  Exit code 0: all as it should be.
 */
#include "sim.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../../common/merge_private.h"

typedef struct Rule
{
	const char *name;
	bool		server;			/* the server's part, not src/common's */
	uint64_t	bit;
	bool		scenario;		/* too rare at random: its scenario shows the need */
} Rule;

static const Rule rules[] = {
	{"dead-rows", false, KDB_WITHOUT_DEAD_ROWS},
	{"bury", false, KDB_WITHOUT_BURY},
	{"update-revives", false, KDB_WITHOUT_UPDATE_REVIVES},
	{"key-delete", false, KDB_WITHOUT_KEY_DELETE},
	{"node-order", false, KDB_WITHOUT_NODE_ORDER},
	{"loser-claims", false, KDB_WITHOUT_LOSER_CLAIMS},
	{"newer-claims", false, KDB_WITHOUT_NEWER_CLAIMS},
	{"beaten-claim", false, KDB_WITHOUT_BEATEN_CLAIM},
	{"own-version", false, KDB_WITHOUT_OWN_VERSION},
	{"share-ready", false, KDB_WITHOUT_SHARE_READY},
	{"share-seen", false, KDB_WITHOUT_SHARE_SEEN},
	{"fetched-version", false, KDB_WITHOUT_FETCHED_VERSION},
	{"fetched-once", false, KDB_WITHOUT_FETCHED_ONCE},
	{"fetched-last", false, KDB_WITHOUT_FETCHED_LAST},
	{"fetched-claim", false, KDB_WITHOUT_FETCHED_CLAIM},
	{"true-version", false, KDB_WITHOUT_TRUE_VERSION},
	{"loser-changes", false, KDB_WITHOUT_LOSER_CHANGES},
	{"dead-changes", false, KDB_WITHOUT_DEAD_CHANGES},
	{"history", false, KDB_WITHOUT_HISTORY},
	{"many-holders", false, KDB_WITHOUT_MANY_HOLDERS},
	{"keep-seen", false, KDB_WITHOUT_KEEP_SEEN},
	{"keep-written", false, KDB_WITHOUT_KEEP_WRITTEN},
	{"kept-claimed", false, KDB_WITHOUT_KEPT_CLAIMED, true},
	{"older-first", true, SIM_WITHOUT_OLDER_FIRST},
	{"claim-at-end", true, SIM_WITHOUT_CLAIM_AT_END},
	{"clock-commit", true, SIM_WITHOUT_CLOCK_COMMIT},
	{"clock-fetch", true, SIM_WITHOUT_CLOCK_FETCH},
	{"ahead", true, SIM_WITHOUT_AHEAD},
	{"restart", true, SIM_WITHOUT_RESTART},
	{"atomic", true, SIM_WITHOUT_ATOMIC},
	{"retention", true, SIM_WITHOUT_RETENTION},
	{"stability", true, SIM_WITHOUT_STABILITY},
	{"join-dead", true, SIM_WITHOUT_JOIN_DEAD},
	{"join-claims", true, SIM_WITHOUT_JOIN_CLAIMS},
	{"join-versions", true, SIM_WITHOUT_JOIN_VERSIONS},
	{"join-history", true, SIM_WITHOUT_JOIN_HISTORY},
	{"join-ahead", true, SIM_WITHOUT_JOIN_AHEAD, true},
	{"rewrite-history", true, SIM_WITHOUT_REWRITE_HISTORY},
	{"emptied", true, SIM_WITHOUT_EMPTIED},
	{"resync", true, SIM_WITHOUT_RESYNC},
	{"level", true, SIM_WITHOUT_LEVEL},
	{"lost-rows", true, SIM_WITHOUT_LOST_ROWS},
	{"new-identity", true, SIM_WITHOUT_NEW_IDENTITY, true}};

#define NRULES	((int) (sizeof(rules) / sizeof(rules[0])))

/* A mutation is looked for in at most so many histories. */
#define MUTATION_LIMIT	3000000

static uint64_t seed = 1;
static uint64_t histories = 100000;
static double seconds = 0;
static const char *output = ".";
static int	count = 0;
static int	failures = 0;

static void
result(bool passed, const char *name, const char *detail)
{
	printf("%sok %d - %s%s%s\n", passed ? "" : "not ", ++count, name, detail[0] ? ": " : "", detail);
	fflush(stdout);
	failures += !passed;
}

static double
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double) t.tv_sec + (double) t.tv_nsec / 1e9;
}

static void
without(const Rule *rule)
{
	SimWithout = 0;
	KdbMergeWithout = 0;
	if (rule == NULL)
		return;
	if (rule->server)
		SimWithout = rule->bit;
	else
		KdbMergeWithout = rule->bit;
}

static const Rule *
find_rule(const char *name)
{
	for (int i = 0; i < NRULES; i++)
	{
		if (strcmp(rules[i].name, name) == 0)
			return &rules[i];
	}
	fprintf(stderr, "there is no rule \"%s\"; see --rules\n", name);
	exit(2);
}

static void
write_failure(SimHistory *h, uint64_t s, const Rule *rule)
{
	char		path[1000];
	FILE	   *file;

	SimShrink(h);
	SimRun(h);
	if (rule)
		snprintf(path, sizeof(path), "%s/%s.txt", output, rule->name);
	else
		snprintf(path, sizeof(path), "%s/sim-%" PRIu64 ".txt", output, s);
	file = fopen(path, "w");
	if (file == NULL)
	{
		perror(path);
		exit(2);
	}
	fprintf(file, "# seed %" PRIu64 ": %s\n", s, sim->failure);
	if (rule)
		fprintf(file, "without %s\n", rule->name);
	SimWriteScenario(file, h);
	fclose(file);
	printf("# seed %" PRIu64 ": %s; %d events in %s\n", s, sim->failure, h->nevents, path);
	if (rule == NULL)
		SimWriteScenario(stdout, h);
}

/* ---- random histories -------------------------------------------------------------- */

static void
run_random(const Rule *rule)
{
	static SimHistory h;
	double		start = now();
	uint64_t	n = 0;
	char		detail[200];

	without(rule);
	printf("# seed %" PRIu64 "\n", seed);
	while (seconds > 0 ? ((n & 255) != 0 || now() - start < seconds) : n < histories)
	{
		SimRandomHistory(&h, seed + n);
		n++;
		if (!SimRun(&h))
		{
			write_failure(&h, seed + n - 1, rule);
			snprintf(detail, sizeof(detail), "failed with seed %" PRIu64 " after %" PRIu64 " histories", seed + n - 1, n);
			result(false, "random histories", detail);
			return;
		}
	}
	snprintf(detail, sizeof(detail), "%" PRIu64 ", %ld transactions, %ld conflicts, %ld fetches, %.0f histories a second",
			 n, sim->transactions, sim->conflicts, sim->fetches, (double) n / (now() - start));
	result(true, "random histories", detail);
}

/* Without the rule some history must fail. */
static void
run_mutation(const Rule *rule)
{
	static SimHistory h;
	char		detail[200];
	char		name[80];

	without(rule);
	snprintf(name, sizeof(name), "without %s", rule->name);
	for (uint64_t n = 0; n < MUTATION_LIMIT; n++)
	{
		SimRandomHistory(&h, seed + n);
		if (SimRun(&h))
			continue;
		write_failure(&h, seed + n, rule);
		snprintf(detail, sizeof(detail), "fails in history %" PRIu64 ", %d events are enough", n + 1, h.nevents);
		result(true, name, detail);
		return;
	}
	result(false, name, "no history fails");
}

/* ---- scenarios ------------------------------------------------------------------------ */

static void
replay(const char *path)
{
	static SimHistory h;
	FILE	   *file = fopen(path, "r");
	char		rule[40];
	bool		good;

	if (file == NULL)
	{
		perror(path);
		exit(2);
	}
	if (!SimReadScenario(file, &h, rule, sizeof(rule)))
	{
		result(false, path, "is not a scenario");
		fclose(file);
		return;
	}
	fclose(file);
	without(NULL);
	good = SimRun(&h);
	result(good, path, sim->failure);
	if (rule[0] == '\0')
		return;
	without(find_rule(rule));
	good = SimRun(&h);
	result(!good, rule, good ? "the history passes without this rule" : sim->failure);
}

/* ---- main ----------------------------------------------------------------------------- */

static const char *
argument(char **argv, int *i)
{
	if (argv[*i + 1] == NULL)
	{
		fprintf(stderr, "%s needs an argument\n", argv[*i]);
		exit(2);
	}
	return argv[++*i];
}

int
main(int argc, char **argv)
{
	const Rule *rule = NULL;
	bool		mutations = false;
	bool		replayed = false;

	for (int i = 1; i < argc; i++)
	{
		if (strcmp(argv[i], "--seed") == 0)
			seed = strtoull(argument(argv, &i), NULL, 10);
		else if (strcmp(argv[i], "--histories") == 0)
			histories = strtoull(argument(argv, &i), NULL, 10);
		else if (strcmp(argv[i], "--seconds") == 0)
			seconds = atof(argument(argv, &i));
		else if (strcmp(argv[i], "--output") == 0)
			output = argument(argv, &i);
		else if (strcmp(argv[i], "--without") == 0)
			rule = find_rule(argument(argv, &i));
		else if (strcmp(argv[i], "--mutations") == 0)
			mutations = true;
		else if (strcmp(argv[i], "--replay") == 0)
			replayed = true;
		else if (strcmp(argv[i], "--rules") == 0)
		{
			for (int r = 0; r < NRULES; r++)
				puts(rules[r].name);
			return 0;
		}
		else if (replayed && argv[i][0] != '-')
			replay(argv[i]);
		else
		{
			fprintf(stderr, "usage: see the head of src/test/sim/main.c\n");
			return 2;
		}
	}
	for (int r = 0; mutations && r < NRULES; r++)
	{
		if (!rules[r].scenario)
			run_mutation(&rules[r]);
	}
	if (!mutations && !replayed)
		run_random(rule);
	printf("1..%d\n", count);
	return failures == 0 ? 0 : 1;
}
