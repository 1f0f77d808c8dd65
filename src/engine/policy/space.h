/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * space.h - how much room there has to be, and what is done when there is less. Pure functions of numbers: no I/O,
 * lock, clock or thread, so that a simulator can call them. All amounts are counts of 4 KiB slots unless a name says
 * otherwise.
 *
 * A slot is free, in use, or *pending*: given up in an epoch that is not durable yet (epoch.c, rule 2). Pending slots
 * come back with a commit, slots in use by evicting clean lines, dirty ones by cleaning. Each of these takes longer
 * than the one before, so each has to begin while the one before can still bridge the time. That is the order in which
 * the decisions below fall as room runs out:
 *
 *   pending > free / 2     commit: a third of the room is pending. It is back before the next third is used up.
 *   free < low             reclaim evicts, up to `high`; cleaning does not wait for its period any more.
 *   free <= low / 2        fills and write-through copies get no slot: what is left is for writes that must have one.
 *   pending > 2 * free     writers wait for the commit: the last third is free in the smallest pieces only, and to take
 *                          it would mean to wait even longer a moment later.
 *   free == 0              a writer waits, for a minute at most (room.c).
 *
 * tests/unit/test_space.c checks that they do fall in this order, for every size of a cache.
 */
#ifndef POLICY_SPACE_H
#define POLICY_SPACE_H

#include <stdbool.h>
#include <stdint.h>

/* Fixed when the cache is opened. */
struct space_limits {
	uint32_t low, high; /* reclaim begins below `low` free slots, and evicts until `high` are free */
	uint32_t write_piece; /* blocks that a write takes at once; a larger one is carried out in pieces */
	uint32_t alloc_max; /* buffers that a thread may ask for at once */
};

/* max_blocks: of the largest request. frames: RAM buffers. */
void space_limits_init(struct space_limits *s, uint32_t nslots, uint64_t frames, uint32_t max_blocks);

/* Of entries there have to be as many as hold `slots` slots in full lines. */
static inline uint32_t space_entries(uint32_t slots, unsigned bpl_shift)
{
	return slots >> bpl_shift;
}

/* ---- reclaim ---- */

static inline bool space_below(uint32_t level, uint32_t free, uint32_t free_entries, unsigned bpl_shift)
{
	return free < level || free_entries < space_entries(level, bpl_shift);
}

/* Should reclaim run? */
static inline bool space_is_low(const struct space_limits *s, uint32_t free, uint32_t free_entries, unsigned bpl_shift)
{
	return space_below(s->low, free, free_entries, bpl_shift);
}

/* Before anything is evicted: would a commit alone give back much of what is wanted? `pending`: of the open epoch. */
static inline bool space_commit_is_enough(const struct space_limits *s, uint32_t pending)
{
	return pending > s->high / 2;
}

/* ---- who gets a slot ---- */

/* What fills and write-through copies leave: half of what reclaim keeps in stock is for writes, which must have a slot.
 */
static inline uint32_t space_kept_for_writes(const struct space_limits *s)
{
	return s->low / 2;
}

/* May background work that moves n blocks take slots for them? */
static inline bool space_may_move(const struct space_limits *s, uint32_t free, uint32_t n)
{
	return free >= n + s->low;
}

/* And is the room not mostly pending? Slots that are moved from become pending, too. */
static inline bool space_is_settled(uint32_t free, uint32_t pending)
{
	return pending <= free;
}

/* ---- commits for the sake of room ---- */

/* Should maintenance commit now, before the epoch's interval is over? A third of the room is pending. */
static inline bool space_is_pending(uint32_t free, uint32_t pending)
{
	return pending > free / 2;
}

/* And would it give back enough for a writer to ask for it? `pending_open`: of the open epoch. */
static inline bool space_commit_pays(const struct space_limits *s, uint32_t pending_open)
{
	return pending_open > s->low / 2;
}

/* Does a writer wait for the commit? Two thirds of the room are pending. */
static inline bool space_writer_waits(const struct space_limits *s, uint32_t free, uint32_t pending)
{
	return pending > 2 * (uint64_t)free && pending > s->low;
}

/* At its present rate, will the open epoch have a third of the room pending before its interval is over? Times in
 * microseconds. */
static inline bool space_ends_early(uint32_t free, uint32_t pending, uint32_t pending_open, uint64_t age,
				    uint64_t interval)
{
	uint64_t third = ((uint64_t)pending + free) / 3;

	/* an epoch that nothing was changed in stays open however long */
	return pending_open * interval > third * (age < interval ? age : interval);
}

/* ---- cleaning ---- */

/* Is so much dirty that cleaning does not wait for its period? percent: the tunable dirty-high. */
static inline bool space_too_dirty(uint64_t dirty_lines, uint64_t lines, uint64_t dirty_blocks, uint64_t slots,
				   uint64_t percent)
{
	return dirty_lines * 100 > lines * percent || dirty_blocks * 100 > slots * percent;
}

/* ---- compaction: free slots in whole words of 64, for large writes ---- */

#define SPACE_WORD 64u

/* Slots that one run of compaction may move: their new places have to be elsewhere, so a third of what is free. */
static inline uint32_t space_compact_most(uint32_t free, uint32_t budget)
{
	return free / 3 < budget ? free / 3 : budget;
}

/* Free words that are enough. When asked for by a writer a quarter of what is free; when idle, seven eighths: the rest
 * takes more moves than it gives words. */
static inline uint32_t space_words_enough(uint32_t free, bool idle)
{
	uint32_t words = free / SPACE_WORD;

	return 1 + (idle ? words - words / 8 : words / 4);
}

/* Is it worth putting free space together when idle? Less than half of it lies in free words, and since the last time
 * clients have written a quarter as much as is free (blocks). */
static inline bool space_is_fragmented(uint32_t free, uint32_t free_words, uint64_t written)
{
	return free_words < free / SPACE_WORD / 2 && written > free / 4;
}

#endif
