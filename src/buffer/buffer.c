/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * buffer.c - the life of one buffer: lookup, publishing, pins, dirty marks, forgetting. Any thread may call what is
 * here.
 *
 * Memory policy. All memory is taken when the pool and its client are created: frames in one mapping, 64 bytes of
 * descriptor a frame, hash groups (8 to 16 bytes a frame), and the writer's workspace. buffer_alloc takes free frames
 * first, then evicts clean unpinned ones with a clock hand and a second chance. Dirty frames are written first, never
 * dropped. A thread that finds nothing queues up. While anyone waits, each frame that becomes clean and unpinned is
 * handed over directly, so that no waiter has to search twice.
 *
 * States (flags of the state word, internal.h; p = pins):
 *
 *              alloc                 publish(clean)          get / release: p changes only
 *     FREE ------------> ANONYMOUS ------------------> CLEAN <--------------+
 *      ^ ^   evict from     | p>=1                                          | written
 *      | |   CLEAN, p=0     | publish(dirty)                                |
 *      | |                  v               a round starts it               |
 *      | |                DIRTY ------------------------------> WRITING ----+
 *      | |                  |  ^________________________________|   |
 *      | | last release     | forget, replaced     failed           | forget, replaced
 *      | +-------------- DETACHED <-- the write ends -- OLD <-------+
 *      |                    | p = 0                     (LINKED only)
 *      +--------------------+
 *
 * Lock order: pool->lock, client->lock, group lock (spinning, some dozen instructions). None is held during I/O.
 *
 * Who changes what:
 *     VISIBLE, LINKED,    under the group lock of the block; VISIBLE off by compare-and-swap
 *     block, next
 *     pins 0 -> 1         under the group lock (get), or by compare-and-swap from a VISIBLE state (try_get), or by the
 *                         owner of an invisible frame. So who makes a frame invisible decides by compare-and-swap
 *                         whether it was pinned.
 *     pins down           by anyone, without lock. The thread that brings an invisible buffer which is not
 *                         WRITING to 0 pins gives it back.
 *     DIRTY on            in the step that makes it VISIBLE; a buffer in memory is never changed in place
 *     DIRTY -> WRITING    compare-and-swap by the thread that has the client's `draining` role; only if VISIBLE
 *     WRITING off         by the same, under the group lock
 *
 * Invariants (buffer_pool_check):
 *     I1  a frame is in the free list exactly if its state is 0
 *     I2  VISIBLE implies LINKED; a frame is in the chain of its block exactly if LINKED, and in no other
 *     I3  of one block at most one buffer is VISIBLE
 *     I4  DIRTY implies VISIBLE; an invisible frame that is not WRITING is pinned
 *     I5  a DIRTY frame has its bit in one of the client's dirty maps, unless a round has just taken it
 *     I6  client->dirty = number of its frames DIRTY or WRITING
 *     I7  client->frames = number of frames that are not free; free + these = pool->frames
 *     I8  at most one write per block is in flight: one thread at a time runs a round, a round's keys are
 *         distinct, and it ends when its last write has (round.c). Not checked here; the tests' device does.
 */
#include <errno.h>
#include <sched.h>
#include <time.h>

#include "buffer/internal.h"
#include "util/waits.h"

void group_lock_slow(struct group *g)
{
	for (unsigned tries = 0;; tries++) {
		if (!atomic_load_explicit(&g->lock, memory_order_relaxed) &&
		    !atomic_exchange_explicit(&g->lock, 1, memory_order_acquire))
			return;
		if (tries < 64)
			atomic_signal_fence(
				memory_order_seq_cst); /* look again at once: it is a matter of nanoseconds */
		else if (tries < 128)
			sched_yield();
		else /* the holder was preempted and yielding does not let it run */
			nanosleep(&(struct timespec){ .tv_nsec = 50000 }, NULL);
	}
}

void chain_link_locked(struct buffer_client *c, struct buffer *b, uint64_t block)
{
	uint32_t *head = chain_of(group_of(c, block), block);

	/* atomic: try_get goes along the chain without the lock */
	atomic_store_explicit(&b->block, block, memory_order_relaxed);
	__atomic_store_n(&b->next, *head, __ATOMIC_RELAXED);
	__atomic_store_n(head, b->index, __ATOMIC_RELEASE);
}

void chain_unlink_locked(struct buffer_client *c, struct buffer *b)
{
	uint64_t block = buffer_block_relaxed(b);
	uint32_t *link = chain_of(group_of(c, block), block);

	while (*link != b->index)
		link = &c->pool->desc[*link].next;
	__atomic_store_n(link, b->next, __ATOMIC_RELAXED);
}

static struct buffer *find_visible_locked(struct buffer_client *c, struct group *g, uint64_t block)
{
	for (uint32_t i = *chain_of(g, block); i != NIL; i = c->pool->desc[i].next) {
		struct buffer *b = &c->pool->desc[i];

		if (buffer_block_relaxed(b) == block &&
		    (atomic_load_explicit(&b->state, memory_order_relaxed) & ST_VISIBLE))
			return b;
	}
	return NULL;
}

