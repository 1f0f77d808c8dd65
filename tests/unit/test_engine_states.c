/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_engine_states.c - four neighbouring blocks in each combination of absent, clean and dirty, across a boundary of
 * lines, read in all ranges, whole blocks and not: the data, and what the request counts as. For each line size.
 */
#include "engine_util.h"

#define GROUPS 81u /* 3^4 */
#define STRIDE 32u /* blocks from group to group: two of the largest lines */

enum { ABSENT, CLEAN, DIRTY };

static unsigned state_of_block(unsigned group, unsigned i)
{
	static const unsigned pow3[] = { 1, 3, 9, 27 };

	return group / pow3[i] % 3;
}

/* The four blocks lie two and two at the boundary of lines. */
static uint64_t group_block(unsigned group, unsigned bpl)
{
	return (uint64_t)group * STRIDE + (bpl > 1 ? bpl - 2 : 0);
}

/* Backing holds version 1 everywhere; dirty is version 2; then no fills any more (mode wo). */
static void set_up(struct rig *r, struct volume *v, unsigned bpl)
{
	static char buf[CACHE_BLOCK] __attribute__((aligned(4096)));

	for (unsigned g = 0; g < GROUPS; g++) {
		for (unsigned i = 0; i < 4; i++) {
			uint64_t b = group_block(g, bpl) + i;

			stamp(buf, b, 1);
			rig_backing_write(r, 0, buf, CACHE_BLOCK, b * CACHE_BLOCK);
			if (state_of_block(g, i) == CLEAN)
				must(!volume_pread(v, buf, CACHE_BLOCK, b * CACHE_BLOCK), "read");
			stamp(buf, b, 2);
			if (state_of_block(g, i) == DIRTY)
				must(!volume_write(v, buf, CACHE_BLOCK, b * CACHE_BLOCK, false), "write");
		}
	}
	rig_mode(v, CACHE_MODE_WO);
}

static void check_data(unsigned group, uint64_t base, const char *got, uint64_t off, uint64_t len)
{
	char want[CACHE_BLOCK];

	for (uint64_t done = 0; done < len;) {
		uint64_t b = (off + done) / CACHE_BLOCK, skip = (off + done) % CACHE_BLOCK, n = CACHE_BLOCK - skip;

		if (n > len - done)
			n = len - done;
		stamp(want, b, state_of_block(group, (unsigned)(b - base)) == DIRTY ? 2 : 1);
		must(!memcmp(got + done, want + skip, n), "group %u: block %u of [%llu, +%llu)", group,
		     (unsigned)(b - base), (unsigned long long)off, (unsigned long long)len);
		done += n;
	}
}

static void check_range(struct volume *v, unsigned group, uint64_t base, uint64_t off, uint64_t len)
{
	uint64_t first = off / CACHE_BLOCK, last = (off + len - 1) / CACHE_BLOCK;
	unsigned cached = 0, n = (unsigned)(last - first + 1);
	struct volume_stats before, after;
	static char buf[4 * CACHE_BLOCK];

	for (uint64_t b = first; b <= last; b++)
		cached += state_of_block(group, (unsigned)(b - base)) != ABSENT;
	volume_get_stats(v, &before);
	must(!volume_pread(v, buf, (uint32_t)len, off), "read");
	volume_get_stats(v, &after);
	check_data(group, base, buf, off, len);
	must(after.requests.read_hits - before.requests.read_hits == (cached == n) &&
		     after.requests.read_partial_misses - before.requests.read_partial_misses ==
			     (cached && cached < n) &&
		     after.requests.read_misses - before.requests.read_misses == !cached,
	     "group %u: a read of %u blocks, %u cached, is counted wrongly", group, n, cached);
}

static void all_ranges(struct volume *v, unsigned bpl)
{
	static const struct {
		unsigned head, tail; /* bytes left out */
	} cuts[] = { { 0, 0 }, { 1, 0 }, { 0, 1 }, { 512, 1536 }, { 2000, 17 } };

	for (unsigned g = 0; g < GROUPS; g++) {
		uint64_t base = group_block(g, bpl);

		for (unsigned a = 0; a < 4; a++)
			for (unsigned z = a; z < 4; z++)
				for (unsigned c = 0; c < sizeof cuts / sizeof cuts[0]; c++)
					check_range(v, g, base, (base + a) * CACHE_BLOCK + cuts[c].head,
						    (z - a + 1) * CACHE_BLOCK - cuts[c].head - cuts[c].tail);
	}
}

