/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * undo.c - see undo.h. Knows the names of a cache's files; anything else in the folder is left alone.
 */
#include "undo.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blkcache/control.h"
#include "blkcache/engine.h"
#include "blkcache/journal.h"

void undo_prepare(struct undo *u, const char *dir)
{
	struct stat st;

	u->dir = dir;
	u->had_dir = !stat(dir, &st);
}

void undo_create(struct undo *u)
{
	/* The journal first: without it the rest is no cache, so a crash in here leaves nothing that looks like one. */
	static const char *const names[] = { JOURNAL_FILE,         JOURNAL_FILE "-wal",
					     JOURNAL_FILE "-shm",  JOURNAL_FILE "-journal",
					     JOURNAL_FILE "-ring", CACHE_DATA_FILE,
					     CONTROL_SOCKET,       CACHE_LOCK_FILE };
	int fd = open(u->dir, O_PATH | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return;
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		unlinkat(fd, names[i], 0);
	close(fd);
	if (!u->had_dir)
		rmdir(u->dir);
}
