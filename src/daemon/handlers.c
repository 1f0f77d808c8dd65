/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * handlers.c - the commands of the control socket. Each runs on its own thread (control.h) and brackets its use of the
 * cache with daemon_enter() and daemon_leave(). status, stats, set and get never wait for I/O (P11); add, flush, stop
 * and remove do, without a lock that the others take, and on another thread (util/patience.h): they are answered when
 * the client goes, when a signal asks for the end, or when a device has answered nothing for longer than the configured
 * patience (add, stop).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "daemon/state.h"

#define EXIT_FAILED 1
#define EXIT_USAGE 64
#define EXIT_INTERRUPTED 130
#define NAMES_MS 200 /* for the names of backing files to be looked up: a status comes without an answer, too */

/* ---- states as users see them ---- */

static bool being_flushed_locked(struct daemon *d, struct volume *v)
{
	for (struct flush_job *j = d->jobs; j; j = j->next)
		if (!j->volume || (v && j->volume == volume_id(v)))
			return true;
	return false;
}

struct shown {
	struct daemon *d;
	bool unmounted;
};

/* Whether something is wrong says more than what goes on; that it is ending says more than either. */
static enum cache_state shown_state(enum cache_state state, struct volume *v, void *ctx)
{
	struct shown *shown = ctx;
	struct daemon *d = shown->d;

	pthread_mutex_lock(&d->lock);
	if (d->phase != PHASE_RUNNING || shown->unmounted)
		state = CACHE_STATE_STOPPING;
	else if (state == CACHE_STATE_RUNNING && being_flushed_locked(d, v))
		state = CACHE_STATE_FLUSHING;
	pthread_mutex_unlock(&d->lock);
	return state;
}

static json_t *describe(struct daemon *d, json_t *(*make)(struct cache *c, const struct json_daemon_view *view),
			bool buckets)
{
	struct shown shown = { .d = d, .unmounted = daemon_unmounted(d) };
	struct json_daemon_view view = { .mountpoint = shown.unmounted ? NULL : d->params->mountpoint,
					 .pid = getpid(),
					 .start_time = d->start_time,
					 .survive = d->params->survive,
					 .locked = d->locked,
					 .state = shown_state,
					 .buckets = buckets,
					 .ctx = &shown };

	return make(d->cache, &view);
}

json_t *daemon_status(struct daemon *d)
{
	return describe(d, json_status, false);
}

json_t *daemon_stats(struct daemon *d, bool buckets)
{
	return describe(d, json_stats, buckets);
}

/* ---- short commands ---- */

/* A client that cannot be served because the daemon is on its way out waits for its end, and goes on with the stopped
 * cache. */
static void refuse_ending(struct daemon *d, struct control_request *req)
{
	control_fail_ending(req, "%s: the daemon is shutting down; try again in a moment", d->params->dir);
}

static bool enter(struct daemon *d, struct control_request *req)
{
	if (!daemon_enter(d)) {
		refuse_ending(d, req);
		return false;
	}
	if (!daemon_unmounted(d))
		return true;
	daemon_leave(d);
	refuse_ending(d, req);
	return false;
}

/* Answered at any time. With "wait", only by a daemon that stays: for a client that wants to know whether there is one.
 */
static json_t *run_question(struct control_request *req, json_t *args, struct daemon *d, bool stats)
{
	json_t *result;

	if (json_is_true(json_object_get(args, "wait"))) {
		if (!enter(d, req))
			return NULL;
	} else if (!daemon_enter(d)) {
		result = daemon_last(d, stats);
		if (!result)
			refuse_ending(d, req);
		return result;
	}
	cache_look_at_names(d->cache, NAMES_MS);
	result = stats ? daemon_stats(d, json_is_true(json_object_get(args, "buckets"))) : daemon_status(d);
	daemon_leave(d);
	return result;
}

static json_t *run_status(struct control_request *req, json_t *args, void *ctx)
{
	return run_question(req, args, ctx, false);
}

static json_t *run_stats(struct control_request *req, json_t *args, void *ctx)
{
	return run_question(req, args, ctx, true);
}

struct manage_wait {
	struct daemon *d;
	struct control_request *req;
};

/* Nobody waits for the answer any more, or it would hold up the end. */
static bool manage_enough(void *ctx)
{
	struct manage_wait *w = ctx;

	return control_client_gone(w->req) || daemon_stopping(w->d);
}

