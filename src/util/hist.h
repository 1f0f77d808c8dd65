/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * hist.h - a latency histogram that many threads add to without a lock. Log-linear: 16 steps per power of two, so a
 * quantile is right to within 6 %. (Debian has no C library of HdrHistogram.) Values are nanoseconds.
 */
#ifndef UTIL_HIST_H
#define UTIL_HIST_H

#include <stdatomic.h>
#include <stdint.h>

#define HIST_SUB 16
#define HIST_BUCKETS (40 * HIST_SUB)

struct hist {
	_Atomic uint64_t bucket[HIST_BUCKETS];
	_Atomic uint64_t max;
};

void hist_add(struct hist *h, uint64_t ns);
void hist_merge(struct hist *into, const struct hist *from); /* `into` is the caller's alone */
uint64_t hist_count(const struct hist *h);
uint64_t hist_count_below(const struct hist *h, unsigned shift); /* values below 2^shift; shift 4 to 43 */
double hist_sum(const struct hist *h); /* of all values; each is taken to within 1/32 */
uint64_t hist_quantile(const struct hist *h, double q); /* 0..1; 0 if empty */

#endif
