/* SPDX-License-Identifier: BSD-3-Clause */
/* cow.c - see cow.h. */
#include "util/cow.h"

#include <errno.h>
#include <linux/fs.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/vfs.h>

#define BTRFS_MAGIC 0x9123683eu
#define ZFS_MAGIC 0x2fc12fc1u
#define BCACHEFS_MAGIC 0xca451a4eu

static const char *file_system(int fd)
{
	struct statfs fs;

	if (fstatfs(fd, &fs))
		return NULL;
	switch ((unsigned)fs.f_type) {
	case BTRFS_MAGIC:
		return "btrfs";
	case ZFS_MAGIC:
		return "ZFS";
	case BCACHEFS_MAGIC:
		return "bcachefs";
	default:
		return NULL;
	}
}

const char *cow_name(int fd)
{
	const char *name = file_system(fd);
	int flags = 0;

	if (name && !ioctl(fd, FS_IOC_GETFLAGS, &flags) && (flags & FS_NOCOW_FL))
		return NULL;
	return name;
}

int cow_switch_off(int fd)
{
	int flags;

	if (!cow_name(fd))
		return 0;
	if (ioctl(fd, FS_IOC_GETFLAGS, &flags))
		return errno == ENOTTY ? -EOPNOTSUPP : -errno;
	flags |= FS_NOCOW_FL;
	if (ioctl(fd, FS_IOC_SETFLAGS, &flags))
		return errno == ENOTTY ? -EOPNOTSUPP : -errno;
	return cow_name(fd) ? -EOPNOTSUPP : 0;
}
