/* SPDX-License-Identifier: BSD-3-Clause */
/* slots.c - see slots.h. */
#include "engine/map/slots.h"

#include "util/deadline.h"
#include "util/waits.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Set bits: in line, as the baseline instruction set has no instruction for it and a library call costs more. */
static unsigned bits_of(uint64_t w)
{
	w -= w >> 1 & 0x5555555555555555u;
	w = (w & 0x3333333333333333u) + (w >> 2 & 0x3333333333333333u);
	w = (w + (w >> 4)) & 0x0f0f0f0f0f0f0f0fu;
	return (unsigned)(w * 0x0101010101010101u >> 56);
}

static unsigned class_of(uint64_t word)
{
	unsigned n = bits_of(word);

	return n == 64 ? 0 : n >= 48 ? 1 : n >= 32 ? 2 : n >= 16 ? 3 : n ? 4 : SLOTS_CLASSES;
}

static void class_add(struct slots *s, uint32_t word, unsigned level)
{
	if (level == SLOTS_CLASSES)
		return;
	s->map[level][word / 64] |= 1ull << (word % 64);
	s->count[level]++;
}

static void class_del(struct slots *s, uint32_t word, unsigned level)
{
	if (level == SLOTS_CLASSES)
		return;
	s->map[level][word / 64] &= ~(1ull << (word % 64));
	s->count[level]--;
}

static bool in_class(const struct slots *s, uint32_t word)
{
	return word != s->hand && word != s->run_hand && !(s->held[word / 64] >> (word % 64) & 1);
}

/* The words at the hands are in no class: they are used up first. Nor are those held. */
static void word_set(struct slots *s, uint32_t word, uint64_t bits)
{
	unsigned was = class_of(s->free[word]), now = class_of(bits);

	s->free[word] = bits;
	if (was == now || !in_class(s, word))
		return;
	class_del(s, word, was);
	class_add(s, word, now);
}

/* Words of 64 bits for n bits; rounding up first would wrap just below 2^32. */
static uint32_t words_for(uint32_t n)
{
	return n / 64 + (n % 64 != 0);
}

uint64_t slots_bytes(uint32_t n)
{
	uint32_t words = words_for(n);

	return ((uint64_t)words + (uint64_t)words_for(words) * (SLOTS_CLASSES + 1)) * 8;
}

int slots_init(struct slots *s, uint32_t n)
{
	uint32_t words = words_for(n), map_words = words_for(words);
	pthread_condattr_t attr;

	memset(s, 0, sizeof *s);
	s->n = n;
	s->bytes = slots_bytes(n);
	s->free = calloc(1, s->bytes);
	if (!s->free)
		return -ENOMEM;
	for (unsigned k = 0; k < SLOTS_CLASSES; k++)
		s->map[k] = s->free + words + (size_t)k * map_words;
	s->held = s->free + words + (size_t)SLOTS_CLASSES * map_words;
	s->map_words = map_words;
	s->run_hand = UINT32_MAX;
	for (uint32_t w = 0; w < words; w++)
		word_set(s, w, w < n / 64 ? UINT64_MAX : (1ull << (n % 64)) - 1);
	s->nfree = n;
	pthread_mutex_init(&s->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&s->freed, &attr);
	pthread_condattr_destroy(&attr);
	return 0;
}

void slots_destroy(struct slots *s)
{
	if (!s->free)
		return;
	free(s->free);
	pthread_mutex_destroy(&s->lock);
	pthread_cond_destroy(&s->freed);
	memset(s, 0, sizeof *s);
}

/* The next word of a class that has some, after `word` and then from the beginning. */
static uint32_t class_next(const struct slots *s, unsigned level, uint32_t word)
{
	uint32_t from = word / 64;
	uint64_t w = s->map[level][from] & ~((2ull << (word % 64)) - 1);

	while (!w) {
		from = from + 1 < s->map_words ? from + 1 : 0;
		w = s->map[level][from];
	}
	return from * 64 + (uint32_t)__builtin_ctzll(w);
}

