/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * compact.c - makes room in large pieces: moves the blocks that are left in words of slots that are mostly free to
 * where the holes are, so that those words become free altogether. Runs on the background thread JOB_COMPACT: when
 * defrag.c wants such room, and thoroughly while nobody asks for anything (idle.c). At most three blocks are moved for
 * four slots in free words.
 *
 * A move is what defrag.c does: a fresh slot for the same data. Here the range of each block is locked WRITE from
 * before its slot is looked up until it has moved, so nobody reads from the old slot or changes the block meanwhile; a
 * block somebody is using is skipped.
 *
 * There is no map from slots to blocks (it would cost 4 bytes a slot): the table of lines is scanned once a run,
 * without locks, as a hint. A run is large enough for that to be a small part of it: some 100 ns for each block moved.
 *
 * Every run has to gain a free word, or it is the last: there may be less to be had than what is asked for.
 */
#include "engine/work/work.h"

#include <stdlib.h>
#include <string.h>

#define BUDGET_MIN 8192u /* blocks per run: 32 MiB */
#define BUDGET_MAX (1u << 20) /* takes 16 MiB of RAM meanwhile */
#define SCAN_MAX 1024u /* entries looked at for each block moved: beyond, the cache is all but full */
#define SCAN_STEP 65536u /* entries between looks at whether to go on */
#define BATCH 128u /* blocks moved at once */
#define GAP                                                                                                            \
	32u /* slots: what lies between two blocks is read as well, up to here; one large read beats two small ones */

struct found {
	uint64_t key;
	uint32_t slot;
	uint8_t b; /* block of the line */
};

struct mover {
	struct cache *c;
	struct thread_ctx *t;
	struct found *found; /* budget */
	uint32_t budget;
	bool idle; /* stops when requests come */
	bool interrupted;
	struct drop_behind cold;
	struct range_lock range[BATCH];
	struct volume *v[BATCH];
	uint64_t block[BATCH];
	unsigned n; /* locked; their plans are t->plan[0 .. n) */
	struct iovec iov[2 * BATCH];
	char *junk; /* GAP blocks */
};

bool compact_in_background = true;

static int by_slot(const void *a, const void *b)
{
	const struct found *x = a, *y = b;

	return x->slot < y->slot ? -1 : x->slot > y->slot;
}

static bool goes_on(struct mover *m)
{
	m->interrupted |= m->c->failed || ctr_get(m->c->stopping) || (m->idle && idle_over(m->c));
	return !m->interrupted;
}

static uint32_t scan(struct mover *m)
{
	struct cache *c = m->c;
	struct lines *l = &c->lines;
	struct found *out = m->found;
	uint32_t n = 0;

	for (uint32_t e = 0; e < l->n && n + l->bpl <= m->budget; e++) {
		uint64_t w = lines_word(l, e);

		if (e % SCAN_STEP == 0 && !goes_on(m))
			break;
		if (!(w & LINE_KEY_MASK) || !(w & LINE_VALID0))
			continue;
		for (unsigned b = 0; b < l->bpl; b++) {
			uint32_t slot = __atomic_load_n(&line_block(l, e, b)->slot, __ATOMIC_RELAXED);

			if (slots_is_held(&c->slots, slot))
				out[n++] = (struct found){ .key = w & LINE_KEY_MASK, .slot = slot, .b = (uint8_t)b };
		}
	}
	qsort(out, n, sizeof *out, by_slot);
	return n;
}

/* Locks the block and looks it up. False: it is not there any more, or in use, or not on the SSD yet. */
static bool take_block(struct mover *m, const struct found *f)
{
	struct cache *c = m->c;
	struct lines *l = &c->lines;
	struct block_plan *p = &m->t->plan[m->n];
	struct volume *v = c->volume[line_key_volume(f->key)];
	uint64_t block = (line_key_line(f->key) << l->bpl_shift) + f->b;
	struct line_chain ch;
	bool ok = false;
	uint32_t e;

	if (!v || !range_trylock(&c->ranges, &m->range[m->n], v->id, block, 1, RANGE_WRITE))
		return false;
	ch = lines_lock(l, f->key);
	e = lines_find(&ch);
	if (e != LINE_NONE && line_valid(l, e) >> f->b & 1 && line_block(l, e, f->b)->slot == f->slot) {
		*p = (struct block_plan){ .source = FROM_SLOT,
					  .cached = true,
					  .slot = f->slot,
					  .crc = line_block(l, e, f->b)->crc,
					  .buf = buffer_get(c->buffers, f->slot) };
		ok = !p->buf || !buffer_is_dirty(p->buf);
	}
	lines_unlock(&ch);
	if (!ok) {
		if (e != LINE_NONE && p->buf)
			buffer_release(p->buf);
		p->buf = NULL;
		range_unlock(&c->ranges, &m->range[m->n]);
		return false;
	}
	m->v[m->n] = v;
	m->block[m->n++] = block;
	return true;
}

static void release(struct mover *m)
{
	plan_release(m->t, m->n);
	for (unsigned i = 0; i < m->n; i++)
		range_unlock(&m->c->ranges, &m->range[i]);
	m->n = 0;
}

/* Brings the data of all to plan[].data. What cannot be read or is damaged is left where it is: whoever reads it for
 * its own sake deals with that (P9). */
