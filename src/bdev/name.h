/* SPDX-License-Identifier: BSD-3-Clause */
/* name.h - is the file that was opened still the one that its name leads to? Any thread. */
#ifndef BDEV_NAME_H
#define BDEV_NAME_H

#include <stddef.h>

struct name_check;

/* fd: of the file; need not stay open. NULL if that cannot be had. */
struct name_check *name_check_new(int fd, const char *path);
void name_check_free(struct name_check *n); /* never waits for a look-up; NULL is allowed */

/* As bdev_check_name(). */
int name_check(struct name_check *n, unsigned ms, char *why, size_t len);

#endif
