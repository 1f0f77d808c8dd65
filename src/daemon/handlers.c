/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * handlers.c - the commands of the control socket. Each runs on its own thread (control.h) and brackets its use of the
 * cache with daemon_enter() and daemon_leave(). status, stats, set and get never wait for I/O (P11); flush, stop and
 * remove do, without a lock that the others take.
 */
#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "daemon/state.h"

#define EXIT_FAILED 1
#define EXIT_USAGE 64
#define EXIT_INTERRUPTED 130

/* ---- states as users see them ---- */

static bool __being_flushed(struct daemon *d, struct volume *v)
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
		state = STATE_STOPPING;
	else if (state == STATE_RUNNING && __being_flushed(d, v))
		state = STATE_FLUSHING;
	pthread_mutex_unlock(&d->lock);
	return state;
}

static json_t *describe(struct daemon *d, json_t *(*make)(struct cache *c, const struct json_daemon_view *view))
{
	struct shown shown = { .d = d, .unmounted = daemon_unmounted(d) };
	struct json_daemon_view view = { .mountpoint = shown.unmounted ? NULL : d->params->mountpoint,
					 .pid = getpid(),
					 .start_time = d->start_time,
					 .state = shown_state,
					 .ctx = &shown };

	return make(d->cache, &view);
}

json_t *daemon_status(struct daemon *d)
{
	return describe(d, json_status);
}

json_t *daemon_stats(struct daemon *d)
{
	return describe(d, json_stats);
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

/* Answered at any time. With "wait", only by a daemon that stays: for who wants to know whether there is one. */
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
	result = stats ? daemon_stats(d) : daemon_status(d);
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

static json_t *run_manage(struct control_request *req, json_t *args, void *ctx)
{
	struct daemon *d = ctx;
	struct bc_error err = { 0 };
	json_t *result;

	if (!enter(d, req))
		return NULL;
	result = manage_run(d->cache, d->params->mountpoint, args, &err);
	daemon_leave(d);
	if (!result)
		control_fail(req, manage_is_usage(args, &err) ? EXIT_USAGE : EXIT_FAILED, "%s", err.msg);
	return result;
}

/* ---- flush ---- */

struct flush_run {
	struct daemon *d;
	struct control_request *req;
	struct flush_job job;
	struct timespec start;
	uint64_t done_bytes;
	bool until_signal; /* give up when a signal asks for the end */
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
	double t = seconds_since(&r->start);

	r->done_bytes = p->done_bytes;
	if (daemon_in_a_hurry(r->d))
		return 1;
	return control_progress(r->req,
				json_pack("{s:I,s:I,s:f}", "done_bytes", (json_int_t)p->done_bytes, "total_bytes",
					  (json_int_t)p->total_bytes, "rate", t > 0 ? (double)p->done_bytes / t : 0.0));
}

/* Writes back one volume or all, shown as "flushing" meanwhile. */
static int flush(struct daemon *d, struct control_request *req, struct volume *v, uint64_t *done_bytes,
		 struct bc_error *err)
{
	struct flush_run r = { .d = d, .req = req, .job.volume = v ? volume_id(v) : 0 };
	struct flush_job **p;
	int ret;

	clock_gettime(CLOCK_MONOTONIC, &r.start);
	pthread_mutex_lock(&d->lock);
	r.job.next = d->jobs;
	d->jobs = &r.job;
	pthread_mutex_unlock(&d->lock);

	ret = cache_write_back(d->cache, v, flush_progress, &r, err);

	pthread_mutex_lock(&d->lock);
	for (p = &d->jobs; *p != &r.job; p = &(*p)->next)
		;
	*p = r.job.next;
	pthread_mutex_unlock(&d->lock);
	*done_bytes = r.done_bytes;
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
	ret = flush(d, req, v, &done, &err);
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
	int ret = daemon_mount_busy(d, err);

	if (!ret && with_flush)
		ret = flush(d, req, NULL, done, err);
	/* From here on there is no way back: a client that was told "interrupted" must be right. */
	if (!ret && control_client_gone(req))
		ret = bc_fail(err, -EINTR, "interrupted");
	if (!ret)
		ret = export_stop(d->export, false, err);
	if (ret || !with_flush || !dirty_bytes(d, NULL))
		return ret;
	/* What was written between the flush and the end of the mount. There is no way back now: what cannot be written
	 * stays dirty in the cache, and the exit code says so. */
	if (cache_write_back(d->cache, NULL, NULL, NULL, &last))
		log_error("%s: the last flush failed: %s", d->params->dir, last.msg);
	return 0;
}

/* The flush of a `stop` was not possible, and nothing has ended. What still works depends on why. */
static void refuse_stop(struct daemon *d, struct control_request *req, bool with_flush, const struct bc_error *why)
{
	struct cache_info info;

	memset(&info, 0, sizeof(info));
	cache_get_info(d->cache, &info);
	if (info.state == STATE_FAILED)
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
	else if (ret == -EBUSY)
		control_fail(req, EXIT_FAILED, "%s", err->msg);
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
