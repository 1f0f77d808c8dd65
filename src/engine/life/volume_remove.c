/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * volume_remove.c - taking a volume out of the cache.
 *
 * - Written out first, while it can be used: dirty data to the backing device, and that flushed. This waits for the
 *   device, so it runs on a thread of its own (util/patience.h): whoever asked for the removal may have enough of it,
 * and the volume is then as it was. The thread notices after its batch, and nobody waits for it but cache_close().
 * - Taken out: from the moment that nobody else has a reference nobody can get one. If something was written in
 * between, it is put back and written out again.
 * - Forgotten: its lines leave the map and the journal, durably, then its row.
 * - Closed: which a device may also take its time for, and nobody waits for that long.
 */
#include "engine/life/life.h"

#include "engine/durable/takeover_log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "util/patience.h"

static void detach_it(void *arg)
{
	volume_detach(arg);
}

static void nothing(void *arg)
{
	(void)arg;
}

#define CLOSE_PATIENCE_MS 1000

void volume_let_go(struct volume *v, const struct patience *patience)
{
	static const struct patience brief = { .ms = CLOSE_PATIENCE_MS };
	int rc = run_patiently(detach_it, v, nothing, patience ? &brief : NULL);

	if (rc == -EAGAIN)
		volume_detach(v);
	else if (rc)
		log_warn("a backing device that is not needed any more does not answer; it is closed when it does");
}

/* Everything of the volume out of the map, durably, then its row. */
static int forget_lines(struct cache *c, struct volume *v, struct bc_error *err)
{
	int rc;

	if (MUTATE(REMOVE_LINES))
		journal_volume_delete(c->journal, (uint16_t)v->id, err);
	blocks_drop(c, v, 0, v->nblocks); /* nobody else has the volume any more */
	rc = epoch_commit(c, true);
	if (rc)
		return bc_fail(err, rc, "volume %s: its lines could not be removed from the journal: %s", v->name,
			       c->why);
	/* from now on no recovery drops the epochs that freed them, whatever becomes of their data: the lines would
	 * come back, and under the next volume with this id */
	rc = journal_note_durable(c->journal, ctr_get(c->epoch.data_upto), err);
	return rc ? rc : journal_volume_delete(c->journal, (uint16_t)v->id, err);
}

#define USER_GRACE_MS 50 /* a user's reference is an open file, or short, and then worth a moment */

static void sleep_ms(void)
{
	nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
}

/* The caller has a reference. Does a user have another one? */
static bool in_use(struct volume *v)
{
	for (int ms = 0; ms <= USER_GRACE_MS; ms++) {
		if (ctr_get(v->refs) % INTERNAL_REF <= 1)
			return false;
		sleep_ms();
	}
	return true;
}

static int fail_in_use(const char *name, struct bc_error *err)
{
	return bc_fail(err, -EBUSY, "volume %s is in use (its file is open); close it first", name);
}

static int fail_interrupted(const char *name, struct bc_error *err)
{
	return bc_fail(err, -EINTR, "interrupted; volume %s stays, and goes on working", name);
}

/* From here on nobody can get it any more; the caller has a reference. Waits for the engine's own users, which are
 * cleaning or looking. */
static int take_out(struct volume *v, const struct patience *patience, struct bc_error *err)
{
	for (unsigned ms = 0, ticks = 0;; ticks++) {
		uint64_t refs = 1;

		if (atomic_compare_exchange_strong(&v->refs, &refs, VOLUME_REMOVING))
			return 0;
		if (refs % INTERNAL_REF > 1 && ++ms > USER_GRACE_MS)
			return fail_in_use(v->name, err);
		if (ticks % 100 == 99 && patience && patience->give_up && patience->give_up(patience->ctx))
			return fail_interrupted(v->name, err);
		sleep_ms();
	}
}

static void put_back(struct volume *v)
{
	atomic_store(&v->refs, 1); /* the caller's */
}

/* What was written through, and not flushed since, becomes durable: once the volume is gone, nobody can ask for it. */
static int flush_written(struct cache *c, struct volume *v, bool anyway, struct bc_error *err)
{
	struct thread_ctx *t = thread_ctx_get(c);
	int rc = !v->bdev ? 0 : t ? backing_flush(t, v) : -ENOMEM;

	if ((!rc || rc == -ESTALE) && !anyway && identity_check_name(v, NAME_PATIENCE_MS, err))
		return bc_fail_prefix(err, "nothing is removed (--discard-dirty removes it all the same)");
	if (rc && anyway) {
		log_warn("volume %s: flushing its backing device failed: %s", v->name, strerror(-rc));
		return 0;
	}
	return rc ? bc_fail(err, rc,
			    "volume %s: flushing its backing device failed: %s; --discard-dirty removes it all the "
			    "same",
			    v->name, strerror(-rc))
		  : 0;
}

/* Writing a volume out before it goes. What waits for its backing device is done here, perhaps on a thread of its own;
 * the volume can be used all the time. */
