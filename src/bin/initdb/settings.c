/*
 * settings.c
 *		What KrahoDB writes into a new cluster's postgresql.conf, and why.
 *
 * The numbers are for a group of up to about ten nodes.  Each other node takes
 * here one slot and one sender for its subscription to us, and one apply worker
 * for ours to it; a table copy takes one more of each for its length.  The limits
 * only reserve a little shared memory, so they are generous.
 */
#include <stdbool.h>
#include <string.h>

#include "settings.h"

#define PLUGIN_GUC		"output_plugin_libraries"
#define OWN_PLUGIN		"krahodb_output"
#define LINE_LIMIT		8192

typedef struct Setting
{
	const char *name;
	const char *value;			/* as postgresql.conf wants it */
	const char *why;
} Setting;

static const Setting settings[] = {
	{"shared_preload_libraries", "'krahodb'",
	"makes this server a KrahoDB server"},
	{"wal_level", "logical",
	"other nodes read this node's changes from its WAL"},
	{"track_commit_timestamp", "on",
	"conflicts are resolved by time and origin of the rows"},
	{"max_replication_slots", "32",
	"one per subscriber and copied table; one per subscription"},
	{"max_wal_senders", "32",
	"one per subscriber and copied table"},
	{"max_logical_replication_workers", "32",
	"one per subscription and copied table"},
	{"max_sync_workers_per_subscription", "4",
	"tables copied at once by a new subscription"},
	{"max_worker_processes", "48",
	"the workers above, and parallel queries"},
	{"wal_writer_delay", "2ms",
	"commits with synchronous_commit = off are sent to other nodes this soon"},
	{"logical_decoding_work_mem", "128MB",
	"larger transactions go through files"},
};

#define NSETTINGS	(sizeof(settings) / sizeof(settings[0]))

/*
 * The boot value of a string setting of the server, in buffer (of LINE_LIMIT); NULL if the server
 * does not know the setting or cannot be asked.  The description is one line per
 * setting, tab-separated: name, context, group, type, boot value, ...
 */
static char *
setting_boot_value(const char *server, const char *name, char *buffer)
{
	char		command[LINE_LIMIT];
	char		line[LINE_LIMIT];
	size_t		name_length = strlen(name);
	bool		found = false;
	FILE	   *pipe;

	if (snprintf(command, sizeof(command), "LC_ALL=C '%s' --describe-config", server) >= (int) sizeof(command))
		return NULL;
	pipe = popen(command, "r");
	if (pipe == NULL)
		return NULL;
	while (fgets(line, sizeof(line), pipe) != NULL)
	{
		char	   *value = line;

		if (found || strncmp(line, name, name_length) != 0 || line[name_length] != '\t')
			continue;
		for (int i = 0; i < 4 && value != NULL; i++)
		{
			value = strchr(value, '\t');
			if (value != NULL)
				value++;
		}
		if (value == NULL)
			continue;
		value[strcspn(value, "\t\n")] = '\0';
		memmove(buffer, value, strlen(value) + 1);	/* fits: it was in line */
		found = true;
	}
	pclose(pipe);
	return found ? buffer : NULL;
}

static void
write_setting(FILE *conf, const char *name, const char *value, const char *why)
{
	int			length = fprintf(conf, "%s = %s", name, value);

	fprintf(conf, "%*s# %s\n", length < 43 ? 44 - length : 1, "", why);
}

/*
 * The list of plugins that slots may use is a security control of the engine:
 * only KrahoDB's own is added to what the engine allows anyway.
 */
static void
write_plugin_setting(FILE *conf, const char *server)
{
	char		allowed[LINE_LIMIT];
	char		value[LINE_LIMIT + 64];

	if (setting_boot_value(server, PLUGIN_GUC, allowed) == NULL)
		return;
	snprintf(value, sizeof(value), "'%s%s%s'", allowed,
			 allowed[0] != '\0' ? ", " : "", OWN_PLUGIN);
	write_setting(conf, PLUGIN_GUC, value, "adds KrahoDB's output plugin");
}

void
KdbWriteSettings(FILE *conf, const char *server)
{
	fputs("\n\n"
		  "#------------------------------------------------------------------------------\n"
		  "# KRAHODB\n"
		  "#------------------------------------------------------------------------------\n"
		  "\n"
		  "# Written by KrahoDB's initdb: what multi-master replication needs.  Without\n"
		  "# these lines this is a plain PostgreSQL server.  \"krahodb check\" tells of a\n"
		  "# running server what is missing.  Settings below win over the same ones above.\n"
		  "\n", conf);
	for (size_t i = 0; i < NSETTINGS; i++)
		write_setting(conf, settings[i].name, settings[i].value, settings[i].why);
	write_plugin_setting(conf, server);
}
