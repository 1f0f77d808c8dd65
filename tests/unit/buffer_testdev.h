/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * buffer_testdev.h - a block device for the tests of src/buffer: memory that records its writes, can be made to hold
 * them back or to fail them, and notices two things that must never happen: two writes to one block in flight at once,
 * and memory that changes while it is being written. One device per process (Criterion forks for each test). Any
 * thread.
 */
#ifndef BUFFER_TESTDEV_H
#define BUFFER_TESTDEV_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "bdev/module.h"

#define TD_BS 4096u
#define TD_BLOCKS 65536u /* 256 MiB, touched sparsely */
#define TD_MAX_LOG 65536u

struct td_write {
	uint64_t block;
	unsigned n, iovcnt;
};

static struct {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool closed; /* writes do not complete */
	unsigned submitted; /* writes seen */
	uint64_t bad_from, bad_to; /* writes touching these blocks fail */
	char *data;
	uint8_t *in_flight; /* per block */
	struct td_write log[TD_MAX_LOG];
	unsigned nlog;
	unsigned overlaps, unstable;
} td = { .lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER };

struct td_channel {
	struct bdev_channel ch;
	struct bdev_io *staged, **tail;
};

static void td_copy(struct bdev_io *io, char *flat, bool to_flat)
{
	for (int i = 0; i < io->iovcnt; i++) {
		if (to_flat)
			memcpy(flat, io->iov[i].iov_base, io->iov[i].iov_len);
		else
			memcpy(io->iov[i].iov_base, flat, io->iov[i].iov_len);
		flat += io->iov[i].iov_len;
	}
}

static int td_construct(struct bdev *b, const char *args, struct bc_error *err)
{
	(void)args;
	(void)err;
	b->size = (uint64_t)TD_BS * TD_BLOCKS;
	b->alignment = 1;
	td.data = calloc(TD_BLOCKS, TD_BS);
	td.in_flight = calloc(TD_BLOCKS, 1);
	return td.data && td.in_flight ? 0 : -ENOMEM;
}

static void td_destruct(struct bdev *b)
{
	(void)b;
	free(td.data);
	free(td.in_flight);
	td.data = NULL;
	td.in_flight = NULL;
}

static bool td_supported(struct bdev *b, enum bdev_io_type type)
{
	(void)b;
	return type == BDEV_READ || type == BDEV_WRITE || type == BDEV_FLUSH;
}

static int td_get_channel(struct bdev_channel *ch, unsigned depth)
{
	struct td_channel *t = (struct td_channel *)ch;

	(void)depth;
	t->tail = &t->staged;
	return 0;
}

static void td_put_channel(struct bdev_channel *ch)
{
	(void)ch;
}

/* The data is copied at submit and compared when the write completes. */
static void td_submit(struct bdev_channel *ch, struct bdev_io *io)
{
	struct td_channel *t = (struct td_channel *)ch;
	uint64_t block = io->offset / TD_BS, n = io->length / TD_BS;
	char *snapshot;

	if (io->type != BDEV_WRITE) {
		pthread_mutex_lock(&td.lock);
		if (io->type == BDEV_READ)
			td_copy(io, td.data + io->offset, false);
		pthread_mutex_unlock(&td.lock);
		bdev_io_complete(ch, io, 0);
		return;
	}
	snapshot = malloc(io->length);
	td_copy(io, snapshot, true);
	io->priv[7] = (uint64_t)(uintptr_t)snapshot;
	io->next = NULL;
	*t->tail = io;
	t->tail = &io->next;
	pthread_mutex_lock(&td.lock);
	for (uint64_t i = block; i < block + n; i++)
		td.overlaps += td.in_flight[i]++ != 0;
	if (td.nlog < TD_MAX_LOG)
		td.log[td.nlog++] = (struct td_write){ block, (unsigned)n, (unsigned)io->iovcnt };
	td.submitted++;
	pthread_cond_broadcast(&td.cond);
	pthread_mutex_unlock(&td.lock);
}

static int td_complete(struct bdev_io *io)
{
	char *snapshot = (char *)(uintptr_t)io->priv[7];
	uint64_t block = io->offset / TD_BS, n = io->length / TD_BS;
	char *now = malloc(io->length);
	int rc = block < td.bad_to && block + n > td.bad_from ? -EIO : 0;

	td_copy(io, now, true);
	td.unstable += memcmp(now, snapshot, io->length) != 0;
	if (!rc)
		memcpy(td.data + io->offset, snapshot, io->length);
	for (uint64_t i = block; i < block + n; i++)
		td.in_flight[i]--;
	free(now);
	free(snapshot);
	return rc;
}

static void td_poll(struct bdev_channel *ch, unsigned wait)
{
	struct td_channel *t = (struct td_channel *)ch;

	while (t->staged) {
		struct bdev_io *io = t->staged;
		int rc;

		pthread_mutex_lock(&td.lock);
		while (td.closed && wait)
			pthread_cond_wait(&td.cond, &td.lock);
		if (td.closed) {
			pthread_mutex_unlock(&td.lock);
			return;
		}
		rc = td_complete(io);
		pthread_mutex_unlock(&td.lock);
		t->staged = io->next;
		if (!t->staged)
			t->tail = &t->staged;
		bdev_io_complete(ch, io, rc);
	}
}

static struct bdev_module td_module = {
	.name = "bufrec",
	.usage = "",
	.bdev_size = sizeof(struct bdev),
	.channel_size = sizeof(struct td_channel),
	.construct = td_construct,
	.destruct = td_destruct,
	.io_type_supported = td_supported,
	.get_channel = td_get_channel,
	.put_channel = td_put_channel,
	.submit = td_submit,
	.poll = td_poll,
};
BDEV_MODULE_REGISTER(td_module)

static inline void td_gate(bool closed)
{
	pthread_mutex_lock(&td.lock);
	td.closed = closed;
	pthread_cond_broadcast(&td.cond);
	pthread_mutex_unlock(&td.lock);
}

static inline void td_fail(uint64_t from, uint64_t to)
{
	pthread_mutex_lock(&td.lock);
	td.bad_from = from;
	td.bad_to = to;
	pthread_mutex_unlock(&td.lock);
}

/* Waits until n writes have been submitted since the test began. */
static inline void td_wait_submitted(unsigned n)
{
	pthread_mutex_lock(&td.lock);
	while (td.submitted < n)
		pthread_cond_wait(&td.cond, &td.lock);
	pthread_mutex_unlock(&td.lock);
}

/* First byte of a block on the device. */
static inline unsigned td_byte(uint64_t block)
{
	unsigned byte;

	pthread_mutex_lock(&td.lock);
	byte = (unsigned char)td.data[block * TD_BS];
	pthread_mutex_unlock(&td.lock);
	return byte;
}

#endif
