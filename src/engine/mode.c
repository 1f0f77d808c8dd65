/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * mode.c - names of modes and states, and the switch of a volume from one mode to another.
 *
 * A switch waits for nobody, and nobody waits for it (P11). A request takes the mode once and keeps to it, so for a
 * while requests of both modes are under way on one volume. That is sound, because no path relies on the mode of
 * another request, only on what the map says of its own blocks:
 *
 * - Requests on the same block exclude each other by their range locks, whatever their modes. Each path takes the block
 *   as it finds it, in any state: write-through over a dirty block flushes the backing device before it counts as clean
 *   (request/write_to_backing.c), write-back over a clean one gives it a new slot, and so on. It must be so in any
 * case, since a switch leaves the volume with blocks of the old mode.
 * - Requests on different blocks of one line meet under the line's chain lock, as those of one mode do.
 * - A flush, and an O_DSYNC write, covers both sides at any time: the epoch that holds the last write, and the backing
 *   device (P1). A write-intent mark is held by the request that writes to backing, not by the mode (P4).
 * - A discard decides with its range locked whether it has to be ordered (request/discard.c). By then nothing can
 * become dirty in the range, and what is dirty there makes it ordered whatever the mode says. Blocks elsewhere that are
 * written back at the same time by requests of the new mode are not ordered with it; they are not either if the discard
 * ends just before the switch.
 * - A miss of a mode that fills may fill after a switch to one that does not: the block is clean, and what the backing
 *   device has, as its range was locked from the read to the fill.
 * - The row in the journal has the mode that was set last: mode and row change under one lock.
 *
 * What is left to do is that a write-back write that was under way at a switch to another mode leaves dirty blocks
 * behind. The switch has the volume cleaned, and so does such a write when it is over (volume_write): one of the two
 * sees the other. Should neither (no barrier makes sure of it), the cleaner's period does it.
 */
#include "engine/cache.h"

#include <errno.h>
#include <string.h>

/* clang-format off */
const struct mode_traits mode_traits[CACHE_MODE_COUNT] = {
	/*                                            reads use  misses  writes stay    a write to backing
	 *                                            the cache  fill    in the cache   leaves a copy */
	[CACHE_MODE_WT] = { "wt", "write-through",    true,      true,   false,         MODE_COPY },
	[CACHE_MODE_WB] = { "wb", "write-back",       true,      true,   true,          MODE_NO_COPY },
	[CACHE_MODE_WA] = { "wa", "write-around",     true,      true,   false,         MODE_COPY_IF_CACHED },
	[CACHE_MODE_WI] = { "wi", "write-invalidate", true,      true,   false,         MODE_NO_COPY },
	[CACHE_MODE_WO] = { "wo", "write-only",       true,      false,  true,          MODE_NO_COPY },
	[CACHE_MODE_PT] = { "pt", "pass-through",     false,     false,  false,         MODE_NO_COPY },
};
/* clang-format on */

int cache_mode_parse(const char *text, enum cache_mode *mode)
{
	for (int i = 0; i < CACHE_MODE_COUNT; i++) {
		if (!strcmp(text, mode_traits[i].name) || !strcmp(text, mode_traits[i].long_name)) {
			*mode = (enum cache_mode)i;
			return 0;
		}
	}
	return -EINVAL;
}

const char *cache_mode_name(enum cache_mode mode)
{
	return mode_traits[mode].name;
}

const char *cache_mode_long_name(enum cache_mode mode)
{
	return mode_traits[mode].long_name;
}

const char *cache_state_name(enum cache_state state)
{
	static const char *const names[] = { "running", "degraded", "failed", "flushing", "stopping", "stopped" };

	return names[state];
}

void volume_clean_soon(struct volume *v)
{
	struct cache *c = v->cache;

	if (mode_traits[ctr_get(v->mode)].writes_back || !ctr_get(v->dirty_blocks) || !c->background.started)
		return;
	helper_ask(c, v->id, HELP_CLEAN_ALL);
}
