/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * read.c - reads, and the fills that follow from misses.
 *
 * - Hit in RAM: waits for nobody (P11), takes no range lock. The reply points into pinned buffers; buffers in
 *   memory are never changed in place (a write publishes another one), so the range lock is not needed any more once
 *   they are pinned.
 * - Hit on SSD: read into RAM buffers, crc checked, published as clean buffers.
 * - Miss: read from backing into RAM buffers; a fill gives them slots and publishes them as buffers to be written out.
 *
 * A fill never waits: without a free slot, entry or buffer the block is simply not cached this time. It happens under
 * the read's own range lock, so no write to the range can have started meanwhile.
 */
#include "engine/request/request.h"

#include <errno.h>
#include <string.h>

/* The blocks of the plan that came from backing go into the cache, as far as there is room. */
static void fill(struct thread_ctx *t, struct volume *v, uint64_t first, unsigned n)
{
	struct cache *c = v->cache;
	uint32_t crc[MAX_BLOCKS];
	unsigned want = 0, got, k = 0;

	for (unsigned i = 0; i < n; i++) {
		struct block_plan *p = &t->plan[i];

		if (p->source == FROM_BACKING && !p->cached && p->buf) {
			crc[i] = crc32c(p->data, CACHE_BLOCK);
			want++;
		}
	}
	if (!want || c->failed)
		return;
	got = slots_take_some(&c->slots, t->slots, want, space_kept_for_writes(&c->space));
	if (got < want || cache_room_is_low(c))
		job_kick(c, JOB_RECLAIM);
	if (!got)
		return;
	epoch_enter(c);
	for (unsigned i = 0; i < n && k < got; i++) {
		struct block_plan *p = &t->plan[i];
		struct mapping m = { first + i, t->slots[k], crc[i], p->buf, MAPPING_FILL };
		int used;

		if (p->source != FROM_BACKING || p->cached || !p->buf)
			continue;
		used = mapping_place(c, v, &m);
		if (used < 0)
			break;
		k += (unsigned)used;
	}
	epoch_leave(c);
	slots_give(&c->slots, t->slots + k, got - k);
	ctr_add(v->n.cache_written, (uint64_t)k * CACHE_BLOCK);
}

/* Hands the plan's blocks out as pieces for [off, off + len). */
static void make_reply(struct thread_ctx *t, uint64_t off, uint32_t len, struct volume_reply *reply)
{
	uint32_t skip = off % CACHE_BLOCK;
	struct iovec *last = NULL;

	reply->iovcnt = 0;
	for (unsigned i = 0; len; i++) {
		uint32_t bytes = CACHE_BLOCK - skip < len ? CACHE_BLOCK - skip : len;
		char *at = t->plan[i].data + skip;

		if (last && (char *)last->iov_base + last->iov_len == at) {
			last->iov_len += bytes;
		} else {
			last = &reply->iov[1 + reply->iovcnt++];
			*last = (struct iovec){ .iov_base = at, .iov_len = bytes };
		}
		len -= bytes;
		skip = 0;
	}
}

static void count_read(struct volume *v, unsigned n, unsigned cached, uint32_t len, bool through, uint64_t start)
{
	uint64_t took = now_ns() - start;

	ctr_add(v->n.volume_read, len);
	if (through)
		ctr_add(v->n.pass_through_reads, 1);
	else if (cached == n)
		ctr_add(v->n.read_hits, 1);
	else if (cached)
		ctr_add(v->n.read_partial_misses, 1);
	else
		ctr_add(v->n.read_misses, 1);
	hist_add(cached == n ? &v->n.read_hit : &v->n.read_miss, took);
}

#define PROMOTE_WINDOW 1024u /* reads between looks */
#define PROMOTE_PAYS 8u /* promoted blocks per hit in RAM, at most */
#define PROMOTE_SAMPLE 16u

/*
 * Does this read from the SSD go to RAM? If RAM is full and hardly anything in it is hit, because the working set is so
 * much larger, reading into the same warm memory again and again is faster. A sample is promoted all the same, to
 * notice when that changes.
 */
static bool promotes(struct volume *v)
{
	struct promotion *p = &v->promotion;
	uint64_t n = ctr_add(p->reads, 1);

	if (n % PROMOTE_WINDOW == PROMOTE_WINDOW - 1) {
		uint64_t blocks = ctr_get(p->blocks), hits = ctr_get(v->n.ram_read) / CACHE_BLOCK;

		atomic_store(&p->sampled,
			     (hits - ctr_get(p->seen_hits)) * PROMOTE_PAYS < blocks - ctr_get(p->seen_blocks));
		atomic_store(&p->seen_blocks, blocks);
		atomic_store(&p->seen_hits, hits);
	}
	return !ctr_get(p->sampled) || n % PROMOTE_SAMPLE == 0 || buffer_pool_unused(v->cache->pool) > MAX_BLOCKS;
}

/* Sets t->tidy if the blocks, which took `pieces` reads from slots, should be moved together. */
static void tidy_note(struct thread_ctx *t, unsigned n, unsigned pieces)
{
	uint64_t min = ctr_get(t->cache->tunables.tidy_bytes);

	t->tidy = min && (uint64_t)n * CACHE_BLOCK >= min && plan_is_scattered(n, pieces);
}

