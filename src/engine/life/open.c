/* SPDX-License-Identifier: BSD-3-Clause */
/* open.c - opening and closing a cache. */
#include "engine/life/life.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blkcache/units.h"
#include "engine/durable/bypass.h"
#include "engine/durable/takeover_log.h"
#include "engine/life/recover.h"
#include "util/cow.h"
#include "util/limits.h"

const char *cache_data_spec;

/* A cache that an older release made on btrfs, or one that was copied there. */
static void warn_of_copies(const struct cache *c)
{
	int fd = openat(c->dir_fd, CACHE_DATA_FILE, O_RDONLY | O_CLOEXEC);
	const char *name = fd >= 0 ? cow_name(fd) : NULL;

	if (name && !(c->open_flags & CACHE_OPEN_NO_VOLUMES))
		log_warn("%s: its data file is copied on write by %s: with a full disk flushes will fail; a cache made "
			 "anew "
			 "there, or one on ext4 or XFS, is better",
			 c->dir, name);
	if (fd >= 0)
		close(fd);
}

int cache_check_data_file(const char *dir, struct bc_error *err)
{
	char path[4200];
	struct stat st;

	snprintf(path, sizeof path, "%s/%s", dir, CACHE_DATA_FILE);
	if (!stat(path, &st) || errno != ENOENT)
		return 0;
	return bc_fail(
		err, -ENOENT,
		"cache %s: its data file (%s) is missing: put it back. If it is lost, so is the dirty data that was "
		"in it; then make a new cache in another folder",
		dir, CACHE_DATA_FILE);
}

int cache_check_writable(const struct cache *c, struct bc_error *err)
{
	return c->read_only
		       ? bc_fail(err, -EROFS,
				 "cache %s lies on a read-only file system, so nothing about it can be changed; make "
				 "that writable first",
				 c->dir)
		       : 0;
}

#define SMALL_FILES (16u << 20) /* what the journal's files have in a small cache, and the longest part of it */

/* What lies beyond the limit could not be written, and the first such write would end the cache. */
static int check_file_size_limit(struct cache *c, struct bc_error *err)
{
	uint64_t need = c->geo.size_bytes > SMALL_FILES ? c->geo.size_bytes : SMALL_FILES;
	char a[32], b[32];
	struct rlimit r;

	if (c->open_flags & CACHE_OPEN_NO_VOLUMES || getrlimit(RLIMIT_FSIZE, &r) || r.rlim_cur == RLIM_INFINITY ||
	    r.rlim_cur >= need)
		return 0;
	return bc_fail(err, -EFBIG,
		       "cache %s: its files have up to %s, and the limit of file sizes (ulimit -f) is %s; raise it",
		       c->dir, units_format_size(a, sizeof a, need), units_format_size(b, sizeof b, r.rlim_cur));
}

static int open_data(struct cache *c, struct bc_error *err)
{
	char *path = NULL;
	int rc;

	if (asprintf(&path, "%s/%s", c->dir, CACHE_DATA_FILE) < 0)
		return bc_fail(err, -ENOMEM, "out of memory");
	rc = cache_data_spec ? 0 : cache_check_data_file(c->dir, err);
	if (!rc)
		rc = bdev_open(cache_data_spec ? cache_data_spec : path,
			       c->read_only ? BDEV_OPEN_RDONLY : BDEV_OPEN_CLAIM, &c->data, err);
	free(path);
	if (rc)
		return rc == -ENOENT ? rc : bc_fail_prefix(err, "cache %s", c->dir);
	if (bdev_size(c->data) < c->geo.size_bytes)
		return bc_fail(
			err, -EUCLEAN,
			"cache %s: its data file has %llu bytes and should have %llu; it was cut off or replaced",
			c->dir, (unsigned long long)bdev_size(c->data), (unsigned long long)c->geo.size_bytes);
	warn_of_copies(c);
	return check_file_size_limit(c, err);
}

static uint64_t metadata_bytes(const struct journal_geometry *geo)
{
	return lines_bytes(geo->nlines, geo->blocks_per_line) + slots_bytes(geo->nslots);
}

static int check_memory(const char *dir, const struct journal_geometry *geo, struct bc_error *err)
{
	const char *what;
	uint64_t need = metadata_bytes(geo), have = limits_memory(&what);
	char a[32], b[32];

	if (need <= have)
		return 0;
	return bc_fail(err, -ENOMEM, "cache %s: its metadata takes %s of RAM, and %s %s; larger lines take less", dir,
		       units_format_size(a, sizeof a, need), what, units_format_size(b, sizeof b, have));
}

