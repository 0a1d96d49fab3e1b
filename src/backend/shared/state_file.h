/*
 * state_file.h
 *		Small arrays that outlive the server, one file each in the data directory.
 *
 * FILE krahodb/NAME, in the machine's byte order as all of the data directory is:
 * a header with magic number, version, count and checksum, then count entries.  It
 * is read when the server starts, and written as a whole and by rename.
 */
#ifndef KRAHODB_STATE_FILE_H
#define KRAHODB_STATE_FILE_H

#include "postgres.h"

#define KDB_STATE_DIRECTORY	"krahodb"

typedef struct KdbStateFile
{
	const char *name;			/* without directory */
	uint32		magic;
	uint32		version;
	uint32		max_entries;
	Size		entry_size;
	const char *removal_hint;	/* what happens if a damaged file is removed */
} KdbStateFile;

/*
 * The entries, palloc'd, and their number; 0 if there is no file.  A file with
 * another magic number, version or checksum stops the start with an error that
 * names it.
 */
extern void *KdbStateFileRead(const KdbStateFile *file, uint32 *count);

/* Make the directory if it is not there. */
extern void KdbStateDirectoryMake(void);

/* Durable when it returns; errors leave the old file. */
extern void KdbStateFileWrite(const KdbStateFile *file, const void *entries, uint32 count);

#endif							/* KRAHODB_STATE_FILE_H */
