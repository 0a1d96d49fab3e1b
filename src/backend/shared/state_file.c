/*
 * state_file.c
 *		Small arrays that outlive the server; see state_file.h.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file_perm.h"
#include "miscadmin.h"
#include "port/pg_crc32c.h"
#include "storage/fd.h"

#include "state_file.h"

typedef struct FileHeader
{
	uint32		magic;
	uint32		version;
	uint32		count;
	pg_crc32c	crc;			/* of the entries */
} FileHeader;

static void
file_path(const KdbStateFile *file, const char *suffix, char *path)
{
	snprintf(path, MAXPGPATH, "%s/%s%s", KDB_STATE_DIRECTORY, file->name, suffix);
}

static void
bad_file(const KdbStateFile *file, const char *path, const char *why)
{
	ereport(FATAL,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("could not read file \"%s\": %s", path, why),
			 errhint("If it was damaged, remove it: %s", file->removal_hint)));
}

static pg_crc32c
checksum(const void *entries, Size size)
{
	pg_crc32c	crc;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, entries, size);
	FIN_CRC32C(crc);
	return crc;
}

static void
read_exactly(const KdbStateFile *file, const char *path, int fd, void *data, size_t size)
{
	ssize_t		n = read(fd, data, size);

	if (n < 0)
		ereport(FATAL,
				(errcode_for_file_access(),
				 errmsg("could not read file \"%s\": %m", path)));
	if ((size_t) n != size)
		bad_file(file, path, "it is too short");
}

void *
KdbStateFileRead(const KdbStateFile *file, uint32 *count)
{
	char		path[MAXPGPATH];
	FileHeader	header;
	void	   *entries;
	int			fd;

	*count = 0;
	file_path(file, "", path);
	fd = OpenTransientFile(path, O_RDONLY | PG_BINARY);
	if (fd < 0)
	{
		if (errno == ENOENT)
			return palloc(1);
		ereport(FATAL,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", path)));
	}
	read_exactly(file, path, fd, &header, sizeof(header));
	if (header.magic != file->magic || header.version != file->version ||
		header.count > file->max_entries)
		bad_file(file, path, "it has an unknown format");
	entries = palloc(header.count * file->entry_size + 1);
	read_exactly(file, path, fd, entries, header.count * file->entry_size);
	if (!EQ_CRC32C(checksum(entries, header.count * file->entry_size), header.crc))
		bad_file(file, path, "its checksum is wrong");
	CloseTransientFile(fd);
	*count = header.count;
	return entries;
}

static void
write_fully(const char *path, int fd, const void *data, size_t size)
{
	errno = 0;
	if (write(fd, data, size) == (ssize_t) size)
		return;
	if (errno == 0)
		errno = ENOSPC;
	ereport(ERROR,
			(errcode_for_file_access(),
			 errmsg("could not write file \"%s\": %m", path)));
}

void
KdbStateDirectoryMake(void)
{
	if (MakePGDirectory(KDB_STATE_DIRECTORY) < 0 && errno != EEXIST)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not create directory \"%s\": %m", KDB_STATE_DIRECTORY)));
}

void
KdbStateFileWrite(const KdbStateFile *file, const void *entries, uint32 count)
{
	Size		size = count * file->entry_size;
	FileHeader	header = {file->magic, file->version, count, checksum(entries, size)};
	char		path[MAXPGPATH];
	char		new_path[MAXPGPATH];
	int			fd;

	file_path(file, "", path);
	file_path(file, ".new", new_path);
	KdbStateDirectoryMake();
	fd = OpenTransientFile(new_path, O_CREAT | O_TRUNC | O_WRONLY | PG_BINARY);
	if (fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not create file \"%s\": %m", new_path)));
	write_fully(new_path, fd, &header, sizeof(header));
	write_fully(new_path, fd, entries, size);
	if (CloseTransientFile(fd) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not close file \"%s\": %m", new_path)));
	durable_rename(new_path, path, ERROR);
	fsync_fname(KDB_STATE_DIRECTORY, true);
}
