/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * open.c - opening a device that may never answer (bdev_open_patiently): a dead NFS server, a FUSE file system whose
 * daemon is stopped, a disk that hangs.
 *
 * A thread that waits for such a device may not be killable, and a process whose thread does not die keeps all its
 * descriptors open: a daemon killed meanwhile would leave its mount to clients that wait for good, and its cache
 * locked. So the path is tried first on a thread that has given up all descriptors of the process (its table is a copy
 * of its own, emptied). Only what answers there is opened in earnest, again on another thread.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bdev/module.h"
#include "bdev/own_mount.h"
#include "util/patience.h"

struct opening {
	char *spec;
	unsigned flags;
	struct bdev *bdev;
	int rc;
	struct bc_error err;
};

static void opening_free(struct opening *o)
{
	free(o->spec);
	free(o);
}

/* Only whether it answers: what is wrong with it the open in earnest will say. */
static void try_path(void *arg)
{
	struct opening *o = arg;
	const char *path = bdev_spec_path(o->spec);
	struct stat st;
	int fd;

	if (!path || close_range(0, ~0u, CLOSE_RANGE_UNSHARE))
		return;
	o->rc = own_mount_resolve(path, false, &fd, &o->err);
	if (o->rc == -EDEADLK)
		return;
	o->rc = 0;
	if (fd >= 0)
		close(fd);
	if (stat(path, &st) || !S_ISREG(st.st_mode))
		return; /* opening a kernel block device, or a pipe, does things */
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd >= 0)
		close(fd);
}

static void tried_late(void *arg)
{
	opening_free(arg);
}

static void open_it(void *arg)
{
	struct opening *o = arg;

	o->rc = bdev_open(o->spec, o->flags, &o->bdev, &o->err);
}

static void opened_late(void *arg)
{
	struct opening *o = arg;

	bdev_close(o->bdev);
	opening_free(o);
}

static int explain(int rc, const char *spec, struct bc_error *err)
{
	switch (rc) {
	case -ETIMEDOUT:
		return bc_fail(
			err, rc,
			"%s does not answer: it could not be opened in all the time that was given to it; is its "
			"server, or the disk, all right?",
			spec);
	case -EINTR:
		return bc_fail(err, rc, "interrupted while waiting for %s, which has not answered yet", spec);
	default:
		return bc_fail(
			err, rc,
			"%s: no thread can be started to open it (%u others wait for devices that do not answer)", spec,
			patience_left());
	}
}

int bdev_open_patiently(const char *spec, unsigned flags, const struct patience *patience, struct bdev **out,
			struct bc_error *err)
{
	struct opening *o;
	int rc;

	if (!patience)
		return bdev_open(spec, flags, out, err);
	*out = NULL;
	o = calloc(1, sizeof(*o));
	if (o)
		o->spec = strdup(spec);
	if (!o || !o->spec) {
		free(o);
		return bc_fail(err, -ENOMEM, "%s: out of memory", spec);
	}
	o->flags = flags;
	rc = run_patiently(try_path, o, tried_late, patience);
	if (!rc && !o->rc)
		rc = run_patiently(open_it, o, opened_late, patience);
	if (rc && rc != -EAGAIN)
		return explain(rc, spec, err); /* o is the thread's now */
	if (rc) {
		explain(rc, spec, err);
	} else {
		rc = o->rc;
		*out = o->bdev;
		if (rc && err)
			*err = o->err;
	}
	opening_free(o);
	return rc;
}
