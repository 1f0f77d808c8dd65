/* SPDX-License-Identifier: BSD-3-Clause */
/* play.h - one case under one schedule, then power losses of it, each recovered and looked at. */
#ifndef SCHED_PLAY_H
#define SCHED_PLAY_H

#include "history.h"

struct outcome {
	bool failed;
	bool stuck; /* the scheduler ended the run: this process is good for no other */
	uint32_t at; /* log position of the power loss; 0: it failed while it ran */
	char why[600];
	uint32_t steps, turns, events;
	struct schedule schedule; /* as it went */
};

struct play_stats {
	uint64_t schedules, losses, steps, turns;
	uint64_t warm, dirty; /* blocks found cached after power losses, clean and dirty */
};

extern struct play_stats play_stats;

/* Once in a process, before all else: what is in memory instead of on disks, and the scheduler instead of threads. */
void play_setup(const char *folder);

/* The schedule is list, if not NULL; else from `seed`. The power losses are from `seed` in any case: `losses` of them,
 * or as many as find one that fails if that is what is looked for (shrinking: at most `losses`). */
void play(struct scase *c, uint64_t seed, const struct schedule *list, unsigned losses, struct outcome *out);

#endif
