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
#define EXIT_INTERRUPTED 130
#define NAMES_MS 200 /* for the names of backing files to be looked up: a status comes without an answer, too */

/* ---- states as users see them ---- */

static bool __being_flushed(struct daemon *d, struct volume *v)
{
	for (struct flush_job *j = d->jobs; j; j = j->next)
		if (!j->volume || (v && j->volume == volume_id(v)))
			return true;
	return false;
}

/* Whether something is wrong says more than what goes on; that it is ending says more than either. */
static enum cache_state shown_state(enum cache_state state, struct volume *v, void *ctx)
{
	struct daemon *d = ctx;

	pthread_mutex_lock(&d->lock);
	if (d->phase != PHASE_RUNNING)
		state = STATE_STOPPING;
	else if (state == STATE_RUNNING && __being_flushed(d, v))
		state = STATE_FLUSHING;
	pthread_mutex_unlock(&d->lock);
	return state;
}

static struct json_daemon_view view_of(struct daemon *d)
{
	return (struct json_daemon_view){
		.mountpoint = d->params->mountpoint, .pid = getpid(), .state = shown_state, .ctx = d
	};
}

json_t *daemon_status(struct daemon *d)
{
	struct json_daemon_view view = view_of(d);

	return json_status(d->cache, &view);
}

/* ---- short commands ---- */

static bool enter(struct daemon *d, struct control_request *req)
{
	bool ok = daemon_enter(d);

	if (!ok)
		control_fail(req, EXIT_FAILED, "%s: the daemon is just ending; load the cache again afterwards",
			     d->params->dir);
	return ok;
}

static json_t *run_status(struct control_request *req, json_t *args, void *ctx)
{
	struct daemon *d = ctx;
	json_t *result;

	(void)args;
	if (!enter(d, req))
		return NULL;
	cache_look_at_names(d->cache, NAMES_MS);
	result = daemon_status(d);
	daemon_leave(d);
	return result;
}

static json_t *run_stats(struct control_request *req, json_t *args, void *ctx)
{
	struct daemon *d = ctx;
	struct json_daemon_view view = view_of(d);
	json_t *result;

	view.buckets = json_is_true(json_object_get(args, "buckets"));
	if (!enter(d, req))
		return NULL;
	cache_look_at_names(d->cache, NAMES_MS);
	result = json_stats(d->cache, &view);
	daemon_leave(d);
	return result;
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
		control_fail(req, EXIT_FAILED, "%s", err.msg);
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
	if (!ret && !with_flush && dirty_bytes(d, NULL) && cache_is_deleted(d->cache, NAMES_MS, err))
		ret = err->code;
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

static json_t *run_stop(struct control_request *req, json_t *args, void *ctx)
{
	struct daemon *d = ctx;
	bool with_flush = !json_is_true(json_object_get(args, "no_flush"));
	struct bc_error err = { 0 };
	uint64_t done = 0;
	int ret;

	if (!enter(d, req))
		return NULL;
	if (!daemon_stop_begin(d)) {
		control_fail(req, EXIT_FAILED, "%s: is being stopped already; see 'blkcache status'", d->params->dir);
		daemon_leave(d);
		return NULL;
	}
	ret = stop_serving(d, req, with_flush, &done, &err);
	if (ret) {
		bool ending = !daemon_stop_undo(d);

		if (ending)
			control_fail(req, EXIT_FAILED,
				     "%s: somebody unmounted %s meanwhile; the daemon ends, what is dirty stays in the "
				     "cache",
				     d->params->dir, d->params->mountpoint);
		else if (ret == -EINTR && daemon_in_a_hurry(d))
			control_fail(req, EXIT_INTERRUPTED,
				     "%s: a signal ends the daemon without a flush; what is dirty stays in the cache",
				     d->params->dir);
		else if (ret == -EINTR)
			control_fail(req, EXIT_INTERRUPTED, "interrupted; the volumes go on working, nothing is lost");
		else if (ret == -EBUSY)
			control_fail(req, EXIT_FAILED, "%s", err.msg);
		else
			refuse_stop(d, req, with_flush, &err);
		daemon_leave(d);
		return NULL;
	}
	daemon_stop_finish(d);
	return json_pack("{s:b,s:I,s:I,s:o}", "ending", 1, "done_bytes", (json_int_t)done, "dirty_bytes",
			 (json_int_t)d->dirty_left, "close_error",
			 json_text(d->close_err.code ? d->close_err.msg : ""));
}

const struct control_handler daemon_handlers[] = {
	{ "status", run_status }, { "stats", run_stats },   { "flush", run_flush }, { "stop", run_stop },
	{ "add", run_manage },    { "remove", run_manage }, { "set", run_manage },  { "get", run_manage },
};
const size_t daemon_nhandlers = sizeof(daemon_handlers) / sizeof(daemon_handlers[0]);
