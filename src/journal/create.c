/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * create.c - a new journal. Any thread; nothing is shared.
 *
 * It is built under another name, without a log, synced once, and then renamed into place: whoever sees JOURNAL_FILE
 * sees a whole journal. All snapshot rows and the ring exist from the start and the space that epochs need between two
 * folds is on the free list, so that neither folding nor the checkpoints behind it have to find space on a full disk
 * later.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "journal/db.h"
#include "util/cow.h"

/* Bytes of free pages: what may be held before it is folded, and one epoch more, at its largest (space.c). */
static unsigned epoch_reserve(const struct journal_geometry *geo)
{
	uint64_t held = snapshot_rows(geo) * JOURNAL_PAGE / 8;

	held = held < 4u << 20 ? 4u << 20 : held < 64u << 20 ? held : 64u << 20;
	return (unsigned)(held + journal_epoch_bytes(geo));
}

static int fill(sqlite3 *db, const struct journal_geometry *geo)
{
	unsigned bpl = geo->blocks_per_line;
	uint8_t geometry[GEOMETRY_SIZE], row[JOURNAL_PAGE];
	uint64_t rows = snapshot_rows(geo);
	sqlite3_stmt *s = NULL;
	char sql[200];
	int rc;

	snprintf(sql, sizeof(sql),
		 "INSERT INTO state VALUES(1, 0, 0, 0, 0, 1, 0, %u); INSERT INTO epoch VALUES(1, zeroblob(%u));",
		 state_crc((const uint64_t[STATE_VALUES]){ 0, 0, 0, 0, 1, 0 }, STATE_VALUES), epoch_reserve(geo));
	rc = sqlite3_exec(db, sql, NULL, NULL, NULL);
	if (rc == SQLITE_OK)
		rc = sqlite3_prepare_v2(db, "INSERT INTO geometry VALUES(1, ?1)", -1, &s, NULL);
	if (rc == SQLITE_OK) {
		geometry_encode(geo, geometry);
		sqlite3_bind_blob(s, 1, geometry, sizeof(geometry), SQLITE_STATIC);
		rc = jdb_step_reset(s);
	}
	sqlite3_finalize(s);
	s = NULL;
	if (rc == SQLITE_OK)
		rc = sqlite3_prepare_v2(db, "INSERT INTO snapshot VALUES(?1, ?2)", -1, &s, NULL);
	for (uint64_t k = 0; rc == SQLITE_OK && k < rows; k++) {
		snapshot_init(bpl, (uint32_t)k, row);
		sqlite3_bind_int64(s, 1, (int64_t)k);
		sqlite3_bind_blob(s, 2, row, (int)snapshot_size(bpl), SQLITE_STATIC);
		rc = jdb_step_reset(s);
	}
	sqlite3_finalize(s);
	if (rc == SQLITE_OK)
		rc = sqlite3_exec(db, "DELETE FROM epoch", NULL, NULL, NULL);
	return rc;
}

/* Pages that were freed before they were written: blocks of the disk for them too (space.c). */
static int fill_holes(const char *path, struct bc_error *err)
{
	int fd = open(path, O_RDWR | O_CLOEXEC), code = 0;
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0 || (fallocate(fd, 0, 0, st.st_size) < 0 && errno != EOPNOTSUPP))
		code = bc_fail(err, -errno, "%s: cannot create the journal: %s", path, strerror(errno));
	if (fd >= 0)
		close(fd);
	return code;
}

