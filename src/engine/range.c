/* SPDX-License-Identifier: BSD-3-Clause */
/* range.c - see range.h. Each stripe keeps its parts in order of arrival; a part is granted when no earlier one
 * conflicts. */
#include "range.h"

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

static bool __blocked(const struct range_stripe *s, const struct range_part *p)
{
	for (const struct range_part *q = s->head; q != p; q = q->next)
		if (conflict(q, p))
			return true;
	return false;
}

static void __append(struct range_stripe *s, struct range_part *p)
{
	p->next = NULL;
	p->prev = s->tail;
	if (s->tail)
		s->tail->next = p;
	else
		s->head = p;
	s->tail = p;
}

static void __remove(struct range_stripe *s, struct range_part *p)
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

static bool part_lock(struct range_table *t, struct range_part *p, bool wait)
{
	struct range_stripe *s = stripe_of(t, p);
	bool ok = true;

	pthread_mutex_lock(&s->lock);
	__append(s, p);
	while (__blocked(s, p)) {
		if (!wait) {
			__remove(s, p);
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

static void part_unlock(struct range_table *t, struct range_part *p)
{
	struct range_stripe *s = stripe_of(t, p);

	pthread_mutex_lock(&s->lock);
	__remove(s, p);
	pthread_mutex_unlock(&s->lock);
}

static bool lock_all(struct range_table *t, struct range_lock *l, unsigned volume, uint64_t first, uint32_t count,
		     enum range_mode mode, bool wait)
{
	uint64_t last = first + count - 1,
		 split = (first >> RANGE_CHUNK_SHIFT << RANGE_CHUNK_SHIFT) + (1u << RANGE_CHUNK_SHIFT);

	l->parts = last >= split ? 2 : 1;
	l->part[0] = (struct range_part){ .volume = (uint16_t)volume, .mode = mode, .first = first, .last = last };
	if (l->parts == 2) {
		l->part[0].last = split - 1;
		l->part[1] =
			(struct range_part){ .volume = (uint16_t)volume, .mode = mode, .first = split, .last = last };
	}
	if (!part_lock(t, &l->part[0], wait))
		return false;
	if (l->parts == 2 && !part_lock(t, &l->part[1], wait)) {
		part_unlock(t, &l->part[0]);
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
