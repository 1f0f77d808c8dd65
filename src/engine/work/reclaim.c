/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * reclaim.c - keeps free slots and entries in stock by evicting clean lines. Runs on the background thread JOB_RECLAIM.
 *
 * A line whose range is in use is skipped (its slots may be being read). Evicted slots come back when the epoch
 * that records the eviction is durable; if the stock is low the commit is done right away. When nothing clean is left,
 * the cleaner has to make some.
 */
#include "engine/work/work.h"

#include <errno.h>

/* How many blocks went. */
static unsigned evict_line(struct cache *c, uint32_t e)
{
	struct lines *l = &c->lines;
	uint64_t key = lines_word(l, e) & LINE_KEY_MASK;
	struct volume *v = c->volume[line_key_volume(key)];
	struct range_lock rl;
	struct line_chain ch;
	unsigned blocks = 0;

	if (!key || !v)
		return 0;
	if (!range_trylock(&c->ranges, &rl, v->id, line_key_line(key) << l->bpl_shift, l->bpl, RANGE_THROUGH))
		return 0;
	ch = lines_lock(l, key);
	if ((lines_word(l, e) & LINE_KEY_MASK) == key && !line_dirty(l, e)) {
		blocks = mask_count(line_valid(l, e));
		line_drop(c, v, &ch, e, 0xffff);
	}
	lines_unlock(&ch);
	range_unlock(&c->ranges, &rl);
	return blocks;
}

static bool stock_low(struct cache *c, uint32_t level)
{
	return space_below(level, ctr_get(c->slots.nfree), ctr_get(c->lines.nfree), c->lines.bpl_shift);
}

/* Evicts until the stock, counting what an epoch will give back, is at the high mark. Returns how many lines went. */
static uint32_t evict_some(struct cache *c)
{
	struct lines *l = &c->lines;
	uint32_t evicted = 0, blocks = 0, tries = 0;
	uint32_t want = c->space.high > ctr_get(c->slots.nfree) ? c->space.high - ctr_get(c->slots.nfree) : 0;
	uint32_t want_lines = space_entries(c->space.high, l->bpl_shift);

	want_lines = want_lines > ctr_get(c->lines.nfree) ? want_lines - ctr_get(c->lines.nfree) : 0;
	while ((blocks < want || evicted < want_lines) && tries < l->n / 256 + 64) {
		epoch_enter(c);
		for (unsigned i = 0; i < 64 && (blocks < want || evicted < want_lines); i++) {
			uint32_t e = c->policy.ops->victim(&c->policy, l), n;

			if (e == LINE_NONE) {
				tries += 64;
				break;
			}
			n = evict_line(c, e);
			if (n) {
				evicted++;
				blocks += n;
			} else {
				tries++;
			}
		}
		epoch_leave(c);
	}
	return evicted;
}

void reclaim_run(struct cache *c)
{
	for (int round = 0; stock_low(c, c->space.low) && round < 16 && !c->failed; round++) {
		uint32_t evicted;

		/* what earlier evictions gave up may be all that is needed */
		if (space_commit_is_enough(&c->space, ctr_get(c->epoch.nfreed)) && epoch_commit(c, false))
			return;
		pthread_rwlock_rdlock(&c->volumes_lock);
		evicted = evict_some(c);
		pthread_rwlock_unlock(&c->volumes_lock);
		if (epoch_commit(c, false))
			return;
		if (!evicted && stock_low(c, c->space.low)) {
			job_kick(c, JOB_CLEAN);
			return; /* the cleaner kicks us when it has cleaned some */
		}
	}
}