static json_t *run_manage(struct control_request *req, json_t *args, void *ctx)
{
	struct daemon *d = ctx;
	struct manage_wait w = { .d = d, .req = req };
	struct patience patience = { .ms = daemon_patience_ms(d), .give_up = manage_enough, .ctx = &w };
	struct bc_error err = { 0 };
	json_t *result;

	if (!enter(d, req))
		return NULL;
	result = manage_run(d->cache, d->params->mountpoint, args, &patience, &err);
	daemon_leave(d);
	if (!result)
		control_fail(req,
			     err.code == -EINTR            ? EXIT_INTERRUPTED
			     : manage_is_usage(args, &err) ? EXIT_USAGE
							   : EXIT_FAILED,
			     "%s%s", err.msg,
			     err.code == -EINTR && daemon_stopping(d) ? " (the daemon is being stopped)" : "");
	return result;
}

/* ---- flush ---- */

/*
 * A write-back of one volume or all, shown as "flushing" meanwhile. It runs on a thread of its own; the request's
 * thread passes its progress on, and may have enough of it. Then the run ends with the batch it is at, or never, if
 * that waits for a device that does not answer.
 */
struct flush_run {
	struct daemon *d;
	struct volume *v; /* in use, not referred to: a run that hangs does not keep it for good; NULL: all */
	struct flush_job job;
	_Atomic bool enough;
	_Atomic uint64_t done_bytes, total_bytes;
	_Atomic unsigned news; /* counts progress */
	int ret;
	struct bc_error err;
};

/* The request's side of it. */
struct flush_wait {
	struct flush_run *r;
	struct control_request *req;
	struct timespec start;
	unsigned seen; /* of r->news */
	bool last; /* there is no way back: only a device that does not answer ends it early */
	unsigned limit_ms; /* give up when a device has answered nothing for so long; 0: never */
	char hung[300]; /* that device */
};

static double seconds_since(const struct timespec *start)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)(now.tv_sec - start->tv_sec) + (double)(now.tv_nsec - start->tv_nsec) / 1e9;
}

static int flush_progress(const struct cache_progress *p, void *ctx)
{
	struct flush_run *r = ctx;

	atomic_store(&r->done_bytes, p->done_bytes);
	atomic_store(&r->total_bytes, p->total_bytes);
	atomic_fetch_add(&r->news, 1);
	return atomic_load(&r->enough);
}

/* Something to tell the client, about five times a second. */
static bool flush_tell(struct flush_wait *w)
{
	double t = seconds_since(&w->start);
	uint64_t done = atomic_load(&w->r->done_bytes);
	unsigned news = atomic_load(&w->r->news);

	if (news == w->seen)
		return control_client_gone(w->req);
	w->seen = news;
	return control_progress(w->req, json_pack("{s:I,s:I,s:f}", "done_bytes", (json_int_t)done, "total_bytes",
						  (json_int_t)atomic_load(&w->r->total_bytes), "rate",
						  t > 0 ? (double)done / t : 0.0));
}

static bool flush_enough(void *ctx)
{
	struct flush_wait *w = ctx;
	bool enough = (!w->last && (daemon_in_a_hurry(w->r->d) || flush_tell(w))) ||
		      (w->limit_ms && bdev_find_hung(w->limit_ms, w->hung, sizeof(w->hung)));

	if (enough)
		atomic_store(&w->r->enough, true);
	return enough;
}

static void flush_it(void *arg)
{
	struct flush_run *r = arg;

	r->ret = cache_write_back(r->d->cache, r->v, flush_progress, r, &r->err);
}

static void flush_over(void *arg)
{
	struct flush_run *r = arg;
	struct cache *c = r->d->cache;
	struct flush_job **p;

	pthread_mutex_lock(&r->d->lock);
	for (p = &r->d->jobs; *p != &r->job; p = &(*p)->next)
		;
	*p = r->job.next;
	pthread_mutex_unlock(&r->d->lock);
	if (r->v)
		volume_unuse(r->v);
	free(r);
	cache_release(c);
}

/* limit_ms: see flush_wait; -ETIMEDOUT with the device's name if it is reached. req NULL: the last flush of a `stop`.
 */
