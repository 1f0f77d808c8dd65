/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * buffer.c - the life of one buffer: lookup, publishing, pins, dirty marks, forgetting. Any thread may call what is
 * here.
 *
 * Memory policy. All memory is taken when pool and clients are created: frames in one mapping, 64 bytes of descriptor a
 * frame, and per client hash groups (8 to 16 bytes a frame), the caller's aux data and the writer's workspace. A frame
 * is free or belongs to one client. buffer_alloc takes free frames first, then evicts clean unpinned ones with a clock
 * hand and a second chance: one sweep prefers frames of clients above their fair share (frames / clients), the next
 * takes any that is not another client's reserve. Dirty frames are written first, never dropped. Who finds nothing
 * queues up; while anyone waits, each frame that becomes clean and unpinned is handed over directly, so that no waiter
 * has to search twice.
 *
 * States (flags of the state word, internal.h; p = pins):
 *
 *              alloc                 publish(clean)           get / release: p changes only
 *     FREE ------------> ANONYMOUS ------------------> CLEAN <------------------------+
 *      ^ ^   evict from     | p>=1                      | ^                           |
 *      | |   CLEAN, p=0     | publish(dirty)            | | written                   |
 *      | |                  v                 mark_dirty| |                           |
 *      | |                DIRTY <-----------------------+ |       round starts it      |
 *      | |                  |  \______________________________________> WRITING ------+
 *      | | last release     | forget, replaced                           |  | ^
 *      | +-------------- DETACHED <-- write ends -- OLD (LINKED only) <---+  | | mark_dirty: DIRTY|WRITING
 *      |                    | p = 0                   forget, replaced       +-+ failed: DIRTY
 *      +--------------------+
 *
 *     READING (LINKED only, pinned by the reader) is an anonymous buffer being filled. Whoever changes the
 *     block meanwhile sets CANCELLED, then what was read is dropped.
 *
 * Lock order: pool->lock, client->lock, group lock (spinning, some dozen instructions; two groups only in
 * buffer_move, by address). None is held during I/O or callbacks.
 *
 * Who changes what:
 *     VISIBLE, LINKED,    under the group lock of the block; VISIBLE off by compare-and-swap
 *     READING, CANCELLED,
 *     block, next
 *     pins 0 -> 1         under the group lock (get), or by compare-and-swap from a VISIBLE state (try_get), or by the
 *                         owner of an invisible frame. So who makes a frame invisible decides by compare-and-swap
 *                         whether it was pinned.
 *     pins down           by anyone, without lock. Who brings an invisible buffer that is not WRITING to 0 pins
 *                         gives it back.
 *     DIRTY on            compare-and-swap by who has it pinned
 *     DIRTY -> WRITING    compare-and-swap by who has the client's `draining` role; only if VISIBLE, without HOLD
 *     WRITING off         by the same, under the group lock
 *     HOLD on, off        compare-and-swap; `holder` is NULL before it is on and after it is off
 *
 * Invariants (buffer_pool_check):
 *     I1  a frame is in the free list exactly if its state is 0
 *     I2  VISIBLE implies LINKED; a frame is in the chain of its block exactly if LINKED, and in no other
 *     I3  of one block at most one buffer is VISIBLE
 *     I4  DIRTY implies VISIBLE; an invisible frame that is not WRITING is pinned
 *     I5  a DIRTY frame has its bit in one of the client's dirty maps, unless a round has just taken it
 *     I6  client->dirty = number of its frames DIRTY or WRITING; pool->dirty is the sum
 *     I7  client->frames = number of frames with its id; free + all clients' = pool->frames
 *     I8  free >= sum over clients of (reserved - frames), where positive: a reserve can always be claimed
 *     I9  at most one write per block is in flight: one thread at a time runs a round, a round's keys are
 *         distinct, and it ends when its last write has (round.c). Not checked here; the tests' device does.
 */
#include <errno.h>
#include <sched.h>
#include <time.h>

#include "buffer/internal.h"
#include "util/waits.h"

static _Thread_local char thread_id; /* its address tells threads apart */

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

void __chain_link(struct buffer_client *c, struct buffer *b, uint64_t block)
{
	uint32_t *head = chain_of(group_of(c, block), block);

	/* atomic: try_get goes along the chain without the lock */
	atomic_store_explicit(&b->block, block, memory_order_relaxed);
	__atomic_store_n(&b->next, *head, __ATOMIC_RELAXED);
	__atomic_store_n(head, b->index, __ATOMIC_RELEASE);
}

void __chain_unlink(struct buffer_client *c, struct buffer *b)
{
	uint64_t block = buffer_block_relaxed(b);
	uint32_t *link = chain_of(group_of(c, block), block);

	while (*link != b->index)
		link = &c->pool->desc[*link].next;
	__atomic_store_n(link, b->next, __ATOMIC_RELAXED);
}

static struct buffer *__find_visible(struct buffer_client *c, struct group *g, uint64_t block)
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
	found = __find_visible(c, g, block);
	group_unlock(g);
	return found;
}

