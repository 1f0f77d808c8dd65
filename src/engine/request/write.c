/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * write.c - writes: the entry point for all modes, and the write-back path. The paths that write to the backing device
 * are in request/write_to_backing.c.
 *
 * Write-back copies the data into fresh RAM buffers, gives the blocks slots, and answers. Nothing is written anywhere
 * yet: the buffers' writer sends them to the data file in slot order, at the latest with the epoch. A block whose slot
 * belongs to the open epoch is replaced in its slot; any other gets a new slot (epoch.c, rule 1).
 */
#include "engine/request/request.h"

#include "engine/durable/bypass.h"
#include "engine/durable/takeover_log.h"

#include <errno.h>
#include <string.h>

#define NO_ROOM 1
/*
 * When the writer is sent before the epoch ends: after so many slots were taken, by
 * - large writes. A stream comes back late if at all, fills whatever room there is, and then depends on the device;
 * - an epoch that slots will end early. The device must not be idle until then, with everybody waiting for it in the
 *   end.
 * Not if more blocks were written again than for the first time in their epoch: waiting saves those a write each time.
 */
#define STREAM_WRITE 16u
#define SEND_SLOTS 2048u

static void send_writer(struct cache *c, uint32_t n, uint32_t slots)
{
	uint64_t more = (uint64_t)(n - slots) << 32 | slots, now = ctr_add(c->unsent, more) + more;

	if ((uint32_t)now < SEND_SLOTS || (uint32_t)now < now >> 32 ||
	    !atomic_compare_exchange_strong(&c->unsent, &now, 0))
		return;
	if (n >= STREAM_WRITE || epoch_ends_early(c))
		buffer_write_dirty_async(c->buffers);
}

/* Puts blocks into the map. 0, -errno, or NO_ROOM for all of them. *done: how many were put. */
static int put_all(struct thread_ctx *t, struct volume *v, uint64_t first, unsigned n, const uint32_t *crc,
		   unsigned *done, unsigned *hits)
{
	struct cache *c = v->cache;
	unsigned k = 0;
	int put = 0;

	if (!slots_take(&c->slots, t->slots, n))
		return NO_ROOM;
	for (unsigned i = 0; i < n; i++)
		buffer_get_soon(c->buffers, t->slots[i]);
	epoch_enter(c);
	if (c->failed)
		put = -EIO;
	while (*done < n && put >= 0) {
		struct mapping m = { first + *done, t->slots[k], crc[*done], t->bufs[*done], MAPPING_DIRTY };

		put = mapping_place(c, v, &m);
		if (put < 0)
			break;
		k += (unsigned)put;
		*hits += m.was_cached;
		++*done;
	}
	atomic_store_explicit(&v->last_epoch, epoch_open_id(c), memory_order_release);
	epoch_leave(c);
	slots_give(&c->slots, t->slots + k, n - k);
	ctr_add(v->n.cache_written, (uint64_t)*done * CACHE_BLOCK);
	send_writer(c, *done, k);
	if (cache_room_is_low(c))
		job_kick(c, JOB_RECLAIM);
	if (epoch_holds_much(c) && space_commit_pays(&c->space, ctr_get(c->epoch.nfreed)))
		job_kick(c, JOB_MAINTAIN);
	return put == -EAGAIN ? NO_ROOM : put < 0 ? put : 0;
}

/*
 * 0, -errno, or NO_ROOM for all of it; *moved: how many bytes of it were written then. The range and the buffers are
 * let go before anybody waits for room: what has to be cleaned or evicted may lie in this very range, or in one that
 * somebody has locked who waits for this one; and many writers waiting could hold all there is.
 */
static int write_back_blocks(struct thread_ctx *t, struct volume *v, const char *src, uint64_t off, uint32_t len,
			     uint32_t *moved, unsigned *hits)
{
	struct cache *c = v->cache;
	uint64_t first = off / CACHE_BLOCK;
	unsigned n = (unsigned)((off + len - 1) / CACHE_BLOCK - first + 1);
	struct range_lock rl;
	uint32_t crc[MAX_BLOCKS];
	char *data[MAX_BLOCKS];
	unsigned done = 0;
	int rc;

	/* by the time the data is copied, it is there */
	lines_prefetch(&c->lines, v->id, first, n);
	range_lock(&c->ranges, &rl, v->id, first, n, RANGE_WRITE);
	rc = buffer_alloc(c->buffers, t->bufs, n, true);
	if (rc)
		goto out;
	for (unsigned i = 0; i < n; i++)
		data[i] = buffer_data(t->bufs[i]);
	rc = plan_gather(t, v, src, off, len, data);
	if (!rc) {
		for (unsigned i = 0; i < n; i++)
			crc[i] = crc32c(data[i], CACHE_BLOCK);
		rc = put_all(t, v, first, n, crc, &done, hits);
	}
	buffer_release_many(t->bufs, n);
	if (rc == NO_ROOM)
		*moved = done ? (uint32_t)((first + done) * CACHE_BLOCK - off) : 0;
out:
	range_unlock(&c->ranges, &rl);
	return rc;
}

/*
 * Is everything durable although the cache has failed? What is not dirty is on backing, but the journal may still call
 * dirty what was cleaned or written over after its last epoch: then it must be void (P7).
 */
