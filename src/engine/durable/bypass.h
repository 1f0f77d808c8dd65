/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * bypass.h - going on without the cache device (P7).
 *
 * A cache that has failed (P6) and holds nothing dirty is *bypassed*: reads and writes go to the backing devices. The
 * journal cannot be written any more, and what it says is wrong from the first such write on, its dirty lines included
 * (they were written to backing, but the journal may not have learned it). So before that write a durable note is left
 * that the journal is void: in the cache folder and, since that is probably the device that died, in a folder on the
 * system's disk as well. One of the two has to succeed, else the write is refused. The next load finds the note and
 * starts with an empty map. Void is all that the journal said: lines, unfinished discards, marks.
 *
 * Which journal does a note mean? The two may lie on different disks, and the cache may be used elsewhere before it is
 * seen again beside an old note; its journal is good then, and may hold dirty data. So the journal counts the loads
 * (LOADS_KEY), and the note says at which one the cache failed. A later one means that the note is out of date. A
 * journal that has seen fewer loads is an older copy: what was written since is not in it, so it is void as well. A
 * cache that was shut down cleanly had not failed, whatever a note of the same load says.
 *
 * A cache that has failed with dirty data is not bypassed: writes fail, reads go on as far as the data can be had.
 */
#ifndef ENGINE_BYPASS_H
#define ENGINE_BYPASS_H

#include "engine/durable/durable.h"

/* Where the second note goes; tests change it. */
extern const char *bypass_state_dir;

static inline bool cache_bypassed(struct cache *c)
{
	return c->failed && !ctr_get(c->dirty_blocks);
}

#define LOADS_KEY "loads" /* setting: how often the cache was loaded */

int bypass_prepare(struct cache *c); /* before a write to backing of a bypassed cache. 0 or -EIO */
enum bypass_note { BYPASS_NONE, BYPASS_VOID, BYPASS_OUT_OF_DATE };
/* At load, c->loads being as in the journal: is there a note, and does it mean this journal? `clean`: it was shut down
 * cleanly. The enum, or -errno: it cannot be told. */
int bypass_noted(struct cache *c, bool clean);
/* The empty map is durable, or the note is out of date. Unless this succeeds nothing may be cached: the next load would
 * drop it. 0 or -errno. */
int bypass_clear_note(struct cache *c);

#endif
