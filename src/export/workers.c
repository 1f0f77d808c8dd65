/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * workers.c - the threads that receive requests and carry them out.
 *
 * A request is handled from start to end by the worker that received it (straight code, P11: a slow miss occupies one
 * worker and nobody else). Whenever the last idle worker takes a request another one is started, up to the limit;
 * workers never end before the mount does, so a burst pays for its threads once. The kernel wakes the worker that went
 * to sleep last, so the ones beyond the usual depth stay asleep and cost their stack only.
 *
 * The mount is over when the read of /dev/fuse says ENODEV, in every worker. workers_end() ends a connection that is
 * still alive (forced stop; a copy of the mount in another mount namespace): it sends a signal to workers that sit in
 * that read. A worker might enter the read just after the signal, so signals are repeated until all have left. Busy
 * workers get none: their I/O is not to be interrupted.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"
#include "util/log.h"

#define KICK_SIGNAL (SIGRTMIN + 5)
#define KICK_INTERVAL_MS 20

/* Request code keeps its large buffers on the heap; an mlockall'ed daemon pays for stacks in full. */
#define WORKER_STACK (512u << 10)

static void on_kick(int sig)
{
	(void)sig;
}

static void dispatch(struct worker *w)
{
	const struct fuse_in_header *in = w->buf.mem;

	switch (in->opcode) {
	case FUSE_READ:
		data_read(w, in);
		break;
	case FUSE_WRITE:
		data_write(w, in);
		break;
	case FUSE_INTERRUPT:
		/* Requests are not interrupted half-way; the kernel then does not ask again. */
		data_reply_error(w->export, in->unique, -ENOSYS);
		break;
	default:
		fuse_session_process_buf(w->export->session, &w->buf);
	}
}

static bool start_one(struct export *e);

static void maybe_grow(struct export *e)
{
	pthread_mutex_lock(&e->lock);
	if (!e->ending && e->nworkers < e->max_workers && atomic_load(&e->idle) <= 0)
		start_one(e);
	pthread_mutex_unlock(&e->lock);
}

static bool is_forget(const struct worker *w)
{
	const struct fuse_in_header *in = w->buf.mem;

	return in->opcode == FUSE_FORGET || in->opcode == FUSE_BATCH_FORGET;
}

/* Returns when the mount has ended or fuse_session_exit() was called. */
static void serve(struct worker *w)
{
	struct export *e = w->export;
	int res;

	while (!fuse_session_exited(e->session)) {
		atomic_store(&w->receiving, true);
		res = fuse_session_receive_buf(e->session, &w->buf);
		atomic_store(&w->receiving, false);
		if (res == -EINTR || res == -EAGAIN)
			continue;
		if (res <= 0) {
			if (res < 0)
				log_error("%s: reading from /dev/fuse failed: %s", e->mountpoint, strerror(-res));
			break;
		}
		if (is_forget(w)) {
			dispatch(w);
			continue;
		}
		if (atomic_fetch_sub(&e->idle, 1) <= 1)
			maybe_grow(e);
		dispatch(w);
		atomic_fetch_add(&e->idle, 1);
	}
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	struct export *e = w->export;

	serve(w);
	free(w->buf.mem);
	pthread_mutex_lock(&e->lock);
	e->ending = true;
	if (--e->running == 0)
		pthread_cond_broadcast(&e->ended_cond);
	pthread_mutex_unlock(&e->lock);
	return NULL;
}

/* export.lock is held. Workers take no signals but the kick, those are for the daemon's main thread. */
static bool start_one(struct export *e)
{
	struct worker *w = calloc(1, sizeof(*w));
	sigset_t set, old;
	pthread_attr_t attr;
	int rc;

	if (!w)
		return false;
	w->export = e;
	if (e->survive) {
		w->buf.mem = survive_receive_buffer();
		if (!w->buf.mem) {
			free(w);
			return false;
		}
	}
	sigfillset(&set);
	sigdelset(&set, KICK_SIGNAL);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, WORKER_STACK);
	/* Counted before it exists: it may take a request, and need to start the next one, before pthread_create has
	 * returned. */
	atomic_fetch_add(&e->idle, 1);
	pthread_sigmask(SIG_SETMASK, &set, &old);
	rc = pthread_create(&w->thread, &attr, worker_main, w);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	if (rc != 0) {
		log_warn("%s: cannot start worker thread %u: %s", e->mountpoint, e->nworkers + 1, strerror(rc));
		atomic_fetch_sub(&e->idle, 1);
		free(w->buf.mem);
		free(w);
		return false;
	}
	w->next = e->workers;
	e->workers = w;
	e->nworkers++;
	e->running++;
	return true;
}

int workers_start(struct export *e, struct bc_error *err)
{
	struct sigaction kick = { .sa_handler = on_kick }; /* no SA_RESTART: the read has to return */
	bool ok;

	sigemptyset(&kick.sa_mask);
	sigaction(KICK_SIGNAL, &kick, NULL);
	pthread_mutex_lock(&e->lock);
	ok = start_one(e);
	pthread_mutex_unlock(&e->lock);
	if (!ok)
		return bc_fail(err, -EAGAIN, "%s: cannot start a worker thread: raise the limit of threads (ulimit -u)",
			       e->mountpoint);
	return 0;
}

bool workers_ended(struct export *e)
{
	bool ended;

	pthread_mutex_lock(&e->lock);
	ended = e->running == 0;
	pthread_mutex_unlock(&e->lock);
	return ended;
}

bool workers_wait(struct export *e, unsigned timeout_ms)
{
	struct timespec until;
	bool ended;
	int rc = 0;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += timeout_ms / 1000;
	until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
	if (until.tv_nsec >= 1000000000) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000;
	}
	pthread_mutex_lock(&e->lock);
	while (e->running > 0 && rc != ETIMEDOUT)
		rc = timeout_ms ? pthread_cond_timedwait(&e->ended_cond, &e->lock, &until)
				: pthread_cond_wait(&e->ended_cond, &e->lock);
	ended = e->running == 0;
	pthread_mutex_unlock(&e->lock);
	return ended;
}

void workers_end(struct export *e)
{
	pthread_mutex_lock(&e->lock);
	e->ending = true;
	pthread_mutex_unlock(&e->lock);
	fuse_session_exit(e->session);
	do {
		/* Threads are joined only after this loop, so all ids are good. */
		pthread_mutex_lock(&e->lock);
		for (struct worker *w = e->workers; w; w = w->next)
			if (atomic_load(&w->receiving))
				pthread_kill(w->thread, KICK_SIGNAL);
		pthread_mutex_unlock(&e->lock);
	} while (!workers_wait(e, KICK_INTERVAL_MS));
}

void workers_join(struct export *e)
{
	struct worker *w = e->workers;

	if (e->joined)
		return;
	while (w) {
		struct worker *next = w->next;

		pthread_join(w->thread, NULL);
		free(w);
		w = next;
	}
	e->workers = NULL;
	e->joined = true;
}
