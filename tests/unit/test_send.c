/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_send.c - what dirty data reaches the data file before its epoch ends (send_writer in write.c): streams, and
 * blocks of an epoch that slots will end early, so that the device is not idle until everybody waits for it; but not
 * what is written over and over, which RAM is there for.
 */
#include <criterion/criterion.h>

#include "engine_util.h"

#define BLOCKS 6000u
#define PIECE 64u /* blocks of a large write */
#define SEND_SLOTS 2048u /* as in write.c */

static struct rig r;
static char buf[PIECE * CACHE_BLOCK] __attribute__((aligned(4096)));

static uint64_t written(void)
{
	struct buffer_stats s;

	buffer_get_stats(r.c->buffers, &s);
	return s.blocks_written;
}

/* The writer works in the background. */
static bool written_soon(uint64_t n)
{
	for (int i = 0; i < 2000 && written() < n; i++)
		usleep(5000);
	return written() >= n;
}

static void write_blocks(uint32_t first, uint32_t n, uint32_t piece)
{
	for (uint32_t b = first; b < first + n; b += piece)
		must(!volume_write(r.v[0], buf, piece * CACHE_BLOCK, (uint64_t)b * CACHE_BLOCK, false), "write %u", b);
}

/* No epoch ends of its own accord: room in RAM and in slots, and an interval that outlasts the test. */
static void start(void)
{
	rig_create(&r, 256 << 20, 4096, 128 << 20, CACHE_MODE_WB);
	rig_open(&r);
	rig_set(&r, "epoch-interval", "60s");
	rig_add(&r, "", (uint64_t)BLOCKS * CACHE_BLOCK, CACHE_MODE_WB);
	usleep(1200000); /* until the interval before is over */
}

/* All blocks have a slot that a new epoch would give up. Returns what is written by then. */
static uint64_t start_durable(void)
{
	start();
	write_blocks(0, BLOCKS, 1);
	must(!epoch_commit(r.c, true), "commit");
	return written();
}

Test(send, streams_go_at_once, .timeout = 60)
{
	uint64_t id;

	start();
	id = epoch_open_id(r.c);
	write_blocks(0, SEND_SLOTS + PIECE, PIECE);
	cr_assert(written_soon(SEND_SLOTS), "%llu written", (unsigned long long)written());
	cr_assert_eq(epoch_open_id(r.c), id);
	rig_destroy(&r);
}

Test(send, small_writes_that_take_no_slots_from_others_wait, .timeout = 60)
{
	start();
	write_blocks(0, BLOCKS, 1);
	usleep(200000);
	cr_assert_eq(written(), 0, "%llu written", (unsigned long long)written());
	rig_destroy(&r);
}

Test(send, the_device_is_busy_before_slots_run_out, .timeout = 60)
{
	uint64_t before = start_durable(), id = epoch_open_id(r.c);

	write_blocks(0, SEND_SLOTS + 1, 1);
	cr_assert(written_soon(before + SEND_SLOTS), "%llu written", (unsigned long long)(written() - before));
	cr_assert_eq(epoch_open_id(r.c), id);
	rig_destroy(&r);
}

Test(send, what_is_written_again_waits, .timeout = 60)
{
	uint64_t before = start_durable(), id = epoch_open_id(r.c);

	for (int round = 0; round < 20; round++)
		write_blocks(0, SEND_SLOTS + SEND_SLOTS / 2, 1);
	usleep(200000);
	cr_assert_eq(epoch_open_id(r.c), id);
	cr_assert_leq(written() - before, 2 * SEND_SLOTS, "%llu written", (unsigned long long)(written() - before));
	rig_destroy(&r);
}
