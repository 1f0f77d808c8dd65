/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * slow.h - time limits on slow machines (emulation, sanitizers under load): BLKCACHE_TEST_SLOW=N in the environment
 * makes each N times as long. The Makefile includes it before everything else in each unit test program, so that no
 * test has to think of it:
 *
 *   - Criterion's limits (.timeout of tests and suites), in the hook below, before the first test starts;
 *   - alarm(2);
 *   - short sleeps, which are those of loops that wait for something so and so many times. Longer ones are times by
 *     themselves (so much later it must not have happened yet) and stay.
 */
#ifndef TESTS_SLOW_H
#define TESTS_SLOW_H

#include <criterion/criterion.h>
#include <criterion/hooks.h>
#include <stdlib.h>
#include <unistd.h>

#define SLOW_SLEEP_US 10000 /* up to here */

static inline unsigned test_slow(void)
{
	const char *text = getenv("BLKCACHE_TEST_SLOW");
	unsigned long n = text ? strtoul(text, NULL, 10) : 1;

	return n >= 1 && n <= 1000 ? (unsigned)n : 1;
}

static inline void slow_limit(struct criterion_test_extra_data *data)
{
	if (data)
		data->timeout *= test_slow();
}

ReportHook(PRE_ALL)(struct criterion_test_set *tests)
{
	FOREACH_SET(struct criterion_suite_set * s, tests->suites)
	{
		slow_limit(s->suite.data);
		FOREACH_SET(struct criterion_test * t, s->tests) slow_limit(t->data);
	}
}

static inline int slow_usleep(useconds_t us)
{
	return usleep(us <= SLOW_SLEEP_US ? us * test_slow() : us);
}

static inline unsigned slow_alarm(unsigned seconds)
{
	return alarm(seconds * test_slow());
}

#define usleep slow_usleep
#define alarm slow_alarm

#endif