static int flush(struct daemon *d, struct control_request *req, struct volume *v, unsigned limit_ms,
		 uint64_t *done_bytes, struct bc_error *err)
{
	struct flush_run *r = calloc(1, sizeof(*r));
	struct flush_wait w = { .r = r, .req = req, .limit_ms = limit_ms, .last = !req };
	struct patience patience = { .give_up = flush_enough, .ctx = &w };
	int ret;

	if (!r)
		return bc_fail(err, -ENOMEM, "out of memory");
	*r = (struct flush_run){ .d = d, .v = v, .job.volume = v ? volume_id(v) : 0 };
	clock_gettime(CLOCK_MONOTONIC, &w.start);
	if (v)
		volume_use_more(v);
	cache_hold(d->cache);
	pthread_mutex_lock(&d->lock);
	r->job.next = d->jobs;
	d->jobs = &r->job;
	pthread_mutex_unlock(&d->lock);

	ret = run_patiently(flush_it, r, flush_over, &patience);
	if (ret == -EAGAIN) {
		bc_fail(err, ret, "%s: no thread can be started for the flush", d->params->dir);
	} else if (!ret) {
		ret = r->ret;
		*err = r->err;
		*done_bytes = atomic_load(&r->done_bytes);
		if (!ret && req)
			flush_tell(&w); /* the last piece of it */
	} else if (w.hung[0]) { /* r is the thread's now */
		return bc_fail(err, -ETIMEDOUT, "%s: %s does not answer, nothing in %u s", d->params->dir, w.hung,
			       limit_ms / 1000);
	} else {
		return bc_fail(err, -EINTR, "interrupted; nothing is lost, 'blkcache flush %s' goes on from here",
			       d->params->dir);
	}
	flush_over(r);
	if (ret == -EINTR)
		bc_fail(err, -EINTR, "interrupted; nothing is lost, 'blkcache flush %s' goes on from here",
			d->params->dir);
	return ret;
}

static uint64_t dirty_bytes(struct daemon *d, struct volume *v)
{
	struct cache_info info;
	struct volume_stats s;

	if (v) {
		memset(&s, 0, sizeof(s));
		volume_get_stats(v, &s);
		return s.dirty_bytes;
	}
	memset(&info, 0, sizeof(info));
	cache_get_info(d->cache, &info);
	return info.dirty_bytes;
}

static json_t *run_flush(struct control_request *req, json_t *args, void *ctx)
{
	struct daemon *d = ctx;
	const char *name = json_string_value(json_object_get(args, "volume"));
	struct bc_error err = { 0 };
	struct volume *v = NULL;
	json_t *result = NULL;
	uint64_t done = 0;
	int ret;

	if (!enter(d, req))
		return NULL;
	if (name) {
		v = manage_find_volume(d->cache, name, &err);
		if (!v)
			goto out;
	}
	ret = flush(d, req, v, 0, &done, &err);
	if (!ret)
		result = json_pack("{s:I,s:I}", "done_bytes", (json_int_t)done, "dirty_bytes",
				   (json_int_t)dirty_bytes(d, v));
out:
	if (!result)
		control_fail(req, err.code == -EINTR ? EXIT_INTERRUPTED : EXIT_FAILED, "%s", err.msg);
	if (v)
		volume_put(v);
	daemon_leave(d);
	return result;
}

/* ---- stop ---- */

/*
 * Everything up to the end of the mount. On failure nothing has ended. Users are looked for before the flush, so that
 * nobody waits an hour to be told of an open file, and again by export_stop().
 */
static int stop_serving(struct daemon *d, struct control_request *req, bool with_flush, uint64_t *done,
			struct bc_error *err)
{
	struct bc_error last = { 0 };
	uint64_t more = 0;
	int ret = export_busy(d->export, err);

	if (!ret && with_flush)
		ret = flush(d, req, NULL, daemon_patience_ms(d), done, err);
	if (!ret && !with_flush && dirty_bytes(d, NULL) && cache_is_deleted(d->cache, NAMES_MS, err))
		ret = err->code;
	/* From here on there is no way back: a client that was told "interrupted" must be right. */
	if (!ret && control_client_gone(req))
		ret = bc_fail(err, -EINTR, "interrupted");
	if (!ret)
		ret = export_stop(d->export, false, err);
	if (ret || !with_flush || !dirty_bytes(d, NULL))
		return ret;
	/* What was written between the flush and the end of the mount. There is no way back now: what cannot be written
	 * stays dirty in the cache, and the exit code says so. */
	if (flush(d, NULL, NULL, daemon_patience_ms(d), &more, &last))
		log_error("%s: the last flush failed: %s", d->params->dir, last.msg);
	return 0;
}

