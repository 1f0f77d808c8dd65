/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * bounce.c - memory for I/O of threads that have no RAM buffers for it, or want none.
 *
 * In huge pages: to a device a large read into one is one piece, where 128 KiB of small pages are 32. A virtio disk
 * without indirect descriptors has 256 for all that is in flight; seven such reads fill it, and the others wait. A huge
 * page is taken whole at the first touch, so threads share them, and requests of few blocks do not touch them.
 */
#include "engine/cache.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#define HUGE_PAGE (2u << 20)
#define SLICE_BYTES ((size_t)MAX_BLOCKS * CACHE_BLOCK)
#define CHUNK_BYTES ((size_t)8 << 20)
#define CHUNK_SLICES (CHUNK_BYTES / SLICE_BYTES)

struct bounce_chunk {
	struct bounce_chunk *next;
	void *map;
	char *base; /* aligned to huge pages */
	unsigned used; /* a bit per slice */
};

/* lock held */
static struct bounce_chunk *add_chunk(struct bounce *p)
{
	struct bounce_chunk *k = calloc(1, sizeof *k);

	if (!k)
		return NULL;
	k->map = mmap(NULL, CHUNK_BYTES + HUGE_PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (k->map == MAP_FAILED) {
		free(k);
		return NULL;
	}
	k->base = (char *)(((uintptr_t)k->map + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
	madvise(k->base, CHUNK_BYTES, MADV_HUGEPAGE); /* without, it is only slower */
	k->next = p->chunks;
	p->chunks = k;
	return k;
}

char *bounce_take(struct bounce *p)
{
	struct bounce_chunk *k;
	char *slice = NULL;

	pthread_mutex_lock(&p->lock);
	for (k = p->chunks; k && k->used == (1u << CHUNK_SLICES) - 1;)
		k = k->next;
	if (!k)
		k = add_chunk(p);
	if (k) {
		unsigned i = (unsigned)__builtin_ctz(~k->used);

		k->used |= 1u << i;
		slice = k->base + i * SLICE_BYTES;
	}
	pthread_mutex_unlock(&p->lock);
	return slice;
}

void bounce_give(struct bounce *p, char *slice)
{
	pthread_mutex_lock(&p->lock);
	for (struct bounce_chunk *k = p->chunks; slice && k; k = k->next)
		if (slice >= k->base && slice < k->base + CHUNK_BYTES)
			k->used &= ~(1u << ((size_t)(slice - k->base) / SLICE_BYTES));
	pthread_mutex_unlock(&p->lock);
}

void bounce_init(struct bounce *p)
{
	pthread_mutex_init(&p->lock, NULL);
	p->chunks = NULL;
}

void bounce_destroy(struct bounce *p)
{
	while (p->chunks) {
		struct bounce_chunk *k = p->chunks;

		p->chunks = k->next;
		munmap(k->map, CHUNK_BYTES + HUGE_PAGE);
		free(k);
	}
	pthread_mutex_destroy(&p->lock);
}
