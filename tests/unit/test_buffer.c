/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_buffer.c - what buffer.h promises about memory, lookup, pins and publishing. Writing:
 * test_buffer_write.c; threads: test_buffer_torture.c. Every test ends with the checker of the invariants.
 */
#include <criterion/criterion.h>
#include <unistd.h>

#include "buffer/internal.h"
#include "buffer_testdev.h"

static struct bdev *dev;
static struct buffer_pool *pool;
static struct buffer_client *client;

static struct buffer_client *add_client(void)
{
	struct buffer_client *c = NULL;
	struct bc_error err;

	cr_assert_eq(buffer_client_create(pool, dev, &c, &err), 0);
	return c;
}

static void setup(unsigned frames)
{
	struct buffer_pool_params pp = { .memory = (uint64_t)frames * TD_BS, .block_size = TD_BS };
	struct bc_error err;

	cr_assert_eq(bdev_open("bufrec", 0, &dev, &err), 0, "%s", err.msg);
	cr_assert_eq(buffer_pool_create(&pp, &pool, &err), 0, "%s", err.msg);
	client = add_client();
}

static void check(void)
{
	char why[200];

	cr_assert_eq(buffer_pool_check(pool, why, sizeof(why)), 0, "%s", why);
}

static void teardown(void)
{
	check();
	buffer_client_destroy(client);
	cr_assert_eq(pool->nfree, pool->frames);
	check();
	buffer_pool_destroy(pool);
	bdev_close(dev);
}

static struct buffer *alloc1(struct buffer_client *c)
{
	struct buffer *b = NULL;

	cr_assert_eq(buffer_alloc(c, &b, 1, false), 0);
	return b;
}

static void put(struct buffer_client *c, uint64_t block, int byte, bool dirty)
{
	struct buffer *b = alloc1(c);

	memset(buffer_data(b), byte, TD_BS);
	cr_assert(buffer_publish(b, block, dirty));
	buffer_release(b);
}

static int peek(struct buffer_client *c, uint64_t block) /* -1: not in memory */
{
	struct buffer *b = buffer_get(c, block);
	int byte = b ? *(unsigned char *)buffer_data(b) : -1;

	if (b)
		buffer_release(b);
	return byte;
}

static struct buffer_stats stats(struct buffer_client *c)
{
	struct buffer_stats s;

	buffer_get_stats(c, &s);
	return s;
}

Test(pool, refuses_bad_parameters_with_a_reason)
{
	static const struct buffer_pool_params bad[] = {
		{ .memory = 1 << 20, .block_size = 4095 },
		{ .memory = 1 << 20, .block_size = 256 },
		{ .memory = 1 << 30, .block_size = 131072 },
		{ .memory = 63 * 4096 + 4095, .block_size = 4096 },
		{ .memory = 1 << 20, .block_size = 4096, .dirty_percent = 101 },
	};
	struct bc_error err;

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		cr_assert_eq(buffer_pool_create(&bad[i], &pool, &err), -EINVAL);
		cr_assert(err.msg[0]);
	}
	/* more than any machine has, yet mmap might grant it */
	struct buffer_pool_params huge = { .memory = 1ull << 43, .block_size = 65536 };
	cr_assert_eq(buffer_pool_create(&huge, &pool, &err), -ENOMEM);
	cr_assert(strstr(err.msg, "8.0 TiB"), "%s", err.msg);
}

Test(pool, counts_all_its_memory)
{
	uint64_t alone, shared;

	setup(64);
	shared = buffer_pool_memory(pool);
	buffer_client_destroy(client);
	alone = buffer_pool_memory(pool);
	cr_assert_geq(alone, 64 * TD_BS + 64 * sizeof(struct buffer));
	cr_assert_gt(shared, alone + sizeof(struct buffer_client));
	client = add_client();
	cr_assert_eq(buffer_pool_memory(pool), shared);
	teardown();
}

Test(pool, serves_one_device)
{
	struct buffer_client *c;
	struct bc_error err;

	setup(64);
	cr_assert_eq(buffer_client_create(pool, dev, &c, &err), -EBUSY);
	cr_assert(strstr(err.msg, "bufrec"), "%s", err.msg);
	teardown();
}

