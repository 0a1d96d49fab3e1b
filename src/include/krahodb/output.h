/*
 * output.h
 *		The output plugin krahodb_output.
 *
 * Options at START_REPLICATION (all as pgoutput's, then KrahoDB's own):
 *	proto_version, publication_names, binary, messages, streaming, two_phase
 *	origin			'any' | 'none'
 *	filter_origins	'id, id, ...': origin ids of this server whose changes are
 *					not sent
 *	krahodb			protocol version of a KrahoDB subscriber.  With it the
 *					stream is framed, starts with a handshake, and values of
 *					built-in types go in binary where both sides surely agree
 *					(see wire.h).  Without it the bytes are pgoutput's.
 */
#ifndef KRAHODB_OUTPUT_H
#define KRAHODB_OUTPUT_H

#include "postgres.h"
#include "executor/tuptable.h"
#include "nodes/pg_list.h"
#include "replication/output_plugin.h"

/* Fills the callbacks; called by krahodb_output.so's _PG_output_plugin_init. */
extern PGDLLEXPORT void KdbOutputPluginInit(OutputPluginCallbacks *cb);

/*
 * Do the row filters of these publications (names) let a row of the relation through,
 * as the new row of an UPDATE?  Only those count that publish the relation as such;
 * true if none does.  slot has the relation's format.
 */
extern bool KdbRowIsPublished(List *publications, Oid relid, TupleTableSlot *slot);

#endif							/* KRAHODB_OUTPUT_H */
