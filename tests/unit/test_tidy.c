/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_tidy.c - large reads put scattered blocks in order (tidy.c), and compaction makes the room for it (compact.c):
 * the data stays what it is, dirty stays dirty and clean clean, over restarts too, and order comes. So does what is
 * done while nobody asks for anything (idle.c).
 */
#include <criterion/criterion.h>
#include <pthread.h>

#include "engine_util.h"

#define BLOCKS 8192u /* 32 MiB */
#define READ 32u /* blocks */

static struct rig r;
static atomic_bool enough;
static uint32_t version[BLOCKS];
static char buf[READ * CACHE_BLOCK] __attribute__((aligned(4096)));

static void write_block(uint32_t b)
{
	stamp(buf, b, ++version[b]);
	must(!volume_write(r.v[0], buf, CACHE_BLOCK, (uint64_t)b * CACHE_BLOCK, false), "write");
}

/* Reads everything, checks it, and returns how many pieces on the SSD the reads were. */
static unsigned read_all(void)
{
	unsigned pieces = 0;
	char want[CACHE_BLOCK];

	for (uint32_t b = 0; b < BLOCKS; b += READ) {
		must(!volume_pread(r.v[0], buf, READ * CACHE_BLOCK, (uint64_t)b * CACHE_BLOCK), "read");
		pieces += thread_ctx_get(r.c)->pieces;
		for (uint32_t i = 0; i < READ; i++) {
			stamp(want, b + i, version[b + i]);
			must(!memcmp(buf + (size_t)i * CACHE_BLOCK, want, CACHE_BLOCK), "block %u", b + i);
		}
	}
	return pieces;
}

/* A cache of 48 MiB in front of 32, filled in random order and written over again and again. */
static void scatter_in_front_of(const char *prefix, uint32_t line, enum cache_mode mode)
{
	uint64_t rng = engine_seed();

	memset(version, 0, sizeof version);
	rig_create(&r, 48 << 20, line, 2 << 20, mode);
	rig_open(&r);
	rig_add(&r, prefix, (uint64_t)BLOCKS * CACHE_BLOCK, mode);
	for (uint32_t i = 0; i < 6 * BLOCKS; i++) {
		write_block(i < BLOCKS ? i : (uint32_t)rnd(&rng, BLOCKS));
		/* within an epoch a block keeps its slot */
		if (i % 512 == 511)
			must(!epoch_commit(r.c, true), "commit");
	}
	must(!epoch_commit(r.c, true), "commit");
}

static void scatter(uint32_t line, enum cache_mode mode)
{
	scatter_in_front_of("", line, mode);
}

/* Everything is as it should be, after a restart too. */
static void read_and_end(void)
{
	read_all();
	rig_close(&r);
	rig_open(&r);
	read_all();
	rig_close(&r);
	rig_destroy(&r);
}

static void settle(void)
{
	must(!epoch_commit(r.c, true), "commit");
	for (int i = 0; i < 1000 && ctr_get(r.c->compact_wanted); i++)
		usleep(1000);
}

/* The blocks around this one lie here and there, and not in RAM. */
static void scatter_again(uint64_t block)
{
	for (uint64_t b = block / READ * READ; b < block / READ * READ + READ; b++) {
		write_block((uint32_t)b);
		write_block((uint32_t)(b + BLOCKS / 2));
		must(!epoch_commit(r.c, true), "commit");
	}
	buffer_forget(r.c->buffers, 0, r.c->geo.nslots);
}

Test(tidy, reading_in_sequence_brings_order, .timeout = 120)
{
	for (uint32_t line = 4096; line <= 65536; line *= 16) {
		unsigned first, last;
		uint64_t dirty;

		scatter(line, CACHE_MODE_WB);
		dirty = ctr_get(r.c->dirty_blocks);
		first = read_all();
		cr_assert_gt(first, BLOCKS / 4, "it is not scattered: %u", first);
		for (unsigned pass = 0; pass < 8; pass++) {
			last = read_all();
			settle();
		}
		cr_assert_lt(last, first / 4, "%u pieces, then %u", first, last);
		cr_assert_eq(ctr_get(r.c->dirty_blocks), dirty, "what was dirty is, and nothing else");
		rig_close(&r);
		rig_open(&r);
		cr_assert_lt(read_all(), first / 4, "order outlasts a restart");
		rig_close(&r);
		rig_destroy(&r);
	}
}

