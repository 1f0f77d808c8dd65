/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * session.c - the life of an export: mounted, serving, ended.
 *
 * It ends when the last worker has left, which happens when the mount goes away (by export_stop or by anybody's umount)
 * or when export_stop(force) sends them home. One thread may sit in export_wait while another calls export_stop;
 * export_free comes after both. The mount is made last and the workers are started right after it: whoever looks at the
 * mount point in between waits for their first answer.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "internal.h"
#include "util/log.h"

#define DEFAULT_THREADS 256
/* Of the workers, in eighths. Asynchronous requests (io_uring, loop devices) beyond max_background wait in the kernel:
 * as many slow misses keep hits waiting there (P11). With all workers, misses could take every one of them. */
#define DEFAULT_BACKGROUND 7
#define RELEASE_GRACE_MS 2000 /* the kernel sends RELEASE some time after close(2) has returned */
#define END_GRACE_MS 2000 /* after a umount, before a connection counts as held by another mount namespace */

static void log_from_libfuse(enum fuse_log_level level, const char *fmt, va_list ap)
{
	char text[300];

	vsnprintf(text, sizeof(text), fmt, ap);
	text[strcspn(text, "\n")] = '\0';
	log_msg(level <= FUSE_LOG_ERR ? LOG_LEVEL_ERROR : LOG_LEVEL_DEBUG, "%s", text);
}

static struct export *export_new(struct cache *c, const struct export_params *params)
{
	struct export *e = calloc(1, sizeof(*e));
	pthread_condattr_t attr;

	if (!e)
		return NULL;
	e->cache = c;
	e->fd = -1;
	e->max_workers = params && params->threads ? params->threads : DEFAULT_THREADS;
	e->max_background =
		params && params->max_background ? params->max_background : e->max_workers * DEFAULT_BACKGROUND / 8;
	e->max_background = e->max_background ? e->max_background : 1;
	e->survive = params ? params->survive : NULL;
	e->patience_ms = params ? params->patience_ms : 0;
	pthread_mutex_init(&e->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&e->ended_cond, &attr);
	pthread_condattr_destroy(&attr);
	return e;
}

/* The cache's folder: what `mount` and `df` show as the source. Absolute. */
static const char *source_of(struct export *e)
{
	struct cache_info info;

	cache_get_info(e->cache, &info);
	return info.dir;
}

/* "-ofsname=...", with commas and backslashes escaped for libfuse's list of options. */
static int add_source(struct fuse_args *args, const char *source)
{
	char *option = malloc(2 * strlen(source) + sizeof("-ofsname=")), *to;
	int rc = -1;

	if (!option)
		return rc;
	to = stpcpy(option, "-ofsname=");
	for (const char *p = source; *p; p++) {
		if (*p == ',' || *p == '\\')
			*to++ = '\\';
		*to++ = *p;
	}
	*to = '\0';
	rc = fuse_opt_add_arg(args, option);
	free(option);
	return rc;
}

static int new_session(struct export *e, bool allow_other, struct bc_error *err)
{
	struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
	int rc = 0;

	fuse_set_log_func(log_from_libfuse);
	/* These options matter to fusermount3 only; mount_direct() passes its own. */
	if (fuse_opt_add_arg(&args, "blkcache") != 0 || fuse_opt_add_arg(&args, "-osubtype=blkcache") != 0 ||
	    add_source(&args, source_of(e)) != 0 ||
	    fuse_opt_add_arg(&args, "-odefault_permissions,nosuid,nodev") != 0 ||
	    (allow_other && fuse_opt_add_arg(&args, "-oallow_other") != 0))
		rc = -ENOMEM;
	if (rc == 0)
		e->session = fuse_session_new(&args, &export_ops, sizeof(export_ops), e);
	fuse_opt_free_args(&args);
	return e->session ? 0 : bc_fail(err, -ENOMEM, "cannot set up a FUSE session: out of memory");
}

static int do_mount(struct export *e, bool allow_other, struct bc_error *err)
{
	char by_fd[32];
	int fd, rc = mount_direct(e->mountpoint, source_of(e), allow_other, &fd, err);

	if (rc == 0) {
		rc = mount_identify(e->mountpoint, &e->mount, err);
		if (rc != 0) {
			close(fd);
			return rc;
		}
		snprintf(by_fd, sizeof(by_fd), "/dev/fd/%d", fd);
		if (fuse_session_mount(e->session, by_fd) != 0) {
			close(fd);
			mount_end(&e->mount, true, false, NULL);
			return bc_fail(err, -EIO, "%s: libfuse refused its own device", e->mountpoint);
		}
	} else if (rc == -EPERM) {
		if (fuse_session_mount(e->session, e->mountpoint) != 0)
			return bc_fail(err, -EPERM,
				       "%s: no permission to mount: run as root, or install fuse3 and use a folder of "
				       "your own%s",
				       e->mountpoint,
				       allow_other ? " (allow_other needs user_allow_other in /etc/fuse.conf)" : "");
		e->by_fusermount = true;
		rc = mount_identify(e->mountpoint, &e->mount, err);
		if (rc != 0)
			return rc;
	} else {
		return rc;
	}
	e->fd = fuse_session_fd(e->session);
	return 0;
}

#define INIT_TIMEOUT_MS 60000

/*
 * The kernel answers nobody before INIT. Never by a stat of the mount: a process that waits for itself cannot be killed
 * when its workers are, since it holds the device that would have to be closed for that.
 */
static int prove_ready(struct export *e, struct bc_error *err)
{
	int rc = workers_wait_for_init(e, INIT_TIMEOUT_MS);

	return rc ? bc_fail(err, rc, "%s: the new mount does not work: %s", e->mountpoint,
			    rc == -EPROTO ? "the kernel's FUSE protocol is none that libfuse knows" : strerror(-rc))
		  : 0;
}

int export_start(struct cache *c, const char *mountpoint, const struct export_params *params, struct export **out,
		 struct bc_error *err)
{
	bool allow_other = params && params->allow_other;
	struct export *e = export_new(c, params);
	const struct export_survive *s;
	int rc;

	if (!e)
		return bc_fail(err, -ENOMEM, "%s: out of memory", mountpoint);
	s = e->survive;
	rc = nodes_init(&e->nodes, c, s ? s->memory_fd : 0, s && s->takeover, err);
	if (rc == 0 && !(s && s->takeover))
		rc = mount_resolve(mountpoint, &e->mountpoint, err);
	if (rc == 0)
		rc = new_session(e, allow_other, err);
	if (rc == 0)
		rc = !s            ? do_mount(e, allow_other, err)
		     : s->takeover ? survive_take_over(e, err)
				   : survive_mount(e, allow_other, err);
	if (rc != 0)
		goto fail;
	rc = workers_start(e, err);
	if (rc == 0 && !(s && s->takeover)) /* a mount that is in use may be slow to answer, or have been moved */
		rc = prove_ready(e, err);
	if (rc == 0 && s)
		rc = survive_check(e, err);
	if (rc != 0) {
		mount_end(&e->mount, true, e->by_fusermount, NULL);
		workers_end(e);
		goto fail;
	}
	*out = e;
	return 0;
fail:
	export_free(e);
	return rc;
}

void export_wait(struct export *e)
{
	workers_wait(e, 0);
}

bool export_unmounted(struct export *e)
{
	struct pollfd p = { .fd = fuse_session_fd(e->session) };

	/* the kernel's end of the connection has gone */
	return (poll(&p, 1, 0) > 0 && (p.revents & POLLERR)) || workers_ended(e);
}

static unsigned wait_for_releases(struct export *e)
{
	unsigned open_files = nodes_open_files(&e->nodes);

	for (int ms = 0; open_files > 0 && ms < RELEASE_GRACE_MS && !workers_wait(e, 10); ms += 10)
		open_files = nodes_open_files(&e->nodes);
	return open_files;
}

int export_stop(struct export *e, bool force, struct bc_error *err)
{
	unsigned open_files;
	int rc;

	if (workers_ended(e))
		return 0;
	/* umount(2) would refuse too, but does not see files that are open through a copy of the mount in another
	 * namespace. */
	open_files = force ? 0 : wait_for_releases(e);
	if (open_files > 0)
		return bc_fail(err, -EBUSY,
			       "%s: in use, %u file%s open: unmount file systems and detach loop devices on it first "
			       "('losetup -l' and 'fuser -vm %s' show them)",
			       e->mountpoint, open_files, open_files == 1 ? " is" : "s are", e->mountpoint);
	rc = mount_end(&e->mount, force, e->by_fusermount, err);
	if (rc != 0)
		return rc;
	if (force || !workers_wait(e, END_GRACE_MS))
		workers_end(e);
	return 0;
}

bool export_abandoned(struct export *e)
{
	bool yes;

	pthread_mutex_lock(&e->lock);
	yes = e->abandoned;
	pthread_mutex_unlock(&e->lock);
	return yes;
}

void export_free(struct export *e)
{
	if (!e)
		return;
	if (e->workers)
		workers_end(e);
	workers_join(e);
	/* Closes /dev/fuse. Never fuse_session_unmount(): it unmounts by name whatever lies there by now. */
	if (e->session)
		fuse_session_destroy(e->session);
	nodes_destroy(&e->nodes);
	pthread_cond_destroy(&e->ended_cond);
	pthread_mutex_destroy(&e->lock);
	free(e->mountpoint);
	free(e);
}

dev_t export_device(const struct export *e)
{
	return makedev(e->mount.major, e->mount.minor);
}

const char *export_mountpoint(const struct export *e)
{
	return e->mountpoint;
}
