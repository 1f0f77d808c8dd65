/* SPDX-License-Identifier: BSD-3-Clause */
/* tsan.h - what the thread sanitizer does not know by itself. Each program of this folder includes it once. */
#ifndef TESTS_TSAN_H
#define TESTS_TSAN_H

#include <errno.h>
#include <pthread.h>
#include <time.h>

/* liburing maps and unmaps its rings behind the sanitizer's back: the ring of a thread that has ended and a new one at
 * the same address look like one. */
const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void)
{
	return "race:io_uring_\n";
}

/* GCC 12's sanitizer does not see this function take the lock, and calls the unlocking a mistake. */
int pthread_mutex_clocklock(pthread_mutex_t *mutex, clockid_t clock, const struct timespec *until)
{
	for (;;) {
		struct timespec now;

		if (!pthread_mutex_trylock(mutex))
			return 0;
		clock_gettime(clock, &now);
		if (now.tv_sec > until->tv_sec || (now.tv_sec == until->tv_sec && now.tv_nsec >= until->tv_nsec))
			return ETIMEDOUT;
		nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
	}
}

#endif
