/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * recbdev.c - rec:NAME: a block device that is a file of the current world. Writes are in flight from submission until
 * they are reaped, and a flush makes durable only what was reaped before it was submitted, and only once it is reaped
 * itself: so a flush beside a commit leaves both orders open, as on a real disk.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bdev/module.h"
#include "world.h"

struct rec_bdev {
	struct bdev b;
	int file;
};

struct rec_channel {
	struct bdev_channel ch;
	struct bdev_io *held, **tail; /* submitted, not reaped */
};

static int rec_construct(struct bdev *b, const char *args, struct bc_error *err)
{
	struct rec_bdev *rb = (struct rec_bdev *)b;

	rb->file = file_find(args);
	if (rb->file < 0)
		return bc_fail(err, -ENOENT, "rec:%s: there is no such file", args);
	b->size = file_size(rb->file);
	b->alignment = 512;
	return 0;
}

static int rec_get_channel(struct bdev_channel *ch, unsigned depth)
{
	struct rec_channel *rc = (struct rec_channel *)ch;

	(void)depth;
	rc->tail = &rc->held;
	return 0;
}

/* Starts an I/O; what has to be told the log when it is reaped is returned. */
void (*recbdev_on_zero)(void);
bool recbdev_anonymous;

static uint32_t start(int file, struct bdev_io *io)
{
	uint8_t *flat;
	uint64_t at = io->offset;
	uint32_t event;

	switch (io->type) {
	case BDEV_READ:
		for (int i = 0; i < io->iovcnt; at += io->iov[i++].iov_len)
			file_read(file, io->iov[i].iov_base, io->iov[i].iov_len, at);
		return UINT32_MAX;
	case BDEV_WRITE:
		if (io->iovcnt == 1)
			return file_write(file, io->iov[0].iov_base, io->length, at, true);
		flat = malloc(io->length);
		if (!flat)
			abort();
		for (int i = 0; i < io->iovcnt; at += io->iov[i++].iov_len)
			memcpy(flat + (at - io->offset), io->iov[i].iov_base, io->iov[i].iov_len);
		event = file_write(file, flat, io->length, io->offset, true);
		free(flat);
		return event;
	case BDEV_UNMAP:
	case BDEV_WRITE_ZEROES:
		if (recbdev_on_zero)
			recbdev_on_zero();
		return file_write(file, NULL, io->length, at, true);
	case BDEV_FLUSH:
		return sync_begin(file, false); /* like the file module: fdatasync */
	default:
		return UINT32_MAX;
	}
}

static void finish(int file, struct bdev_io *io, uint32_t event)
{
	if (io->type == BDEV_FLUSH)
		sync_end(file, event);
	else if (io->type != BDEV_READ)
		write_done(event);
}

static void rec_submit(struct bdev_channel *ch, struct bdev_io *io)
{
	struct rec_channel *rc = (struct rec_channel *)ch;

	io->priv[0] = start(((struct rec_bdev *)ch->bdev)->file, io);
	io->next = NULL;
	*rc->tail = io;
	rc->tail = &io->next;
}

static void rec_poll(struct bdev_channel *ch, unsigned want)
{
	struct rec_channel *rc = (struct rec_channel *)ch;

	while (want && rc->held) {
		struct bdev_io *io = rc->held;

		world_may_pause("device");

		rc->held = io->next;
		if (!rc->held)
			rc->tail = &rc->held;
		finish(((struct rec_bdev *)ch->bdev)->file, io, (uint32_t)io->priv[0]);
		bdev_io_complete(ch, io, 0);
		want--;
	}
}

static int rec_rw_sync(struct bdev_channel *ch, struct bdev_io *io)
{
	int file = ((struct rec_bdev *)ch->bdev)->file;
	uint32_t event = start(file, io);

	world_may_pause("device");
	finish(file, io, event);
	return 0;
}

static bool rec_supported(struct bdev *b, enum bdev_io_type type)
{
	(void)b;
	return type != BDEV_RESET;
}

static void rec_get_identity(struct bdev *b, struct bdev_identity *id)
{
	int file = ((struct rec_bdev *)b)->file;

	id->size = b->size;
	id->id[0] = !recbdev_anonymous;
	id->id[1] = (uint64_t)file + 1;
	id->mtime_ns = file_mtime(file);
}

static int rec_sync_identity(struct bdev *b)
{
	int file = ((struct rec_bdev *)b)->file;

	sync_end(file, sync_begin(file, true));
	return 0;
}

static struct bdev_module rec_module = {
	.name = "rec",
	.usage = "NAME",
	.bdev_size = sizeof(struct rec_bdev),
	.channel_size = sizeof(struct rec_channel),
	.construct = rec_construct,
	.io_type_supported = rec_supported,
	.get_channel = rec_get_channel,
	.submit = rec_submit,
	.poll = rec_poll,
	.rw_sync = rec_rw_sync,
	.get_identity = rec_get_identity,
	.sync_identity = rec_sync_identity,
};
BDEV_MODULE_REGISTER(rec_module)