struct buffer *buffer_find(struct buffer_client *c, uint64_t block)
{
	struct group *g = group_of(c, block);
	struct buffer *found;

	group_lock(g);
	found = find_visible_locked(c, g, block);
	group_unlock(g);
	return found;
}

/*
 * Takes a VISIBLE buffer from its block. One being written stays linked until the write ends, so that forget finds it.
 * Returns the state left; the caller gives the frame back if invisible_free(). The extra pin keeps a concurrent release
 * from freeing the frame while it is still in the chain.
 */
uint64_t detach_locked(struct buffer_client *c, struct buffer *b)
{
	uint64_t s = atomic_load(&b->state), n;

	do {
		n = (s & ~(ST_VISIBLE | ST_REF | ST_DIRTY)) + 1;
		if (!(s & ST_WRITING))
			n &= ~ST_LINKED;
	} while (!atomic_compare_exchange_weak(&b->state, &s, n));
	if (!(n & ST_LINKED)) {
		chain_unlink_locked(c, b);
		if (s & ST_DIRTY)
			dirty_dec(c);
	}
	return atomic_fetch_sub(&b->state, 1) - 1;
}

static inline bool invisible_free(uint64_t s)
{
	return !(s & (ST_PINS | ST_VISIBLE | ST_WRITING));
}

/* Two that count at once may be counted as one: nothing depends on it, and an atomic addition costs as much as the lock
 * that try_get does without. */
static inline void count_hit(struct group *g)
{
	atomic_store_explicit(&g->hits, atomic_load_explicit(&g->hits, memory_order_relaxed) + 1, memory_order_relaxed);
}

/* Takes the locked group and unlocks it. */
static struct buffer *get_and_unlock(struct buffer_client *c, struct group *g, uint64_t block)
{
	struct buffer *desc = c->desc;

	for (uint32_t i = *chain_of(g, block); i != NIL; i = desc[i].next) {
		struct buffer *b = &desc[i];
		uint64_t s;

		if (buffer_block_relaxed(b) != block)
			continue;
		s = atomic_load_explicit(&b->state, memory_order_relaxed);
		if (!(s & ST_VISIBLE))
			continue;
		atomic_fetch_add_explicit(&b->state, 1, memory_order_acq_rel);
		if (!(s & ST_REF))
			atomic_fetch_or_explicit(&b->state, ST_REF, memory_order_relaxed);
		count_hit(g);
		group_unlock(g);
		return b;
	}
	g->misses++;
	group_unlock(g);
	return NULL;
}

/*
 * Frames are never unmapped, so going along a chain that is changing leads at worst to another one: then the block is
 * not found, or the steps are used up. A frame is pinned only in a VISIBLE state; the word has the flags
 * and the pins, so it cannot have been evicted or detached in between. It may have been given to another block though,
 * and look the same: so its block is looked at again once it is pinned and cannot change any more.
 */
#define TRY_STEPS 16

static inline struct buffer *try_get(struct buffer_client *c, struct group *g, uint64_t block)
{
	uint32_t i = __atomic_load_n(chain_of(g, block), __ATOMIC_ACQUIRE);

	for (unsigned step = 0; i != NIL && step < TRY_STEPS; step++) {
		struct buffer *b = &c->desc[i];
		uint64_t s;

		i = __atomic_load_n(&b->next, __ATOMIC_RELAXED);
		if (buffer_block_relaxed(b) != block)
			continue;
		s = atomic_load_explicit(&b->state, memory_order_relaxed);
		while (s & ST_VISIBLE) {
			if (!atomic_compare_exchange_weak_explicit(&b->state, &s, (s | ST_REF) + 1,
								   memory_order_acq_rel, memory_order_relaxed))
				continue;
			if (buffer_block_relaxed(b) == block) {
				count_hit(g);
				return b;
			}
			buffer_release(b);
			return NULL;
		}
	}
	return NULL;
}

static __attribute__((noinline)) struct buffer *get_locked(struct buffer_client *c, struct group *g, uint64_t block)
{
	group_lock(g);
	return get_and_unlock(c, g, block);
}

struct buffer *buffer_get(struct buffer_client *c, uint64_t block)
{
	struct group *g = group_of(c, block);
	struct buffer *b = try_get(c, g, block);

	return b ? b : get_locked(c, g, block); /* the chain may have been changing */
}

void buffer_get_soon(const struct buffer_client *c, uint64_t block)
{
	__builtin_prefetch(group_of(c, block), 1);
}

static __attribute__((noinline)) bool offer_one(struct buffer_pool *pool, uint32_t index)
{
	pool_offer(pool, &index, 1);
	return false;
}

/* True if the caller must give the frame back. */
static inline bool release_one(struct buffer *b)
{
	struct buffer_pool *pool = b->client->pool;
	uint32_t index = b->index;
	uint64_t s = atomic_fetch_sub(&b->state, 1);

	if ((s & ST_PINS) != 1)
		return false;
	if (!(s & ST_VISIBLE))
		return !(s & ST_WRITING);
	/* pairs with the store in buffer_alloc: either we see the waiter or its search sees our unpin */
	if (__builtin_expect(atomic_load(&pool->nwaiters) != 0, 0))
		return offer_one(pool, index);
	return false;
}

