/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * workers.c - the threads that receive requests and carry them out.
 *
 * A request is handled from start to end by the worker that received it (straight code, P11: a slow miss occupies one
 * worker and nobody else). Workers are *receiving* (in the read of /dev/fuse, or on the way), at work, or *parked*.
 *
 * The kernel wakes a receiving worker for each request. If many receive, each request of a burst wakes another one,
 * although one after the other would be done sooner by one that is awake: most requests are hits in RAM or writes into
 * it, which take microseconds and wait for nobody. So who comes from such a request parks if enough others receive, one
 * per CPU. Before a worker blocks during a request (util/waits.h), it makes sure another one is receiving: wakes a
 * parked worker or starts another one, up to the limit. He goes back to receiving afterwards, as under a load of misses
 * that is where he is needed. Workers never end before the mount does, so a burst pays for its threads once.
 *
 * A worker is added only if all it needs can be had at once: its stack, the buffer it receives in, its memory for I/O;
 * and if enough address space is left then for commands, flushes and cleaning. Otherwise the pool stays as large as it
 * is: requests wait, none fails for lack of a worker. (Descriptors, which channels take at their first I/O, are seen to
 * in bdev/file.c.)
 *
 * The mount is over when the read of /dev/fuse says ENODEV, in every worker. workers_end() ends a connection that is
 * still alive (forced stop; a copy of the mount in another mount namespace): it sends a signal to workers that sit in
 * that read. A worker might enter the read just after the signal, so signals are repeated until all have left. Busy
 * workers get none: their I/O is not to be interrupted.
 */
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"
#include "util/deadline.h"
#include "util/limits.h"
#include "util/log.h"

#define KICK_SIGNAL (SIGRTMIN + 5)
#define KICK_INTERVAL_MS 20

/* Request code keeps its large buffers on the heap; an mlockall'ed daemon pays for stacks in full. */
#define WORKER_STACK (512u << 10)

/* Address space that no worker takes: for control clients and their stacks, for flushes and cleaning. */
#define SPARE_MEMORY ((size_t)64 << 20)
#define RETRY_MS 500

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void on_kick(int sig)
{
	(void)sig;
}

static void init_answered(struct export *e)
{
	pthread_mutex_lock(&e->lock);
	e->answered = true;
	pthread_cond_broadcast(&e->ended_cond);
	pthread_mutex_unlock(&e->lock);
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
	case FUSE_INIT:
		fuse_session_process_buf(w->export->session, &w->buf);
		init_answered(w->export);
		break;
	default: /* rare, and many of them wait */
		about_to_wait();
		fuse_session_process_buf(w->export->session, &w->buf);
	}
}

static bool start_one(struct export *e);

/* The worker at work on a request is about to wait: is anybody receiving? */
static void on_wait(struct waits *waits)
{
	struct worker *w = (struct worker *)((char *)waits - offsetof(struct worker, waits));
	struct export *e = w->export;

	if (w->waited)
		return;
	w->waited = true;
	if (atomic_load(&e->receiving) > 0)
		return;
	pthread_mutex_lock(&e->lock);
	if (!e->ending && atomic_load(&e->receiving) <= 0) {
		struct worker *p = e->parked;

		if (p) {
			e->parked = p->next_parked;
			p->parked = false;
			atomic_fetch_add(&e->receiving, 1); /* counted before it runs, as in start_one() */
			pthread_cond_signal(&p->unpark);
		} else if (e->nworkers < e->max_workers) {
			start_one(e);
		}
	}
	pthread_mutex_unlock(&e->lock);
}

/* True: not, for nobody would be left. */
static bool leave_receiving(struct export *e)
{
	if (atomic_fetch_sub(&e->receiving, 1) > 1)
		return false;
	atomic_fetch_add(&e->receiving, 1);
	return true;
}

/* After a request: to receiving, or to where others wait until they are needed. */
static void next_place(struct worker *w)
{
	struct export *e = w->export;
	bool waited = w->waited;

	w->waited = false;
	/* Counted first: of two who come at the same time, or one who comes when another is about to wait, one at least
	 * stays. */
	if (atomic_fetch_add(&e->receiving, 1) < e->receivers || waited)
		return;
	pthread_mutex_lock(&e->lock);
	/* Those who received a moment ago may all be about to wait, and have seen us: the last one stays. */
	if (!e->ending && atomic_load(&e->receiving) > e->receivers && !leave_receiving(e)) {
		w->parked = true;
		w->next_parked = e->parked;
		e->parked = w;
		while (w->parked && !e->ending)
			pthread_cond_wait(&w->unpark, &e->lock);
	}
	pthread_mutex_unlock(&e->lock);
}

/* e->lock held: everybody ends. */
static void end_all(struct export *e)
{
	e->ending = true;
	for (struct worker *p = e->parked; p; p = p->next_parked)
		pthread_cond_signal(&p->unpark);
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
		atomic_store(&w->in_read, true);
		res = fuse_session_receive_buf(e->session, &w->buf);
		atomic_store(&w->in_read, false);
		if (res == -EINTR || res == -EAGAIN)
			continue;
		if (res <= 0) {
			if (res < 0)
				log_error("%s: reading from /dev/fuse failed: %s", e->mountpoint, strerror(-res));
			break;
		}
		if (is_forget(w)) {
			dispatch(w);
			w->waited = false;
			continue;
		}
		atomic_fetch_sub(&e->receiving, 1);
		dispatch(w);
		next_place(w);
	}
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	struct export *e = w->export;

	thread_waits = &w->waits;
	if (cache_worker_begin(w->io))
		log_warn("%s: a worker has no memory for its I/O", e->mountpoint); /* it tries again at each request */
	w->io = NULL;
	serve(w);
	free(w->buf.mem);
	w->buf.mem = NULL;
	pthread_mutex_lock(&e->lock);
	end_all(e);
	if (--e->running == 0)
		pthread_cond_broadcast(&e->ended_cond);
	pthread_mutex_unlock(&e->lock);
	return NULL;
}

