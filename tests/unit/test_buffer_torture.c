/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_buffer_torture.c - many threads against src/buffer and a model. Each block has a mutex (the range lock of the
 * real caller) and the version last written; contents carry block and version in each word. What is in memory must be
 * that version; what is on the device must be one between the last version known written and the newest. Random; the
 * seed is printed, BUFFER_SEED=n repeats a run's choices (not its scheduling).
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "buffer/internal.h"
#include "buffer_testdev.h"

#define THREADS 8
#define BLOCKS 400u
#define FRAMES 128u
#define RUN 8u /* blocks per multi-block write */
#define WORDS (TD_BS / sizeof(uint64_t))

struct model {
	pthread_mutex_t lock[BLOCKS];
	uint64_t version[BLOCKS]; /* of the newest contents */
	uint64_t written[BLOCKS]; /* the device has at least this one */
	struct bdev *dev;
	struct buffer_client *client;
	bool faulty; /* writes may fail */
	unsigned ops;
};

struct worker {
	struct model *m;
	pthread_t thread;
	struct bdev_channel *ch;
	uint64_t rng;
	unsigned number;
	char block_buf[TD_BS] __attribute__((aligned(8)));
};

static _Atomic unsigned long failures;
static char failure[200];

#define expect(cond, ...)                                                                                              \
	do {                                                                                                           \
		if (!(cond) && !atomic_fetch_add(&failures, 1))                                                        \
			snprintf(failure, sizeof(failure), __VA_ARGS__);                                               \
	} while (0)

static uint32_t rnd(struct worker *w, uint32_t below)
{
	w->rng ^= w->rng << 13;
	w->rng ^= w->rng >> 7;
	w->rng ^= w->rng << 17;
	return (uint32_t)((w->rng >> 32) * below >> 32);
}

static void fill(void *data, uint64_t block, uint64_t version)
{
	for (size_t i = 0; i < WORDS; i++)
		((uint64_t *)data)[i] = version ? block << 40 | version : 0;
}

/* The version, or UINT64_MAX if torn or foreign. */
static uint64_t version_of(const void *data, uint64_t block)
{
	const uint64_t *word = data;

	for (size_t i = 1; i < WORDS; i++) {
		if (word[i] != word[0])
			return UINT64_MAX;
	}
	if (word[0] && word[0] >> 40 != block)
		return UINT64_MAX;
	return word[0] & ((1ull << 40) - 1);
}

static uint64_t device_version(struct worker *w, uint64_t block)
{
	expect(bdev_pread(w->ch, w->block_buf, TD_BS, block * TD_BS) == 0, "read of block %llu",
	       (unsigned long long)block);
	return version_of(w->block_buf, block);
}

/* What a miss does: the pinned buffer of the block, read if need be. */
static int read_block(struct worker *w, uint32_t block, struct buffer **out)
{
	int rc = 0;

	*out = buffer_get(w->m->client, block);
	if (*out)
		return 0;
	rc = buffer_alloc(w->m->client, out, 1, true);
	if (rc)
		return rc;
	rc = bdev_pread(w->ch, buffer_data(*out), TD_BS, (uint64_t)block * TD_BS);
	if (rc)
		buffer_release(*out);
	else
		expect(buffer_publish(*out, block, false), "block %u is in memory twice", block);
	return rc;
}

static void op_read(struct worker *w, uint32_t block)
{
	struct model *m = w->m;
	struct buffer *b = NULL;
	uint64_t v;
	int rc;

	pthread_mutex_lock(&m->lock[block]);
	rc = read_block(w, block, &b);
	expect(rc == 0 || m->faulty, "read: %d", rc);
	if (!rc) {
		v = version_of(buffer_data(b), block);
		expect(v == m->version[block], "block %u has version %llu instead of %llu", block,
		       (unsigned long long)v, (unsigned long long)m->version[block]);
		buffer_release(b);
	}
	pthread_mutex_unlock(&m->lock[block]);
}

