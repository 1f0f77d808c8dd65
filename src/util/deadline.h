/* SPDX-License-Identifier: BSD-3-Clause */
/* deadline.h - when a wait is to end, for pthread_cond_timedwait on a condition whose clock is CLOCK_MONOTONIC. */
#ifndef UTIL_DEADLINE_H
#define UTIL_DEADLINE_H

#include <stdint.h>
#include <time.h>

/* `us` microseconds from now, on CLOCK_MONOTONIC. */
static inline struct timespec deadline_us(uint64_t us)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	t.tv_sec += (time_t)(us / 1000000);
	t.tv_nsec += (long)(us % 1000000) * 1000;
	if (t.tv_nsec >= 1000000000) {
		t.tv_sec++;
		t.tv_nsec -= 1000000000;
	}
	return t;
}

#endif
