/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * lifecycle.c - from an empty process to a serving daemon and back. Owns `struct daemon` (states: state.h).
 *
 * Threads: the main thread starts everything, waits for the end of the mount, and takes everything down. A signal
 * thread takes SIGTERM, SIGINT and (in the foreground) SIGHUP; all others block them. Control threads run the commands.
 *
 * Order of start: protect, cache (takes the lock, recovers), export, control socket, report. Each step is undone in
 * reverse if a later one fails. Everything before cache_open() runs on one thread.
 *
 * Ends: `blkcache stop`; somebody's umount; a signal. A signal means "soon" (a machine going down): everything answered
 * is made durable in the cache, but dirty data is not written to the backing device, as with `stop --no-flush`. If
 * files are open, it waits up to BUSY_GRACE_S for them, then takes the mount from their owners; a second signal does so
 * at once. What somebody else mounted over ours is left alone: ours ends below it.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "blkcache/units.h"
#include "daemon/state.h"
#include "util/deadline.h"

#define BUSY_GRACE_S 10
#define DELETED_MS 1000 /* to find out whether the data file was deleted */
#define TAKEOVER_PATIENCE_MS 120000 /* of a slow backing device: longer than a disk's own time limits */
#define LAST_PATIENCE_S 5
#define STOP_PATIENCE_S 2 /* a `stop` that was just interrupted takes a moment to notice */

/* ---- states ---- */

bool daemon_enter(struct daemon *d)
{
	bool ok;

	pthread_mutex_lock(&d->lock);
	ok = d->phase < PHASE_ENDING;
	d->users += ok;
	pthread_mutex_unlock(&d->lock);
	return ok;
}

void daemon_leave(struct daemon *d)
{
	pthread_mutex_lock(&d->lock);
	d->users--;
	pthread_cond_broadcast(&d->cond);
	pthread_mutex_unlock(&d->lock);
}

bool daemon_stop_begin(struct daemon *d)
{
	struct timespec deadline = deadline_us(STOP_PATIENCE_S * UINT64_C(1000000));
	bool ok;

	pthread_mutex_lock(&d->lock);
	while (d->phase == PHASE_STOPPING && !pthread_cond_timedwait(&d->cond, &d->lock, &deadline))
		;
	ok = d->phase == PHASE_RUNNING;
	if (ok)
		d->phase = PHASE_STOPPING;
	pthread_mutex_unlock(&d->lock);
	return ok;
}

bool daemon_stop_undo(struct daemon *d)
{
	bool ok;

	pthread_mutex_lock(&d->lock);
	ok = d->phase == PHASE_STOPPING;
	if (ok)
		d->phase = PHASE_RUNNING;
	pthread_cond_broadcast(&d->cond);
	pthread_mutex_unlock(&d->lock);
	return ok;
}

void daemon_stop_finish(struct daemon *d)
{
	pthread_mutex_lock(&d->lock);
	if (d->phase < PHASE_ENDING)
		d->phase = PHASE_ENDING;
	d->users--;
	pthread_cond_broadcast(&d->cond);
	pthread_mutex_unlock(&d->lock);
	daemon_wait_closed(d);
}

void daemon_wait_closed(struct daemon *d)
{
	pthread_mutex_lock(&d->lock);
	while (d->phase != PHASE_CLOSED)
		pthread_cond_wait(&d->cond, &d->lock);
	pthread_mutex_unlock(&d->lock);
}

bool daemon_stopping(struct daemon *d)
{
	bool yes;

	pthread_mutex_lock(&d->lock);
	yes = d->hurry || d->phase != PHASE_RUNNING;
	pthread_mutex_unlock(&d->lock);
	return yes;
}

unsigned daemon_patience_ms(const struct daemon *d)
{
	unsigned ms = d->params->config.patience_ms;

	return ms ? ms : PATIENCE_MS;
}

bool daemon_unmounted(struct daemon *d)
{
	return export_unmounted(d->export);
}

json_t *daemon_last(struct daemon *d, bool stats)
{
	struct timespec deadline = deadline_us(LAST_PATIENCE_S * 1000000ull);
	json_t *copy;

	pthread_mutex_lock(&d->lock);
	while (!d->last_status && d->phase != PHASE_CLOSED && !pthread_cond_timedwait(&d->cond, &d->lock, &deadline))
		;
	copy = json_deep_copy(stats ? d->last_stats : d->last_status);
	pthread_mutex_unlock(&d->lock);
	return copy;
}

bool daemon_in_a_hurry(struct daemon *d)
{
	bool yes;

	pthread_mutex_lock(&d->lock);
	yes = d->hurry || d->phase >= PHASE_ENDING;
	pthread_mutex_unlock(&d->lock);
	return yes;
}

