/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * rovfs.c - a SQLite VFS that cannot change anything on disk, for read-only opening of a journal. Registered once, any
 * thread.
 *
 * `check` must read the journal of a crashed owner, its WAL included, and leave both as they are. SQLite's own
 * read-only modes do not fit: without a -shm file it refuses to read a WAL read-only, "immutable" ignores the WAL, and
 * copying first needs disk space for hundreds of megabytes. Here SQLite believes that it has an exclusive connection
 * (so it rebuilds the index of the WAL in memory), while below every file is opened O_RDONLY, writes fail, a missing
 * WAL is an empty one, and all locks beyond SHARED are pretended. The SHARED lock is real: it fails while an owner has
 * the journal, and keeps an owner from starting while it is held.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "journal/db.h"

struct ro_file {
	sqlite3_file base;
	sqlite3_file *real; /* NULL: a WAL that does not exist */
};

static sqlite3_vfs *below(void)
{
	return sqlite3_vfs_find(journal_vfs_name);
}

static sqlite3_file *real(sqlite3_file *f)
{
	return ((struct ro_file *)f)->real;
}

static int ro_close(sqlite3_file *f)
{
	sqlite3_file *r = real(f);

	if (r && r->pMethods)
		r->pMethods->xClose(r);
	free(r);
	return SQLITE_OK;
}

static int ro_read(sqlite3_file *f, void *buf, int n, sqlite3_int64 off)
{
	if (real(f))
		return real(f)->pMethods->xRead(real(f), buf, n, off);
	memset(buf, 0, (size_t)n);
	return SQLITE_IOERR_SHORT_READ;
}

static int ro_write(sqlite3_file *f, const void *buf, int n, sqlite3_int64 off)
{
	(void)f, (void)buf, (void)n, (void)off;
	return SQLITE_READONLY;
}

static int ro_truncate(sqlite3_file *f, sqlite3_int64 size)
{
	(void)f, (void)size;
	return SQLITE_READONLY;
}

static int ro_sync(sqlite3_file *f, int flags)
{
	(void)f, (void)flags;
	return SQLITE_OK;
}

static int ro_size(sqlite3_file *f, sqlite3_int64 *size)
{
	*size = 0;
	return real(f) ? real(f)->pMethods->xFileSize(real(f), size) : SQLITE_OK;
}

static int ro_lock(sqlite3_file *f, int level)
{
	return real(f) && level == SQLITE_LOCK_SHARED ? real(f)->pMethods->xLock(real(f), level) : SQLITE_OK;
}

static int ro_unlock(sqlite3_file *f, int level)
{
	return real(f) ? real(f)->pMethods->xUnlock(real(f), level) : SQLITE_OK;
}

static int ro_reserved(sqlite3_file *f, int *res)
{
	(void)f;
	*res = 0;
	return SQLITE_OK;
}

static int ro_control(sqlite3_file *f, int op, void *arg)
{
	(void)f, (void)op, (void)arg;
	return SQLITE_NOTFOUND;
}

static int ro_sector(sqlite3_file *f)
{
	(void)f;
	return (int)JOURNAL_PAGE;
}

static int ro_characteristics(sqlite3_file *f)
{
	(void)f;
	return 0;
}

static const sqlite3_io_methods ro_methods = {
	.iVersion = 1,
	.xClose = ro_close,
	.xRead = ro_read,
	.xWrite = ro_write,
	.xTruncate = ro_truncate,
	.xSync = ro_sync,
	.xFileSize = ro_size,
	.xLock = ro_lock,
	.xUnlock = ro_unlock,
	.xCheckReservedLock = ro_reserved,
	.xFileControl = ro_control,
	.xSectorSize = ro_sector,
	.xDeviceCharacteristics = ro_characteristics,
};

static int ro_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *f, int flags, int *out_flags)
{
	struct ro_file *rf = (struct ro_file *)f;
	sqlite3_vfs *b = below();
	int rc, exists = 1;

	(void)vfs;
	memset(rf, 0, sizeof(*rf));
	if (!name || !(flags & (SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_WAL)))
		return SQLITE_CANTOPEN;
	if (flags & SQLITE_OPEN_WAL) {
		rc = b->xAccess(b, name, SQLITE_ACCESS_EXISTS, &exists);
		if (rc != SQLITE_OK)
			return rc;
	}
	if (exists) {
		rf->real = calloc(1, (size_t)b->szOsFile);
		if (!rf->real)
			return SQLITE_NOMEM;
		flags &= ~(SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE);
		rc = b->xOpen(b, name, rf->real, flags | SQLITE_OPEN_READONLY, NULL);
		if (rc != SQLITE_OK) {
			free(rf->real);
			rf->real = NULL;
			return rc;
		}
	}
	rf->base.pMethods = &ro_methods;
	if (out_flags)
		*out_flags = flags | SQLITE_OPEN_READONLY;
	return SQLITE_OK;
}

static int ro_delete(sqlite3_vfs *vfs, const char *name, int sync)
{
	(void)vfs, (void)name, (void)sync;
	return SQLITE_READONLY;
}

static int ro_access(sqlite3_vfs *vfs, const char *name, int flags, int *res)
{
	(void)vfs;
	return below()->xAccess(below(), name, flags, res);
}

static int ro_fullpath(sqlite3_vfs *vfs, const char *name, int n, char *out)
{
	(void)vfs;
	return below()->xFullPathname(below(), name, n, out);
}

static int ro_randomness(sqlite3_vfs *vfs, int n, char *out)
{
	(void)vfs;
	return below()->xRandomness(below(), n, out);
}

static int ro_sleep(sqlite3_vfs *vfs, int us)
{
	(void)vfs;
	return below()->xSleep(below(), us);
}

static int ro_time(sqlite3_vfs *vfs, double *t)
{
	(void)vfs;
	return below()->xCurrentTime(below(), t);
}

static int ro_last_error(sqlite3_vfs *vfs, int n, char *out)
{
	(void)vfs;
	return below()->xGetLastError ? below()->xGetLastError(below(), n, out) : 0;
}

static sqlite3_vfs ro_vfs = {
	.iVersion = 1,
	.szOsFile = sizeof(struct ro_file),
	.mxPathname = 4096,
	.zName = "blkcache-readonly",
	.xOpen = ro_open,
	.xDelete = ro_delete,
	.xAccess = ro_access,
	.xFullPathname = ro_fullpath,
	.xRandomness = ro_randomness,
	.xSleep = ro_sleep,
	.xCurrentTime = ro_time,
	.xGetLastError = ro_last_error,
};

static void ro_register(void)
{
	sqlite3_initialize();
	sqlite3_vfs_register(&ro_vfs, 0);
}

const char *journal_rovfs(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, ro_register);
	return ro_vfs.zName;
}
