/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * writer.c - when rounds are run, and by whom: the client's writer thread, and buffer_write_dirty in its forms.
 *
 * Generations: who wants everything written takes the next number (`asked`). A round covers the numbers given out
 * before it started; `done` is the highest covered by a finished round. One thread at a time has the role `draining`. A
 * round on the writer thread starts when it was asked for one, or on its own when the pool is over its dirty limit or
 * somebody waits for a frame; then it writes all there is, and what became dirty meanwhile is left to gather again.
 *
 * Errors: a round that failed is numbered (error_seq). buffer_write_dirty reports any failure that happened during its
 * call to each caller (P6: nobody may believe his blocks were written), and one that happened before to the first who
 * asks. After a round that could write nothing, rounds of the writer's own accord pause, longer each time; those asked
 * for do not.
 */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "buffer/internal.h"

uint64_t clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void wait_until(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t ns)
{
	struct timespec ts = { .tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u) };

	pthread_cond_clockwait(cond, lock, CLOCK_MONOTONIC, &ts);
}

void client_notify(struct buffer_client *c)
{
	/* pairs with wait_not_writing(): the state was changed before this load, write_waiters before the state is
	 * looked at there */
	if (!atomic_load(&c->write_waiters))
		return;
	pthread_mutex_lock(&c->lock);
	pthread_cond_broadcast(&c->cond);
	pthread_mutex_unlock(&c->lock);
}

void writer_kick(struct buffer_client *c)
{
	if (atomic_load(&c->kick) || atomic_exchange(&c->kick, true))
		return;
	pthread_mutex_lock(&c->lock);
	pthread_cond_signal(&c->wake);
	pthread_mutex_unlock(&c->lock);
}

/* Is a round due without anybody having asked? */
static bool round_due(struct buffer_client *c)
{
	struct buffer_pool *pool = c->pool;

	return atomic_load(&c->dirty) > 0 &&
	       (atomic_load(&c->dirty) > pool->dirty_limit || atomic_load(&pool->nwaiters));
}

/* c->lock held and nobody draining; unlocks it during the round. */
static void run_round_locked(struct buffer_client *c, struct bdev_channel *ch)
{
	struct drain *d = &c->drain;
	uint64_t covers = c->asked;
	bool stuck;

	c->draining = true;
	atomic_store(&c->kick, false);
	pthread_mutex_unlock(&c->lock);
	round_run(c, ch);
	stuck = d->failed && !d->ok;
	pool_client_round(c, stuck);
	pthread_mutex_lock(&c->lock);
	if (d->error) {
		c->error = d->error;
		c->error_seq++;
	}
	if (stuck) {
		c->backoff_ns = c->backoff_ns ? 2 * c->backoff_ns : BACKOFF_MIN_NS;
		if (c->backoff_ns > BACKOFF_MAX_NS)
			c->backoff_ns = BACKOFF_MAX_NS;
		c->retry_at_ns = clock_ns() + c->backoff_ns;
	} else {
		c->backoff_ns = c->retry_at_ns = 0;
	}
	c->done = covers;
	c->draining = false;
	if (round_due(c))
		atomic_store(&c->kick, true);
	pthread_cond_broadcast(&c->cond);
	pthread_cond_signal(&c->wake);
}

static void writer_loop(struct buffer_client *c, struct bdev_channel *ch)
{
	pthread_mutex_lock(&c->lock);
	while (!c->stop) {
		if (c->draining) {
			pthread_cond_wait(&c->wake, &c->lock);
		} else if (c->asked_writer > c->done) {
			run_round_locked(c, ch);
		} else if (atomic_load(&c->kick) && !round_due(c)) {
			atomic_store(&c->kick, false);
			if (round_due(c)) /* whoever made it so may have seen our flag still set */
				atomic_store(&c->kick, true);
		} else if (atomic_load(&c->kick) && clock_ns() >= c->retry_at_ns) {
			run_round_locked(c, ch);
		} else if (atomic_load(&c->kick)) {
			wait_until(&c->wake, &c->lock, c->retry_at_ns);
		} else {
			pthread_cond_wait(&c->wake, &c->lock);
		}
	}
	pthread_mutex_unlock(&c->lock);
}

static void *writer_main(void *arg)
{
	struct buffer_client *c = arg;
	struct bdev_channel *ch = bdev_channel_open(c->bdev, BUFFER_WRITE_DEPTH);

	pthread_setname_np(pthread_self(), "buffer-writer");
	pthread_mutex_lock(&c->lock);
	c->start_result = ch ? 0 : -errno;
	c->started = true;
	pthread_cond_broadcast(&c->cond);
	pthread_mutex_unlock(&c->lock);
	if (ch)
		writer_loop(c, ch);
	bdev_channel_close(ch);
	return NULL;
}

/* The channel is opened by the thread that uses it: a ring may be bound to its thread. */
int writer_start(struct buffer_client *c, struct bc_error *err)
{
	int rc = -pthread_create(&c->thread, NULL, writer_main, c);

	if (rc)
		return bc_fail(err, rc, "cannot start the writer thread of %s: %s", bdev_spec(c->bdev), strerror(-rc));
	pthread_mutex_lock(&c->lock);
	while (!c->started)
		pthread_cond_wait(&c->cond, &c->lock);
	rc = c->start_result;
	pthread_mutex_unlock(&c->lock);
	if (rc) {
		pthread_join(c->thread, NULL);
		return bc_fail(err, rc, "cannot open a channel to %s: %s", bdev_spec(c->bdev), strerror(-rc));
	}
	return 0;
}

void writer_stop(struct buffer_client *c)
{
	pthread_mutex_lock(&c->lock);
	c->stop = true;
	pthread_cond_signal(&c->wake);
	pthread_mutex_unlock(&c->lock);
	pthread_join(c->thread, NULL);
}

void buffer_write_dirty_async(struct buffer_client *c)
{
	pthread_mutex_lock(&c->lock);
	c->asked_writer = ++c->asked;
	pthread_cond_signal(&c->wake);
	pthread_mutex_unlock(&c->lock);
}

/* What the caller has to know; error_seq was `before` when his call began. */
static int report_locked(struct buffer_client *c, uint64_t before)
{
	if (c->error_seq == before && c->error_seq == c->reported_seq)
		return 0;
	c->reported_seq = c->error_seq;
	return c->error;
}

int buffer_write_dirty_on(struct buffer_client *c, struct bdev_channel *ch)
{
	uint64_t mine, before;
	int rc;

	pthread_mutex_lock(&c->lock);
	before = c->error_seq;
	if (atomic_load(&c->dirty) > 0) {
		mine = ++c->asked;
		if (!ch) {
			c->asked_writer = mine;
			pthread_cond_signal(&c->wake);
		}
		while (c->done < mine) {
			if (ch && !c->draining)
				run_round_locked(c, ch);
			else
				pthread_cond_wait(&c->cond, &c->lock);
		}
	}
	rc = report_locked(c, before);
	pthread_mutex_unlock(&c->lock);
	return rc;
}

int buffer_write_dirty(struct buffer_client *c)
{
	return buffer_write_dirty_on(c, NULL);
}
