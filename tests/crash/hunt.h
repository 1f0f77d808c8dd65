/* SPDX-License-Identifier: BSD-3-Clause */
/* hunt.h - all the power losses of one workload, and making a failing case small. */
#ifndef CRASH_HUNT_H
#define CRASH_HUNT_H

#include "check.h"

struct limits {
	uint32_t states; /* at most, of one workload */
	bool exhaustive; /* every crash point, every style, whatever that takes */
	uint32_t nested_every; /* a second power loss for one state in so many; 0: none */
	bool shrink;
};

extern unsigned stuck_seconds; /* a state that takes longer ends the process with SIGALRM */

struct failure {
	bool found;
	char why[800];
	uint32_t at; /* 0: the workload itself failed */
	uint8_t *choice; /* nchoice bytes */
	uint32_t nchoice;
	bool nested;
	uint32_t at2;
	char text[16000]; /* for people */
};

void failure_free(struct failure *f);

/* Runs workload `cfg` from `seed` (only the operations of keep[], if not NULL) and every power loss the limits allow.
 */
void hunt(const struct config *cfg, uint64_t seed, const uint32_t *keep, unsigned nkeep, const struct limits *lim,
	  struct failure *f);
/* One state. */
void hunt_one(const struct config *cfg, uint64_t seed, const uint32_t *keep, unsigned nkeep, uint32_t at,
	      const uint8_t *choice, uint32_t nchoice, struct failure *f);

#endif