/* Clean blocks stay clean: moving is no write of the client's. */
Test(tidy, clean_blocks_stay_clean, .timeout = 120)
{
	struct bc_error err = { 0 };
	unsigned first;

	scatter(4096, CACHE_MODE_WB);
	must(!cache_write_back(r.c, NULL, NULL, NULL, &err), "%s", err.msg);
	cr_assert_eq(ctr_get(r.c->dirty_blocks), 0);
	first = read_all();
	for (unsigned pass = 0; pass < 8; pass++) {
		read_all();
		settle();
	}
	cr_assert_lt(read_all(), first / 4);
	cr_assert_eq(ctr_get(r.c->dirty_blocks), 0);
	rig_close(&r);
	rig_destroy(&r);
}

Test(tidy, can_be_switched_off, .timeout = 120)
{
	struct bc_error err = { 0 };
	uint64_t written;

	scatter(4096, CACHE_MODE_WB);
	must(!cache_set(r.c, NULL, "tidy", "0", NULL, &err), "%s", err.msg);
	written = ctr_get(r.v[0]->n.cache_written);
	read_all();
	read_all();
	cr_assert_eq(ctr_get(r.v[0]->n.cache_written), written);
	rig_close(&r);
	rig_destroy(&r);
}

/* ---- idle ---- */

static uint32_t words_free_in_all(void)
{
	return slots_free_words(&r.c->slots) * 100 / (ctr_get(r.c->slots.nfree) / 64);
}

static bool comes_true(bool (*what)(void))
{
	for (int i = 0; i < 2000 && !what(); i++)
		usleep(10000);
	return what();
}

static bool compacted(void)
{
	return words_free_in_all() >= 75;
}

Test(idle, free_space_is_put_together, .timeout = 120)
{
	for (uint32_t line = 4096; line <= 65536; line *= 16) {
		uint64_t dirty, written;

		scatter(line, CACHE_MODE_WB);
		dirty = ctr_get(r.c->dirty_blocks);
		written = ctr_get(r.v[0]->n.cache_written);
		cr_assert_lt(words_free_in_all(), 50, "nothing to do");
		cr_assert(comes_true(compacted), "%u %%", words_free_in_all());
		cr_assert_lt(ctr_get(r.v[0]->n.cache_written) - written,
			     slots_free_words(&r.c->slots) * 64ull * CACHE_BLOCK, "it moved more than it gained");
		cr_assert_eq(ctr_get(r.c->dirty_blocks), dirty);
		read_and_end();
	}
}

/* What idle_run does is up to us. */
static void scatter_by_hand(void)
{
	compact_in_background = false;
	scatter(4096, CACHE_MODE_WB);
}

static void end_by_hand(void)
{
	compact_in_background = true;
	rig_close(&r);
	rig_destroy(&r);
}

/* Asked for a run by idle_look? */
static bool is_wanted(void)
{
	atomic_store(&r.c->idle.wanted, false);
	idle_look(r.c, 1000000000);
	return atomic_exchange(&r.c->idle.wanted, false);
}

Test(idle, readers_find_order_the_next_time, .timeout = 120)
{
	unsigned first, second;

	scatter_by_hand();
	first = read_all();
	cr_assert_gt(ctr_get(r.c->idle.nranges), 0, "there was room for all");
	is_wanted();
	cr_assert(is_wanted());
	for (int runs = 0; is_wanted() && runs < 4; runs++)
		idle_run(r.c);
	cr_assert_not(is_wanted(), "it has no end");
	cr_assert_eq(ctr_get(r.c->idle.nranges), 0);
	second = read_all();
	cr_assert_lt(second, first / 8, "%u pieces, then %u", first, second);
	end_by_hand();
}