static void op_write(struct worker *w, uint32_t block, unsigned n)
{
	struct model *m = w->m;
	struct buffer *b[RUN];

	for (unsigned i = 0; i < n; i++)
		pthread_mutex_lock(&m->lock[block + i]);
	if (buffer_alloc(m->client, b, n, true) == 0) {
		for (unsigned i = 0; i < n; i++) {
			fill(buffer_data(b[i]), block + i, ++m->version[block + i]);
			expect(buffer_publish(b[i], block + i, true), "publish");
		}
		buffer_release_many(b, n);
	} else {
		expect(m->faulty, "alloc failed");
	}
	for (unsigned i = 0; i < n; i++)
		pthread_mutex_unlock(&m->lock[block + i]);
}

static void op_forget(struct worker *w, uint32_t block)
{
	struct model *m = w->m;
	uint64_t v;

	pthread_mutex_lock(&m->lock[block]);
	buffer_forget(m->client, block, 1);
	v = device_version(w, block);
	expect(v >= m->written[block] && v <= m->version[block], "device has version %llu of block %u, not %llu..%llu",
	       (unsigned long long)v, block, (unsigned long long)m->written[block],
	       (unsigned long long)m->version[block]);
	/* write a new version to the device ourselves: a forgotten buffer's write must not land after it */
	v = m->version[block] + 1;
	fill(w->block_buf, block, v);
	if (bdev_pwrite(w->ch, w->block_buf, TD_BS, (uint64_t)block * TD_BS) == 0)
		m->written[block] = m->version[block] = v;
	else
		m->written[block] = m->version[block] = device_version(w, block);
	expect(device_version(w, block) == m->version[block], "block %u was written over", block);
	pthread_mutex_unlock(&m->lock[block]);
}

static void op_sync(struct worker *w, uint32_t block)
{
	struct model *m = w->m;
	uint64_t v;
	int rc;

	pthread_mutex_lock(&m->lock[block]);
	rc = rnd(w, 2) ? buffer_write_dirty_on(m->client, w->ch) : buffer_write_dirty(m->client);
	expect(rc == 0 || m->faulty, "write_dirty: %d", rc);
	if (!rc) {
		m->written[block] = m->version[block];
		v = device_version(w, block);
		expect(v == m->version[block], "after write_dirty block %u is %llu instead of %llu on the device",
		       block, (unsigned long long)v, (unsigned long long)m->version[block]);
	}
	pthread_mutex_unlock(&m->lock[block]);
}

/* Lookups without the range lock: frames are given to other blocks all the time, and the one that is
 * found must be the block's, and stay so while it is pinned. */
static void op_look(struct worker *w)
{
	struct buffer *b[16];
	uint32_t block[16];
	unsigned n = 0;

	for (unsigned i = 0; i < 16; i++) {
		block[n] = rnd(w, BLOCKS);
		b[n] = buffer_get(w->m->client, block[n]);
		n += b[n] != NULL;
	}
	for (unsigned i = 0; i < n; i++) {
		uint64_t word = __atomic_load_n((uint64_t *)buffer_data(b[i]), __ATOMIC_RELAXED);

		expect(buffer_block_relaxed(b[i]) == block[i], "asked for block %u, got %llu", block[i],
		       (unsigned long long)buffer_block_relaxed(b[i]));
		expect(!word || word >> 40 == block[i], "block %u has the data of %llu", block[i],
		       (unsigned long long)word >> 40);
	}
	buffer_release_many(b, n);
}

