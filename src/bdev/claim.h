/* SPDX-License-Identifier: BSD-3-Clause */
/* claim.h - one writer per file or kernel block device, within this process and among processes (P10). */
#ifndef BDEV_CLAIM_H
#define BDEV_CLAIM_H

#include <stdbool.h>
#include <sys/stat.h>

#include "blkcache/error.h"

struct claim {
	struct claim *next;
	dev_t dev;
	ino_t ino; /* 0: a kernel block device */
	bool held;
};

/*
 * Claims what fd has open and st describes. A kernel block device must have been opened with O_EXCL (perhaps on another
 * descriptor): that is its claim towards others. The claim lasts until fd (and every duplicate, a forked child's
 * included) is closed and what was submitted through it is done. -EBUSY with the holder in the message, if it can be
 * found.
 */
int claim_take(struct claim *c, int fd, const struct stat *st, const char *path, struct bc_error *err);

/* Before fd is closed. Nothing happens if it is not held. */
void claim_drop(struct claim *c);

/* The message for a kernel block device whose open with O_EXCL said EBUSY. Returns -EBUSY. */
int claim_fail_block(const struct stat *st, const char *path, struct bc_error *err);

#endif
