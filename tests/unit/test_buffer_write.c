/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_buffer_write.c - what buffer.h promises about writing: order, merging, generations, stability, failures, and
 * that no dirty data is lost or written over by older data. The device (buffer_testdev.h) records each write and can
 * hold it back.
 */
#include <criterion/criterion.h>
#include <time.h>
#include <unistd.h>

#include "buffer/internal.h"
#include "buffer_testdev.h"

static struct bdev *dev;
static struct bdev_channel *ch;
static struct buffer_pool *pool;
static struct buffer_client *client;

static void setup_with(unsigned frames, unsigned dirty_percent)
{
	struct buffer_pool_params pp = { .memory = (uint64_t)frames * TD_BS,
					 .block_size = TD_BS,
					 .dirty_percent = dirty_percent };
	struct bc_error err;

	cr_assert_eq(bdev_open("bufrec", 0, &dev, &err), 0, "%s", err.msg);
	cr_assert_eq(buffer_pool_create(&pp, &pool, &err), 0, "%s", err.msg);
	cr_assert_eq(buffer_client_create(pool, dev, &client, &err), 0, "%s", err.msg);
	ch = bdev_channel_open(dev, 0);
	cr_assert_not_null(ch);
}

static void setup(unsigned frames)
{
	setup_with(frames, 100);
}

static void check(void)
{
	char why[200];

	cr_assert_eq(buffer_pool_check(pool, why, sizeof(why)), 0, "%s", why);
	cr_assert_eq(td.overlaps, 0, "two writes of one block in flight");
	cr_assert_eq(td.unstable, 0, "memory changed while it was written");
}

static void teardown(void)
{
	check();
	bdev_channel_close(ch);
	buffer_client_destroy(client);
	check();
	buffer_pool_destroy(pool);
	bdev_close(dev);
}

static struct buffer *make(uint64_t block, int byte) /* dirty, pinned */
{
	struct buffer *b = NULL;

	cr_assert_eq(buffer_alloc(client, &b, 1, true), 0);
	memset(buffer_data(b), byte, TD_BS);
	cr_assert(buffer_publish(b, block, true));
	return b;
}

static void put(uint64_t block, int byte)
{
	buffer_release(make(block, byte));
}

static void on_thread(pthread_t *t, void *(*fn)(void *), void *arg)
{
	cr_assert_eq(pthread_create(t, NULL, fn, arg), 0);
}

static uint64_t dirty_now(void)
{
	struct buffer_stats s;

	buffer_get_stats(client, &s);
	return s.dirty;
}

Test(write, sorted_and_merged)
{
	unsigned order[600], blocks = 0;
	struct buffer_stats s;

	setup(1024);
	/* 0..599 shuffled, with holes at 100 and 300 */
	for (unsigned i = 0; i < 600; i++)
		order[i] = (i * 77 + 13) % 600;
	for (unsigned i = 0; i < 600; i++) {
		if (order[i] != 100 && order[i] != 300)
			put(1000 + order[i], (int)order[i]);
	}
	cr_assert_eq(td.nlog, 0, "nothing is written before it is asked for");
	cr_assert_eq(buffer_write_dirty(client), 0);
	cr_assert_eq(td.nlog, 4, "0-99, 101-299, 301-556 (1 MiB), 557-599");
	for (unsigned i = 0; i < td.nlog; i++) {
		cr_assert(!i || td.log[i].block >= td.log[i - 1].block + td.log[i - 1].n);
		cr_assert_leq(td.log[i].n, 256);
		blocks += td.log[i].n;
	}
	cr_assert_eq(blocks, 598);
	for (unsigned i = 0; i < 600; i++)
		cr_assert_eq(td_byte(1000 + i), i == 100 || i == 300 ? 0 : (i & 255));
	buffer_get_stats(client, &s);
	cr_assert_eq(s.writes, 4);
	cr_assert_eq(s.blocks_written, 598);
	cr_assert_eq(s.dirty, 0);
	cr_assert_eq(buffer_write_dirty(client), 0);
	cr_assert_eq(td.nlog, 4, "clean now");
	teardown();
}

Test(write, large_block_numbers_sort_too)
{
	uint64_t last = 0;

	setup(256);
	for (unsigned i = 0; i < 200; i++)
		put((uint64_t)i * 7919 % TD_BLOCKS, 1);
	cr_assert_eq(buffer_write_dirty_on(client, ch), 0);
	for (unsigned i = 0; i < td.nlog; i++) {
		cr_assert(!i || td.log[i].block > last);
		last = td.log[i].block;
	}
	teardown();
}

Test(write, frames_side_by_side_need_one_iovec)
{
	setup(128);
	for (int i = 0; i < 20; i++)
		put(500 + i, i);
	cr_assert_eq(buffer_write_dirty_on(client, ch), 0);
	cr_assert_eq(td.nlog, 1);
	cr_assert_eq(td.log[0].iovcnt, 1);
	teardown();
}

static void *write_dirty_thread(void *arg)
{
	*(int *)arg = buffer_write_dirty(client);
	return NULL;
}

