/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * intent.c - write-intent marks (P4): a durable bit per 64 MiB region of a volume, set before the first write that
 * makes the backing device differ from what the journal says is cached, and cleared lazily.
 *
 * While a region is marked, recovery drops its clean lines: after a crash the backing device may have the new data and
 * the journal the old copy, or, if the backing device lost its volatile cache, the other way round. A mark may go when
 * nothing is in flight, the cache's side of the last write is in a durable epoch, and the backing device was flushed
 * after it. Dirty lines do not need the mark: they are newer than backing whatever happened to it.
 *
 * The volume's row in the journal goes along: it says `in use` from before the first write to backing until things
 * have settled, and then holds the backing device's identity, modification time included. While it is not in use,
 * somebody else's change can be told (P10). A mark implies a row that says `in use`.
 *
 * Threads. No lock is held over I/O. A region is UNMARKED, MARKING, MARKED or CLEARING, and changes under intent.lock;
 * whoever makes it MARKING or CLEARING writes the journal without the lock and then ends that state, and others who
 *need the region wait for that on intent.changed. A write to a marked region, the usual one, takes no lock:
 *
 *	writer: in_flight + 1, then looks for MARKED        clearer: sets CLEARING, then looks for in_flight == 0
 *
 * Each looks after it has written, so at least one of the two sees the other. The clearer, if it sees the writer, makes
 * the region MARKED again; a writer that sees CLEARING waits, and its in_flight keeps the mark once it is there.
 *
 * When the clearer has seen in_flight == 0 with CLEARING set, everybody who wrote has left behind what he wrote in
 * (last_epoch, last_seq), and nobody else comes. Only what is durable *from then on* tells whether the mark may go:
 * epoch_durable_upto() of before may name an epoch that was empty then and holds the cache's side of a write now.
 *
 * The row has the same protocol with row_busy: a mark is made, and a holder (intent_hold) gets through, only while
 * row_busy is false; intent_settle() sets row_busy and then looks for marks and holders.
 */
#include "engine/durable/durable.h"

#include "engine/durable/bypass.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MARK_BATCH 64 /* marks in one transaction on behalf of a write: more than it can cover */
#define CLEAR_BATCH 512

int intent_init(struct volume *v)
{
	struct intent *in = &v->intent;

	pthread_mutex_init(&in->lock, NULL);
	pthread_cond_init(&in->changed, NULL);
	in->nregions = (uint32_t)((v->size + (1ull << REGION_SHIFT) - 1) >> REGION_SHIFT);
	in->region = calloc((size_t)in->nregions + 1, sizeof *in->region);
	return in->region ? 0 : -ENOMEM;
}

void intent_destroy(struct volume *v)
{
	pthread_cond_destroy(&v->intent.changed);
	pthread_mutex_destroy(&v->intent.lock);
	free(v->intent.region);
}

bool intent_is_marked(const struct volume *v, uint64_t block)
{
	return v->intent.region[block * CACHE_BLOCK >> REGION_SHIFT].marked != REGION_UNMARKED;
}

static void cannot_write(struct volume *v, const struct bc_error *err)
{
	ctr_add(v->n.err_cache_write, 1);
	cache_fail(v->cache, "the journal cannot be written: %s", err->msg);
}

/* ---- the row ---- */

static void end_row_locked(struct intent *in)
{
	atomic_store(&in->row_busy, false);
	pthread_cond_broadcast(&in->changed);
}

/* The lock is held, and let go meanwhile. Nobody is at the row. */
static int write_row_locked(struct volume *v, bool in_use, struct bc_error *err)
{
	struct intent *in = &v->intent;
	int rc;

	atomic_store(&in->row_busy, true);
	pthread_mutex_unlock(&in->lock);
	rc = volume_record(v, in_use, err);
	pthread_mutex_lock(&in->lock);
	if (!rc)
		atomic_store(&v->row_in_use, in_use);
	end_row_locked(in);
	return rc;
}

