/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * jobs.c - threads that sleep until they are kicked or their period is over. What they do is in work/threads.c; here
 * they are started, woken and stopped.
 */
#include "engine/cache.h"

#include <errno.h>
#include <string.h>

#include "util/deadline.h"

/* Sleeps until kicked or for `us`. False: stop. */
bool job_wait(struct cache *c, enum background_job job, uint64_t us)
{
	struct background *bg = &c->background;
	struct timespec until = deadline_us(us);
	bool go;

	pthread_mutex_lock(&bg->lock);
	while (!bg->wanted[job] && !bg->stop)
		if (pthread_cond_timedwait(&bg->wake[job], &bg->lock, &until))
			break;
	__atomic_store_n(&bg->wanted[job], false, __ATOMIC_RELAXED);
	go = !bg->stop;
	pthread_mutex_unlock(&bg->lock);
	return go;
}

void job_pause(struct cache *c, uint64_t us)
{
	for (uint64_t slept = 0; slept < us && !__atomic_load_n(&c->background.stop, __ATOMIC_RELAXED); slept += 10000)
		nanosleep(&(struct timespec){ .tv_nsec = (us < 10000 ? (long)us : 10000) * 1000 }, NULL);
}

bool jobs_stopping(struct cache *c)
{
	return __atomic_load_n(&c->background.stop, __ATOMIC_RELAXED);
}

int jobs_start(struct cache *c, void *(*const mains[JOBS])(void *))
{
	static const char *const names[JOBS] = { "reclaim", "maintain", "clean", "compact" };
	struct background *bg = &c->background;
	pthread_condattr_t attr;

	pthread_mutex_init(&bg->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	for (int i = 0; i < JOBS; i++)
		pthread_cond_init(&bg->wake[i], &attr);
	pthread_condattr_destroy(&attr);
	bg->stop = false;
	for (int i = 0; i < JOBS; i++) {
		int rc = -pthread_create(&bg->thread[i], NULL, mains[i], c);

		if (rc) {
			jobs_stop(c);
			return rc;
		}
		pthread_setname_np(bg->thread[i], names[i]); /* for top -H and perf */
		bg->started++;
	}
	return 0;
}

void jobs_stop(struct cache *c)
{
	struct background *bg = &c->background;

	pthread_mutex_lock(&bg->lock);
	__atomic_store_n(&bg->stop, true, __ATOMIC_RELAXED);
	for (int i = 0; i < JOBS; i++)
		pthread_cond_broadcast(&bg->wake[i]);
	pthread_mutex_unlock(&bg->lock);
	for (unsigned i = 0; i < bg->started; i++)
		pthread_join(bg->thread[i], NULL);
	bg->started = 0;
	for (int i = 0; i < JOBS; i++)
		pthread_cond_destroy(&bg->wake[i]);
	pthread_mutex_destroy(&bg->lock);
}

void jobs_fold_journal(struct cache *c)
{
	struct bc_error err;
	int rc = 1;

	while (rc == 1 && !c->background.started && !c->failed)
		rc = journal_maintain(c->journal, ctr_get(c->epoch.data_upto), &err);
}

void job_kick(struct cache *c, enum background_job job)
{
	struct background *bg = &c->background;

	if (__atomic_load_n(&bg->wanted[job], __ATOMIC_RELAXED))
		return;
	pthread_mutex_lock(&bg->lock);
	__atomic_store_n(&bg->wanted[job], true, __ATOMIC_RELAXED);
	pthread_cond_signal(&bg->wake[job]);
	pthread_mutex_unlock(&bg->lock);
}