Test(buffer, anonymous_until_published)
{
	struct buffer *b, *found;

	setup(64);
	b = alloc1(client);
	cr_assert_eq(buffer_block_relaxed(b), UINT64_MAX);
	cr_assert_eq((uintptr_t)buffer_data(b) % 4096, 0);
	cr_assert_null(buffer_get(client, 7));
	cr_assert(buffer_publish(b, 7, false));
	cr_assert_eq(buffer_block_relaxed(b), 7);
	cr_assert_not(buffer_is_dirty(b));
	found = buffer_get(client, 7);
	cr_assert_eq(found, b);
	cr_assert_null(buffer_get(client, 8));
	buffer_release(found);
	buffer_release(b);
	cr_assert_eq(stats(client).hits, 1);
	cr_assert_eq(stats(client).misses, 2);
	cr_assert_eq(stats(client).frames, 1);
	b = alloc1(client);
	buffer_release(b); /* anonymous: back to the pool */
	cr_assert_eq(stats(client).frames, 1);
	teardown();
}

Test(buffer, clean_publish_loses_against_what_is_there)
{
	struct buffer *b;

	setup(64);
	put(client, 5, 'a', true);
	b = alloc1(client);
	memset(buffer_data(b), 'b', TD_BS);
	cr_assert_not(buffer_publish(b, 5, false));
	cr_assert_eq(buffer_block_relaxed(b), UINT64_MAX);
	cr_assert(buffer_publish(b, 6, false)); /* it still is the caller's */
	buffer_release(b);
	cr_assert_eq(peek(client, 5), 'a');
	teardown();
}

Test(buffer, dirty_publish_replaces_even_a_pinned_dirty_one)
{
	struct buffer *old;

	setup(64);
	put(client, 5, 'a', true);
	old = buffer_get(client, 5);
	put(client, 5, 'b', true);
	cr_assert_eq(peek(client, 5), 'b');
	cr_assert_eq(*(char *)buffer_data(old), 'a', "a pinned buffer keeps its memory");
	cr_assert_eq(stats(client).dirty, 1);
	cr_assert_eq(stats(client).frames, 2);
	check();
	buffer_release(old);
	cr_assert_eq(stats(client).frames, 1);
	cr_assert_eq(buffer_write_dirty(client), 0);
	cr_assert_eq(td_byte(5), 'b');
	teardown();
}

Test(buffer, forget_drops_dirty_data_and_detaches_pinned)
{
	struct buffer *b;

	setup(64);
	for (int i = 0; i < 8; i++)
		put(client, 100 + i, 'x', i & 1);
	b = buffer_get(client, 103);
	buffer_forget(client, 101, 6);
	cr_assert_eq(peek(client, 100), 'x');
	cr_assert_eq(peek(client, 107), 'x');
	for (int i = 101; i < 107; i++)
		cr_assert_eq(peek(client, i), -1);
	cr_assert_eq(stats(client).frames, 3);
	buffer_release(b);
	cr_assert_eq(stats(client).frames, 2);
	cr_assert_eq(buffer_write_dirty(client), 0);
	cr_assert_eq(td_byte(103), 0, "forgotten, not written");
	cr_assert_eq(td_byte(107), 'x');
	buffer_forget(client, 0, UINT32_MAX); /* more blocks than frames */
	cr_assert_eq(stats(client).frames, 0);
	teardown();
}

Test(buffer, evict_spares_dirty_and_pinned_ones)
{
	static const uint32_t blocks[] = { 1, 2, 3, 4 };
	struct buffer *b;

	setup(64);
	put(client, 1, 'a', false);
	put(client, 2, 'b', true);
	put(client, 3, 'c', false);
	put(client, 5, 'e', false);
	b = buffer_get(client, 3);
	buffer_evict(client, blocks, 4);
	cr_assert_eq(peek(client, 1), -1);
	cr_assert_eq(peek(client, 2), 'b');
	cr_assert_eq(peek(client, 3), 'c');
	cr_assert_eq(peek(client, 5), 'e', "it was not asked for");
	cr_assert_eq(stats(client).frames, 3);
	check();
	buffer_release(b);
	cr_assert_eq(buffer_write_dirty(client), 0);
	buffer_evict(client, blocks, 4);
	cr_assert_eq(stats(client).frames, 1);
	cr_assert_eq(td_byte(2), 'b');
	teardown();
}

