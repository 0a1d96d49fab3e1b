/*
 * node_state.c
 *		Is this cluster the node that it was, or a copy of it?
 *
 * A copy of a data directory has everything of the original: files, catalogs, the
 * system identifier.  If it becomes a server of its own beside the original,
 * both would write versions of one node and say different things of that node's
 * stream.  So each cluster has a SALT, which is part of the identity of its
 * databases (options/node.c): 0 at first, and a random number once it has turned
 * out to be a copy.
 *
 * THE PLACE.  What no copy shares is the inode number of a file and the time when
 * it was made.  The empty file krahodb/place is made once and never written; what
 * it was made as is noted in krahodb/node.  At each start the two are compared.
 *
 *	start                                      place        the salt
 *	-----------------------------------------  -----------  ------------------------
 *	first start                                is made      0
 *	restart, after a crash too; data            the same     stays
 *	directory renamed
 *	pg_basebackup or file copy, started        another      new
 *	as a standby (standby.signal)              any          stays; noted that it is one
 *	that standby after promotion               the same     stays: the node goes on
 *	that standby without promotion, its        the same     new: the primary goes on
 *	standby.signal removed
 *	recovery from an archive                   any          new: it may have lost
 *	(recovery.signal)                                       what others have seen
 *	krahodb.reset_node_identity() was called   the same     new
 *
 * The last one is for copies below the file system (a volume's or a virtual
 * machine's snapshot), which do share inodes.  Peers notice two servers with one
 * identity (apply/progress.c, stream/publisher.c).  A place that only looks another one, as the data
 * directory was moved to another file system, does no harm: a node that changes
 * its identity is a new node with the rows of the old one.
 *
 * A server on which a promoted standby is settled says so (settle) when its identity
 * is first needed; until then a restart without promotion cannot be told from one.
 *
 * FORMER SALTS are kept with the time since when each was in effect.
 *
 * pg_upgrade does not take this directory along: its cluster starts with salt 0 and
 * another system identifier, so it is another node.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/xlog.h"
#include "common/file_perm.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "krahodb/node.h"

#include "state_file.h"

#define PLACE_FILE		KDB_STATE_DIRECTORY "/place"

/* A cluster that was copied more often forgets the oldest. */
#define MAX_SALTS		64

#define SALT_OF_STANDBY	0x01	/* began as a standby and is not known to be promoted */
#define SALT_TO_RESET	0x02	/* a new one is wanted at the next start */

typedef struct FileEntry
{
	uint64		salt;
	TimestampTz since;
	uint64		inode;			/* these three are of the first entry only */
	uint64		made_at;		/* in ns, 0 if the file system does not say */
	uint32		flags;
	uint32		unused;			/* 0 */
} FileEntry;

static const KdbStateFile state_file = {
	.name = "node",
	.magic = 0x4b444e4f,		/* KDNO */
	.version = 1,
	.max_entries = MAX_SALTS,
	.entry_size = sizeof(FileEntry),
	.removal_hint = "the server then has the identity of the node that it is a copy of, if it is one; call krahodb.reset_node_identity() in that case.",
};

typedef struct NodeState
{
	LWLock		lock;			/* of writers; what readers read does not change */
	int			nentries;
	FileEntry	entries[MAX_SALTS]; /* newest first */
} NodeState;

static NodeState *state = NULL;

Size
KdbNodeStateSize(void)
{
	return MAXALIGN(sizeof(NodeState));
}

/* ---- the place ---- */

static void
place_error(const char *what)
{
	ereport(FATAL,
			(errcode_for_file_access(),
			 errmsg("could not %s file \"%s\": %m", what, PLACE_FILE)));
}

static void
make_place(void)
{
	int			fd;

	KdbStateDirectoryMake();
	fd = OpenTransientFile(PLACE_FILE, O_CREAT | O_EXCL | O_WRONLY | PG_BINARY);
	if (fd < 0)
		place_error("create");
	if (pg_fsync(fd) != 0)
		place_error("fsync");
	CloseTransientFile(fd);
	fsync_fname(KDB_STATE_DIRECTORY, true);
}

/* Where this data directory is; makes the file if there is none. */
static void
look_at_place(FileEntry *entry)
{
	struct stat status;
#ifdef STATX_BTIME
	struct statx extended;
#endif

	if (stat(PLACE_FILE, &status) != 0)
	{
		if (errno != ENOENT)
			place_error("stat");
		make_place();
		if (stat(PLACE_FILE, &status) != 0)
			place_error("stat");
	}
	entry->inode = status.st_ino;
	entry->made_at = 0;
#ifdef STATX_BTIME
	if (statx(AT_FDCWD, PLACE_FILE, 0, STATX_BTIME, &extended) == 0 &&
		(extended.stx_mask & STATX_BTIME) != 0)
		entry->made_at = (uint64) extended.stx_btime.tv_sec * UINT64CONST(1000000000) +
			extended.stx_btime.tv_nsec;
#endif
}

