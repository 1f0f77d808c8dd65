/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * write_to_backing.c - writes that go to the backing device: write-through, write-around, write-invalidate,
 * pass-through.
 *
 * - Range locked THROUGH: no reader, writer or cleaner is on these blocks.
 * - Write-intent mark durable (intent.c): from now on a crash makes recovery distrust clean lines here (P4).
 * - Whole blocks go to the backing device.
 * - If a dirty block is overwritten, the backing device is flushed, since the map will say that the only copy is there
 *   (P3, P5).
 * - The cached copies are replaced (new slots, clean) or dropped.
 *
 * A failed write leaves the backing blocks undefined: clean copies are dropped, dirty ones stay and are cleaned later.
 */
#include "engine/request/request.h"

#include "engine/durable/takeover_log.h"

#include <errno.h>
#include <string.h>

/* Replaces the cached copies as far as slots can be had without waiting; drops the others. */
static void update_cache(struct thread_ctx *t, struct volume *v, uint64_t first, unsigned n, struct buffer **bufs,
			 const uint32_t *crc)
{
	struct cache *c = v->cache;
	unsigned got = slots_take_some(&c->slots, t->slots, n, space_kept_for_writes(&c->space)), put = 0;

	if (got < n || cache_room_is_low(c))
		job_kick(c, JOB_RECLAIM);
	if (got) {
		epoch_enter(c);
		for (; put < got; put++) {
			struct mapping m = { first + put, t->slots[put], crc[put], bufs[put], MAPPING_CLEAN };

			if (mapping_place(c, v, &m) < 0)
				break;
		}
		epoch_leave(c);
	}
	slots_give(&c->slots, t->slots + put, got - put);
	ctr_add(v->n.cache_written, (uint64_t)put * CACHE_BLOCK);
	blocks_drop(c, v, first + put, n - put);
}

/* What the cache has of the range. */
static void look(struct thread_ctx *t, struct volume *v, uint64_t first, unsigned n, unsigned *cached, unsigned *dirty)
{
	*cached = plan_lookup(t, v, first, n);
	*dirty = 0;
	for (unsigned i = 0; i < n; i++)
		*dirty += t->plan[i].dirty;
	plan_release(t, n);
}

/* Drops the blocks of the last lookup that are clean; range locked THROUGH. */
static void drop_clean(struct thread_ctx *t, struct volume *v, uint64_t first, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (t->plan[i].cached && !t->plan[i].dirty)
			blocks_drop(v->cache, v, first + i, 1);
}

int write_through_blocks(struct thread_ctx *t, struct volume *v, const char *src, uint64_t off, uint32_t len, int mode,
			 unsigned *hits)
{
	struct cache *c = v->cache;
	uint64_t first = off / CACHE_BLOCK;
	unsigned n = (unsigned)((off + len - 1) / CACHE_BLOCK - first + 1), cached, dirty, hit;
	struct range_lock rl;
	uint32_t crc[MAX_BLOCKS];
	char *data[MAX_BLOCKS];
	bool keep;
	struct buffer *bufs[MAX_BLOCKS];
	int rc;

	range_lock(&c->ranges, &rl, v->id, first, n, RANGE_THROUGH);
	rc = intent_begin(v, off, len);
	if (rc)
		goto unlock;
	look(t, v, first, n, &cached, &dirty);
	hit = cached;
	keep = mode_traits[mode].copies == MODE_COPY ||
	       (mode_traits[mode].copies == MODE_COPY_IF_CACHED && cached == n);
	if (keep && (c->failed || buffer_alloc(c->buffers, bufs, n, true)))
		keep = false; /* the data file is in trouble: the backing device has the data, that is enough */
	for (unsigned i = 0; i < n; i++)
		data[i] = keep ? buffer_data(bufs[i]) : thread_ctx_bounce(t, n) + (size_t)i * CACHE_BLOCK;
	rc = plan_gather(t, v, src, off, len, data);
	if (rc)
		goto release;
	rc = backing_write(t, v, first, n, data);
	if (!rc && dirty && !MUTATE(THROUGH_FLUSH))
		rc = backing_flush(t, v);
	if (rc) {
		look(t, v, first, n, &cached, &dirty);
		drop_clean(t, v, first, n);
	} else if (keep) {
		for (unsigned i = 0; i < n; i++)
			crc[i] = crc32c(data[i], CACHE_BLOCK);
		update_cache(t, v, first, n, bufs, crc);
	} else {
		blocks_drop(c, v, first, n);
	}
	*hits += hit;
release:
	if (keep)
		buffer_release_many(bufs, n);
	intent_end(v, off, len, epoch_open_id(c));
unlock:
	range_unlock(&c->ranges, &rl);
	return rc;
}