/* On a channel of its own, since a helper has no other use for what thread_ctx_get() makes. */
static int flush_backing(struct volume *v)
{
	struct bdev_channel *ch;
	int rc;

	ch = bdev_channel_open(v->bdev, 1);
	if (!ch)
		return -ENOMEM;
	rc = backing_flush_on(ch, v);
	bdev_channel_close(ch);
	return rc;
}

int intent_settle(struct volume *v)
{
	struct intent *in = &v->intent;
	struct bc_error err = { 0 };
	int rc = 0;

	if (!ctr_get(v->row_in_use) || v->cache->failed || ctr_get(in->nmarked))
		return 0;
	if (ctr_get(in->holders) && !MUTATE(SETTLE_HELD))
		return 0;
	if (ctr_get(v->flushed_seq) < ctr_get(v->write_seq) && flush_backing(v))
		return 0;
	/* here too, since it may take long: who wants to write waits for the row then. On failure the row just stays
	 * inexact */
	if (!MUTATE(IDENTITY_SYNC) && bdev_sync_identity(v->bdev))
		return 0;
	pthread_mutex_lock(&in->lock);
	if (in->row_busy || !v->row_in_use)
		goto out;
	atomic_store(&in->row_busy, true);
	/* looked at with row_busy set: whoever comes now waits, and whoever has gone has left his write_seq */
	if (!MUTATE(SETTLE_RECHECK) && (ctr_get(in->nmarked) || (atomic_load(&in->holders) && !MUTATE(SETTLE_HELD)) ||
					atomic_load(&v->flushed_seq) < atomic_load(&v->write_seq))) {
		end_row_locked(in);
		goto out;
	}
	pthread_mutex_unlock(&in->lock);
	witness_refill(v); /* row_busy keeps everybody from the backing device */
	pthread_mutex_lock(&in->lock);
	rc = write_row_locked(v, false, &err);
out:
	pthread_mutex_unlock(&in->lock);
	if (rc && bdev_sync_identity(v->bdev))
		return 0; /* it was the backing device that failed, in between */
	if (rc)
		cannot_write(v, &err);
	return rc;
}

/* ---- marks ---- */

/* Makes those of the regions that are unmarked MARKING; at most MARK_BATCH of them. *wait: somebody else is at one. */
static uint32_t claim_unmarked_locked(struct volume *v, uint64_t a, uint64_t b, struct journal_mark *marks, bool *wait)
{
	struct intent *in = &v->intent;
	uint32_t n = 0;

	*wait = false;
	for (uint64_t r = a; r <= b && n < MARK_BATCH; r++) {
		uint8_t state = in->region[r].marked;

		if (state == REGION_UNMARKED) {
			in->region[r].marked = REGION_MARKING;
			marks[n++] = (struct journal_mark){ .volume = (uint16_t)v->id, .region = (uint32_t)r };
		} else if (state != REGION_MARKED) {
			*wait = true;
		}
	}
	ctr_add(in->nmarked, n);
	return n;
}

/* What was claimed gets its new state, and others learn of it. */
static void end_claim_locked(struct intent *in, const struct journal_mark *marks, uint32_t n, enum region_mark state)
{
	for (uint32_t i = 0; i < n; i++)
		atomic_store(&in->region[marks[i].region].marked, (uint8_t)state);
	if (state == REGION_UNMARKED)
		ctr_sub(in->nmarked, n);
	if (n)
		pthread_cond_broadcast(&in->changed);
}

/*
 * Until the row says `in use`, and not since too long ago (identity_is_old), has no witness among the n blocks from
 * `first` on, and the regions [a, b] are marked (none if b < a). The caller has counted itself, in in_flight or in
 * holders, so that what is reached stays. -EIO as soon as the cache has failed: then there is no mark, and nobody may
 * act as if there was.
 *
 * A witness leaves memory here and the journal with the row. In between nobody else writes to its block: the caller has
 * the block's range locked. A row that somebody else writes meanwhile has the witness or has it not; ours follows.
 */
