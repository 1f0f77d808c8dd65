/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * prefetch.c - threads that read ahead of the streams that request/streams.c has found (readahead.h). The queue is
 * guarded by the pool's lock.
 */
#include "engine/readahead.h"

#include <errno.h>
#include <string.h>

#include "engine/work/work.h"
#include "util/deadline.h"
#include "util/patience.h"

/* Pool's lock held. */
static void job_done(struct readahead_pool *p, struct volume *v)
{
	bool last = !--v->readahead.jobs;

	volume_put(v); /* it may be gone from here on */
	if (last)
		pthread_cond_broadcast(&p->wake);
}

bool readahead_forget(struct volume *v, const struct patience *patience)
{
	struct readahead_pool *p = &v->cache->readahead;
	unsigned kept = 0;
	bool gone;

	pthread_mutex_lock(&p->lock);
	for (unsigned i = 0; i < p->n; i++) {
		struct readahead_job job = p->queue[(p->head + i) % READAHEAD_QUEUE];

		if (job.v == v)
			job_done(p, v);
		else
			p->queue[(p->head + kept++) % READAHEAD_QUEUE] = job;
	}
	p->n = kept;
	while (v->readahead.jobs) {
		struct timespec until = deadline_us(100000);
		bool enough;

		pthread_cond_timedwait(&p->wake, &p->lock, &until);
		if (!patience || !patience->give_up)
			continue;
		pthread_mutex_unlock(&p->lock);
		enough = patience->give_up(patience->ctx);
		pthread_mutex_lock(&p->lock);
		if (enough)
			break;
	}
	gone = !v->readahead.jobs;
	pthread_mutex_unlock(&p->lock);
	return gone;
}

static void *readahead_main(void *arg)
{
	struct cache *c = arg;
	struct readahead_pool *p = &c->readahead;

	pthread_mutex_lock(&p->lock);
	while (!p->stop) {
		struct readahead_job job;

		if (!p->n) {
			pthread_cond_wait(&p->wake, &p->lock);
			continue;
		}
		job = p->queue[p->head];
		p->head = (p->head + 1) % READAHEAD_QUEUE;
		p->n--;
		pthread_mutex_unlock(&p->lock);
		if (volume_fill(job.v, job.off, job.len) == 0)
			readahead_note_cached(job.v, job.off, job.len);
		pthread_mutex_lock(&p->lock);
		job_done(p, job.v);
	}
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

void readahead_pool_init(struct readahead_pool *p)
{
	pthread_condattr_t attr;

	pthread_mutex_init(&p->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&p->wake, &attr);
	pthread_condattr_destroy(&attr);
}

void readahead_pool_destroy(struct readahead_pool *p)
{
	pthread_mutex_destroy(&p->lock);
	pthread_cond_destroy(&p->wake);
}

int readahead_start(struct cache *c)
{
	struct readahead_pool *p = &c->readahead;
	int rc = 0;

	pthread_mutex_lock(&p->lock);
	while (p->started < READAHEAD_THREADS && !rc && !p->stop) {
		rc = -pthread_create(&p->thread[p->started], NULL, readahead_main, c);
		if (!rc)
			pthread_setname_np(p->thread[p->started++], "read-ahead");
	}
	rc = p->started ? 0 : rc; /* fewer do as well */
	pthread_mutex_unlock(&p->lock);
	return rc;
}

void readahead_stop(struct cache *c)
{
	struct readahead_pool *p = &c->readahead;

	pthread_mutex_lock(&p->lock);
	p->stop = true;
	for (; p->n; p->n--, p->head = (p->head + 1) % READAHEAD_QUEUE)
		job_done(p, p->queue[p->head].v);
	pthread_cond_broadcast(&p->wake);
	pthread_mutex_unlock(&p->lock);
	for (unsigned i = 0; i < p->started; i++)
		pthread_join(p->thread[i], NULL);
	p->started = 0;
}