/* What libfuse would allocate at the first read, where a failure would end the mount: FUSE_MAX_MAX_PAGES and a header.
 */
static void *receive_buffer(const struct export *e)
{
	return e->survive ? survive_receive_buffer() : malloc(256 * (size_t)sysconf(_SC_PAGESIZE) + 4096);
}

static void worker_free(struct worker *w)
{
	if (!w)
		return;
	cache_worker_drop(w->io);
	free(w->buf.mem);
	pthread_cond_destroy(&w->unpark);
	free(w);
}

/* All that it will need. NULL: it cannot be had, or it would take what commands and flushes need. */
static struct worker *worker_make(struct export *e)
{
	struct worker *w = calloc(1, sizeof(*w));

	if (!w)
		return NULL;
	w->export = e;
	w->waits.begin = on_wait;
	pthread_cond_init(&w->unpark, NULL);
	w->buf.mem = receive_buffer(e);
	w->io = cache_worker_make(e->cache);
	if (w->buf.mem && w->io && (!e->nworkers || limits_room_for(SPARE_MEMORY)))
		return w;
	worker_free(w);
	return NULL;
}

/* export.lock is held. Workers take no signals but the kick, those are for the daemon's main thread. */
static int worker_run(struct worker *w)
{
	struct export *e = w->export;
	sigset_t set, old;
	pthread_attr_t attr;
	int rc;

	sigfillset(&set);
	sigdelset(&set, KICK_SIGNAL);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, WORKER_STACK);
	/* Counted before it exists: it may take a request, and need to start the next one, before pthread_create has
	 * returned. */
	atomic_fetch_add(&e->receiving, 1);
	pthread_sigmask(SIG_SETMASK, &set, &old);
	rc = pthread_create(&w->thread, &attr, worker_main, w);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	if (rc)
		atomic_fetch_sub(&e->receiving, 1);
	return rc;
}

/* export.lock is held. After a failure it is left alone for a moment: requests wait for the workers there are. */
static bool start_one(struct export *e)
{
	uint64_t now = now_ms();
	struct worker *w;
	int rc;

	if (now < e->no_more_until)
		return false;
	w = worker_make(e);
	rc = w ? worker_run(w) : ENOMEM;
	if (rc) {
		worker_free(w);
		e->no_more_until = now + RETRY_MS;
		if (!e->told)
			log_warn("%s: %u workers is all that can be had (%s): requests wait for one of them; raise the "
				 "limits of memory and threads (ulimit -v, -u)",
				 e->mountpoint, e->nworkers, strerror(rc));
		e->told = true;
		return false;
	}
	e->told = false;
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
	e->receivers = (int)sysconf(_SC_NPROCESSORS_ONLN);
	if (e->receivers < 2)
		e->receivers = 2;
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
	ended = e->running == 0 || e->abandoned;
	pthread_mutex_unlock(&e->lock);
	return ended;
}

int workers_wait_for_init(struct export *e, unsigned timeout_ms)
{
	struct timespec until = deadline_us(timeout_ms * 1000ull);
	int rc = 0;

	pthread_mutex_lock(&e->lock);
	while (!e->answered && e->running > 0 && rc != ETIMEDOUT)
		rc = pthread_cond_timedwait(&e->ended_cond, &e->lock, &until);
	rc = e->answered && !e->agreed ? -EPROTO : e->running == 0 ? -ENODEV : e->answered ? 0 : -ETIMEDOUT;
	pthread_mutex_unlock(&e->lock);
	return rc;
}

bool workers_wait(struct export *e, unsigned timeout_ms)
{
	struct timespec until = deadline_us(timeout_ms * 1000ull);
	bool ended;
	int rc = 0;

	pthread_mutex_lock(&e->lock);
	while (e->running > 0 && !e->abandoned && rc != ETIMEDOUT)
		rc = timeout_ms ? pthread_cond_timedwait(&e->ended_cond, &e->lock, &until)
				: pthread_cond_wait(&e->ended_cond, &e->lock);
	ended = e->running == 0 || e->abandoned;
	pthread_mutex_unlock(&e->lock);
	return ended;
}

void workers_end(struct export *e)
{
	struct timespec now, until = deadline_us(e->patience_ms * 1000ull);

	fuse_session_exit(e->session);
	pthread_mutex_lock(&e->lock);
	end_all(e);
	pthread_mutex_unlock(&e->lock);
	do {
		/* Threads are joined only after this loop, so all ids are good. */
		pthread_mutex_lock(&e->lock);
		for (struct worker *w = e->workers; w; w = w->next)
			if (atomic_load(&w->in_read))
				pthread_kill(w->thread, KICK_SIGNAL);
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (e->patience_ms && e->running &&
		    (now.tv_sec > until.tv_sec || (now.tv_sec == until.tv_sec && now.tv_nsec >= until.tv_nsec))) {
			e->abandoned = true;
			pthread_cond_broadcast(&e->ended_cond);
		}
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
		worker_free(w);
		w = next;
	}
	e->workers = NULL;
	e->joined = true;
}