static int ensure(struct volume *v, uint64_t a, uint64_t b, uint64_t first, uint64_t n)
{
	struct intent *in = &v->intent;
	struct journal_mark marks[MARK_BATCH];
	struct bc_error err = { 0 };
	bool forget = false;
	int rc = 0;

	about_to_wait();
	pthread_mutex_lock(&in->lock);
	while (!rc) {
		bool wait = false;
		uint32_t claimed;

		if (v->cache->failed) {
			rc = MUTATE(BEGIN_FAILED) ? 0 : -EIO;
			break;
		}
		if (!in->row_busy) {
			forget |= witness_drop(v, first, n);
			if (forget || !v->row_in_use || identity_is_old(v)) {
				forget = false;
				rc = write_row_locked(v, true, &err);
				continue;
			}
		}
		claimed = in->row_busy ? 0 : claim_unmarked_locked(v, a, b, marks, &wait);
		if (claimed) {
			pthread_mutex_unlock(&in->lock);
			rc = MUTATE(INTENT_MARK) ? 0 : journal_marks_set(v->cache->journal, marks, claimed, &err);
			pthread_mutex_lock(&in->lock);
			end_claim_locked(in, marks, claimed, rc ? REGION_UNMARKED : REGION_MARKED);
		} else if (in->row_busy || wait) {
			pthread_cond_wait(&in->changed, &in->lock);
		} else {
			break;
		}
	}
	pthread_mutex_unlock(&in->lock);
	if (rc && err.code)
		cannot_write(v, &err);
	return rc;
}

/* The cache cannot keep marks any more: writes go on if it is void without them (P7). */
static int without_cache(struct cache *c)
{
	return cache_bypassed(c) ? bypass_prepare(c) : -EIO;
}

static bool all_marked(const struct intent *in, uint64_t a, uint64_t b)
{
	for (uint64_t r = a; r <= b; r++) {
		uint8_t state = atomic_load(&in->region[r].marked);

		if (state != REGION_MARKED && !(state == REGION_CLEARING && MUTATE(INTENT_CLEARING)))
			return false;
	}
	return true;
}

int intent_begin(struct volume *v, uint64_t off, uint64_t len)
{
	struct intent *in = &v->intent;
	uint64_t a = off >> REGION_SHIFT, b = (off + len - 1) >> REGION_SHIFT;
	uint64_t first = off / CACHE_BLOCK, n = (off + len - 1) / CACHE_BLOCK - first + 1;
	int rc = 0;

	for (uint64_t r = a; r <= b; r++)
		atomic_fetch_add(&in->region[r].in_flight, 1);
	if (v->cache->failed) {
		rc = without_cache(v->cache);
	} else if (!all_marked(in, a, b) || identity_is_old(v) || witness_in(v, first, n)) {
		rc = ensure(v, a, b, first, n);
		if (rc && v->cache->failed)
			rc = without_cache(v->cache);
	}
	for (uint64_t r = a; r <= b && rc; r++)
		atomic_fetch_sub(&in->region[r].in_flight, 1);
	return rc;
}

static void raise_to(counter *n, uint64_t to)
{
	uint64_t was = ctr_get(*n);

	while (was < to && !atomic_compare_exchange_weak(n, &was, to))
		;
}

void intent_end(struct volume *v, uint64_t off, uint64_t len, uint64_t epoch)
{
	struct intent *in = &v->intent;
	uint64_t a = off >> REGION_SHIFT, b = (off + len - 1) >> REGION_SHIFT;

	for (uint64_t r = a; r <= b; r++) {
		struct region *reg = &in->region[r];

		/* another write of a later epoch may have ended since ours was read */
		if (MUTATE(INTENT_LOWER))
			atomic_store(&reg->last_epoch, epoch);
		else
			raise_to(&reg->last_epoch, epoch);
		raise_to(&reg->last_seq, atomic_load(&v->write_seq));
		atomic_fetch_sub(&reg->in_flight, 1);
	}
}

int intent_hold(struct volume *v)
{
	struct intent *in = &v->intent;
	int rc = 0;

	atomic_fetch_add(&in->holders, 1);
	if (!v->cache->failed && (!atomic_load(&v->row_in_use) || atomic_load(&in->row_busy) || identity_is_old(v)))
		rc = ensure(v, 1, 0, 0, 0);
	if (v->cache->failed)
		rc = without_cache(v->cache);
	if (rc)
		atomic_fetch_sub(&in->holders, 1);
	return rc;
}

