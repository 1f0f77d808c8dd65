/* SPDX-License-Identifier: BSD-3-Clause */
/* null.c - null:size=SIZE: reads zeros, drops writes. For measuring what everything but the device costs. No state, so
 * any thread. */
#include <string.h>

#include "bdev/args.h"
#include "bdev/module.h"

static int null_construct(struct bdev *b, const char *args, struct bc_error *err)
{
	return args_only_size(args, "null", &b->size, err);
}

static int null_rw_sync(struct bdev_channel *ch, struct bdev_io *io)
{
	(void)ch;
	if (io->type == BDEV_READ)
		for (int i = 0; i < io->iovcnt; i++)
			memset(io->iov[i].iov_base, 0, io->iov[i].iov_len);
	return 0;
}

static void null_submit(struct bdev_channel *ch, struct bdev_io *io)
{
	bdev_io_complete(ch, io, null_rw_sync(ch, io));
}

static struct bdev_module null_module = {
	.name = "null",
	.usage = "size=SIZE",
	.bdev_size = sizeof(struct bdev),
	.channel_size = sizeof(struct bdev_channel),
	.construct = null_construct,
	.submit = null_submit,
	.rw_sync = null_rw_sync,
};
BDEV_MODULE_REGISTER(null_module)