static int setup_memory(struct cache *c, struct bc_error *err)
{
	int rc = check_memory(c->dir, &c->geo, err);
	char a[32];

	if (rc)
		return rc;
	if (lines_init(&c->lines, c->geo.nlines, c->geo.blocks_per_line) || slots_init(&c->slots, c->geo.nslots))
		return bc_fail(err, -ENOMEM,
			       "cache %s: %s of RAM for its metadata cannot be had; larger lines take less", c->dir,
			       units_format_size(a, sizeof a, metadata_bytes(&c->geo)));
	return 0;
}

int cache_setup_buffers(struct cache *c, struct bc_error *err)
{
	int rc = ram_setup(c, err);

	if (!rc)
		rc = buffer_client_create(c->pool, c->data, &c->buffers, err);
	if (!rc)
		space_limits_init(&c->space, c->geo.nslots, c->ram_bytes / CACHE_BLOCK, MAX_BLOCKS);
	return rc;
}

static void free_cache(struct cache *c)
{
	readahead_stop(c);
	readahead_pool_destroy(&c->readahead);
	thread_ctx_destroy(c);
	takeover_end(c);
	idle_destroy(c);
	cleaner_destroy(c);
	for (unsigned i = 1; i <= CACHE_MAX_VOLUMES; i++)
		if (c->volume[i])
			volume_detach(c->volume[i]);
	epoch_destroy(&c->epoch);
	buffer_client_destroy(c->buffers);
	buffer_pool_destroy(c->pool);
	journal_close(c->journal);
	bdev_close(c->data);
	lines_destroy(&c->lines);
	slots_destroy(&c->slots);
	range_table_destroy(&c->ranges);
	pthread_rwlock_destroy(&c->volumes_lock);
	pthread_mutex_destroy(&c->why_lock);
	pthread_mutex_destroy(&c->note_lock);
	if (c->lock_fd >= 0) {
		if (c->stopping) /* else whoever takes over goes on with it */
			flock(c->lock_fd, LOCK_UN);
		close(c->lock_fd);
	}
	if (c->dir_fd >= 0)
		close(c->dir_fd);
	free(c->dir);
	free(c);
}

/* A backing file that was deleted cannot be flushed in earnest: its marks stay. */
static int clear_all_marks(struct volume *v, void *ctx)
{
	int rc = v->bdev ? intent_clear_idle(v, true) : 0;

	(void)ctx;
	return rc == -ESTALE ? 0 : rc;
}

/* What was written before a crash, and not flushed since, is as good as a write of ours: the marks go when the helpers
 * have flushed it, and a device that is slow at that keeps no load waiting. */
static int owe_flush(struct volume *v, void *ctx)
{
	(void)ctx;
	if (v->bdev && ctr_get(v->intent.nmarked))
		atomic_fetch_add(&v->write_seq, 1);
	return 0;
}

/* Durable before anything is written for a client: from now on an earlier note does not mean this journal (bypass.h).
 */
static int count_load(struct cache *c, struct bc_error *err)
{
	char text[32];

	snprintf(text, sizeof text, "%llu", (unsigned long long)++c->loads);
	return journal_setting_put(c->journal, LOADS_KEY, text, err);
}

int cache_open(const char *dir, unsigned flags, struct cache **out, struct cache_open_report *report,
	       struct bc_error *err)
{
	return cache_open_accepting(dir, flags, NULL, out, report, err);
}

int cache_open_accepting(const char *dir, unsigned flags, const char *const *accepted, struct cache **out,
			 struct cache_open_report *report, struct bc_error *err)
{
	return cache_open_shared(dir, flags, accepted, NULL, out, report, err);
}

int cache_open_shared(const char *dir, unsigned flags, const char *const *accepted, const struct cache_shared *shared,
		      struct cache **out, struct cache_open_report *report, struct bc_error *err)
{
	struct cache_open_report dummy;
	struct cache *c = calloc(1, sizeof *c);
	int rc;

