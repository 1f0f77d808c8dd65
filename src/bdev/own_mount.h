/* SPDX-License-Identifier: BSD-3-Clause */
/* own_mount.h - paths that lead to the mount which this process itself serves. Any thread. */
#ifndef BDEV_OWN_MOUNT_H
#define BDEV_OWN_MOUNT_H

#include <stdbool.h>

#include "blkcache/error.h"

/*
 * Follows a path without asking the own mount anything, and without waiting for I/O below it. 0: *fd is an O_PATH
 * descriptor of what the path leads to, to be closed by the caller; -1 if this process serves no mount. -EDEADLK with a
 * message: it leads to the own mount. Another -errno without one: it leads nowhere. below: the name is from before the
 * mount was made, and goes on in the folder below it.
 */
int own_mount_resolve(const char *path, bool below, int *fd, struct bc_error *err);

/* Are names that are opened now to be taken as they were before the mount was made? */
bool own_mount_is_loading(void);

#endif
