/* SPDX-License-Identifier: BSD-3-Clause */
/* room.c - writers that find no free slot wait here. */
#include "engine/cache.h"

#include <errno.h>

/* A write that finds no room although none has come free anywhere for this long: the backing device is as good as dead.
 * An error is then better than a client that hangs. */
#define ROOM_PATIENCE_NS 60000000000ull
/* After this long, if it is the dirty data of other volumes that fills the cache: their devices are slow or dead, and
 * this one's need not be. */
#define ROOM_ELSEWHERE_NS 1000000000ull

static bool filled_by_others(const struct volume *v)
{
	return ctr_get(v->dirty_blocks) < ctr_get(v->cache->dirty_blocks) / 2;
}

int room_wait_for(struct volume *v, uint32_t n, struct room_wait *w)
{
	struct cache *c = v->cache;
	uint64_t given = ctr_get(c->slots_given), now = now_ns();

	if (c->failed)
		return -EIO;
	if (!w->since || given != w->given) {
		w->given = given;
		w->since = now;
	} else if (now - w->since > ROOM_PATIENCE_NS) {
		cache_degrade(
			c,
			"a write was refused: the cache is full of dirty data and none could be cleaned for a minute");
		return -EIO;
	}
	job_kick(c, JOB_RECLAIM);
	if (filled_by_others(v) && (now - w->since > ROOM_ELSEWHERE_NS || given == ctr_get(c->given_in_vain))) {
		atomic_store(&c->given_in_vain, given); /* nobody else has to find out again */
		return ROOM_ELSEWHERE;
	}
	/* entries have no condition of their own; the time limit stands in for it */
	return slots_wait(&c->slots, n, ctr_get(c->lines.nfree) ? 1000 : 2) && !c->failed ? 0 : -EIO;
}
