/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * recvfs.c - the SQLite VFS "recorder": files of the current world. It promises SQLite what the unix VFS does
 * (powersafe overwrite, nothing more) and syncs the folder where that one does: with the first sync of a log that was
 * opened with the right to create it, and at deletions that ask for it. No shared memory: the journal is opened with
 * locking_mode=EXCLUSIVE. Memory-only temporary files are not needed (temp_store=MEMORY).
 */
#include <sqlite3.h>
#include <string.h>

#include "world.h"

struct rec_file {
	sqlite3_file base;
	int file;
	bool sync_folder;
};

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

static int rec_close(sqlite3_file *f)
{
	(void)f;
	return SQLITE_OK;
}

static int rec_read(sqlite3_file *f, void *buf, int n, sqlite3_int64 off)
{
	size_t got = file_read(((struct rec_file *)f)->file, buf, (size_t)n, (uint64_t)off);

	if (got == (size_t)n)
		return SQLITE_OK;
	memset((char *)buf + got, 0, (size_t)n - got);
	return SQLITE_IOERR_SHORT_READ;
}

static int rec_write(sqlite3_file *f, const void *buf, int n, sqlite3_int64 off)
{
	if (world_journal_fails)
		return SQLITE_IOERR_WRITE;
	file_write(((struct rec_file *)f)->file, buf, (size_t)n, (uint64_t)off, false);
	return SQLITE_OK;
}

static int rec_truncate(sqlite3_file *f, sqlite3_int64 size)
{
	file_truncate(((struct rec_file *)f)->file, (uint64_t)size);
	return SQLITE_OK;
}

static int rec_sync(sqlite3_file *f, int flags)
{
	struct rec_file *rf = (struct rec_file *)f;

	(void)flags;
	if (world_journal_fails)
		return SQLITE_IOERR_FSYNC;
	sync_end(rf->file, sync_begin(rf->file, false));
	if (rf->sync_folder)
		sync_end(FOLDER, sync_begin(FOLDER, false));
	rf->sync_folder = false;
	return SQLITE_OK;
}

static int rec_file_size(sqlite3_file *f, sqlite3_int64 *size)
{
	*size = (sqlite3_int64)file_size(((struct rec_file *)f)->file);
	return SQLITE_OK;
}

static int rec_lock(sqlite3_file *f, int level)
{
	(void)f, (void)level;
	return SQLITE_OK;
}

static int rec_check_lock(sqlite3_file *f, int *out)
{
	(void)f;
	*out = 0;
	return SQLITE_OK;
}

static int rec_control(sqlite3_file *f, int op, void *arg)
{
	(void)f, (void)op, (void)arg;
	return SQLITE_NOTFOUND;
}

static int rec_sector_size(sqlite3_file *f)
{
	(void)f;
	return 4096;
}

static int rec_characteristics(sqlite3_file *f)
{
	(void)f;
	return SQLITE_IOCAP_POWERSAFE_OVERWRITE;
}

static const sqlite3_io_methods methods = {
	.iVersion = 1,
	.xClose = rec_close,
	.xRead = rec_read,
	.xWrite = rec_write,
	.xTruncate = rec_truncate,
	.xSync = rec_sync,
	.xFileSize = rec_file_size,
	.xLock = rec_lock,
	.xUnlock = rec_lock,
	.xCheckReservedLock = rec_check_lock,
	.xFileControl = rec_control,
	.xSectorSize = rec_sector_size,
	.xDeviceCharacteristics = rec_characteristics,
};

static int rec_open(sqlite3_vfs *vfs, const char *path, sqlite3_file *f, int flags, int *out_flags)
{
	struct rec_file *rf = (struct rec_file *)f;

	(void)vfs;
	memset(rf, 0, sizeof *rf);
	if (!path)
		return SQLITE_CANTOPEN;
	rf->file = file_find(base_name(path));
	if (rf->file < 0) {
		if (!(flags & SQLITE_OPEN_CREATE))
			return SQLITE_CANTOPEN;
		rf->file = file_create(base_name(path));
	}
	rf->sync_folder = flags & SQLITE_OPEN_CREATE && flags & (SQLITE_OPEN_WAL | SQLITE_OPEN_MAIN_JOURNAL);
	rf->base.pMethods = &methods;
	if (out_flags)
		*out_flags = flags;
	return SQLITE_OK;
}

static int rec_delete(sqlite3_vfs *vfs, const char *path, int sync_folder)
{
	(void)vfs;
	if (file_find(base_name(path)) < 0)
		return SQLITE_IOERR_DELETE_NOENT;
	name_unlink(base_name(path));
	if (sync_folder)
		sync_end(FOLDER, sync_begin(FOLDER, false));
	return SQLITE_OK;
}

static int rec_access(sqlite3_vfs *vfs, const char *path, int flags, int *out)
{
	int file = file_find(base_name(path));

	(void)vfs;
	/* like the unix VFS: an empty file does not exist, as far as hot journals go */
	*out = file >= 0 && (flags != SQLITE_ACCESS_EXISTS || file_size(file) > 0);
	return SQLITE_OK;
}

static int rec_full_path(sqlite3_vfs *vfs, const char *path, int n, char *out)
{
	(void)vfs;
	sqlite3_snprintf(n, out, "%s", path);
	return SQLITE_OK;
}

void recvfs_register(void)
{
	static sqlite3_vfs vfs;
	sqlite3_vfs *unix_vfs = sqlite3_vfs_find(NULL);

	vfs = *unix_vfs; /* randomness, sleep, time */
	vfs.iVersion = 2;
	vfs.szOsFile = sizeof(struct rec_file);
	vfs.pNext = NULL;
	vfs.zName = "recorder";
	vfs.xOpen = rec_open;
	vfs.xDelete = rec_delete;
	vfs.xAccess = rec_access;
	vfs.xFullPathname = rec_full_path;
	sqlite3_vfs_register(&vfs, 0);
}
