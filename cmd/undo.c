/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * undo.c - see undo.h. What is removed is what was made: files are told by their inodes, the folder by a descriptor.
 * Whatever else lies in the folder, or has been put in the place of one of the files meanwhile, is left alone.
 */
#include "undo.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blkcache/engine.h"
#include "blkcache/journal.h"

/* The journal first: without it the rest is no cache, so a crash in here leaves nothing that looks like one. */
static const char *const names[UNDO_FILES] = { JOURNAL_FILE, JOURNAL_FILE "-ring", CACHE_DATA_FILE, CACHE_LOCK_FILE };

/* SQLite's, which come and go with the journal. */
static const char *const beside[] = { JOURNAL_FILE "-wal", JOURNAL_FILE "-shm", JOURNAL_FILE "-journal" };

void undo_prepare(struct undo *u, const char *dir)
{
	struct stat st;

	memset(u, 0, sizeof(*u));
	u->dir = dir;
	u->had_dir = !lstat(dir, &st);
	u->dirfd = -1;
}

void undo_made(struct undo *u)
{
	struct stat st;

	u->dirfd = open(u->dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	for (size_t i = 0; u->dirfd >= 0 && i < UNDO_FILES; i++) {
		if (fstatat(u->dirfd, names[i], &st, AT_SYMLINK_NOFOLLOW))
			continue;
		u->made[i].dev = st.st_dev;
		u->made[i].ino = st.st_ino;
	}
}

static bool is_made(const struct undo *u, size_t i)
{
	struct stat st;

	return u->made[i].ino && !fstatat(u->dirfd, names[i], &st, AT_SYMLINK_NOFOLLOW) &&
	       st.st_ino == u->made[i].ino && st.st_dev == u->made[i].dev;
}

void undo_create(struct undo *u)
{
	if (u->dirfd < 0)
		return;
	if (is_made(u, 0))
		for (size_t i = 0; i < sizeof(beside) / sizeof(beside[0]); i++)
			unlinkat(u->dirfd, beside[i], 0);
	for (size_t i = 0; i < UNDO_FILES; i++)
		if (is_made(u, i))
			unlinkat(u->dirfd, names[i], 0);
	if (!u->had_dir)
		rmdir(u->dir);
	undo_forget(u);
}

void undo_forget(struct undo *u)
{
	if (u->dirfd >= 0)
		close(u->dirfd);
	u->dirfd = -1;
}
