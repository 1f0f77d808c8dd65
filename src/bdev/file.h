/* SPDX-License-Identifier: BSD-3-Clause */
/* file.h - shared by the two halves of the file module: file.c (device and channels) and file_io.c (system calls on the
 * device). */
#ifndef BDEV_FILE_H
#define BDEV_FILE_H

#include <pthread.h>
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

/* One flush of the device under way (flush.c). `next` is NULL and `prev` undefined when it is on no list. */
struct file_flush {
	struct file_flush *next, **prev;
	bool returned; /* its system call came back with success */
};

struct file_flushes {
	pthread_mutex_t lock; /* a leaf */
	pthread_cond_t changed; /* CLOCK_MONOTONIC */
	struct file_flush *first, **last; /* in order: begun, or begun and then returned */
	int error; /* the first error of a flush, or 0; final (P6) */
};

struct file_bdev {
	struct bdev b;
	const char *path; /* within b.spec */
	int fd; /* O_DIRECT, or the same number as buf_fd */
	int buf_fd; /* through the page cache; holds the claim */
	bool block; /* kernel block device */
	bool inodes_last, times_last; /* what the file system says of a file is so after its next mount, too */
	uint32_t mem_align, len_align; /* what direct I/O asks of each piece of memory; at most FILE_GRAIN */
	atomic_bool direct; /* cleared when the first direct I/O is refused */
	atomic_bool no_punch, no_zero; /* fallocate said EOPNOTSUPP */
	struct file_flushes flushes;
	struct claim claim;
	struct name_check *name; /* regular files; NULL: cannot be looked at */
};

/* The descriptor for a READ or WRITE of `len` bytes at `off`. */
int file_pick_fd(struct file_bdev *fb, uint64_t off, uint64_t len, const struct iovec *iov, int iovcnt);

/* Settles a READ or WRITE that was tried on descriptor `fd` and gave `res`, bytes or -errno: does the rest of a short
 * one. 0 or -errno. */
int file_finish_rw(struct file_bdev *fb, struct bdev_io *io, int fd, ssize_t res);

/* ---- flush.c: what a flush may tell (P6). Any thread. ---- */

void file_flushes_init(struct file_flushes *fs);
void file_flushes_destroy(struct file_flushes *fs); /* none is under way */
/* Before the system call. 0, or the error of an earlier flush: then there is no call to make and nothing to end. */
int file_flush_begin(struct file_bdev *fb, struct file_flush *f);
/* After it, with its result. FLUSH_UNSETTLED: success may not be told yet, and file_flush_settle() says when; anything
 * else, 0 or -errno, is the answer. */
#define FLUSH_UNSETTLED 1
int file_flush_end(struct file_bdev *fb, struct file_flush *f, int res);
/* wait_us: how long to wait for the answer at most; 0: look only. 0, -errno, or FLUSH_UNSETTLED. */
int file_flush_settle(struct file_bdev *fb, struct file_flush *f, uint64_t wait_us);
int file_flush_wait(struct file_bdev *fb, struct file_flush *f); /* until patience ends. 0 or -errno */
/* All of it with fdatasync, or with fsync of buf_fd (`identity`). */
int file_flush_sync(struct file_bdev *fb, bool identity);

/* Any I/O but RESET, done when it returns. 0 or -errno. */
int file_sync(struct file_bdev *fb, struct bdev_io *io);

#endif
