/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * slots.h - free slots of the data file. A bitmap and a hand that moves upward, so that blocks written together lie
 * together.
 *
 * Slots that an epoch stops using are not free yet: they are kept by the epoch (epoch.h) and come back here when it is
 * durable. Any thread; one lock.
 */
#ifndef ENGINE_SLOTS_H
#define ENGINE_SLOTS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct slots {
	uint32_t n;
	uint64_t *free; /* a bit per slot */
	uint32_t hand; /* word to look at next */
	_Atomic uint32_t nfree;
	pthread_mutex_t lock;
	pthread_cond_t freed; /* signalled when slots come back, or on slots_abort */
	unsigned waiting;
	bool aborted;
	uint64_t bytes;
};

int slots_init(struct slots *s, uint32_t n); /* all free */
void slots_destroy(struct slots *s);
/* Takes n slots, ascending, all or none. */
bool slots_take(struct slots *s, uint32_t *out, uint32_t n);
/* Takes up to n; returns how many. For fills, which need not succeed. `keep`: leave at least this many. */
uint32_t slots_take_some(struct slots *s, uint32_t *out, uint32_t n, uint32_t keep);
/* Waits until n might be taken, at most timeout_ms. False after slots_abort (shutdown or failure). */
bool slots_wait(struct slots *s, uint32_t n, unsigned timeout_ms);
void slots_give(struct slots *s, const uint32_t *slots, uint32_t n);
void slots_abort(struct slots *s);
/* Recovery: false if it was taken already. */
bool slots_claim(struct slots *s, uint32_t slot);

#endif
