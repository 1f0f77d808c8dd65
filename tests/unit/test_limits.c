/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_limits.c - sizes at their limits: arithmetic on slots, lines and volumes next to 2^32 and 16 TiB, and caches of
 * the least sizes that can be created, which must load.
 */
#include <errno.h>

#include "engine_util.h"
#include "journal/db.h"

TestSuite(limits, .timeout = 60);

static const uint32_t around[] = { 1,
				   2,
				   63,
				   64,
				   65,
				   4095,
				   4096,
				   4097,
				   1u << 31,
				   UINT32_MAX - 4097,
				   UINT32_MAX - 4096,
				   UINT32_MAX - 4095,
				   UINT32_MAX - 64,
				   UINT32_MAX - 63,
				   UINT32_MAX - 62,
				   UINT32_MAX - 2,
				   UINT32_MAX - 1,
				   UINT32_MAX };
#define AROUND (sizeof around / sizeof around[0])

/* A bit for each slot, and six for each 64 of these words. */
Test(limits, memory_for_slots)
{
	for (unsigned i = 0; i < AROUND; i++) {
		uint64_t n = around[i], words = (n + 63) / 64, maps = (words + 63) / 64;

		cr_expect_eq(slots_bytes(around[i]), (words + maps * 6) * 8, "%lu slots: %lu bytes", n,
			     slots_bytes(around[i]));
	}
}

/* The largest cache that `create` takes: all slots can be given out, the last ones, too. */
Test(limits, as_many_slots_as_there_can_be)
{
	static const uint32_t n = UINT32_MAX - 1;
	struct slots s;
	uint32_t got[64];

	cr_assert_eq(slots_init(&s, n), 0);
	cr_expect_eq(s.nfree, n);
	cr_expect(slots_claim(&s, n - 1), "the last one");
	cr_expect(!slots_claim(&s, n - 1), "once");
	cr_expect(!slots_claim(&s, n), "beyond the end");
	cr_expect(slots_take(&s, got, 64));
	slots_give(&s, got, 64);
	cr_expect_eq(slots_take_some(&s, got, 64, n - 65), 64, "all but so many");
	cr_expect_eq(s.nfree, n - 65);
	slots_destroy(&s);
}

Test(limits, held_and_free_slots_are_compared_without_wrapping)
{
	static const struct space_limits none;

	cr_expect(space_writer_waits(&none, 1, 3));
	cr_expect(!space_writer_waits(&none, 1, 2));
	cr_expect(!space_writer_waits(&none, 1u << 31, 70000), "twice that is 2^32");
	cr_expect(!space_writer_waits(&none, UINT32_MAX - 70000, 70000));
	cr_expect(space_writer_waits(&none, (1u << 31) - 1, UINT32_MAX));
}

Test(limits, memory_for_lines)
{
	static const uint32_t bpl[] = { 1, 2, 4, 8, 16 };

	for (unsigned i = 0; i < AROUND; i++)
		for (unsigned k = 0; k < 5; k++) {
			uint64_t n = around[i], least = n * (12 + 8 * bpl[k]);

			cr_expect_geq(lines_bytes(around[i], bpl[k]), least, "%lu lines of %u blocks", n, bpl[k]);
			cr_expect_lt(lines_bytes(around[i], bpl[k]), least + n * 8 + 65536 * 2);
		}
}

/* Every key of the largest table has its bucket within the table. */
Test(limits, buckets_of_the_largest_table)
{
	struct lines l = { .ngroups = (UINT32_MAX - 1) / 32, .nstripes = 512 };
	uint64_t s = 1;

	for (unsigned i = 0; i < 100000; i++) {
		uint64_t line = i & 1 ? rnd64(&s) >> (64 - LINE_BITS) : (1ull << LINE_BITS) - 1 - i;
		uint64_t key = line_key(i % CACHE_MAX_VOLUMES + 1, line);

		cr_assert_lt(lines_bucket(&l, key), (uint64_t)l.ngroups * 16);
		cr_assert_eq(line_key_line(key), line);
		cr_assert_eq(line_key_volume(key), i % CACHE_MAX_VOLUMES + 1);
	}
}

