/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * client.c - creating, destroying and watching a client. Its arrays lie in one mapping, taken when it is created.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "buffer/internal.h"

/* Carves the arrays out of the mapping; with base 0 only counts. */
static size_t layout(struct buffer_client *c, uintptr_t base)
{
	const struct buffer_pool *pool = c->pool;
	struct drain *d = &c->drain;
	uint32_t batch = pool->frames < BATCH_FRAMES ? pool->frames : BATCH_FRAMES;
	size_t at = 0;

#define CARVE(ptr, count)                                                                                              \
	do {                                                                                                           \
		(ptr) = (void *)(base + at);                                                                           \
		at += ((size_t)(count) * sizeof(*(ptr)) + 63) & ~(size_t)63;                                           \
	} while (0)
	CARVE(c->groups, c->ngroups);
	for (unsigned g = 0; g < 2; g++) {
		CARVE(c->dirty_map[g].word, c->top_words * 64); /* whole top words: collect() need not check */
		CARVE(c->dirty_map[g].top, c->top_words);
	}
	CARVE(d->ent, batch);
	CARVE(d->tmp, batch);
	CARVE(d->redo, batch);
	CARVE(d->give, d->max_blocks);
	for (unsigned i = 0; i < BUFFER_WRITE_DEPTH; i++) {
		CARVE(d->io[i].frames, d->max_blocks);
		CARVE(d->io[i].iov, d->max_blocks);
	}
#undef CARVE
	return at;
}

static int client_memory(struct buffer_client *c, struct bc_error *err)
{
	struct buffer_pool *pool = c->pool;
	struct drain *d = &c->drain;
	unsigned bits = 1;

	while ((1u << bits) * 8u < pool->frames)
		bits++;
	c->ngroups = 1u << bits; /* 4 to 8 frames for 11 heads */
	c->group_shift = 64 - bits;
	c->map_words = (pool->frames + 63) / 64;
	c->top_words = (c->map_words + 63) / 64;
	d->max_blocks = WRITE_BYTES / pool->block_size;
	if (d->max_blocks > BDEV_MAX_IOV)
		d->max_blocks = BDEV_MAX_IOV;
	c->mem_len = layout(c, 0);
	c->mem = map_memory(c->mem_len);
	if (!c->mem || populate_memory(c->mem, c->mem_len))
		return bc_fail(err, -ENOMEM, "no memory for the buffers of %s: %zu bytes are needed",
			       bdev_spec(c->bdev), c->mem_len);
	layout(c, (uintptr_t)c->mem);
	for (uint32_t i = 0; i < c->ngroups; i++)
		memset(c->groups[i].head, 0xff, sizeof(c->groups[i].head)); /* NIL */
	d->client = c;
	for (unsigned i = 0; i < BUFFER_WRITE_DEPTH; i++) {
		d->io[i].drain = d;
		d->io[i].next_free = d->free_io;
		d->free_io = &d->io[i];
	}
	return 0;
}

int buffer_client_create(struct buffer_pool *pool, struct bdev *bdev, struct buffer_client **out, struct bc_error *err)
{
	struct buffer_client *c = aligned_alloc(64, (sizeof(*c) + 63) & ~(size_t)63);
	int rc;

	if (!c)
		return bc_fail(err, -ENOMEM, "no memory for the buffers of %s", bdev_spec(bdev));
	memset(c, 0, sizeof(*c));
	c->pool = pool;
	c->desc = pool->desc;
	c->bdev = bdev;
	pthread_mutex_init(&c->lock, NULL);
	pthread_cond_init(&c->wake, NULL);
	pthread_cond_init(&c->cond, NULL);
	rc = client_memory(c, err);
	if (rc)
		goto out;
	rc = pool_join(pool, c, err);
	if (rc)
		goto out;
	rc = writer_start(c, err);
	if (rc)
		pool_leave(pool, c);
out:
	if (rc) {
		if (c->mem)
			munmap(c->mem, c->mem_len);
		free(c);
		return rc;
	}
	*out = c;
	return 0;
}

void buffer_client_destroy(struct buffer_client *c)
{
	struct buffer_pool *pool;

	if (!c)
		return;
	pool = c->pool;
	writer_stop(c);
	for (uint32_t i = 0; i < pool->frames; i++) {
		struct buffer *b = &pool->desc[i];
		uint64_t s = atomic_load(&b->state);

		if (!s)
			continue;
		assert(!(s & ST_PINS) && "buffer_client_destroy: a buffer is still pinned");
		buffer_forget(c, buffer_block_relaxed(b), 1);
	}
	pool_leave(pool, c);
	pthread_mutex_destroy(&c->lock);
	pthread_cond_destroy(&c->wake);
	pthread_cond_destroy(&c->cond);
	munmap(c->mem, c->mem_len);
	free(c);
}

/* Walks the frames and the groups: for people and monitoring, not for the request path. */
void buffer_get_stats(const struct buffer_client *c, struct buffer_stats *s)
{
	struct buffer_pool *pool = c->pool;

	*s = (struct buffer_stats){ .dirty = (uint64_t)atomic_load(&c->dirty),
				    .evictions = atomic_load(&c->evictions),
				    .writes = atomic_load(&c->writes),
				    .write_errors = atomic_load(&c->write_errors),
				    .blocks_written = atomic_load(&c->blocks_written) };
	for (uint32_t i = 0; i < pool->frames; i++) {
		uint64_t state = atomic_load_explicit(&pool->desc[i].state, memory_order_relaxed);

		if (!state)
			continue;
		s->frames++;
		s->pinned += (state & ST_PINS) != 0;
	}
	for (uint32_t i = 0; i < c->ngroups; i++) {
		group_lock(&c->groups[i]);
		s->hits += c->groups[i].hits;
		s->misses += c->groups[i].misses;
		group_unlock(&c->groups[i]);
	}
}
