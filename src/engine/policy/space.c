/* SPDX-License-Identifier: BSD-3-Clause */
/* space.c - the limits that follow from the sizes of a cache. */
#include "engine/policy/space.h"

#define LOW_SHARE 64 /* reclaim keeps 1/64 of the slots in stock, */
#define LOW_MAX 65536u /* but not more than 256 MiB: it is a stock for some milliseconds of writes */
#define LOW_PIECES 2 /* and never less than two writes take at once */
#define PIECE_SHARE 16 /* a write takes at most 1/16 of the slots, */
#define PIECE_FRAMES 8 /* and 1/8 of the RAM buffers: others write, too */
#define ALLOC_SHARE 4 /* a thread asks for at most 1/4 of the RAM buffers */

static uint32_t smaller(uint64_t a, uint32_t b)
{
	return a < b ? (uint32_t)a : b;
}

void space_limits_init(struct space_limits *s, uint32_t nslots, uint64_t frames, uint32_t max_blocks)
{
	/* one block less than the largest request: an unaligned one touches a block more than it is long */
	uint32_t piece = smaller(frames / PIECE_FRAMES, smaller(nslots / PIECE_SHARE, max_blocks - 1));

	s->write_piece = piece ? piece : 1;
	s->alloc_max = smaller(frames / ALLOC_SHARE, max_blocks);
	s->low = nslots / LOW_SHARE > LOW_PIECES * s->write_piece ? nslots / LOW_SHARE : LOW_PIECES * s->write_piece;
	s->low = smaller(s->low, LOW_MAX);
	s->high = 2 * s->low;
}
