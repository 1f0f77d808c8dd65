/* SPDX-License-Identifier: BSD-3-Clause */
/* mutate.c - see mutate.h: empty but in the test build. */
#include "util/mutate.h"

#ifdef BLKCACHE_MUTATE

#define MUTATION_NAME(id, name, what) [MUT_##id] = name,
#define MUTATION_WHAT(id, name, what) [MUT_##id] = what,

int mutation;
const char *const mutation_names[MUT_COUNT] = { MUTATIONS(MUTATION_NAME) };
const char *const mutation_what[MUT_COUNT] = { MUTATIONS(MUTATION_WHAT) };

#else

typedef int mutate_nothing; /* a file must not be empty */

#endif