Test(alloc, all_or_none_and_at_most_a_quarter)
{
	struct buffer *b[64], *more[16];

	setup(64);
	cr_assert_eq(buffer_alloc(client, b, 17, true), -EINVAL);
	cr_assert_eq(buffer_alloc(client, b, 17, false), -EINVAL);
	for (int i = 0; i < 3; i++)
		cr_assert_eq(buffer_alloc(client, b + 16 * i, 16, false), 0);
	cr_assert_eq(buffer_alloc(client, b + 48, 8, false), 0);
	cr_assert_eq(buffer_alloc(client, more, 9, false), -EAGAIN);
	cr_assert_eq(pool->nfree, 8, "nothing taken by a request that fails");
	cr_assert_eq(buffer_alloc(client, b + 56, 8, false), 0);
	for (int i = 0; i < 64; i++)
		for (int j = 0; j < i; j++)
			cr_assert_neq(b[i], b[j]);
	check();
	buffer_release_many(b, 64);
	cr_assert_eq(stats(client).frames, 0);
	teardown();
}

Test(alloc, evicts_clean_unpinned_only_and_spares_what_was_used)
{
	struct buffer *pinned, *b[16];

	setup(64);
	for (int i = 0; i < 64; i++)
		put(client, i, i, i >= 60); /* four dirty */
	pinned = buffer_get(client, 10);
	for (int i = 0; i < 16; i++)
		peek(client, 2 * i); /* used: second chance */
	for (int k = 0; k < 2; k++) {
		cr_assert_eq(buffer_alloc(client, b, 16, false), 0);
		buffer_release_many(b, 16);
		for (int i = 0; i < 16; i++)
			put(client, 1000 + 16 * k + i, 'f', false);
	}
	for (int i = 0; i < 16; i++)
		cr_assert_eq(peek(client, 2 * i), 2 * i, "block %d was used, others were not", 2 * i);
	for (int i = 60; i < 64; i++)
		cr_assert_eq(peek(client, i), i, "dirty block %d", i);
	cr_assert_geq(stats(client).evictions, 32);
	for (int i = 0; i < 200; i++)
		put(client, 2000 + i, 'g', false);
	cr_assert_eq(peek(client, 10), 10);
	buffer_release(pinned);
	cr_assert_eq(buffer_write_dirty(client), 0);
	teardown();
}

/* Blocks of any size keep their contents through a write and a read; with memory locked, where the limit allows it. */
Test(buffer, smallest_and_largest_blocks)
{
	static const uint32_t sizes[] = { 512, 65536 };

	for (int k = 0; k < 2; k++) {
		struct buffer_pool_params pp = { .memory = 100ull * sizes[k],
						 .block_size = sizes[k],
						 .lock_memory = true };
		struct bdev_channel *ch;
		struct bc_error err;
		struct buffer *b;

		if (buffer_pool_create(&pp, &pool, &err)) {
			cr_assert(strstr(err.msg, "ulimit"), "%s", err.msg);
			pp.lock_memory = false;
			cr_assert_eq(buffer_pool_create(&pp, &pool, &err), 0, "%s", err.msg);
		}
		cr_assert_eq(bdev_open("malloc:size=16M", 0, &dev, &err), 0, "%s", err.msg);
		client = add_client();
		ch = bdev_channel_open(dev, 0);
		for (unsigned i = 0; i < 80; i++) {
			b = alloc1(client);
			cr_assert_eq((uintptr_t)buffer_data(b) % (sizes[k] < 4096 ? sizes[k] : 4096), 0);
			memset(buffer_data(b), (int)i, sizes[k]);
			cr_assert(buffer_publish(b, 79 - i, true));
			buffer_release(b);
		}
		cr_assert_eq(buffer_write_dirty_on(client, ch), 0);
		buffer_forget(client, 0, 80);
		for (unsigned i = 0; i < 80; i++) {
			static unsigned char got[65536] __attribute__((aligned(4096)));

			cr_assert_eq(bdev_pread(ch, got, sizes[k], (uint64_t)(79 - i) * sizes[k]), 0);
			cr_assert_eq(got[0], i);
			cr_assert_eq(got[sizes[k] - 1], i);
		}
		bdev_channel_close(ch);
		teardown();
	}
}