int intent_forget(struct volume *v, uint64_t first, uint64_t n)
{
	int rc;

	if (v->cache->failed || (!identity_is_old(v) && !witness_in(v, first, n)))
		return 0;
	rc = ensure(v, 1, 0, first, n);
	return rc && v->cache->failed ? without_cache(v->cache) : rc;
}

void intent_release(struct volume *v)
{
	atomic_fetch_sub(&v->intent.holders, 1);
}

/* ---- taking marks away ---- */

static bool may_clear(const struct region *reg, uint64_t durable, uint64_t flushed)
{
	return !atomic_load(&reg->in_flight) && (ctr_get(reg->last_epoch) <= durable || MUTATE(INTENT_EPOCH)) &&
	       (ctr_get(reg->last_seq) <= flushed || MUTATE(INTENT_CLEAR));
}

/* Makes regions from *r on CLEARING that look as if they could be cleared; at most CLEAR_BATCH. */
static uint32_t claim_idle(struct volume *v, uint32_t *r, struct journal_mark *marks)
{
	uint64_t durable = epoch_durable_upto(v->cache), flushed = ctr_get(v->flushed_seq);
	struct intent *in = &v->intent;
	uint32_t n = 0;

	pthread_mutex_lock(&in->lock);
	for (; *r < in->nregions && n < CLEAR_BATCH; ++*r) {
		if (in->region[*r].marked != REGION_MARKED || !may_clear(&in->region[*r], durable, flushed))
			continue;
		atomic_store(&in->region[*r].marked, REGION_CLEARING);
		marks[n++] = (struct journal_mark){ .volume = (uint16_t)v->id, .region = *r };
	}
	pthread_mutex_unlock(&in->lock);
	return n;
}

/* Now that nobody new comes: which of them still may? The others are MARKED again. Returns how many are left. */
static uint32_t keep_idle(struct volume *v, struct journal_mark *marks, uint32_t n)
{
	struct intent *in = &v->intent;
	uint64_t durable, flushed;
	uint32_t left = 0, busy = 0;
	struct journal_mark back[CLEAR_BATCH];

	if (MUTATE(INTENT_RECHECK))
		return n;
	for (uint32_t i = 0; i < n; i++) {
		if (atomic_load(&in->region[marks[i].region].in_flight))
			back[busy++] = marks[i];
		else
			marks[left++] = marks[i];
	}
	n = left;
	left = 0;
	/* of this moment, with in_flight seen to be 0 before it */
	durable = epoch_durable_upto(v->cache);
	flushed = atomic_load(&v->flushed_seq);
	for (uint32_t i = 0; i < n; i++) {
		if (may_clear(&in->region[marks[i].region], durable, flushed))
			marks[left++] = marks[i];
		else
			back[busy++] = marks[i];
	}
	pthread_mutex_lock(&in->lock);
	end_claim_locked(in, back, busy, REGION_MARKED);
	pthread_mutex_unlock(&in->lock);
	return left;
}

int intent_clear_idle(struct volume *v, bool all)
{
	struct intent *in = &v->intent;
	struct journal_mark marks[CLEAR_BATCH];
	struct bc_error err = { 0 };
	int rc = 0;

	/* a failed cache keeps its marks: that is the safe side */
	if (!ctr_get(in->nmarked) || v->cache->failed)
		return 0;
	if (all || ctr_get(v->flushed_seq) < ctr_get(v->write_seq))
		rc = MUTATE(INTENT_CLEAR) ? 0 : flush_backing(v);
	if (rc)
		return rc;
	for (uint32_t r = 0; r < in->nregions && !rc;) {
		uint32_t n = keep_idle(v, marks, claim_idle(v, &r, marks));

		if (!n)
			continue;
		rc = journal_marks_clear(v->cache->journal, marks, n, &err);
		pthread_mutex_lock(&in->lock);
		end_claim_locked(in, marks, n, rc ? REGION_MARKED : REGION_UNMARKED);
		pthread_mutex_unlock(&in->lock);
	}
	if (rc)
		cannot_write(v, &err);
	return rc;
}