Test(idle, requests_come_first, .timeout = 120)
{
	uint64_t written;

	scatter_by_hand();
	is_wanted();
	cr_assert(is_wanted(), "quiet");
	read_all();
	written = ctr_get(r.v[0]->n.cache_written);
	idle_run(r.c);
	cr_assert_eq(ctr_get(r.v[0]->n.cache_written), written, "it is not idle any more");
	cr_assert_not(is_wanted(), "nor was it just now");
	cr_assert_not(is_wanted(), "it was interrupted: this time it waits a little longer");
	cr_assert(is_wanted());
	idle_run(r.c);
	cr_assert_gt(ctr_get(r.v[0]->n.cache_written), written);
	end_by_hand();
}

Test(idle, can_be_switched_off, .timeout = 120)
{
	scatter_by_hand();
	rig_set(&r, "tidy", "0");
	is_wanted();
	cr_assert_not(is_wanted());
	end_by_hand();
}

/* Not for each few blocks written: a quarter of the free slots at least have to have been given up since. */
Test(idle, wears_the_device_in_proportion_to_writes, .timeout = 120)
{
	uint64_t rng, before, client = 0, moved = 0;

	scatter_by_hand();
	rng = engine_seed();
	is_wanted();
	cr_assert(is_wanted());
	idle_run(r.c);
	before = ctr_get(r.v[0]->n.cache_written);
	for (unsigned round = 0; round < 100; round++) {
		for (unsigned i = 0; i < 256; i++)
			write_block((uint32_t)rnd(&rng, BLOCKS));
		client += 256ull * CACHE_BLOCK;
		must(!epoch_commit(r.c, true), "commit");
		is_wanted();
		if (is_wanted())
			idle_run(r.c);
	}
	moved = ctr_get(r.v[0]->n.cache_written) - before - client;
	cr_assert_gt(moved, 0);
	cr_assert_lt(moved, client * 3 / 2, "%.2f blocks moved for each written", (double)moved / (double)client);
	end_by_hand();
}

/* Few bytes, but a client that waits for each of them. */
Test(idle, flushes_are_requests, .timeout = 120)
{
	scatter_by_hand();
	is_wanted();
	cr_assert(is_wanted());
	for (unsigned i = 0; i < 100; i++)
		must(!volume_flush(r.v[0]), "flush");
	cr_assert(idle_over(r.c));
	cr_assert_not(is_wanted());
	end_by_hand();
}

/* What was in RAM before still is: what is moved meanwhile, several times as much as RAM holds, does not drive it out.
 */
Test(idle, leaves_ram_as_it_is, .timeout = 120)
{
	uint64_t written, ram;

	scatter_by_hand();
	buffer_forget(r.c->buffers, 0, r.c->geo.nslots);
	for (uint32_t b = 100; b < 164; b++) /* 64 of 512 buffers */
		must(!volume_pread(r.v[0], buf, CACHE_BLOCK, (uint64_t)b * CACHE_BLOCK), "read");
	is_wanted();
	cr_assert(is_wanted());
	written = ctr_get(r.v[0]->n.cache_written);
	idle_tidy_later(r.v[0], 2048, BLOCKS - 2048);
	idle_run(r.c);
	cr_assert_gt(ctr_get(r.v[0]->n.cache_written) - written, 4u << 20, "it has moved more than RAM holds");
	ram = ctr_get(r.v[0]->n.ram_read);
	for (uint32_t b = 100; b < 164; b++)
		must(!volume_pread(r.v[0], buf, CACHE_BLOCK, (uint64_t)b * CACHE_BLOCK), "read");
	cr_assert_gt((ctr_get(r.v[0]->n.ram_read) - ram) / CACHE_BLOCK, 56, "%llu of 64 are left",
		     (unsigned long long)(ctr_get(r.v[0]->n.ram_read) - ram) / CACHE_BLOCK);
	end_by_hand();
}

