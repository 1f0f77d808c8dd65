/* SPDX-License-Identifier: BSD-3-Clause */
/* error.h - changing an error device's rules while it is in use. For tests; error.c describes the rules. Any thread. */
#ifndef BDEV_ERROR_H
#define BDEV_ERROR_H

#include <stdint.h>

#include "blkcache/bdev.h"

/* Replaces the rules, and starts their counters anew; "" ends all errors. Acts on the first error device at or below
 * `bdev`. I/O that a rule has already failed stays failed. -EINVAL (the old rules stay), -ENODEV: there is no error
 * device. */
int bdev_error_set(struct bdev *bdev, const char *rules, struct bc_error *err);

/* I/Os failed since the device was opened; 0 if there is no error device. */
uint64_t bdev_error_injected(struct bdev *bdev);

#endif
