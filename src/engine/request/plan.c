/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * plan.c - where the blocks of a request are, and getting them from there. The request's range is locked by the
 * caller (READ or stronger), so a block's slot cannot be given up meanwhile (writers and eviction take the range in a
 * conflicting mode).
 */
#include "engine/request/request.h"

#include <errno.h>
#include <string.h>

static void plan_drop(struct block_plan *p, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		if (p[i].buf) {
			buffer_release(p[i].buf);
			p[i].buf = NULL;
		}
	}
}

void plan_release(struct thread_ctx *t, unsigned n)
{
	plan_drop(t->plan, n);
}

/* Of large requests all look-ups begin at once: each alone waits for memory some three times. */
#define PREFETCH_BLOCKS 8u

/* Pins the buffers of n of an entry's blocks from b on, all or none. */
static inline bool pin_blocks(struct cache *c, struct block_plan *p, const struct line_peek *look, unsigned b,
			      unsigned n)
{
	const struct lines *l = &c->lines;
	uint16_t valid = line_peek_valid(l, look);
	unsigned i = 0;

	for (; i < n && valid >> (b + i) & 1; i++) {
		p[i].buf = buffer_get(c->buffers, line_peek_slot(l, look, b + i));
		if (!p[i].buf)
			break;
		p[i].source = FROM_RAM;
		p[i].data = buffer_data(p[i].buf);
	}
	if (i == n)
		return true;
	plan_drop(p, i);
	return false;
}

static __attribute__((noinline)) bool pin_locked(struct cache *c, struct block_plan *p, uint64_t key, unsigned b,
						 unsigned n)
{
	struct lines *l = &c->lines;
	struct line_chain ch = lines_lock(l, key);
	struct line_peek look = { .e = lines_find(&ch) };
	bool found = false;

	if (look.e != LINE_NONE) {
		look.word = lines_word(l, look.e);
		found = pin_blocks(c, p, &look, b, n);
	}
	if (found)
		c->policy.ops->hit(&c->policy, l, look.e);
	lines_unlock(&ch);
	return found;
}

/* How often to look without the lock, should somebody have it at the moment: a hit waits for nobody who can be passed.
 */
#define PEEK_TRIES 4

/* The same for blocks of a line. */
static bool pin_line(struct cache *c, struct block_plan *p, uint64_t key, unsigned b, unsigned n)
{
	struct lines *l = &c->lines;
	struct line_peek look;

	for (unsigned tries = 0; tries < PEEK_TRIES; tries++) {
		bool found;

		if (!lines_peek(l, key, &look))
			continue;
		found = look.e != LINE_NONE && pin_blocks(c, p, &look, b, n);
		if (MUTATE(HIT_RECHECK) || line_peek_is_true(&look)) {
			if (found)
				c->policy.ops->hit(&c->policy, l, look.e);
			return found;
		}
		if (found)
			plan_drop(p, n);
	}
	return pin_locked(c, p, key, b, n);
}

bool plan_from_ram(struct thread_ctx *t, struct volume *v, uint64_t first, unsigned n)
{
	struct lines *l = &v->cache->lines;

	if (n >= PREFETCH_BLOCKS)
		lines_prefetch(l, v->id, first, n);
	for (unsigned i = 0; i < n;) {
		uint64_t block = first + i;
		unsigned b = block & (l->bpl - 1), some = l->bpl - b < n - i ? l->bpl - b : n - i;

		if (!pin_line(v->cache, &t->plan[i], line_key(v->id, block >> l->bpl_shift), b, some)) {
			plan_release(t, i);
			return false;
		}
		i += some;
	}
	return true;
}

unsigned plan_lookup(struct thread_ctx *t, struct volume *v, uint64_t first, unsigned n)
{
	struct cache *c = v->cache;
	struct lines *l = &c->lines;
	unsigned cached = 0;

	for (unsigned i = 0; i < n;) {
		uint64_t block = first + i, line = block >> l->bpl_shift;
		unsigned b = block & (l->bpl - 1), end = l->bpl - b < n - i ? l->bpl : b + n - i;
		struct line_chain ch = lines_lock(l, line_key(v->id, line));
		uint32_t e = lines_find(&ch);
		uint16_t valid = e == LINE_NONE ? 0 : line_valid(l, e);
		uint16_t dirty = e == LINE_NONE ? 0 : line_dirty(l, e);

		if (e != LINE_NONE)
			c->policy.ops->hit(&c->policy, l, e);
		for (; b < end; b++, i++) {
			struct block_plan *p = &t->plan[i];

			p->buf = NULL;
			p->data = NULL;
			p->cached = valid >> b & 1;
			p->dirty = dirty >> b & 1;
			p->source = p->cached ? FROM_SLOT : FROM_BACKING;
			if (p->cached) {
				const struct journal_block *blk = line_block(l, e, b);

				p->slot = blk->slot;
				p->crc = blk->crc;
				cached++;
			}
		}
		lines_unlock(&ch);
	}
	for (unsigned i = 0; i < n; i++) {
		struct block_plan *p = &t->plan[i];

		if (p->source != FROM_SLOT)
			continue;
		p->buf = buffer_get(c->buffers, p->slot);
		if (p->buf) {
			p->source = FROM_RAM;
			p->data = buffer_data(p->buf);
		}
	}
	return cached;
}

