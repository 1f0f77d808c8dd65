/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * mount.c - mounting and unmounting, with messages that tell the reasons apart.
 *
 * libfuse's own mount prints its errors and keeps their reason to itself, and its unmount is lazy: it succeeds while
 * files are open. So with privileges mount(2) and umount2(2) are called here; without, libfuse and fusermount3 do it.
 * Called from the thread that starts or stops the export.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "internal.h"

extern char **environ;

static int explain_path(const char *path, int code, struct bc_error *err)
{
	switch (code) {
	case ENOENT:
		return bc_fail(err, -code, "%s: the mount point does not exist: make it with 'mkdir %s'", path, path);
	case ENOTDIR:
		return bc_fail(err, -code, "%s: the mount point is not a folder: name an empty folder", path);
	case ENOTCONN:
		return bc_fail(err, -code,
			       "%s: a stale mount of a daemon that has died lies here: remove it with 'umount %s'",
			       path, path);
	case EACCES:
		return bc_fail(err, -code, "%s: no permission to use the mount point: run as root or its owner", path);
	case ENAMETOOLONG:
		return bc_fail(err, -code, "%.60s...: the path of the mount point is too long: use a shorter one",
			       path);
	default:
		return bc_fail(err, -code, "%s: cannot use the mount point: %s: name another folder", path,
			       strerror(code));
	}
}

/* Absolute path of a folder that can be mounted on. */
int mount_resolve(const char *mountpoint, char **out, struct bc_error *err)
{
	char *path = realpath(mountpoint, NULL);
	struct statfs fs;
	struct stat st;
	int rc = 0;

	if (!path)
		return explain_path(mountpoint, errno, err);
	if (stat(path, &st) != 0 || statfs(path, &fs) != 0) {
		rc = explain_path(path, errno, err);
	} else if (!S_ISDIR(st.st_mode)) {
		rc = explain_path(path, ENOTDIR, err);
	} else if (fs.f_type == FUSE_SUPER_MAGIC && st.st_ino == ROOT_INO) {
		rc = bc_fail(err, -EBUSY,
			     "%s: a FUSE file system is mounted here already: unmount it or name another folder", path);
	}
	if (rc != 0)
		free(path);
	else
		*out = path;
	return rc;
}

int export_check_mountpoint(const char *mountpoint, struct bc_error *err)
{
	char *path = NULL;
	int rc = mount_resolve(mountpoint, &path, err);

	free(path);
	return rc;
}

dev_t mount_device(const char *path)
{
	int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	struct statx sx;
	dev_t dev = 0;

	if (fd < 0)
		return 0;
	if (!statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &sx))
		dev = makedev(sx.stx_dev_major, sx.stx_dev_minor);
	close(fd);
	return dev;
}

int mount_open_device(int *fd, struct bc_error *err)
{
	int dev = open("/dev/fuse", O_RDWR | O_CLOEXEC);

	if (dev < 0 && (errno == ENOENT || errno == ENODEV || errno == ENXIO))
		return bc_fail(err, -errno,
			       "/dev/fuse: %s: load FUSE with 'modprobe fuse', in a container pass the device in",
			       strerror(errno));
	if (dev < 0)
		return bc_fail(err, -errno, "/dev/fuse: %s: run as root or allow the user to open it", strerror(errno));
	*fd = dev;
	return 0;
}

int mount_on(const char *path, bool allow_other, int dev, struct bc_error *err)
{
	char options[160];

	snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=%u,group_id=%u,default_permissions%s", dev,
		 getuid(), getgid(), allow_other ? ",allow_other" : "");
	if (mount("blkcache", path, "fuse.blkcache", MS_NOSUID | MS_NODEV, options) == 0)
		return 0;
	if (errno == EPERM)
		return -EPERM;
	return bc_fail(err, -errno, "%s: cannot mount: %s", path, strerror(errno));
}

int mount_direct(const char *path, bool allow_other, int *fd, struct bc_error *err)
{
	int dev, rc = mount_open_device(&dev, err);

	if (rc != 0)
		return rc;
	rc = mount_on(path, allow_other, dev, err);
	if (rc != 0)
		close(dev);
	else
		*fd = dev;
	return rc;
}

/* fusermount3 prints its reason on its own; it is not passed on, since "busy" is the one that matters. */
static int run_fusermount(const char *path, bool lazy)
{
	char *argv[] = {
		"fusermount3", "-u", "-q", lazy ? "-z" : "--", lazy ? "--" : (char *)path, lazy ? (char *)path : NULL,
		NULL
	};
	pid_t pid;
	int status, rc;

	rc = posix_spawnp(&pid, "fusermount3", NULL, NULL, argv, environ);
	if (rc != 0)
		return -rc;
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EBUSY;
}

int mount_end(const char *path, bool lazy, bool by_fusermount, struct bc_error *err)
{
	int rc;

	if (by_fusermount)
		rc = run_fusermount(path, lazy);
	else
		rc = umount2(path, lazy ? MNT_DETACH | UMOUNT_NOFOLLOW : UMOUNT_NOFOLLOW) == 0 ? 0 : -errno;
	switch (rc) {
	case 0:
	case -EINVAL: /* somebody else was faster */
	case -ENOENT:
		return 0;
	case -EBUSY:
		return bc_fail(err, rc,
			       "%s: in use, perhaps as somebody's working folder: leave it ('fuser -vm %s' shows who)",
			       path, path);
	default:
		return bc_fail(err, rc, "%s: cannot unmount: %s: unmount it with 'umount %s'", path, strerror(-rc),
			       path);
	}
}
