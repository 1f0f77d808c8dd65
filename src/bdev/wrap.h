/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * wrap.h - what wrapping modules have in common: passing an I/O on to the device below, and holding a completion until
 * its time has come. All on the channel's thread.
 */
#ifndef BDEV_WRAP_H
#define BDEV_WRAP_H

#include "bdev/module.h"

struct wrap_child;

/* A completion that waits for its time. */
struct wrap_held {
	uint64_t due;
	struct bdev_io *io;
	int result;
};

/* A wrapping module's channel starts with this in place of struct bdev_channel. */
struct wrap_channel {
	struct bdev_channel ch;
	struct wrap_child *spare; /* all were in use at once some time: no allocation once warm */
	struct wrap_held *heap; /* smallest `due` first */
	unsigned held, heap_size;
};

uint64_t wrap_now(void); /* ns, monotonic */

/* Passes io on to ch->base; it completes when the base has, but not before `due` (0: at once). */
void wrap_forward(struct bdev_channel *ch, struct bdev_io *io, uint64_t due);

/* Completes io with `result` at `due`; the base does not see it. */
void wrap_complete_at(struct bdev_channel *ch, struct bdev_io *io, int result, uint64_t due);

/* Passes io on and waits, for rw_sync. 0 or -errno. */
int wrap_sync(struct bdev_channel *ch, const struct bdev_io *io);
void wrap_sleep_until(uint64_t due);

/* To be a module's poll and put_channel. */
void wrap_poll(struct bdev_channel *ch, unsigned want);
void wrap_put_channel(struct bdev_channel *ch);

#endif