/* What is being read for this block is stale from now on. */
static void __cancel_reads(struct buffer_client *c, struct group *g, uint64_t block)
{
	for (uint32_t i = *chain_of(g, block); i != NIL; i = c->pool->desc[i].next) {
		struct buffer *b = &c->pool->desc[i];

		if (buffer_block_relaxed(b) == block && (atomic_load(&b->state) & ST_READING))
			atomic_fetch_or(&b->state, ST_CANCELLED);
	}
}

/*
 * Takes a VISIBLE buffer from its block. One being written stays linked until the write ends, so that forget finds it.
 * Returns the state left; the caller gives the frame back if invisible_free(). The extra pin keeps a concurrent release
 * from freeing the frame while it is still in the chain.
 */
uint64_t __detach(struct buffer_client *c, struct buffer *b)
{
	uint64_t s = atomic_load(&b->state), n;

	do {
		n = (s & ~(ST_VISIBLE | ST_REF | ST_DIRTY)) + 1;
		if (!(s & ST_WRITING))
			n &= ~ST_LINKED;
	} while (!atomic_compare_exchange_weak(&b->state, &s, n));
	if (!(n & ST_LINKED)) {
		__chain_unlink(c, b);
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
static struct buffer *__get(struct buffer_client *c, struct group *g, uint64_t block)
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
 * not found, or the steps are used up. A frame is pinned only in a VISIBLE state of this client; the word has the flags
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
		while (s & ST_VISIBLE && state_client(s) == c->id) {
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
	return __get(c, g, block);
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

/* Drops HOLD if it is the calling thread's, or if `any`; `minus` pins go and `set` flags come in the same step. Returns
 * the old state. */
static __attribute__((noinline)) uint64_t unhold(struct buffer *b, uint64_t s, unsigned minus, uint64_t set)
{
	struct buffer_client *c = b->client;
	const void *owner = atomic_load(&b->holder);
	uint64_t n;
	bool mine;

	do {
		/* with the last pin a hold of anybody ends: else a buffer released by another thread than its holder is
		 * lost for good */
		mine = (s & ST_HOLD) && (owner == &thread_id || (minus && (s & ST_PINS) == minus));
		if (mine)
			atomic_store(&b->holder, NULL);
		n = ((s | set) - minus) & ~(mine ? ST_HOLD | ST_WANTED : 0);
	} while (!atomic_compare_exchange_weak(&b->state, &s, n));
	if (mine && (s & ST_WANTED))
		client_notify(c);
	return s;
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
	uint64_t s = atomic_load_explicit(&b->state, memory_order_relaxed);

	if (__builtin_expect((s & ST_HOLD) != 0, 0))
		s = unhold(b, s, 1, 0);
	else
		s = atomic_fetch_sub(&b->state, 1);
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
	if (atomic_load_explicit(&pool->dirty, memory_order_relaxed) > pool->dirty_limit ||
	    atomic_load(&pool->nwaiters))
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
	old = __find_visible(c, g, block);
	if (old && !dirty) {
		group_unlock(g);
		return false;
	}
	__cancel_reads(c, g, block);
	if (old && invisible_free(__detach(c, old)))
		old_index = old->index;
	__chain_link(c, b, block);
	atomic_fetch_or(&b->state, ST_LINKED | ST_VISIBLE | (dirty ? ST_DIRTY : 0));
	group_unlock(g);
	if (old_index != NIL)
		pool_give_back(c->pool, &old_index, 1);
	if (dirty)
		became_dirty(c, b->index);
	return true;
}

void buffer_mark_dirty(struct buffer *b)
{
	struct buffer_client *c = b->client;
	uint64_t s;

	/* counted before it is DIRTY; if it was counted already, or its block was forgotten meanwhile, not twice */
	dirty_inc(c);
	for (s = atomic_load(&b->state);;) {
		uint64_t old;

		if (!(s & ST_VISIBLE)) {
			unhold(b, s, 0, 0);
			dirty_dec(c);
			return;
		}
		if (s & ST_HOLD && atomic_load(&b->holder) == &thread_id) {
			/* first DIRTY, then the hold: a round that runs in between finds HOLD and waits */
			if (!atomic_compare_exchange_weak(&b->state, &s, s | ST_DIRTY))
				continue;
			old = s;
			unhold(b, atomic_load(&b->state), 0, 0);
		} else {
			if (!atomic_compare_exchange_weak(&b->state, &s, s | ST_DIRTY))
				continue;
			old = s;
		}
		if (old & (ST_DIRTY | ST_WRITING))
			dirty_dec(c);
		break;
	}
	became_dirty(c, b->index);
}

bool buffer_is_dirty(const struct buffer *b)
{
	return atomic_load(&b->state) & (ST_DIRTY | ST_WRITING);
}

bool buffer_try_stabilize(struct buffer *b)
{
	uint64_t s = atomic_load(&b->state);

	do {
		if (s & ST_WRITING)
			return false;
		if (s & ST_HOLD)
			return atomic_load(&b->holder) == &thread_id;
		if (!(s & ST_VISIBLE)) /* no writer will ever look at it */
			return true;
	} while (!atomic_compare_exchange_weak(&b->state, &s, s | ST_HOLD));
	atomic_store(&b->holder, &thread_id);
	return true;
}

/* Waits until b is stable. For the rare calls only: sleeps for a hold of another thread, which is short. */
static void stabilize_wait(struct buffer *b)
{
	while (!buffer_try_stabilize(b)) {
		wait_not_writing(b->client, buffer_block_relaxed(b));
		if (atomic_load(&b->state) & ST_HOLD)
			nanosleep(&(struct timespec){ .tv_nsec = 100000 }, NULL);
	}
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
		if (s & ST_READING)
			atomic_fetch_or(&b->state, ST_CANCELLED);
		if (s & ST_VISIBLE) {
			s = __detach(c, b);
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

		if (state_client(s) == c->id && (s & ST_LINKED) && have >= block && have - block < n)
			forget_one(c, have);
	}
}

int buffer_move(struct buffer *b, uint64_t new_block)
{
	struct buffer_client *c = b->client;
	uint64_t old_block = buffer_block_relaxed(b);
	struct group *from = group_of(c, old_block), *to = group_of(c, new_block);
	struct group *first = from < to ? from : to, *second = from < to ? to : from;
	int rc = 0;

	if (old_block == new_block)
		return -EEXIST;
	stabilize_wait(b); /* no write starts while it changes its block */
	group_lock(first);
	if (second != first)
		group_lock(second);
	if (!(atomic_load(&b->state) & ST_VISIBLE)) {
		rc = -ENOENT; /* forgotten meanwhile */
	} else if (__find_visible(c, to, new_block)) {
		rc = -EEXIST;
	} else {
		__cancel_reads(c, to, new_block);
		__cancel_reads(c, from, old_block);
		__chain_unlink(c, b);
		__chain_link(c, b, new_block);
	}
	if (second != first)
		group_unlock(second);
	group_unlock(first);
	if (rc)
		unhold(b, atomic_load(&b->state), 0, 0);
	else
		buffer_mark_dirty(b);
	return rc;
}

/* b, anonymous, is going to be filled from the device: found by whoever changes the block meanwhile. */
void read_begin(struct buffer *b, uint64_t block)
{
	struct group *g = group_of(b->client, block);

	group_lock(g);
	__chain_link(b->client, b, block);
	atomic_fetch_or(&b->state, ST_LINKED | ST_READING);
	group_unlock(g);
}

/* It is filled (or not: ok). True: b is now the clean buffer of the block. False: b is anonymous again. */
bool read_end(struct buffer *b, bool ok)
{
	struct buffer_client *c = b->client;
	uint64_t block = buffer_block_relaxed(b);
	struct group *g = group_of(c, block);

	group_lock(g);
	if (ok && (atomic_load(&b->state) & ST_CANCELLED))
		ok = false;
	if (ok && __find_visible(c, g, block))
		ok = false;
	if (ok) {
		atomic_fetch_xor(&b->state, ST_READING | ST_VISIBLE);
	} else {
		__chain_unlink(c, b);
		atomic_store_explicit(&b->block, UINT64_MAX, memory_order_relaxed);
		atomic_fetch_and(&b->state, ~(ST_READING | ST_CANCELLED | ST_LINKED));
	}
	group_unlock(g);
	return ok;
}

int buffer_read(struct buffer_client *c, struct bdev_channel *ch, uint64_t block, struct buffer **out)
{
	struct buffer *b;
	int rc;

	for (;;) {
		*out = buffer_get(c, block);
		if (*out)
			return 0;
		rc = buffer_alloc(c, &b, 1, true);
		if (rc)
			return rc;
		read_begin(b, block);
		rc = bdev_pread(ch, b->data, c->pool->block_size, block << c->pool->block_shift);
		if (read_end(b, rc == 0)) {
			*out = b;
			return 0;
		}
		buffer_release(b);
		if (rc)
			return rc;
		/* somebody else read or changed the block: take that */
	}
}

struct buffer *buffer_new(struct buffer_client *c, uint64_t block)
{
	struct buffer *b = buffer_get(c, block);

	if (!b) {
		if (buffer_alloc(c, &b, 1, true))
			return NULL;
		if (buffer_publish(b, block, false))
			return b;
		buffer_release(b);
		return buffer_new(c, block);
	}
	stabilize_wait(b);
	return b;
}

void *buffer_data(struct buffer *b)
{
	return b->data;
}

uint64_t buffer_block(const struct buffer *b)
{
	return buffer_block_relaxed(b);
}

uint32_t buffer_frame(const struct buffer *b)
{
	return b->index;
}

void *buffer_aux(struct buffer *b)
{
	return b->client->aux + b->index * b->client->aux_stride;
}

uint32_t buffer_block_size(const struct buffer_client *c)
{
	return c->pool->block_size;
}

uint64_t buffer_device_blocks(const struct buffer_client *c)
{
	return c->device_blocks;
}

int buffer_issue_flush(struct buffer_client *c, struct bdev_channel *ch)
{
	(void)c;
	return bdev_flush(ch);
}
