/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * own_mount.c - a daemon must not open what lies on its own mount: it would wait for itself, and where all its threads
 * die at once (kill -9) nobody is left to answer the one that waits, which then cannot die.
 *
 * So paths are followed here, one name after the other, with O_PATH descriptors and openat: the kernel looks a name up
 * in the folder it lies in, and crosses into a mount at its root, whose inode it has in memory. After each step the
 * device number of what was reached is looked at (statx with AT_STATX_DONT_SYNC, which asks no file system), before
 * anything is looked up in it. That finds the own mount behind symbolic links and bind mounts too. And it finds file
 * systems on it: each device number of a block device is followed down, through partitions, device mapper, RAID and
 * loop devices, to the files that loop devices are made of, as far as sysfs and mountinfo tell.
 *
 * The mount may hide backing devices: those that lie in the folder it is made on. They were opened before. Where such a
 * name is looked at again (name.c), or opened again by a daemon that takes over from a dead one (survive), whose mount
 * nobody serves at that moment, the way goes on in that folder, of which somebody kept a descriptor
 * (bdev_set_own_mount).
 */
#include "bdev/own_mount.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "blkcache/bdev.h"

#ifndef AUTOFS_SUPER_MAGIC
#define AUTOFS_SUPER_MAGIC 0x0187
#endif

#define MAX_LINKS 40 /* symbolic links of one path, as in the kernel */
#define MAX_LEVELS 8 /* devices on devices */
#define FOLLOW (O_PATH | O_CLOEXEC)

static _Atomic uint64_t own_dev; /* 0: there is no mount */
static _Atomic int below_fd = -1;
static atomic_bool loading;

void bdev_set_own_mount(dev_t dev, int below, bool is_loading)
{
	atomic_store(&below_fd, below);
	atomic_store(&loading, is_loading);
	atomic_store(&own_dev, dev);
}

bool own_mount_is_loading(void)
{
	return atomic_load(&loading);
}

struct walk {
	int fd; /* where we are */
	struct statx sx; /* of it */
	unsigned links, level;
	bool below; /* the way goes on below the own mount */
	char rest[2 * PATH_MAX]; /* of the path */
};

static dev_t dev_of(const struct statx *sx)
{
	return makedev(sx->stx_dev_major, sx->stx_dev_minor);
}

/* No request to any file system. */
static int look(int fd, struct statx *sx)
{
	return statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, STATX_TYPE | STATX_MNT_ID, sx)
		       ? -errno
		       : 0;
}

static int follow(const char *path, bool below, unsigned level, int *fd);

/* ---- what lies below a device ---- */

static bool read_line(const char *path, char *buf, size_t len)
{
	FILE *f = fopen(path, "re");
	bool ok = f && fgets(buf, (int)len, f);

	if (f)
		fclose(f);
	if (ok)
		buf[strcspn(buf, "\n")] = 0;
	return ok;
}

static bool device_leads_to_own(dev_t dev, unsigned level);

static bool named_device_leads_to_own(const char *dev_file, unsigned level)
{
	unsigned major_nr, minor_nr;
	char text[40];

	return read_line(dev_file, text, sizeof(text)) && sscanf(text, "%u:%u", &major_nr, &minor_nr) == 2 &&
	       device_leads_to_own(makedev(major_nr, minor_nr), level);
}

