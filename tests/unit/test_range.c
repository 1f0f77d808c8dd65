/* SPDX-License-Identifier: BSD-3-Clause */
/* test_range.c - range locks: who may be beside whom, order of arrival, ranges over two chunks, and a torture. */
#include <criterion/criterion.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "engine/map/range.h"

static struct range_table table;

static void init(void)
{
	range_table_init(&table);
}

static void fini(void)
{
	for (int i = 0; i < RANGE_STRIPES; i++)
		cr_assert(!table.stripe[i].head && !table.stripe[i].tail && !table.stripe[i].waiting, "stripe %d", i);
	range_table_destroy(&table);
}

TestSuite(range, .init = init, .fini = fini, .timeout = 30);

Test(range, compatible_modes)
{
	/* range.h's table: READ WRITE THROUGH CLEAN */
	static const bool want[4][4] = { { true, false, false, true },
					 { false, false, false, true },
					 { false, false, false, false },
					 { true, true, false, false } };

	for (int held = 0; held < 4; held++)
		for (int mode = 0; mode < 4; mode++) {
			struct range_lock a, b;

			range_lock(&table, &a, 1, 10, 5, (enum range_mode)held);
			cr_assert_eq(range_trylock(&table, &b, 1, 14, 5, (enum range_mode)mode), want[held][mode],
				     "held %d, asked %d", held, mode);
			if (want[held][mode])
				range_unlock(&table, &b);
			/* beside it, and in another volume */
			cr_assert(range_trylock(&table, &b, 1, 15, 5, (enum range_mode)mode));
			range_unlock(&table, &b);
			cr_assert(range_trylock(&table, &b, 1, 5, 5, (enum range_mode)mode));
			range_unlock(&table, &b);
			cr_assert(range_trylock(&table, &b, 2, 10, 5, (enum range_mode)mode));
			range_unlock(&table, &b);
			range_unlock(&table, &a);
		}
}

Test(range, two_chunks)
{
	struct range_lock a, b;

	for (uint64_t base = 0; base < 3 << RANGE_CHUNK_SHIFT; base += 1 << RANGE_CHUNK_SHIFT) {
		uint64_t edge = base + (1 << RANGE_CHUNK_SHIFT);

		range_lock(&table, &a, 1, edge - 1, RANGE_MAX_BLOCKS, RANGE_WRITE); /* 1 + 256 */
		cr_assert_eq(a.parts, 2);
		cr_assert_not(range_trylock(&table, &b, 1, edge - 1, 1, RANGE_READ), "in the first");
		cr_assert_not(range_trylock(&table, &b, 1, edge + 255, 1, RANGE_READ), "the last block");
		/* a try that fails in the second part must give the first back */
		cr_assert_not(range_trylock(&table, &b, 1, edge - 3, 3, RANGE_READ));
		cr_assert(range_trylock(&table, &b, 1, edge - 3, 2, RANGE_THROUGH));
		range_unlock(&table, &b);
		cr_assert_not(range_trylock(&table, &b, 1, edge + 255, 2, RANGE_READ));
		cr_assert(range_trylock(&table, &b, 1, edge + 256, 2, RANGE_THROUGH));
		range_unlock(&table, &b);
		range_unlock(&table, &a);
		range_lock(&table, &a, 1, edge - 2, 2, RANGE_WRITE);
		cr_assert_eq(a.parts, 1, "up to the edge only");
		range_unlock(&table, &a);
	}
}

struct one {
	struct range_lock l;
	uint64_t first;
	uint32_t count;
	enum range_mode mode;
	pthread_t thread;
	_Atomic int order;
};

static _Atomic int granted;

static void *one_main(void *arg)
{
	struct one *o = arg;

	range_lock(&table, &o->l, 1, o->first, o->count, o->mode);
	o->order = ++granted;
	usleep(2000);
	range_unlock(&table, &o->l);
	return NULL;
}

static unsigned waiting(void)
{
	unsigned n = 0;

	for (int i = 0; i < RANGE_STRIPES; i++) {
		pthread_mutex_lock(&table.stripe[i].lock);
		n += table.stripe[i].waiting;
		pthread_mutex_unlock(&table.stripe[i].lock);
	}
	return n;
}

/* Starts a thread that has to wait as the n-th. */
static void start(struct one *o, unsigned n)
{
	cr_assert_eq(pthread_create(&o->thread, NULL, one_main, o), 0);
	for (int i = 0; i < 5000 && waiting() < n; i++)
		usleep(1000);
	cr_assert_eq(waiting(), n, "it does not wait");
}

/* A reader that comes after a waiting writer waits behind it, though readers hold the range: the writer would starve.
 */
Test(range, order_of_arrival)
{
	struct one w1 = { .first = 5, .count = 3, .mode = RANGE_WRITE },
		   r2 = { .first = 6, .count = 1, .mode = RANGE_READ },
		   w3 = { .first = 6, .count = 9, .mode = RANGE_THROUGH };
	struct range_lock r0, other;

	granted = 0;
	range_lock(&table, &r0, 1, 0, 10, RANGE_READ);
	start(&w1, 1);
	start(&r2, 2);
	start(&w3, 3);
	cr_assert_not(range_trylock(&table, &other, 1, 7, 1, RANGE_READ), "past those who wait");
	cr_assert(range_trylock(&table, &other, 1, 0, 5, RANGE_READ), "where nobody waits");
	range_unlock(&table, &other);
	cr_assert_eq(granted, 0);
	range_unlock(&table, &r0);
	pthread_join(w1.thread, NULL);
	pthread_join(r2.thread, NULL);
	pthread_join(w3.thread, NULL);
	cr_assert(w1.order == 1 && r2.order == 2 && w3.order == 3, "%d %d %d", w1.order, r2.order, w3.order);
}

/* Per block: readers, writers, throughs, cleaners that hold it now. */
#define BLOCKS 600u
static _Atomic int holders[BLOCKS][4];
static _Atomic unsigned long violations, grants;

static void *torture(void *arg)
{
	uint32_t state = (uint32_t)(uintptr_t)arg;

	for (int i = 0; i < 4000; i++) {
		uint32_t count, first;
		enum range_mode mode;
		struct range_lock l;

		state = state * 1664525u + 1013904223u;
		mode = (enum range_mode)(state >> 30);
		count = 1 + (state >> 20 & 255) * (state >> 19 & 1);
		first = (state >> 8 & 0xffff) % (BLOCKS - count);
		if (state >> 28 & 1)
			range_lock(&table, &l, 1, first, count, mode);
		else if (!range_trylock(&table, &l, 1, first, count, mode))
			continue;
		grants++;
		for (uint32_t b = first; b < first + count; b++) {
			holders[b][mode]++;
			if ((holders[b][RANGE_THROUGH] &&
			     holders[b][0] + holders[b][1] + holders[b][2] + holders[b][3] > 1) ||
			    holders[b][RANGE_WRITE] > 1 || holders[b][RANGE_CLEAN] > 1 ||
			    (holders[b][RANGE_WRITE] && holders[b][RANGE_READ]))
				violations++;
		}
		for (uint32_t b = first; b < first + count; b++)
			holders[b][mode]--;
		range_unlock(&table, &l);
	}
	return NULL;
}

Test(range, many_threads)
{
	pthread_t t[6];

	for (uintptr_t i = 0; i < 6; i++)
		cr_assert_eq(pthread_create(&t[i], NULL, torture, (void *)(i + 1)), 0);
	for (int i = 0; i < 6; i++)
		pthread_join(t[i], NULL);
	cr_assert_eq(violations, 0);
	cr_assert(grants > 6000, "%lu", grants);
}
