/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * clean.c - writes dirty data to the backing devices (P5): epoch durable -> backing in address order, neighbours
 * merged, many at once -> flush of the backing device -> "clean" recorded in the open epoch.
 *
 * A *wave* is a set of lines of one volume whose ranges are locked CLEAN: readers and write-back writers go on, writes
 * to backing wait. A line that is written meanwhile loses its CLEANING flag (line_update); then what was read for it is
 * not trusted any more (its slot may have been given to something else) and the line stays dirty.
 *
 * Each volume is cleaned by one run at a time (volume.clean_lock), so the flag has one owner, and volumes are cleaned
 * side by side: one whose backing device is slow or hangs keeps nobody but itself waiting. A run works in memory of its
 * own, a *batch*. One is always there; more are made when several volumes are cleaned at once, and freed afterwards.
 *
 * The slots are captured in the epoch's gate, under the chain lock; blocks that are `fresh` belong to the open epoch
 * and are left for the next time, all others to epochs sealed before, whose durability is waited for before anything
 * is written.
 */
#include "engine/work/clean_batch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "util/deadline.h"
#include "util/limits.h"

/* Memory that only the first batch may take: commits need it, and one that cannot be written fails the cache. */
#define SPARE_MEMORY ((size_t)32 << 20)

static void batch_free(struct clean_batch *w)
{
	if (!w)
		return;
	bdev_channel_close(w->data_ch);
	free(w->memory);
	free(w);
}

static struct clean_batch *batch_new(struct cache *c)
{
	struct clean_batch *w = calloc(1, sizeof *w);

	if (!w)
		return NULL;
	w->memory = aligned_alloc(CACHE_BLOCK, WAVE_BLOCKS * CACHE_BLOCK);
	w->data_ch = bdev_channel_open(c->data, CLEAN_DEPTH);
	if (w->memory && w->data_ch)
		return w;
	batch_free(w);
	return NULL;
}

int cleaner_init(struct cache *c)
{
	pthread_mutex_init(&c->cleaner.lock, NULL);
	pthread_cond_init(&c->cleaner.freed, NULL);
	c->cleaner.free = batch_new(c);
	return c->cleaner.free ? 0 : -ENOMEM;
}

void cleaner_destroy(struct cache *c)
{
	batch_free(c->cleaner.free);
	pthread_cond_destroy(&c->cleaner.freed);
	pthread_mutex_destroy(&c->cleaner.lock);
}

struct clean_batch *clean_batch_get(struct cache *c)
{
	struct cleaner *cl = &c->cleaner;
	struct clean_batch *w;

	pthread_mutex_lock(&cl->lock);
	while (!(w = cl->free)) {
		pthread_mutex_unlock(&cl->lock);
		w = limits_room_for(SPARE_MEMORY) ? batch_new(c) : NULL;
		if (w)
			return w;
		pthread_mutex_lock(&cl->lock);
		if (!cl->free)
			pthread_cond_wait(&cl->freed, &cl->lock);
	}
	cl->free = NULL;
	pthread_mutex_unlock(&cl->lock);
	return w;
}

void clean_batch_put(struct cache *c, struct clean_batch *w)
{
	struct cleaner *cl = &c->cleaner;

	pthread_mutex_lock(&cl->lock);
	if (!cl->free) {
		cl->free = w;
		w = NULL;
		pthread_cond_signal(&cl->freed);
	}
	pthread_mutex_unlock(&cl->lock);
	batch_free(w);
}

static int by_key(const void *a, const void *b)
{
	const struct clean_line *x = a, *y = b;

	return x->key < y->key ? -1 : x->key > y->key;
}

/* Takes the line into the wave: what of it is dirty and not of the open epoch. False: some of it has to wait for
 * another time. */