/* A block device, by what sysfs says it is made of. */
static bool device_leads_to_own(dev_t dev, unsigned level)
{
	char top[64], path[512], text[PATH_MAX + 32];
	bool found = false;
	struct dirent *d;
	DIR *dir;
	int fd;

	if (!dev || level > MAX_LEVELS)
		return false;
	snprintf(top, sizeof(top), "/sys/dev/block/%u:%u", major(dev), minor(dev));
	snprintf(path, sizeof(path), "%s/loop/backing_file", top);
	if (read_line(path, text, sizeof(text))) {
		int rc = follow(text, false, level + 1, &fd);

		if (!rc)
			close(fd);
		return rc == -EDEADLK;
	}
	snprintf(path, sizeof(path), "%s/partition", top);
	if (!access(path, F_OK)) {
		snprintf(path, sizeof(path), "%s/../dev", top); /* of the whole disk */
		return named_device_leads_to_own(path, level + 1);
	}
	snprintf(path, sizeof(path), "%s/slaves", top);
	dir = opendir(path);
	while (dir && !found && (d = readdir(dir))) {
		if (d->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/slaves/%.200s/dev", top, d->d_name);
		found = named_device_leads_to_own(path, level + 1);
	}
	if (dir)
		closedir(dir);
	return found;
}

/* A file system without a device number of its own (btrfs): the device it was mounted from. */
static dev_t mount_source(uint64_t mnt_id)
{
	FILE *f = fopen("/proc/self/mountinfo", "re");
	char line[2 * PATH_MAX], source[PATH_MAX];
	unsigned long long id;
	struct stat st;
	dev_t dev = 0;

	while (f && fgets(line, sizeof(line), f)) {
		const char *dash = strstr(line, " - ");

		if (sscanf(line, "%llu", &id) != 1 || id != mnt_id)
			continue;
		if (dash && sscanf(dash, " - %*s %4095s", source) == 1 && !strncmp(source, "/dev/", 5) &&
		    !stat(source, &st) && S_ISBLK(st.st_mode))
			dev = st.st_rdev;
		break;
	}
	if (f)
		fclose(f);
	return dev;
}

static bool file_system_leads_to_own(const struct statx *sx, unsigned level)
{
	dev_t dev = dev_of(sx);

	if (!major(dev) && (sx->stx_mask & STATX_MNT_ID))
		dev = mount_source(sx->stx_mnt_id);
	return major(dev) && device_leads_to_own(dev, level);
}

/* ---- the way ---- */

/* Takes fd. 0, or -EDEADLK: it is the own mount, or lies on it. */
static int step_to(struct walk *w, int fd)
{
	dev_t before = dev_of(&w->sx);
	int rc = look(fd, &w->sx), below = w->below ? atomic_load(&below_fd) : -1;

	if (!rc && dev_of(&w->sx) == atomic_load(&own_dev)) {
		close(fd);
		fd = below >= 0 ? fcntl(below, F_DUPFD_CLOEXEC, 0) : -1;
		rc = fd >= 0 ? look(fd, &w->sx) : -EDEADLK;
	}
	if (!rc && dev_of(&w->sx) != before && file_system_leads_to_own(&w->sx, w->level))
		rc = -EDEADLK;
	if (!rc && S_ISBLK(w->sx.stx_mode) &&
	    device_leads_to_own(makedev(w->sx.stx_rdev_major, w->sx.stx_rdev_minor), w->level))
		rc = -EDEADLK;
	if (rc) {
		if (fd >= 0)
			close(fd);
		return rc;
	}
	if (w->fd >= 0)
		close(w->fd);
	w->fd = fd;
	return 0;
}

static int step_to_path(struct walk *w, const char *path)
{
	int fd = open(path, FOLLOW);

	return fd < 0 ? -errno : step_to(w, fd);
}

static bool lies_on(int fd, long magic)
{
	struct statfs fs;

	return !fstatfs(fd, &fs) && fs.f_type == magic;
}

/* `name`, in the folder we are in, is the symbolic link `fd`: its text goes before the rest of the way. Takes fd. */
static int step_along_link(struct walk *w, const char *name, int fd)
{
	char text[PATH_MAX], rest[2 * PATH_MAX];
	ssize_t n;
	int rc;

	if (++w->links > MAX_LINKS) {
		close(fd);
		return -ELOOP;
	}
	if (lies_on(fd,
		    PROC_SUPER_MAGIC)) { /* some lead to where no path does; the kernel goes there without a look-up */
		close(fd);
		fd = openat(w->fd, name, FOLLOW);
		return fd < 0 ? -errno : step_to(w, fd);
	}
	n = readlinkat(fd, "", text, sizeof(text) - 1);
	rc = n < 0 ? -errno : 0;
	close(fd);
	if (rc)
		return rc;
	text[n] = 0;
	if (snprintf(rest, sizeof(rest), "%s/%s", text, w->rest) >= (int)sizeof(rest))
		return -ENAMETOOLONG;
	memcpy(w->rest, rest, sizeof(rest));
	return text[0] == '/' ? step_to_path(w, "/") : 0;
}

static int step(struct walk *w, const char *name)
{
	struct statx sx;
	int fd = openat(w->fd, name, FOLLOW | O_NOFOLLOW), rc;

	if (fd < 0)
		return -errno;
	rc = look(fd, &sx);
	if (rc) {
		close(fd);
		return rc;
	}
	if (S_ISLNK(sx.stx_mode) && dev_of(&sx) != atomic_load(&own_dev))
		return step_along_link(w, name, fd);
	if (S_ISDIR(sx.stx_mode) && dev_of(&sx) != atomic_load(&own_dev) && !sx.stx_dev_major &&
	    lies_on(fd, AUTOFS_SUPER_MAGIC)) {
		char through[NAME_MAX + 3];

		close(fd);
		snprintf(through, sizeof(through), "%s/.", name); /* as part of a way it is mounted */
		fd = openat(w->fd, through, FOLLOW);
		if (fd < 0)
			return -errno;
	}
	return step_to(w, fd);
}

/* Takes the next name out of the rest; false at the end. */
static bool next_name(struct walk *w, char *name, int *rc)
{
	const char *p = w->rest + strspn(w->rest, "/");
	size_t n = strcspn(p, "/");

	if (!n)
		return false;
	if (n > NAME_MAX) {
		*rc = -ENAMETOOLONG;
		return false;
	}
	memcpy(name, p, n);
	name[n] = 0;
	memmove(w->rest, p + n, strlen(p + n) + 1);
	return true;
}

/* 0 and the descriptor, -EDEADLK: to the own mount, or -errno. */
static int follow(const char *path, bool below, unsigned level, int *fd)
{
	struct walk *w;
	char name[NAME_MAX + 1];
	int rc;

	if (strlen(path) >= PATH_MAX)
		return -ENAMETOOLONG;
	w = calloc(1, sizeof(*w));
	if (!w)
		return -ENOMEM;
	w->fd = -1;
	w->level = level;
	w->below = below;
	snprintf(w->rest, sizeof(w->rest), "%s", path);
	rc = step_to_path(w, path[0] == '/' ? "/" : ".");
	while (!rc && next_name(w, name, &rc))
		if (strcmp(name, "."))
			rc = step(w, name);
	if (!rc)
		*fd = w->fd;
	else if (w->fd >= 0)
		close(w->fd);
	free(w);
	return rc;
}

int own_mount_resolve(const char *path, bool below, int *fd, struct bc_error *err)
{
	int rc;

	*fd = -1;
	if (!atomic_load(&own_dev))
		return 0;
	rc = follow(path, below, 0, fd);
	if (rc != -EDEADLK)
		return rc;
	return bc_fail(
		err, rc,
		"%s lies on the mount of this very cache, which would have to wait for itself; name the file or disk "
		"that the volume there is a cache of, or another one",
		path);
}
