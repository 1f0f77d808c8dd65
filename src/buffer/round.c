/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * round.c - one round of writing: everything of a client that is dirty when it starts reaches the device, in ascending
 * order, neighbours merged.
 *
 * Run by the thread that has the client's `draining` role: the writer thread or a caller of buffer_write_dirty_on, on
 * its own channel. No lock is held meanwhile. Frames are taken from the dirty map in batches; of a batch
 * - keys (block numbers) are made distinct: of equal ones all but one go back to the map and the round passes again;
 * - a frame is written only if it still is the dirty buffer of its key when its turn comes (compare-and-swap to
 *   WRITING);
 * - the next batch is taken when the last write of this one has ended.
 *
 * There are two dirty maps. A round begins by making the other one current and drains the one that was: what becomes
 * dirty meanwhile is left to the next round. So a round ends however fast blocks are written, and what is written again
 * and again is not sent to the device by every round that comes along. Frames whose write failed go to the current map;
 * whether they are tried again is for the next round.
 *
 * So no block is ever in flight twice, however often its buffer is replaced or reused meanwhile (I8).
 *
 * A merged write that fails says nothing about its single blocks: they are tried again one by one, so that one bad
 * block fails alone (P9).
 */
#include <string.h>

#include "buffer/internal.h"

#define INSERTION_SORT 48 /* below this many it beats radix passes over 2048 counters */
#define RADIX_BITS 11

static void map_set(struct dirty_map *m, uint32_t frame)
{
	uint32_t word = frame / 64;
	uint64_t top_bit = 1ull << (word % 64);

	atomic_fetch_or(&m->word[word], 1ull << (frame % 64));
	/* Looked at even if the word had bits already: who set those may not have come to here. If the bit is set, the
	 * round that clears it reads our word later. */
	if (!(atomic_load(&m->top[word / 64]) & top_bit))
		atomic_fetch_or(&m->top[word / 64], top_bit);
}

void dirty_map_set(struct buffer_client *c, uint32_t frame)
{
	map_set(&c->dirty_map[atomic_load(&c->dirty_gen)], frame);
}

/* Frames from the words of top word `*top` on of the map being drained, until the batch could overflow. */
static uint32_t collect(struct buffer_client *c, uint32_t *top)
{
	struct drain *d = &c->drain;
	uint32_t n = 0;

	for (; *top < c->top_words && n + 64 * 64 <= BATCH_FRAMES; (*top)++) {
		uint64_t words;

		if (!atomic_load(&d->map->top[*top]))
			continue;
		words = atomic_exchange(&d->map->top[*top], 0);
		for (; words; words &= words - 1) {
			uint32_t word = *top * 64 + (uint32_t)__builtin_ctzll(words);
			uint64_t bits = atomic_exchange(&d->map->word[word], 0);

			for (; bits; bits &= bits - 1) {
				uint32_t frame = word * 64 + (uint32_t)__builtin_ctzll(bits);
				struct buffer *b = &c->pool->desc[frame];
				uint64_t s = atomic_load(&b->state);

				if (!(s & ST_DIRTY))
					continue;
				d->ent[n++] = (struct entry){ buffer_block_relaxed(b), frame };
			}
		}
	}
	return n;
}

static void sort_entries(struct drain *d, uint32_t n)
{
	uint32_t count[1 << RADIX_BITS];
	uint64_t ones = 0, zeros = 0;

	if (n <= INSERTION_SORT) {
		for (uint32_t i = 1; i < n; i++) {
			struct entry e = d->ent[i];
			uint32_t j = i;

			for (; j && d->ent[j - 1].block > e.block; j--)
				d->ent[j] = d->ent[j - 1];
			d->ent[j] = e;
		}
		return;
	}
	for (uint32_t i = 0; i < n; i++) {
		ones |= d->ent[i].block;
		zeros |= ~d->ent[i].block;
	}
	for (unsigned shift = 0; shift < 64; shift += RADIX_BITS) {
		const uint64_t mask = (1 << RADIX_BITS) - 1;
		struct entry *swap = d->ent;
		uint32_t sum = 0;

		if (!((ones & zeros) >> shift & mask)) /* all the same here */
			continue;
		memset(count, 0, sizeof(count));
		for (uint32_t i = 0; i < n; i++)
			count[d->ent[i].block >> shift & mask]++;
		for (uint32_t i = 0; i < 1 << RADIX_BITS; i++) {
			uint32_t here = count[i];

			count[i] = sum;
			sum += here;
		}
		for (uint32_t i = 0; i < n; i++)
			d->tmp[count[d->ent[i].block >> shift & mask]++] = d->ent[i];
		d->ent = d->tmp;
		d->tmp = swap;
	}
}

