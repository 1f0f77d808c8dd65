/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * mount.c - mounting, with messages that tell the reasons apart. How a mount ends: mounts.c.
 *
 * libfuse's own mount prints its errors and keeps their reason to itself, and its unmount is lazy: it succeeds while
 * files are open. So with privileges mount(2) is called here; without, libfuse and fusermount3 do it. Called from the
 * thread that starts the export.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "internal.h"

static int explain_path(const char *path, int code, struct bc_error *err)
{
	switch (code) {
	case ENOENT:
		return bc_fail(err, -code, "%s: the mount point does not exist: make it with 'mkdir %s'", path, path);
	case ENOTDIR:
		return bc_fail(err, -code, "%s: the mount point is not a folder: name an empty folder", path);
	case ENOTCONN:
		return bc_fail(err, -code, "%s: the mount of a dead daemon is still here; run 'umount %s'", path, path);
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

int mount_on(const char *path, const char *source, bool allow_other, int dev, struct bc_error *err)
{
	char options[160];

	snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=%u,group_id=%u,default_permissions%s", dev,
		 getuid(), getgid(), allow_other ? ",allow_other" : "");
	if (mount(source, path, "fuse.blkcache", MS_NOSUID | MS_NODEV, options) == 0)
		return 0;
	if (errno == EPERM)
		return -EPERM;
	return bc_fail(err, -errno, "%s: cannot mount: %s", path, strerror(errno));
}

int mount_direct(const char *path, const char *source, bool allow_other, int *fd, struct bc_error *err)
{
	int dev, rc = mount_open_device(&dev, err);

	if (rc != 0)
		return rc;
	rc = mount_on(path, source, allow_other, dev, err);
	if (rc != 0)
		close(dev);
	else
		*fd = dev;
	return rc;
}
