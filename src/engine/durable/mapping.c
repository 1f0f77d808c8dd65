/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * mapping.c - every change of a line's state goes through here, so that the counters are right, freed slots go to the
 * epoch, and the line's record is owed to it. Callers are in the epoch's gate (shared) and hold the line's chain and
 * range.
 */
#include "engine/durable/durable.h"

#include "engine/durable/takeover_log.h"

#include <errno.h>

void line_update(struct cache *c, struct volume *v, uint32_t e, uint16_t valid, uint16_t dirty, uint16_t fresh)
{
	struct lines *l = &c->lines;
	uint16_t was_valid = line_valid(l, e), was_dirty = line_dirty(l, e);
	int blocks = (int)mask_count(dirty) - (int)mask_count(was_dirty);
	uint64_t w;

	if (!was_valid != !valid) {
		uint64_t d = valid ? 1 : UINT64_MAX;

		ctr_add(v->lines, d);
		ctr_add(region_of_line(v, line_key_line(lines_word(l, e)))->lines, (uint32_t)d);
	}
	if (!was_dirty != !dirty) {
		uint64_t d = dirty ? 1 : UINT64_MAX;

		ctr_add(v->dirty_lines, d);
		ctr_add(c->dirty_lines, d);
	}
	if (blocks) {
		ctr_add(v->dirty_blocks, (uint64_t)(int64_t)blocks);
		ctr_add(c->dirty_blocks, (uint64_t)(int64_t)blocks);
	}
	/* P1: to recovery a block is dirty until this epoch is durable, and would win over what is written to the
	 * backing device from now on; so a flush of that has to cover it. In the gate all see the same id. */
	takeover_log_clean(c, v, e, was_dirty & ~dirty);
	if (was_dirty & ~dirty)
		atomic_store_explicit(&v->last_epoch, epoch_open_id(c), memory_order_release);
	line_set_masks(l, e, valid, dirty, fresh);
	w = lines_word(l, e);
	lines_set_word(l, e, (w | LINE_CHANGED) & ~LINE_CLEANING);
	if (!(w & LINE_CHANGED))
		epoch_note_change(c, e);
}

void line_drop(struct cache *c, struct volume *v, struct line_chain *ch, uint32_t e, uint16_t mask)
{
	struct lines *l = &c->lines;
	uint16_t valid = line_valid(l, e), gone = valid & mask;

	if (!gone)
		return;
	for (unsigned b = 0; b < l->bpl; b++)
		if (gone >> b & 1)
			epoch_free_slot(c, line_block(l, e, b)->slot);
	line_update(c, v, e, valid & ~gone, line_dirty(l, e) & ~gone, line_fresh(l, e) & ~gone);
	if (!(valid & ~gone))
		lines_remove(ch, e);
}

void line_move_block(struct cache *c, uint32_t e, unsigned b, uint32_t slot, uint32_t crc)
{
	struct journal_block *blk = line_block(&c->lines, e, b);

	if (line_valid(&c->lines, e) >> b & 1)
		epoch_free_slot(c, blk->slot);
	__atomic_store_n(&blk->slot, slot, __ATOMIC_RELAXED); /* looked at without the lock */
	blk->crc = crc;
}

int mapping_place(struct cache *c, struct volume *v, struct mapping *m)
{
	struct lines *l = &c->lines;
	unsigned b = m->block & (l->bpl - 1);
	uint16_t bit = (uint16_t)(1u << b), dirty;
	struct line_chain ch = lines_lock(l, line_key(v->id, m->block >> l->bpl_shift));
	uint32_t e = lines_find(&ch), slot = m->slot;
	int used = 1;

	if (e == LINE_NONE) {
		e = lines_insert(&ch);
		if (e == LINE_NONE) {
			used = -EAGAIN;
			goto out;
		}
		c->policy.ops->inserted(&c->policy, l, e);
	} else if (m->as == MAPPING_DIRTY) {
		c->policy.ops->hit(&c->policy, l, e);
	}
	dirty = line_dirty(l, e);
	m->was_cached = line_valid(l, e) & bit;
	if (m->as == MAPPING_FILL && m->was_cached) { /* two readers of one block may both have missed */
		used = 0;
		goto out;
	}
	if (m->as == MAPPING_DIRTY && (MUTATE(FRESH_KEPT) ? dirty : line_fresh(l, e)) & bit) {
		slot = line_block(l, e, b)->slot; /* rule 1: it was given in this same epoch */
		line_block(l, e, b)->crc = m->crc;
		used = 0;
	} else {
		line_move_block(c, e, b, slot, m->crc);
	}
	if (m->as == MAPPING_DIRTY) {
		takeover_log_dirty(c, v, m->block, slot, m->crc, m->buf);
		dirty |= bit;
	} else if (m->as == MAPPING_CLEAN) {
		dirty &= (uint16_t)~bit;
	}
	if (m->buf)
		buffer_publish(m->buf, slot, true);
	line_update(c, v, e, line_valid(l, e) | bit, dirty, line_fresh(l, e) | bit);
out:
	lines_unlock(&ch);
	return used;
}

