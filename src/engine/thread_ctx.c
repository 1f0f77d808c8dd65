/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * thread_ctx.c - what each thread that makes I/O calls owns: its channels, bounce memory and work arrays. Made before
 * the thread (cache_worker_make) or at its first call, freed when the thread ends or the cache is closed, so that
 * nothing is allocated while serving requests but channels to volumes, which are small.
 */
#include "engine/cache.h"

#include <errno.h>
#include <stdlib.h>

static void thread_free(struct thread_ctx *t)
{
	bdev_channel_close(t->data_ch);
	for (unsigned i = 0; i < t->nbacking; i++)
		bdev_channel_close(t->backing_ch[i]);
	free(t->backing_ch);
	free(t->bounce_small);
	bounce_give(&t->cache->bounce, t->bounce_large);
	free(t);
}

/* the destructor of io_key */
static void thread_exit(void *arg)
{
	struct thread_ctx *t = arg;
	struct cache *c = t->cache;

	pthread_mutex_lock(&c->threads_lock);
	if (t->prev)
		t->prev->next = t->next;
	else
		c->threads = t->next;
	if (t->next)
		t->next->prev = t->prev;
	/* under the lock: once thread_ctx_forget_volume is through, no channel to the volume may be left */
	thread_free(t);
	pthread_mutex_unlock(&c->threads_lock);
}

int thread_ctx_init(struct cache *c)
{
	pthread_mutex_init(&c->threads_lock, NULL);
	bounce_init(&c->bounce);
	return -pthread_key_create(&c->io_key, thread_exit);
}

void thread_ctx_destroy(struct cache *c)
{
	pthread_key_delete(c->io_key);
	while (c->threads) {
		struct thread_ctx *t = c->threads;

		c->threads = t->next;
		thread_free(t);
	}
	bounce_destroy(&c->bounce);
	pthread_mutex_destroy(&c->threads_lock);
}

static struct thread_ctx *thread_make(struct cache *c)
{
	struct thread_ctx *t = calloc(1, sizeof *t);

	if (!t)
		return NULL;
	t->cache = c;
	t->bounce_small = aligned_alloc(CACHE_BLOCK, BOUNCE_SMALL * CACHE_BLOCK);
	t->bounce_large = bounce_take(&c->bounce);
	if (!t->bounce_small || !t->bounce_large)
		goto fail;
	t->data_ch = bdev_channel_open(c->data, 0);
	if (t->data_ch)
		return t;
fail:
	thread_free(t);
	return NULL;
}

/* The calling thread's from now on. */
static int thread_adopt(struct thread_ctx *t)
{
	struct cache *c = t->cache;

	if (pthread_setspecific(c->io_key, t)) {
		thread_free(t);
		return -ENOMEM;
	}
	pthread_mutex_lock(&c->threads_lock);
	t->next = c->threads;
	if (t->next)
		t->next->prev = t;
	c->threads = t;
	pthread_mutex_unlock(&c->threads_lock);
	return 0;
}

struct thread_ctx *thread_ctx_get(struct cache *c)
{
	struct thread_ctx *t = pthread_getspecific(c->io_key);

	if (t)
		return t;
	t = thread_make(c);
	return t && !thread_adopt(t) ? t : NULL;
}

/* struct cache_worker is struct thread_ctx, under a name that says nothing. */
struct cache_worker *cache_worker_make(struct cache *c)
{
	return (struct cache_worker *)thread_make(c);
}

int cache_worker_begin(struct cache_worker *w)
{
	return thread_adopt((struct thread_ctx *)w);
}

void cache_worker_drop(struct cache_worker *w)
{
	if (w)
		thread_free((struct thread_ctx *)w);
}

struct bdev_channel *thread_ctx_backing(struct thread_ctx *t, struct volume *v)
{
	if (v->id >= t->nbacking) {
		unsigned n = v->id + 8;
		struct bdev_channel **p;

		/* thread_ctx_forget_volume walks the array from another thread */
		pthread_mutex_lock(&t->cache->threads_lock);
		p = realloc(t->backing_ch, n * sizeof *p);
		if (p) {
			for (unsigned i = t->nbacking; i < n; i++)
				p[i] = NULL;
			t->backing_ch = p;
			t->nbacking = n;
		}
		pthread_mutex_unlock(&t->cache->threads_lock);
		if (!p)
			return NULL;
	}
	if (!t->backing_ch[v->id])
		t->backing_ch[v->id] = bdev_channel_open(v->bdev, 0);
	return t->backing_ch[v->id];
}

void thread_ctx_forget_volume(struct cache *c, struct volume *v)
{
	pthread_mutex_lock(&c->threads_lock);
	for (struct thread_ctx *t = c->threads; t; t = t->next) {
		if (v->id < t->nbacking) {
			bdev_channel_close(t->backing_ch[v->id]);
			t->backing_ch[v->id] = NULL;
		}
	}
	pthread_mutex_unlock(&c->threads_lock);
}