static bool capture(struct cache *c, struct clean_batch *w, uint32_t index)
{
	struct clean_line *cl = &w->line[index];
	struct lines *l = &c->lines;
	struct line_chain ch = lines_lock(l, cl->key);
	uint16_t dirty = 0;

	if ((lines_word(l, cl->e) & LINE_KEY_MASK) == cl->key)
		dirty = line_dirty(l, cl->e);
	cl->mask = !dirty || MUTATE(CLEAN_DURABLE) ? dirty : dirty & ~line_fresh(l, cl->e);
	if (cl->mask)
		lines_set_word(l, cl->e, lines_word(l, cl->e) | LINE_CLEANING);
	for (unsigned b = 0; b < l->bpl; b++) {
		const struct journal_block *blk = line_block(l, cl->e, b);

		if (cl->mask >> b & 1)
			w->block[w->nblocks++] = (struct clean_block){
				.block = (line_key_line(cl->key) << l->bpl_shift) + b,
				.slot = blk->slot,
				.crc = blk->crc,
				.line = index,
			};
	}
	lines_unlock(&ch);
	return cl->mask == dirty;
}

/* A dirty block without a readable copy: it stays dirty (reads of it fail), and is not tried again in this run. */
static void lose_block(struct cache *c, struct volume *v, struct clean_batch *w, struct clean_block *b, const char *why)
{
	b->skip = true;
	ctr_add(v->lost_blocks, 1);
	w->line[b->line].mask &= (uint16_t) ~(1u << (b->block & (c->lines.bpl - 1)));
	cache_degrade(c, "volume %s: the dirty block at byte %llu %s, so it cannot be written to the backing device",
		      v->name, (unsigned long long)b->block * CACHE_BLOCK, why);
}

/* Gets the wave's data from RAM or the data file, and checks it. */
static void load_wave(struct cache *c, struct volume *v, struct clean_batch *w)
{
	unsigned n = 0;

	for (uint32_t i = 0; i < w->nblocks; i++) {
		struct clean_block *b = &w->block[i];

		b->buf = buffer_get(c->buffers, b->slot);
		b->data = b->buf ? buffer_data(b->buf) : w->memory + (size_t)i * CACHE_BLOCK;
		if (b->buf)
			continue;
		w->iov[n] = (struct iovec){ .iov_base = b->data, .iov_len = CACHE_BLOCK };
		w->io[n] = (struct bdev_io){ .type = BDEV_READ,
					     .offset = (uint64_t)b->slot * CACHE_BLOCK,
					     .length = CACHE_BLOCK,
					     .iov = &w->iov[n],
					     .iovcnt = 1 };
		w->io_first[n++] = i;
	}
	bdev_rw_wait(w->data_ch, w->io, n);
	for (unsigned k = 0; k < n; k++) {
		struct clean_block *b = &w->block[w->io_first[k]];

		if (w->io[k].result) {
			ctr_add(v->n.err_cache_read, 1);
			lose_block(c, v, w, b, "cannot be read from the cache");
		}
	}
}

/* After the data was read: is it still what the map says? A block that is, and fails its checksum, is damage (P3: it
 * must not reach backing). */
static void verify_wave(struct cache *c, struct volume *v, struct clean_batch *w)
{
	struct lines *l = &c->lines;

	for (uint32_t i = 0; i < w->nblocks; i++) {
		struct clean_block *b = &w->block[i];
		struct clean_line *cl = &w->line[b->line];
		struct line_chain ch = lines_lock(l, cl->key);
		uint64_t word = lines_word(l, cl->e);
		bool ours = (word & LINE_KEY_MASK) == cl->key && word & LINE_CLEANING;

		lines_unlock(&ch);
		if (!ours)
			b->skip = true;
		/* a buffer's data never left memory since its crc was taken */
		if (b->skip || b->buf || crc32c(b->data, CACHE_BLOCK) == b->crc)
			continue;
		ctr_add(v->n.err_checksum, 1);
		lose_block(c, v, w, b, "fails its checksum");
	}
}

