/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * module.h - what a block-device module provides. Only files in src/bdev include this.
 *
 * A module is one file that defines a `struct bdev_module` and registers it with BDEV_MODULE_REGISTER; nothing else
 * needs to be touched to add one (the Makefile links every object of the library whole). The device layer (bdev.c)
 * checks ranges and read-only, counts what is in flight, and calls done(); a module only has to get `io->result` right
 * and hand the io back with bdev_io_complete() exactly once.
 */
#ifndef BDEV_MODULE_H
#define BDEV_MODULE_H

#include <pthread.h>

#include "blkcache/bdev.h"

struct bdev_module;

/* The common head of a device. A module embeds it as the first member of its own structure. */
struct bdev {
	const struct bdev_module *module;
	char *spec;
	uint64_t size;
	uint32_t alignment;
	unsigned flags; /* BDEV_OPEN_* */
	/* kept by bdev.c: */
	struct bdev *base; /* the device below, for wrapping modules (closed after destruct), else NULL */
	struct bdev *next_open; /* list of what bdev_open() has handed out */
	char *use; /* bdev_set_use()'s; may be NULL */
	_Atomic unsigned holds; /* bdev_hold()'s that bdev_close() has not taken back */
	pthread_mutex_t waits_lock;
	struct bdev_wait *newest_wait, *oldest_wait; /* threads that wait for it now */
};

/* The common head of a channel, likewise embedded. */
struct bdev_channel {
	struct bdev *bdev;
	/* kept by bdev.c: */
	unsigned in_flight; /* submitted, done() not called yet */
	unsigned started; /* of those, the ones the module holds */
	unsigned nfinished; /* of those, the ones on `finished` */
	struct bdev_io *queued, **queued_tail; /* submitted, not started */
	struct bdev_io *finished, **finished_tail; /* handed back by the module, done() not called yet */
	struct bdev_channel *base; /* channel of the device below for wrapping modules, opened and closed by bdev.c */
};

struct bdev_module {
	const char *name;
	const char *usage; /* "size=SIZE" : shown in error messages */
	size_t bdev_size,
		channel_size; /* sizeof the module's structures (both start with the common head), zeroed by bdev.c */
	bool wraps; /* ARGS are followed by ":SPEC" of a device below, opened by bdev.c before construct and put in
		       bdev->base */
	/* args: the text between "MODULE:" and the next spec (or the end); sets size and alignment. */
	int (*construct)(struct bdev *bdev, const char *args, struct bc_error *err);
	void (*destruct)(struct bdev *bdev);
	bool (*io_type_supported)(struct bdev *bdev, enum bdev_io_type type);
	int (*get_channel)(struct bdev_channel *ch, unsigned depth); /* 0 or -errno */
	void (*put_channel)(struct bdev_channel *ch);
	void (*submit)(struct bdev_channel *ch, struct bdev_io *io); /* start (or stage) one I/O */
	/* Push out what submit() staged; reap. want > 0: block until at least one of the channel's I/Os completes (a
	 * signal may end the wait early: bdev.c calls again); the module may block until `want` of them have. NULL:
	 * everything completes in submit(). */
	void (*poll)(struct bdev_channel *ch, unsigned want);
	/* Optional: one I/O of any type but RESET, done before it returns: 0 or -errno. For a caller that would wait
	 * for it anyway. */
	int (*rw_sync)(struct bdev_channel *ch, struct bdev_io *io);
	void (*get_identity)(struct bdev *bdev, struct bdev_identity *id); /* optional */
	int (*sync_identity)(struct bdev *bdev); /* optional: there is nothing to sync */
	void (*get_label)(struct bdev *bdev, char *label, size_t len); /* optional: "" */
	bool (*is_deleted)(struct bdev *bdev); /* optional: never */
	int (*check_name)(struct bdev *bdev, unsigned ms, char *why, size_t len); /* optional: it has none, or is it */
	void (*dump_info)(struct bdev *bdev, FILE *out); /* optional */
	struct bdev_module *next; /* kept by the registry */
};

/* Hands an I/O back; `result`, 0 or -errno, becomes io->result just before done(). While a module holds an I/O it may
 * use io->next and io->priv as it likes; it must not touch the I/O afterwards. Called from submit() or poll() on the
 * channel's thread. done() runs later, from bdev_poll() or bdev_rw_wait(), so that a module never recurses into its
 * caller. (An I/O that went to rw_sync has no part in this: bdev.c calls its done() after rw_sync has returned.) */
void bdev_io_complete(struct bdev_channel *ch, struct bdev_io *io, int result);

void bdev_module_register(struct bdev_module *module);

#define BDEV_MODULE_REGISTER(m)                                                                                        \
	__attribute__((constructor)) static void register_##m(void)                                                    \
	{                                                                                                              \
		bdev_module_register(&m);                                                                              \
	}

#endif
