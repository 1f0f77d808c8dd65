/* SPDX-License-Identifier: BSD-3-Clause */
/* takeover_log.c - see takeover_log.h: what is appended as blocks become dirty and clean. */
#include "engine/durable/durable.h"

#include "engine/durable/takeover_log.h"

void takeover_log_append_dirty(struct cache *c, struct volume *v, uint64_t block, uint32_t slot, uint32_t crc,
			       const struct buffer *buf)
{
	const struct writelog_record r = { .block = block,
					   .slot = slot,
					   .crc = crc,
					   .frame = buffer_frame(buf),
					   .volume = (uint16_t)v->id,
					   .dirty = 1 };

	writelog_append(c->log, epoch_open_id(c), &r);
}

void takeover_log_append_clean(struct cache *c, struct volume *v, uint32_t e, uint16_t mask)
{
	const struct lines *l = &c->lines;
	uint64_t first = line_key_line(lines_word(l, e)) << l->bpl_shift;

	for (unsigned b = 0; b < l->bpl; b++) {
		const struct writelog_record r = { .block = first + b, .volume = (uint16_t)v->id };

		if (mask >> b & 1)
			writelog_append(c->log, epoch_open_id(c), &r);
	}
}

void takeover_log_cache_failed(struct cache *c)
{
	if (c->log)
		atomic_store(&c->log->h->failed, true);
}

void takeover_log_backing_failed(struct cache *c, struct volume *v, bool failed)
{
	if (c->log)
		atomic_store(&c->log->h->backing_failed[v->id], failed);
}
