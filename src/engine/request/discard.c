/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * discard.c - discard and write-zeroes: the range reads as zeros at once, and the backing device is told.
 *
 * Edges that cover part of a block are ordinary writes of zeros. The whole blocks between are dropped from the cache
 * and zeroed on the backing device, in one piece however many they are, so that the cost is that of what is cached
 * there. The range stays locked meanwhile. There are three ways, by what a crash half-way would find:
 *
 * *Ordered*, while the volume has write-back data. Order matters (P2, P3): the backing device must not lose what the
 * cache's durable state still builds on, and a crash must not bring back a backing block older than a dirty block that
 * was flushed.
 * - Clean blocks are dropped: the backing device has them, too.
 * - The discard is recorded in an epoch, and that epoch (with everything before it) made durable.
 * - Then the backing range is zeroed, and flushed.
 * - Then what is dirty is dropped from the map. After an error it stays, since there is no other copy.
 * - Last, the record's end is made durable; until then the range stays locked, since recovery repeats an unended
 *   discard and must not run over newer writes. So no mark is needed: until the end is durable recovery drops what is
 *   cached there, and afterwards it finds nothing.
 *
 * *Empty*, a large range without write-back data (P4): it is dropped, and that made durable before backing is zeroed.
 * Then the journal knows nothing there that could be stale, as a mark for each region would say, and costs no more if
 * nothing was cached.
 *
 * *Marked*, a small one: the regions are marked, mostly they are already, and the drop becomes durable some time.
 */
#include "engine/request/request.h"

#include "engine/durable/bypass.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PIECE (1ull << 28) /* bytes zeroed at once, and locked meanwhile, where zeros have to be written */

uint64_t zero_marked_max = 4ull << REGION_SHIFT;

static int record(struct cache *c, const struct journal_discard *d)
{
	uint64_t epoch;
	int rc;

	epoch_enter(c);
	rc = epoch_add_discard(c, d);
	epoch = epoch_open_id(c);
	epoch_leave(c);
	return rc ? rc : epoch_commit_to(c, epoch);
}

/* Durable before backing is touched: the record, or that nothing is cached there. */
static int prepare(struct cache *c, const struct journal_discard *d, bool ordered)
{
	if (ordered)
		return MUTATE(DISCARD_RECORD) ? 0 : record(c, d);
	return MUTATE(DISCARD_EMPTY) ? 0 : epoch_commit(c, false);
}

/* Whole blocks (or up to the volume's odd end); nobody else is on them. */
static int zero_locked(struct thread_ctx *t, struct volume *v, uint64_t off, uint64_t len, bool punch)
{
	struct cache *c = v->cache;
	/* looked at once: the steps below would each fail, not be left out, if the cache failed in between */
	bool failed = c->failed;
	bool ordered = !failed && (mode_traits[ctr_get(v->mode)].writes_back || ctr_get(v->dirty_blocks));
	bool marked = !ordered && len <= zero_marked_max;
	uint64_t first = off / CACHE_BLOCK, n = (len + CACHE_BLOCK - 1) / CACHE_BLOCK;
	struct journal_discard d = { .volume = (uint16_t)v->id, .offset = off, .length = len };
	int rc = marked ? intent_begin(v, off, len) : intent_hold(v), rc2;

	if (rc)
		return rc;
	if (ordered)
		d.id = ctr_get(c->epoch.open_id) << 20 | (ctr_add(c->discard_seq, 1) & 0xfffff);
	if (!marked) {
		blocks_drop_clean(c, v, first, n);
		rc = failed ? 0 : intent_forget(v, first, n);
		if (!rc && !failed)
			rc = prepare(c, &d, ordered);
		if (rc)
			goto out;
	}
	rc = backing_zero(t, v, off, len, punch);
	if (!rc && ordered && !MUTATE(DISCARD_DONE))
		rc = backing_flush(t, v);
	if (rc)
		blocks_drop_clean(c, v, first, n);
	else if (marked || (MUTATE(DISCARD_CLEANED) ? ctr_get(v->dirty_blocks) : ordered || failed))
		/* Also if nothing is dirty any more: a block that was when the clean ones were dropped may have become
		 * clean since. The cleaner, which wrote it before the range was locked, marks it when the flush is
		 * over. */
		blocks_drop(c, v, first, n);
	if (ordered) {
		/* also after an error: a discard that failed must not be repeated over later writes */
		d.done = true;
		rc2 = record(c, &d);
		if (rc2 && !c->failed)
			cache_fail(c, "the end of a discard cannot be recorded: %s", strerror(-rc2));
		rc = rc ? rc : rc2;
	}
out:
	if (marked)
		intent_end(v, off, len, epoch_open_id(c));
	else
		intent_release(v);
	return rc;
}

static int zero_piece(struct thread_ctx *t, struct volume *v, uint64_t off, uint64_t len, bool punch)
{
	struct range_table *ranges = &v->cache->ranges;
	struct range_wide lock;
	bool failed;
	int rc;

	range_lock_wide(ranges, &lock, v->id, off / CACHE_BLOCK, (len + CACHE_BLOCK - 1) / CACHE_BLOCK, RANGE_THROUGH);
	failed = v->cache->failed;
	rc = zero_locked(t, v, off, len, punch);
	if (rc && !failed && cache_bypassed(v->cache)) /* it met the loss of the cache: without it (P7) */
		rc = zero_locked(t, v, off, len, punch);
	range_unlock_wide(ranges, &lock);
	return rc;
}

/* Known of some devices only when it was tried. */
static bool zeroes_natively(struct volume *v, bool punch)
{
	return (punch && bdev_io_type_supported(v->bdev, BDEV_UNMAP)) ||
	       bdev_io_type_supported(v->bdev, BDEV_WRITE_ZEROES);
}

static int zero_whole_blocks(struct thread_ctx *t, struct volume *v, uint64_t off, uint64_t len, bool punch)
{
	uint64_t piece = len < PIECE ? len : PIECE;
	int rc = zero_piece(t, v, off, piece, punch);

	while (!rc && (len -= piece)) {
		off += piece;
		piece = len < PIECE || zeroes_natively(v, punch) ? len : PIECE;
		rc = zero_piece(t, v, off, piece, punch);
	}
	return rc;
}

int volume_zero(struct volume *v, uint64_t off, uint64_t len, bool punch)
{
	static const char zeros[CACHE_BLOCK];
	struct thread_ctx *t = thread_ctx_get(v->cache);
	uint32_t head, tail;
	int rc = 0;

	if (!t)
		return -ENOMEM;
	if (off > v->size || len > v->size - off)
		return -EINVAL;
	if (!len)
		return 0;
	ctr_add(v->n.discards, 1);
	head = off % CACHE_BLOCK ? CACHE_BLOCK - off % CACHE_BLOCK : 0;
	if (head > len)
		head = (uint32_t)len;
	if (head) {
		rc = volume_write(v, zeros, head, off, false);
		off += head;
		len -= head;
	}
	/* nothing left: the head was all of it, and ends inside its block */
	tail = !len || off + len == v->size ? 0 : (off + len) % CACHE_BLOCK;
	if (!rc && tail)
		rc = volume_write(v, zeros, tail, off + len - tail, false);
	len -= tail;
	return rc || !len ? rc : zero_whole_blocks(t, v, off, len, punch);
}