static bool needs_place(const struct block_plan *p)
{
	return !p->data && p->source != NOT_WANTED;
}

static bool wants_buffer(const struct thread_ctx *t, const struct block_plan *p)
{
	return needs_place(p) && !(t->no_promotion && p->source == FROM_SLOT);
}

/* Gives every block that has to be read a place: RAM buffers as far as there are any, else the thread's bounce memory.
 */
static void plan_places(struct thread_ctx *t, unsigned n)
{
	unsigned need = 0, have = 0, k = 0;

	for (unsigned i = 0; i < n; i++)
		need += wants_buffer(t, &t->plan[i]);
	while (have < need) {
		unsigned some = need - have < t->cache->space.alloc_max ? need - have : t->cache->space.alloc_max;

		if (buffer_alloc(t->cache->buffers, t->bufs + have, some, false))
			break;
		have += some;
	}
	for (unsigned i = 0; i < n; i++) {
		struct block_plan *p = &t->plan[i];

		if (!needs_place(p))
			continue;
		if (k < have && wants_buffer(t, p)) {
			p->buf = t->bufs[k++];
			p->data = buffer_data(p->buf);
		} else {
			p->data = thread_ctx_bounce(t, n) + (size_t)i * CACHE_BLOCK;
		}
	}
}

/* Builds the reads of one source, neighbours merged, from t->ios[at] and t->iov[*iov_at] on. Returns how many. */
static unsigned build_reads(struct thread_ctx *t, struct volume *v, uint64_t first, unsigned n,
			    enum block_source source, unsigned at, unsigned *iov_at)
{
	struct bdev_io *io = NULL;
	unsigned count = 0;

	for (unsigned i = 0; i < n; i++) {
		struct block_plan *p = &t->plan[i];
		uint32_t bytes = CACHE_BLOCK;
		uint64_t off;
		struct iovec *iov;

		if (p->source != source)
			continue;
		if (source == FROM_SLOT) {
			off = (uint64_t)p->slot * CACHE_BLOCK;
		} else {
			off = (first + i) * CACHE_BLOCK;
			bytes = block_bytes(v, first + i);
			if (bytes < CACHE_BLOCK)
				memset(p->data + bytes, 0, CACHE_BLOCK - bytes);
		}
		iov = &t->iov[(*iov_at)++];
		*iov = (struct iovec){ .iov_base = p->data, .iov_len = bytes };
		if (io && io->offset + io->length == off) {
			struct iovec *last = &io->iov[io->iovcnt - 1];

			io->length += bytes;
			p->io = (uint16_t)(at + count - 1);
			if ((char *)last->iov_base + last->iov_len == p->data) {
				last->iov_len += bytes;
				(*iov_at)--;
			} else {
				io->iovcnt++;
			}
			continue;
		}
		p->io = (uint16_t)(at + count++);
		io = &t->ios[p->io];
		*io = (struct bdev_io){ .type = BDEV_READ, .offset = off, .length = bytes, .iov = iov, .iovcnt = 1 };
	}
	return count;
}

/* Reads again, from backing, the blocks whose copy in the cache turned out bad. */
static int read_backing(struct thread_ctx *t, struct volume *v, uint64_t first, unsigned n)
{
	struct bdev_channel *ch = thread_ctx_backing(t, v);
	unsigned iov = 0, ios;
	uint64_t bytes = 0;
	int rc;

	if (!ch)
		return -ENOMEM;
	ios = build_reads(t, v, first, n, FROM_BACKING, 0, &iov);
	rc = bdev_rw_wait(ch, t->ios, ios);
	for (unsigned i = 0; i < ios; i++)
		bytes += t->ios[i].length;
	ctr_add(v->n.backing_read, bytes);
	if (rc)
		ctr_add(v->n.err_backing_read, 1);
	return rc;
}

