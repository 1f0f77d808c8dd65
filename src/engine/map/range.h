/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * range.h - locks on ranges of blocks of a volume: what serialises requests, eviction and cleaning of the same data.
 *
 *            held:  READ  WRITE THROUGH CLEAN
 *   READ            yes   no    no      yes      reads, and the fills that follow from them
 *   WRITE           no    no    no      yes      write-back: changes the cache, not the backing device
 *   THROUGH         no    no    no      no       changes the backing device, drops lines
 *   CLEAN           yes   yes   no      no       writes dirty blocks to the backing device
 *
 * Grants are in order of arrival among conflicting requests, so that nobody starves. A lock covers at most 1 MiB of
 * unaligned range, that is two chunks of 256 blocks. Chunks are hashed to stripes, and each stripe is a queue. A *wide*
 * lock covers any range: it stands in the queues of all stripes, wherever the range's chunks are.
 *
 * Whoever takes several parts takes them in ascending order of stripes, and no two of one stripe (neighbouring chunks
 * never share one). So somebody who waits in a stripe holds parts of lower stripes only, and no two holders can wait
 * for each other. A thread that holds one lock may take another only with range_trylock.
 */
#ifndef ENGINE_RANGE_H
#define ENGINE_RANGE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

enum range_mode { RANGE_READ, RANGE_WRITE, RANGE_THROUGH, RANGE_CLEAN };

#define RANGE_CHUNK_SHIFT 8
#define RANGE_MAX_BLOCKS 257u
#define RANGE_STRIPES 64

struct range_part {
	struct range_part *next, *prev;
	uint64_t first, last; /* blocks, inclusive */
	uint16_t volume;
	uint8_t mode;
};

struct range_lock {
	struct range_part part[2];
	int parts;
};

struct range_wide {
	struct range_part part[RANGE_STRIPES];
};

struct range_stripe {
	pthread_mutex_t lock;
	pthread_cond_t released;
	struct range_part *head, *tail;
	unsigned waiting;
} __attribute__((aligned(64)));

struct range_table {
	struct range_stripe stripe[RANGE_STRIPES];
};

void range_table_init(struct range_table *t);
void range_table_destroy(struct range_table *t);
/* Blocks until granted. The lock structure is the caller's and stays until range_unlock. count: 1..RANGE_MAX_BLOCKS. */
void range_lock(struct range_table *t, struct range_lock *l, unsigned volume, uint64_t first, uint32_t count,
		enum range_mode mode);
bool range_trylock(struct range_table *t, struct range_lock *l, unsigned volume, uint64_t first, uint32_t count,
		   enum range_mode mode);
void range_unlock(struct range_table *t, struct range_lock *l);
/* Any number of blocks, from 1. Costs about as much as RANGE_STRIPES small locks. */
void range_lock_wide(struct range_table *t, struct range_wide *w, unsigned volume, uint64_t first, uint64_t count,
		     enum range_mode mode);
void range_unlock_wide(struct range_table *t, struct range_wide *w);

#endif
