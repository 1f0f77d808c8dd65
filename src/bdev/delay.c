/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * delay.c - delay:read=TIME,write=TIME[,flush=TIME][,jitter=TIME]:DEVICE makes a device slow.
 *
 *   read, write, flush        the least time from start to completion; A-B (1ms-5ms): at random between the two, evenly
 *   read-jitter, write-jitter at random up to this much more
 *   jitter                    both
 *
 * UNMAP and WRITE_ZEROES count as writes. An I/O goes to the base at once, and its completion is held until its time
 * has come, so it takes the longer of the two times, not their sum. I/Os in flight are slow side by side: a hundred
 * reads of 5 ms take 5 ms.
 *
 * The delays are fixed when the device is opened, so any thread may read them; all else belongs to the channel.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "bdev/args.h"
#include "bdev/wrap.h"
#include "blkcache/units.h"

#define MAX_US (UINT64_C(3600) * 1000000)

struct delay {
	uint64_t min, max; /* microseconds */
};

struct delay_bdev {
	struct bdev b;
	struct delay read, write, flush;
	_Atomic uint64_t channels; /* ever opened: gives each its own random sequence, the same in every run */
};

struct delay_channel {
	struct wrap_channel wc;
	uint64_t random;
};

static int parse_time(const char *text, const char *key, uint64_t *us, struct bc_error *err)
{
	int r = units_parse_time(text, us);

	if (!r && *us > MAX_US)
		r = -ERANGE;
	if (r)
		return bc_fail(err, r,
			       "delay: bad time '%s' for %s; write a whole number with us, ms or s, at most 3600s",
			       text, key);
	return 0;
}

/* "5ms" or "1ms-5ms" */
static int parse_delay(char *text, const char *key, struct delay *d, struct bc_error *err)
{
	char *dash = strchr(text, '-');
	int r;

	if (dash)
		*dash = 0;
	r = parse_time(text, key, &d->min, err);
	d->max = d->min;
	if (!r && dash)
		r = parse_time(dash + 1, key, &d->max, err);
	if (!r && d->max < d->min)
		r = bc_fail(err, -EINVAL, "delay: %s=%s-%s runs backwards; write the shorter time first", key, text,
			    dash + 1);
	return r;
}

static int parse_one(struct delay_bdev *db, struct args *a, uint64_t *read_jitter, uint64_t *write_jitter,
		     struct bc_error *err)
{
	int r;

	if (!strcmp(a->key, "read"))
		return parse_delay(a->value, a->key, &db->read, err);
	if (!strcmp(a->key, "write"))
		return parse_delay(a->value, a->key, &db->write, err);
	if (!strcmp(a->key, "flush"))
		return parse_delay(a->value, a->key, &db->flush, err);
	if (!strcmp(a->key, "read-jitter"))
		return parse_time(a->value, a->key, read_jitter, err);
	if (!strcmp(a->key, "write-jitter"))
		return parse_time(a->value, a->key, write_jitter, err);
	if (!strcmp(a->key, "jitter")) {
		r = parse_time(a->value, a->key, read_jitter, err);
		*write_jitter = *read_jitter;
		return r;
	}
	return bc_fail(err, -EINVAL,
		       "delay: unknown option '%s'; there are read, write, flush, jitter, read-jitter and write-jitter",
		       a->key);
}

static int delay_construct(struct bdev *b, const char *text, struct bc_error *err)
{
	struct delay_bdev *db = (struct delay_bdev *)b;
	uint64_t read_jitter = 0, write_jitter = 0;
	struct args a = { .rest = strdup(text) };
	char *copy = a.rest;
	int r;

	if (!copy)
		return bc_fail(err, -ENOMEM, "delay: out of memory");
	while ((r = args_next(&a, "delay", err)) > 0) {
		r = parse_one(db, &a, &read_jitter, &write_jitter, err);
		if (r)
			break;
	}
	db->read.max += read_jitter;
	db->write.max += write_jitter;
	free(copy);
	return r;
}

static int delay_get_channel(struct bdev_channel *ch, unsigned depth)
{
	struct delay_channel *dc = (struct delay_channel *)ch;

	(void)depth;
	dc->random = atomic_fetch_add(&((struct delay_bdev *)ch->bdev)->channels, 1);
	return 0;
}

/* splitmix64 */
static uint64_t next_random(uint64_t *state)
{
	uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

/* When an I/O that starts now may complete; 0: at once. */
static uint64_t due_time(struct bdev_channel *ch, enum bdev_io_type type)
{
	struct delay_channel *dc = (struct delay_channel *)ch;
	struct delay_bdev *db = (struct delay_bdev *)ch->bdev;
	const struct delay *d = type == BDEV_READ ? &db->read : type == BDEV_FLUSH ? &db->flush : &db->write;
	uint64_t ns;

	if (!d->max)
		return 0;
	ns = d->min * 1000;
	if (d->max > d->min)
		ns += next_random(&dc->random) % ((d->max - d->min) * 1000 + 1);
	return wrap_now() + ns;
}

static void delay_submit(struct bdev_channel *ch, struct bdev_io *io)
{
	wrap_forward(ch, io, due_time(ch, io->type));
}

static int delay_rw_sync(struct bdev_channel *ch, struct bdev_io *io)
{
	uint64_t due = due_time(ch, io->type);
	int r = wrap_sync(ch, io);

	if (due)
		wrap_sleep_until(due);
	return r;
}

static void delay_dump_info(struct bdev *b, FILE *out)
{
	const struct delay_bdev *db = (const struct delay_bdev *)b;

	fprintf(out, " read_us=%llu-%llu write_us=%llu-%llu flush_us=%llu-%llu", (unsigned long long)db->read.min,
		(unsigned long long)db->read.max, (unsigned long long)db->write.min, (unsigned long long)db->write.max,
		(unsigned long long)db->flush.min, (unsigned long long)db->flush.max);
}

static struct bdev_module delay_module = {
	.name = "delay",
	.usage = "read=TIME,write=TIME",
	.bdev_size = sizeof(struct delay_bdev),
	.channel_size = sizeof(struct delay_channel),
	.wraps = true,
	.construct = delay_construct,
	.get_channel = delay_get_channel,
	.put_channel = wrap_put_channel,
	.submit = delay_submit,
	.poll = wrap_poll,
	.rw_sync = delay_rw_sync,
	.dump_info = delay_dump_info,
};
BDEV_MODULE_REGISTER(delay_module)
