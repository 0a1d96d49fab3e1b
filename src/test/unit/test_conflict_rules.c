/*
 * test_conflict_rules.c
 *		Every row of the rule table under every resolver.
 *
 * The expected actions are written down here as one letter per resolver, in the
 * order of KdbResolver, so that the table below can be read against the one in
 * doc/internals/conflict-rules.md:
 *
 *	letter	I insert, U overwrite, D delete, S skip, E error
 *	case	upper: reported as the row's conflict; lower: no conflict
 *	.		this resolver may not be set for the deciding type
 */
#include "krahodb/conflict_rules.h"

#include <string.h>

#include "tap.h"

#define LIVE	KDB_ROW_LIVE
#define DEAD	KDB_ROW_DEAD
#define ABSENT	KDB_ROW_ABSENT

#define SAME_ORIGIN			1
#define SAME_TRANSACTION	2
#define VERSION_UNKNOWN		4

/* The incoming version against the local one. */
#define OLDER	(-1)
#define EQUAL	0
#define NEWER	1

typedef struct rule_test
{
	KdbOperation operation;
	KdbRowState state;
	int			order;
	int			flags;
	KdbConflictType decided_by;
	KdbConflictType conflict;	/* reported */

	/* ENGINE ERROR SKIP INSERT APPLY_REMOTE KEEP_LOCAL LAST_UPD. FIRST_UPD. */
	const char *expected;
} rule_test;