static void read_all(struct mover *m)
{
	struct thread_ctx *t = m->t;
	struct bdev_io *io = NULL;
	struct iovec *iov = m->iov;
	unsigned ios = 0, io_of[BATCH];

	for (unsigned i = 0; i < m->n; i++) {
		struct block_plan *p = &t->plan[i];
		uint64_t off = (uint64_t)p->slot * CACHE_BLOCK;

		if (p->buf) {
			p->source = FROM_RAM;
			p->data = buffer_data(p->buf);
			continue;
		}
		p->data = thread_ctx_bounce(t, m->n) + (size_t)i * CACHE_BLOCK;
		if (io && off - (io->offset + io->length) <= GAP * CACHE_BLOCK &&
		    off + CACHE_BLOCK - io->offset <= BATCH * CACHE_BLOCK) {
			if (off > io->offset + io->length) {
				*iov++ = (struct iovec){ m->junk, off - (io->offset + io->length) };
				io->iovcnt++;
			}
			io->iovcnt++;
			io->length = off + CACHE_BLOCK - io->offset;
		} else {
			io = &t->ios[ios++];
			*io = (struct bdev_io){
				.type = BDEV_READ, .offset = off, .length = CACHE_BLOCK, .iov = iov, .iovcnt = 1
			};
		}
		*iov++ = (struct iovec){ p->data, CACHE_BLOCK };
		io_of[i] = ios - 1;
	}
	if (ios)
		bdev_rw_wait(t->data_ch, t->ios, ios);
	for (unsigned i = 0; i < m->n; i++) {
		struct block_plan *p = &t->plan[i];

		if (p->source == FROM_SLOT && (t->ios[io_of[i]].result || crc32c(p->data, CACHE_BLOCK) != p->crc))
			p->source = NOT_WANTED;
	}
}

/* False: no room for them. */
static bool move_all(struct mover *m)
{
	struct cache *c = m->c;
	struct thread_ctx *t = m->t;
	uint32_t got = slots_take_full(&c->slots, t->slots, m->n, c->space.low);
	unsigned used = 0;

	if (got < m->n) {
		slots_give(&c->slots, t->slots, got);
		return false;
	}
	for (unsigned i = 0; i < m->n; i++)
		if (t->plan[i].source != NOT_WANTED)
			memcpy(buffer_data(t->bufs[i]), t->plan[i].data, CACHE_BLOCK);
	epoch_enter(c);
	for (unsigned i = 0; i < m->n && !c->failed; i++) {
		if (t->plan[i].source == NOT_WANTED)
			continue;
		if (block_move(c, m->v[i], m->block[i], &t->plan[i], t->bufs[i], t->slots[used])) {
			ctr_add(m->v[i]->n.cache_written, CACHE_BLOCK);
			drop_behind_add(&m->cold, t->slots[used++], t->plan[i].source == FROM_RAM);
		}
	}
	epoch_leave(c);
	slots_give(&c->slots, t->slots + used, got - used);
	return true;
}

/* One run. False: there is nothing to be gained, or no room to do it. */
static bool compact_once(struct mover *m)
{
	struct cache *c = m->c;
	/* not all that one may take of the pool: writers wait for buffers, too */
	unsigned batch = BATCH < c->space.alloc_max / 2 ? BATCH : c->space.alloc_max / 2;
	uint32_t most = space_compact_most(ctr_get(c->slots.nfree), m->budget), n;
	uint32_t words = slots_free_words(&c->slots);
	bool room = true;

	if (!batch || most < c->lines.n / SCAN_MAX || !slots_hold(&c->slots, most, m->idle ? 16 : 32))
		return false;
	n = scan(m);
	for (uint32_t i = 0; i < n && room && goes_on(m);) {
		/* waited for before anything is locked */
		if (buffer_alloc(c->buffers, m->t->bufs, batch, true)) {
			room = false;
			break;
		}
		pthread_rwlock_rdlock(&c->volumes_lock);
		while (i < n && m->n < batch)
			take_block(m, &m->found[i++]);
		if (m->n) {
			read_all(m);
			room = move_all(m);
		}
		release(m);
		pthread_rwlock_unlock(&c->volumes_lock);
		buffer_release_many(m->t->bufs, batch);
		if (drop_behind_settle(c, &m->cold, false))
			room = false;
	}
	/* their slots come free with the epoch; until then the words must not be used again */
	if (drop_behind_settle(c, &m->cold, true))
		room = false;
	slots_unhold(&c->slots);
	return room && slots_free_words(&c->slots) > words;
}

void compact_ask(struct cache *c)
{
	atomic_store(&c->compact_wanted, true);
	if (compact_in_background)
		job_kick(c, JOB_COMPACT);
}

bool compact_run(struct cache *c, bool idle)
{
	struct mover *m = calloc(1, sizeof *m);
	bool done = true;

	if (m) {
		m->c = c;
		m->idle = idle;
		m->budget = c->slots.n / 64;
		if (m->budget < BUDGET_MIN)
			m->budget = BUDGET_MIN;
		if (m->budget > BUDGET_MAX)
			m->budget = BUDGET_MAX;
		m->t = thread_ctx_get(c);
		m->found = malloc(m->budget * sizeof m->found[0]);
		m->junk = aligned_alloc(CACHE_BLOCK, GAP * CACHE_BLOCK);
	}
	while (m && m->t && m->found && m->junk && goes_on(m) &&
	       slots_free_words(&c->slots) < space_words_enough(ctr_get(c->slots.nfree), idle))
		if (!compact_once(m))
			break;
	if (m) {
		done = !m->interrupted;
		free(m->found);
		free(m->junk);
	}
	free(m);
	return done;
}