static int write_wave(struct cache *c, struct volume *v, struct clean_batch *w)
{
	unsigned n = 0, niov = 0;
	uint64_t bytes = 0;
	int rc;

	for (uint32_t i = 0; i < w->nblocks; i++) {
		struct clean_block *b = &w->block[i];
		uint32_t len = block_bytes(v, b->block);
		struct bdev_io *io = n ? &w->io[n - 1] : NULL;

		if (b->skip)
			continue;
		w->iov[niov] = (struct iovec){ .iov_base = b->data, .iov_len = len };
		if (io && io->offset + io->length == b->block * CACHE_BLOCK && io->iovcnt < (int)RUN_BLOCKS) {
			io->iovcnt++;
			io->length += len;
		} else {
			w->io_first[n] = i;
			w->io[n++] = (struct bdev_io){ .type = BDEV_WRITE,
						       .offset = b->block * CACHE_BLOCK,
						       .length = len,
						       .iov = &w->iov[niov],
						       .iovcnt = 1 };
		}
		niov++;
	}
	if (!n)
		return 0;
	rc = bdev_rw_wait(w->backing_ch, w->io, n);
	atomic_fetch_add_explicit(&v->write_seq, 1, memory_order_release);
	for (unsigned k = 0; k < n; k++) {
		unsigned left = (unsigned)w->io[k].iovcnt;

		if (w->io[k].result) {
			ctr_add(v->n.err_backing_write, 1);
			cache_degrade(c, "volume %s: the backing device cannot be written at byte %llu: %s", v->name,
				      (unsigned long long)w->io[k].offset, strerror(-w->io[k].result));
			continue;
		}
		bytes += w->io[k].length;
		for (uint32_t i = w->io_first[k]; left; i++) {
			struct clean_block *b = &w->block[i];

			if (b->skip)
				continue;
			w->line[b->line].written |= (uint16_t)(1u << (b->block & (c->lines.bpl - 1)));
			left--;
		}
	}
	ctr_add(v->n.backing_written, bytes);
	return rc;
}

/* Once per line and batch: there may be two reasons. */
static void pass_over(struct clean_batch *w, struct clean_line *cl)
{
	if (cl->passed)
		return;
	cl->passed = true;
	w->again[w->nagain++] = *cl;
}

/* How many lines from `at` on lie next to each other in one chunk of the range table, at most `max`. */
static uint32_t adjacent(const struct lines *l, const struct clean_batch *w, uint32_t at, uint32_t max)
{
	uint64_t key = w->line[at].key, chunk = line_key_line(key) << l->bpl_shift >> RANGE_CHUNK_SHIFT;
	uint32_t n = 1;

	while (n < max && at + n < w->nlines && w->line[at + n].key == key + n &&
	       line_key_line(key + n) << l->bpl_shift >> RANGE_CHUNK_SHIFT == chunk)
		n++;
	return n;
}

/* Locks n adjacent lines with one range. */
static bool lock_lines(struct cache *c, struct volume *v, struct clean_batch *w, uint32_t at, uint32_t n,
		       enum range_mode mode, uint32_t *nranges)
{
	struct lines *l = &c->lines;
	bool ok = range_trylock(&c->ranges, &w->range[*nranges], v->id, line_key_line(w->line[at].key) << l->bpl_shift,
				n * l->bpl, mode);

	*nranges += ok;
	for (uint32_t i = at; i < at + n; i++)
		w->line[i].locked = ok;
	return ok;
}

/* Before the wave is written: what it writes is nothing to know the backing device by any more. */
static int forget_witnesses(struct volume *v, const struct clean_batch *w)
{
	int rc = 0;

	for (uint32_t i = 0, n; i < w->nblocks && !rc; i += n) {
		for (n = 1; i + n < w->nblocks && w->block[i + n].block == w->block[i].block + n;)
			n++;
		rc = intent_forget(v, w->block[i].block, n);
	}
	return rc;
}

/*
 * Writes lines [from, ...) of the batch, as many as fit; returns the index after the last.
 * insist: keeps writers out of these lines meanwhile, for lines that are written all the time. Nothing is waited for
 * while ranges are held but the devices and the commit.
 */
