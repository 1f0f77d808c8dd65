/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * bdev.h - block devices: one interface over files, kernel block devices, memory and test devices.
 *
 * A *device* is opened by a spec: a path ("/data/disk.img", "./disk.img", any text without a registered module name
 * before its first ':'), or "MODULE" / "MODULE:ARGS". Wrapping modules nest to the right: what follows their own
 * key=value list and a ':' is the spec of the device below, for example
 *     delay:read=5ms,write=5ms:/data/disk.img
 *     error:op=write,nth=3:delay:read=1ms:null:size=1G
 *
 * A *channel* is a thread's way to a device. A channel belongs to one thread at a time (it has no lock) and may change
 * hands only while nothing is in flight; a device may have any number of channels. I/O is submitted asynchronously and
 * completes, in any order, on the channel it was submitted on, in a call of bdev_poll() or bdev_rw_wait(). Every
 * submitted bdev_io is completed exactly once: io->result is set, then io->done (if not NULL) is called.
 *
 * Offsets and lengths are bytes. Any range inside the device is accepted for every type; ranges and memory aligned to
 * bdev_alignment() are fast, others may be bounced. A range beyond bdev_size() completes with -EINVAL. READ and WRITE
 * are never short: they transfer everything or fail.
 *
 * A WRITE is durable once a FLUSH submitted after its completion has completed. FLUSH on a device without a volatile
 * cache succeeds at once (-EOPNOTSUPP from below counts as "no volatile cache"). After a FLUSH of a file has failed,
 * every later one fails while it is open (P6). UNMAP and WRITE_ZEROES both read back as zeros after completion; UNMAP
 * lets the device give the space back, and falls back to writing zeros where the device cannot.
 */
#ifndef BLKCACHE_BDEV_H
#define BLKCACHE_BDEV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "blkcache/error.h"

struct bdev;
struct bdev_channel;

enum bdev_io_type {
	BDEV_READ,
	BDEV_WRITE,
	BDEV_FLUSH, /* offset and length are ignored: the whole device */
	BDEV_UNMAP,
	BDEV_WRITE_ZEROES,
	BDEV_RESET, /* abort what can be aborted; completes after everything submitted before it on this channel */
	BDEV_IO_TYPES
};

struct bdev_io {
	enum bdev_io_type type;
	uint64_t offset; /* bytes */
	uint64_t length; /* bytes; for READ and WRITE the sum of iov */
	struct iovec *iov; /* caller's, must stay until completion */
	int iovcnt; /* at most BDEV_MAX_IOV */
	int result; /* out: 0 or -errno */
	void (*done)(struct bdev_io *io); /* may submit more I/O; may be NULL */
	void *ctx; /* the caller's */
	/* from here on: private to the device layer */
	struct bdev_io *next;
	uint64_t priv[8];
};

#define BDEV_MAX_IOV 1024

/* bdev_open() flags */
#define BDEV_OPEN_RDONLY 0x1 /* refuse WRITE, UNMAP, WRITE_ZEROES with -EROFS */
#define BDEV_OPEN_CLAIM                                                                                                \
	0x2 /* be the only writer (P10): -EBUSY if anyone, here or in another process, has claimed it. */

/* What a device was, so that a later open can notice another one in its place (P10). */
struct bdev_identity {
	uint64_t size; /* bytes */
	/* file: st_dev, st_ino (0 where the file system makes up new numbers at each mount); kernel block device:
	 * st_rdev, 0; others: 0, 0. 0: nothing to compare */
	uint64_t id[2];
	int64_t mtime_ns; /* modification time, or 0 where the device has none; a loop device has its file's */
};

/*
 * What else is known of a device, as lines "key=value", for people and to be compared with what was known another time:
 * serial numbers, UUIDs, a lasting path, how much was written to it. "" if there is nothing. label.c lists the keys.
 */
#define BDEV_LABEL_MAX 1024
enum bdev_sameness { BDEV_UNKNOWN, BDEV_SAME, BDEV_OTHER };

/*
 * Opens the device named by spec. On success *out is the caller's, to be closed with bdev_close(). The error message
 * names the device, the reason and what to do (missing, no permission, directory, in use by whom if known, size 0,
 * ...). Any thread. -ENOENT, -EACCES, -EBUSY, -EINVAL (bad spec), ...
 */
int bdev_open(const char *spec, unsigned flags, struct bdev **out, struct bc_error *err);

struct patience; /* util/patience.h */
/*
 * The same for a device that may never answer: waits on another thread, and the caller has enough of it after its
 * patience: -ETIMEDOUT or -EINTR with a message that names the device. Should the open succeed after that, the device
 * is closed again. patience NULL: as bdev_open().
 */
int bdev_open_patiently(const char *spec, unsigned flags, const struct patience *patience, struct bdev **out,
			struct bc_error *err);

/*
 * This process serves the mount whose files have the device number `dev` (0: none any more). From now on an open of
 * what lies there fails with -EDEADLK, and no open asks that mount anything. below: descriptor of the folder it is
 * mounted on, opened before that (borrowed), through which names of before lead on; -1: there is none. loading: all
 * names that are opened are of before.
 */
