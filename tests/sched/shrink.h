/* SPDX-License-Identifier: BSD-3-Clause */
/* shrink.h - making a failing case and its schedule small, and telling it. */
#ifndef SCHED_SHRINK_H
#define SCHED_SHRINK_H

#include "play.h"

/* `out` is how c failed. Prints the smallest form found, and the command line that runs it again. */
void shrink_and_tell(const struct scase *c, uint64_t seed, const struct outcome *out, unsigned losses);
/* Runs one case and prints what it did. turns: NULL, or as printed. smaller: also what is left of it when it is made
 * small. 0 if it passed. */
int tell_one(struct scase *c, uint64_t seed, const char *turns, unsigned losses, bool smaller);
bool case_keep(struct scase *c, const char *list); /* only these operations; false: no such list */

#endif
