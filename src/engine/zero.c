/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * zero.c - discard and write-zeroes: the range reads as zeros at once, and the backing device is told.
 *
 * Edges that cover part of a block are ordinary writes of zeros. The whole blocks between are dropped from the cache
 * and zeroed on the backing device. While a volume has write-back data, order matters (P2, P3): the backing device must
 * not lose what the cache's durable state still builds on, and a crash half-way must not bring back a backing block
 * older than a dirty block that was flushed. So:
 *
 * - First, the discard is recorded in an epoch, and that epoch (with everything before it) made durable.
 * - Then the backing range is zeroed, and flushed.
 * - Then the blocks are dropped from the map; after an error only those that are not dirty, since what is dirty has no
 *   other copy.
 * - Last, the record's end is made durable; until then the range stays locked, since recovery repeats an unended
 *   discard and must not run over newer writes.
 */
#include "bypass.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PIECE (1ull << 28) /* bytes zeroed at once, and locked meanwhile */
#define CHUNK_BLOCKS (1u << RANGE_CHUNK_SHIFT)

static int zero_backing(struct io_thread *t, struct volume *v, uint64_t off, uint64_t len, bool punch)
{
	struct bdev_channel *ch = io_backing(t, v);
	struct bdev_io io = { .type = punch ? BDEV_UNMAP : BDEV_WRITE_ZEROES, .offset = off, .length = len };
	int rc;

	if (!ch)
		return -ENOMEM;
	rc = bdev_rw_wait(ch, &io, 1);
	atomic_fetch_add_explicit(&v->write_seq, 1, memory_order_release);
	if (rc)
		ADD(v->n.err_backing_write, 1);
	return rc;
}

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

/* Whole blocks (or up to the volume's odd end); nobody else is on them. */
static int zero_locked(struct io_thread *t, struct volume *v, uint64_t off, uint64_t len, bool punch)
{
	struct cache *c = v->cache;
	bool ordered = !c->failed && (mode_writes_back(GET(v->mode)) || GET(v->dirty_blocks));
	struct journal_discard d = { .volume = (uint16_t)v->id, .offset = off, .length = len };
	int rc, rc2;

	rc = intent_begin(v, off, len);
	if (rc)
		return rc;
	if (ordered) {
		d.id = GET(c->epoch.open_id) << 20 | (ADD(c->discard_seq, 1) & 0xfffff);
		rc = MUTATE(DISCARD_RECORD) ? 0 : record(c, &d);
		if (rc)
			goto out;
	}
	rc = zero_backing(t, v, off, len, punch);
	if (!rc && ordered && !MUTATE(DISCARD_DONE))
		rc = backing_flush(t, v);
	if (!rc)
		blocks_drop(c, v, off / CACHE_BLOCK, (len + CACHE_BLOCK - 1) / CACHE_BLOCK);
	else
		blocks_drop_clean(c, v, off / CACHE_BLOCK, (len + CACHE_BLOCK - 1) / CACHE_BLOCK);
	if (ordered) {
		/* also after an error: a discard that failed must not be repeated over later writes */
		d.done = true;
		rc2 = record(c, &d);
		rc = rc ? rc : rc2;
	}
out:
	intent_end(v, off, len, epoch_open_id(c));
	return rc;
}

/* Locks [first, first + n) chunk by chunk, ascending (range.h). */
static void lock_piece(struct volume *v, struct range_lock *locks, uint64_t first, uint64_t n)
{
	for (uint32_t k = 0; n; k++) {
		uint32_t chunk = CHUNK_BLOCKS - (uint32_t)(first % CHUNK_BLOCKS);

		if (chunk > n)
			chunk = (uint32_t)n;
		range_lock(&v->cache->ranges, &locks[k], v->id, first, chunk, RANGE_THROUGH);
		first += chunk;
		n -= chunk;
		locks[k + 1].parts = 0;
	}
}

static int zero_whole_blocks(struct io_thread *t, struct volume *v, uint64_t off, uint64_t len, bool punch)
{
	struct range_lock *locks = malloc((PIECE / CACHE_BLOCK / CHUNK_BLOCKS + 2) * sizeof *locks);
	int rc = locks ? 0 : -ENOMEM;
	bool failed;

	while (len && !rc) {
		uint64_t piece = len < PIECE ? len : PIECE;

		lock_piece(v, locks, off / CACHE_BLOCK, (piece + CACHE_BLOCK - 1) / CACHE_BLOCK);
		failed = v->cache->failed;
		rc = zero_locked(t, v, off, piece, punch);
		if (rc && !failed && cache_bypassed(v->cache)) /* it met the loss of the cache: without it (P7) */
			rc = zero_locked(t, v, off, piece, punch);
		for (struct range_lock *l = locks; l->parts; l++)
			range_unlock(&v->cache->ranges, l);
		off += piece;
		len -= piece;
	}
	free(locks);
	return rc;
}

int volume_zero(struct volume *v, uint64_t off, uint64_t len, bool punch)
{
	static const char zeros[CACHE_BLOCK];
	struct io_thread *t = io_thread_get(v->cache);
	uint32_t head, tail;
	int rc = 0;

	if (!t)
		return -ENOMEM;
	if (off > v->size || len > v->size - off)
		return -EINVAL;
	if (!len)
		return 0;
	ADD(v->n.discards, 1);
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
