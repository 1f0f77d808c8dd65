/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * work.h - what goes on behind the requests: cleaning, reclaim, compaction, defragmentation, read-ahead, and the
 * threads that do it.
 */
#ifndef WORK_WORK_H
#define WORK_WORK_H

#include "engine/request/request.h"

/* ---- threads.c ---- */
int threads_start(struct cache *c);
void threads_stop(struct cache *c);
void clean_all_soon(struct cache *c); /* HELP_CLEAN_ALL for every volume that holds dirty data */

/* ---- prefetch.c ---- */
void readahead_pool_init(struct readahead_pool *p);
void readahead_pool_destroy(struct readahead_pool *p);
/* Starts the threads, unless they run: when the tunable is or becomes other than 0. 0 or -errno: not a single one. */
int readahead_start(struct cache *c);
void readahead_stop(struct cache *c); /* drops what is queued */

/* Drops what is queued for the volume and waits for what is running. False: that is still running and the caller's
 * patience (NULL: endless) over. */
bool readahead_forget(struct volume *v, const struct patience *patience);

/* ---- move.c, defrag.c ---- */
/* In the gate: the block's data, which is in buf, gets this slot; it stays dirty or clean as it was. False: it is not
 * in the plan's slot any more, or was written in the open epoch. */
bool block_move(struct cache *c, struct volume *v, uint64_t block, const struct block_plan *p, struct buffer *buf,
		uint32_t slot);
enum tidied {
	TIDIED, /* or there was nothing to do */
	TIDY_FULL, /* too few slots are free */
	TIDY_NO_RUN, /* they do not lie side by side */
	TIDY_NO_BUFFERS,
	TIDY_IN_USE
};
struct drop_behind;
/* Reads n blocks, as many as one may ask buffers for, and moves them together if they lie scattered. Blocks on the
 * backing device are left there. */
enum tidied tidy_range(struct thread_ctx *t, struct volume *v, uint64_t first, unsigned n, struct drop_behind *cold);
/* After the reply: does it, if nobody else wants the blocks at the moment. The plan still holds them. */
void tidy_after_read(struct thread_ctx *t, struct volume *v);

/* ---- compact.c ---- */
void compact_ask(struct cache *c); /* called by a thread that found no slots side by side */
/* Until there is enough room in large pieces, or no more to be had. idle: more of it, and only as long as idle_over()
 * says no. False: stopped before. */
bool compact_run(struct cache *c, bool idle);
extern bool compact_in_background; /* Seam for tests: false, compact_run and idle_run are called by hand */

/* ---- drop_behind.c ---- */
/* Slots that background work has moved blocks to which were not in RAM: they are not to drive out what is. */
#define DROP_BEHIND_SLOTS 2048u
struct drop_behind {
	uint32_t slot[DROP_BEHIND_SLOTS + MAX_BLOCKS];
	unsigned n;
	unsigned moved; /* with those that were in RAM */
};
void drop_behind_add(struct drop_behind *cold, uint32_t slot, bool was_in_ram);
/* If there are many, or `all`: what was moved is committed, and leaves RAM. 0 or -EIO. */
int drop_behind_settle(struct cache *c, struct drop_behind *cold, bool all);

/* ---- activity.c ---- */
struct activity activity_of(struct cache *c); /* of all volumes since load */
bool activity_is_quiet(struct cache *c, const struct activity *a, uint64_t seconds);
bool idle_is_wanted(struct cache *c);
/* It is not quiet any more, or was not at the last look; or somebody flushes, or switched this off. */
bool idle_over(struct cache *c);

/* ---- idle.c ---- */
int idle_init(struct cache *c);
void idle_destroy(struct cache *c);
/* By maintenance, `ns` after the last look: if hardly anything was asked for since then, sends JOB_COMPACT to work. */
void idle_look(struct cache *c, uint64_t ns);
/* Puts free space together, then tidies what was remembered, until all is done or idle_over(). */
void idle_run(struct cache *c);
/* A sequential reader's blocks lie scattered and could not be moved now. Any thread, never waits; a hint. */
void idle_tidy_later(struct volume *v, uint64_t first, unsigned n);

/* ---- reclaim.c ---- */
void reclaim_run(struct cache *c);

/* ---- clean.c ---- */
int cleaner_init(struct cache *c);
void cleaner_destroy(struct cache *c);
/* Cleans up to `budget` dirty lines of the volume in the background manner; returns how many, or -errno. *blocks: how
 * many blocks became clean. Waits for the volume's backing device, and for whoever else cleans this volume. */
long clean_volume(struct cache *c, struct volume *v, uint32_t budget, uint64_t *blocks);
/* The same for all volumes, one after the other. */
long cleaner_step(struct cache *c, uint32_t budget, uint64_t *blocks);

#endif