/* Drops a clean block whose slot turned out bad, unless somebody has replaced it. Not under a range lock of the
 * caller's. */
static void drop_bad(struct volume *v, uint64_t block, uint32_t slot)
{
	struct cache *c = v->cache;
	struct lines *l = &c->lines;
	struct range_lock rl;
	unsigned b = block & (l->bpl - 1);
	struct line_chain ch;
	uint32_t e;

	if (!range_trylock(&c->ranges, &rl, v->id, block, 1, RANGE_THROUGH))
		return; /* in use: whoever reads it next finds it again */
	epoch_enter(c);
	ch = lines_lock(l, line_key(v->id, block >> l->bpl_shift));
	e = lines_find(&ch);
	if (e != LINE_NONE && line_valid(l, e) >> b & 1 && !(line_dirty(l, e) >> b & 1) &&
	    line_block(l, e, b)->slot == slot)
		line_drop(c, v, &ch, e, (uint16_t)(1u << b));
	lines_unlock(&ch);
	epoch_leave(c);
	range_unlock(&c->ranges, &rl);
}

void plan_repair(struct thread_ctx *t, struct volume *v, uint64_t first, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (t->plan[i].source == FROM_BACKING && t->plan[i].cached)
			drop_bad(v, first + i, t->plan[i].slot);
}

/*
 * Which blocks could not be read? Those of reads of one block that failed, and those of reads of several that fail once
 * more, each alone. All at once, for a device may take its time to fail. plan[].io is NO_IO then, of the others
 * anything.
 */
#define NO_IO UINT16_MAX

static void find_unreadable(struct thread_ctx *t, struct volume *v, unsigned n, unsigned ios)
{
	bool retried[MAX_BLOCKS] = { false };
	unsigned again = 0, good = 0;

	while (good < ios && !t->ios[good].result)
		good++;
	if (good == ios)
		return;

	for (unsigned i = 0; i < n; i++) {
		struct block_plan *p = &t->plan[i];

		if (p->source != FROM_SLOT || !t->ios[p->io].result)
			continue;
		if (t->ios[p->io].length == CACHE_BLOCK)
			p->io = NO_IO;
		else
			retried[i] = true;
	}
	for (unsigned i = 0; i < n; i++) {
		struct block_plan *p = &t->plan[i];

		if (!retried[i])
			continue;
		p->io = (uint16_t)again;
		t->iov[again] = (struct iovec){ .iov_base = p->data, .iov_len = CACHE_BLOCK };
		t->ios[again] = (struct bdev_io){ .type = BDEV_READ,
						  .offset = (uint64_t)p->slot * CACHE_BLOCK,
						  .length = CACHE_BLOCK,
						  .iov = &t->iov[again],
						  .iovcnt = 1 };
		again++;
	}
	if (!again)
		return;
	if (!bdev_rw_wait(t->data_ch, t->ios, again))
		ctr_add(v->n.err_cache_read, 1); /* of what failed together none did alone */
	for (unsigned i = 0; i < n; i++)
		if (retried[i] && t->ios[t->plan[i].io].result)
			t->plan[i].io = NO_IO;
}

/*
 * P9: after the reads from slots. A clean block that could not be read or fails its checksum becomes a block to read
 * from backing (its `cached` stays true, by which plan_repair finds it). A dirty one has no other copy: -EIO for this
 * request.
 */
static int check_slots(struct thread_ctx *t, struct volume *v, unsigned n, unsigned ios)
{
	int rc = 0;

	find_unreadable(t, v, n, ios);
	for (unsigned i = 0; i < n; i++) {
		struct block_plan *p = &t->plan[i];
		bool io_failed;

		if (p->source != FROM_SLOT)
			continue;
		io_failed = p->io == NO_IO;
		if (!io_failed && crc32c(p->data, CACHE_BLOCK) == p->crc)
			continue;
		if (io_failed)
			ctr_add(v->n.err_cache_read, 1);
		else
			ctr_add(v->n.err_checksum, 1);
		if (p->dirty) {
			log_error("volume %s: a dirty block in slot %u %s: its data is lost", v->name, p->slot,
				  io_failed ? "cannot be read" : "fails its checksum");
			rc = -EIO;
		}
		p->source = FROM_BACKING;
	}
	return rc;
}