struct leaving {
	struct volume *v; /* an internal reference */
	bool discard_dirty;
	_Atomic bool enough; /* the caller has gone */
	int rc;
	struct bc_error err;
};

static int leaving_progress(const struct cache_progress *p, void *ctx)
{
	(void)p;
	return ctr_get(((struct leaving *)ctx)->enough);
}

static void write_out(void *arg)
{
	struct leaving *l = arg;
	struct volume *v = l->v;

	l->rc = ctr_get(v->dirty_blocks) && !l->discard_dirty
			? cache_write_back(v->cache, v, leaving_progress, l, &l->err)
			: 0;
	if (!l->rc)
		l->rc = flush_written(v->cache, v, l->discard_dirty, &l->err);
}

static void written_out_late(void *arg)
{
	struct leaving *l = arg;
	struct cache *c = l->v->cache;

	volume_unuse(l->v);
	cache_release(c);
	free(l);
}

/* The caller's patience; when it is over, the thread that writes out is told. */
struct leaving_patience {
	struct leaving *l;
	const struct patience *callers;
};

static bool leaving_enough(void *ctx)
{
	struct leaving_patience *lp = ctx;
	bool enough = lp->callers->give_up && lp->callers->give_up(lp->callers->ctx);

	if (enough)
		atomic_store(&lp->l->enough, true);
	return enough;
}

static int make_leave(struct volume *v, bool discard_dirty, const struct patience *patience, struct bc_error *err)
{
	struct cache *c = v->cache;
	struct leaving_patience lp;
	struct leaving *l;
	int rc;

	if (!v->bdev) {
		if (ctr_get(v->dirty_blocks) && !discard_dirty)
			return bc_fail(err, -EBUSY,
				       "volume %s holds %llu bytes of dirty data and its backing device is not open",
				       v->name, (unsigned long long)ctr_get(v->dirty_blocks) * CACHE_BLOCK);
		return 0;
	}
	l = calloc(1, sizeof *l);
	if (!l)
		return bc_fail(err, -ENOMEM, "out of memory");
	*l = (struct leaving){ .v = v, .discard_dirty = discard_dirty };
	lp = (struct leaving_patience){ .l = l, .callers = patience };
	volume_use_more(v);
	cache_hold(c);
	rc = run_patiently(write_out, l, written_out_late,
			   patience ? &(struct patience){ .give_up = leaving_enough, .ctx = &lp } : NULL);
	if (rc == -EINTR) /* l is the thread's now */
		return fail_interrupted(v->name, err);
	if (rc) {
		bc_fail(err, rc, "volume %s: no thread can be started to write it out", v->name);
	} else {
		rc = l->rc;
		if (rc && err)
			*err = l->err;
	}
	written_out_late(l);
	return rc;
}

#define LEAVE_TRIES 3 /* somebody may have written in between */

static int try_remove(struct cache *c, struct volume *v, bool discard_dirty, const struct patience *patience,
		      struct bc_error *err)
{
	int rc;

	for (int tries = 1;; tries++) {
		rc = make_leave(v, discard_dirty, patience, err);
		if (rc)
			return rc;
		if (!readahead_forget(v, patience))
			return fail_interrupted(v->name, err);
		rc = take_out(v, patience, err);
		if (rc)
			return rc;
		if (discard_dirty || !v->bdev ||
		    (!ctr_get(v->dirty_blocks) && ctr_get(v->flushed_seq) >= ctr_get(v->write_seq)))
			break;
		put_back(v);
		if (tries == LEAVE_TRIES)
			return bc_fail(err, -EBUSY,
				       "volume %s was written again while it was flushed; stop its users and try again",
				       v->name);
	}
	rc = forget_lines(c, v, err);
	if (rc)
		put_back(v);
	return rc;
}

int cache_volume_remove_patiently(struct cache *c, const char *name, bool discard_dirty,
				  const struct patience *patience, struct bc_error *err)
{
	struct volume *v = cache_volume_get(c, name);
	int rc;

	if (!v)
		return bc_fail(err, -ENOENT, "there is no volume %s in %s; `blkcache status %s` lists them", name,
			       c->dir, c->dir);
	/* before the flush: nobody waits an hour to be told of an open file */
	rc = cache_check_writable(c, err);
	if (!rc)
		rc = in_use(v) ? fail_in_use(name, err) : try_remove(c, v, discard_dirty, patience, err);
	if (rc) {
		volume_put(v);
		return rc;
	}
	pthread_rwlock_wrlock(&c->volumes_lock);
	__atomic_store_n(&c->volume[v->id], NULL, __ATOMIC_RELAXED);
	c->nvolumes--;
	pthread_rwlock_unlock(&c->volumes_lock);
	thread_ctx_forget_volume(c, v);
	volume_let_go(v, patience);
	return 0;
}

int cache_volume_remove(struct cache *c, const char *name, bool discard_dirty, struct bc_error *err)
{
	return cache_volume_remove_patiently(c, name, discard_dirty, NULL, err);
}