static int durable_without_cache(struct volume *v, uint64_t epoch)
{
	struct cache *c = v->cache;

	if (ctr_get(v->dirty_blocks))
		return -EIO; /* P6 */
	if (atomic_load_explicit(&c->epoch.durable_id, memory_order_acquire) >= epoch)
		return 0;
	return cache_bypassed(c) ? bypass_prepare(c) : -EIO;
}

/* P1 for this volume. */
static int make_durable(struct thread_ctx *t, struct volume *v)
{
	uint64_t epoch = atomic_load_explicit(&v->last_epoch, memory_order_acquire);
	int rc = MUTATE(BACKING_FLUSH) ? 0 : backing_flush(t, v), rc2 = 0;

	if (!v->cache->failed && !MUTATE(COMMIT_WAIT) &&
	    atomic_load_explicit(&v->cache->epoch.durable_id, memory_order_acquire) < epoch)
		rc2 = epoch_commit_to(v->cache, epoch);
	if (v->cache->failed)
		rc2 = durable_without_cache(v, epoch);
	return rc ? rc : rc2;
}

/* One piece, of a volume that writes back, to its backing device: there is no room in the cache. */
static int write_past(struct thread_ctx *t, struct volume *v, const char **src, uint64_t *off, uint32_t *left,
		      unsigned *hits, unsigned *blocks)
{
	uint32_t room = v->cache->space.write_piece * CACHE_BLOCK - *off % CACHE_BLOCK,
		 piece = *left < room ? *left : room;
	int rc = write_through_blocks(t, v, *src, *off, piece, CACHE_MODE_WI, hits);

	if (rc)
		return rc;
	*blocks += (unsigned)((*off % CACHE_BLOCK + piece + CACHE_BLOCK - 1) / CACHE_BLOCK);
	*src += piece;
	*off += piece;
	*left -= piece;
	return 0;
}

static void count_write(struct volume *v, int mode, unsigned hits, unsigned blocks)
{
	if (mode == CACHE_MODE_PT)
		ctr_add(v->n.pass_through_writes, 1);
	else if (hits == blocks)
		ctr_add(v->n.write_hits, 1);
	else if (hits)
		ctr_add(v->n.write_partial_misses, 1);
	else
		ctr_add(v->n.write_misses, 1);
}

int volume_write(struct volume *v, const void *buf, uint32_t len, uint64_t off, bool durable)
{
	struct cache *c = v->cache;
	struct thread_ctx *t = thread_ctx_get(c);
	uint64_t start = now_ns();
	const char *src = buf;
	uint32_t left = len;
	unsigned hits = 0, blocks = 0;
	struct room_wait room_wait = { 0 };
	int rc = 0, mode;
	bool failed;

	if (!t)
		return -ENOMEM;
	if (off > v->size || len > v->size - off || len > VOLUME_MAX_IO)
		return -EINVAL;
	mode = ctr_get(v->mode);
	failed = c->failed;
	if (failed) {
		mode = CACHE_MODE_PT;
		rc = cache_bypassed(c) ? 0 : -EIO;
	}
	while (left && !rc) {
		uint32_t room = c->space.write_piece * CACHE_BLOCK - off % CACHE_BLOCK,
			 piece = left < room ? left : room, moved = piece;

		if (mode_traits[mode].writes_back)
			rc = write_back_blocks(t, v, src, off, piece, &moved, &hits);
		else
			rc = write_through_blocks(t, v, src, off, piece, mode, &hits);
		if (rc && !failed && cache_bypassed(c)) {
			/* this write met the loss of the cache: once more, without it (P7) */
			failed = true;
			mode = CACHE_MODE_PT;
			rc = 0;
			continue;
		}
		if (moved)
			blocks += (unsigned)((off % CACHE_BLOCK + moved + CACHE_BLOCK - 1) / CACHE_BLOCK);
		src += moved;
		off += moved;
		left -= moved;
		if (rc == NO_ROOM) {
			rc = room_wait_for(
				v, (uint32_t)((off % CACHE_BLOCK + piece - moved + CACHE_BLOCK - 1) / CACHE_BLOCK),
				&room_wait);
			/* that may have taken a minute: the rest is written in the mode of now */
			mode = failed ? CACHE_MODE_PT : ctr_get(v->mode);
			if (rc == ROOM_ELSEWHERE)
				rc = write_past(t, v, &src, &off, &left, &hits, &blocks);
		}
	}
	if (!rc && durable && len)
		rc = make_durable(t, v);
	if (mode_traits[mode].writes_back && ctr_get(v->mode) != mode)
		volume_clean_soon(v); /* the switch that came meanwhile did not know of this write */
	if (!rc && len) {
		count_write(v, mode, hits, blocks);
		ctr_add(v->n.volume_written, len);
		hist_add(&v->n.write, now_ns() - start);
	}
	return rc;
}

int volume_flush(struct volume *v)
{
	struct thread_ctx *t = thread_ctx_get(v->cache);
	uint64_t start = now_ns();
	int rc;

	if (!t)
		return -ENOMEM;
	rc = make_durable(t, v);
	ctr_add(v->n.flushes, 1);
	if (!rc)
		hist_add(&v->n.flush, now_ns() - start);
	return rc;
}
