/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * bdev_random.h - the one test every device has to pass: random I/O of all types, several at once, of any alignment,
 * compared with an array of bytes. Batches are cut so that their ranges touch but do not overlap: neighbours share
 * blocks and pages. And small helpers for tests of devices.
 */
#ifndef TESTS_BDEV_RANDOM_H
#define TESTS_BDEV_RANDOM_H

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "blkcache/bdev.h"

#define RANDOM_BATCH 8
#define RANDOM_PIECES 5

static inline uint64_t test_random(uint64_t *state)
{
	uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

/* BDEV_SEED=N repeats a run. */
static inline uint64_t test_seed(void)
{
	const char *text = getenv("BDEV_SEED");
	uint64_t seed = text ? strtoull(text, NULL, 10) : (uint64_t)time(NULL) * 1000003 + (uint64_t)getpid();

	fprintf(stderr, "BDEV_SEED=%llu\n", (unsigned long long)seed);
	return seed;
}

static inline struct bdev *test_open(const char *spec, unsigned flags)
{
	struct bc_error err = { 0 };
	struct bdev *b;

	cr_assert_eq(bdev_open(spec, flags, &b, &err), 0, "%s", err.msg);
	return b;
}

static inline struct bdev_channel *test_channel(struct bdev *b)
{
	struct bdev_channel *ch = bdev_channel_open(b, 4); /* less than a batch, so that some have to queue */

	cr_assert_not_null(ch);
	return ch;
}

struct random_io {
	struct bdev_io io;
	struct iovec iov[RANDOM_PIECES];
	char *buf;
};

/* Cuts `len` bytes at buf into pieces: at odd places, or at multiples of 512. */
static inline int random_cut(uint64_t *rng, struct iovec *iov, char *buf, size_t len)
{
	size_t unit = test_random(rng) % 2 ? 512 : 1, max = 1 + test_random(rng) % RANDOM_PIECES;
	int n = 0;

	while (len) {
		size_t piece = (size_t)n + 1 == max ? len : test_random(rng) % (len + 1) / unit * unit;

		if (!piece)
			piece = len;
		iov[n++] = (struct iovec){ buf, piece };
		buf += piece;
		len -= piece;
	}
	return n;
}

static inline void random_fill(struct random_io *r, uint64_t *rng, uint64_t from, uint64_t to, char *ref)
{
	static const enum bdev_io_type types[] = { BDEV_READ,  BDEV_READ,  BDEV_WRITE,        BDEV_WRITE,
						   BDEV_WRITE, BDEV_UNMAP, BDEV_WRITE_ZEROES, BDEV_FLUSH };
	uint64_t off = from, len = to - from;
	char *p;

	memset(&r->io, 0, sizeof(r->io));
	r->io.type = types[test_random(rng) % 8];
	if (test_random(rng) % 2 && len >= 8192) { /* whole grains, which can go directly */
		off = (from + 4095) & ~UINT64_C(4095);
		len = (to - off) & ~UINT64_C(4095);
	}
	p = r->buf + (test_random(rng) % 3 ? 0 : test_random(rng) % 512);
	r->io.offset = off;
	r->io.length = len;
	if (r->io.type == BDEV_READ || r->io.type == BDEV_WRITE) {
		r->io.iov = r->iov;
		r->io.iovcnt = random_cut(rng, r->iov, p, len);
	}
	if (r->io.type == BDEV_WRITE) {
		memset(p, (int)(test_random(rng) % 255) + 1, len);
		for (uint64_t i = 0; i < len; i += 512) /* or a shifted write could not be told from a right one */
			memcpy(p + i, &(uint64_t){ test_random(rng) }, len - i < 8 ? len - i : 8);
		memcpy(ref + off, p, len);
	} else if (r->io.type == BDEV_READ) {
		memset(p, 0xee, len);
	} else if (r->io.type != BDEV_FLUSH) {
		memset(ref + off, 0, len);
	}
}

static inline void random_compare(const char *got, const char *ref, uint64_t len, uint64_t off)
{
	for (uint64_t i = 0; i < len; i++)
		cr_assert_eq(got[i], ref[i], "byte %llu is wrong", (unsigned long long)(off + i));
}

/* `ref` is what the device holds, bdev_size() bytes; kept up to date. */
static inline void random_test(struct bdev *b, struct bdev_channel *ch, char *ref, unsigned batches, uint64_t *rng)
{
	const size_t max = 200000;
	struct random_io r[RANDOM_BATCH];
	struct bdev_io ios[RANDOM_BATCH];
	uint64_t size = bdev_size(b);

	for (int i = 0; i < RANDOM_BATCH; i++)
		cr_assert_eq(posix_memalign((void **)&r[i].buf, 4096, max + 512), 0);
	while (batches--) {
		uint64_t pos = test_random(rng) % size;
		int n = 0, wanted = 1 + (int)(test_random(rng) % RANDOM_BATCH);

		while (n < wanted && pos < size) {
			uint64_t len = 1 + test_random(rng) % (test_random(rng) % 2 ? 5000 : max);

			if (len > size - pos)
				len = size - pos;
			random_fill(&r[n], rng, pos, pos + len, ref);
			ios[n] = r[n].io;
			pos += len;
			n++;
		}
		cr_assert_eq(bdev_rw_wait(ch, ios, (size_t)n), 0, "batch failed");
		for (int i = 0; i < n; i++)
			if (ios[i].type == BDEV_READ)
				random_compare(ios[i].iov->iov_base, ref + ios[i].offset, ios[i].length, ios[i].offset);
	}
	cr_expect_eq(bdev_in_flight(ch), 0);
	for (int i = 0; i < RANDOM_BATCH; i++)
		free(r[i].buf);
}

/* The whole device against ref. */
static inline void verify_all(struct bdev *b, struct bdev_channel *ch, const char *ref)
{
	char *buf = malloc(bdev_size(b));

	cr_assert_eq(bdev_pread(ch, buf, bdev_size(b), 0), 0);
	random_compare(buf, ref, bdev_size(b), 0);
	free(buf);
}

static inline double test_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

#endif