static const rule_test rule_tests[] = {
	{KDB_INSERT, ABSENT, NEWER, 0, KDB_CONFLICT_INSERT_EXISTS, KDB_CONFLICT_NONE, "iii.iiii"},

	{KDB_INSERT, LIVE, NEWER, 0, KDB_CONFLICT_INSERT_EXISTS, KDB_CONFLICT_INSERT_EXISTS, "iES.USUS"},
	{KDB_INSERT, LIVE, EQUAL, 0, KDB_CONFLICT_INSERT_EXISTS, KDB_CONFLICT_INSERT_EXISTS, "iES.USUU"},
	{KDB_INSERT, LIVE, OLDER, 0, KDB_CONFLICT_INSERT_EXISTS, KDB_CONFLICT_INSERT_EXISTS, "iES.USSU"},
	{KDB_INSERT, LIVE, NEWER, SAME_ORIGIN, KDB_CONFLICT_INSERT_EXISTS, KDB_CONFLICT_INSERT_EXISTS, "iES.USUS"},
	{KDB_INSERT, LIVE, OLDER, SAME_ORIGIN, KDB_CONFLICT_INSERT_EXISTS, KDB_CONFLICT_INSERT_EXISTS, "iES.USSU"},
	{KDB_INSERT, LIVE, OLDER, VERSION_UNKNOWN, KDB_CONFLICT_INSERT_EXISTS, KDB_CONFLICT_INSERT_EXISTS, "iES.USUS"},
	{KDB_INSERT, LIVE, EQUAL, SAME_ORIGIN | SAME_TRANSACTION, KDB_CONFLICT_INSERT_EXISTS, KDB_CONFLICT_NONE, "iuu.uuuu"},

	{KDB_INSERT, DEAD, NEWER, 0, KDB_CONFLICT_INSERT_EXISTS, KDB_CONFLICT_UPDATE_DELETED, "iii.iiii"},
	{KDB_INSERT, DEAD, EQUAL, 0, KDB_CONFLICT_INSERT_EXISTS, KDB_CONFLICT_UPDATE_DELETED, "iii.iiii"},
	{KDB_INSERT, DEAD, OLDER, 0, KDB_CONFLICT_INSERT_EXISTS, KDB_CONFLICT_UPDATE_DELETED, "iii.iiSi"},
	{KDB_INSERT, DEAD, OLDER, SAME_ORIGIN, KDB_CONFLICT_INSERT_EXISTS, KDB_CONFLICT_UPDATE_DELETED, "iii.iiSi"},
	{KDB_INSERT, DEAD, OLDER, VERSION_UNKNOWN, KDB_CONFLICT_INSERT_EXISTS, KDB_CONFLICT_UPDATE_DELETED, "iii.iiii"},
	{KDB_INSERT, DEAD, EQUAL, SAME_ORIGIN | SAME_TRANSACTION, KDB_CONFLICT_INSERT_EXISTS, KDB_CONFLICT_UPDATE_DELETED, "iii.iiii"},
	{KDB_INSERT, DEAD, OLDER, SAME_TRANSACTION, KDB_CONFLICT_INSERT_EXISTS, KDB_CONFLICT_NONE, "iii.iiii"},

	{KDB_UPDATE, ABSENT, NEWER, 0, KDB_CONFLICT_UPDATE_MISSING, KDB_CONFLICT_UPDATE_MISSING, "sESI...."},

	{KDB_UPDATE, LIVE, NEWER, 0, KDB_CONFLICT_UPDATE_ORIGIN_DIFFERS, KDB_CONFLICT_UPDATE_ORIGIN_DIFFERS, "uES.USUS"},
	{KDB_UPDATE, LIVE, EQUAL, 0, KDB_CONFLICT_UPDATE_ORIGIN_DIFFERS, KDB_CONFLICT_UPDATE_ORIGIN_DIFFERS, "uES.USUU"},
	{KDB_UPDATE, LIVE, OLDER, 0, KDB_CONFLICT_UPDATE_ORIGIN_DIFFERS, KDB_CONFLICT_UPDATE_ORIGIN_DIFFERS, "uES.USSU"},
	{KDB_UPDATE, LIVE, NEWER, SAME_ORIGIN, KDB_CONFLICT_UPDATE_ORIGIN_DIFFERS, KDB_CONFLICT_NONE, "uuu.uuuu"},
	{KDB_UPDATE, LIVE, OLDER, SAME_ORIGIN, KDB_CONFLICT_UPDATE_ORIGIN_DIFFERS, KDB_CONFLICT_NONE, "uuu.uuuu"},
	{KDB_UPDATE, LIVE, EQUAL, SAME_TRANSACTION, KDB_CONFLICT_UPDATE_ORIGIN_DIFFERS, KDB_CONFLICT_NONE, "uuu.uuuu"},
	{KDB_UPDATE, LIVE, OLDER, VERSION_UNKNOWN, KDB_CONFLICT_UPDATE_ORIGIN_DIFFERS, KDB_CONFLICT_NONE, "uuu.uuuu"},

	{KDB_UPDATE, DEAD, NEWER, 0, KDB_CONFLICT_UPDATE_DELETED, KDB_CONFLICT_UPDATE_DELETED, "sESI..IS"},
	{KDB_UPDATE, DEAD, EQUAL, 0, KDB_CONFLICT_UPDATE_DELETED, KDB_CONFLICT_UPDATE_DELETED, "sESI..II"},
	{KDB_UPDATE, DEAD, OLDER, 0, KDB_CONFLICT_UPDATE_DELETED, KDB_CONFLICT_UPDATE_DELETED, "sESI..SI"},
	{KDB_UPDATE, DEAD, NEWER, SAME_ORIGIN, KDB_CONFLICT_UPDATE_DELETED, KDB_CONFLICT_UPDATE_DELETED, "sESI..IS"},
	{KDB_UPDATE, DEAD, OLDER, VERSION_UNKNOWN, KDB_CONFLICT_UPDATE_DELETED, KDB_CONFLICT_UPDATE_DELETED, "sESI..IS"},
	{KDB_UPDATE, DEAD, EQUAL, SAME_ORIGIN | SAME_TRANSACTION, KDB_CONFLICT_UPDATE_DELETED, KDB_CONFLICT_NONE, "siii..ii"},

	{KDB_DELETE, ABSENT, NEWER, 0, KDB_CONFLICT_DELETE_MISSING, KDB_CONFLICT_DELETE_MISSING, "sES....."},

	{KDB_DELETE, LIVE, NEWER, 0, KDB_CONFLICT_DELETE_ORIGIN_DIFFERS, KDB_CONFLICT_DELETE_ORIGIN_DIFFERS, "dES.DSDS"},
	{KDB_DELETE, LIVE, EQUAL, 0, KDB_CONFLICT_DELETE_ORIGIN_DIFFERS, KDB_CONFLICT_DELETE_ORIGIN_DIFFERS, "dES.DSDD"},
	{KDB_DELETE, LIVE, OLDER, 0, KDB_CONFLICT_DELETE_ORIGIN_DIFFERS, KDB_CONFLICT_DELETE_ORIGIN_DIFFERS, "dES.DSSD"},
	{KDB_DELETE, LIVE, NEWER, SAME_ORIGIN, KDB_CONFLICT_DELETE_ORIGIN_DIFFERS, KDB_CONFLICT_NONE, "ddd.dddd"},
	{KDB_DELETE, LIVE, OLDER, SAME_ORIGIN, KDB_CONFLICT_DELETE_ORIGIN_DIFFERS, KDB_CONFLICT_NONE, "ddd.dddd"},
	{KDB_DELETE, LIVE, EQUAL, SAME_TRANSACTION, KDB_CONFLICT_DELETE_ORIGIN_DIFFERS, KDB_CONFLICT_NONE, "ddd.dddd"},
	{KDB_DELETE, LIVE, OLDER, VERSION_UNKNOWN, KDB_CONFLICT_DELETE_ORIGIN_DIFFERS, KDB_CONFLICT_NONE, "ddd.dddd"},

	{KDB_DELETE, DEAD, NEWER, 0, KDB_CONFLICT_DELETE_MISSING, KDB_CONFLICT_DELETE_MISSING, "sES....."},
	{KDB_DELETE, DEAD, OLDER, 0, KDB_CONFLICT_DELETE_MISSING, KDB_CONFLICT_DELETE_MISSING, "sES....."},
	{KDB_DELETE, DEAD, NEWER, SAME_ORIGIN, KDB_CONFLICT_DELETE_MISSING, KDB_CONFLICT_NONE, "sss....."},
	{KDB_DELETE, DEAD, EQUAL, SAME_TRANSACTION, KDB_CONFLICT_DELETE_MISSING, KDB_CONFLICT_NONE, "sss....."},
};

