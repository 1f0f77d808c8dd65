/* SPDX-License-Identifier: BSD-3-Clause */
/* engine.c - opening and closing a cache, and what happens when it fails (P6) or degrades (P7). */
#include "internal.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "blkcache/units.h"
#include "bypass.h"
#include "recover.h"
#include "survive.h"

static void say(struct cache *c, const char *fmt, va_list ap)
{
	char text[sizeof c->why];

	vsnprintf(text, sizeof text, fmt, ap);
	pthread_mutex_lock(&c->why_lock);
	memcpy(c->why, text, sizeof text);
	pthread_mutex_unlock(&c->why_lock);
	log_error("%s: %s", c->dir, text);
}

/* Final (P6): the first reason is kept. Waiters are woken so that they see it. */
void cache_fail(struct cache *c, const char *fmt, ...)
{
	va_list ap;

	if (atomic_exchange(&c->failed, true))
		return;
	va_start(ap, fmt);
	say(c, fmt, ap);
	va_end(ap);
	survive_cache_failed(c);
	slots_abort(&c->slots);
}

void cache_degrade(struct cache *c, const char *fmt, ...)
{
	bool was = atomic_exchange(&c->degraded, true);
	va_list ap;

	va_start(ap, fmt);
	if (!was && !c->failed) {
		say(c, fmt, ap);
	} else if (now_ns() - GET(c->last_log) < 1000000000) { /* one a second says enough */
		ADD(c->unlogged, 1);
	} else {
		uint64_t more = atomic_exchange(&c->unlogged, 0);
		char text[sizeof c->why];

		vsnprintf(text, sizeof text, fmt, ap);
		log_error("%s: %s%s", c->dir, text, more ? " (and more)" : "");
		atomic_store(&c->last_log, now_ns());
	}
	va_end(ap);
}

const char *cache_data_spec;

static int open_data(struct cache *c, struct bc_error *err)
{
	char *path = NULL;
	int rc;

	if (asprintf(&path, "%s/%s", c->dir, CACHE_DATA_FILE) < 0)
		return bc_fail(err, -ENOMEM, "out of memory");
	rc = bdev_open(cache_data_spec ? cache_data_spec : path, BDEV_OPEN_CLAIM, &c->data, err);
	free(path);
	if (rc)
		return bc_fail_prefix(err, "cache %s", c->dir);
	if (bdev_size(c->data) < c->geo.size_bytes)
		return bc_fail(
			err, -EUCLEAN,
			"cache %s: its data file has %llu bytes and should have %llu; it was cut off or replaced",
			c->dir, (unsigned long long)bdev_size(c->data), (unsigned long long)c->geo.size_bytes);
	return 0;
}

/* How much is kept free, and how much a write may take at once, in terms of what there is. */
static void set_limits(struct cache *c, uint64_t frames)
{
	uint32_t n = c->geo.nslots, piece = MAX_BLOCKS - 1;

	if (piece > n / 16)
		piece = n / 16;
	if (piece > frames / 8)
		piece = (uint32_t)(frames / 8);
	if (!piece)
		piece = 1;
	c->write_piece = piece;
	c->alloc_max = frames / 4 < MAX_BLOCKS ? (uint32_t)(frames / 4) : MAX_BLOCKS;
	c->slots_low = n / 64 > 2 * piece ? n / 64 : 2 * piece;
	if (c->slots_low > 65536)
		c->slots_low = 65536;
	c->slots_high = 2 * c->slots_low;
}

static uint64_t metadata_bytes(const struct journal_geometry *geo)
{
	return lines_bytes(geo->nlines, geo->blocks_per_line) + slots_bytes(geo->nslots);
}

int cache_check_memory(const char *dir, const struct journal_geometry *geo, struct bc_error *err)
{
	uint64_t need = metadata_bytes(geo), have = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
	char a[32], b[32];

	if (need <= have)
		return 0;
	return bc_fail(err, -ENOMEM,
		       "cache %s: its metadata takes %s of RAM and this machine has %s; larger lines take less", dir,
		       units_format_size(a, sizeof a, need), units_format_size(b, sizeof b, have));
}

static int setup_memory(struct cache *c, struct bc_error *err)
{
	int rc = cache_check_memory(c->dir, &c->geo, err);
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
	struct buffer_pool_params pp = { .memory = GET(c->tunables.ram_bytes),
					 .block_size = CACHE_BLOCK,
					 .shared_fd = c->shared ? c->shared->frames_fd : 0 };
	int rc = buffer_pool_create(&pp, &c->pool, err);

	if (!rc)
		rc = buffer_client_create(c->pool, c->data, &c->buffers, err);
	if (rc)
		return rc;
	c->ram_bytes = pp.memory;
	set_limits(c, pp.memory / CACHE_BLOCK);
	return 0;
}

static void free_cache(struct cache *c)
{
	readahead_stop(c);
	readahead_pool_destroy(&c->readahead);
	io_destroy(c);
	survive_end(c);
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

static int clear_all_marks(struct volume *v, void *ctx)
{
	(void)ctx;
	return v->bdev ? intent_clear_idle(v, true) : 0;
}

/* A backing device whose flush had failed before a takeover cannot be flushed: its marks stay, the load goes on. */
static int clear_first_marks(struct volume *v, void *ctx)
{
	return atomic_load(&v->backing_failed) ? 0 : clear_all_marks(v, ctx);
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
	rc = io_init(c);
	if (!rc)
		rc = cache_lock_dir(c->dir, flags & CACHE_OPEN_NO_VOLUMES, shared ? shared->lock_fd : 0, &c->dir_fd,
				    &c->lock_fd, err);
	if (!rc)
		rc = journal_open(c->dir, false, &c->journal, err);
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
		rc = survive_begin(c, shared, err);
	if (!rc && !(flags & CACHE_OPEN_NO_VOLUMES)) {
		rc = cache_volume_foreach(c, clear_first_marks, NULL);
		if (rc)
			bc_fail(err, rc, "cache %s: %s", c->dir, c->why[0] ? c->why : strerror(-rc));
		if (!rc)
			rc = count_load(c, err);
		if (!rc)
			rc = journal_setting_put(c->journal, CLEAN_STOP_KEY, "no", err);
		if (!rc && GET(c->tunables.read_ahead) && (rc = readahead_start(c)))
			bc_fail(err, rc, "cache %s: threads cannot be started: %s", c->dir, strerror(-rc));
		if (!rc && (rc = background_start(c)))
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
	if (!v->bdev || GET(v->intent.nmarked) || !v->row_in_use)
		return 0;
	witness_refill(v);
	return volume_record(v, false, ctx);
}

static int flush_backing(struct volume *v, void *ctx)
{
	struct io_thread *t = io_thread_get(v->cache);

	(void)ctx;
	return !v->bdev ? 0 : t ? backing_flush(t, v) : -ENOMEM;
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
		background_stop(c);
	readahead_stop(c);
	if (cache_bypassed(c)) { /* the backing devices have everything */
		rc = cache_volume_foreach(c, flush_backing, NULL);
		if (rc)
			bc_fail(err, rc, "cache %s: a backing device could not be flushed: %s", c->dir, strerror(-rc));
		free_cache(c);
		return rc;
	}
	rc = epoch_commit(c, true);
	/* with everything in the data file, what goes bad there later is damage of single blocks, not an unfinished
	 * epoch */
	if (!rc)
		rc = journal_note_durable(c->journal, GET(c->epoch.data_upto), &own);
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
