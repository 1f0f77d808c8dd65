/* SPDX-License-Identifier: BSD-3-Clause */
/* test_policy.c - the eviction policy CLOCK: what is dirty is never offered, what was never hit goes first, hits buy
 * rounds, and a full turn ends. */
#include <criterion/criterion.h>
#include <stdlib.h>

#include "engine/policy/evict.h"

#define N 64u

static struct lines lines;
static struct policy policy = { .ops = &policy_clock };
static uint32_t entry[N];

static void init(void)
{
	cr_assert_eq(lines_init(&lines, N, 1), 0);
	for (uint32_t i = 0; i < N; i++) {
		struct line_chain ch = lines_lock(&lines, line_key(1, i));

		entry[i] = lines_insert(&ch);
		policy.ops->inserted(&policy, &lines, entry[i]);
		line_set_masks(&lines, entry[i], 1, 0, 0);
		lines_unlock(&ch);
	}
}

static void fini(void)
{
	lines_destroy(&lines);
}

TestSuite(policy, .init = init, .fini = fini);

static void hit(uint32_t i, unsigned times)
{
	while (times--) {
		struct line_chain ch = lines_lock(&lines, line_key(1, i));

		policy.ops->hit(&policy, &lines, entry[i]);
		lines_unlock(&ch);
	}
}

static void evict(uint32_t e)
{
	struct line_chain ch = lines_lock(&lines, lines_word(&lines, e) & LINE_KEY_MASK);

	lines_remove(&ch, e);
	lines_unlock(&ch);
}

Test(policy, what_was_never_hit_goes_first)
{
	for (uint32_t i = 0; i < N; i += 2)
		hit(i, 3);
	for (unsigned k = 0; k < N / 2; k++) {
		uint32_t e = policy.ops->victim(&policy, &lines);

		cr_assert_neq(e, LINE_NONE);
		cr_assert_eq(line_key_line(lines_word(&lines, e) & LINE_KEY_MASK) % 2, 1, "victim %u was hit", k);
		evict(e);
	}
	/* and then the others, each once */
	for (unsigned k = 0; k < N / 2; k++) {
		uint32_t e = policy.ops->victim(&policy, &lines);

		cr_assert_neq(e, LINE_NONE);
		evict(e);
	}
	cr_assert_eq(policy.ops->victim(&policy, &lines), LINE_NONE, "nothing is left");
	cr_assert_eq(lines.nfree, N);
}

Test(policy, hits_count_up_to_three)
{
	unsigned rounds = 0;

	for (uint32_t i = 0; i < N; i++)
		hit(i, i ? 3 : 1000);
	evict(entry[1]); /* the hand passes free entries */
	for (;;) {
		uint32_t e = policy.ops->victim(&policy, &lines);

		cr_assert_neq(e, LINE_NONE);
		evict(e);
		if (e == entry[0])
			break;
		cr_assert_lt(++rounds, 2 * N, "a thousand hits kept a line for ever");
	}
}

Test(policy, dirty_lines_are_not_offered)
{
	for (uint32_t i = 0; i < N; i++)
		if (i != 17)
			line_set_masks(&lines, entry[i], 1, 1, 0);
	for (int k = 0; k < 10; k++)
		cr_assert_eq(policy.ops->victim(&policy, &lines), entry[17]);
	line_set_masks(&lines, entry[17], 1, 1, 0);
	cr_assert_eq(policy.ops->victim(&policy, &lines), LINE_NONE, "it does not end");
	/* marking and hitting leave each other's bits alone */
	hit(17, 2);
	cr_assert_eq(lines_word(&lines, entry[17]) & LINE_KEY_MASK, line_key(1, 17));
	cr_assert(line_dirty(&lines, entry[17]));
	line_set_masks(&lines, entry[17], 1, 0, 0);
	cr_assert_eq(policy.ops->victim(&policy, &lines), entry[17]);
}
