/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * drop_behind.c - what background work moves goes through RAM buffers. Nobody uses them afterwards, and while nobody
 * uses anything the clock that chooses what leaves RAM cannot tell them from what was used all day. So they are given
 * back by the work that made them, once their data is on the SSD.
 *
 * It is committed by portions, an eighth of RAM at most: a flush that comes meanwhile has no more than one to write.
 */
#include "engine/work/work.h"

void drop_behind_add(struct drop_behind *cold, uint32_t slot, bool was_in_ram)
{
	cold->moved++;
	if (!was_in_ram)
		cold->slot[cold->n++] = slot;
}

int drop_behind_settle(struct cache *c, struct drop_behind *cold, bool all)
{
	uint64_t share = c->ram_bytes / CACHE_BLOCK / 8;
	int rc = 0;

	if (cold->moved >= (share < DROP_BEHIND_SLOTS ? share : DROP_BEHIND_SLOTS) || (all && cold->moved)) {
		rc = epoch_commit(c, true);
		buffer_evict(c->buffers, cold->slot, cold->n);
		cold->n = cold->moved = 0;
	}
	return rc;
}
