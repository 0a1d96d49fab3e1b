/*
 * origin_nodes.c
 *		Which node an origin id of this server stands for, kept for good.
 *
 * Rows keep the origin id of their writer longer than the subscription lives
 * that brought them, and are compared with changes of other nodes before any
 * publisher has been connected to after a restart.  So the map is a file in the
 * data directory, read when the server starts and written anew, as a whole and
 * by rename, when a publisher tells something new: that is once in the life of
 * a subscription.
 *
 * FILE krahodb/origin_nodes, in the machine's byte order as all of the data
 * directory is: FileHeader, then count entries.  A file with another magic
 * number, version or checksum stops the start with an error that names it; it may
 * then be removed, as publishers tell their identity again when they are connected
 * to.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file_perm.h"
#include "miscadmin.h"
#include "port/pg_crc32c.h"
#include "storage/fd.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/wait_event.h"

#include "krahodb/origin_nodes.h"

#define STATE_DIRECTORY		"krahodb"
#define STATE_FILE			STATE_DIRECTORY "/origin_nodes"
#define STATE_FILE_NEW		STATE_FILE ".new"
#define STATE_MAGIC			0x4b444f4e	/* KDON */
#define STATE_VERSION		1
#define ORIGIN_IDS			65536

typedef struct FileHeader
{
	uint32		magic;
	uint32		version;
	uint32		count;
	pg_crc32c	crc;			/* of the entries */
} FileHeader;

typedef struct FileEntry
{
	uint64		node;
	uint32		origin;
	uint32		unused;			/* 0 */
} FileEntry;

typedef struct OriginNodes
{
	LWLock		lock;			/* of writers; readers need none */
	pg_atomic_uint64 node[ORIGIN_IDS];
} OriginNodes;

static OriginNodes *map = NULL;

Size
KdbOriginNodesSize(void)
{
	return MAXALIGN(sizeof(OriginNodes));
}

static void
bad_file(const char *why)
{
	ereport(FATAL,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("could not read file \"%s\": %s", STATE_FILE, why),
			 errhint("If it was damaged, remove it: publishers tell their identity again when they are connected to.")));
}

static pg_crc32c
checksum(const FileEntry *entries, uint32 count)
{
	pg_crc32c	crc;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, entries, count * sizeof(FileEntry));
	FIN_CRC32C(crc);
	return crc;
}

static void
read_exactly(int fd, void *data, size_t size)
{
	ssize_t		n = read(fd, data, size);

	if (n < 0)
		ereport(FATAL,
				(errcode_for_file_access(),
				 errmsg("could not read file \"%s\": %m", STATE_FILE)));
	if ((size_t) n != size)
		bad_file("it is too short");
}

static void
read_map(void)
{
	int			fd = OpenTransientFile(STATE_FILE, O_RDONLY | PG_BINARY);
	FileHeader	header;
	FileEntry  *entries;

	if (fd < 0)
	{
		if (errno == ENOENT)
			return;
		ereport(FATAL,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", STATE_FILE)));
	}
	read_exactly(fd, &header, sizeof(header));
	if (header.magic != STATE_MAGIC || header.version != STATE_VERSION ||
		header.count > ORIGIN_IDS)
		bad_file("it has an unknown format");
	entries = palloc(header.count * sizeof(FileEntry) + 1);
	read_exactly(fd, entries, header.count * sizeof(FileEntry));
	if (!EQ_CRC32C(checksum(entries, header.count), header.crc))
		bad_file("its checksum is wrong");
	for (uint32 i = 0; i < header.count; i++)
	{
		if (entries[i].origin >= ORIGIN_IDS)
			bad_file("it names an origin that cannot be");
		pg_atomic_write_u64(&map->node[entries[i].origin], entries[i].node);
	}
	pfree(entries);
	CloseTransientFile(fd);
}

void
KdbOriginNodesStart(void)
{
	bool		found;

	map = ShmemInitStruct("KrahoDB origin nodes", KdbOriginNodesSize(), &found);
	if (found)
		return;
	LWLockInitialize(&map->lock, LWLockNewTrancheId());
	for (int i = 0; i < ORIGIN_IDS; i++)
		pg_atomic_init_u64(&map->node[i], 0);
	read_map();
}

static void
write_fully(int fd, const void *data, size_t size)
{
	errno = 0;
	if (write(fd, data, size) == (ssize_t) size)
		return;
	if (errno == 0)
		errno = ENOSPC;
	ereport(ERROR,
			(errcode_for_file_access(),
			 errmsg("could not write file \"%s\": %m", STATE_FILE_NEW)));
}

/* Write the whole map, with the lock held. */
static void
write_map(void)
{
	FileHeader	header = {STATE_MAGIC, STATE_VERSION, 0, 0};
	FileEntry  *entries = palloc0(ORIGIN_IDS * sizeof(FileEntry));
	int			fd;

	for (uint32 i = 0; i < ORIGIN_IDS; i++)
	{
		uint64		node = pg_atomic_read_u64(&map->node[i]);

		if (node == 0)
			continue;
		entries[header.count].node = node;
		entries[header.count++].origin = i;
	}
	header.crc = checksum(entries, header.count);

	if (MakePGDirectory(STATE_DIRECTORY) < 0 && errno != EEXIST)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not create directory \"%s\": %m", STATE_DIRECTORY)));
	fd = OpenTransientFile(STATE_FILE_NEW, O_CREAT | O_TRUNC | O_WRONLY | PG_BINARY);
	if (fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not create file \"%s\": %m", STATE_FILE_NEW)));
	write_fully(fd, &header, sizeof(header));
	write_fully(fd, entries, header.count * sizeof(FileEntry));
	if (CloseTransientFile(fd) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not close file \"%s\": %m", STATE_FILE_NEW)));
	durable_rename(STATE_FILE_NEW, STATE_FILE, ERROR);
	fsync_fname(STATE_DIRECTORY, true);
	pfree(entries);
}

uint64
KdbOriginNode(RepOriginId origin)
{
	return pg_atomic_read_u64(&map->node[origin]);
}

void
KdbRememberOriginNode(RepOriginId origin, uint64 node)
{
	uint64		old;

	if (KdbOriginNode(origin) == node)
		return;
	LWLockAcquire(&map->lock, LW_EXCLUSIVE);
	old = pg_atomic_read_u64(&map->node[origin]);
	pg_atomic_write_u64(&map->node[origin], node);
	PG_TRY();
	{
		write_map();
	}
	PG_CATCH();
	{
		pg_atomic_write_u64(&map->node[origin], old);
		PG_RE_THROW();
	}
	PG_END_TRY();
	LWLockRelease(&map->lock);
}
