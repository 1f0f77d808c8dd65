/* SPDX-License-Identifier: BSD-3-Clause */
/* test_space.c - decisions about room: they fall in the order that space.h promises, for every size of a cache. */
#include <criterion/criterion.h>

#include "engine/policy/space.h"

#define MAX_BLOCKS 257u

static const uint32_t sizes[] = { 64, 256, 1000, 4096, 65536, 1 << 20, 1 << 28, UINT32_MAX - 64 };
static const uint64_t frames[] = { 256, 1024, 16384, 1 << 20, 1ull << 34 };

Test(space, limits_fit_the_cache)
{
	for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++)
		for (unsigned k = 0; k < sizeof frames / sizeof *frames; k++) {
			struct space_limits s;

			space_limits_init(&s, sizes[i], frames[k], MAX_BLOCKS);
			cr_expect(s.write_piece >= 1 && s.write_piece < MAX_BLOCKS);
			cr_expect(s.write_piece <= sizes[i] / 16 || s.write_piece == 1);
			cr_expect(s.alloc_max >= s.write_piece && s.alloc_max <= MAX_BLOCKS,
				  "a write of one piece can have its buffers");
			cr_expect(s.low >= 2 * s.write_piece && s.low <= 65536);
			cr_expect_eq(s.high, 2 * s.low);
			cr_expect(s.high <= sizes[i] / 4, "%u slots: %u are kept free", sizes[i], s.high);
		}
}

/* While slots only become pending: a commit is asked for before a writer waits, and a writer waits before none is left.
 */
Test(space, order_as_slots_become_pending)
{
	for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
		struct space_limits s;
		uint64_t room = sizes[i] / 2, step = room / 1000 + 1;
		bool commits = false, waits = false;

		space_limits_init(&s, sizes[i], 16384, MAX_BLOCKS);
		for (uint64_t pending = 0; pending <= room; pending += step) {
			uint32_t free = (uint32_t)(room - pending);

			commits |= space_is_pending(free, (uint32_t)pending);
			waits |= space_writer_waits(&s, free, (uint32_t)pending);
			cr_expect(commits || !waits, "%u slots: a writer waits before a commit is asked for", sizes[i]);
			if (pending > room / 3 + step)
				cr_expect(commits, "%u slots: a third is pending", sizes[i]);
			if (space_writer_waits(&s, free, (uint32_t)pending))
				cr_expect(pending > room / 2, "%u slots: not before two thirds", sizes[i]);
		}
		cr_expect(waits || room <= s.low);
	}
}

/* While clean lines fill the cache: reclaim begins before fills are refused, and these are refused while writes still
 * find a slot. */
Test(space, order_as_slots_are_used)
{
	for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++)
		for (unsigned shift = 0; shift <= 4; shift++) {
			struct space_limits s;

			space_limits_init(&s, sizes[i], 16384, MAX_BLOCKS);
			cr_expect(!space_is_low(&s, s.low, s.low, shift));
			cr_expect(space_is_low(&s, s.low - 1, s.low, shift));
			cr_expect(space_kept_for_writes(&s) < s.low, "reclaim runs before fills stop");
			cr_expect(space_kept_for_writes(&s) >= s.write_piece, "a write still has its piece then");
			cr_expect(!space_may_move(&s, s.low, 1), "background work stops before reclaim starts");
			if (s.low >> shift)
				cr_expect(space_is_low(&s, s.high, (s.low >> shift) - 1, shift), "entries count, too");
		}
}

/* An epoch ends early if, going on like this, a third of the room is pending before its interval is over. */
Test(space, epochs_end_early)
{
	const uint64_t second = 1000000;

	cr_expect(!space_ends_early(3000, 0, 0, 0, second), "nothing has changed");
	cr_expect(!space_ends_early(3000, 0, 0, 10 * second, second), "however old it is");
	cr_expect(space_ends_early(2800, 200, 200, second / 10, second), "200 in a tenth of it: 2000 of 3000");
	cr_expect(!space_ends_early(2950, 50, 50, second / 10, second), "50 in a tenth: 500 of 3000");
	cr_expect(!space_ends_early(2000, 1000, 1000, second, second), "just a third, and it is over");
	cr_expect(space_ends_early(1999, 1001, 1001, 100 * second, second), "longer than its interval counts as one");
	cr_expect(space_ends_early(UINT32_MAX - 1, UINT32_MAX - 1, UINT32_MAX, 1, UINT64_C(3600) * second),
		  "nothing overflows");
}

Test(space, compaction)
{
	for (uint64_t free = 0; free < UINT32_MAX; free = free * 3 + 1) {
		uint32_t f = (uint32_t)free;

		cr_expect(space_compact_most(f, 1000) <= f / 3 && space_compact_most(f, 1000) <= 1000);
		cr_expect(space_words_enough(f, true) >= space_words_enough(f, false));
		cr_expect(space_words_enough(f, true) <= f / SPACE_WORD + 1);
		cr_expect(!space_is_fragmented(f, f / SPACE_WORD, UINT64_MAX), "all of it is in whole words");
		cr_expect(!space_is_fragmented(f, 0, 0), "nobody has written");
	}
	cr_expect(space_is_fragmented(64 * 100, 49, 64 * 100 / 4 + 1));
}

Test(space, dirty)
{
	cr_expect(!space_too_dirty(70, 100, 70, 100, 70));
	cr_expect(space_too_dirty(71, 100, 0, 100, 70));
	cr_expect(space_too_dirty(1, 100, 71, 100, 70), "few blocks of many lines: entries run out, or slots");
}
