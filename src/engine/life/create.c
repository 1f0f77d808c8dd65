/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * create.c - makes a cache folder. The journal is written last: a folder without one is no cache, so a crash half-way
 * leaves nothing that could be mistaken for one. Replacing an old cache (--force) first proves that it holds no dirty
 * data (P8).
 *
 * Names prove nothing: a file called "data" may be anybody's. So a folder that is no cache has to be empty, and what is
 * removed after a failure is what this call has made (O_EXCL says so). The files of a create that a crash broke off are
 * told by a note beside them, MARKER, with a text of ours: it is durable before the first of them is made, and before
 * the first file of an old cache is removed; it goes when the new cache is whole. A note beside a journal means
 * nothing: the crash came before the old cache was touched, or after the new one was done.
 */
#include "engine/life/life.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "blkcache/units.h"
#include "util/cow.h"
#include "util/limits.h"

#define MARKER "journal.db.creating"
#define MARKER_TEXT "blkcache create was broken off here; it may be repeated, or this folder be removed\n"
#define PATH_ROOM 32 /* what SQLite needs behind the folder's path: "/journal.db.new-journal" */
#define SQLITE_PATH 512 /* os_unix.c: MAX_PATHNAME */

int cache_check_path(const char *dir, struct bc_error *err)
{
	if (strlen(dir) + PATH_ROOM <= SQLITE_PATH)
		return 0;
	return bc_fail(
		err, -ENAMETOOLONG,
		"the path of the cache folder is %zu bytes long, and SQLite takes at most %d: use a shorter one, or a "
		"bind mount; it is %s",
		strlen(dir), SQLITE_PATH - PATH_ROOM, dir);
}

bool cache_exists(const char *dir)
{
	char path[4096];
	struct stat st;

	return snprintf(path, sizeof path, "%s/%s", dir, JOURNAL_FILE) < (int)sizeof path && !stat(path, &st);
}

static int check_params(const struct cache_create_params *p, struct journal_geometry *geo, struct bc_error *err)
{
	uint32_t line = p->line_size ? p->line_size : CACHE_BLOCK;
	char a[32];

	if (line < CACHE_BLOCK || line > 65536 || line & (line - 1))
		return bc_fail(err, -EINVAL, "line size %u: it must be 4K, 8K, 16K, 32K or 64K", line);
	if (p->size_bytes < CACHE_MIN_SIZE)
		return bc_fail(err, -EINVAL, "cache size %" PRIu64 " bytes is too small; it must be at least %s",
			       p->size_bytes, units_format_size(a, sizeof a, CACHE_MIN_SIZE));
	if (p->size_bytes / CACHE_BLOCK >= UINT32_MAX)
		return bc_fail(err, -EINVAL, "cache size %s is too large; it must be below 16T",
			       units_format_size(a, sizeof a, p->size_bytes));
	memset(geo, 0, sizeof *geo);
	geo->line_size = line;
	geo->blocks_per_line = line / CACHE_BLOCK;
	geo->nlines = (uint32_t)(p->size_bytes / line);
	geo->nslots = geo->nlines * geo->blocks_per_line;
	geo->size_bytes = (uint64_t)geo->nslots * CACHE_BLOCK;
	if (getrandom(geo->uuid, sizeof geo->uuid, 0) != sizeof geo->uuid)
		return bc_fail(err, -EIO, "no random numbers for the cache's id");
	geo->uuid[6] = (uint8_t)((geo->uuid[6] & 0x0f) | 0x40);
	geo->uuid[8] = (uint8_t)((geo->uuid[8] & 0x3f) | 0x80);
	return 0;
}

