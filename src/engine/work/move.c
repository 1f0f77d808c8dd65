/* SPDX-License-Identifier: BSD-3-Clause */
/* move.c - one block gets another slot; for defragmentation and compaction, which argue why its data is still right. */
#include "engine/work/work.h"

#include "engine/durable/takeover_log.h"

bool block_move(struct cache *c, struct volume *v, uint64_t block, const struct block_plan *p, struct buffer *buf,
		uint32_t slot)
{
	struct lines *l = &c->lines;
	unsigned b = block & (l->bpl - 1);
	uint16_t bit = (uint16_t)(1u << b);
	struct line_chain ch = lines_lock(l, line_key(v->id, block >> l->bpl_shift));
	uint32_t e = lines_find(&ch);
	bool same = e != LINE_NONE && line_valid(l, e) & bit && !(line_fresh(l, e) & bit) &&
		    !(lines_word(l, e) & LINE_CLEANING) && line_block(l, e, b)->slot == p->slot;

	if (same) {
		uint16_t dirty = line_dirty(l, e);

		line_move_block(c, e, b, slot, p->crc);
		if (dirty & bit)
			takeover_log_dirty(c, v, block, slot, p->crc, buf);
		buffer_publish(buf, slot, true);
		line_update(c, v, e, line_valid(l, e), dirty, line_fresh(l, e) | bit);
	}
	lines_unlock(&ch);
	return same;
}