/* The last row of the snapshot has the last entry. */
Test(limits, snapshot_of_the_largest_table)
{
	for (unsigned bpl = 1; bpl <= JOURNAL_MAX_BLOCKS; bpl *= 2)
		for (unsigned i = 0; i < AROUND; i++) {
			struct journal_geometry geo = { .blocks_per_line = bpl, .nlines = around[i] };
			uint64_t rows = snapshot_rows(&geo), per_row = snapshot_entries(bpl);

			cr_expect_eq((around[i] - 1ull) / per_row + 1, rows, "%u entries", around[i]);
			cr_expect_lt(rows, UINT32_MAX, "its number fits");
		}
}

static void try_create(uint64_t size, uint32_t line, int expected)
{
	struct cache_create_params p = { .size_bytes = size, .line_size = line, .mode = CACHE_MODE_WB };
	struct bc_error err = { 0 };

	cr_expect_eq(cache_create("/nonexistent/cache", &p, &err), expected, "size %lu, lines of %u: %s", size, line,
		     err.msg);
	cr_expect(err.msg[0], "a message");
}

/* What cannot be loaded is refused before anything is made. */
Test(limits, sizes_that_create_refuses)
{
	try_create(UINT64_MAX, 4096, -EINVAL);
	try_create(1ull << 44, 4096, -EINVAL);
	try_create((1ull << 44) - 4096, 4096, -EINVAL);
	try_create(CACHE_MIN_SIZE - 1, 4096, -EINVAL);
	try_create(1ull << 44, 65536, -EINVAL);
	/* 88 GiB of metadata */
	if ((uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE) < 80ull << 30)
		try_create((1ull << 44) - 8192, 4096, -ENOMEM);
}

static void least_cache(uint64_t size, uint32_t line)
{
	static char data[CACHE_BLOCK], got[CACHE_BLOCK];
	struct rig r;

	rig_create(&r, size, line, CACHE_MIN_RAM, CACHE_MODE_WB);
	rig_open(&r);
	rig_add(&r, "", 4 * MIB, CACHE_MODE_WB);
	for (uint64_t b = 0; b < 4 * MIB / CACHE_BLOCK; b += 7) {
		stamp(data, b, 1);
		must(!volume_write(r.v[0], data, sizeof data, b * CACHE_BLOCK, b % 5 == 0), "write");
	}
	for (int round = 0; round < 2; round++) {
		for (uint64_t b = 0; b < 4 * MIB / CACHE_BLOCK; b += 7) {
			must(!volume_pread(r.v[0], got, sizeof got, b * CACHE_BLOCK), "read");
			must(stamp_read(got, b) == 1, "block %lu", b);
		}
		rig_close(&r);
		rig_open(&r);
	}
	rig_close(&r);
	rig_destroy(&r);
}

/* Also sizes that are no multiple of a line. */
Test(limits, the_least_caches_load)
{
	for (uint32_t line = 4096; line <= 65536; line *= 4) {
		least_cache(CACHE_MIN_SIZE, line);
		least_cache(CACHE_MIN_SIZE + line - 1, line);
	}
}

static int try_add(struct rig *r, const char *spec, struct bc_error *err)
{
	memset(err, 0, sizeof *err);
	return cache_volume_add(r->c, "huge", spec, CACHE_MODE_WB, err);
}

/* Volumes: 2^40 lines and no more. */
Test(limits, volumes_of_any_size_are_taken_or_refused)
{
	static const struct {
		const char *spec;
		uint32_t line;
		bool taken;
	} cases[] = {
		{ "null:size=4503599627366400", 4096, true }, /* 2^52 - 4096 */
		{ "null:size=4503599627370496", 4096, false },     { "null:size=9223372036854775807", 4096, false },
		{ "null:size=9223372036854775807", 65536, false }, { "null:size=18446744073709551615", 4096, false },
	};

	for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		struct bc_error err;
		struct volume *v;
		char byte = 'x';
		struct rig r;

		rig_create(&r, MIB, cases[i].line, CACHE_MIN_RAM, CACHE_MODE_WB);
		rig_open(&r);
		cr_assert_eq(!try_add(&r, cases[i].spec, &err), cases[i].taken, "%s: %s", cases[i].spec, err.msg);
		for (int round = 0; round < 2 && cases[i].taken; round++) {
			v = cache_volume_get(r.c, "huge");
			must(v, "it is there");
			must(!volume_write(v, &byte, 1, volume_size(v) - 1, true), "the last byte");
			must(!volume_pread(v, &byte, 1, volume_size(v) - 1) && byte == 'x', "reads back");
			volume_put(v);
			rig_close(&r);
			rig_open(&r);
		}
		rig_close(&r);
		rig_destroy(&r);
	}
}
