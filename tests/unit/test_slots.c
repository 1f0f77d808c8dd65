/* SPDX-License-Identifier: BSD-3-Clause */
/* test_slots.c - free slots of the data file: all or none, ascending, none twice, waiting and giving up. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "engine/map/slots.h"

static double seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

Test(slots, all_or_none_and_ascending)
{
	static const uint32_t sizes[] = { 1, 63, 64, 65, 200, 4097 };

	for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
		uint32_t n = sizes[k], *out = malloc((n + 1) * sizeof *out);
		struct slots s;

		cr_assert_eq(slots_init(&s, n), 0);
		cr_assert_not(slots_take(&s, out, n + 1));
		cr_assert_eq(s.nfree, n, "a failed take took some");
		cr_assert(slots_take(&s, out, n));
		for (uint32_t i = 0; i < n; i++)
			cr_assert_eq(out[i], i, "of a fresh table: in order");
		cr_assert_not(slots_take(&s, out, 1));
		cr_assert_eq(slots_take_some(&s, out, 5, 0), 0);
		slots_give(&s, out, n);
		cr_assert_eq(s.nfree, n);
		slots_destroy(&s);
		free(out);
	}
}

Test(slots, none_is_given_twice)
{
	enum { N = 1000 };
	bool taken[N] = { false };
	uint32_t held[N], nheld = 0, state = 1, out[64];
	struct slots s;

	cr_assert_eq(slots_init(&s, N), 0);
	for (int i = 0; i < 20000; i++) {
		uint32_t n = 1 + (state = state * 1664525u + 1013904223u) % 60;

		if (state >> 16 & 1) {
			bool ok = slots_take(&s, out, n);

			cr_assert_eq(ok, n <= N - nheld);
			for (uint32_t k = 0; ok && k < n; k++) {
				cr_assert(out[k] < N && !taken[out[k]], "slot %u", out[k]);
				taken[out[k]] = true;
				held[nheld++] = out[k];
			}
		} else if (nheld) {
			n = n < nheld ? n : nheld;
			for (uint32_t k = 0; k < n; k++) {
				uint32_t at = (state = state * 1664525u + 1013904223u) % nheld;

				out[k] = held[at];
				taken[out[k]] = false;
				held[at] = held[--nheld];
			}
			slots_give(&s, out, n);
		}
		cr_assert_eq(s.nfree, N - nheld);
	}
	slots_destroy(&s);
}

Test(slots, the_hand_moves_upward)
{
	uint32_t a[10], b[10];
	struct slots s;

	cr_assert_eq(slots_init(&s, 640), 0);
	cr_assert(slots_take(&s, a, 10));
	slots_give(&s, a, 10);
	for (int i = 0; i < 6; i++)
		cr_assert(slots_take(&s, b, 10));
	for (int i = 1; i < 10; i++)
		cr_assert_eq(b[i], b[i - 1] + 1, "neighbours");
	slots_destroy(&s);
}

Test(slots, fills_leave_a_reserve)
{
	uint32_t out[100];
	struct slots s;

	cr_assert_eq(slots_init(&s, 100), 0);
	cr_assert_eq(slots_take_some(&s, out, 100, 30), 70);
	cr_assert_eq(slots_take_some(&s, out, 1, 30), 0);
	cr_assert_eq(slots_take_some(&s, out, 5, 28), 2);
	cr_assert(slots_take(&s, out, 28));
	slots_destroy(&s);
}

Test(slots, claims)
{
	uint32_t out[3];
	struct slots s;

	cr_assert_eq(slots_init(&s, 5), 0);
	cr_assert(slots_claim(&s, 4));
	cr_assert_not(slots_claim(&s, 4), "twice");
	cr_assert_not(slots_claim(&s, 5), "beyond the end");
	cr_assert_not(slots_claim(&s, UINT32_MAX), "beyond the end");
	cr_assert(slots_claim(&s, 1));
	cr_assert(slots_take(&s, out, 3));
	cr_assert(out[0] == 0 && out[1] == 2 && out[2] == 3);
	slots_destroy(&s);
}

struct wait {
	struct slots *s;
	uint32_t n;
	unsigned ms;
	bool result;
	double took;
};

static void *wait_main(void *arg)
{
	struct wait *w = arg;
	double start = seconds();

	w->result = slots_wait(w->s, w->n, w->ms);
	w->took = seconds() - start;
	return NULL;
}

static void wait_for_waiter(struct slots *s)
{
	unsigned waiting = 0;

	for (int i = 0; i < 5000 && !waiting; i++) {
		usleep(1000);
		pthread_mutex_lock(&s->lock);
		waiting = s->waiting;
		pthread_mutex_unlock(&s->lock);
	}
	cr_assert(waiting);
}

Test(slots, waiting)
{
	uint32_t out[10];
	struct wait w;
	struct slots s;
	pthread_t t;

	cr_assert_eq(slots_init(&s, 10), 0);
	cr_assert(slots_wait(&s, 10, 60000), "there are enough: no waiting");
	cr_assert(slots_take(&s, out, 10));
	w = (struct wait){ .s = &s, .n = 4, .ms = 60000 };
	cr_assert_eq(pthread_create(&t, NULL, wait_main, &w), 0);
	wait_for_waiter(&s);
	slots_give(&s, out, 3);
	slots_give(&s, out + 3, 1);
	pthread_join(t, NULL);
	cr_assert(w.result && w.took < 30, "woken by what came back");
	w = (struct wait){ .s = &s, .n = 5, .ms = 20 };
	wait_main(&w);
	cr_assert(w.result && w.took >= 0.019, "the time limit, which is no failure");
	slots_destroy(&s);
}

Test(slots, giving_up)
{
	uint32_t out[10];
	struct wait w;
	struct slots s;
	pthread_t t;

	cr_assert_eq(slots_init(&s, 10), 0);
	cr_assert(slots_take(&s, out, 10));
	w = (struct wait){ .s = &s, .n = 1, .ms = 60000, .result = true };
	cr_assert_eq(pthread_create(&t, NULL, wait_main, &w), 0);
	wait_for_waiter(&s);
	slots_abort(&s);
	pthread_join(t, NULL);
	cr_assert_not(w.result);
	cr_assert(w.took < 30);
	cr_assert_not(slots_wait(&s, 1, 60000), "for good");
	slots_destroy(&s);
}

/* The next word is one of those with the most free slots, not the next one upward. */
Test(slots, the_emptiest_words_are_used_first)
{
	uint32_t all[640], a[64];
	struct slots s;

	cr_assert_eq(slots_init(&s, 640), 0);
	cr_assert(slots_take(&s, all, 640));
	for (unsigned w = 0; w < 10; w++) /* w * 6 + 1 of each word's slots come back */
		for (unsigned i = 0; i < w * 6 + 1; i++)
			slots_give(&s, &all[w * 64 + i], 1);
	slots_give(&s, &all[7 * 64 + 43], 21); /* word 7 altogether */
	cr_assert(slots_take(&s, a, 55));
	for (unsigned i = 0; i < 55; i++)
		cr_assert_eq(a[i] / 64, 9, "the hand was there");
	cr_assert(slots_take(&s, a, 64));
	for (unsigned i = 0; i < 64; i++)
		cr_assert_eq(a[i], 7 * 64 + i);
	cr_assert(slots_take(&s, a, 49));
	for (unsigned i = 0; i < 49; i++)
		cr_assert_eq(a[i], 8 * 64 + i);
	slots_destroy(&s);
}