static int build(const char *path, const struct journal_geometry *geo, struct bc_error *err)
{
	char sql[300];
	sqlite3 *db = NULL;
	int rc, code = 0, fd;

	/* Made here and not by SQLite: it will carry users' data, so it is the owner's alone. The log follows its mode.
	 */
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return bc_fail(err, -errno, "%s: cannot create the journal: %s", path, strerror(errno));
	cow_switch_off(fd); /* whoever makes the data file beside it says so where that cannot be */
	close(fd);
	rc = sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX,
			     journal_vfs_name);
	snprintf(sql, sizeof(sql),
		 "PRAGMA page_size=%u; PRAGMA auto_vacuum=NONE; PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=OFF;"
		 "PRAGMA synchronous=OFF; PRAGMA mmap_size=0; PRAGMA temp_store=MEMORY; PRAGMA application_id=%d;"
		 "PRAGMA user_version=%d; BEGIN",
		 JOURNAL_PAGE, JOURNAL_APPLICATION_ID, JOURNAL_FORMAT);
	if (rc == SQLITE_OK)
		rc = sqlite3_exec(db, sql, NULL, NULL, NULL);
	if (rc == SQLITE_OK)
		rc = sqlite3_exec(db, jdb_schema, NULL, NULL, NULL);
	if (rc == SQLITE_OK)
		rc = fill(db, geo);
	/* The switch to WAL marks the header; synchronous=FULL makes it sync what was written before. */
	if (rc == SQLITE_OK)
		rc = sqlite3_exec(db,
				  MUTATE(CREATE_SYNC) ? "COMMIT; PRAGMA journal_mode=WAL;"
						      : "COMMIT; PRAGMA synchronous=FULL; PRAGMA journal_mode=WAL;",
				  NULL, NULL, NULL);
	if (rc != SQLITE_OK) {
		code = jdb_errno(db, rc);
		bc_fail(err, code, "%s: cannot create the journal: %s%s", path,
			db ? sqlite3_errmsg(db) : sqlite3_errstr(rc),
			code == -ENOSPC ? "; free some space or make a smaller cache" : "");
	}
	if (sqlite3_close(db) != SQLITE_OK && !code)
		code = bc_fail(err, -EIO, "%s: cannot close the new journal", path);
	if (!code)
		code = fill_holes(path, err);
	return code;
}

static int sync_path(const char *path, int flags, struct bc_error *err)
{
	int fd = open(path, flags | O_CLOEXEC), code = 0;

	if (fd < 0 || fsync(fd) < 0)
		code = bc_fail(err, -errno, "%s: cannot be made durable: %s", path, strerror(errno));
	if (fd >= 0)
		close(fd);
	return code;
}

/* Removes what SQLite may keep beside `path`; what belongs to a journal that is not there (any more) must not be
 * applied to a new one. */
static void remove_beside(const char *path)
{
	static const char *const tails[] = { "-wal", "-shm", "-journal" };
	char name[4200];

	for (size_t i = 0; i < sizeof(tails) / sizeof(tails[0]); i++) {
		snprintf(name, sizeof(name), "%s%s", path, tails[i]);
		unlink(name);
	}
}

int journal_create(const char *dir, const struct journal_geometry *geo, struct bc_error *err)
{
	char path[4100], tmp[4110];
	const char *why = geometry_check(geo);
	struct stat st;
	int code;

	if (why)
		return bc_fail(err, -EINVAL, "%s: cannot create the journal: %s", dir, why);
	if ((size_t)snprintf(path, sizeof(path), "%s/%s", dir, JOURNAL_FILE) >= sizeof(path))
		return bc_fail(err, -ENAMETOOLONG, "%s: path too long", dir);
	snprintf(tmp, sizeof(tmp), "%s.new", path);
	if (!lstat(path, &st))
		return bc_fail(err, -EEXIST, "%s: exists already", path);
	/* Left over from an attempt that was killed. */
	unlink(tmp);
	remove_beside(tmp);
	code = build(tmp, geo, err);
	if (!code)
		code = ring_create(path, geo, err); /* means nothing as long as there is no journal */
	if (!code && !MUTATE(CREATE_SYNC))
		code = sync_path(tmp, O_RDONLY, err);
	if (!code) {
		remove_beside(path);
		code = sync_path(dir, O_RDONLY | O_DIRECTORY, err);
	}
	if (!code && renameat2(AT_FDCWD, tmp, AT_FDCWD, path, RENAME_NOREPLACE) < 0)
		code = bc_fail(err, -errno, "%s: %s", path, errno == EEXIST ? "exists already" : strerror(errno));
	if (!code) {
		code = sync_path(dir, O_RDONLY | O_DIRECTORY, err);
		if (!code)
			return 0;
		unlink(path);
	}
	unlink(tmp);
	remove_beside(tmp);
	if (code != -EEXIST) {
		snprintf(tmp, sizeof(tmp), "%s" RING_SUFFIX, path);
		unlink(tmp);
	}
	return code;
}
