/* SPDX-License-Identifier: BSD-3-Clause */
/* file.h - shared by the two halves of the file module: file.c (device and channels) and file_io.c (system calls on the
 * device). */
#ifndef BDEV_FILE_H
#define BDEV_FILE_H

#include <stdatomic.h>

#include "bdev/claim.h"
#include "bdev/module.h"
#include "bdev/name.h"

/*
 * Direct I/O is used for whole grains only: everything else goes through the page cache, and a page in which a buffered
 * write and a direct write met could be written back with the old contents of the direct one's part. So the two must
 * never share a block of the file system.
 */
#define FILE_GRAIN 4096u

struct file_bdev {
	struct bdev b;
	const char *path; /* within b.spec */
	int fd; /* O_DIRECT, or the same number as buf_fd */
	int buf_fd; /* through the page cache; holds the claim */
	bool block; /* kernel block device */
	uint32_t mem_align, len_align; /* what direct I/O asks of each piece of memory; at most FILE_GRAIN */
	atomic_bool direct; /* cleared when the first direct I/O is refused */
	atomic_bool no_punch, no_zero; /* fallocate said EOPNOTSUPP */
	_Atomic int flush_error; /* the first error of a flush, or 0 */
	struct claim claim;
	struct name_check *name; /* regular files; NULL: cannot be looked at */
};

/* The descriptor for a READ or WRITE of `len` bytes at `off`. */
int file_pick_fd(struct file_bdev *fb, uint64_t off, uint64_t len, const struct iovec *iov, int iovcnt);

/* Settles a READ or WRITE that was tried on descriptor `fd` and gave `res`, bytes or -errno: does the rest of a short
 * one. 0 or -errno. */
int file_finish_rw(struct file_bdev *fb, struct bdev_io *io, int fd, ssize_t res);

/* P6: given the result of an fdatasync, returns what to tell: a flush after a failed one fails too. */
int file_finish_flush(struct file_bdev *fb, int res);

/* Any I/O but RESET, done when it returns. 0 or -errno. */
int file_sync(struct file_bdev *fb, struct bdev_io *io);

#endif