/* A write of b's memory ended, or did not start after all (`rewrite`: stays dirty). True: give the frame back; *clean:
 * it may be evictable. */
static bool end_write(struct buffer_client *c, struct buffer *b, bool rewrite, bool *clean)
{
	struct group *g = group_of(c, buffer_block_relaxed(b));
	uint64_t s, n;
	bool visible;

	group_lock(g);
	s = atomic_load(&b->state);
	visible = s & ST_VISIBLE;
	if (!visible) /* before WRITING goes: then a release may free it */
		chain_unlink_locked(c, b);
	do {
		n = s & ~ST_WRITING;
		if (!visible)
			n &= ~ST_LINKED;
		else if (rewrite)
			n |= ST_DIRTY;
	} while (!atomic_compare_exchange_weak(&b->state, &s, n));
	group_unlock(g);
	if (!(n & ST_DIRTY))
		dirty_dec(c);
	else if (rewrite)
		dirty_map_set(c, b->index);
	*clean = state_evictable(n);
	return !visible && !(n & ST_PINS);
}

/* To WRITING, if frame still is the dirty buffer of that block. */
static bool begin_write(struct buffer_client *c, const struct entry *e)
{
	struct buffer *b = &c->pool->desc[e->frame];
	uint64_t s = atomic_load(&b->state), n;
	bool clean;

	do {
		if (!(s & ST_DIRTY))
			return false; /* forgotten, replaced or reused: if it is dirty again, its bit is in the map
					 again */
		n = (s & ~ST_DIRTY) | ST_WRITING;
	} while (!atomic_compare_exchange_weak(&b->state, &s, n));
	if (buffer_block_relaxed(b) == e->block)
		return true;
	c->drain.again = true;
	map_set(c->drain.map, e->frame);
	if (end_write(c, b, true, &clean))
		pool_give_back(c->pool, &e->frame, 1);
	client_notify(c);
	return false;
}

static void io_ended(struct drain *d, struct write_io *w)
{
	struct buffer_client *c = d->client;
	bool retry = w->io.result && w->n > 1;
	unsigned ngive = 0, noffer = 0;

	d->busy--;
	atomic_fetch_add_explicit(&c->writes, 1, memory_order_relaxed);
	if (w->io.result)
		atomic_fetch_add_explicit(&c->write_errors, 1, memory_order_relaxed);
	else
		atomic_fetch_add_explicit(&c->blocks_written, w->n, memory_order_relaxed);
	for (unsigned i = 0; i < w->n; i++) {
		bool clean;

		if (retry)
			d->redo[d->nredo++] = w->frames[i];
		else if (end_write(c, &c->pool->desc[w->frames[i]], w->io.result != 0, &clean))
			d->give[ngive++] = w->frames[i];
		else if (clean)
			w->frames[noffer++] = w->frames[i];
	}
	if (!retry && w->io.result) {
		d->failed += w->n;
		d->error = d->error ? d->error : w->io.result;
	} else if (!retry) {
		d->ok += w->n;
	}
	if (ngive)
		pool_give_back(c->pool, d->give, ngive);
	if (noffer && atomic_load(&c->pool->nwaiters))
		pool_offer(c->pool, w->frames, noffer);
	client_notify(c);
	w->next_free = d->free_io;
	d->free_io = w;
}

static void io_done(struct bdev_io *io)
{
	struct write_io *w = io->ctx;

	io_ended(w->drain, w);
}

static struct write_io *io_get(struct drain *d)
{
	struct write_io *w;

	while (!d->free_io)
		bdev_poll(d->ch, 1);
	w = d->free_io;
	d->free_io = w->next_free;
	w->n = 0;
	w->io.iovcnt = 0;
	w->io.length = 0;
	return w;
}

