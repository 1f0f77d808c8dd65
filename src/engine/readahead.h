/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * readahead.h - reading ahead of sequential readers, so that they wait for a slow backing device once and not for every
 * request.
 *
 * A *stream* begins when a miss starts where an earlier miss ended. While it goes on, the blocks before the reader are
 * brought into the cache by a few threads of their own, in windows that double up to the tunable read-ahead. That is 0
 * (off) by default: what sits on a volume mostly reads ahead itself. A stream that finds everything cached already, or
 * is not continued, ends. Costs nothing on hits while no stream is active.
 */
#ifndef ENGINE_READAHEAD_H
#define ENGINE_READAHEAD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct cache;
struct patience;
struct volume;

#define READAHEAD_STREAMS 8
#define READAHEAD_THREADS 4
#define READAHEAD_QUEUE 64
#define READAHEAD_MIN (256u << 10) /* bytes of the first window */

struct readahead_stream {
	uint64_t next; /* where the reader goes on, if it is sequential */
	uint64_t ahead; /* asked for up to here; 0: only a candidate, one miss was seen */
	uint32_t window;
	uint64_t used; /* order of use, for replacement */
};

/* per volume */
struct readahead {
	pthread_mutex_t lock;
	struct readahead_stream stream[READAHEAD_STREAMS];
	uint64_t clock;
	_Atomic int active; /* streams that are more than candidates */
	unsigned jobs; /* queued and running; the pool's lock */
};

struct readahead_job {
	struct volume *v; /* referenced */
	uint64_t off;
	uint32_t len;
};

/* per cache */
struct readahead_pool {
	pthread_mutex_t lock;
	pthread_cond_t wake;
	struct readahead_job queue[READAHEAD_QUEUE];
	unsigned head, n;
	bool stop;
	pthread_t thread[READAHEAD_THREADS];
	unsigned started;
};

#endif
