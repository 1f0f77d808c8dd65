/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * name.c - does a path still lead to the file that was opened by it? A file that was deleted, or that another one was
 * moved over, goes on working for those that have it open, and is gone when the last of them closes it.
 *
 * A look-up can hang for ever (a network file system without its server), so it runs in a thread of its own, which the
 * caller waits for only so long. A look-up under way is not begun again: at most one thread of a device hangs.
 */
#include "bdev/name.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bdev/own_mount.h"
#include "util/deadline.h"

struct name_check {
	pthread_mutex_t lock;
	pthread_cond_t done_cond;
	unsigned refs; /* the device's, and the thread's while it runs */
	bool running;
	bool late; /* and somebody has waited for it in vain */
	int result;
	const char *why;
	int fd; /* O_PATH: holds neither a lock nor a claim on the file */
	char path[];
};

struct name_check *name_check_new(int fd, const char *path)
{
	size_t len = strlen(path) + 1;
	struct name_check *n = calloc(1, sizeof(*n) + len);
	pthread_condattr_t attr;
	char proc[40];

	if (!n)
		return NULL;
	snprintf(proc, sizeof(proc), "/proc/self/fd/%d", fd);
	n->fd = open(proc, O_PATH | O_CLOEXEC);
	if (n->fd < 0) {
		free(n);
		return NULL;
	}
	memcpy(n->path, path, len);
	pthread_mutex_init(&n->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&n->done_cond, &attr);
	pthread_condattr_destroy(&attr);
	n->refs = 1;
	return n;
}

static void destroy(struct name_check *n)
{
	close(n->fd);
	pthread_mutex_destroy(&n->lock);
	pthread_cond_destroy(&n->done_cond);
	free(n);
}

static void put(struct name_check *n)
{
	bool last;

	pthread_mutex_lock(&n->lock);
	last = !--n->refs;
	pthread_mutex_unlock(&n->lock);
	if (last)
		destroy(n);
}

void name_check_free(struct name_check *n)
{
	if (n)
		put(n);
}

/* What is wrong, or NULL. */
static const char *look(const struct name_check *n)
{
	struct stat open_now, named;
	bool gone;
	int fd, rc;

	if (fstat(n->fd, &open_now))
		return NULL;
	/* the mount of this very process may hide the name, and is not to be asked (own_mount.h) */
	rc = own_mount_resolve(n->path, true, &fd, NULL);
	if (!rc && fd >= 0) {
		gone = fstat(fd, &named);
		close(fd);
	} else if (!rc) {
		gone = stat(n->path, &named);
	} else {
		gone = true;
		errno = -rc;
	}
	if (gone && errno != ENOENT && errno != ENOTDIR)
		return NULL; /* no permission, an error: that says nothing of the file */
	if (!gone && named.st_dev == open_now.st_dev && named.st_ino == open_now.st_ino)
		return NULL;
	if (!open_now.st_nlink)
		return gone ? "was deleted" : "was deleted, and another file has its name";
	return gone ? "was moved away or deleted" : "was moved away, and another file has its name";
}

static void *look_main(void *arg)
{
	struct name_check *n = arg;
	const char *why = look(n);
	bool last;

	pthread_mutex_lock(&n->lock);
	n->why = why;
	n->result = why ? -ESTALE : 0;
	n->running = false;
	/* before anybody is told: who closes the device then closes its descriptors, and not this thread a bit later */
	last = !--n->refs;
	pthread_cond_broadcast(&n->done_cond);
	pthread_mutex_unlock(&n->lock);
	if (last)
		destroy(n);
	return NULL;
}

static int start(struct name_check *n)
{
	pthread_attr_t attr;
	pthread_t thread;
	int r;

	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, 512 << 10);
	r = pthread_create(&thread, &attr, look_main, n);
	pthread_attr_destroy(&attr);
	if (r)
		return -r;
	n->refs++;
	n->running = true;
	n->late = false;
	return 0;
}

int name_check(struct name_check *n, unsigned ms, char *why, size_t len)
{
	struct timespec until = deadline_us((uint64_t)ms * 1000);
	int r = 0;

	pthread_mutex_lock(&n->lock);
	if (!n->running)
		r = start(n);
	while (!r && n->running && !n->late)
		if (pthread_cond_timedwait(&n->done_cond, &n->lock, &until))
			n->late = n->running;
	if (!r)
		r = n->running ? -ETIMEDOUT : n->result;
	if (r == -ESTALE)
		snprintf(why, len, "%s (its data is there as /proc/%d/fd/%d)", n->why, (int)getpid(), n->fd);
	pthread_mutex_unlock(&n->lock);
	return r == -ESTALE || !r ? r : -ETIMEDOUT;
}