/* The backing device answers, but for what only the cache has. */
static unsigned prefer_backing(struct thread_ctx *t, unsigned n, unsigned cached)
{
	for (unsigned i = 0; i < n; i++) {
		struct block_plan *p = &t->plan[i];

		if (!p->cached || p->dirty)
			continue;
		if (p->buf)
			buffer_release(p->buf);
		*p = (struct block_plan){ .source = FROM_BACKING };
		cached--;
	}
	return cached;
}

/* What came from slots is in RAM from now on. Returns whether a block of the cache turned out bad. */
static bool publish_promoted(struct thread_ctx *t, struct volume *v, unsigned n)
{
	unsigned promoted = 0;
	bool bad = false;

	for (unsigned i = 0; i < n; i++) {
		struct block_plan *p = &t->plan[i];

		if (p->source == FROM_SLOT && p->buf) {
			buffer_publish(p->buf, p->slot, false);
			promoted++;
		}
		bad |= p->source == FROM_BACKING && p->cached;
	}
	if (promoted)
		ctr_add(v->promotion.blocks, promoted);
	return bad;
}

/* The blocks' range locked meanwhile. *cached: how many blocks the cache had. */
static int read_locked(struct thread_ctx *t, struct volume *v, uint64_t first, unsigned n, int mode, unsigned *cached)
{
	struct cache *c = v->cache;
	struct range_lock rl;
	bool bad = false;
	int rc;

	range_lock(&c->ranges, &rl, v->id, first, n, RANGE_READ);
	t->tidy_first = first;
	t->tidy_epoch = epoch_open_id(c);
	*cached = plan_lookup(t, v, first, n);
	if (!mode_traits[mode].reads_cache || c->failed)
		*cached = prefer_backing(t, n, *cached);
	t->no_promotion = !promotes(v);
	rc = plan_read(t, v, first, n);
	t->no_promotion = false;
	if (!rc) {
		bad = publish_promoted(t, v, n);
		if (mode_traits[mode].fills)
			fill(t, v, first, n);
		if (mode_traits[mode].fills && *cached == n && !bad)
			tidy_note(t, n, t->pieces);
		if (t->tidy) /* after the reply the client may let go of the volume */
			volume_use_more(v);
	}
	range_unlock(&c->ranges, &rl);
	if (bad)
		plan_repair(t, v, first, n);
	return rc;
}

int volume_read(struct volume *v, uint64_t off, uint32_t len, struct volume_reply *reply)
{
	struct cache *c = v->cache;
	struct thread_ctx *t = thread_ctx_get(c);
	uint64_t first = off / CACHE_BLOCK, start = now_ns();
	unsigned n, cached, ram = 0;
	int mode, rc;

	if (!t)
		return -ENOMEM;
	if (off > v->size || len > v->size - off || len > VOLUME_MAX_IO)
		return -EINVAL;
	reply->priv = t;
	t->nplan = 0;
	reply->iovcnt = 0;
	if (!len)
		return 0;
	n = (unsigned)((off + len - 1) / CACHE_BLOCK - first + 1);
	mode = ctr_get(v->mode);
	if (mode_traits[mode].reads_cache && !c->failed && plan_from_ram(t, v, first, n)) {
		cached = ram = n;
	} else {
		rc = read_locked(t, v, first, n, mode, &cached);
		if (rc) {
			plan_release(t, n);
			return rc;
		}
		for (unsigned i = 0; i < n; i++)
			ram += t->plan[i].source == FROM_RAM;
	}
	t->nplan = n;
	make_reply(t, off, len, reply);
	if (ram)
		ctr_add(v->n.ram_read, (uint64_t)ram * CACHE_BLOCK);
	count_read(v, n, cached, len, mode == CACHE_MODE_PT, start);
	readahead_note(v, off, len, cached < n);
	return 0;
}

void volume_read_done(struct volume *v, struct volume_reply *reply)
{
	struct thread_ctx *t = reply->priv;

	if (t->tidy) {
		v->cache->after_read(t, v);
		volume_unuse(v);
	}
	plan_release(t, t->nplan);
	t->nplan = 0;
}

int volume_fill(struct volume *v, uint64_t off, uint32_t len)
{
	struct cache *c = v->cache;
	struct thread_ctx *t = thread_ctx_get(c);
	uint64_t first = off / CACHE_BLOCK;
	unsigned n = (unsigned)((off + len - 1) / CACHE_BLOCK - first + 1), missing = 0;
	struct range_lock rl;
	int rc = 0;

	if (!t)
		return -ENOMEM;
	range_lock(&c->ranges, &rl, v->id, first, n, RANGE_READ);
	plan_lookup(t, v, first, n);
	for (unsigned i = 0; i < n; i++) {
		if (t->plan[i].source == FROM_BACKING)
			missing++;
		else if (t->plan[i].source == FROM_SLOT)
			t->plan[i].source = NOT_WANTED;
	}
	if (missing && mode_traits[ctr_get(v->mode)].fills && !c->failed) {
		rc = plan_read(t, v, first, n);
		if (!rc)
			fill(t, v, first, n);
		rc = rc ? rc : 1;
	}
	range_unlock(&c->ranges, &rl);
	plan_release(t, n);
	return rc;
}

int volume_pread(struct volume *v, void *buf, uint32_t len, uint64_t off)
{
	struct volume_reply reply;
	char *at = buf;
	int rc = volume_read(v, off, len, &reply);

	if (rc)
		return rc;
	for (int i = 1; i <= reply.iovcnt; i++) {
		memcpy(at, reply.iov[i].iov_base, reply.iov[i].iov_len);
		at += reply.iov[i].iov_len;
	}
	volume_read_done(v, &reply);
	return 0;
}
