/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * internal.h - structures of the buffer layer and the state word. Only files in src/buffer (and its tests, for the
 * checker) include this. The memory policy, the state diagram, the lock order and the invariants are at the head of
 * buffer.c.
 */
#ifndef BUFFER_INTERNAL_H
#define BUFFER_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "blkcache/buffer.h"

#define NIL UINT32_MAX /* "no frame" in 32-bit links */
#define HEADS 11 /* what fits in a cache line beside the lock and two counters */
#define WRITE_BYTES (1u << 20) /* of one merged write: beyond it disks gain nothing, and a failure costs more */
#define BATCH_FRAMES                                                                                                   \
	(1u << 20) /* sorted at once: 4 GiB of 4 KiB blocks. Frames are in no order of blocks, so what lies            \
		    * together on the device is found only within a batch. */
#define DIRTY_HEADROOM (128u << 20) /* bytes kept from being dirty in a large pool: some 30 ms of a fast writer */
#define BACKOFF_MIN_NS 10000000ull /* a failing device is tried again on its own after 10 ms, then doubling ... */
#define BACKOFF_MAX_NS 1000000000ull /* ... up to this: who waits for a frame learns of the failure within a second */

/* The state word. One atomic word, so that a change of pins and flags is one step; which flag changes under which lock:
 * buffer.c. */
#define ST_PINS 0xffffffffull /* number of pins */
#define ST_VISIBLE (1ull << 32) /* buffer_get finds it */
#define ST_LINKED (1ull << 33) /* in a hash chain; without VISIBLE: an old write in flight */
#define ST_REF (1ull << 34) /* used since the clock hand passed */
#define ST_DIRTY (1ull << 35) /* newer than the device and than any write in flight */
#define ST_WRITING (1ull << 36) /* a write of its memory is in flight */
#define ST_USED (1ull << 48) /* not free; the whole word is 0 in a free frame */

struct buffer {
	_Atomic uint64_t state;
	_Atomic uint64_t block; /* changes under the group lock, while LINKED only there */
	void *data;
	struct buffer_client *client; /* set by alloc */
	uint32_t next; /* hash chain; changes under the group lock */
	uint32_t index;
	uint64_t pad[3];
};
_Static_assert(sizeof(struct buffer) == 64, "one cache line");

/* A lock, the chains it guards and the counters that would otherwise be shared by all threads: one cache line. */
struct group {
	_Atomic uint32_t lock;
	uint32_t head[HEADS];
	_Atomic uint64_t hits;
	uint64_t misses;
};
_Static_assert(sizeof(struct group) == 64, "one cache line");

struct waiter { /* on the stack of who waits in buffer_alloc */
	struct waiter *next;
	struct buffer **out;
	unsigned n;
	int result; /* -EINPROGRESS while waiting */
	pthread_cond_t cond;
};

struct buffer_pool {
	struct buffer *desc;
	uint32_t frames;
	uint32_t block_size;
	unsigned block_shift;
	uint32_t dirty_limit; /* frames */
	void *data_map, *desc_map, *free_map; /* for munmap */
	size_t data_len, desc_len, free_len;
	_Atomic uint64_t memory;
	_Atomic unsigned nwaiters;

	pthread_mutex_t lock __attribute__((aligned(64))); /* all below, and `frames` of the clients */
	uint32_t *free; /* stack */
	uint32_t nfree;
	uint32_t hand; /* of the clock */
	uint64_t needed; /* frames the waiters want */
	struct waiter *wait_head, **wait_tail;
	struct buffer_client *client; /* NULL: none yet */
};

struct write_io {
	struct bdev_io io;
	struct drain *drain;
	struct write_io *next_free;
	unsigned n; /* blocks */
	uint32_t *frames;
	struct iovec *iov;
};

struct entry { /* what is sorted */
	uint64_t block;
	uint32_t frame;
};

struct dirty_map {
	_Atomic uint64_t *word, *top; /* a bit per frame; a bit per word */
};

/* What a round needs; belongs to who has the `draining` role. */
struct drain {
	struct buffer_client *client;
	struct bdev_channel *ch;
	struct write_io io[BUFFER_WRITE_DEPTH], *free_io;
	unsigned busy; /* ios in flight */
	unsigned max_blocks; /* of one io */
	struct entry *ent, *tmp; /* BATCH_FRAMES each at most */
	uint32_t *redo; /* frames of failed merged writes, to be tried alone */
	unsigned nredo;
	uint32_t *give; /* frames of one io that go back to the pool */
	/* of this round */
	struct dirty_map *map; /* that is being drained */
	uint64_t ok, failed; /* blocks */
	int error;
	bool again;
};