/* What a load would refuse is refused here: larger lines can still be chosen. */
static int check_memory(const struct cache_create_params *p, const struct journal_geometry *geo, struct bc_error *err)
{
	uint64_t need = lines_bytes(geo->nlines, geo->blocks_per_line) + slots_bytes(geo->nslots), have;
	char a[32], b[32];
	const char *what;

	have = limits_memory(&what);
	if (need > have / 4 * 3)
		return bc_fail(
			err, -ENOMEM,
			"cache size %s: its metadata takes %s of RAM, and %s %s; larger lines (--line-size) take "
			"less",
			units_format_size(a, sizeof a, p->size_bytes), units_format_size(b, sizeof b, need), what,
			units_format_size((char[32]){ 0 }, 32, have));
	if (!p->ram_bytes)
		return 0;
	if (p->ram_bytes < CACHE_MIN_RAM)
		return bc_fail(err, -EINVAL, "ram %s is too small; it must be at least %s",
			       units_format_size(a, sizeof a, p->ram_bytes),
			       units_format_size(b, sizeof b, CACHE_MIN_RAM));
	return tunables_check_ram(p->ram_bytes, err) ? -EINVAL : ram_check(p->ram_bytes, need, err);
}

/* The old cache may go only if it can be read and holds nothing dirty. */
static int check_old(const char *dir, struct bc_error *err)
{
	struct cache_open_report report;
	struct cache *old;
	struct cache_info info;
	char size[32];
	int rc = cache_open(dir, CACHE_OPEN_NO_VOLUMES, &old, &report, err);

	if (rc == -EBUSY)
		return rc;
	if (rc)
		return bc_fail_prefix(
			err, "the old cache in %s is not replaced, since it cannot be told whether it holds dirty data",
			dir);
	cache_get_info(old, &info);
	cache_close(old, NULL);
	if (info.dirty_bytes)
		return bc_fail(err, -ENOTEMPTY,
			       "the old cache in %s holds %s of dirty data and is not replaced; load it and flush it, "
			       "or remove its volumes "
			       "with --discard-dirty",
			       dir, units_format_size(size, sizeof size, info.dirty_bytes));
	return 0;
}

/* What one call has made and, if it fails, takes back. */
struct making {
	const char *dir;
	int dir_fd, lock_fd;
	bool was_cache; /* an old one is to be replaced */
	bool broken_off; /* MARKER lies there without a cache: so all files with our names are leftovers */
	bool cleared; /* of was_cache and broken_off */
	bool made_dir, made_marker, made_lock, made_data, made_journal;
};

