/* SPDX-License-Identifier: BSD-3-Clause */
/* test_hist.c - the latency histogram: quantiles within 6 %, no count lost. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <string.h>

#include "util/hist.h"

static struct hist h, other;

Test(hist, empty)
{
	cr_expect_eq(hist_count(&h), 0);
	cr_expect_eq(hist_quantile(&h, 0.5), 0);
	cr_expect_eq(hist_quantile(&h, 1), 0);
}

/* One value alone: the quantile is that value, to within 6 %, whatever its size. */
Test(hist, every_magnitude)
{
	for (uint64_t v = 0; v < UINT64_C(1) << 43; v = v * 21 / 20 + 1) {
		uint64_t q;

		memset(&h, 0, sizeof(h));
		hist_add(&h, v);
		hist_add(&h, UINT64_C(1) << 43); /* or the maximum would correct the answer */
		q = hist_quantile(&h, 0.5);
		cr_assert(q >= v - v / 16 && q <= v + v / 16, "%llu was read as %llu", (unsigned long long)v,
			  (unsigned long long)q);
	}
}

Test(hist, quantiles)
{
	for (uint64_t v = 1; v <= 100000; v++)
		hist_add(&h, v);
	cr_expect_eq(hist_count(&h), 100000);
	for (int p = 1; p < 100; p++) {
		double want = p * 1000.0, got = (double)hist_quantile(&h, p / 100.0);

		cr_expect(got > want * 0.94 && got < want * 1.06, "p%d is %f", p, got);
	}
	cr_expect_eq(hist_quantile(&h, 0), 1);
	cr_expect_eq(hist_quantile(&h, 1), 100000, "the maximum is exact");
}

/* Far beyond the last bucket: counted, and never reported as less than it was. */
Test(hist, enormous)
{
	hist_add(&h, UINT64_MAX);
	cr_expect_eq(hist_count(&h), 1);
	cr_expect_eq(hist_quantile(&h, 0.5), UINT64_MAX);
}

Test(hist, merge)
{
	for (int i = 0; i < 10; i++)
		hist_add(&h, 100);
	for (int i = 0; i < 30; i++)
		hist_add(&other, 10000);
	hist_merge(&h, &other);
	cr_expect_eq(hist_count(&h), 40);
	cr_expect_eq(hist_quantile(&h, 1), 10000);
	cr_expect_lt(hist_quantile(&h, 0.25), 107);
	cr_expect_gt(hist_quantile(&h, 0.26), 9400);
}

static void *add_many(void *arg)
{
	for (uint64_t i = 0; i < 100000; i++)
		hist_add(arg, i & 1023);
	return NULL;
}

Test(hist, threads_lose_nothing)
{
	pthread_t t[3];

	for (int i = 0; i < 3; i++)
		cr_assert_eq(pthread_create(&t[i], NULL, add_many, &h), 0);
	for (int i = 0; i < 3; i++)
		pthread_join(t[i], NULL);
	cr_expect_eq(hist_count(&h), 300000);
	cr_expect_eq(hist_quantile(&h, 1), 1023);
}

/* What Prometheus is shown: how many are below a power of two, exactly, and their sum, to within 1/32. */
Test(hist, below_and_sum)
{
	double sum = 0;

	for (uint64_t v = 1; v <= 100000; v++) {
		hist_add(&other, v);
		sum += (double)v;
	}
	for (unsigned shift = 4; shift <= 43; shift++) {
		uint64_t want = shift < 17 ? (UINT64_C(1) << shift) - 1 : 100000;

		cr_expect_eq(hist_count_below(&other, shift), want, "below 2^%u", shift);
	}
	cr_expect(hist_sum(&other) > sum * 31 / 32 && hist_sum(&other) < sum * 33 / 32);
}