static void io_add(struct drain *d, struct write_io *w, uint64_t block, uint32_t frame)
{
	struct buffer_pool *pool = d->client->pool;
	struct buffer *b = &pool->desc[frame];
	struct iovec *last = w->io.iovcnt ? &w->iov[w->io.iovcnt - 1] : NULL;

	if (!w->n)
		w->io.offset = block << pool->block_shift;
	w->frames[w->n++] = frame;
	w->io.length += pool->block_size;
	if (last && (char *)last->iov_base + last->iov_len == b->data)
		last->iov_len += pool->block_size;
	else
		w->iov[w->io.iovcnt++] = (struct iovec){ b->data, pool->block_size };
}

static void io_send(struct drain *d, struct write_io *w)
{
	w->io.type = BDEV_WRITE;
	w->io.iov = w->iov;
	w->io.done = io_done;
	w->io.ctx = w;
	d->busy++;
	bdev_submit(d->ch, &w->io);
	if (d->busy % 16 == 0) /* the device shall work while we go on merging, but not be told of each one alone */
		bdev_poll(d->ch, 0);
}

/* The last I/O of a batch; alone it takes the device's short way for a single write: the usual fsync of a few
 * neighbours. */
static void io_send_last(struct drain *d, struct write_io *w)
{
	if (d->busy) {
		io_send(d, w);
	} else {
		w->io.type = BDEV_WRITE;
		w->io.iov = w->iov;
		w->io.done = NULL;
		d->busy++;
		bdev_rw_wait(d->ch, &w->io, 1);
		io_ended(d, w);
	}
	while (d->busy)
		bdev_poll(d->ch, 1);
}

/* Blocks of failed merged writes, one by one. They are still WRITING. */
static void write_singly(struct drain *d)
{
	for (unsigned i = 0; i < d->nredo; i++) {
		struct write_io *w = io_get(d);

		w->n = 0;
		w->frames[w->n++] = d->redo[i];
		w->iov[w->io.iovcnt++] =
			(struct iovec){ d->client->pool->desc[d->redo[i]].data, d->client->pool->block_size };
		w->io.length = d->client->pool->block_size;
		w->io.offset = buffer_block_relaxed(&d->client->pool->desc[d->redo[i]]) << d->client->pool->block_shift;
		io_send(d, w);
	}
	while (d->busy)
		bdev_poll(d->ch, 1);
	d->nredo = 0;
}

static void write_batch(struct buffer_client *c, uint32_t n)
{
	struct drain *d = &c->drain;
	struct write_io *w = NULL;
	uint64_t next = 0;

	sort_entries(d, n);
	for (uint32_t i = 0; i < n; i++) {
		struct entry *e = &d->ent[i];

		if (i && e->block == e[-1].block) {
			/* one of the two was replaced by the other while we collected; which, the next pass will see */
			map_set(d->map, e->frame);
			d->again = true;
			continue;
		}
		if (w && (e->block != next || w->n == d->max_blocks)) {
			io_send(d, w);
			w = NULL;
		}
		if (!w && !d->free_io)
			bdev_poll(d->ch, 1);
		if (!begin_write(c, e))
			continue;
		if (!w)
			w = io_get(d);
		io_add(d, w, e->block, e->frame);
		next = e->block + 1;
	}
	if (w)
		io_send_last(d, w);
	while (d->busy)
		bdev_poll(d->ch, 1);
	if (d->nredo)
		write_singly(d);
}

/* Everything in d->map, and what is put back there meanwhile. */
static void drain_map(struct buffer_client *c)
{
	struct drain *d = &c->drain;
	do {
		uint32_t top = 0;

		d->again = false;
		while (top < c->top_words) {
			uint32_t n = collect(c, &top);

			if (n)
				write_batch(c, n);
		}
	} while (d->again);
}

void round_run(struct buffer_client *c, struct bdev_channel *ch)
{
	struct drain *d = &c->drain;
	unsigned gen = atomic_load(&c->dirty_gen);

	d->ch = ch;
	d->ok = d->failed = 0;
	d->error = 0;
	/* who had read `dirty_gen` before the last round changed it, and set his bit after that round had passed */
	d->map = &c->dirty_map[!gen];
	drain_map(c);
	atomic_store(&c->dirty_gen, !gen);
	d->map = &c->dirty_map[gen];
	drain_map(c);
}