/* A write against the holders of its unique values; letters as above. */
typedef struct unique_test
{
	KdbOperation operation;
	const char *holders;		/* the incoming version is + newer, - older, =
								 * equal; ? holder's version unknown */
	KdbConflictType conflict;
	const char *expected;
} unique_test;

static const unique_test unique_tests[] = {
	{KDB_INSERT, "+", KDB_CONFLICT_INSERT_EXISTS, "iES.ISIS"},
	{KDB_INSERT, "=", KDB_CONFLICT_INSERT_EXISTS, "iES.ISII"},
	{KDB_INSERT, "-", KDB_CONFLICT_INSERT_EXISTS, "iES.ISSI"},
	{KDB_INSERT, "?", KDB_CONFLICT_INSERT_EXISTS, "iES.ISIS"},
	{KDB_UPDATE, "+", KDB_CONFLICT_UPDATE_EXISTS, "uES.USUS"},
	{KDB_UPDATE, "=", KDB_CONFLICT_UPDATE_EXISTS, "uES.USUU"},
	{KDB_UPDATE, "-", KDB_CONFLICT_UPDATE_EXISTS, "uES.USSU"},
	{KDB_UPDATE, "?", KDB_CONFLICT_UPDATE_EXISTS, "uES.USUS"},
	{KDB_INSERT, "++", KDB_CONFLICT_MULTIPLE_UNIQUE_CONFLICTS, "iES.ISIS"},
	{KDB_INSERT, "+-", KDB_CONFLICT_MULTIPLE_UNIQUE_CONFLICTS, "iES.ISSS"},
	{KDB_INSERT, "-+", KDB_CONFLICT_MULTIPLE_UNIQUE_CONFLICTS, "iES.ISSS"},
	{KDB_INSERT, "--", KDB_CONFLICT_MULTIPLE_UNIQUE_CONFLICTS, "iES.ISSI"},
	{KDB_UPDATE, "++=", KDB_CONFLICT_MULTIPLE_UNIQUE_CONFLICTS, "uES.USUS"},
	{KDB_UPDATE, "--=", KDB_CONFLICT_MULTIPLE_UNIQUE_CONFLICTS, "uES.USSU"},
	{KDB_UPDATE, "++-", KDB_CONFLICT_MULTIPLE_UNIQUE_CONFLICTS, "uES.USSS"},
	{KDB_UPDATE, "?-", KDB_CONFLICT_MULTIPLE_UNIQUE_CONFLICTS, "uES.USSS"},
	{KDB_UPDATE, "+?", KDB_CONFLICT_MULTIPLE_UNIQUE_CONFLICTS, "uES.USUS"},
};

