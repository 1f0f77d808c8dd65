/* SPDX-License-Identifier: BSD-3-Clause */
/* patience.c - see patience.h. One lock for all: it is held for moments only. */
#include "util/patience.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

#include "util/deadline.h"

#define STACK_BYTES (512u << 10)
#define TICK_US 100000

struct call {
	void (*fn)(void *arg);
	void (*late)(void *arg);
	void *arg;
	bool done; /* by its thread */
	bool left; /* by the caller: whoever is second frees it */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t ended; /* some call has */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static unsigned left; /* calls of which left is true and done is not */

static void init(void)
{
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&ended, &attr);
	pthread_condattr_destroy(&attr);
}

static void *call_main(void *p)
{
	struct call *c = p;
	bool mine;

	c->fn(c->arg);
	pthread_mutex_lock(&lock);
	c->done = true;
	mine = c->left;
	if (mine)
		left--;
	else
		pthread_cond_broadcast(&ended);
	pthread_mutex_unlock(&lock);
	if (mine) {
		c->late(c->arg);
		free(c);
	}
	return NULL;
}

static int start(struct call *c)
{
	sigset_t all, old;
	pthread_attr_t attr;
	pthread_t thread;
	int rc;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = pthread_create(&thread, &attr, call_main, c);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	return -rc;
}

/* 0: done. The lock is held. */
static int wait_locked(struct call *c, const struct patience *p)
{
	struct timespec end = deadline_us((p->ms ? p->ms : 1) * 1000ull), tick, now;

	while (!c->done) {
		tick = deadline_us(TICK_US);
		pthread_cond_timedwait(&ended, &lock, &tick);
		if (c->done)
			break;
		if (p->give_up) {
			bool enough;

			pthread_mutex_unlock(&lock);
			enough = p->give_up(p->ctx);
			pthread_mutex_lock(&lock);
			if (enough && !c->done)
				return -EINTR;
		}
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (p->ms && !c->done &&
		    (now.tv_sec > end.tv_sec || (now.tv_sec == end.tv_sec && now.tv_nsec >= end.tv_nsec)))
			return -ETIMEDOUT;
	}
	return 0;
}

int run_patiently(void (*fn)(void *arg), void *arg, void (*late)(void *arg), const struct patience *p)
{
	struct call *c;
	int rc;

	if (!p) {
		fn(arg);
		return 0;
	}
	pthread_once(&once, init);
	c = calloc(1, sizeof(*c));
	if (!c || patience_left() >= PATIENCE_MAX_LEFT) {
		free(c);
		return -EAGAIN;
	}
	*c = (struct call){ .fn = fn, .late = late, .arg = arg };
	if (start(c)) {
		free(c);
		return -EAGAIN;
	}
	pthread_mutex_lock(&lock);
	rc = wait_locked(c, p);
	if (rc) {
		c->left = true;
		left++;
	}
	pthread_mutex_unlock(&lock);
	if (!rc)
		free(c);
	return rc;
}

unsigned patience_left(void)
{
	unsigned n;

	pthread_mutex_lock(&lock);
	n = left;
	pthread_mutex_unlock(&lock);
	return n;
}