static uint32_t write_some(struct cache *c, struct volume *v, struct clean_batch *w, uint32_t from, bool insist,
			   int *result)
{
	struct lines *l = &c->lines;
	enum range_mode mode = insist ? RANGE_READ : RANGE_CLEAN;
	const uint32_t most = WAVE_BLOCKS / l->bpl < WAVE_LINES ? WAVE_BLOCKS / l->bpl : WAVE_LINES;
	uint32_t to = from, nranges = 0, nlines = 0;
	uint64_t sealed;
	int rc = 0;

	w->nblocks = 0;
	while (to < w->nlines && nlines < most) {
		uint32_t run = adjacent(l, w, to, most - nlines);

		if (!lock_lines(c, v, w, to, run, mode, &nranges))
			for (uint32_t i = to; i < to + run; i++)
				if (!lock_lines(c, v, w, i, 1, mode, &nranges))
					pass_over(w, &w->line[i]);
		nlines += run;
		to += run;
	}
	if (insist)
		rc = epoch_commit(c, false);
	/* what is not fresh is in an epoch sealed by now (the gate keeps out a sealer that is half-way); P5 wants it
	 * durable before backing is touched */
	epoch_enter(c);
	for (uint32_t i = from; i < to && !rc; i++)
		if (w->line[i].locked && !capture(c, w, i))
			pass_over(w, &w->line[i]);
	sealed = epoch_open_id(c) - 1;
	epoch_leave(c);
	if (!rc && w->nblocks && !MUTATE(CLEAN_DURABLE))
		rc = epoch_commit_to(c, sealed);
	if (!rc && w->nblocks)
		rc = forget_witnesses(v, w);
	if (!rc && w->nblocks) {
		load_wave(c, v, w);
		verify_wave(c, v, w);
		rc = write_wave(c, v, w);
		for (uint32_t i = 0; i < w->nblocks; i++)
			if (w->block[i].buf)
				buffer_release(w->block[i].buf);
	}
	for (uint32_t i = 0; i < nranges; i++)
		range_unlock(&c->ranges, &w->range[i]);
	if (rc && !*result)
		*result = rc;
	return to;
}

/* The backing device was flushed: what was written to it is clean, unless the line changed since. Returns blocks
 * cleaned. */
static uint64_t mark_clean(struct cache *c, struct volume *v, struct clean_batch *w, uint32_t from, uint32_t to)
{
	struct lines *l = &c->lines;
	uint64_t blocks = 0;

	for (uint32_t i = from; i < to;) {
		epoch_enter(c);
		for (unsigned k = 0; k < 256 && i < to; k++, i++) {
			struct clean_line *cl = &w->line[i];
			struct line_chain ch;
			uint64_t word;

			if (!cl->locked)
				continue;
			if (cl->written != cl->mask)
				pass_over(w, cl);
			if (!cl->written)
				continue;
			ch = lines_lock(l, cl->key);
			word = lines_word(l, cl->e);
			if ((word & LINE_KEY_MASK) == cl->key && (word & LINE_CLEANING || MUTATE(CLEAN_CHANGED))) {
				line_update(c, v, cl->e, line_valid(l, cl->e), line_dirty(l, cl->e) & ~cl->written,
					    line_fresh(l, cl->e));
				blocks += mask_count(cl->written);
			}
			lines_unlock(&ch);
		}
		epoch_leave(c);
	}
	return blocks;
}

/* Is the name of the backing file still its own? What went to a file without a name would be gone with the daemon; in
 * the cache it is safe. */
static bool may_write(struct volume *v)
{
	return !identity_check_name(v, NAME_SHORT_MS, NULL);
}

/* Opens the way to the volume's backing device, on which no settled row may stand any more. 0 or -errno. */
static int begin_run(struct volume *v, struct clean_batch *w)
{
	int rc = may_write(v) ? intent_hold(v) : -ESTALE;

	if (rc)
		return rc;
	w->backing_ch = bdev_channel_open(v->bdev, CLEAN_DEPTH);
	if (w->backing_ch)
		return 0;
	intent_release(v);
	return -ENOMEM;
}

