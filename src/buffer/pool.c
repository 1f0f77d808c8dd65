/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pool.c - the memory of a pool, and who gets which frame: free stack, clock, the queue of waiters.
 *
 * Everything here runs under pool->lock (functions named pool_* take it unless said otherwise); group locks are taken
 * inside it, never around it. Free frames are counted, not searched; a frame that a waiter could use comes here by
 * pool_give_back or pool_offer.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blkcache/units.h"
#include "buffer/internal.h"
#include "util/waits.h"

#define HUGE_PAGE (2u << 20)
#define MIN_FRAMES 64u /* fewer, and a quarter of the pool is no longer a useful request */

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

void *map_memory(size_t len)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static void unmap(void *p, size_t len)
{
	if (p)
		munmap(p, len);
}

/* Takes the pages now: a cache under a loop device cannot wait for memory while the kernel waits for it to write. */
int populate_memory(void *p, size_t len)
{
	if (madvise(p, len, MADV_POPULATE_WRITE) == 0)
		return 0;
	if (errno != EINVAL) /* EINVAL: kernel before 5.14 */
		return -ENOMEM;
	for (size_t i = 0; i < len; i += 4096) {
		volatile char *c = (volatile char *)p + i;

		*c = *c; /* shared memory may hold something */
	}
	return 0;
}

