/* SPDX-License-Identifier: BSD-3-Clause */
/* check.h - is a world after a power loss what the promises allow? */
#ifndef CRASH_CHECK_H
#define CRASH_CHECK_H

#include "workload.h"

struct check_stats {
	uint64_t states, nested; /* checked; of them, after a second power loss, or a kill and a power loss */
	uint64_t kills;
	uint64_t dropped_epochs, void_journals, redone, dropped_clean,
		warm; /* what recovery did in them; warm: clean blocks kept */
	uint64_t dirty, absent; /* dirty blocks found; states without a cache yet */
};

extern struct check_stats check_stats;

/* Every block that recovery kept: its contents are what the checksum says (P3), and if it is clean, what the backing
 * device (file bN of the world, of volume vN) has (P4). */
bool check_lines(struct cache *c, char *why, size_t len);

/* Recovers `w` (stolen), which a power loss at position p of run r left behind, and looks at everything. extra: also
 * cleans, and compares backing devices and volumes after that. False: *why. */
bool check_state(const struct run *r, uint32_t p, struct world *w, bool extra, char *why, size_t len);

#endif
