/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * threads.c - the threads behind the requests: reclaim (free slots), maintenance (an epoch each second, journal
 * folding), cleaning, and compaction with what else is done when the cache is idle. Each sleeps until kicked or its
 * period is over. None of them waits for a backing device: what has to is left to the helpers (helpers.c).
 */
#include "engine/work/work.h"

#include <errno.h>
#include <string.h>

#include "util/deadline.h"

/* Backing is flushed by somebody who may wait for it (helpers.c). */
static int ask_to_settle(struct volume *v, void *ctx)
{
	(void)ctx;
	if (v->bdev && (ctr_get(v->intent.nmarked) || ctr_get(v->row_in_use)))
		helper_ask(v->cache, v->id, HELP_SETTLE);
	return 0;
}

#define LOOK_NS 1000000000u /* between looks at whether it is quiet: we may be called more often, or less */
#define MAINTAIN_STEPS 8 /* of a few milliseconds each */

static void *maintain_main(void *arg)
{
	struct cache *c = arg;
	uint64_t looked = now_ns();

	while (job_wait(c, JOB_MAINTAIN, ctr_get(c->tunables.epoch_interval_us))) {
		struct bc_error err;
		int rc = 1;

		/* most of the data before the commit: flushes then wait for the rest of it only. Skip this when writers
		 * are short of slots: the buffer writer is already running, and later data belongs to the next epoch.
		 */
		if ((!epoch_holds_much(c) && epoch_write_data(c)) || epoch_commit(c, true))
			continue;
		cache_volume_foreach(c, ask_to_settle, NULL);
		if (now_ns() - looked >= LOOK_NS) {
			idle_look(c, now_ns() - looked);
			looked = now_ns();
		}
		/* in turns with commits that slots depend on, some steps at least, or the journal would grow */
		for (int n = 0;
		     rc == 1 && !jobs_stopping(c) && !c->failed && (n < MAINTAIN_STEPS || !epoch_holds_much(c)); n++)
			rc = journal_maintain(c->journal, ctr_get(c->epoch.data_upto), &err);
		if (rc < 0 && !c->failed)
			ctr_add(c->err_cache_write, 1);
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

static bool too_dirty(struct cache *c)
{
	return space_too_dirty(ctr_get(c->dirty_lines), c->lines.n, ctr_get(c->dirty_blocks), c->slots.n,
			       ctr_get(c->tunables.dirty_high_percent)) ||
	       ctr_get(c->slots.nfree) < c->space.low;
}

static int ask_to_clean(struct volume *v, void *ctx)
{
	if (ctr_get(v->dirty_lines))
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

		if (now_ns() - last >= ctr_get(c->tunables.clean_after_us) * 1000) {
			last = now_ns();
			clean_all_soon(c);
		} else if (too_dirty(c)) {
			cache_volume_foreach(c, ask_to_clean, &what);
		}
		helpers_look(c);
	}
	return NULL;
}

/* ---- what helpers do ---- */

#define CLEAN_LINES 1024 /* between looks at what has changed */
#define PAUSE_MAX_US 1000000u

/* all: what is dirty now. Else as long as room is needed. */
static void help_clean(struct cache *c, unsigned id, bool all)
{
	uint64_t pause = 0, left = UINT64_MAX;

	while (!jobs_stopping(c) && !c->failed) {
		struct volume *v = volume_use(c, id);
		uint64_t blocks;
		long n;

		if (!v)
			return;
		if (left == UINT64_MAX)
			left = all ? ctr_get(v->dirty_lines) : 0;
		if ((!left && !too_dirty(c)) || !ctr_get(v->dirty_lines)) {
			volume_unuse(v);
			return;
		}
		n = clean_volume(c, v, CLEAN_LINES, &blocks);
		volume_unuse(v);
		/* a device that fails, or lines that cannot be cleaned now: not as fast as possible again */
		pause = blocks ? 0 : n < 0 || pause > PAUSE_MAX_US / 2 ? PAUSE_MAX_US : pause ? 2 * pause : 1000;
		if (pause)
			job_pause(c, pause);
		if (n <= 0)
			return;
		left = left > (uint64_t)n ? left - (uint64_t)n : 0;
		if (ctr_get(c->slots.nfree) < c->space.low)
			job_kick(c, JOB_RECLAIM);
	}
}

static void help_settle(struct cache *c, unsigned id)
{
	struct volume *v = volume_use(c, id);
	uint64_t seq;

	if (!v)
		return;
	seq = ctr_get(v->write_seq);
	if (v->bdev) {
		intent_clear_idle(v, false);
		if (v->settle_seq == seq) /* nothing written for a period */
			intent_settle(v);
	}
	v->settle_seq = seq;
	volume_unuse(v);
}

static void help(struct cache *c, unsigned id, unsigned what)
{
	if (what & HELP_SETTLE)
		help_settle(c, id);
	if (what & (HELP_CLEAN_ALL | HELP_CLEAN_ROOM))
		help_clean(c, id, what & HELP_CLEAN_ALL);
}

int threads_start(struct cache *c)
{
	static void *(*const mains[JOBS])(void *) = { reclaim_main, maintain_main, clean_main, compact_main };
	int rc = helpers_start(c, help);

	if (!rc)
		rc = jobs_start(c, mains);
	if (rc)
		helpers_stop(c);
	return rc;
}

void threads_stop(struct cache *c)
{
	jobs_stop(c);
	helpers_stop(c);
}