static void *work(void *arg)
{
	struct worker *w = arg;

	w->ch = bdev_channel_open(w->m->dev, 0);
	for (unsigned i = 0; i < w->m->ops && !failures; i++) {
		uint32_t block = rnd(w, 4) ? rnd(w, BLOCKS) : rnd(w, 20), what = rnd(w, 100);

		if (what < 35)
			op_read(w, block);
		else if (what < 70)
			op_write(w, block, 1);
		else if (what < 80)
			op_write(w, rnd(w, BLOCKS - RUN), 1 + rnd(w, RUN));
		else if (what < 88)
			op_forget(w, block);
		else if (what < 91)
			op_sync(w, block);
		else
			op_look(w);
	}
	bdev_channel_close(w->ch);
	return NULL;
}

static uint64_t get_seed(void)
{
	const char *text = getenv("BUFFER_SEED");
	uint64_t seed = text ? strtoull(text, NULL, 0) : (uint64_t)time(NULL) << 16 ^ (uint64_t)getpid();

	printf("BUFFER_SEED=%llu\n", (unsigned long long)seed);
	fflush(stdout);
	return seed;
}

static void quiesce(struct model *m)
{
	int rc = -EIO;

	for (int i = 0; i < 200 && rc; i++)
		rc = buffer_write_dirty(m->client);
	cr_assert_eq(rc, 0, "still failing: %d", rc);
}

static void verify(struct model *m)
{
	struct worker w = { .m = m, .ch = bdev_channel_open(m->dev, 0) };

	for (uint32_t i = 0; i < BLOCKS; i++) {
		uint64_t v = device_version(&w, i);

		cr_assert_eq(v, m->version[i], "at the end block %u is %llu instead of %llu on the device", i,
			     (unsigned long long)v, (unsigned long long)m->version[i]);
	}
	bdev_channel_close(w.ch);
}

static void torture(const char *spec, bool faulty, unsigned ops)
{
	struct buffer_pool_params pp = { .memory = (uint64_t)FRAMES * TD_BS, .block_size = TD_BS, .dirty_percent = 40 };
	struct model *m = calloc(1, sizeof(*m));
	struct worker *workers = calloc(THREADS, sizeof(*workers));
	uint64_t seed = get_seed();
	struct buffer_pool *pool;
	struct bc_error err;
	char why[200];

	cr_assert_eq(buffer_pool_create(&pp, &pool, &err), 0, "%s", err.msg);
	m->faulty = faulty;
	m->ops = ops;
	for (unsigned j = 0; j < BLOCKS; j++)
		pthread_mutex_init(&m->lock[j], NULL);
	cr_assert_eq(bdev_open(spec, 0, &m->dev, &err), 0, "%s", err.msg);
	cr_assert_eq(buffer_client_create(pool, m->dev, &m->client, &err), 0, "%s", err.msg);
	for (unsigned i = 0; i < THREADS; i++) {
		workers[i].m = m;
		workers[i].rng = (seed + i) * 0x9e3779b97f4a7c15ull | 1;
		cr_assert_eq(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
	}
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(workers[i].thread, NULL);
	cr_assert_eq(failures, 0, "seed %llu: %s", (unsigned long long)seed, failure);
	quiesce(m);
	verify(m);
	cr_assert_eq(td.overlaps, 0, "two writes of one block in flight");
	cr_assert_eq(td.unstable, 0, "memory changed while it was written");
	cr_assert_eq(buffer_pool_check(pool, why, sizeof(why)), 0, "%s", why);
	buffer_client_destroy(m->client);
	cr_assert_eq(buffer_pool_check(pool, why, sizeof(why)), 0, "%s", why);
	bdev_close(m->dev);
	buffer_pool_destroy(pool);
	free(m);
	free(workers);
}

Test(torture, recording_device, .timeout = 60)
{
	torture("bufrec", false, 12000);
}

Test(torture, writes_that_fail_now_and_then, .timeout = 60) /* P6: no false success, nothing lost */
{
	torture("error:op=write,percent=5,seed=1:malloc:size=4M", true, 8000);
}

Test(torture, slow_device_under_pressure, .timeout = 60)
{
	torture("delay:write=200us:malloc:size=4M", false, 3000);
}