/* A block that cannot go anywhere but where nothing is gained by it stays. However much or little is free. */
Test(idle, compaction_has_an_end, .timeout = 120)
{
	static uint32_t taken[12288];

	scatter_by_hand();
	for (uint32_t leave = 200; leave < 1200; leave += 50) {
		uint32_t n = ctr_get(r.c->slots.nfree) > leave ? ctr_get(r.c->slots.nfree) - leave : 0;
		uint64_t written = ctr_get(r.v[0]->n.cache_written);

		must(slots_take(&r.c->slots, taken, n), "take");
		atomic_store(&r.c->idle.quiet, true);
		atomic_store(&r.c->idle.bytes, ctr_get(r.v[0]->n.volume_read) + ctr_get(r.v[0]->n.volume_written));
		atomic_store(&r.c->idle.requests, ctr_get(r.v[0]->n.write_misses) + ctr_get(r.v[0]->n.write_hits));
		cr_assert(compact_run(r.c, true), "nobody interrupted it");
		cr_assert_leq((ctr_get(r.v[0]->n.cache_written) - written) / CACHE_BLOCK, 4 * leave,
			      "%llu blocks moved, %u slots are free",
			      (unsigned long long)(ctr_get(r.v[0]->n.cache_written) - written) / CACHE_BLOCK, leave);
		slots_give(&r.c->slots, taken, n);
	}
	read_all();
	end_by_hand();
}

/* Everything is clean after a flush, whatever is moved beside it. */
static void *move_all_the_time(void *arg)
{
	(void)arg;
	while (!atomic_load(&enough)) {
		atomic_store(&r.c->idle.quiet, true);
		compact_run(r.c, false);
		for (uint32_t b = 0; b < BLOCKS; b += READ) {
			struct drop_behind *cold = calloc(1, sizeof *cold);

			must(cold != NULL, "no memory");
			tidy_range(thread_ctx_get(r.c), r.v[0], b, READ, cold);
			must(!drop_behind_settle(r.c, cold, true), "settle");
			free(cold);
		}
	}
	return NULL;
}

Test(idle, a_flush_beside_it_leaves_nothing_dirty, .timeout = 120)
{
	struct bc_error err = { 0 };
	pthread_t t;
	uint64_t rng;

	compact_in_background = false;
	scatter_in_front_of("delay:write=1ms:", 4096, CACHE_MODE_WB);
	rng = engine_seed();
	rig_set(&r, "clean-after", "86400s");
	for (unsigned round = 0; round < 3; round++) {
		for (unsigned i = 0; i < 2 * BLOCKS; i++) {
			write_block((uint32_t)rnd(&rng, BLOCKS));
			if (i % 512 == 511)
				must(!epoch_commit(r.c, true), "commit");
		}
		atomic_store(&enough, false);
		must(!pthread_create(&t, NULL, move_all_the_time, NULL), "pthread_create");
		usleep(20000);
		must(!cache_write_back(r.c, NULL, NULL, NULL, &err), "%s", err.msg);
		atomic_store(&enough, true);
		pthread_join(t, NULL);
		cr_assert_eq(ctr_get(r.c->dirty_blocks), 0, "%llu are dirty",
			     (unsigned long long)ctr_get(r.c->dirty_blocks));
	}
	read_all();
	end_by_hand();
}

/* A volume that is gone, or another one with its number, is no harm. */
Test(idle, what_is_to_be_tidied_may_be_gone, .timeout = 120)
{
	struct bc_error err = { 0 };

	scatter_by_hand();
	idle_tidy_later(r.v[0], BLOCKS - 8, 8);
	for (unsigned i = 0; i < 2 * IDLE_RANGES; i++) /* more than are remembered */
		idle_tidy_later(r.v[0], (uint64_t)i * 4096, 8);
	cr_assert_leq(ctr_get(r.c->idle.nranges), IDLE_RANGES);
	volume_put(r.v[0]);
	r.v[0] = NULL;
	must(!cache_write_back(r.c, NULL, NULL, NULL, &err), "%s", err.msg);
	must(!cache_volume_remove(r.c, "v0", false, &err), "%s", err.msg);
	for (int looks = 0; ctr_get(r.c->idle.nranges) && looks < 4;
	     looks++) { /* its requests are gone with it: not quiet */
		is_wanted();
		idle_run(r.c);
	}
	cr_assert_eq(ctr_get(r.c->idle.nranges), 0);
	end_by_hand();
}

