/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * takeover_log.h - what the engine does so that another process can go on in its place (life/takeover.c). Off unless
 * the cache was opened with memory to share; then cache->log is NULL, and each of these is a branch that is never
 * taken.
 */
#ifndef ENGINE_SURVIVE_H
#define ENGINE_SURVIVE_H

#include "engine/durable/durable.h"
#include "engine/durable/writelog.h"

/* ---- as things happen; in the gate and with the chain locked, unless said otherwise ---- */

void takeover_log_append_dirty(struct cache *c, struct volume *v, uint64_t block, uint32_t slot, uint32_t crc,
			       const struct buffer *buf);
void takeover_log_append_clean(struct cache *c, struct volume *v, uint32_t e, uint16_t mask);

/* Before `buf`, which has the data, is published for the slot. */
static inline void takeover_log_dirty(struct cache *c, struct volume *v, uint64_t block, uint32_t slot, uint32_t crc,
				      const struct buffer *buf)
{
	if (c->log)
		takeover_log_append_dirty(c, v, block, slot, crc, buf);
}

/* The blocks of `mask` of the entry are not dirty any more, before it loses its key. */
static inline void takeover_log_clean(struct cache *c, struct volume *v, uint32_t e, uint16_t mask)
{
	if (c->log && mask)
		takeover_log_append_clean(c, v, e, mask);
}

/* No lock: has the open epoch so many records that it should be committed first? */
static inline bool takeover_log_full(struct cache *c)
{
	return c->log && writelog_full(c->log, epoch_open_id(c));
}

/* Any thread, no lock. */
void takeover_log_cache_failed(struct cache *c);
void takeover_log_backing_failed(struct cache *c, struct volume *v, bool failed);

/* ---- at cache_open; one thread ---- */

/* After recover(): replays what a predecessor left, if `takeover`, and begins to log. */
int takeover_begin(struct cache *c, const struct cache_shared *shared, struct bc_error *err);
void takeover_end(struct cache *c);

#endif
