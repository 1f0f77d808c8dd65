/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * background.c - the threads behind the requests: reclaim (free slots), maintenance (an epoch each second, journal
 * folding), cleaning, and compaction with what else is done when the cache is idle. Each sleeps until kicked or its
 * period is over. None of them waits for a backing device: what has to is left to the helpers (helpers.c).
 */
#include "internal.h"

#include <errno.h>
#include <string.h>

#include "util/deadline.h"

/* Sleeps until kicked or for `us`. False: stop. */
static bool job_wait(struct cache *c, enum background_job job, uint64_t us)
{
	struct background *bg = &c->background;
	struct timespec until = deadline_us(us);
	bool go;

	pthread_mutex_lock(&bg->lock);
	while (!bg->wanted[job] && !bg->stop)
		if (pthread_cond_timedwait(&bg->wake[job], &bg->lock, &until))
			break;
	__atomic_store_n(&bg->wanted[job], false, __ATOMIC_RELAXED);
	go = !bg->stop;
	pthread_mutex_unlock(&bg->lock);
	return go;
}

void background_pause(struct cache *c, uint64_t us)
{
	for (uint64_t slept = 0; slept < us && !__atomic_load_n(&c->background.stop, __ATOMIC_RELAXED); slept += 10000)
		nanosleep(&(struct timespec){ .tv_nsec = (us < 10000 ? (long)us : 10000) * 1000 }, NULL);
}

bool background_stopping(struct cache *c)
{
	return __atomic_load_n(&c->background.stop, __ATOMIC_RELAXED);
}

/* Backing is flushed by somebody who may wait for it (helpers.c). */
static int ask_to_settle(struct volume *v, void *ctx)
{
	(void)ctx;
	if (v->bdev && (GET(v->intent.nmarked) || GET(v->row_in_use)))
		helper_ask(v->cache, v->id, HELP_SETTLE);
	return 0;
}

#define LOOK_NS 1000000000u /* between looks at whether it is quiet: we may be called more often, or less */
#define MAINTAIN_STEPS 8 /* of a few milliseconds each */

static void *maintain_main(void *arg)
{
	struct cache *c = arg;
	uint64_t looked = now_ns();

	while (job_wait(c, JOB_MAINTAIN, GET(c->tunables.epoch_interval_us))) {
		struct bc_error err;
		int rc = 1;

		/* most of the data before the commit: flushes then wait for the rest of it only. But not where writers
		 * are about to wait for slots: the writer is at it anyway, and what comes meanwhile is the next's. */
		if ((!epoch_holds_much(c) && epoch_write_data(c)) || epoch_commit(c, true))
			continue;
		cache_volume_foreach(c, ask_to_settle, NULL);
		if (now_ns() - looked >= LOOK_NS) {
			idle_look(c, now_ns() - looked);
			looked = now_ns();
		}
		/* in turns with commits that slots depend on, some steps at least, or the journal would grow */
		for (int n = 0; rc == 1 && !background_stopping(c) && !c->failed && (n < MAINTAIN_STEPS || !epoch_holds_much(c));
		     n++)
			rc = journal_maintain(c->journal, GET(c->epoch.data_upto), &err);
		if (rc < 0 && !c->failed)
			ADD(c->err_cache_write, 1);
		if (rc == -ENOSPC) /* nothing was promised of it, and commits have room of their own */
			cache_degrade(c, "the journal cannot be maintained: %s", err.msg);
		else if (rc < 0 && !c->failed)
			cache_fail(c, "the journal cannot be maintained: %s", err.msg);
	}
	return NULL;
}

static void *reclaim_main(void *arg)
{
	struct cache *c = arg;

	while (job_wait(c, JOB_RECLAIM, 1000000))
		reclaim_run(c);
	return NULL;
}