/* A multiple of crc32c's polynomial: added to data it leaves the checksum as it is. */
#define CRC_BLIND (1ull | 0x82f63b78ull << 1)

static void *write_again(void *arg)
{
	must(!volume_write(r.v[0], buf, CACHE_BLOCK, *(uint64_t *)arg * CACHE_BLOCK, false), "write");
	return NULL;
}

/* A block of the open epoch is written in its slot. If that happens between a read and its tidying, the old data must
 * not come back, whatever the checksums say. */
Test(tidy, what_was_written_after_the_read_stays, .timeout = 120)
{
	static char got[CACHE_BLOCK] __attribute__((aligned(4096)));
	uint64_t block = 5, word;
	struct volume_reply reply;
	struct bc_error err = { 0 };
	uint32_t crc;
	pthread_t t;

	scatter(4096, CACHE_MODE_WB);
	must(!cache_set(r.c, NULL, "epoch-interval", "60s", NULL, &err), "%s", err.msg);
	for (unsigned pass = 0; pass < 3; pass++) { /* room for tidying comes by asking for it */
		read_all();
		settle();
	}
	scatter_again(block);
	write_block((uint32_t)block);
	must(!buffer_write_dirty(r.c->buffers), "write out"); /* clean in RAM: may be moved */
	must(!volume_read(r.v[0], 0, READ * CACHE_BLOCK, &reply), "read");
	cr_assert(thread_ctx_get(r.c)->tidy, "the read is to be tidied");
	stamp(buf, block, version[block]);
	crc = crc32c(buf, CACHE_BLOCK);
	memcpy(&word, buf + 2048, 8);
	word ^= CRC_BLIND;
	memcpy(buf + 2048, &word, 8);
	cr_assert_eq(crc32c(buf, CACHE_BLOCK), crc);
	must(!pthread_create(&t, NULL, write_again, &block), "pthread_create");
	pthread_join(t, NULL);
	volume_read_done(r.v[0], &reply);
	must(!volume_pread(r.v[0], got, CACHE_BLOCK, block * CACHE_BLOCK), "read");
	cr_assert_eq(memcmp(got, buf, CACHE_BLOCK), 0, "the write is undone");
	rig_close(&r);
	rig_destroy(&r);
}

/* ---- beside a writer ---- */

static void *reader(void *arg)
{
	char *mem = aligned_alloc(4096, READ * CACHE_BLOCK);
	uint64_t rng = (uint64_t)(uintptr_t)arg;

	while (!atomic_load(&enough)) {
		uint64_t b = rnd(&rng, BLOCKS / READ) * READ;

		must(!volume_pread(r.v[0], mem, READ * CACHE_BLOCK, b * CACHE_BLOCK), "read");
		for (uint32_t i = 0; i < READ; i++)
			must(stamp_read(mem + (size_t)i * CACHE_BLOCK, b + i) > 0, "block %u", (unsigned)b + i);
	}
	free(mem);
	return NULL;
}

/* Buffers become clean, blocks move and change, epochs end, while others read and move. */
Test(tidy, beside_a_writer, .timeout = 120)
{
	pthread_t t[6];
	uint64_t rng, until;

	scatter(4096, CACHE_MODE_WB);
	rng = engine_seed();
	atomic_store(&enough, false);
	for (uintptr_t i = 0; i < 6; i++)
		must(!pthread_create(&t[i], NULL, reader, (void *)(i + 1)), "pthread_create");
	for (until = now_ns() + 3000000000u; now_ns() < until;) {
		for (unsigned i = 0; i < 256; i++)
			write_block((uint32_t)rnd(&rng, BLOCKS));
		if (rnd(&rng, 4) == 0)
			must(!volume_flush(r.v[0]), "flush");
	}
	atomic_store(&enough, true);
	for (unsigned i = 0; i < 6; i++)
		pthread_join(t[i], NULL);
	read_and_end();
}