void bdev_set_own_mount(dev_t dev, int below, bool loading);

/* The path of the file or kernel block device at the end of a spec; NULL: there is none. Part of `spec`. */
const char *bdev_spec_path(const char *spec);

/* What people know the device as ("volume v"), for messages. Before others use it. */
void bdev_set_use(struct bdev *bdev, const char *use);

/*
 * Is there an open device that somebody has been waiting for at least `ms`: for a write, a flush, a discard, a look at
 * its identity, its end? Its use and spec go to buf. Any thread; waits for nobody.
 */
bool bdev_find_hung(unsigned ms, char *buf, size_t len);

/* All channels must have been closed before. NULL is allowed. */
void bdev_close(struct bdev *bdev);
/* One more bdev_close() is to come before the device is closed. */
void bdev_hold(struct bdev *bdev);

uint64_t bdev_size(const struct bdev *bdev); /* bytes, fixed while open */
uint32_t bdev_alignment(const struct bdev *bdev); /* 1 to 4096: for offset, length and memory of fast I/O */
const char *bdev_spec(const struct bdev *bdev); /* as opened */
const char *bdev_module_name(const struct bdev *bdev);
bool bdev_io_type_supported(struct bdev *bdev, enum bdev_io_type type); /* natively, without falling back */
void bdev_get_identity(struct bdev *bdev, struct bdev_identity *id); /* as of now; cheap (one fstat) */
/* Makes what bdev_get_identity reports survive a power loss, the modification time too, of which a FLUSH may take no
 * care. Blocks. 0 or -errno. */
int bdev_sync_identity(struct bdev *bdev);
/* As of now; reads a few files of the kernel's, never the device. */
void bdev_get_label(struct bdev *bdev, char label[BDEV_LABEL_MAX]);
/* Of the kernel block device that a path names; "" if it names none. Nothing is opened. */
void bdev_label_of_path(const char *path, char label[BDEV_LABEL_MAX]);
enum bdev_sameness bdev_label_compare(const char *then, const char *now);
/* 1: nobody wrote to it in between; -1: somebody did; 0: that cannot be told. */
int bdev_label_unwritten(const char *then, const char *now);
/* The value of a key, or "". */
void bdev_label_get(const char *label, const char *key, char *value, size_t len);
/* Its identity in a few words. */
void bdev_label_describe(const char *label, char *text, size_t len);
/* Looks for the kernel block device that has this label's identity and size. False: there is none, or more than one. */
bool bdev_label_find(const char *label, uint64_t size, char *path, size_t len);

/*
 * Does the name that it was opened by still lead to it? For regular files; others always say yes. 0: yes; -ESTALE: no,
 * and `why` says it ("was deleted"); -ETIMEDOUT: the look-up takes longer than `ms` (a network file system that does
 * not answer): it goes on in a thread of its own, and until it ends the answer is this one, at once.
 */
int bdev_check_name(struct bdev *bdev, unsigned ms, char *why, size_t len);
/* Has the file no name at all any more, so that it goes with this process? Does not look up names. */
bool bdev_is_deleted(struct bdev *bdev);

/* 0: the size seen now equals that at open; -ESTALE: the device shrank or grew. */
int bdev_check_size(struct bdev *bdev);

/* One line of "key=value ..." for people; and the canonical spec. Neither ends with a newline. */
void bdev_dump_info(struct bdev *bdev, FILE *out);
void bdev_write_config(struct bdev *bdev, FILE *out);

/* `depth`: I/Os the channel should keep in flight at the device at once (more may be submitted; they queue). 0 = 64.
 * NULL on ENOMEM and the like (errno set). */
struct bdev_channel *bdev_channel_open(struct bdev *bdev, unsigned depth);
void bdev_channel_close(struct bdev_channel *ch); /* nothing may be in flight; NULL is allowed */
struct bdev *bdev_channel_bdev(struct bdev_channel *ch);

/* Queues an I/O; never blocks for its completion, never calls done() itself. bdev_poll() starts what is queued, as one
 * batch. */
void bdev_submit(struct bdev_channel *ch, struct bdev_io *io);

/* Starts everything queued, waits until at least min_complete I/Os have completed (0: only looks), calls their done()
 * and returns how many completed. min_complete above what is in flight is lowered to it. */
unsigned bdev_poll(struct bdev_channel *ch, unsigned min_complete);
unsigned bdev_in_flight(const struct bdev_channel *ch); /* submitted, not yet completed */

/*
 * Submits n I/Os on one channel and waits for all of them. Returns 0 or the first error in array order; every result is
 * set. Other I/O in flight on the channel may complete meanwhile. A single I/O may be done with a plain system call;
 * its done() is then called before bdev_rw_wait() returns, and never inside of the caller's submission.
 */
int bdev_rw_wait(struct bdev_channel *ch, struct bdev_io *ios, size_t n);

/* Helpers: one synchronous I/O on a channel. 0 or -errno. */
int bdev_pread(struct bdev_channel *ch, void *buf, size_t len, uint64_t offset);
int bdev_pwrite(struct bdev_channel *ch, const void *buf, size_t len, uint64_t offset);
int bdev_flush(struct bdev_channel *ch);

#endif
