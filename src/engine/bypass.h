/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * bypass.h - going on without the cache device (P7).
 *
 * A cache that has failed (P6) and holds nothing dirty is *bypassed*: reads and writes go to the backing devices. The
 * journal cannot be written any more, and what it says is wrong from the first such write on, its dirty lines included
 * (they were written to backing, but the journal may not have learned it). So before that write a durable note is left
 * that the journal is void: in the cache folder and, since that is probably the device that died, in a folder on the
 * system's disk as well. One of the two has to succeed, else the write is refused. The next load finds the note and
 * starts with an empty map.
 *
 * A cache that has failed with dirty data is not bypassed: writes fail, reads go on as far as the data can be had.
 */
#ifndef ENGINE_BYPASS_H
#define ENGINE_BYPASS_H

#include "internal.h"

/* Where the second note goes; tests change it. */
extern const char *bypass_state_dir;

static inline bool cache_bypassed(struct cache *c)
{
	return c->failed && !GET(c->dirty_blocks);
}

int bypass_prepare(struct cache *c); /* before a write to backing of a bypassed cache. 0 or -EIO */
int bypass_noted(struct cache *c); /* at load: 1: the journal is void; 0; -errno: it cannot be told */
/* The empty map is durable. Unless this succeeds nothing may be cached: the next load would drop it. 0 or -errno. */
int bypass_clear_note(struct cache *c);

#endif