/* The flush of a `stop` was not possible, and nothing has ended. What still works depends on why. */
static void refuse_stop(struct daemon *d, struct control_request *req, bool with_flush, const struct bc_error *why)
{
	struct cache_info info;

	memset(&info, 0, sizeof(info));
	cache_get_info(d->cache, &info);
	if (info.state == CACHE_STATE_FAILED)
		control_fail(req, EXIT_FAILED,
			     "%s: %s; the daemon runs on, but only clean data can be read and nothing written: "
			     "'blkcache stop %s --no-flush' ends it, and what was flushed is there at the next load",
			     d->params->dir, why->msg, d->params->dir);
	else
		control_fail(req, EXIT_FAILED, "%s; the volumes go on working%s", why->msg,
			     with_flush
				     ? " ('blkcache stop --no-flush' ends them and keeps the dirty data in the cache)"
				     : "");
}

static json_t *stop_result(struct daemon *d, uint64_t done, bool unmounted)
{
	return json_pack("{s:b,s:b,s:I,s:I,s:o}", "ending", 1, "unmounted", unmounted, "done_bytes", (json_int_t)done,
			 "dirty_bytes", (json_int_t)d->dirty_left, "close_error",
			 json_text(d->close_err.code ? d->close_err.msg : ""));
}

/* Somebody has unmounted the volumes: there is nothing to stop any more, only an end to wait for. */
static json_t *stop_ending(struct daemon *d)
{
	daemon_wait_closed(d);
	return stop_result(d, 0, true);
}

/* Nothing was stopped; says why. */
static void stop_failed(struct daemon *d, struct control_request *req, bool with_flush, int ret,
			const struct bc_error *err)
{
	if (ret == -EINTR && daemon_in_a_hurry(d))
		control_fail(req, EXIT_INTERRUPTED,
			     "%s: a signal ends the daemon without a flush; what is dirty stays in the cache",
			     d->params->dir);
	else if (ret == -EINTR)
		control_fail(req, EXIT_INTERRUPTED,
			     "%s: interrupted; the volumes go on working, what was flushed stays so", d->params->dir);
	else if (ret == -EBUSY || ret == -ENOTEMPTY)
		control_fail(req, EXIT_FAILED, "%s; nothing was stopped", err->msg);
	else
		refuse_stop(d, req, with_flush, err);
}

static json_t *run_stop(struct control_request *req, json_t *args, void *ctx)
{
	struct daemon *d = ctx;
	bool with_flush = !json_is_true(json_object_get(args, "no_flush")), unmounted;
	struct bc_error err = { 0 };
	uint64_t done = 0;
	int ret;

	if (!daemon_enter(d))
		return stop_ending(d);
	if (daemon_unmounted(d)) {
		daemon_leave(d);
		return stop_ending(d);
	}
	if (!daemon_stop_begin(d)) {
		unmounted = daemon_unmounted(d);
		daemon_leave(d);
		if (unmounted)
			return stop_ending(d);
		control_fail(req, EXIT_FAILED, "%s: is being stopped already; see 'blkcache status %s'", d->params->dir,
			     d->params->dir);
		return NULL;
	}
	ret = stop_serving(d, req, with_flush, &done, &err);
	if (ret) {
		unmounted = !daemon_stop_undo(d) || daemon_unmounted(d);
		if (!unmounted)
			stop_failed(d, req, with_flush, ret, &err);
		daemon_leave(d);
		return unmounted ? stop_ending(d) : NULL;
	}
	daemon_stop_finish(d);
	return stop_result(d, done, false);
}

const struct control_handler daemon_handlers[] = {
	{ "status", run_status, .quick = true, .always = true },
	{ "stats", run_stats, .quick = true, .always = true },
	{ "get", run_manage, .quick = true, .always = true },
	{ "stop", run_stop, .always = true },
	{ "flush", run_flush },
	{ "add", run_manage },
	{ "remove", run_manage },
	{ "set", run_manage },
};
const size_t daemon_nhandlers = sizeof(daemon_handlers) / sizeof(daemon_handlers[0]);
