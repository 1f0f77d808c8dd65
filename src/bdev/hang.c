/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * hang.c - hang:dir=FOLDER:DEVICE does not answer while somebody outside says so: an I/O waits as long as FOLDER holds
 * a file with the name of its kind, and goes on when the file is removed (or the folder: whatever ends a test ends its
 * hangs). For tests of what a device that hangs must not hold up.
 *
 *   read, write, flush, discard (unmap and zeroes)   an I/O, before the base sees it
 *   open, close                                      the device's
 *   identity                                         a look at it, or a sync of it
 *
 * Everything waits in slices of SLICE_NS. No state but the folder's, so any thread; the list of held I/Os belongs to
 * the channel.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "bdev/args.h"
#include "bdev/wrap.h"

#define SLICE_NS 2000000

struct hang_bdev {
	struct bdev b;
	char *dir;
};

struct hang_channel {
	struct wrap_channel wc;
	struct bdev_io *held, **held_tail;
};

static bool hangs(const struct bdev *b, const char *kind)
{
	const struct hang_bdev *hb = (const struct hang_bdev *)b;
	char path[4096];

	snprintf(path, sizeof(path), "%s/%s", hb->dir, kind);
	return !access(path, F_OK);
}

static void wait_while(const struct bdev *b, const char *kind)
{
	while (hangs(b, kind))
		wrap_sleep_until(wrap_now() + SLICE_NS);
}

static const char *kind_of(const struct bdev_io *io)
{
	switch (io->type) {
	case BDEV_READ:
		return "read";
	case BDEV_WRITE:
		return "write";
	case BDEV_FLUSH:
		return "flush";
	default:
		return "discard";
	}
}

static int hang_construct(struct bdev *b, const char *text, struct bc_error *err)
{
	struct hang_bdev *hb = (struct hang_bdev *)b;
	struct args a = { .rest = strdup(text) };
	char *copy = a.rest;
	int r;

	if (!copy)
		return bc_fail(err, -ENOMEM, "hang: out of memory");
	while ((r = args_next(&a, "hang", err)) > 0) {
		if (strcmp(a.key, "dir")) {
			r = bc_fail(err, -EINVAL, "hang: unknown option '%s'; there is only dir", a.key);
			break;
		}
		free(hb->dir);
		hb->dir = strdup(a.value);
	}
	free(copy);
	if (!r && !hb->dir)
		r = bc_fail(err, -EINVAL, "hang: dir=FOLDER is missing");
	if (r)
		free(hb->dir);
	else
		wait_while(b, "open");
	return r;
}

static void hang_destruct(struct bdev *b)
{
	struct hang_bdev *hb = (struct hang_bdev *)b;

	wait_while(b, "close");
	free(hb->dir);
}

static int hang_get_channel(struct bdev_channel *ch, unsigned depth)
{
	struct hang_channel *hc = (struct hang_channel *)ch;

	(void)depth;
	hc->held_tail = &hc->held;
	return 0;
}

static void hang_submit(struct bdev_channel *ch, struct bdev_io *io)
{
	struct hang_channel *hc = (struct hang_channel *)ch;

	if (!hangs(ch->bdev, kind_of(io))) {
		wrap_forward(ch, io, 0);
		return;
	}
	io->next = NULL;
	*hc->held_tail = io;
	hc->held_tail = &io->next;
}

/* Passes on what need not wait any more. */
static void let_go(struct hang_channel *hc)
{
	struct bdev_io *io = hc->held;

	hc->held = NULL;
	hc->held_tail = &hc->held;
	while (io) {
		struct bdev_io *next = io->next;

		hang_submit(&hc->wc.ch, io);
		io = next;
	}
}

static void hang_poll(struct bdev_channel *ch, unsigned want)
{
	struct hang_channel *hc = (struct hang_channel *)ch;
	unsigned before = ch->nfinished;

	for (;;) {
		let_go(hc);
		wrap_poll(ch, hc->held ? 0 : want);
		if (!want || ch->nfinished != before)
			return;
		if (hc->held)
			wrap_sleep_until(wrap_now() + SLICE_NS);
	}
}

static int hang_rw_sync(struct bdev_channel *ch, struct bdev_io *io)
{
	wait_while(ch->bdev, kind_of(io));
	return wrap_sync(ch, io);
}

static void hang_get_identity(struct bdev *b, struct bdev_identity *id)
{
	wait_while(b, "identity");
	bdev_get_identity(b->base, id);
}

static int hang_sync_identity(struct bdev *b)
{
	wait_while(b, "identity");
	return bdev_sync_identity(b->base);
}

static struct bdev_module hang_module = {
	.name = "hang",
	.usage = "dir=FOLDER",
	.bdev_size = sizeof(struct hang_bdev),
	.channel_size = sizeof(struct hang_channel),
	.wraps = true,
	.construct = hang_construct,
	.destruct = hang_destruct,
	.get_channel = hang_get_channel,
	.put_channel = wrap_put_channel,
	.submit = hang_submit,
	.poll = hang_poll,
	.rw_sync = hang_rw_sync,
	.get_identity = hang_get_identity,
	.sync_identity = hang_sync_identity,
};
BDEV_MODULE_REGISTER(hang_module)