static const KdbVersion incoming = {1000, 7};

/* A local version that the incoming one is NEWER, EQUAL or OLDER than. */
static KdbVersion
version_at(int order)
{
	KdbVersion	v = incoming;

	v.ts -= order;
	return v;
}

/*
 * One type gets the resolver under test; all others one that decides otherwise,
 * so that a wrong type shows.
 */
static KdbResolvers
resolvers_with(KdbConflictType type, KdbResolver resolver)
{
	KdbResolvers resolvers;
	KdbResolver poison = resolver == KDB_RESOLVER_ERROR ? KDB_RESOLVER_SKIP : KDB_RESOLVER_ERROR;

	memset(resolvers.by_type, poison, sizeof(resolvers.by_type));
	resolvers.by_type[type] = (uint8_t) resolver;
	return resolvers;
}

/* The decision as a letter, checking the rest of it against the row's conflict. */
static char
decision_letter(KdbDecision decision, KdbConflictType conflict, KdbResolver resolver)
{
	static const char upper[] = {
		[KDB_ACTION_INSERT] = 'I',
		[KDB_ACTION_UPDATE] = 'U',
		[KDB_ACTION_DELETE] = 'D',
		[KDB_ACTION_SKIP] = 'S',
		[KDB_ACTION_ERROR] = 'E',
	};
	char		letter = upper[decision.action];

	if (decision.conflict == KDB_CONFLICT_NONE)
		return (char) (letter + ('a' - 'A'));
	if (decision.conflict != conflict || decision.resolver != resolver)
		return '!';
	return letter;
}

/* A letter is expected exactly where the resolver may be set. */
static bool
setting_expected(KdbConflictType type, int resolver, char expected)
{
	if (resolver == KDB_RESOLVER_ENGINE)
		return expected != '.';
	return KdbResolverAllowed(type, (KdbResolver) resolver) == (expected != '.');
}

/*
 * instead_seen: a row that the writer has seen counts as one that its own node has
 * written.
 */
static void
test_rule(const rule_test *test, bool instead_seen)
{
	static const char *const operations[] = {"INSERT", "UPDATE", "DELETE"};
	static const char *const states[] = {"absent", "live", "dead"};
	char		actual[KDB_RESOLVERS + 1] = "";
	bool		settings = true;
	KdbLocalRow local = {0};

	local.state = test->state;
	local.version = version_at(test->order);
	local.version_known = (test->flags & VERSION_UNKNOWN) == 0;
	local.same_origin = (test->flags & SAME_ORIGIN) != 0 && !instead_seen;
	local.seen = (test->flags & SAME_ORIGIN) != 0 && instead_seen;
	local.same_transaction = (test->flags & SAME_TRANSACTION) != 0;

	for (int i = 0; i < KDB_RESOLVERS; i++)
	{
		KdbResolver resolver = (KdbResolver) i;
		KdbResolvers resolvers = resolvers_with(test->decided_by, resolver);

		settings &= setting_expected(test->decided_by, i, test->expected[i]);
		if (test->expected[i] == '.')
			actual[i] = '.';
		else
			actual[i] = decision_letter(KdbResolveRow(test->operation, incoming, &local, &resolvers),
										test->conflict, resolver);
	}

	if (!ok(settings && strcmp(actual, test->expected) == 0,
			"%s on %s row, version %+d%s%s%s%s", operations[test->operation],
			states[test->state], test->order,
			local.version_known ? "" : " unknown",
			local.same_origin ? ", same origin" : "",
			local.seen ? ", seen" : "",
			local.same_transaction ? ", same transaction" : ""))
		diag("expected %s, got %s", test->expected, actual);
}

