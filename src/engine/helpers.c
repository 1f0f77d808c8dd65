/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * helpers.c - threads for work that has to wait for a backing device in the background: cleaning a volume, flushing it
 * and clearing its marks (work/threads.c). A device may be slow, or never answer. So each volume has at most one helper
 * at work for it, and a helper that waits keeps no other volume waiting.
 *
 * There are as many threads as there are volumes to be waited for at the moment, not as many as there are volumes: one
 * stays, others are started when there is work and nobody is idle, and end when they have been idle for a while. Up to
 * QUICK_THREADS are started at once. Beyond that a thread is only started when the queue has not moved for a moment
 * (helpers_look): many volumes that are served quickly need few threads, and many that hang get theirs by doubling.
 *
 * Work is noted by volume id, with a reference taken only while it is done, so a queue entry keeps no volume from being
 * removed; if the id is another volume's by then, that one is looked after once more than needed.
 */
#include "engine/cache.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "util/deadline.h"

#define QUICK_THREADS 8u
#define STUCK_NS 100000000u
#define IDLE_US 10000000u
#define HELPER_STACK (512u << 10) /* large things are on the heap; an mlockall'ed daemon pays for stacks in full */

struct helper {
	pthread_t thread;
	struct cache *c;
	struct helper *next; /* ended */
};

/* ---- the threads ---- */

/* The next volume to help, or 0: the thread has nothing to do any more. */
static unsigned take_locked(struct helpers *hp)
{
	while (!hp->n && !hp->stop) {
		struct timespec until = deadline_us(IDLE_US);
		int rc;

		hp->idle++;
		rc = pthread_cond_timedwait(&hp->wake, &hp->lock, &until);
		hp->idle--;
		if (rc && !hp->n && hp->threads > 1)
			return 0;
	}
	if (hp->stop)
		return 0;
	hp->n--;
	hp->taken_ns = now_ns();
	return hp->queue[hp->head++ % CACHE_MAX_VOLUMES];
}

static void queue_locked(struct helpers *hp, unsigned id)
{
	hp->queue[(hp->head + hp->n++) % CACHE_MAX_VOLUMES] = (uint16_t)id;
}

static void *helper_main(void *arg)
{
	struct helper *h = arg;
	struct cache *c = h->c;
	struct helpers *hp = &c->help;
	unsigned id;

	pthread_setname_np(pthread_self(), "helper");
	pthread_mutex_lock(&hp->lock);
	while ((id = take_locked(hp))) {
		unsigned asked = hp->asked[id];

		hp->asked[id] = 0;
		hp->busy[id] = true;
		pthread_mutex_unlock(&hp->lock);
		hp->work(c, id, asked);
		pthread_mutex_lock(&hp->lock);
		hp->busy[id] = false;
		if (hp->asked[id])
			queue_locked(hp, id);
	}
	hp->threads--;
	h->next = hp->ended;
	hp->ended = h;
	pthread_cond_broadcast(&hp->over);
	pthread_mutex_unlock(&hp->lock);
	return NULL;
}

static void join_ended_locked(struct helpers *hp)
{
	while (hp->ended) {
		struct helper *h = hp->ended;

		hp->ended = h->next;
		pthread_join(h->thread, NULL); /* it has let go of the lock, or is about to */
		free(h);
	}
}

static int start_locked(struct cache *c)
{
	struct helpers *hp = &c->help;
	struct helper *h = calloc(1, sizeof *h);
	sigset_t all, old;
	pthread_attr_t attr;
	int rc;

	if (!h)
		return -ENOMEM;
	h->c = c;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, HELPER_STACK);
	rc = -pthread_create(&h->thread, &attr, helper_main, h);
	pthread_attr_destroy(&attr);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (rc)
		free(h);
	else
		hp->threads++;
	return rc;
}

void helper_ask(struct cache *c, unsigned id, unsigned what)
{
	struct helpers *hp = &c->help;

	pthread_mutex_lock(&hp->lock);
	if (hp->threads && !hp->stop) {
		if (!hp->asked[id] && !hp->busy[id]) {
			queue_locked(hp, id);
			if (hp->idle >= hp->n)
				pthread_cond_signal(&hp->wake);
			else if (hp->threads < QUICK_THREADS)
				start_locked(c);
		}
		hp->asked[id] |= (uint8_t)what;
	}
	pthread_mutex_unlock(&hp->lock);
}

void helpers_look(struct cache *c)
{
	struct helpers *hp = &c->help;

	pthread_mutex_lock(&hp->lock);
	join_ended_locked(hp);
	if (hp->n && !hp->idle && !hp->stop && now_ns() - hp->taken_ns > STUCK_NS)
		for (unsigned i = hp->threads < hp->n ? hp->threads : hp->n; i; i--)
			if (start_locked(c))
				break;
	pthread_mutex_unlock(&hp->lock);
}

int helpers_start(struct cache *c, void (*work)(struct cache *c, unsigned id, unsigned what))
{
	struct helpers *hp = &c->help;
	pthread_condattr_t attr;
	int rc;

	memset(hp, 0, sizeof *hp);
	hp->work = work;
	pthread_mutex_init(&hp->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&hp->wake, &attr);
	pthread_condattr_destroy(&attr);
	pthread_cond_init(&hp->over, NULL);
	pthread_mutex_lock(&hp->lock);
	rc = start_locked(c);
	pthread_mutex_unlock(&hp->lock);
	hp->inited = true;
	if (rc)
		helpers_stop(c);
	return rc;
}

void helpers_stop(struct cache *c)
{
	struct helpers *hp = &c->help;

	if (!hp->inited)
		return;
	pthread_mutex_lock(&hp->lock);
	hp->stop = true;
	pthread_cond_broadcast(&hp->wake);
	while (hp->threads)
		pthread_cond_wait(&hp->over, &hp->lock);
	join_ended_locked(hp);
	pthread_mutex_unlock(&hp->lock);
	pthread_cond_destroy(&hp->wake);
	pthread_cond_destroy(&hp->over);
	pthread_mutex_destroy(&hp->lock);
	hp->inited = false;
}