static __attribute__((noinline)) void give_back_one(struct buffer_pool *pool, uint32_t index)
{
	pool_give_back(pool, &index, 1);
}

void buffer_release(struct buffer *b)
{
	struct buffer_pool *pool = b->client->pool;
	uint32_t index = b->index;

	if (release_one(b))
		give_back_one(pool, index);
}

void buffer_release_many(struct buffer **b, unsigned n)
{
	uint32_t back[64];
	struct buffer_pool *pool = n ? b[0]->client->pool : NULL;
	unsigned nback = 0;

	for (unsigned i = 0; i < n; i++) {
		uint32_t index = b[i]->index;

		if (!release_one(b[i]))
			continue;
		back[nback++] = index;
		if (nback == 64) {
			pool_give_back(pool, back, nback);
			nback = 0;
		}
	}
	if (nback)
		pool_give_back(pool, back, nback);
}

/* After a buffer became dirty: make it known to the writer, and start that if it is time. */
static void became_dirty(struct buffer_client *c, uint32_t index)
{
	struct buffer_pool *pool = c->pool;

	dirty_map_set(c, index);
	if (atomic_load_explicit(&c->dirty, memory_order_relaxed) > pool->dirty_limit || atomic_load(&pool->nwaiters))
		writer_kick(c);
}

bool buffer_publish(struct buffer *b, uint64_t block, bool dirty)
{
	struct buffer_client *c = b->client;
	struct group *g = group_of(c, block);
	struct buffer *old;
	uint32_t old_index = NIL;

	if (dirty)
		dirty_inc(c);
	group_lock(g);
	old = find_visible_locked(c, g, block);
	if (old && !dirty) {
		group_unlock(g);
		return false;
	}
	if (old && invisible_free(detach_locked(c, old)))
		old_index = old->index;
	chain_link_locked(c, b, block);
	atomic_fetch_or(&b->state, ST_LINKED | ST_VISIBLE | (dirty ? ST_DIRTY : 0));
	group_unlock(g);
	if (old_index != NIL)
		pool_give_back(c->pool, &old_index, 1);
	if (dirty)
		became_dirty(c, b->index);
	return true;
}

bool buffer_is_dirty(const struct buffer *b)
{
	return atomic_load(&b->state) & (ST_DIRTY | ST_WRITING);
}

static bool block_writing(struct buffer_client *c, uint64_t block)
{
	struct group *g = group_of(c, block);
	bool found = false;

	group_lock(g);
	for (uint32_t i = *chain_of(g, block); i != NIL && !found; i = c->pool->desc[i].next) {
		struct buffer *b = &c->pool->desc[i];

		found = buffer_block_relaxed(b) == block && (atomic_load(&b->state) & ST_WRITING);
	}
	group_unlock(g);
	return found;
}

void wait_not_writing(struct buffer_client *c, uint64_t block)
{
	about_to_wait();
	pthread_mutex_lock(&c->lock);
	atomic_fetch_add(&c->write_waiters, 1);
	while (block_writing(c, block))
		pthread_cond_wait(&c->cond, &c->lock);
	atomic_fetch_sub(&c->write_waiters, 1);
	pthread_mutex_unlock(&c->lock);
}

static void forget_one(struct buffer_client *c, uint64_t block)
{
	struct group *g = group_of(c, block);
	uint32_t back = NIL, i, next;
	bool writing = false;

	group_lock(g);
	for (i = *chain_of(g, block); i != NIL; i = next) {
		struct buffer *b = &c->pool->desc[i];
		uint64_t s;

		next = b->next;
		if (buffer_block_relaxed(b) != block)
			continue;
		s = atomic_load(&b->state);
		if (s & ST_VISIBLE) {
			s = detach_locked(c, b);
			if (invisible_free(s))
				back = i; /* there is one VISIBLE at most */
		}
		if (s & ST_WRITING)
			writing = true;
	}
	group_unlock(g);
	if (back != NIL)
		pool_give_back(c->pool, &back, 1);
	if (writing)
		wait_not_writing(c, block);
}

void buffer_forget(struct buffer_client *c, uint64_t block, unsigned n)
{
	struct buffer_pool *pool = c->pool;

	if (n <= pool->frames) {
		for (unsigned i = 0; i < n; i++)
			forget_one(c, block + i);
		return;
	}
	/* fewer frames than blocks: look through the frames */
	for (uint32_t i = 0; i < pool->frames; i++) {
		uint64_t have = buffer_block_relaxed(&pool->desc[i]);
		uint64_t s = atomic_load(&pool->desc[i].state);

		if ((s & ST_LINKED) && have >= block && have - block < n)
			forget_one(c, have);
	}
}

void *buffer_data(struct buffer *b)
{
	return b->data;
}

uint32_t buffer_frame(const struct buffer *b)
{
	return b->index;
}