static void *compact_main(void *arg)
{
	struct cache *c = arg;

	while (job_wait(c, JOB_COMPACT, 3600000000u)) {
		if (atomic_exchange(&c->compact_wanted, false))
			compact_run(c, false);
		if (atomic_exchange(&c->idle.wanted, false))
			idle_run(c);
	}
	return NULL;
}

bool background_too_dirty(struct cache *c)
{
	return GET(c->dirty_lines) * 100 > (uint64_t)c->lines.n * GET(c->tunables.dirty_high_percent) ||
	       GET(c->dirty_blocks) * 100 > (uint64_t)c->slots.n * GET(c->tunables.dirty_high_percent) ||
	       GET(c->slots.nfree) < c->slots_low;
}

static int ask_to_clean(struct volume *v, void *ctx)
{
	if (GET(v->dirty_lines))
		helper_ask(v->cache, v->id, *(const unsigned *)ctx);
	return 0;
}

void clean_all_soon(struct cache *c)
{
	unsigned what = HELP_CLEAN_ALL;

	cache_volume_foreach(c, ask_to_clean, &what);
}

/* Says when to clean; the helpers do it, each volume for itself. */
static void *clean_main(void *arg)
{
	struct cache *c = arg;
	uint64_t last = now_ns();

	while (job_wait(c, JOB_CLEAN, 500000)) {
		unsigned what = HELP_CLEAN_ROOM;

		if (now_ns() - last >= GET(c->tunables.clean_after_us) * 1000) {
			last = now_ns();
			clean_all_soon(c);
		} else if (background_too_dirty(c)) {
			cache_volume_foreach(c, ask_to_clean, &what);
		}
		helpers_look(c);
	}
	return NULL;
}

int background_start(struct cache *c)
{
	static void *(*const mains[JOBS])(void *) = { reclaim_main, maintain_main, clean_main, compact_main };
	static const char *const names[JOBS] = { "reclaim", "maintain", "clean", "compact" };
	struct background *bg = &c->background;
	pthread_condattr_t attr;

	pthread_mutex_init(&bg->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	for (int i = 0; i < JOBS; i++)
		pthread_cond_init(&bg->wake[i], &attr);
	pthread_condattr_destroy(&attr);
	bg->stop = false;
	if (helpers_start(c)) {
		background_stop(c);
		return -ENOMEM;
	}
	for (int i = 0; i < JOBS; i++) {
		int rc = -pthread_create(&bg->thread[i], NULL, mains[i], c);

		if (rc) {
			background_stop(c);
			return rc;
		}
		pthread_setname_np(bg->thread[i], names[i]); /* for top -H and perf */
		bg->started++;
	}
	return 0;
}

void background_stop(struct cache *c)
{
	struct background *bg = &c->background;

	pthread_mutex_lock(&bg->lock);
	__atomic_store_n(&bg->stop, true, __ATOMIC_RELAXED);
	for (int i = 0; i < JOBS; i++)
		pthread_cond_broadcast(&bg->wake[i]);
	pthread_mutex_unlock(&bg->lock);
	for (unsigned i = 0; i < bg->started; i++)
		pthread_join(bg->thread[i], NULL);
	bg->started = 0;
	helpers_stop(c);
	for (int i = 0; i < JOBS; i++)
		pthread_cond_destroy(&bg->wake[i]);
	pthread_mutex_destroy(&bg->lock);
}

void background_fold(struct cache *c)
{
	struct bc_error err;
	int rc = 1;

	while (rc == 1 && !c->background.started && !c->failed)
		rc = journal_maintain(c->journal, GET(c->epoch.data_upto), &err);
}

void background_kick(struct cache *c, enum background_job job)
{
	struct background *bg = &c->background;

	if (__atomic_load_n(&bg->wanted[job], __ATOMIC_RELAXED))
		return;
	pthread_mutex_lock(&bg->lock);
	__atomic_store_n(&bg->wanted[job], true, __ATOMIC_RELAXED);
	pthread_cond_signal(&bg->wake[job]);
	pthread_mutex_unlock(&bg->lock);
}
