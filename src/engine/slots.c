/* SPDX-License-Identifier: BSD-3-Clause */
/* slots.c - see slots.h. */
#include "slots.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int slots_init(struct slots *s, uint32_t n)
{
	uint32_t words = (n + 63) / 64;
	pthread_condattr_t attr;

	memset(s, 0, sizeof *s);
	s->n = n;
	s->bytes = (uint64_t)words * 8;
	s->free = malloc(s->bytes);
	if (!s->free)
		return -ENOMEM;
	memset(s->free, 0xff, s->bytes);
	if (n % 64)
		s->free[words - 1] = (1ull << (n % 64)) - 1;
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

/* lock held, nfree >= n */
static void __take(struct slots *s, uint32_t *out, uint32_t n)
{
	uint32_t words = (s->n + 63) / 64;

	for (uint32_t got = 0; got < n;) {
		uint64_t w = s->free[s->hand];

		while (w && got < n) {
			out[got++] = s->hand * 64 + (uint32_t)__builtin_ctzll(w);
			w &= w - 1;
		}
		s->free[s->hand] = w;
		if (!w)
			s->hand = s->hand + 1 < words ? s->hand + 1 : 0;
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
		s->free[slots[i] / 64] |= 1ull << (slots[i] % 64);
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
	s->free[slot / 64] &= ~bit;
	atomic_store_explicit(&s->nfree, s->nfree - 1, memory_order_relaxed); /* nobody else is here yet */
	return true;
}
