/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * write_back.c - everything that is dirty now goes to the backing devices, with somebody waiting for it: `blkcache
 * flush`, a removal, a stop. Batches are clean.c's; each volume is written on its own, and one that hangs is given up
 * when the caller's progress function says so.
 */
#include "engine/work/clean_batch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "util/deadline.h"

struct write_back_run {
	struct cache_progress p;
	int (*fn)(const struct cache_progress *p, void *ctx);
	void *ctx;
	uint64_t last;
};

static int report(struct write_back_run *r, bool last)
{
	uint64_t now = now_ns();

	if (!r->fn || (!last && now - r->last < 200000000))
		return 0;
	r->last = now;
	r->p.active = !last;
	if (last || r->p.done_bytes > r->p.total_bytes)
		r->p.total_bytes = r->p.done_bytes;
	return r->fn(&r->p, r->ctx) && !last ? -EINTR : 0;
}

/* Another run may be at the volume, and its backing device hang: whoever asked can still say that he has enough. */
static int lock_reporting(struct volume *v, struct write_back_run *r)
{
	for (;;) {
		struct timespec until = deadline_us(200000);

		if (!pthread_mutex_clocklock(&v->clean_lock, CLOCK_MONOTONIC, &until))
			return 0;
		if (report(r, false))
			return -EINTR;
	}
}

/* One batch and, until they are clean, the lines of it that were busy. clean_lock held. *first: the first error.
 * -EINTR: asked to stop; the lock is not held then. */
static int write_back_batch(struct cache *c, struct volume *v, struct clean_batch *w, struct write_back_run *r,
			    int *first)
{
	bool insist = false;

	for (;;) {
		uint64_t blocks;
		int rc = clean_batch(c, v, w, insist, &blocks);

		r->p.done_bytes += blocks * CACHE_BLOCK;
		if (!*first)
			*first = rc;
		if (report(r, false))
			break;
		if (!w->nagain || c->failed)
			return 0;
		if (insist) {
			/* somebody is at work on these blocks; writers of others may wait for the background cleaner */
			pthread_mutex_unlock(&v->clean_lock);
			nanosleep(&(struct timespec){ .tv_nsec = 2000000 }, NULL);
			if (lock_reporting(v, r))
				return -EINTR;
		}
		memcpy(w->line, w->again, w->nagain * sizeof w->line[0]);
		w->nlines = w->nagain;
		insist = true;
	}
	pthread_mutex_unlock(&v->clean_lock);
	return -EINTR;
}

/* Everything of one volume that is dirty now. *first: the first error. 0, or -EINTR. */
static int write_back_volume(struct volume *v, struct write_back_run *r, int *first)
{
	struct cache *c = v->cache;
	struct clean_batch *w = clean_batch_get(c);
	uint32_t hand = 0;
	int stop = 0;

	for (bool more = true; more && !stop && !c->failed;) {
		stop = lock_reporting(v, r);
		if (stop)
			break;
		more = clean_collect(c, w, v->id, &hand, BATCH_LINES);
		stop = w->nlines ? write_back_batch(c, v, w, r, first) : 0;
		if (!stop)
			pthread_mutex_unlock(&v->clean_lock);
	}
	clean_batch_put(c, w);
	return stop;
}

struct write_back_all {
	struct write_back_run *r;
	int first;
};

static int write_back_one(struct volume *v, void *ctx)
{
	struct write_back_all *a = ctx;

	return ctr_get(v->dirty_lines) ? write_back_volume(v, a->r, &a->first) : 0;
}

static int add_lost(struct volume *v, void *ctx)
{
	*(uint64_t *)ctx += ctr_get(v->lost_blocks);
	return 0;
}

static uint64_t lost_of_all(struct cache *c)
{
	uint64_t n = 0;

	cache_volume_foreach(c, add_lost, &n);
	return n;
}

static int check_name(struct volume *v, void *ctx)
{
	struct bc_error *first = ctx, err = { 0 };

	if (identity_check_name(v, NAME_PATIENCE_MS, &err) && !first->code)
		*first = err;
	return 0;
}

static int flush_bypassed(struct volume *v, void *ctx)
{
	struct bc_error *err = ctx;
	int rc = v->bdev ? volume_flush(v) : 0;

	return rc ? bc_fail(err, rc, "volume %s: the cache has failed, and the volume cannot be flushed without it: %s",
			    v->name, strerror(-rc))
		  : 0;
}

int cache_write_back(struct cache *c, struct volume *v, int (*progress)(const struct cache_progress *p, void *ctx),
		     void *ctx, struct bc_error *err)
{
	struct write_back_run r = { .fn = progress, .ctx = ctx };
	struct bc_error gone = { 0 };
	struct write_back_all all = { .r = &r };
	uint64_t lost = v ? ctr_get(v->lost_blocks) : lost_of_all(c);
	int rc, stop;

	if (c->failed && !ctr_get(c->dirty_blocks)) /* bypassed: everything is on backing, perhaps not durably */
		return v ? flush_bypassed(v, err) : cache_volume_foreach(c, flush_bypassed, err);
	if (c->failed)
		return bc_fail(err, -EIO,
			       "the cache has failed (%s): its dirty data is kept and cannot be written back", c->why);
	/* also when nothing is dirty: what was written through is as lost */
	if (v)
		identity_check_name(v, NAME_PATIENCE_MS, &gone);
	else
		cache_volume_foreach(c, check_name, &gone);
	r.p.total_bytes = (v ? ctr_get(v->dirty_blocks) : ctr_get(c->dirty_blocks)) * CACHE_BLOCK;
	ctr_add(c->writing_back, 1);
	if (!v && c->background.started) /* side by side: a slow one keeps only us waiting */
		clean_all_soon(c);
	/* with several volumes all are flushed, and the first error is kept */
	stop = v ? write_back_volume(v, &r, &all.first) : cache_volume_foreach(c, write_back_one, &all);
	rc = all.first ? all.first : c->failed ? -EIO : stop;
	ctr_sub(c->writing_back, 1);
	/* the "clean" records should survive too, so that the next load need not do it again */
	if (!rc)
		rc = epoch_commit(c, false);
	report(&r, true);
	if (gone.code && (!rc || rc == -ESTALE)) {
		if (err)
			*err = gone;
		return gone.code;
	}
	if (!rc && (v ? ctr_get(v->lost_blocks) : lost_of_all(c)) != lost)
		return bc_fail(err, -EIO,
			       "%s: dirty blocks are damaged in the cache and cannot be written to the backing device; "
			       "`blkcache check` on the stopped cache lists them",
			       v ? v->name : c->dir);
	if (rc == -EINTR)
		return bc_fail(err, rc, "interrupted; what was not written yet is still safe in the cache");
	if (rc)
		return bc_fail(err, rc, "%s: dirty data could not be written to the backing device: %s",
			       v ? v->name : c->dir, c->why[0] ? c->why : strerror(-rc));
	return 0;
}
