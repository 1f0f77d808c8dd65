/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * tidy.c - blocks that are read together and lie scattered over the data file are moved together.
 *
 * A block that is written goes to another slot, so what was written here and there lies here and there, and a large
 * read of it is many small ones. Whoever has just done such a read has all the data in hand, verified. After the reply
 * is out, it becomes dirty RAM buffers for slots side by side, which the writer sends out in one piece. Sequential
 * readers thus put in order what they pass, and pay for it with one write; nothing is moved that nobody reads in
 * sequence.
 *
 * For the journal this is a write of the same data: a new slot, `fresh`, the old one free when the epoch is durable
 * (rules 1 and 2 in epoch.c). Only that what was clean stays clean.
 *
 * The data was read under a range lock that is gone by now. It is still the block's data if the block has the slot that
 * it was read from, that slot was not given to anything else meanwhile, and was not written in place. The former takes
 * the end of an epoch (rule 2), so it is the same open epoch as before the read, or nothing is done. The latter happens
 * to blocks of the open epoch only (rule 1), so they are left alone: it must not rest on a checksum, which may be
 * equal.
 */
#include "survive.h"

#include <string.h>

#define TIDY_PIECES 4u /* blocks per piece on the SSD; with as many a disk is near its best */

static bool movable(const struct block_plan *p)
{
	return p->cached && (p->source == FROM_SLOT || (p->source == FROM_RAM && !buffer_is_dirty(p->buf)));
}

void tidy_note(struct io_thread *t, unsigned n, unsigned pieces)
{
	uint64_t min = GET(t->cache->tunables.tidy_bytes);

	t->tidy = min && (uint64_t)n * CACHE_BLOCK >= min && pieces > 1 && pieces * TIDY_PIECES > n;
}

bool block_move(struct cache *c, struct volume *v, uint64_t block, const struct block_plan *p, struct buffer *buf,
		uint32_t slot)
{
	struct lines *l = &c->lines;
	unsigned b = block & (l->bpl - 1);
	uint16_t bit = (uint16_t)(1u << b);
	struct line_chain ch = lines_lock(l, line_key(v->id, block >> l->bpl_shift));
	uint32_t e = lines_find(&ch);
	bool same = e != LINE_NONE && line_valid(l, e) & bit && !(line_fresh(l, e) & bit) &&
		    line_block(l, e, b)->slot == p->slot;

	if (same) {
		uint16_t dirty = line_dirty(l, e);

		line_move_block(c, e, b, slot, p->crc);
		if (dirty & bit)
			survive_dirty(c, v, block, slot, p->crc, buf);
		buffer_publish(buf, slot, true);
		line_update(c, v, e, line_valid(l, e), dirty, line_fresh(l, e) | bit);
	}
	lines_unlock(&ch);
	return same;
}

/* Range locked. */
static void move_all(struct io_thread *t, struct volume *v, uint64_t first, unsigned n)
{
	struct cache *c = v->cache;
	unsigned want = 0, used = 0;
	uint16_t which[MAX_BLOCKS]; /* decided once: the writer makes dirty buffers clean meanwhile */

	for (unsigned i = 0; i < n; i++)
		if (movable(&t->plan[i]))
			which[want++] = (uint16_t)i;
	if (!want || want > c->alloc_max)
		return;
	/* all or nothing, and not where writers are short of slots */
	if (GET(c->epoch.nheld) > GET(c->slots.nfree) / 2)
		background_kick(c, JOB_MAINTAIN);
	if (GET(c->epoch.nheld) > GET(c->slots.nfree))
		return;
	if (GET(c->slots.nfree) < want + c->slots_low || !slots_take_run(&c->slots, t->slots, want)) {
		compact_ask(c);
		return;
	}
	if (buffer_alloc(c->buffers, t->bufs, want, false)) {
		slots_give(&c->slots, t->slots, want);
		return;
	}
	for (unsigned k = 0; k < want; k++)
		memcpy(buffer_data(t->bufs[k]), t->plan[which[k]].data, CACHE_BLOCK);
	epoch_enter(c);
	if (!c->failed && epoch_open_id(c) == t->tidy_epoch)
		for (unsigned k = 0; k < want; k++)
			used += block_move(c, v, first + which[k], &t->plan[which[k]], t->bufs[k], t->slots[used]);
	epoch_leave(c);
	slots_give(&c->slots, t->slots + used, want - used);
	buffer_release_many(t->bufs, want);
	ADD(v->n.cache_written, (uint64_t)used * CACHE_BLOCK);
}

void tidy_after_read(struct io_thread *t, struct volume *v)
{
	struct cache *c = v->cache;
	struct range_lock rl;

	t->tidy = false;
	if (c->failed || pthread_rwlock_tryrdlock(&v->gate))
		return;
	/* WRITE: nobody else is reading from the old slots */
	if (range_trylock(&c->ranges, &rl, v->id, t->tidy_first, t->nplan, RANGE_WRITE)) {
		move_all(t, v, t->tidy_first, t->nplan);
		range_unlock(&c->ranges, &rl);
	}
	pthread_rwlock_unlock(&v->gate);
}
