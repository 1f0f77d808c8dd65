/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * evict.h - eviction policies: a table of functions, one file each. A policy ranks entries of the line table; whether
 * an entry may go (clean, not in use) is the caller's question.
 */
#ifndef ENGINE_POLICY_H
#define ENGINE_POLICY_H

#include <stdint.h>

#include "engine/map/lines.h"

struct policy;

struct policy_ops {
	const char *name;
	/* An entry was inserted; chain locked. */
	void (*inserted)(struct policy *p, struct lines *l, uint32_t e);
	/* An entry was hit. Any thread, locked or not: it may have been removed in the meantime. Changes at most the
	 * policy's own bits of its word, by compare-and-swap; should somebody who has the chain locked be changing the
	 * word, the hit may be lost. */
	void (*hit)(struct policy *p, struct lines *l, uint32_t e);
	/* The next entry to try; called by one thread (reclaim), which holds volumes_lock and the epoch's gate, both
	 * shared: it must not wait, do I/O or commit. LINE_NONE: nothing suitable found in this many steps. */
	uint32_t (*victim)(struct policy *p, struct lines *l);
};

struct policy {
	const struct policy_ops *ops;
	uint32_t hand;
};

extern const struct policy_ops policy_clock;

#endif