static void class_put_back(struct slots *s, uint32_t word)
{
	if (word != UINT32_MAX && in_class(s, word))
		class_add(s, word, class_of(s->free[word]));
}

/* lock held, none at the hand. False: nothing is free outside the words held and the other hand's. */
static bool move_hand(struct slots *s)
{
	unsigned level = 0;
	uint32_t word;

	while (level < SLOTS_CLASSES && !s->count[level])
		level++;
	if (level == SLOTS_CLASSES)
		return false;
	word = class_next(s, level, s->hand);
	class_del(s, word, level);
	s->hand = word;
	return true;
}

/* From one word, ascending; returns how many. The caller knows what that means for its class. */
static uint32_t take_from(struct slots *s, uint32_t word, uint32_t *out, uint32_t n)
{
	uint64_t w = s->free[word];
	uint32_t got = 0;

	for (; w && got < n; w &= w - 1)
		out[got++] = word * 64 + (uint32_t)__builtin_ctzll(w);
	s->free[word] = w;
	return got;
}

/* Atomic for slots_is_held. */
static void set_held(struct slots *s, uint32_t i, uint64_t bits)
{
	__atomic_store_n(&s->held[i], bits, __ATOMIC_RELAXED);
}

static void unhold_locked(struct slots *s)
{
	for (uint32_t i = 0; s->nheld && i < s->map_words; i++) {
		for (uint64_t w = s->held[i]; w; w &= w - 1) {
			set_held(s, i, s->held[i] & ~(w & -w));
			s->nheld--;
			class_put_back(s, i * 64 + (uint32_t)__builtin_ctzll(w));
		}
	}
}

/* lock held, nfree >= n */
static void take_locked(struct slots *s, uint32_t *out, uint32_t n)
{
	for (uint32_t got = 0; got < n;) {
		got += take_from(s, s->hand, out + got, n - got);
		if (got < n && !move_hand(s)) {
			/* who needs a slot comes before order */
			uint32_t run = s->run_hand;

			s->run_hand = UINT32_MAX;
			class_put_back(s, run);
			unhold_locked(s);
		}
	}
	atomic_fetch_sub_explicit(&s->nfree, n, memory_order_relaxed);
}

bool slots_take(struct slots *s, uint32_t *out, uint32_t n)
{
	bool ok;

	pthread_mutex_lock(&s->lock);
	ok = s->nfree >= n;
	if (ok)
		take_locked(s, out, n);
	pthread_mutex_unlock(&s->lock);
	return ok;
}

uint32_t slots_take_some(struct slots *s, uint32_t *out, uint32_t n, uint32_t keep)
{
	uint32_t have;

	pthread_mutex_lock(&s->lock);
	have = s->nfree > keep ? s->nfree - keep : 0;
	if (n > have)
		n = have;
	take_locked(s, out, n);
	pthread_mutex_unlock(&s->lock);
	return n;
}

#define RUN_RESERVE 16u /* free words that slots_take_run leaves to writers, in all but small caches */

static bool has_run_locked(const struct slots *s, uint32_t n)
{
	return s->count[0] > n / 64 + (s->n / 64 / 64 < RUN_RESERVE ? s->n / 64 / 64 : RUN_RESERVE);
}

bool slots_has_run(struct slots *s, uint32_t n)
{
	bool ok;

	pthread_mutex_lock(&s->lock);
	ok = has_run_locked(s, n);
	pthread_mutex_unlock(&s->lock);
	return ok;
}

bool slots_take_run(struct slots *s, uint32_t *out, uint32_t n)
{
	uint32_t got = 0;
	bool ok;

	pthread_mutex_lock(&s->lock);
	ok = has_run_locked(s, n);
	while (ok && got < n) {
		if (s->run_hand == UINT32_MAX || !s->free[s->run_hand]) {
			uint32_t word = class_next(s, 0, s->run_hand == UINT32_MAX ? 0 : s->run_hand);

			class_del(s, word, 0);
			s->run_hand = word;
		}
		got += take_from(s, s->run_hand, out + got, n - got);
	}
	atomic_fetch_sub_explicit(&s->nfree, got, memory_order_relaxed);
	pthread_mutex_unlock(&s->lock);
	return ok;
}