/* Puts the memfd's pages where anonymous ones were reserved. It never shrinks: what it holds may still be wanted. */
static int map_shared(char *base, size_t bytes, int fd)
{
	struct stat st;

	if (fstat(fd, &st) || ((uint64_t)st.st_size < bytes && ftruncate(fd, (off_t)bytes)))
		return -errno;
	if (mmap(base, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
		return -errno;
	return 0;
}

static int frames_map(struct buffer_pool *pool, size_t bytes, int shared_fd, struct bc_error *err)
{
	char text[32];
	char *base;

	units_format_size(text, sizeof(text), bytes);
	pool->data_len = bytes + HUGE_PAGE;
	pool->desc_len = (size_t)pool->frames * sizeof(struct buffer);
	pool->free_len = (size_t)pool->frames * sizeof(uint32_t);
	if (bytes / (uint64_t)sysconf(_SC_PAGESIZE) > (uint64_t)sysconf(_SC_PHYS_PAGES))
		return bc_fail(err, -ENOMEM, "%s of RAM buffers are more than this machine has: give less memory",
			       text);
	pool->data_map = map_memory(pool->data_len);
	pool->desc_map = map_memory(pool->desc_len);
	pool->free_map = map_memory(pool->free_len);
	if (!pool->data_map || !pool->desc_map || !pool->free_map)
		return bc_fail(err, -ENOMEM, "no memory for %s of RAM buffers: give less memory", text);
	base = (char *)(((uintptr_t)pool->data_map + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
	if (shared_fd && map_shared(base, bytes, shared_fd))
		return bc_fail(err, -ENOMEM, "no shared memory for %s of RAM buffers: give less memory", text);
	madvise(base, bytes, MADV_HUGEPAGE);
	if (populate_memory(base, bytes) || populate_memory(pool->desc_map, pool->desc_len) ||
	    populate_memory(pool->free_map, pool->free_len))
		return bc_fail(err, -ENOMEM, "no memory for %s of RAM buffers: give less memory", text);
	pool->desc = pool->desc_map;
	pool->free = pool->free_map;
	for (uint32_t i = 0; i < pool->frames; i++) {
		pool->desc[i].data = base + ((size_t)i << pool->block_shift);
		pool->desc[i].index = i;
		pool->desc[i].next = NIL;
		atomic_init(&pool->desc[i].block, UINT64_MAX);
		pool->free[i] =
			pool->frames - 1 - i; /* the lowest on top: neighbours in memory are given out together */
	}
	pool->nfree = pool->frames;
	atomic_init(&pool->memory, sizeof(*pool) + bytes + pool->desc_len + pool->free_len);
	return 0;
}

int buffer_pool_create(const struct buffer_pool_params *params, struct buffer_pool **out, struct bc_error *err)
{
	uint32_t bs = params->block_size;
	unsigned percent = params->dirty_percent ? params->dirty_percent : 50;
	uint64_t headroom;
	uint64_t frames;
	struct buffer_pool *pool;
	int rc;

	if (bs < 512 || bs > 65536 || (bs & (bs - 1)))
		return bc_fail(err, -EINVAL, "buffer block size %u: must be a power of two from 512 to 65536", bs);
	frames = params->memory / bs;
	if (frames < MIN_FRAMES || frames > INT32_MAX)
		return bc_fail(err, -EINVAL, "%llu bytes of RAM buffers: must hold %u to %d blocks of %u bytes",
			       (unsigned long long)params->memory, MIN_FRAMES, INT32_MAX, bs);
	if (percent > 100)
		return bc_fail(err, -EINVAL, "dirty share of %u %%: must be at most 100", percent);
	pool = aligned_alloc(64, (sizeof(*pool) + 63) & ~(size_t)63);
	if (!pool)
		return bc_fail(err, -ENOMEM, "no memory for a buffer pool");
	memset(pool, 0, sizeof(*pool));
	pool->frames = (uint32_t)frames;
	pool->block_size = bs;
	pool->block_shift = (unsigned)__builtin_ctz(bs);
	/* Half of a small pool. A large one may be dirtier: what is written again meanwhile is then written once. */
	headroom = DIRTY_HEADROOM / bs;
	pool->dirty_limit = params->dirty_percent || frames / 2 < headroom ? (uint32_t)(frames * percent / 100)
									   : (uint32_t)(frames - headroom);
	pool->wait_tail = &pool->wait_head;
	pthread_mutex_init(&pool->lock, NULL);
	rc = frames_map(pool, frames << pool->block_shift, params->shared_fd, err);
	if (!rc && params->lock_memory &&
	    (mlock(pool->desc[0].data, (size_t)pool->frames << pool->block_shift) ||
	     mlock(pool->desc_map, pool->desc_len))) {
		rc = bc_fail(err, -errno,
			     "cannot lock %llu bytes of RAM buffers in memory: %s; raise the limit (ulimit -l) or do "
			     "not lock",
			     (unsigned long long)(((uint64_t)pool->frames << pool->block_shift) + pool->desc_len),
			     strerror(errno));
	}
	if (rc) {
		buffer_pool_destroy(pool);
		return rc;
	}
	*out = pool;
	return 0;
}

uint64_t buffer_pool_lock(struct buffer_pool *pool, uint64_t *all)
{
	uint64_t data = (uint64_t)pool->frames << pool->block_shift, locked = 0;

	*all = data + pool->desc_len + pool->free_len;
	locked += mlock(pool->desc_map, pool->desc_len) ? 0 : pool->desc_len;
	locked += mlock(pool->free_map, pool->free_len) ? 0 : pool->free_len;
	locked += mlock(pool->desc[0].data, data) ? 0 : data;
	return locked;
}

void buffer_pool_destroy(struct buffer_pool *pool)
{
	if (!pool)
		return;
	unmap(pool->data_map, pool->data_len);
	unmap(pool->desc_map, pool->desc_len);
	unmap(pool->free_map, pool->free_len);
	pthread_mutex_destroy(&pool->lock);
	free(pool);
}

uint64_t buffer_pool_memory(const struct buffer_pool *pool)
{
	return atomic_load(&pool->memory);
}

/* Makes a frame free if it is clean and unpinned. */
static bool evict(struct buffer_pool *pool, struct buffer *b)
{
	uint64_t block = buffer_block_relaxed(b), s;
	struct buffer_client *c = b->client;
	struct group *g = group_of(c, block);
	bool done;

	group_lock(g);
	s = atomic_load(&b->state);
	/* its block may have changed before we had the lock of what was its group */
	done = state_evictable(s) && buffer_block_relaxed(b) == block &&
	       atomic_compare_exchange_strong(&b->state, &s, 0);
	if (done)
		chain_unlink_locked(c, b);
	group_unlock(g);
	if (!done)
		return false;
	c->frames--;
	pool->free[pool->nfree] = b->index;
	__atomic_store_n(&pool->nfree, pool->nfree + 1, __ATOMIC_RELAXED); /* buffer_pool_unused looks */
	atomic_fetch_add_explicit(&c->evictions, 1, memory_order_relaxed);
	return true;
}

void buffer_evict(struct buffer_client *c, const uint32_t *blocks, unsigned n)
{
	struct buffer_pool *pool = c->pool;

	pthread_mutex_lock(&pool->lock);
	for (unsigned i = 0; i < n; i++) {
		struct buffer *b = buffer_find(c, blocks[i]);

		if (b)
			evict(pool, b); /* if it still is that block's, and may go */
	}
	if (pool->wait_head)
		pool_serve(pool);
	pthread_mutex_unlock(&pool->lock);
}

/* The clock: moves up to `want` clean unpinned frames to the free stack. */
static void reclaim(struct buffer_pool *pool, uint64_t want)
{
	bool any = false;

	/* two rounds: the first may only clear REF; there is no second if not even that happened */
	for (uint64_t step = 0; step < 2 * (uint64_t)pool->frames && want; step++) {
		struct buffer *b = &pool->desc[pool->hand];
		uint64_t s = atomic_load_explicit(&b->state, memory_order_seq_cst);

		pool->hand = pool->hand + 1 == pool->frames ? 0 : pool->hand + 1;
		if (step == pool->frames && !any)
			break;
		if (!state_evictable(s))
			continue;
		any = true;
		if (s & ST_REF)
			atomic_fetch_and_explicit(&b->state, ~ST_REF, memory_order_relaxed);
		else if (evict(pool, b))
			want--;
	}
}

static uint64_t shortage(const struct buffer_pool *pool)
{
	return pool->needed > pool->nfree ? pool->needed - pool->nfree : 0;
}

int pool_join(struct buffer_pool *pool, struct buffer_client *c, struct bc_error *err)
{
	int rc = 0;

	pthread_mutex_lock(&pool->lock);
	if (pool->client)
		rc = bc_fail(err, -EBUSY, "the buffer pool serves %s already", bdev_spec(pool->client->bdev));
	else
		pool->client = c;
	if (!rc)
		atomic_fetch_add(&pool->memory, sizeof(*c) + c->mem_len);
	pthread_mutex_unlock(&pool->lock);
	return rc;
}

void pool_leave(struct buffer_pool *pool, struct buffer_client *c)
{
	pthread_mutex_lock(&pool->lock);
	pool->client = NULL;
	atomic_fetch_sub(&pool->memory, sizeof(*c) + c->mem_len);
	pthread_mutex_unlock(&pool->lock);
}

static int take(struct buffer_pool *pool, struct buffer_client *c, struct buffer **out, unsigned n)
{
	if (pool->nfree < n)
		return -EAGAIN;
	for (unsigned i = 0; i < n; i++) {
		struct buffer *b = &pool->desc[pool->free[pool->nfree - 1]];

		__atomic_store_n(&pool->nfree, pool->nfree - 1, __ATOMIC_RELAXED);

		b->client = c;
		atomic_store_explicit(&b->block, UINT64_MAX, memory_order_relaxed);
		atomic_store(&b->state, ST_USED | 1);
		out[i] = b;
	}
	c->frames += n;
	return 0;
}

static void finish_waiter(struct buffer_pool *pool, struct waiter **link, int result)
{
	struct waiter *w = *link;

	*link = w->next;
	if (!w->next)
		pool->wait_tail = link;
	w->result = result;
	pool->needed -= w->n;
	atomic_fetch_sub(&pool->nwaiters, 1);
	pthread_cond_signal(&w->cond);
}

/* In order: a waiter that is not served blocks those that come later, or a large request would starve. */
void pool_serve(struct buffer_pool *pool)
{
	while (pool->wait_head && take(pool, pool->client, pool->wait_head->out, pool->wait_head->n) == 0)
		finish_waiter(pool, &pool->wait_head, 0);
}

static int wait_for_frames(struct buffer_pool *pool, struct buffer **out, unsigned n)
{
	struct waiter w = { .out = out, .n = n, .result = -EINPROGRESS, .cond = PTHREAD_COND_INITIALIZER };
	/* a waiter before us has found nothing, and what became clean since was handed over: no use in searching again
	 */
	bool search = !shortage(pool) || !pool->wait_head;

	*pool->wait_tail = &w;
	pool->wait_tail = &w.next;
	pool->needed += n;
	atomic_fetch_add(&pool->nwaiters, 1); /* before the search: pairs with release_one() */
	if (search)
		reclaim(pool, shortage(pool));
	pool_serve(pool);
	if (w.result == -EINPROGRESS && atomic_load(&pool->client->dirty) > 0)
		writer_kick(pool->client);
	if (w.result == -EINPROGRESS)
		about_to_wait();
	while (w.result == -EINPROGRESS)
		pthread_cond_wait(&w.cond, &pool->lock);
	pthread_cond_destroy(&w.cond);
	return w.result;
}

/*
 * Frames that are neighbours in memory, in huge pages moreover, are one piece to a device and one to copy; a piece may
 * cost a descriptor of the few that a device has (virtio: 256 for all that is in flight). What was given out together
 * mostly comes back together, in some order. Shell's sort: short, in place, and quick on what is nearly sorted.
 */
static void sort_frames(struct buffer **b, unsigned n)
{
	static const unsigned gaps[] = { 57, 23, 10, 4, 1 };

	for (unsigned g = 0; g < sizeof(gaps) / sizeof(gaps[0]); g++) {
		unsigned gap = gaps[g];

		for (unsigned i = gap; i < n; i++) {
			struct buffer *x = b[i];
			unsigned j = i;

			for (; j >= gap && b[j - gap]->index > x->index; j -= gap)
				b[j] = b[j - gap];
			b[j] = x;
		}
	}
}

int buffer_alloc(struct buffer_client *c, struct buffer **out, unsigned n, bool wait)
{
	struct buffer_pool *pool = c->pool;
	int rc = -EAGAIN;

	if (n > pool->frames / 4)
		return -EINVAL;
	pthread_mutex_lock(&pool->lock);
	if (!pool->wait_head) { /* else it is the waiters' turn */
		uint32_t have = pool->nfree;

		/* all dirty or free: spare the walk. (dirty may read too high for a moment; who waits searches again.)
		 */
		if (have < n && (int64_t)pool->nfree + atomic_load(&c->dirty) < (int64_t)pool->frames)
			reclaim(pool, n - have);
		rc = take(pool, c, out, n);
	}
	if (rc == -EAGAIN && wait)
		rc = wait_for_frames(pool, out, n);
	pthread_mutex_unlock(&pool->lock);
	if (!rc && n > 1)
		sort_frames(out, n);
	return rc;
}

void pool_give_back(struct buffer_pool *pool, const uint32_t *frames, unsigned n)
{
	pthread_mutex_lock(&pool->lock);
	for (unsigned i = 0; i < n; i++) {
		struct buffer *b = &pool->desc[frames[i]];

		b->client->frames--;
		atomic_store(&b->state, 0);
		pool->free[pool->nfree] = frames[i];
		__atomic_store_n(&pool->nfree, pool->nfree + 1, __ATOMIC_RELAXED);
	}
	if (pool->wait_head)
		pool_serve(pool);
	pthread_mutex_unlock(&pool->lock);
}

void pool_offer(struct buffer_pool *pool, const uint32_t *frames, unsigned n)
{
	pthread_mutex_lock(&pool->lock);
	for (unsigned i = 0; i < n && shortage(pool); i++) {
		struct buffer *b = &pool->desc[frames[i]];

		if (state_evictable(atomic_load(&b->state))) /* by now it may be anything */
			evict(pool, b);
	}
	if (pool->wait_head)
		pool_serve(pool);
	pthread_mutex_unlock(&pool->lock);
}

/*
 * A round ended. If it wrote nothing because of errors, the waiters might wait for ever: they get -EIO. (Should a
 * pinned frame have come free for them later, so be it: the device is failing.)
 */
void pool_client_round(struct buffer_client *c, bool stuck)
{
	struct buffer_pool *pool = c->pool;

	pthread_mutex_lock(&pool->lock);
	while (stuck && pool->wait_head)
		finish_waiter(pool, &pool->wait_head, -EIO);
	pthread_mutex_unlock(&pool->lock);
}

uint32_t buffer_pool_unused(const struct buffer_pool *pool)
{
	return __atomic_load_n(&pool->nfree, __ATOMIC_RELAXED);
}
