/* SPDX-License-Identifier: BSD-3-Clause */
/* lines.c - memory and free list of the line table (see lines.h for the layout and the locks). */
#include "engine/map/lines.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define STRIPES_MAX 512u

static uint32_t groups_for(uint32_t n)
{
	/* one bucket head per two entries */
	uint32_t g = n / 32;

	return g ? g : 1;
}

static void *map(uint64_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

uint64_t lines_bytes(uint32_t n, uint32_t bpl)
{
	return (uint64_t)n * (sizeof(uint64_t) + sizeof(uint32_t)) + (uint64_t)groups_for(n) * 16 * sizeof(uint32_t) +
	       (uint64_t)n * bpl * sizeof(struct journal_block) + (bpl > 1 ? (uint64_t)n * 6 : 0) +
	       STRIPES_MAX * sizeof(struct lines_stripe);
}

static void stripe_init(struct lines_stripe *s)
{
	pthread_mutex_init(&s->lock, NULL);
	atomic_init(&s->seq, 0);
}

int lines_init(struct lines *l, uint32_t n, uint32_t bpl)
{
	memset(l, 0, sizeof *l);
	l->n = n;
	l->bpl = bpl;
	l->bpl_shift = (uint32_t)__builtin_ctz(bpl);
	l->ngroups = groups_for(n);
	l->nstripes = STRIPES_MAX;
	while (l->nstripes > 1 && l->nstripes > l->ngroups)
		l->nstripes /= 2;
	l->bytes = lines_bytes(n, bpl);
	l->key = map(n * sizeof *l->key);
	l->next = map(n * sizeof *l->next);
	l->head = map((uint64_t)l->ngroups * 16 * sizeof *l->head);
	l->blk = map((uint64_t)n * bpl * sizeof *l->blk);
	if (bpl > 1)
		l->mask = map((uint64_t)n * sizeof *l->mask);
	l->stripes = aligned_alloc(64, l->nstripes * sizeof *l->stripes);
	pthread_mutex_init(&l->free_lock, NULL);
	if (!l->key || !l->next || !l->head || !l->blk || (bpl > 1 && !l->mask) || !l->stripes) {
		l->nstripes = l->stripes ? l->nstripes : 0;
		for (uint32_t i = 0; i < l->nstripes; i++)
			stripe_init(&l->stripes[i]);
		lines_destroy(l);
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < l->nstripes; i++)
		stripe_init(&l->stripes[i]);
	memset(l->head, 0xff, (uint64_t)l->ngroups * 16 * sizeof *l->head);
	for (uint32_t e = 0; e < n; e++)
		l->next[e] = e + 1 < n ? e + 1 : LINE_NONE;
	l->free_head = n ? 0 : LINE_NONE;
	l->nfree = n;
	return 0;
}

void lines_destroy(struct lines *l)
{
	if (l->key)
		munmap((void *)l->key, l->n * sizeof *l->key);
	if (l->next)
		munmap(l->next, l->n * sizeof *l->next);
	if (l->head)
		munmap(l->head, (uint64_t)l->ngroups * 16 * sizeof *l->head);
	if (l->blk)
		munmap(l->blk, (uint64_t)l->n * l->bpl * sizeof *l->blk);
	if (l->mask)
		munmap(l->mask, (uint64_t)l->n * sizeof *l->mask);
	for (uint32_t i = 0; i < l->nstripes; i++)
		pthread_mutex_destroy(&l->stripes[i].lock);
	free(l->stripes);
	pthread_mutex_destroy(&l->free_lock);
	memset(l, 0, sizeof *l);
}

/* Looked at without the lock. */
static void set_link(uint32_t *link, uint32_t e)
{
	__atomic_store_n(link, e, __ATOMIC_RELAXED);
}

static void clear_masks(struct lines *l, uint32_t e)
{
	if (!l->mask)
		return;
	__atomic_store_n(&l->mask[e][0], 0, __ATOMIC_RELAXED);
	l->mask[e][1] = l->mask[e][2] = 0;
}

uint32_t lines_insert(struct line_chain *ch)
{
	struct lines *l = ch->l;
	uint32_t e;

	pthread_mutex_lock(&l->free_lock);
	e = l->free_head;
	if (e != LINE_NONE) {
		l->free_head = l->next[e];
		atomic_fetch_sub_explicit(&l->nfree, 1, memory_order_relaxed);
	}
	pthread_mutex_unlock(&l->free_lock);
	if (e == LINE_NONE)
		return LINE_NONE;
	lines_set_word(l, e, ch->key | (lines_word(l, e) & LINE_CHANGED));
	clear_masks(l, e);
	set_link(&l->next[e], l->head[ch->bucket]);
	set_link(&l->head[ch->bucket], e);
	return e;
}

void lines_remove(struct line_chain *ch, uint32_t e)
{
	struct lines *l = ch->l;
	uint32_t *link = &l->head[ch->bucket];

	while (*link != e)
		link = &l->next[*link];
	set_link(link, l->next[e]);
	/* volume 0 = free; keep CHANGED, its record is still owed */
	lines_set_word(l, e, lines_word(l, e) & LINE_CHANGED);
	clear_masks(l, e);
	pthread_mutex_lock(&l->free_lock);
	set_link(&l->next[e], l->free_head);
	l->free_head = e;
	atomic_fetch_add_explicit(&l->nfree, 1, memory_order_relaxed);
	pthread_mutex_unlock(&l->free_lock);
}

void lines_insert_at(struct line_chain *ch, uint32_t e)
{
	struct lines *l = ch->l;

	lines_set_word(l, e, ch->key);
	set_link(&l->next[e], l->head[ch->bucket]);
	set_link(&l->head[ch->bucket], e);
}

void lines_rebuild_free(struct lines *l)
{
	uint32_t nfree = 0;

	l->free_head = LINE_NONE;
	for (uint32_t e = l->n; e-- > 0;) {
		if (lines_word(l, e) & LINE_KEY_MASK)
			continue;
		l->next[e] = l->free_head;
		l->free_head = e;
		nfree++;
	}
	l->nfree = nfree;
}
