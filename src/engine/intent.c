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
 * somebody else's change can be told (P10).
 */
#include "bypass.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int intent_init(struct volume *v)
{
	struct intent *in = &v->intent;

	pthread_mutex_init(&in->lock, NULL);
	in->nregions = (uint32_t)((v->size + (1ull << REGION_SHIFT) - 1) >> REGION_SHIFT);
	in->region = calloc(in->nregions ? in->nregions : 1, sizeof *in->region);
	return in->region ? 0 : -ENOMEM;
}

void intent_destroy(struct volume *v)
{
	pthread_mutex_destroy(&v->intent.lock);
	free(v->intent.region);
}

bool intent_is_marked(const struct volume *v, uint64_t block)
{
	return v->intent.region[block * CACHE_BLOCK >> REGION_SHIFT].marked;
}

/* intent.lock held */
static int __touch(struct volume *v, struct bc_error *err)
{
	int rc;

	if (v->row_in_use && !identity_is_old(v))
		return 0;
	rc = volume_record(v, true, err);
	if (!rc)
		v->row_in_use = true;
	return rc;
}

int intent_touch(struct volume *v)
{
	struct bc_error err = { 0 };
	int rc;

	if (atomic_load_explicit(&v->row_in_use, memory_order_acquire) && !identity_is_old(v))
		return 0;
	pthread_mutex_lock(&v->intent.lock);
	rc = __touch(v, &err);
	pthread_mutex_unlock(&v->intent.lock);
	if (rc)
		cache_fail(v->cache, "the journal cannot be written: %s", err.msg);
	return rc;
}

int intent_settle(struct volume *v)
{
	struct bc_error err = { 0 };
	int rc = 0;

	if (!atomic_load_explicit(&v->row_in_use, memory_order_acquire) || v->cache->failed)
		return 0;
	/* before taking locks, since it may take time; on failure the row just stays inexact */
	if (GET(v->intent.nmarked) || (!MUTATE(IDENTITY_SYNC) && bdev_sync_identity(v->bdev)))
		return 0;
	/* the cleaner writes without a mark; while it is busy there is nothing to settle, and epochs must not wait */
	if (pthread_mutex_trylock(&v->cache->cleaner.lock))
		return 0;
	pthread_mutex_lock(&v->intent.lock);
	if (v->row_in_use && !GET(v->intent.nmarked) && GET(v->flushed_seq) >= GET(v->write_seq)) {
		witness_refill(v);
		rc = volume_record(v, false, &err);
		if (!rc)
			v->row_in_use = false;
	}
	pthread_mutex_unlock(&v->intent.lock);
	pthread_mutex_unlock(&v->cache->cleaner.lock);
	if (rc)
		cache_fail(v->cache, "the journal cannot be written: %s", err.msg);
	return rc;
}

int intent_begin(struct volume *v, uint64_t off, uint64_t len)
{
	struct intent *in = &v->intent;
	uint64_t a = off >> REGION_SHIFT, b = (off + len - 1) >> REGION_SHIFT;
	struct bc_error err = { 0 };
	int rc = 0;

	about_to_wait();
	pthread_mutex_lock(&in->lock);
	if (cache_bypassed(v->cache))
		rc = bypass_prepare(v->cache);
	else if (v->cache->failed)
		rc = -EIO;
	else
		rc = __touch(v, &err);
	if (!rc && !v->cache->failed &&
	    witness_drop(v, off / CACHE_BLOCK, (off + len - 1) / CACHE_BLOCK - off / CACHE_BLOCK + 1))
		rc = witness_record(v, &err);
	for (uint64_t r = a; r <= b && !rc && !v->cache->failed; r++) {
		struct journal_mark m = { .volume = (uint16_t)v->id, .region = (uint32_t)r };

		if (in->region[r].marked)
			continue;
		rc = MUTATE(INTENT_MARK) ? 0 : journal_marks_set(v->cache->journal, &m, 1, &err);
		if (!rc) {
			in->region[r].marked = true;
			ADD(in->nmarked, 1);
		}
	}
	for (uint64_t r = a; r <= b && !rc; r++)
		in->region[r].in_flight++;
	pthread_mutex_unlock(&in->lock);
	if (rc && err.code)
		cache_fail(v->cache, "the journal cannot be written: %s", err.msg);
	return rc;
}

void intent_end(struct volume *v, uint64_t off, uint64_t len, uint64_t epoch)
{
	struct intent *in = &v->intent;
	uint64_t a = off >> REGION_SHIFT, b = (off + len - 1) >> REGION_SHIFT;

	pthread_mutex_lock(&in->lock);
	for (uint64_t r = a; r <= b; r++) {
		struct region *reg = &in->region[r];

		reg->in_flight--;
		reg->last_epoch = epoch;
		reg->last_seq = GET(v->write_seq);
	}
	pthread_mutex_unlock(&in->lock);
}

#define CLEAR_BATCH 64

int intent_clear_idle(struct volume *v, bool all)
{
	struct intent *in = &v->intent;
	struct journal_mark marks[CLEAR_BATCH];
	struct bc_error err = { 0 };
	int rc = 0;

	if (!GET(in->nmarked) || v->cache->failed)
		return 0;
	if (all || GET(v->flushed_seq) < GET(v->write_seq)) {
		struct io_thread *t = io_thread_get(v->cache);

		rc = !t ? -ENOMEM : MUTATE(INTENT_CLEAR) ? 0 : backing_flush(t, v);
		if (rc)
			return rc;
	}
	pthread_mutex_lock(&in->lock);
	for (uint32_t r = 0; r < in->nregions && !rc;) {
		uint64_t durable = epoch_durable_upto(v->cache);
		uint32_t regions[CLEAR_BATCH], n = 0;

		for (; r < in->nregions && n < CLEAR_BATCH; r++) {
			const struct region *reg = &in->region[r];

			if (!reg->marked || reg->in_flight || (reg->last_epoch > durable && !MUTATE(INTENT_EPOCH)) ||
			    (reg->last_seq > GET(v->flushed_seq) && !MUTATE(INTENT_CLEAR)))
				continue;
			marks[n] = (struct journal_mark){ .volume = (uint16_t)v->id, .region = r };
			regions[n++] = r;
		}
		if (!n)
			break;
		rc = journal_marks_clear(v->cache->journal, marks, n, &err);
		for (uint32_t i = 0; i < n && !rc; i++) {
			in->region[regions[i]].marked = false;
			SUB(in->nmarked, 1);
		}
	}
	pthread_mutex_unlock(&in->lock);
	if (rc)
		cache_fail(v->cache, "the journal cannot be written: %s", err.msg);
	return rc;
}
