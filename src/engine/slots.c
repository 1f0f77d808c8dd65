/* SPDX-License-Identifier: BSD-3-Clause */
/* slots.c - see slots.h. */
#include "slots.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static unsigned class_of(uint64_t word)
{
	unsigned n = (unsigned)__builtin_popcountll(word);

	return n == 64 ? 0 : n >= 48 ? 1 : n >= 32 ? 2 : n >= 16 ? 3 : n ? 4 : SLOTS_CLASSES;
}

static void class_add(struct slots *s, uint32_t word, unsigned class)
{
	if (class == SLOTS_CLASSES)
		return;
	s->map[class][word / 64] |= 1ull << (word % 64);
	s->count[class]++;
}

static void class_del(struct slots *s, uint32_t word, unsigned class)
{
	if (class == SLOTS_CLASSES)
		return;
	s->map[class][word / 64] &= ~(1ull << (word % 64));
	s->count[class]--;
}

/* The word at the hand is in no class: it is used up first. */
static void word_set(struct slots *s, uint32_t word, uint64_t bits)
{
	unsigned was = class_of(s->free[word]), now = class_of(bits);

	s->free[word] = bits;
	if (word == s->hand || was == now)
		return;
	class_del(s, word, was);
	class_add(s, word, now);
}

int slots_init(struct slots *s, uint32_t n)
{
	uint32_t words = (n + 63) / 64, map_words = (words + 63) / 64;
	pthread_condattr_t attr;

	memset(s, 0, sizeof *s);
	s->n = n;
	s->bytes = ((uint64_t)words + (uint64_t)map_words * SLOTS_CLASSES) * 8;
	s->free = calloc(1, s->bytes);
	if (!s->free)
		return -ENOMEM;
	for (unsigned k = 0; k < SLOTS_CLASSES; k++)
		s->map[k] = s->free + words + (size_t)k * map_words;
	s->map_words = map_words;
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

/* The next word of a class that has some, after the hand and then from the beginning. */
static uint32_t class_next(const struct slots *s, unsigned class)
{
	uint32_t from = s->hand / 64;
	uint64_t w = s->map[class][from] & ~((2ull << (s->hand % 64)) - 1);

	while (!w) {
		from = from + 1 < s->map_words ? from + 1 : 0;
		w = s->map[class][from];
	}
	return from * 64 + (uint32_t)__builtin_ctzll(w);
}

/* lock held, nfree > 0 and none of them at the hand */
static void move_hand(struct slots *s)
{
	unsigned class = 0;
	uint32_t word;

	while (!s->count[class])
		class ++;
	word = class_next(s, class);
	class_del(s, word, class);
	s->hand = word;
}

/* lock held, nfree >= n */
static void __take(struct slots *s, uint32_t *out, uint32_t n)
{
	for (uint32_t got = 0; got < n;) {
		uint64_t w = s->free[s->hand];

		if (!w) {
			move_hand(s);
			continue;
		}
		while (w && got < n) {
			out[got++] = s->hand * 64 + (uint32_t)__builtin_ctzll(w);
			w &= w - 1;
		}
		s->free[s->hand] = w;
	}
	atomic_fetch_sub_explicit(&s->nfree, n, memory_order_relaxed);
}

bool slots_take(struct slots *s, uint32_t *out, uint32_t n)
{
	bool ok;

	pthread_mutex_lock(&s->lock);
	ok = s->nfree >= n;
	if (ok)
		__take(s, out, n);
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
	__take(s, out, n);
	pthread_mutex_unlock(&s->lock);
	return n;
}

bool slots_wait(struct slots *s, uint32_t n, unsigned timeout_ms)
{
	struct timespec until;
	bool alive;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += timeout_ms / 1000;
	until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
	if (until.tv_nsec >= 1000000000) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000;
	}
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
