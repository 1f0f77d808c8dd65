/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * slots.h - free slots of the data file. They are given out in ascending order from one word of 64 after the other, so
 * that blocks written together lie together. The next word is one of those with the most free slots (by classes: all,
 * 48, 32, 16 or any), the first such word at or after the clock hand: writes then are as large as the free space
 * allows, and words that are mostly free become free altogether, instead of every hole being filled as soon as the hand
 * comes by.
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
	uint32_t run_hand; /* likewise, by slots_take_run */
	uint64_t *map[SLOTS_CLASSES]; /* of each class: a bit per word, but for the hands' and those held */
	uint64_t *held; /* a bit per word: slots_hold */
	uint32_t nheld; /* words */
	uint32_t count[SLOTS_CLASSES]; /* of words in it */
	uint32_t map_words;
	_Atomic uint32_t nfree;
	pthread_mutex_t lock;
	pthread_cond_t freed; /* signalled when slots come back, or on slots_abort */
	unsigned waiting;
	bool aborted;
	uint64_t bytes;
};

int slots_init(struct slots *s, uint32_t n); /* all free; any n */
uint64_t slots_bytes(uint32_t n); /* of RAM that slots_init takes */
void slots_destroy(struct slots *s);
/* Takes n slots, ascending, all or none. */
bool slots_take(struct slots *s, uint32_t *out, uint32_t n);
/* Takes up to n; returns how many. For fills, which need not succeed. `keep`: leave at least this many. */
uint32_t slots_take_some(struct slots *s, uint32_t *out, uint32_t n, uint32_t keep);
/* Takes n slots that lie together: the words they are from were free altogether, and enough such words are left. False
 * if there are too few. */
bool slots_take_run(struct slots *s, uint32_t *out, uint32_t n);
bool slots_has_run(struct slots *s, uint32_t n); /* would slots_take_run find them? */
/*
 * For compaction. slots_hold: takes words of which at least `min_free` slots (48, 32, 16) are free, the emptiest class
 * first, out of circulation, until `max_used` slots in use lie in them: no slot of theirs is given out until
 * slots_unhold, so that they become free altogether. Returns how many words, at most half of all. slots_take_full:
 * takes up to n slots where moved blocks should go: in the holes of the fullest words first, so that as few blocks as
 * possible have to move, and never in words that are free altogether, as nothing would be gained.
 */
uint32_t slots_hold(struct slots *s, uint32_t max_used, unsigned min_free);
bool slots_is_held(const struct slots *s, uint32_t slot); /* a hint, without the lock */
void slots_unhold(struct slots *s);
uint32_t slots_take_full(struct slots *s, uint32_t *out, uint32_t n, uint32_t keep);
uint32_t slots_free_words(struct slots *s); /* entirely free */
/* Waits until n might be taken, at most timeout_ms. False after slots_abort (shutdown or failure). */
bool slots_wait(struct slots *s, uint32_t n, unsigned timeout_ms);
void slots_give(struct slots *s, const uint32_t *slots, uint32_t n);
void slots_abort(struct slots *s);
/* Recovery: false if it was taken already. */
bool slots_claim(struct slots *s, uint32_t slot);

#endif