Test(slots, runs_come_from_words_that_are_free_altogether)
{
	uint32_t all[64 * 64], a[64], b[64];
	struct slots s;

	cr_assert_eq(slots_init(&s, 64 * 64), 0);
	cr_assert(slots_take(&s, all, 64 * 64));
	for (unsigned w = 0; w < 64; w++)
		slots_give(&s, &all[w * 64], 63);
	cr_assert_not(slots_take_run(&s, a, 32), "63 of 64 is not all");
	for (unsigned w = 20; w < 24; w++)
		slots_give(&s, &all[w * 64 + 63], 1);
	cr_assert(slots_take_run(&s, a, 40));
	cr_assert(slots_take_run(&s, b, 40));
	for (unsigned i = 1; i < 40; i++)
		cr_assert(a[i] == a[i - 1] + 1 && b[i] == b[i - 1] + 1);
	cr_assert_eq(b[0], a[39] + 1);
	slots_destroy(&s);
}

Test(slots, words_held_are_not_given_out_but_for_want_of_others)
{
	uint32_t all[640], a[640];
	struct slots s;

	cr_assert_eq(slots_init(&s, 640), 0);
	cr_assert(slots_take(&s, all, 640));
	for (unsigned w = 0; w < 10; w++)
		slots_give(&s, &all[w * 64], w < 3 ? 40 : 10);
	cr_assert_eq(slots_hold(&s, 1000, 32), 2 + (s.hand > 2), "those at least half free, but for the hand's");
	cr_assert_eq(slots_take_full(&s, a, 30, 0), 30);
	for (unsigned i = 0; i < 30; i++)
		cr_assert_not(slots_is_held(&s, a[i]));
	slots_give(&s, &all[0 * 64 + 40], 24);
	cr_assert_eq(slots_free_words(&s), 0, "word 0 is free, but held");
	slots_unhold(&s);
	cr_assert_eq(slots_free_words(&s), s.hand != 0);
	cr_assert(slots_hold(&s, 1000, 32));
	cr_assert(slots_take(&s, a, atomic_load(&s.nfree)), "who needs a slot comes before order");
	cr_assert_eq(atomic_load(&s.nfree), 0);
	slots_destroy(&s);
}