static bool
same_place(const FileEntry *a, const FileEntry *b)
{
	return a->inode == b->inode && a->made_at == b->made_at;
}

/* ---- the start ---- */

static bool
is_there(const char *path)
{
	struct stat status;

	return stat(path, &status) == 0;
}

/* Why it is no longer the node that it was; NULL if it is. */
static const char *
why_another(const FileEntry *now, const FileEntry *noted)
{
	if (is_there(STANDBY_SIGNAL_FILE))
		return NULL;
	if (is_there(RECOVERY_SIGNAL_FILE))
		return _("The server is recovered from an archive.");
	if (noted->flags & SALT_TO_RESET)
		return _("A new identity was asked for.");
	if (!same_place(now, noted))
		return _("The data directory is a copy.");
	if (noted->flags & SALT_OF_STANDBY)
		return _("The server was a standby, and was not promoted.");
	return NULL;
}

static void
begin_new_salt(const FileEntry *place, const char *why)
{
	FileEntry	entry = *place;

	do
	{
		if (!pg_strong_random(&entry.salt, sizeof(entry.salt)))
			ereport(FATAL,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not generate a node identity")));
	} while (entry.salt == 0);
	entry.since = GetCurrentTimestamp();

	state->nentries = Min(state->nentries + 1, MAX_SALTS);
	memmove(state->entries + 1, state->entries, (state->nentries - 1) * sizeof(FileEntry));
	state->entries[0] = entry;
	ereport(LOG,
			(errmsg("the databases of this server have new node identities"),
			 errdetail_internal("%s", why)));
}

/* Compare what is noted with what is found, and note what has changed. */
static void
compare(uint32 count)
{
	FileEntry	place = {0};
	FileEntry	before = state->entries[0];
	const char *why = NULL;

	look_at_place(&place);
	if (count > 0)
		why = why_another(&place, &state->entries[0]);
	if (count == 0)
		state->entries[state->nentries++] = place;
	else if (why != NULL)
		begin_new_salt(&place, why);
	else
	{
		state->entries[0].inode = place.inode;
		state->entries[0].made_at = place.made_at;
	}
	if (is_there(STANDBY_SIGNAL_FILE))
		state->entries[0].flags |= SALT_OF_STANDBY;
	if (count == 0 || memcmp(&before, &state->entries[0], sizeof(before)) != 0)
		KdbStateFileWrite(&state_file, state->entries, state->nentries);
}

void
KdbNodeStateStart(void)
{
	bool		found;
	uint32		count;
	FileEntry  *entries;

	state = ShmemInitStruct("KrahoDB node", KdbNodeStateSize(), &found);
	if (found)
		return;
	LWLockInitialize(&state->lock, LWLockNewTrancheId());
	entries = KdbStateFileRead(&state_file, &count);
	memcpy(state->entries, entries, count * sizeof(FileEntry));
	state->nentries = count;
	pfree(entries);
	compare(count);
}

/* ---- later ---- */

/* Write the newest entry with other flags; an error changes nothing. */
static void
change_flags(uint32 set, uint32 clear)
{
	FileEntry	entries[MAX_SALTS];

	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	memcpy(entries, state->entries, sizeof(entries));
	entries[0].flags = (entries[0].flags | set) & ~clear;
	if (entries[0].flags != state->entries[0].flags)
		KdbStateFileWrite(&state_file, entries, state->nentries);
	state->entries[0].flags = entries[0].flags;
	LWLockRelease(&state->lock);
}

/* See node.h. */
uint64
KdbNodeSalt(void)
{
	if ((state->entries[0].flags & SALT_OF_STANDBY) != 0 && !RecoveryInProgress())
		change_flags(0, SALT_OF_STANDBY);
	return state->entries[0].salt;
}

/* See node.h. */
uint64
KdbNodeSaltAt(TimestampTz when)
{
	int			i = 0;

	while (i < state->nentries - 1 && state->entries[i].since > when)
		i++;
	return state->entries[i].salt;
}

/* See node.h. */
void
KdbNodeReset(void)
{
	change_flags(SALT_TO_RESET, 0);
}
