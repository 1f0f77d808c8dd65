/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * slots.h - free slots of the data file. They are given out in ascending order from one word of 64 after the other, so
 * that blocks written together lie together. The next word is one of those with the most free slots (by classes: all,
 * 48, 32, 16 or any), the first such one above the hand: writes then are as large as the free space allows, and words
 * that are mostly free become free altogether, instead of every hole being filled as soon as the hand comes by.
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

#define SLOTS_CLASSES 5

struct slots {
	uint32_t n;
	uint64_t *free; /* a bit per slot */
	uint32_t hand; /* the word being used up */
	uint64_t *map[SLOTS_CLASSES]; /* of each class: a bit per word, but for the hand's */
	uint32_t count[SLOTS_CLASSES]; /* of words in it */
	uint32_t map_words;
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