/* ---- systemd ---- */

/* sd_notify(3) without its library: a datagram to $NOTIFY_SOCKET, if there is one. */
static void notify_manager(const char *text)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	size_t len = path ? strlen(path) : 0;
	int fd;

	if (!len || len >= sizeof(addr.sun_path))
		return;
	memcpy(addr.sun_path, path, len);
	if (addr.sun_path[0] == '@') /* the abstract name space */
		addr.sun_path[0] = '\0';
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return;
	if (sendto(fd, text, strlen(text), MSG_NOSIGNAL, (struct sockaddr *)&addr,
		   (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len)) < 0)
		log_debug("%s: %s", path, strerror(errno));
	close(fd);
}

/* ---- signals ---- */

static void stop_signals(sigset_t *set, bool foreground)
{
	sigemptyset(set);
	sigaddset(set, SIGTERM);
	sigaddset(set, SIGINT);
	if (foreground)
		sigaddset(set, SIGHUP); /* its terminal has gone; a detached daemon has none and ignores it */
}

/* STOPPING on behalf of a signal; false if there is nothing left to stop. A `stop` under way is asked to give up first.
 */
static bool claim_stop(struct daemon *d)
{
	bool ok;

	pthread_mutex_lock(&d->lock);
	d->hurry = true;
	while (d->phase == PHASE_STOPPING)
		pthread_cond_wait(&d->cond, &d->lock);
	ok = d->phase == PHASE_RUNNING;
	if (ok) {
		d->phase = PHASE_STOPPING;
		d->users++;
	}
	pthread_mutex_unlock(&d->lock);
	return ok;
}

static void stop_by_signal(struct daemon *d, int sig, const sigset_t *set)
{
	struct bc_error err = { 0 };
	bool force = false;
	int ret;

	if (!claim_stop(d))
		return;
	log_info("%s: ending after signal %d (%s)", d->params->dir, sig, strsignal(sig));
	for (int tries = 0; (ret = export_stop(d->export, force, &err)) && !force; tries++) {
		/* Nobody has a file open, and what lies over the mount will not go because we wait. */
		if (ret == -ENOTEMPTY) {
			log_warn("%s; the mount stays below it and ends all the same", err.msg);
			force = true;
			continue;
		}
		if (!tries)
			log_warn("%s; waiting %d s, then the mount ends all the same", err.msg, BUSY_GRACE_S);
		force = tries >= BUSY_GRACE_S || sigtimedwait(set, NULL, &(struct timespec){ .tv_sec = 1 }) > 0 ||
			atomic_load(&d->quit);
	}
	if (!ret) {
		daemon_leave(d);
		return; /* the main thread sees the end of the mount */
	}
	log_error("cannot end: %s", err.msg);
	pthread_mutex_lock(&d->lock);
	d->hurry = false;
	pthread_mutex_unlock(&d->lock);
	daemon_stop_undo(d);
	daemon_leave(d);
}

static void *signal_main(void *arg)
{
	struct daemon *d = arg;
	sigset_t set;
	int sig;

	stop_signals(&set, d->params->foreground);
	while (!sigwait(&set, &sig) && !atomic_load(&d->quit))
		stop_by_signal(d, sig, &set);
	return NULL;
}

static void end_signal_thread(struct daemon *d)
{
	atomic_store(&d->quit, true);
	pthread_kill(d->signal_thread, SIGTERM);
	pthread_join(d->signal_thread, NULL);
}

/* ---- start and end ---- */

static int start_export(struct daemon *d, struct bc_error *err)
{
	const struct daemon_config *cfg = &d->params->config;
	struct export_params params = { .threads = cfg->threads,
					.max_background = cfg->max_background,
					.patience_ms = daemon_patience_ms(d),
					.allow_other = cfg->allow_other };
	const struct daemon_survive *s = d->params->survive;
	struct export_survive survive;
	int ret;

	if (s) {
		survive = (struct export_survive){ .fuse_fd = s->fuse_fd,
						   .memory_fd = s->session_fd,
						   .takeover = s->takeover };
		params.survive = &survive;
	}
	ret = export_start(d->cache, d->params->mountpoint, &params, &d->export, err);
	if (ret)
		return ret;
	if (s && !s->takeover)
		atomic_store(&s->shared->mount_dev, export_device(d->export));
	/* before the first command that could name a file there */
	bdev_set_own_mount(s ? atomic_load(&s->shared->mount_dev) : export_device(d->export), d->below_fd, false);
	return 0;
}

