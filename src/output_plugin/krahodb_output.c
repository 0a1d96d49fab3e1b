/*
 * krahodb_output.c
 *		The output plugin's library: it names the plugin, krahodb.so is it.
 *
 * A slot stores its plugin's library name, and the engine loads that library
 * at every use; so the name must be a library of its own.  The code lives in
 * krahodb.so, which every KrahoDB server has preloaded.
 */
#include "postgres.h"

#include "fmgr.h"
#include "replication/output_plugin.h"

#include "krahodb/output.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_output_plugin_init(OutputPluginCallbacks *cb);

void
_PG_output_plugin_init(OutputPluginCallbacks *cb)
{
	void		(*init) (OutputPluginCallbacks *) = (void (*) (OutputPluginCallbacks *))
		load_external_function("krahodb", "KdbOutputPluginInit", true, NULL);

	init(cb);
}
