/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * hist.c - log-linear latency histogram. hist_add from any thread without a lock; readers see a moment that may be torn
 * between buckets by a few counts, which statistics can bear.
 *
 * Bucket of v: 0..15 hold one value each; above, the exponent e (2^e <= v) picks a row of 16, the next four bits the
 * place in the row. The last row is e = 42: what takes longer than 2^43 ns (two hours) is counted in the last bucket,
 * while `max` stays exact.
 */
#include "util/hist.h"

#define SUB_BITS 4

static unsigned bucket_of(uint64_t v)
{
	unsigned e, b;

	if (v < HIST_SUB)
		return (unsigned)v;
	e = 63 - (unsigned)__builtin_clzll(v);
	b = (e - SUB_BITS + 1) * HIST_SUB + (unsigned)((v >> (e - SUB_BITS)) & (HIST_SUB - 1));
	return b < HIST_BUCKETS ? b : HIST_BUCKETS - 1;
}

/* The middle of a bucket: off by half a step, 1/32 of the value, at most. */
static uint64_t bucket_value(unsigned b)
{
	unsigned row = b / HIST_SUB, e;

	if (row == 0)
		return b;
	e = row + SUB_BITS - 1;
	return (UINT64_C(1) << e) + ((uint64_t)(b % HIST_SUB) << (e - SUB_BITS)) + (UINT64_C(1) << (e - SUB_BITS)) / 2;
}

static void raise_max(struct hist *h, uint64_t v)
{
	uint64_t old = atomic_load_explicit(&h->max, memory_order_relaxed);

	while (v > old &&
	       !atomic_compare_exchange_weak_explicit(&h->max, &old, v, memory_order_relaxed, memory_order_relaxed))
		;
}

void hist_add(struct hist *h, uint64_t ns)
{
	atomic_fetch_add_explicit(&h->bucket[bucket_of(ns)], 1, memory_order_relaxed);
	raise_max(h, ns);
}

void hist_merge(struct hist *into, const struct hist *from)
{
	for (unsigned i = 0; i < HIST_BUCKETS; i++) {
		uint64_t n = atomic_load_explicit(&from->bucket[i], memory_order_relaxed);

		if (n)
			atomic_fetch_add_explicit(&into->bucket[i], n, memory_order_relaxed);
	}
	raise_max(into, atomic_load_explicit(&from->max, memory_order_relaxed));
}

uint64_t hist_count(const struct hist *h)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < HIST_BUCKETS; i++)
		n += atomic_load_explicit(&h->bucket[i], memory_order_relaxed);
	return n;
}

uint64_t hist_count_below(const struct hist *h, unsigned shift)
{
	unsigned end = (shift - SUB_BITS + 1) * HIST_SUB; /* the bucket of 2^shift */
	uint64_t n = 0;

	for (unsigned i = 0; i < end && i < HIST_BUCKETS; i++)
		n += atomic_load_explicit(&h->bucket[i], memory_order_relaxed);
	return n;
}

double hist_sum(const struct hist *h)
{
	double sum = 0;

	for (unsigned i = 0; i < HIST_BUCKETS; i++)
		sum += (double)atomic_load_explicit(&h->bucket[i], memory_order_relaxed) * (double)bucket_value(i);
	return sum;
}

uint64_t hist_quantile(const struct hist *h, double q)
{
	uint64_t max = atomic_load_explicit(&h->max, memory_order_relaxed);
	uint64_t count = hist_count(h), rank, seen = 0;

	if (!count)
		return 0;
	if (q >= 1)
		return max;
	/* The smallest value that at least a share q of all does not exceed: rank ceil(q * count), from 1. */
	rank = q <= 0 ? 1 : (uint64_t)(q * (double)count);
	if ((double)rank < q * (double)count || rank == 0)
		rank++;
	for (unsigned i = 0; i < HIST_BUCKETS; i++) {
		seen += atomic_load_explicit(&h->bucket[i], memory_order_relaxed);
		if (seen >= rank) {
			uint64_t v = i == HIST_BUCKETS - 1 ? max : bucket_value(i);

			return v < max ? v : max;
		}
	}
	return max;
}