/* Those of the entry's blocks that lie in [first, last]. */
static uint16_t blocks_in(const struct lines *l, uint64_t line, uint64_t first, uint64_t last)
{
	uint64_t base = line << l->bpl_shift;
	unsigned lo = first > base ? (unsigned)(first - base) : 0;
	unsigned hi = last < base + l->bpl - 1 ? (unsigned)(last - base) : l->bpl - 1;

	return (uint16_t)((2u << hi) - (1u << lo));
}

static void drop_line(struct cache *c, struct volume *v, uint64_t line, uint64_t first, uint64_t last, bool dirty_too)
{
	struct line_chain ch = lines_lock(&c->lines, line_key(v->id, line));
	uint32_t e = lines_find(&ch);

	if (e != LINE_NONE)
		line_drop(c, v, &ch, e,
			  blocks_in(&c->lines, line, first, last) & (dirty_too ? 0xffff : ~line_dirty(&c->lines, e)));
	lines_unlock(&ch);
}

/* Lines per stay in the gate, so that a flush is not kept waiting, nor the write log overflows. */
#define DROP_BATCH (c->log ? 32u : 4096u)

/* All lines of [line0, line1], looked up one by one. */
static void drop_each(struct cache *c, struct volume *v, uint64_t line0, uint64_t line1, uint64_t first, uint64_t last,
		      bool dirty_too)
{
	for (uint64_t at = line0; at <= line1;) {
		epoch_enter(c);
		for (unsigned i = 0; i < DROP_BATCH && at <= line1; i++)
			drop_line(c, v, at++, first, last, dirty_too);
		epoch_leave(c);
		jobs_fold_journal(c);
	}
}

/* Those of the table that lie in [line0, line1]. */
static void drop_found(struct cache *c, struct volume *v, uint64_t line0, uint64_t line1, uint64_t first, uint64_t last,
		       bool dirty_too)
{
	struct lines *l = &c->lines;

	for (uint32_t e = 0; e < l->n;) {
		epoch_enter(c);
		for (unsigned i = 0; i < DROP_BATCH && e < l->n; i++, e++) {
			uint64_t key = lines_word(l, e) & LINE_KEY_MASK;

			if (line_key_volume(key) == v->id && line_key_line(key) >= line0 && line_key_line(key) <= line1)
				drop_line(c, v, line_key_line(key), first, last, dirty_too);
		}
		epoch_leave(c);
		jobs_fold_journal(c);
	}
}

#define LOOKUP_COST 16u /* of a line, in entries of the table that are looked at in a row */

/* Costs what is cached in the range, by regions: only those are looked through where something is, or the table once if
 * that is less. */
static void drop(struct cache *c, struct volume *v, uint64_t first, uint64_t n, bool dirty_too)
{
	struct lines *l = &c->lines;
	uint64_t last = first + n - 1, line0 = first >> l->bpl_shift, line1 = last >> l->bpl_shift, used = 0;
	unsigned shift = REGION_SHIFT - CACHE_BLOCK_SHIFT - l->bpl_shift;
	uint64_t r0 = line0 >> shift, r1 = line1 >> shift;

	if (!n || !ctr_get(v->lines))
		return;
	for (uint64_t r = r0; r <= r1; r++)
		used += ctr_get(region_of_line(v, r << shift)->lines) != 0;
	if (used && ((used - 1) << shift) + 1 > l->n / LOOKUP_COST) {
		drop_found(c, v, line0, line1, first, last, dirty_too);
		return;
	}
	/* not until `used` have been seen: beside the range others insert lines, into regions that had none */
	for (uint64_t r = r0; r <= r1; r++) {
		uint64_t a = r << shift, b = a + (1ull << shift) - 1;

		if (ctr_get(region_of_line(v, a)->lines))
			drop_each(c, v, a > line0 ? a : line0, b < line1 ? b : line1, first, last, dirty_too);
	}
}

void blocks_drop(struct cache *c, struct volume *v, uint64_t first, uint64_t n)
{
	drop(c, v, first, n, true);
}

void blocks_drop_clean(struct cache *c, struct volume *v, uint64_t first, uint64_t n)
{
	drop(c, v, first, n, false);
}