struct buffer_client {
	struct buffer_pool *pool; /* the first four: what a lookup needs */
	struct buffer *desc; /* the pool's */
	struct group *groups;
	unsigned group_shift;
	struct bdev *bdev;
	uint32_t ngroups;
	struct dirty_map dirty_map[2];
	_Atomic unsigned dirty_gen; /* which of them takes what becomes dirty now */
	uint32_t map_words, top_words;
	void *mem; /* one mapping holds all arrays */
	size_t mem_len;

	/* under pool->lock */
	uint32_t frames; /* not free, any state */

	_Atomic int64_t dirty; /* frames DIRTY or WRITING; never less than there are */
	_Atomic unsigned write_waiters; /* threads in client_wait */
	_Atomic bool kick; /* the writer shall look whether a round is due */
	_Atomic uint64_t evictions, writes, write_errors, blocks_written;

	pthread_mutex_t lock; /* all below */
	pthread_cond_t wake; /* the writer */
	pthread_cond_t cond; /* everybody else: rounds, single writes */
	pthread_t thread;
	bool started, stop, draining;
	int start_result;
	uint64_t asked, asked_writer, done; /* generations of write_dirty: wanted, wanted from the writer, finished */
	uint64_t error_seq, reported_seq; /* failed rounds; of these reported */
	int error; /* of the last failed round */
	uint64_t backoff_ns, retry_at_ns;
	struct drain drain;
};

static inline bool state_evictable(uint64_t s)
{
	return (s & ST_VISIBLE) && !(s & (ST_PINS | ST_DIRTY | ST_WRITING));
}

void group_lock_slow(struct group *g);

static inline void group_lock(struct group *g)
{
	if (__builtin_expect(atomic_exchange_explicit(&g->lock, 1, memory_order_acquire) != 0, 0))
		group_lock_slow(g);
}

static inline void group_unlock(struct group *g)
{
	atomic_store_explicit(&g->lock, 0, memory_order_release);
}

static inline uint64_t block_hash(uint64_t block)
{
	return block * 0x9e3779b97f4a7c15ull;
}

/* The group by the upper bits, the chain in it by lower ones. */
static inline struct group *group_of(const struct buffer_client *c, uint64_t block)
{
	return &c->groups[block_hash(block) >> c->group_shift];
}

static inline uint32_t *chain_of(struct group *g, uint64_t block)
{
	return &g->head[(block_hash(block) & UINT32_MAX) * HEADS >> 32];
}

static inline uint64_t buffer_block_relaxed(const struct buffer *b)
{
	return atomic_load_explicit(&b->block, memory_order_relaxed);
}

/* x_locked(): the group lock of the block is held. */
void chain_link_locked(struct buffer_client *c, struct buffer *b, uint64_t block);
void chain_unlink_locked(struct buffer_client *c, struct buffer *b);
uint64_t detach_locked(struct buffer_client *c, struct buffer *b);

/* Counted before the state changes and uncounted after, so that the counters never say 0 while something is dirty. */
static inline void dirty_inc(struct buffer_client *c)
{
	atomic_fetch_add(&c->dirty, 1);
}

static inline void dirty_dec(struct buffer_client *c)
{
	atomic_fetch_sub(&c->dirty, 1);
}

/* pool.c */
int pool_join(struct buffer_pool *pool, struct buffer_client *c, struct bc_error *err);
void pool_leave(struct buffer_pool *pool, struct buffer_client *c);
void pool_give_back(struct buffer_pool *pool, const uint32_t *frames, unsigned n); /* detached or anonymous, unpinned */
void pool_offer(struct buffer_pool *pool, const uint32_t *frames, unsigned n); /* maybe evictable: for waiters */
void pool_serve(struct buffer_pool *pool); /* pool->lock held */
void pool_client_round(struct buffer_client *c, bool stuck); /* a round ended */
void *map_memory(size_t len);
int populate_memory(void *p, size_t len);

/* writer.c */
int writer_start(struct buffer_client *c, struct bc_error *err);
void writer_stop(struct buffer_client *c);
void writer_kick(struct buffer_client *c);
void client_notify(struct buffer_client *c); /* if anybody waits for a write to end */
void dirty_map_set(struct buffer_client *c, uint32_t frame);
uint64_t clock_ns(void);

/* round.c: by the thread that has the `draining` role */
void round_run(struct buffer_client *c, struct bdev_channel *ch);

/* buffer.c */
void wait_not_writing(struct buffer_client *c, uint64_t block);
struct buffer *buffer_find(struct buffer_client *c, uint64_t block); /* not pinned: a hint */

/*
 * check.c: verifies the invariants listed in buffer.c while no other thread uses the pool and no write is in flight.
 * Returns the number of violations; the first is described in `why`.
 */
unsigned buffer_pool_check(struct buffer_pool *pool, char *why, size_t len);

#endif