static void states(uint32_t line)
{
	unsigned bpl = line / CACHE_BLOCK;
	struct volume_stats s;
	struct rig r;
	struct volume *v;

	/* room for each group's two lines without eviction */
	rig_create(&r, (uint64_t)GROUPS * 2 * line * 2 + 4 * MIB, line, 4 * MIB, CACHE_MODE_WB);
	rig_open(&r);
	rig_set(&r, "clean-after", "86400s");
	rig_set(&r, "epoch-interval", "60s");
	v = rig_add(&r, "", (uint64_t)GROUPS * STRIDE * CACHE_BLOCK, CACHE_MODE_WB);
	set_up(&r, v, bpl);
	volume_get_stats(v, &s);
	must(s.dirty_bytes == 108 * CACHE_BLOCK, "%llu bytes dirty", (unsigned long long)s.dirty_bytes);
	all_ranges(v, bpl); /* from RAM */
	rig_mode(v, CACHE_MODE_PT);
	rig_mode(v, CACHE_MODE_WO);
	rig_destroy(&r);
}

Test(engine_states, lines_of_4k, .timeout = 30)
{
	states(4096);
}

Test(engine_states, lines_of_8k, .timeout = 30)
{
	states(8192);
}

Test(engine_states, lines_of_16k, .timeout = 30)
{
	states(16384);
}

Test(engine_states, lines_of_32k, .timeout = 30)
{
	states(32768);
}

Test(engine_states, lines_of_64k, .timeout = 30)
{
	states(65536);
}

/* The same from the data file: opened anew nothing is in RAM. Backing is not touched by anybody else after the start.
 */
Test(engine_states, from_the_data_file, .timeout = 30)
{
	struct cache_info info;
	struct rig r;
	struct volume *v;

	rig_create(&r, 8 * MIB, 8192, 4 * MIB, CACHE_MODE_WB);
	rig_open(&r);
	rig_set(&r, "clean-after", "86400s");
	v = rig_add(&r, "", (uint64_t)GROUPS * STRIDE * CACHE_BLOCK, CACHE_MODE_WB);
	/* with dirty data a changed backing is refused: known as it is from here on */
	for (unsigned g = 0; g < GROUPS; g++)
		for (unsigned i = 0; i < 4; i++) {
			static char buf[CACHE_BLOCK];
			uint64_t b = group_block(g, 2) + i;

			stamp(buf, b, 1);
			must(!volume_write(v, buf, CACHE_BLOCK, b * CACHE_BLOCK, false), "write");
		}
	rig_write_back(&r, v);
	must(!volume_zero(v, 0, 0, false), "zero of nothing");
	cache_get_info(r.c, &info);
	must(!info.dirty_bytes, "dirty");
	/* absent: write-invalidate drops; clean: stays; dirty: written again */
	rig_mode(v, CACHE_MODE_WI);
	for (unsigned g = 0; g < GROUPS; g++)
		for (unsigned i = 0; i < 4; i++) {
			static char buf[CACHE_BLOCK];
			uint64_t b = group_block(g, 2) + i;

			stamp(buf, b, 1);
			if (state_of_block(g, i) == ABSENT)
				must(!volume_write(v, buf, CACHE_BLOCK, b * CACHE_BLOCK, false), "write");
		}
	rig_mode(v, CACHE_MODE_WO);
	for (unsigned g = 0; g < GROUPS; g++)
		for (unsigned i = 0; i < 4; i++) {
			static char buf[CACHE_BLOCK];
			uint64_t b = group_block(g, 2) + i;

			stamp(buf, b, 2);
			if (state_of_block(g, i) == DIRTY)
				must(!volume_write(v, buf, CACHE_BLOCK, b * CACHE_BLOCK, false), "write");
		}
	rig_close(&r);
	rig_open(&r);
	must(r.report.clean_stop && !r.report.dropped_clean_lines, "%s", r.report.notes);
	all_ranges(r.v[0], 2);
	rig_destroy(&r);
}
