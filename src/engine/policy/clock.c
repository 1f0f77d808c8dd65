/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * clock.c - CLOCK with a two-bit counter. A new entry starts at 0, so that what is read once goes first; each
 * hit adds one up to 3; the hand takes one away and evicts at 0. No memory besides the two bits in the entry's word,
 * and no lock on a hit.
 */
#include "engine/policy/evict.h"

#define STEPS 4096 /* between looks at whether we are still wanted */

static void clock_inserted(struct policy *p, struct lines *l, uint32_t e)
{
	(void)p;
	lines_set_word(l, e, lines_word(l, e) & ~LINE_FREQ_MASK);
}

static void clock_hit(struct policy *p, struct lines *l, uint32_t e)
{
	uint64_t w = lines_word(l, e);

	(void)p;
	/* one try: if the word has changed meanwhile, so be it */
	if ((w & LINE_FREQ_MASK) != LINE_FREQ_MASK && (w & LINE_KEY_MASK))
		atomic_compare_exchange_strong_explicit(&l->key[e], &w, w + (1ull << LINE_FREQ_SHIFT),
							memory_order_relaxed, memory_order_relaxed);
}

static uint32_t clock_victim(struct policy *p, struct lines *l)
{
	for (unsigned i = 0; i < STEPS; i++) {
		uint32_t e = p->hand;
		uint64_t w = lines_word(l, e);

		p->hand = e + 1 < l->n ? e + 1 : 0;
		if (!(w & LINE_KEY_MASK) || (w & LINE_DIRTY0))
			continue;
		if (w & LINE_FREQ_MASK) {
			struct line_chain ch = lines_lock(l, w & LINE_KEY_MASK);
			uint64_t now = lines_word(l, e);

			if (!((now ^ w) & LINE_KEY_MASK) && (now & LINE_FREQ_MASK))
				lines_set_word(l, e, now - (1ull << LINE_FREQ_SHIFT));
			lines_unlock(&ch);
			continue;
		}
		return e;
	}
	return LINE_NONE;
}

const struct policy_ops policy_clock = {
	.name = "clock",
	.inserted = clock_inserted,
	.hit = clock_hit,
	.victim = clock_victim,
};