uint32_t slots_hold(struct slots *s, uint32_t max_used, unsigned min_free)
{
	unsigned last = class_of((1ull << min_free) - 1);
	uint32_t used = 0;

	pthread_mutex_lock(&s->lock);
	for (unsigned level = 1; level <= last; level++) {
		while (s->count[level] && used < max_used && s->nheld < s->n / 64 / 2) {
			uint32_t word = class_next(s, level, s->hand);

			class_del(s, word, level);
			set_held(s, word / 64, s->held[word / 64] | 1ull << (word % 64));
			s->nheld++;
			used += 64 - bits_of(s->free[word]);
		}
	}
	used = s->nheld;
	pthread_mutex_unlock(&s->lock);
	return used;
}

bool slots_is_held(const struct slots *s, uint32_t slot)
{
	return slot < s->n && __atomic_load_n(&s->held[slot / 4096], __ATOMIC_RELAXED) >> (slot / 64 % 64) & 1;
}

void slots_unhold(struct slots *s)
{
	pthread_mutex_lock(&s->lock);
	unhold_locked(s);
	pthread_mutex_unlock(&s->lock);
}

uint32_t slots_take_full(struct slots *s, uint32_t *out, uint32_t n, uint32_t keep)
{
	uint32_t got = 0;

	pthread_mutex_lock(&s->lock);
	if (s->nfree < n + keep)
		n = 0;
	for (unsigned level = SLOTS_CLASSES - 1; level && got < n; level--) {
		while (s->count[level] && got < n) {
			uint32_t word = class_next(s, level, s->hand);

			class_del(s, word, level);
			got += take_from(s, word, out + got, n - got);
			class_put_back(s, word);
		}
	}
	atomic_fetch_sub_explicit(&s->nfree, got, memory_order_relaxed);
	pthread_mutex_unlock(&s->lock);
	return got;
}

uint32_t slots_free_words(struct slots *s)
{
	uint32_t n;

	pthread_mutex_lock(&s->lock);
	n = s->count[0];
	pthread_mutex_unlock(&s->lock);
	return n;
}

bool slots_wait(struct slots *s, uint32_t n, unsigned timeout_ms)
{
	struct timespec until = deadline_us(timeout_ms * 1000ull);
	bool alive;

	about_to_wait();
	pthread_mutex_lock(&s->lock);
	s->waiting++;
	while (s->nfree < n && !s->aborted)
		if (pthread_cond_timedwait(&s->freed, &s->lock, &until))
			break;
	s->waiting--;
	alive = !s->aborted;
	pthread_mutex_unlock(&s->lock);
	return alive;
}

void slots_give(struct slots *s, const uint32_t *slots, uint32_t n)
{
	if (!n)
		return;
	pthread_mutex_lock(&s->lock);
	for (uint32_t i = 0; i < n; i++)
		word_set(s, slots[i] / 64, s->free[slots[i] / 64] | 1ull << (slots[i] % 64));
	atomic_fetch_add_explicit(&s->nfree, n, memory_order_relaxed);
	if (s->waiting)
		pthread_cond_broadcast(&s->freed);
	pthread_mutex_unlock(&s->lock);
}

void slots_abort(struct slots *s)
{
	pthread_mutex_lock(&s->lock);
	s->aborted = true;
	pthread_cond_broadcast(&s->freed);
	pthread_mutex_unlock(&s->lock);
}

bool slots_claim(struct slots *s, uint32_t slot)
{
	uint64_t bit = 1ull << (slot % 64);

	if (slot >= s->n || !(s->free[slot / 64] & bit))
		return false;
	word_set(s, slot / 64, s->free[slot / 64] & ~bit);
	atomic_store_explicit(&s->nfree, s->nfree - 1, memory_order_relaxed); /* nobody else is here yet */
	return true;
}