static void
test_unique(const unique_test *test)
{
	char		actual[KDB_RESOLVERS + 1] = "";
	KdbLocalRow holders[8] = {{0}};
	int			nholders = (int) strlen(test->holders);

	for (int i = 0; i < nholders; i++)
	{
		char		order = test->holders[i];

		holders[i].state = KDB_ROW_LIVE;
		holders[i].version_known = order != '?';
		holders[i].version = version_at(order == '+' ? NEWER : order == '-' ? OLDER : EQUAL);
	}

	for (int i = 0; i < KDB_RESOLVERS; i++)
	{
		KdbResolver resolver = (KdbResolver) i;
		KdbResolvers resolvers = resolvers_with(test->conflict, resolver);

		if (test->expected[i] == '.')
			actual[i] = '.';
		else
			actual[i] = decision_letter(KdbResolveUnique(test->operation, incoming, holders,
														 nholders, &resolvers),
										test->conflict, resolver);
	}

	if (!ok(strcmp(actual, test->expected) == 0, "%s against holders %s",
			test->operation == KDB_INSERT ? "INSERT" : "UPDATE", test->holders))
		diag("expected %s, got %s", test->expected, actual);
}

static void
test_names(void)
{
	bool		types = true;
	bool		resolvers = true;
	KdbConflictType type = KDB_CONFLICT_NONE;
	KdbResolver resolver = KDB_RESOLVER_ENGINE;

	for (int i = 0; i < KDB_CONFLICT_TYPES; i++)
		types &= KdbConflictTypeFromName(KdbConflictTypeName((KdbConflictType) i), &type) &&
			type == (KdbConflictType) i;
	for (int i = 0; i < KDB_RESOLVERS; i++)
		resolvers &= KdbResolverFromName(KdbResolverName((KdbResolver) i), &resolver) &&
			resolver == (KdbResolver) i;

	ok(types, "conflict type names there and back");
	ok(resolvers, "resolver names there and back");
	ok(!KdbConflictTypeFromName("none", &type) &&
	   !KdbConflictTypeFromName("", &type) &&
	   !KdbConflictTypeFromName("INSERT_EXISTS", &type) &&
	   !KdbConflictTypeFromName("insert_exists ", &type), "other names are no conflict types");
	ok(!KdbResolverFromName("", &resolver) &&
	   !KdbResolverFromName("last_update", &resolver) &&
	   !KdbResolverFromName("ERROR", &resolver), "other names are no resolvers");
	ok(strcmp(KdbConflictTypeName(KDB_CONFLICT_NONE), "none") == 0, "no conflict has a name");
}