Test(write, waits_for_what_was_dirty_but_not_for_later)
{
	pthread_t t;
	int rc = 1;

	setup(128);
	put(1, 'a');
	td_gate(true);
	on_thread(&t, write_dirty_thread, &rc);
	td_wait_submitted(1);
	put(2, 'b'); /* later: the round under way does not cover it */
	td_gate(false);
	pthread_join(t, NULL);
	cr_assert_eq(rc, 0);
	cr_assert_eq(td_byte(1), 'a');
	cr_assert_eq(dirty_now(), 1);
	cr_assert_eq(td_byte(2), 0);
	/* and one that asks while a round is in flight gets what became dirty after that round began */
	td_gate(true);
	buffer_write_dirty_async(client);
	td_wait_submitted(2);
	put(3, 'c');
	on_thread(&t, write_dirty_thread, &rc);
	usleep(20000);
	td_gate(false);
	pthread_join(t, NULL);
	cr_assert_eq(td_byte(2), 'b');
	cr_assert_eq(td_byte(3), 'c');
	teardown();
}

/* Copy on write: what replaces a buffer that is being written is another buffer, so the write sees stable memory, and
 * the new contents follow with a write of their own. */
Test(write, a_buffer_replaced_while_it_is_written_is_followed_by_the_new_one)
{
	struct buffer *old;

	setup(128);
	old = make(1, 'a');
	td_gate(true);
	buffer_write_dirty_async(client);
	td_wait_submitted(1);
	cr_assert(buffer_is_dirty(old));
	put(1, 'b');
	td_gate(false);
	cr_assert_eq(buffer_write_dirty(client), 0);
	cr_assert_eq(td.nlog, 2);
	cr_assert_eq(td_byte(1), 'b');
	cr_assert_eq(*(char *)buffer_data(old), 'a');
	buffer_release(old);
	teardown();
}

static void *forget_thread(void *done)
{
	buffer_forget(client, 1, 1);
	atomic_store((_Atomic int *)done, 1);
	return NULL;
}

Test(write, forget_waits_for_a_write_in_flight_also_of_a_replaced_buffer)
{
	for (int replaced = 0; replaced < 2; replaced++) {
		_Atomic int done = 0;
		unsigned before;
		pthread_t t;

		if (!replaced)
			setup(128);
		before = td.submitted;
		put(1, 'a');
		td_gate(true);
		buffer_write_dirty_async(client);
		td_wait_submitted(before + 1);
		if (replaced)
			put(1, 'b'); /* the old one is still in flight */
		on_thread(&t, forget_thread, &done);
		for (struct buffer *b; (b = buffer_get(client, 1)); usleep(1000)) /* until forget has begun */
			buffer_release(b);
		usleep(10000);
		cr_assert_eq(atomic_load(&done), 0, "the old write could land later");
		td_gate(false);
		pthread_join(t, NULL);
		cr_assert_eq(buffer_write_dirty(client), 0);
		cr_assert_eq(td_byte(1), 'a');
		check();
	}
	teardown();
}

Test(write, a_replaced_buffers_write_never_lands_after_the_new_ones)
{
	setup(128);
	for (int i = 1; i <= 50; i++) {
		put(1, i);
		td_gate(true);
		buffer_write_dirty_async(client);
		td_wait_submitted((unsigned)i);
		put(1, i + 100); /* while i is in flight */
		buffer_forget(client, 2, 1);
		put(2, i);
		td_gate(false);
		cr_assert_eq(buffer_write_dirty(client), 0);
		cr_assert_eq(td_byte(1), (unsigned)i + 100);
		td.submitted = (unsigned)i;
	}
	teardown();
}

Test(write, starts_above_the_dirty_limit_in_a_large_batch)
{
	setup_with(128, 50);
	for (int i = 0; i < 64; i++)
		put((uint64_t)i * 2, i);
	usleep(20000);
	cr_assert_eq(td.nlog, 0, "at the limit");
	put(1000, 'x');
	for (int i = 0; i < 2000 && dirty_now(); i++)
		usleep(1000);
	cr_assert_eq(dirty_now(), 0, "writes all there is");
	cr_assert_eq(td.nlog, 65);
	teardown();
}

static void *alloc_thread(void *arg)
{
	struct buffer *b[16];

	*(int *)arg = buffer_alloc(client, b, 16, true);
	if (*(int *)arg == 0)
		buffer_release_many(b, 16);
	return NULL;
}

Test(write, who_waits_for_frames_pushes_the_writer_and_no_dirty_data_is_lost)
{
	setup(64);
	for (int i = 0; i < 1000; i++)
		put((uint64_t)i, i);
	cr_assert_geq(td.nlog, 1);
	for (int i = 0; i < 1000; i++) {
		struct buffer *b = buffer_get(client, (uint64_t)i);

		cr_assert_eq(b ? *(unsigned char *)buffer_data(b) : td_byte((uint64_t)i), i & 255);
		if (b)
			buffer_release(b);
	}
	cr_assert_eq(buffer_write_dirty(client), 0);
	for (int i = 0; i < 1000; i++)
		cr_assert_eq(td_byte((uint64_t)i), i & 255);
	teardown();
}