static bool is_marker(int dir_fd)
{
	char text[sizeof MARKER_TEXT] = "";
	int fd = openat(dir_fd, MARKER, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : pread(fd, text, sizeof text, 0);

	if (fd >= 0)
		close(fd);
	return n == sizeof MARKER_TEXT - 1 && !memcmp(text, MARKER_TEXT, (size_t)n);
}

/* A folder that is no cache: nothing in it but what a new file system has, or what a create that was broken off left.
 */
static int check_empty(struct making *m, struct bc_error *err)
{
	static const char *const leftovers[] = { MARKER,
						 CACHE_DATA_FILE,
						 CACHE_LOCK_FILE,
						 JOURNAL_FILE "-wal",
						 JOURNAL_FILE "-shm",
						 JOURNAL_FILE "-ring",
						 JOURNAL_FILE ".new",
						 JOURNAL_FILE ".new-journal",
						 JOURNAL_FILE ".new-wal",
						 JOURNAL_FILE ".new-shm" };
	struct dirent *e;
	char path[64];
	int rc = 0;
	size_t i;
	DIR *d;

	snprintf(path, sizeof path, "/proc/self/fd/%d", m->dir_fd);
	d = opendir(path);
	if (!d)
		return bc_fail(err, -errno, "%s: the folder cannot be read: %s", m->dir, strerror(errno));
	m->broken_off = is_marker(m->dir_fd);
	while (!rc && (e = readdir(d))) {
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..") || !strcmp(e->d_name, "lost+found"))
			continue;
		for (i = 0; i < sizeof leftovers / sizeof leftovers[0] && strcmp(e->d_name, leftovers[i]); i++)
			;
		if (!m->broken_off || i == sizeof leftovers / sizeof leftovers[0])
			rc = bc_fail(err, -ENOTEMPTY,
				     "%s: the folder holds no cache and is not empty ('%s' is in it); give an empty or "
				     "a new "
				     "folder",
				     m->dir, e->d_name);
	}
	closedir(d);
	return rc;
}

static int make_marker(struct making *m, struct bc_error *err)
{
	size_t n = sizeof MARKER_TEXT - 1;
	int fd, rc = 0;

	if (m->broken_off || is_marker(m->dir_fd))
		return 0;
	fd = openat(m->dir_fd, MARKER, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return bc_fail(err, -errno, "%s/" MARKER " cannot be made: %s", m->dir, strerror(errno));
	m->made_marker = true;
	errno = ENOSPC;
	if (pwrite(fd, MARKER_TEXT, n, 0) != (ssize_t)n || (!MUTATE(CREATE_NOTE) && (fsync(fd) || fsync(m->dir_fd))))
		rc = bc_fail(err, -errno, "%s/" MARKER " cannot be written: %s", m->dir, strerror(errno));
	close(fd);
	return rc;
}

/* Opened again by cache_lock_dir(), which would take anybody's file of that name. */
static int make_lock(struct making *m, struct bc_error *err)
{
	int fd;

	if (m->was_cache || m->broken_off)
		return 0;
	fd = openat(m->dir_fd, CACHE_LOCK_FILE, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return bc_fail(err, -errno, "%s/" CACHE_LOCK_FILE " cannot be made: %s", m->dir, strerror(errno));
	m->made_lock = true;
	close(fd);
	return 0;
}

/* Locked; is it still the folder that was looked at? Another create may have come first, and may have failed. */
static int check_locked(const struct making *m, struct bc_error *err)
{
	struct stat ours, now;

	if (!fstat(m->lock_fd, &ours) && !fstatat(m->dir_fd, CACHE_LOCK_FILE, &now, AT_SYMLINK_NOFOLLOW) &&
	    ours.st_ino == now.st_ino && ours.st_dev == now.st_dev && cache_exists(m->dir) == m->was_cache)
		return 0;
	return bc_fail(err, -EBUSY,
		       "%s: somebody else makes or removes a cache there; look what became of it, then try "
		       "again",
		       m->dir);
}

static int make_data_file(struct making *m, uint64_t bytes, struct bc_error *err)
{
	const char *dir = m->dir;
	int dir_fd = m->dir_fd;
	char need[32], have[32];
	struct statfs fs;
	int fd, rc;

	if (!fstatfs(dir_fd, &fs) && (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize < bytes)
		return bc_fail(err, -ENOSPC, "%s: the cache needs %s and its file system has %s free", dir,
			       units_format_size(need, sizeof need, bytes),
			       units_format_size(have, sizeof have, (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize));
	fd = openat(dir_fd, CACHE_DATA_FILE, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return bc_fail(err, -errno, "%s/%s cannot be made: %s", dir, CACHE_DATA_FILE, strerror(errno));
	m->made_data = true;
	if (cow_switch_off(fd))
		log_warn("%s lies on %s, which copies on write: with a full disk flushes will fail; a folder on ext4 "
			 "or XFS "
			 "is better",
			 dir, cow_name(fd));
	/* space must not run out half-way through a flush */
	rc = fallocate(fd, 0, 0, (off_t)bytes) ? -errno : 0;
	if (rc == -EOPNOTSUPP)
		rc = -posix_fallocate(fd, 0, (off_t)bytes);
	if (!rc && fsync(fd))
		rc = -errno;
	close(fd);
	if (rc)
		bc_fail(err, rc, "%s/%s: %s for the data file cannot be allocated: %s", dir, CACHE_DATA_FILE,
			units_format_size(need, sizeof need, bytes), strerror(-rc));
	return rc;
}

/* Of an old cache that may go, or of a create that was broken off. The journal goes first, and durably: a folder that
 * has a journal but not the data file would be a broken cache, which nobody could replace any more. */
static void remove_files(int dir_fd)
{
	static const char *const names[] = { JOURNAL_FILE, JOURNAL_FILE "-wal", JOURNAL_FILE "-shm",
					     JOURNAL_FILE "-ring", CACHE_DATA_FILE };

	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
		if (!unlinkat(dir_fd, names[i], 0) && !i && !MUTATE(REMOVE_SYNC) && fsync(dir_fd))
			log_warn("the removal of the old journal could not be synced: %s", strerror(errno));
}

static int put_settings(const char *dir, const struct cache_create_params *p, struct bc_error *err)
{
	struct journal *j;
	char ram[32];
	int rc = journal_open(dir, false, &j, err);

	if (rc)
		return rc;
	snprintf(ram, sizeof ram, "%" PRIu64, p->ram_bytes ? p->ram_bytes : (uint64_t)64 << 20);
	rc = journal_setting_put(j, "ram", ram, err);
	if (!rc)
		rc = journal_setting_put(j, "mode", cache_mode_name(p->mode), err);
	journal_close(j);
	return rc;
}

/* Only what is there because of this call; in the order of remove_files(). */
static void take_back(const struct making *m)
{
	static const char *const of_journal[] = { JOURNAL_FILE, JOURNAL_FILE "-wal", JOURNAL_FILE "-shm",
						  JOURNAL_FILE "-ring" };

	for (size_t i = 0; m->made_journal && i < sizeof of_journal / sizeof of_journal[0]; i++)
		unlinkat(m->dir_fd, of_journal[i], 0);
	if (m->made_data)
		unlinkat(m->dir_fd, CACHE_DATA_FILE, 0);
	if (m->made_lock || m->cleared)
		unlinkat(m->dir_fd, CACHE_LOCK_FILE, 0);
	if (m->made_marker || m->cleared)
		unlinkat(m->dir_fd, MARKER, 0);
}

static int make_files(struct making *m, const struct cache_create_params *p, const struct journal_geometry *geo,
		      struct bc_error *err)
{
	int rc;

	if (m->was_cache || m->broken_off) {
		remove_files(m->dir_fd);
		m->cleared = true;
	}
	rc = make_data_file(m, geo->size_bytes, err);
	if (!rc)
		rc = journal_create(m->dir, geo, err);
	if (rc)
		return rc;
	m->made_journal = true;
	return put_settings(m->dir, p, err);
}

static int make_cache(struct making *m, const struct cache_create_params *p, const struct journal_geometry *geo,
		      struct bc_error *err)
{
	int second_fd = -1, rc = 0;

	m->dir_fd = open(m->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (m->dir_fd < 0)
		return bc_fail(err, -errno, "%s: the cache folder cannot be opened: %s", m->dir, strerror(errno));
	if (!m->was_cache)
		rc = check_empty(m, err);
	if (!rc)
		rc = make_marker(m, err);
	if (!rc)
		rc = make_lock(m, err);
	if (!rc)
		rc = cache_lock_dir(m->dir, true, 0, &second_fd, &m->lock_fd, err);
	if (!rc)
		rc = check_locked(m, err);
	if (rc == -EBUSY)
		m->made_lock = m->made_marker = false; /* another create goes on with them */
	if (!rc)
		rc = make_files(m, p, geo, err);
	if (rc)
		take_back(m);
	else
		unlinkat(m->dir_fd, MARKER, 0);
	if (m->lock_fd >= 0)
		close(m->lock_fd);
	if (second_fd >= 0)
		close(second_fd);
	close(m->dir_fd);
	return rc;
}

int cache_create(const char *dir, const struct cache_create_params *p, struct bc_error *err)
{
	struct making m = { .dir = dir, .dir_fd = -1, .lock_fd = -1 };
	struct journal_geometry geo;
	int rc = check_params(p, &geo, err);

	if (!rc)
		rc = cache_check_path(dir, err);
	if (!rc)
		rc = check_memory(p, &geo, err);
	if (rc)
		return rc;
	if (cache_exists(dir)) {
		if (!p->force)
			return bc_fail(err, -EEXIST,
				       "%s holds a cache already; --force replaces it if it holds no dirty data", dir);
		rc = check_old(dir, err);
		if (rc)
			return rc;
		m.was_cache = true;
	} else if (!mkdir(dir, 0700)) {
		m.made_dir = true;
	} else if (errno != EEXIST) {
		return bc_fail(err, -errno, "%s: the cache folder cannot be made: %s", dir, strerror(errno));
	}
	rc = make_cache(&m, p, &geo, err);
	if (rc && m.made_dir)
		rmdir(dir);
	return rc;
}
