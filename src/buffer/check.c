/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * check.c - the debug checker: verifies the invariants numbered at the head of buffer.c. For tests, while no other
 * thread uses the pool and no write is in flight (after buffer_write_dirty, with the dirty limit not exceeded). Walks
 * everything; allocates a byte a frame.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "buffer/internal.h"

struct checker {
	struct buffer_pool *pool;
	unsigned bad;
	char *why;
	size_t len;
	uint8_t *seen; /* times a frame was met in free list and chains */
};

static void __attribute__((format(printf, 3, 4))) expect(struct checker *k, bool ok, const char *fmt, ...)
{
	va_list ap;

	if (ok || k->bad++)
		return;
	va_start(ap, fmt);
	vsnprintf(k->why, k->len, fmt, ap);
	va_end(ap);
}

static void check_chains(struct checker *k, struct buffer_client *c)
{
	for (uint32_t n = 0; n < c->ngroups; n++) {
		struct group *g = &c->groups[n];

		expect(k, !g->lock, "group %u is locked", n);
		for (unsigned h = 0; h < HEADS; h++) {
			for (uint32_t i = g->head[h]; i != NIL; i = k->pool->desc[i].next) {
				struct buffer *b = &k->pool->desc[i];
				uint64_t s = b->state, block = b->block;

				if (k->seen[i]++) {
					expect(k, false, "I2: frame %u is in two chains, or a chain is a ring", i);
					break;
				}
				expect(k, s & ST_LINKED, "I2: frame %u is in a chain, but not LINKED", i);
				expect(k, s & ST_USED && b->client == c, "I2: frame %u in a chain is free", i);
				expect(k, group_of(c, block) == g && chain_of(g, block) == &g->head[h],
				       "I2: frame %u is not in the chain of its block %llu", i,
				       (unsigned long long)block);
				for (uint32_t j = b->next; (s & ST_VISIBLE) && j != NIL; j = k->pool->desc[j].next)
					expect(k,
					       k->pool->desc[j].block != block ||
						       !(k->pool->desc[j].state & ST_VISIBLE),
					       "I3: block %llu is visible twice", (unsigned long long)block);
			}
		}
	}
}

static bool in_map(const struct dirty_map *m, uint32_t i)
{
	return (m->word[i / 64] >> (i % 64) & 1) && (m->top[i / 4096] >> (i / 64 % 64) & 1);
}

static void check_frame(struct checker *k, uint32_t i)
{
	struct buffer *b = &k->pool->desc[i];
	uint64_t s = b->state;

	if (!s) {
		expect(k, k->seen[i] == 1, "I1: free frame %u is %u times in list and chains", i, k->seen[i]);
		return;
	}
	expect(k, k->seen[i] == (s & ST_LINKED ? 1 : 0), "I1, I2: frame %u, state %llx, is %u times in list and chains",
	       i, (unsigned long long)s, k->seen[i]);
	expect(k, !(s & ST_VISIBLE) || (s & ST_LINKED), "I2: frame %u is visible but not linked", i);
	expect(k, !(s & ST_DIRTY) || (s & ST_VISIBLE), "I4: frame %u is dirty but not visible", i);
	expect(k, (s & (ST_VISIBLE | ST_WRITING | ST_PINS)), "I4: frame %u is lost", i);
	if ((s & ST_DIRTY) && !(s & ST_WRITING))
		expect(k, in_map(&b->client->dirty_map[0], i) || in_map(&b->client->dirty_map[1], i),
		       "I5: frame %u is dirty but in neither map", i);
}

static void check_client(struct checker *k, struct buffer_client *c)
{
	uint32_t frames = 0;
	int64_t dirty = 0;

	for (uint32_t i = 0; i < k->pool->frames; i++) {
		uint64_t s = k->pool->desc[i].state;

		if (!s)
			continue;
		frames++;
		dirty += (s & (ST_DIRTY | ST_WRITING)) != 0;
	}
	expect(k, frames == c->frames, "I7: %u frames are counted and %u are there", c->frames, frames);
	expect(k, dirty == c->dirty, "I6: %lld dirty ones are counted and %lld are there", (long long)c->dirty,
	       (long long)dirty);
	check_chains(k, c);
}

unsigned buffer_pool_check(struct buffer_pool *pool, char *why, size_t len)
{
	struct checker k = { .pool = pool, .why = why, .len = len, .seen = calloc(pool->frames, 1) };
	uint64_t frames = pool->nfree;

	if (!k.seen)
		return 1;
	why[0] = 0;
	pthread_mutex_lock(&pool->lock);
	for (uint32_t i = 0; i < pool->nfree; i++)
		k.seen[pool->free[i]]++;
	if (pool->client) {
		check_client(&k, pool->client);
		frames += pool->client->frames;
	}
	for (uint32_t i = 0; i < pool->frames; i++)
		check_frame(&k, i);
	expect(&k, frames == pool->frames, "I7: %llu frames of %u are accounted for", (unsigned long long)frames,
	       pool->frames);
	pthread_mutex_unlock(&pool->lock);
	free(k.seen);
	return k.bad;
}