static void
test_settings(void)
{
	/* One letter per conflict type, in its order: first letter of the resolver. */
	static const char *const general[KDB_RESOLVERS] = {
		[KDB_RESOLVER_ENGINE] = "nnnnnnnn",
		[KDB_RESOLVER_ERROR] = "eeeeeeee",
		[KDB_RESOLVER_APPLY_REMOTE] = "aaaiiasa",
		[KDB_RESOLVER_KEEP_LOCAL] = "kkkssksk",
		[KDB_RESOLVER_LAST_UPDATE_WINS] = "llllilsl",
		[KDB_RESOLVER_FIRST_UPDATE_WINS] = "ffffifsf",
	};

	for (int i = 0; i < KDB_RESOLVERS; i++)
	{
		KdbResolvers resolvers;
		bool		as_expected = true;
		bool		allowed = true;

		ok(KdbResolverIsGeneral((KdbResolver) i) ==
		   (i != KDB_RESOLVER_ENGINE && general[i] != NULL),
		   "%s as conflict_resolution", KdbResolverName((KdbResolver) i));
		if (general[i] == NULL)
			continue;

		KdbResolversSetAll(&resolvers, (KdbResolver) i);
		for (int type = 0; type < KDB_CONFLICT_TYPES; type++)
		{
			KdbResolver set = (KdbResolver) resolvers.by_type[type];
			char		letter = set == KDB_RESOLVER_ENGINE ? 'n' : KdbResolverName(set)[0];

			as_expected &= letter == general[i][type];
			allowed &= KdbResolverAllowed((KdbConflictType) type, set) == (i != KDB_RESOLVER_ENGINE);
		}
		ok(as_expected, "%s for all types", KdbResolverName((KdbResolver) i));
		ok(allowed, "%s gives each type what could be set for it", KdbResolverName((KdbResolver) i));
		ok(KdbResolversActive(&resolvers) == (i != KDB_RESOLVER_ENGINE),
		   "%s is %sactive", KdbResolverName((KdbResolver) i), i == KDB_RESOLVER_ENGINE ? "not " : "");
	}
}

static void
test_active(void)
{
	bool		all = true;

	for (int type = 0; type < KDB_CONFLICT_TYPES; type++)
	{
		KdbResolvers resolvers;

		KdbResolversSetAll(&resolvers, KDB_RESOLVER_ENGINE);
		resolvers.by_type[type] = KDB_RESOLVER_SKIP;
		all &= KdbResolversActive(&resolvers);
	}
	ok(all, "one resolver makes the set active");
}

/* Update and unique types are not in the rule tests; so the whole matrix here. */
static void
test_allowed(void)
{
	static const char *const allowed[KDB_CONFLICT_TYPES] = {
		[KDB_CONFLICT_INSERT_EXISTS] = "-++-++++",
		[KDB_CONFLICT_UPDATE_ORIGIN_DIFFERS] = "-++-++++",
		[KDB_CONFLICT_UPDATE_EXISTS] = "-++-++++",
		[KDB_CONFLICT_UPDATE_DELETED] = "-+++--++",
		[KDB_CONFLICT_UPDATE_MISSING] = "-+++----",
		[KDB_CONFLICT_DELETE_ORIGIN_DIFFERS] = "-++-++++",
		[KDB_CONFLICT_DELETE_MISSING] = "-++-----",
		[KDB_CONFLICT_MULTIPLE_UNIQUE_CONFLICTS] = "-++-++++",
	};

	for (int type = 0; type < KDB_CONFLICT_TYPES; type++)
	{
		char		actual[KDB_RESOLVERS + 1] = "";

		for (int i = 0; i < KDB_RESOLVERS; i++)
			actual[i] = KdbResolverAllowed((KdbConflictType) type, (KdbResolver) i) ? '+' : '-';
		if (!ok(strcmp(actual, allowed[type]) == 0, "resolvers of %s",
				KdbConflictTypeName((KdbConflictType) type)))
			diag("expected %s, got %s", allowed[type], actual);
	}
}

int
main(void)
{
	for (size_t i = 0; i < sizeof(rule_tests) / sizeof(rule_tests[0]); i++)
	{
		test_rule(&rule_tests[i], false);
		if ((rule_tests[i].flags & SAME_ORIGIN) != 0)
			test_rule(&rule_tests[i], true);
	}
	for (size_t i = 0; i < sizeof(unique_tests) / sizeof(unique_tests[0]); i++)
		test_unique(&unique_tests[i]);
	test_names();
	test_settings();
	test_active();
	test_allowed();
	return done_testing();
}