static void end_run(struct volume *v, struct clean_batch *w)
{
	bdev_channel_close(w->backing_ch);
	w->backing_ch = NULL;
	intent_release(v);
}

int clean_batch(struct cache *c, struct volume *v, struct clean_batch *w, bool insist, uint64_t *blocks)
{
	int rc, frc;

	w->nagain = 0;
	*blocks = 0;
	qsort(w->line, w->nlines, sizeof w->line[0], by_key);
	for (uint32_t i = 0; i < w->nlines; i++) {
		w->line[i].mask = w->line[i].written = 0;
		w->line[i].locked = w->line[i].passed = false;
	}
	/* most of what is dirty is of the open epoch when writes are busy: one commit makes it all fit to be cleaned */
	rc = MUTATE(CLEAN_DURABLE) ? 0 : epoch_commit(c, false);
	if (!rc && !v->bdev)
		rc = -ENODEV;
	if (!rc && !may_write(v))
		rc = -ESTALE;
	if (!rc)
		rc = begin_run(v, w);
	if (rc)
		return rc;
	for (uint32_t i = 0; i < w->nlines && !c->failed;)
		i = write_some(c, v, w, i, insist, &rc);
	if (MUTATE(CLEAN_EARLY)) {
		*blocks += mark_clean(c, v, w, 0, w->nlines);
		epoch_commit(c, false);
	}
	frc = MUTATE(CLEAN_FLUSH) ? 0 : backing_flush_on(w->backing_ch, v);
	if (!frc)
		*blocks += mark_clean(c, v, w, 0, w->nlines);
	rc = rc ? rc : frc;
	if (rc)
		w->nagain = 0;
	end_run(v, w);
	return c->failed ? -EIO : rc;
}

bool clean_collect(struct cache *c, struct clean_batch *w, unsigned id, uint32_t *hand, uint32_t limit)
{
	struct lines *l = &c->lines;

	w->nlines = 0;
	while (*hand < l->n && w->nlines < limit) {
		uint32_t e = (*hand)++;
		uint64_t word = lines_word(l, e);

		if (word & LINE_DIRTY0 && word & LINE_KEY_MASK && line_key_volume(word) == id)
			w->line[w->nlines++] = (struct clean_line){ .key = word & LINE_KEY_MASK, .e = e };
	}
	return *hand < l->n;
}

long clean_volume(struct cache *c, struct volume *v, uint32_t budget, uint64_t *blocks)
{
	struct clean_batch *w;
	uint32_t lines;
	int rc = 0;

	if (budget > BATCH_LINES)
		budget = BATCH_LINES;
	*blocks = 0;
	pthread_mutex_lock(&v->clean_lock);
	w = clean_batch_get(c);
	if (!clean_collect(c, w, v->id, &v->clean_hand, budget)) {
		v->clean_hand = 0;
		if (!w->nlines)
			clean_collect(c, w, v->id, &v->clean_hand, budget);
	}
	lines = w->nlines;
	if (lines)
		rc = clean_batch(c, v, w, false, blocks);
	clean_batch_put(c, w);
	pthread_mutex_unlock(&v->clean_lock);
	return rc && !*blocks ? rc : (long)lines;
}

struct step {
	uint32_t budget;
	long lines;
	uint64_t blocks;
};

static int step_volume(struct volume *v, void *ctx)
{
	struct step *s = ctx;
	uint64_t blocks;
	long n;

	if (!s->budget || !ctr_get(v->dirty_lines))
		return 0;
	n = clean_volume(v->cache, v, s->budget, &blocks);
	if (n < 0 && !s->lines)
		s->lines = n;
	else if (n > 0)
		s->lines = (s->lines > 0 ? s->lines : 0) + n;
	s->budget -= n > 0 ? (uint32_t)n : 0;
	s->blocks += blocks;
	return 0;
}

long cleaner_step(struct cache *c, uint32_t budget, uint64_t *blocks)
{
	struct step s = { .budget = budget };

	cache_volume_foreach(c, step_volume, &s);
	if (blocks)
		*blocks = s.blocks;
	return s.lines;
}