Test(write, a_waiter_is_served_by_a_release)
{
	struct buffer *b[64];
	pthread_t t;
	int rc = 1;

	setup(64);
	for (int i = 0; i < 4; i++)
		cr_assert_eq(buffer_alloc(client, b + 16 * i, 16, false), 0);
	for (int i = 0; i < 32; i++)
		cr_assert(buffer_publish(b[i], (uint64_t)i, false));
	on_thread(&t, alloc_thread, &rc);
	while (!atomic_load(&pool->nwaiters))
		usleep(1000);
	buffer_release_many(b, 10); /* clean */
	buffer_release_many(b + 32, 5); /* anonymous */
	usleep(10000);
	cr_assert_eq(atomic_load(&pool->nwaiters), 1, "15 are not 16");
	buffer_release(b[10]);
	pthread_join(t, NULL);
	cr_assert_eq(rc, 0);
	buffer_release_many(b + 11, 21);
	buffer_release_many(b + 37, 27);
	teardown();
}

Test(fail, stays_dirty_is_counted_and_reported_once)
{
	struct buffer_stats s;

	setup(128);
	td_fail(5, 6);
	put(5, 'a');
	buffer_write_dirty_async(client);
	for (int i = 0; i < 2000; i++) {
		buffer_get_stats(client, &s);
		if (s.write_errors)
			break;
		usleep(1000);
	}
	cr_assert_eq(s.write_errors, 1);
	cr_assert_eq(dirty_now(), 1);
	usleep(50000);
	buffer_get_stats(client, &s);
	cr_assert_eq(s.write_errors, 1, "not tried again unasked");
	td_fail(0, 0);
	cr_assert_eq(buffer_write_dirty(client), -EIO, "the failure before is reported");
	cr_assert_eq(buffer_write_dirty(client), 0, "once");
	cr_assert_eq(dirty_now(), 0);
	cr_assert_eq(td_byte(5), 'a');
	teardown();
}

Test(fail, one_bad_block_fails_alone) /* P9 */
{
	setup(128);
	td_fail(50, 51);
	for (int i = 0; i < 100; i++)
		put((uint64_t)i, 'a');
	cr_assert_eq(buffer_write_dirty_on(client, ch), -EIO);
	cr_assert_eq(dirty_now(), 1);
	for (int i = 0; i < 100; i++)
		cr_assert_eq(td_byte((uint64_t)i), i == 50 ? 0 : 'a');
	check();
	cr_assert_eq(buffer_write_dirty_on(client, ch), -EIO, "still bad");
	td_fail(0, 0);
	cr_assert_eq(buffer_write_dirty_on(client, ch), 0);
	cr_assert_eq(td_byte(50), 'a');
	teardown();
}

Test(fail, all_who_wait_for_a_failing_round_are_told) /* P6 */
{
	pthread_t t[8];
	int rc[8];

	setup(128);
	td_fail(5, 6);
	put(4, 'a');
	td_gate(true);
	buffer_write_dirty_async(client);
	td_wait_submitted(1);
	put(5, 'a');
	for (int i = 0; i < 8; i++)
		on_thread(&t[i], write_dirty_thread, &rc[i]);
	usleep(20000);
	td_gate(false);
	for (int i = 0; i < 8; i++) {
		pthread_join(t[i], NULL);
		cr_assert_eq(rc[i], -EIO);
	}
	td_fail(0, 0);
	cr_assert_eq(buffer_write_dirty(client), 0);
	teardown();
}

Test(fail, waiters_get_an_error_when_nothing_can_be_cleaned)
{
	struct buffer_stats s;
	struct buffer *b[16];
	int rc = 0;

	setup_with(64, 50);
	td_fail(0, TD_BLOCKS);
	for (int i = 0; i < 4; i++) {
		cr_assert_eq(buffer_alloc(client, b, 16, false), 0);
		for (int j = 0; j < 16; j++)
			cr_assert(buffer_publish(b[j], (uint64_t)(16 * i + j) * 2, true));
		buffer_release_many(b, 16);
	}
	alloc_thread(&rc);
	cr_assert_eq(rc, -EIO);
	alloc_thread(&rc);
	cr_assert_eq(rc, -EIO);
	usleep(100000);
	buffer_get_stats(client, &s);
	cr_assert_leq(s.write_errors, 64 * 20, "pauses between attempts: thousands without");
	td_fail(0, 0);
	alloc_thread(&rc);
	cr_assert_eq(rc, 0, "recovers on its own");
	buffer_write_dirty(client); /* reports the old failure */
	for (int i = 0; i < 64; i++)
		cr_assert_eq(td.in_flight[i], 0);
	teardown();
}

Test(write, destroy_drops_what_is_dirty)
{
	setup(128);
	put(3, 'a');
	bdev_channel_close(ch);
	buffer_client_destroy(client);
	cr_assert_eq(td_byte(3), 0);
	cr_assert_eq(pool->nfree, 128);
	buffer_pool_destroy(pool);
	bdev_close(dev);
}
