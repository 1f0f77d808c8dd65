/* SPDX-License-Identifier: BSD-3-Clause */
/* range.c - see range.h. Each stripe keeps its parts in order of arrival; a part is granted when no earlier one
 * conflicts. */
#include "engine/map/range.h"

#include "util/waits.h"

static const bool compatible[4][4] = {
	[RANGE_READ] = { [RANGE_READ] = true, [RANGE_CLEAN] = true },
	[RANGE_WRITE] = { [RANGE_CLEAN] = true },
	[RANGE_CLEAN] = { [RANGE_READ] = true, [RANGE_WRITE] = true },
};

void range_table_init(struct range_table *t)
{
	for (int i = 0; i < RANGE_STRIPES; i++) {
		struct range_stripe *s = &t->stripe[i];

		pthread_mutex_init(&s->lock, NULL);
		pthread_cond_init(&s->released, NULL);
		s->head = s->tail = NULL;
		s->waiting = 0;
	}
}

void range_table_destroy(struct range_table *t)
{
	for (int i = 0; i < RANGE_STRIPES; i++) {
		pthread_mutex_destroy(&t->stripe[i].lock);
		pthread_cond_destroy(&t->stripe[i].released);
	}
}

static struct range_stripe *stripe_of(struct range_table *t, const struct range_part *p)
{
	uint64_t h = ((p->first >> RANGE_CHUNK_SHIFT) + ((uint64_t)p->volume << 40)) * 0x9e3779b97f4a7c15ull;

	return &t->stripe[h >> 58];
}

static bool conflict(const struct range_part *a, const struct range_part *b)
{
	return a->volume == b->volume && a->first <= b->last && b->first <= a->last && !compatible[a->mode][b->mode];
}

static bool blocked_locked(const struct range_stripe *s, const struct range_part *p)
{
	for (const struct range_part *q = s->head; q != p; q = q->next)
		if (conflict(q, p))
			return true;
	return false;
}

static void append_locked(struct range_stripe *s, struct range_part *p)
{
	p->next = NULL;
	p->prev = s->tail;
	if (s->tail)
		s->tail->next = p;
	else
		s->head = p;
	s->tail = p;
}

static void remove_locked(struct range_stripe *s, struct range_part *p)
{
	if (p->prev)
		p->prev->next = p->next;
	else
		s->head = p->next;
	if (p->next)
		p->next->prev = p->prev;
	else
		s->tail = p->prev;
	if (s->waiting)
		pthread_cond_broadcast(&s->released);
}

static bool stripe_lock(struct range_stripe *s, struct range_part *p, bool wait)
{
	bool ok = true;

	pthread_mutex_lock(&s->lock);
	append_locked(s, p);
	while (blocked_locked(s, p)) {
		if (!wait) {
			remove_locked(s, p);
			ok = false;
			break;
		}
		about_to_wait();
		s->waiting++;
		pthread_cond_wait(&s->released, &s->lock);
		s->waiting--;
	}
	pthread_mutex_unlock(&s->lock);
	return ok;
}

static bool part_lock(struct range_table *t, struct range_part *p, bool wait)
{
	return stripe_lock(stripe_of(t, p), p, wait);
}

static void stripe_unlock(struct range_stripe *s, struct range_part *p)
{
	pthread_mutex_lock(&s->lock);
	remove_locked(s, p);
	pthread_mutex_unlock(&s->lock);
}

static void part_unlock(struct range_table *t, struct range_part *p)
{
	stripe_unlock(stripe_of(t, p), p);
}

static bool lock_all(struct range_table *t, struct range_lock *l, unsigned volume, uint64_t first, uint32_t count,
		     enum range_mode mode, bool wait)
{
	uint64_t last = first + count - 1,
		 split = (first >> RANGE_CHUNK_SHIFT << RANGE_CHUNK_SHIFT) + (1u << RANGE_CHUNK_SHIFT);
	struct range_part *p = &l->part[0];

	*p = (struct range_part){ .volume = (uint16_t)volume, .mode = mode, .first = first, .last = last };
	if (last < split) {
		l->parts = 1;
		return part_lock(t, p, wait);
	}
	/* ascending stripes, as everywhere (range.h) */
	l->part[1] = *p;
	l->part[1].first = split;
	p->last = split - 1;
	if (stripe_of(t, &l->part[1]) < stripe_of(t, p)) {
		struct range_part swap = l->part[0];

		l->part[0] = l->part[1];
		l->part[1] = swap;
	}
	l->parts = 2;
	if (!part_lock(t, p, wait))
		return false;
	if (!part_lock(t, &l->part[1], wait)) {
		part_unlock(t, p);
		return false;
	}
	return true;
}

void range_lock(struct range_table *t, struct range_lock *l, unsigned volume, uint64_t first, uint32_t count,
		enum range_mode mode)
{
	(void)lock_all(t, l, volume, first, count, mode, true);
}

bool range_trylock(struct range_table *t, struct range_lock *l, unsigned volume, uint64_t first, uint32_t count,
		   enum range_mode mode)
{
	return lock_all(t, l, volume, first, count, mode, false);
}

void range_unlock(struct range_table *t, struct range_lock *l)
{
	for (int i = 0; i < l->parts; i++)
		part_unlock(t, &l->part[i]);
}

void range_lock_wide(struct range_table *t, struct range_wide *w, unsigned volume, uint64_t first, uint64_t count,
		     enum range_mode mode)
{
	for (int i = 0; i < RANGE_STRIPES; i++) {
		w->part[i] = (struct range_part){
			.volume = (uint16_t)volume, .mode = mode, .first = first, .last = first + count - 1
		};
		(void)stripe_lock(&t->stripe[i], &w->part[i], true);
	}
}

void range_unlock_wide(struct range_table *t, struct range_wide *w)
{
	for (int i = 0; i < RANGE_STRIPES; i++)
		stripe_unlock(&t->stripe[i], &w->part[i]);
}
