/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * create.c - makes a cache folder. The journal is written last: a folder without one is no cache, so a crash half-way
 * leaves nothing that could be mistaken for one. Replacing an old cache (--force) first proves that it holds no dirty
 * data (P8).
 */
#include "internal.h"

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

bool cache_exists(const char *dir)
{
	char path[4096];
	struct stat st;

	return snprintf(path, sizeof path, "%s/%s", dir, JOURNAL_FILE) < (int)sizeof path && !stat(path, &st);
}

static int check_params(const struct cache_create_params *p, struct journal_geometry *geo, struct bc_error *err)
{
	uint32_t line = p->line_size ? p->line_size : CACHE_BLOCK;
	char a[32], b[32];

	if (line < CACHE_BLOCK || line > 65536 || line & (line - 1))
		return bc_fail(err, -EINVAL, "line size %u: it must be 4K, 8K, 16K, 32K or 64K", line);
	if (p->size_bytes < CACHE_MIN_SIZE)
		return bc_fail(err, -EINVAL, "cache size %s is too small; it must be at least %s",
			       units_format_size(a, sizeof a, p->size_bytes),
			       units_format_size(b, sizeof b, CACHE_MIN_SIZE));
	if (p->size_bytes / CACHE_BLOCK >= UINT32_MAX)
		return bc_fail(err, -EINVAL, "cache size %s is too large; it must be below 16T",
			       units_format_size(a, sizeof a, p->size_bytes));
	if (p->ram_bytes && p->ram_bytes < CACHE_MIN_RAM)
		return bc_fail(err, -EINVAL, "ram %s is too small; it must be at least %s",
			       units_format_size(a, sizeof a, p->ram_bytes),
			       units_format_size(b, sizeof b, CACHE_MIN_RAM));
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

static int make_data_file(int dir_fd, const char *dir, uint64_t bytes, struct bc_error *err)
{
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

/* The journal goes first, and durably: a folder that has a journal but not the data file would be a broken cache, which
 * nobody could replace any more. */
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

int cache_create(const char *dir, const struct cache_create_params *p, struct bc_error *err)
{
	struct journal_geometry geo;
	int dir_fd = -1, lock_fd = -1, rc = check_params(p, &geo, err);
	bool made = false;

	if (!rc)
		rc = cache_check_memory(dir, &geo, err);
	if (rc)
		return rc;
	if (cache_exists(dir)) {
		if (!p->force)
			return bc_fail(err, -EEXIST,
				       "%s holds a cache already; --force replaces it if it holds no dirty data", dir);
		rc = check_old(dir, err);
		if (rc)
			return rc;
	} else if (!mkdir(dir, 0700)) {
		made = true;
	} else if (errno != EEXIST) {
		return bc_fail(err, -errno, "%s: the cache folder cannot be made: %s", dir, strerror(errno));
	}
	rc = cache_lock_dir(dir, true, 0, &dir_fd, &lock_fd, err);
	if (rc)
		goto out;
	if (p->force)
		remove_files(dir_fd);
	rc = make_data_file(dir_fd, dir, geo.size_bytes, err);
	if (rc == -EEXIST)
		goto out; /* not ours: leave it */
	if (!rc)
		rc = journal_create(dir, &geo, err);
	if (!rc)
		rc = put_settings(dir, p, err);
	if (rc)
		remove_files(dir_fd);
out:
	if (rc && lock_fd >= 0 && !cache_exists(dir))
		unlinkat(dir_fd, CACHE_LOCK_FILE, 0);
	if (lock_fd >= 0)
		close(lock_fd);
	if (dir_fd >= 0)
		close(dir_fd);
	if (rc && made)
		rmdir(dir);
	return rc;
}
