/* SPDX-License-Identifier: BSD-3-Clause */
/* mutate.c - see mutate.h: empty but in the test build. */
#include "util/mutate.h"

#ifdef BLKCACHE_MUTATE

#include <stdlib.h>
#include <string.h>

#define MUTATION_NAME(id, name, what) [MUT_##id] = name,
#define MUTATION_WHAT(id, name, what) [MUT_##id] = what,

int mutation;
const char *const mutation_names[MUT_COUNT] = { MUTATIONS(MUTATION_NAME) RACES(MUTATION_NAME) };
const char *const mutation_what[MUT_COUNT] = { MUTATIONS(MUTATION_WHAT) RACES(MUTATION_WHAT) };

/* BLKCACHE_MUTATION=NAME: for tests that have no option for it. */
__attribute__((constructor)) static void from_environment(void)
{
	const char *name = getenv("BLKCACHE_MUTATION");

	for (int m = 1; name && m < MUT_COUNT; m++)
		if (!strcmp(name, mutation_names[m]))
			mutation = m;
}

#else

typedef int mutate_nothing; /* a file must not be empty */

#endif