int plan_read(struct thread_ctx *t, struct volume *v, uint64_t first, unsigned n)
{
	struct bdev_channel *ch = NULL;
	unsigned iov = 0, nslot = 0, nback = 0, ios_slot, ios_back, bad = 0;
	uint64_t back_bytes = 0;
	int rc = 0;

	t->pieces = 0;
	for (unsigned i = 0; i < n; i++) {
		nslot += t->plan[i].source == FROM_SLOT;
		nback += t->plan[i].source == FROM_BACKING;
	}
	if (!nslot && !nback)
		return 0;
	plan_places(t, n);
	if (nback && !(ch = thread_ctx_backing(t, v)))
		return -ENOMEM;
	ios_slot = build_reads(t, v, first, n, FROM_SLOT, 0, &iov);
	t->pieces = ios_slot;
	ios_back = build_reads(t, v, first, n, FROM_BACKING, ios_slot, &iov);
	/* both devices work at the same time */
	if (ios_slot && ios_back) {
		for (unsigned i = 0; i < ios_slot; i++)
			bdev_submit(t->data_ch, &t->ios[i]);
		bdev_poll(t->data_ch, 0);
	}
	if (ios_back) {
		rc = bdev_rw_wait(ch, t->ios + ios_slot, ios_back);
		for (unsigned i = 0; i < ios_back; i++)
			back_bytes += t->ios[ios_slot + i].length;
		ctr_add(v->n.backing_read, back_bytes);
		if (rc)
			ctr_add(v->n.err_backing_read, 1);
	}
	if (ios_slot) {
		if (ios_back)
			while (bdev_in_flight(t->data_ch)) /* bdev_rw_wait above has said so */
				bdev_poll(t->data_ch, 1);
		else
			bdev_rw_wait(t->data_ch, t->ios, ios_slot);
		ctr_add(v->n.cache_read, (uint64_t)nslot * CACHE_BLOCK);
		for (unsigned i = 0; i < n; i++)
			if (t->plan[i].source == FROM_BACKING)
				t->plan[i].source = FROM_BACKING_DONE;
		if (!rc)
			rc = check_slots(t, v, n, ios_slot);
		for (unsigned i = 0; i < n; i++)
			bad += t->plan[i].source == FROM_BACKING;
		if (!rc && bad)
			rc = read_backing(t, v, first, n);
		for (unsigned i = 0; i < n; i++)
			if (t->plan[i].source == FROM_BACKING_DONE)
				t->plan[i].source = FROM_BACKING;
	}
	return rc;
}

/* Copies the present contents of a block to dst, for a write that covers only part of it. Range locked. */
static int load_block(struct thread_ctx *t, struct volume *v, uint64_t block, char *dst)
{
	int rc;

	plan_lookup(t, v, block, 1);
	if (t->plan[0].source != FROM_RAM)
		t->plan[0].data = dst;
	rc = plan_read(t, v, block, 1);
	if (!rc && t->plan[0].data != dst)
		memcpy(dst, t->plan[0].data, CACHE_BLOCK);
	plan_release(t, 1);
	return rc;
}

int plan_gather(struct thread_ctx *t, struct volume *v, const char *src, uint64_t off, uint32_t len, char **block_data)
{
	uint64_t first = off / CACHE_BLOCK, end = off + len, last = (end - 1) / CACHE_BLOCK;
	uint32_t head = off % CACHE_BLOCK, tail = end % CACHE_BLOCK;
	unsigned n = (unsigned)(last - first + 1);
	int rc;

	/* the rest of the blocks at the edges; the end of an odd-sized volume is no edge */
	if (head && (rc = load_block(t, v, first, block_data[0])))
		return rc;
	if (tail && end < v->size && !(n == 1 && head) && (rc = load_block(t, v, last, block_data[n - 1])))
		return rc;
	if (tail && end == v->size)
		memset(block_data[n - 1] + tail, 0, CACHE_BLOCK - tail);
	for (unsigned i = 0; i < n; i++) {
		uint32_t skip = i ? 0 : head, bytes = CACHE_BLOCK - skip < len ? CACHE_BLOCK - skip : len;

		/* not memcpy: of unknown size the compiler would write it out as a string instruction */
		memmove(block_data[i] + skip, src, bytes);
		src += bytes;
		len -= bytes;
	}
	return 0;
}

#define TIDY_PIECES 4u /* blocks per piece on the SSD; with as many a disk is near its best */

bool plan_is_scattered(unsigned n, unsigned pieces)
{
	return pieces > 1 && pieces * TIDY_PIECES > n;
}