	if (!c)
		return bc_fail(err, -ENOMEM, "out of memory");
	c->dir_fd = c->lock_fd = -1;
	c->open_flags = flags;
	c->accepted = accepted;
	c->shared = shared;
	c->policy.ops = &policy_clock;
	c->on_failed = takeover_log_cache_failed;
	c->after_read = tidy_after_read;
	c->given_in_vain = UINT64_MAX;
	pthread_mutex_init(&c->why_lock, NULL);
	pthread_mutex_init(&c->note_lock, NULL);
	pthread_rwlock_init(&c->volumes_lock, NULL);
	range_table_init(&c->ranges);
	readahead_pool_init(&c->readahead);
	tunables_init(c);
	c->dir = realpath(dir, NULL);
	if (!c->dir) {
		rc = bc_fail(err, -errno, "cache %s: %s", dir, strerror(errno));
		free(c);
		return rc;
	}
	rc = cache_check_path(c->dir, err);
	if (rc) {
		free(c->dir);
		free(c);
		return rc;
	}
	if (!cache_exists(c->dir)) {
		rc = bc_fail(err, -ENOENT, "%s holds no cache (there is no %s in it); `blkcache create` makes one", dir,
			     JOURNAL_FILE);
		free(c->dir);
		free(c);
		return rc;
	}
	rc = thread_ctx_init(c);
	if (!rc)
		rc = cache_lock_dir(c->dir, flags & CACHE_OPEN_NO_VOLUMES, shared ? shared->lock_fd : 0, &c->dir_fd,
				    &c->lock_fd, err);
	c->read_only = !rc && cache_lock_is_read_only(c->lock_fd);
	if (!rc)
		rc = journal_open(c->dir, c->read_only, &c->journal, err);
	if (rc)
		goto fail;
	journal_get_geometry(c->journal, &c->geo);
	rc = open_data(c, err);
	if (!rc)
		rc = setup_memory(c, err);
	if (!rc && (epoch_init(&c->epoch, c) || cleaner_init(c) || idle_init(c)))
		rc = bc_fail(err, -ENOMEM, "out of memory");
	if (!rc)
		rc = recover(c, report ? report : &dummy, err);
	if (!rc && shared)
		rc = takeover_begin(c, shared, err);
	if (!rc && !(flags & CACHE_OPEN_NO_VOLUMES)) {
		cache_volume_foreach(c, owe_flush, NULL);
		rc = count_load(c, err);
		if (!rc)
			rc = journal_setting_put(c->journal, CLEAN_STOP_KEY, "no", err);
		if (!rc && ctr_get(c->tunables.read_ahead) && (rc = readahead_start(c)))
			bc_fail(err, rc, "cache %s: threads cannot be started: %s", c->dir, strerror(-rc));
		if (!rc && (rc = threads_start(c)))
			bc_fail(err, rc, "cache %s: background threads cannot be started: %s", c->dir, strerror(-rc));
	}
	if (rc)
		goto fail;
	c->accepted = NULL;
	c->shared = NULL;
	*out = c;
	return 0;
fail:
	free_cache(c);
	return rc;
}

/* Everything is durable and the marks are gone: the row says that the backing device is as we left it. */
static int mark_stopped(struct volume *v, void *ctx)
{
	if (!v->bdev || ctr_get(v->intent.nmarked) || !v->row_in_use)
		return 0;
	witness_refill(v);
	return volume_record(v, false, ctx);
}

/* Of a bypassed cache: also makes its journal void, where that still calls dirty what backing has newer. */
static int flush_bypassed(struct volume *v, void *ctx)
{
	(void)ctx;
	return v->bdev ? volume_flush(v) : 0;
}

void cache_hold(struct cache *c)
{
	atomic_fetch_add(&c->holds, 1);
}

void cache_release(struct cache *c)
{
	atomic_fetch_sub(&c->holds, 1); /* with all that was done before */
}

int cache_close(struct cache *c, struct bc_error *err)
{
	return cache_close_telling(c, NULL, err);
}

int cache_close_telling(struct cache *c, _Atomic bool *durable, struct bc_error *err)
{
	struct bc_error own = { 0 };
	int rc;

	if (!c)
		return 0;
	c->stopping = true;
	/* first, and by itself: what follows may have to wait for backing devices, and a caller who has enough of that
	 * ends the process (P1) */
	rc = epoch_commit(c, true);
	if (durable)
		atomic_store(durable, !rc);
	while (atomic_load(&c->holds)) /* they write to backing devices, and have been told to stop */
		nanosleep(&(struct timespec){ .tv_nsec = 10000000 }, NULL);
	if (c->background.started)
		threads_stop(c);
	readahead_stop(c);
	if (cache_bypassed(c)) { /* the backing devices have everything */
		rc = cache_volume_foreach(c, flush_bypassed, NULL);
		if (rc)
			bc_fail(err, rc, "cache %s: a backing device could not be flushed: %s", c->dir, strerror(-rc));
		free_cache(c);
		return rc;
	}
	if (c->read_only) {
		free_cache(c);
		return 0;
	}
	rc = epoch_commit(c, true);
	/* with everything in the data file, what goes bad there later is damage of single blocks, not an unfinished
	 * epoch */
	if (!rc)
		rc = journal_note_durable(c->journal, ctr_get(c->epoch.data_upto), &own);
	if (!rc && !(c->open_flags & CACHE_OPEN_NO_VOLUMES)) {
		rc = cache_volume_foreach(c, clear_all_marks, NULL);
		if (!rc)
			rc = cache_volume_foreach(c, mark_stopped, &own);
		if (!rc)
			rc = journal_setting_put(c->journal, CLEAN_STOP_KEY, "yes", &own);
	}
	if (rc)
		bc_fail(err, rc, "cache %s: not everything could be made durable: %s", c->dir,
			own.code    ? own.msg
			: c->why[0] ? c->why
				    : strerror(-rc));
	free_cache(c);
	return rc;
}
