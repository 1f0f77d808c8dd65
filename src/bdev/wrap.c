/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * wrap.c - the common part of wrapping modules. Everything runs on the thread that has the channel; no lock.
 *
 * The base gets an I/O of its own (a wrap_child), as every layer needs the private part of a bdev_io for itself. Its
 * done() runs inside bdev_poll(base), which only wrap_poll and wrap_sync call, and completes the parent or puts it in
 * the heap.
 */
#include "bdev/wrap.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/param.h>
#include <time.h>

/* How often to look below while both the base and a timer may be next: there is no wait for either. */
#define SLICE_NS 50000

struct wrap_child {
	struct bdev_io io;
	struct bdev_io *parent;
	struct bdev_channel *ch; /* the parent's */
	uint64_t due;
	struct wrap_child *next;
};

uint64_t wrap_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

void wrap_sleep_until(uint64_t due)
{
	struct timespec t = { .tv_sec = (time_t)(due / 1000000000), .tv_nsec = (long)(due % 1000000000) };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
		;
}

static bool heap_add(struct wrap_channel *wc, struct wrap_held h)
{
	unsigned i;

	if (wc->held == wc->heap_size) {
		unsigned size = wc->heap_size ? wc->heap_size * 2 : 64;
		struct wrap_held *heap = reallocarray(wc->heap, size, sizeof(*heap));

		if (!heap)
			return false;
		wc->heap = heap;
		wc->heap_size = size;
	}
	for (i = wc->held++; i && wc->heap[(i - 1) / 2].due > h.due; i = (i - 1) / 2)
		wc->heap[i] = wc->heap[(i - 1) / 2];
	wc->heap[i] = h;
	return true;
}

static struct wrap_held heap_pop(struct wrap_channel *wc)
{
	struct wrap_held top = wc->heap[0], h = wc->heap[--wc->held];
	unsigned i = 0, child;

	while ((child = 2 * i + 1) < wc->held) {
		if (child + 1 < wc->held && wc->heap[child + 1].due < wc->heap[child].due)
			child++;
		if (wc->heap[child].due >= h.due)
			break;
		wc->heap[i] = wc->heap[child];
		i = child;
	}
	wc->heap[i] = h;
	return top;
}

void wrap_complete_at(struct bdev_channel *ch, struct bdev_io *io, int result, uint64_t due)
{
	struct wrap_held h = { .due = due, .io = io, .result = result };

	/* Without memory the I/O is early rather than lost. */
	if (due <= wrap_now() || !heap_add((struct wrap_channel *)ch, h))
		bdev_io_complete(ch, io, result);
}

static void child_done(struct bdev_io *io)
{
	struct wrap_child *c = io->ctx;
	struct wrap_channel *wc = (struct wrap_channel *)c->ch;

	c->next = wc->spare;
	wc->spare = c;
	if (c->due)
		wrap_complete_at(c->ch, c->parent, io->result, c->due);
	else
		bdev_io_complete(c->ch, c->parent, io->result);
}

void wrap_forward(struct bdev_channel *ch, struct bdev_io *io, uint64_t due)
{
	struct wrap_channel *wc = (struct wrap_channel *)ch;
	struct wrap_child *c = wc->spare;

	if (c)
		wc->spare = c->next;
	else
		c = malloc(sizeof(*c));
	if (!c) {
		bdev_io_complete(ch, io, -ENOMEM);
		return;
	}
	*c = (struct wrap_child){ .parent = io, .ch = ch, .due = due };
	c->io = (struct bdev_io){ .type = io->type,
				  .offset = io->offset,
				  .length = io->length,
				  .iov = io->iov,
				  .iovcnt = io->iovcnt,
				  .done = child_done,
				  .ctx = c };
	bdev_submit(ch->base, &c->io);
}

int wrap_sync(struct bdev_channel *ch, const struct bdev_io *io)
{
	struct bdev_io copy = {
		.type = io->type, .offset = io->offset, .length = io->length, .iov = io->iov, .iovcnt = io->iovcnt
	};

	return bdev_rw_wait(ch->base, &copy, 1);
}

void wrap_poll(struct bdev_channel *ch, unsigned want)
{
	struct wrap_channel *wc = (struct wrap_channel *)ch;
	unsigned before = ch->nfinished;

	for (;;) {
		uint64_t now;

		bdev_poll(ch->base, 0);
		now = wrap_now();
		while (wc->held && wc->heap[0].due <= now) {
			struct wrap_held h = heap_pop(wc);

			bdev_io_complete(ch, h.io, h.result);
		}
		if (!want || ch->nfinished != before)
			return;
		if (!wc->held)
			bdev_poll(ch->base, 1);
		else if (bdev_in_flight(ch->base))
			wrap_sleep_until(MIN(wc->heap[0].due, now + SLICE_NS));
		else
			wrap_sleep_until(wc->heap[0].due);
	}
}

void wrap_put_channel(struct bdev_channel *ch)
{
	struct wrap_channel *wc = (struct wrap_channel *)ch;

	while (wc->spare) {
		struct wrap_child *c = wc->spare;

		wc->spare = c->next;
		free(c);
	}
	free(wc->heap);
}
