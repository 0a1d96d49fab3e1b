/*
 * findings.c
 *		Items that a command found, as text or as JSON.
 *
 * The text has one line per item, made for people and for grep:
 *
 *		wal_level ... ok
 *		track_commit_timestamp ... MISSING: it is off; set ... and restart
 */
#include "tool.h"

static KdbFinding *
add(KdbFindings *findings, const char *name, const char *value)
{
	KdbFinding *item;

	if (findings->count >= KDB_MAX_FINDINGS)
		KdbDie(KDB_EXIT_USAGE, "too many items");
	item = &findings->items[findings->count++];
	item->name = name;
	item->value = value;
	return item;
}

void
KdbFound(KdbFindings *findings, const char *name, const char *value)
{
	add(findings, name, value)->ok = true;
}

void
KdbMissing(KdbFindings *findings, const char *name, const char *value,
		   const char *missing, const char *action)
{
	KdbFinding *item = add(findings, name, value);

	item->ok = false;
	item->missing = missing;
	item->action = action;
	findings->nmissing++;
}

static void
print_text(const KdbFindings *findings)
{
	for (int i = 0; i < findings->count; i++)
	{
		const KdbFinding *item = &findings->items[i];

		if (item->ok)
			printf("%s ... ok\n", item->name);
		else
			printf("%s ... MISSING: %s; %s\n", item->name,
				   KdbPlainText(item->missing), KdbPlainText(item->action));
	}
}

static void
json_member(const char *name, const char *value)
{
	printf(", \"%s\": ", name);
	KdbJsonString(stdout, value);
}

static void
print_json(const KdbFindings *findings, const char *command)
{
	printf("{\"command\": \"%s\", \"ok\": %s, \"missing\": %d, \"items\": [",
		   command, findings->nmissing == 0 ? "true" : "false", findings->nmissing);
	for (int i = 0; i < findings->count; i++)
	{
		const KdbFinding *item = &findings->items[i];

		printf("%s\n  {\"name\": ", i > 0 ? "," : "");
		KdbJsonString(stdout, item->name);
		printf(", \"ok\": %s", item->ok ? "true" : "false");
		json_member("value", item->value);
		if (!item->ok)
		{
			json_member("missing", item->missing);
			json_member("action", item->action);
		}
		putchar('}');
	}
	printf("\n]}\n");
}

void
KdbPrintFindings(const KdbFindings *findings, const char *command, bool json)
{
	if (json)
		print_json(findings, command);
	else
		print_text(findings);
}