/* After a daemon was killed its locks are held until the last I/O it had under way has ended. */
static int open_cache(struct daemon *d, struct cache_open_report *opened, struct bc_error *err)
{
	const struct daemon_survive *s = d->params->survive;
	struct cache_shared shared;
	int ret, waited_ms = 0;

	if (!s)
		return cache_open_accepting(d->params->dir, 0, d->params->accepted, &d->cache, opened, err);
	shared = (struct cache_shared){
		.frames_fd = s->frames_fd, .log_fd = s->log_fd, .lock_fd = s->lock_fd, .takeover = s->takeover
	};
	if (s->takeover) /* names are taken as they were before the mount was made, which nobody serves now */
		bdev_set_own_mount(atomic_load(&s->shared->mount_dev), d->below_fd, true);
	for (;;) {
		memset(opened, 0, sizeof(*opened));
		ret = cache_open_shared(d->params->dir, 0, s->takeover ? NULL : d->params->accepted, &shared, &d->cache,
					opened, err);
		if (ret != -EBUSY || !s->takeover || waited_ms >= TAKEOVER_PATIENCE_MS)
			return ret;
		if (waited_ms == 1000)
			log_warn("%s; waiting for the dead daemon's last requests", err->msg);
		memset(err, 0, sizeof(*err));
		nanosleep(&(struct timespec){ .tv_nsec = 10000000 }, NULL);
		waited_ms += 10;
	}
}

/* Everything from the cache on; what was started when it fails is taken down by end_all(). */
static int start_all(struct daemon *d, json_t **report, struct bc_error *err)
{
	struct cache_open_report opened;
	int ret = 0;

	memset(&opened, 0, sizeof(opened));
	/* the mount may hide backing devices (own_mount.h) */
	d->below_fd = d->params->survive ? fcntl(d->params->survive->below_fd, F_DUPFD_CLOEXEC, 0)
					 : open(d->params->mountpoint, O_PATH | O_DIRECTORY | O_CLOEXEC);
	/* before a recovery that may take long */
	if (!d->params->survive || !d->params->survive->takeover)
		ret = export_check_mountpoint(d->params->mountpoint, err);
	if (!ret)
		ret = open_cache(d, &opened, err);
	if (!ret)
		ret = start_export(d, err);
	if (ret)
		return ret;
	ret = -pthread_create(&d->signal_thread, NULL, signal_main, d);
	if (ret) {
		d->signal_thread = 0;
		return bc_fail(err, ret, "cannot start a thread: %s", strerror(-ret));
	}
	ret = control_server_start(d->params->dir, daemon_handlers, daemon_nhandlers, d, &d->control, err);
	if (ret)
		return ret;
	*report = daemon_status(d);
	if (!*report || json_object_set_new(*report, "recovery", json_open_report(&opened)))
		return bc_fail(err, -ENOMEM, "out of memory");
	return 0;
}

/* The end of the cache, on a thread of its own: it may have to wait for a device that does not answer. */
struct closing {
	struct daemon *d;
	char hung[300]; /* that device */
	_Atomic bool durable;
	struct timespec since; /* durable was seen */
	unsigned factor; /* times the patience is waited after that, although no device is known to hang */
	int ret;
};

#define CLOSE_FACTOR 10 /* what is waited for may be a read, which bdev_find_hung() does not see */

static void close_it(void *arg)
{
	struct closing *cl = arg;

	cl->ret = cache_close_telling(cl->d->cache, &cl->durable, &cl->d->close_err);
}

static void closed_late(void *arg)
{
	(void)arg; /* the process is about to end */
}

static bool closing_hangs(void *ctx)
{
	struct closing *cl = ctx;
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	if (!atomic_load(&cl->durable))
		cl->since = now;
	else if (now.tv_sec - cl->since.tv_sec > cl->factor * (time_t)daemon_patience_ms(cl->d) / 1000)
		return true;
	return bdev_find_hung(daemon_patience_ms(cl->d), cl->hung, sizeof(cl->hung));
}

/*
 * What was answered is made durable in the cache first, without any backing device. So whoever does not answer is not
 * waited for longer than the user's patience: the next load finds the cache as after a crash. What waits for the device
 * cannot be taken down, so the process ends around it.
 */
static int close_cache(struct daemon *d)
{
	static struct closing cl; /* outlives us if it is left behind */
	struct patience p = { .give_up = closing_hangs, .ctx = &cl };
	int ret;

	cl.d = d;
	cl.factor = CLOSE_FACTOR;
	clock_gettime(CLOCK_MONOTONIC, &cl.since);
	if (d->export && export_abandoned(d->export)) {
		cache_hold(d->cache); /* its workers are in it */
		cl.factor = 1;
		d->abandoned = true;
	} else {
		export_free(d->export);
	}
	ret = run_patiently(close_it, &cl, closed_late, &p);
	if (ret == -EAGAIN)
		close_it(&cl);
	if (!ret || ret == -EAGAIN)
		return cl.ret;
	d->abandoned = true;
	return bc_fail(
		&d->close_err, ret,
		"%s: %s does not answer; the daemon ended without waiting for it any longer, what is dirty stays "
		"in the cache",
		d->params->dir, *cl.hung ? cl.hung : "a backing device");
}

/* What is asked for while the cache is being closed, which may take long: nothing may look at it any more. */
static void keep_last(struct daemon *d)
{
	json_t *status = d->cache && d->export ? daemon_status(d) : NULL;
	json_t *stats = status ? daemon_stats(d, true) : NULL;

	pthread_mutex_lock(&d->lock);
	d->last_status = status;
	d->last_stats = stats;
	pthread_cond_broadcast(&d->cond);
	pthread_mutex_unlock(&d->lock);
}

/* The mount has ended, or never was. Waits for its last users, then closes. */
static int end_all(struct daemon *d, struct bc_error *err)
{
	struct cache_info info;
	int ret = 0;

	pthread_mutex_lock(&d->lock);
	if (d->phase < PHASE_ENDING)
		d->phase = PHASE_ENDING;
	pthread_mutex_unlock(&d->lock);
	keep_last(d);
	pthread_mutex_lock(&d->lock);
	while (d->users)
		pthread_cond_wait(&d->cond, &d->lock);
	pthread_mutex_unlock(&d->lock);
	notify_manager("STOPPING=1");
	if (d->signal_thread)
		end_signal_thread(d);
	bdev_set_own_mount(0, -1, false);
	if (d->below_fd >= 0)
		close(d->below_fd);
	d->below_fd = -1;
	memset(&info, 0, sizeof(info));
	if (d->cache) {
		/* dirty data that nobody will find again */
		if (cache_is_deleted(d->cache, DELETED_MS, NULL) &&
		    cache_write_back(d->cache, NULL, NULL, NULL, &d->close_err))
			log_error("%s: %s", d->params->dir, d->close_err.msg);
		cache_get_info(d->cache, &info);
		ret = close_cache(d);
	} else {
		export_free(d->export);
	}

	pthread_mutex_lock(&d->lock);
	d->dirty_left = info.dirty_bytes;
	d->phase = PHASE_CLOSED;
	pthread_cond_broadcast(&d->cond);
	pthread_mutex_unlock(&d->lock);
	control_server_stop(d->control); /* delivers the answer to `stop` */
	if (ret && err && !err->code)
		*err = d->close_err;
	return ret;
}

static void log_end(struct daemon *d, int ret)
{
	char size[32];

	if (ret)
		log_error("not closed in order: %s", d->close_err.msg);
	else if (d->dirty_left)
		log_info("%s: ended; %s of dirty data stay in the cache until it is loaded and flushed", d->params->dir,
			 units_format_size(size, sizeof(size), d->dirty_left));
	else
		log_info("%s: ended", d->params->dir);
}

int daemon_run(const struct daemon_params *params, int (*ready)(json_t *report, void *ctx), void *ctx,
	       struct bc_error *err)
{
	struct daemon d = { .params = params, .below_fd = -1, .start_time = time(NULL) };
	json_t *report = NULL;
	pthread_condattr_t attr;
	sigset_t set;
	int ret, end;

	pthread_mutex_init(&d.lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&d.cond, &attr);
	pthread_condattr_destroy(&attr);
	log_set_level(params->config.log_level);
	signal(SIGPIPE, SIG_IGN);
	if (!params->foreground)
		signal(SIGHUP, SIG_IGN);
	stop_signals(&set, params->foreground);
	pthread_sigmask(SIG_BLOCK, &set, NULL); /* every thread from here on inherits it */
	protect_process();

	ret = start_all(&d, &report, err);
	if (!ret && params->survive)
		atomic_fetch_add(&params->survive->shared->served, 1);
	if (!ret && ready(report, ctx))
		ret = bc_fail(err, -EINTR, "nobody waits for the daemon any more; it ended again");
	json_decref(report);
	if (!ret) {
		log_info("%s: serving at %s", params->dir, params->mountpoint);
		notify_manager("READY=1");
		export_wait(d.export);
	} else if (d.export) {
		export_stop(d.export, true, NULL);
	}
	end = end_all(&d, ret ? NULL : err);
	if (!ret)
		log_end(&d, end);
	json_decref(d.last_status);
	json_decref(d.last_stats);
	if (d.abandoned) {
		fflush(NULL);
		_exit(EXIT_FAILURE);
	}
	pthread_cond_destroy(&d.cond);
	pthread_mutex_destroy(&d.lock);
	return ret ? ret : end;
}
