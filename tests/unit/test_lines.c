/* SPDX-License-Identifier: BSD-3-Clause */
/* test_lines.c - the line table of the engine: insert, find, remove, the free list, masks, chains under many threads,
 * looks without the lock, for lines of one block and of sixteen. */
#include <criterion/criterion.h>
#include <stdlib.h>

#include "engine/map/lines.h"

static uint32_t find(struct lines *l, uint64_t key)
{
	struct line_chain ch = lines_lock(l, key);
	uint32_t e = lines_find(&ch);

	lines_unlock(&ch);
	return e;
}

static uint32_t insert(struct lines *l, uint64_t key)
{
	struct line_chain ch = lines_lock(l, key);
	uint32_t e = lines_insert(&ch);

	lines_unlock(&ch);
	return e;
}

static void take_out(struct lines *l, uint64_t key)
{
	struct line_chain ch = lines_lock(l, key);
	uint32_t e = lines_find(&ch);

	cr_assert_neq(e, LINE_NONE);
	lines_remove(&ch, e);
	lines_unlock(&ch);
}

static void fill_and_empty(uint32_t n, uint32_t bpl)
{
	struct lines l;

	cr_assert_eq(lines_init(&l, n, bpl), 0);
	cr_assert_eq(l.nfree, n);
	cr_assert_eq(l.bytes, lines_bytes(n, bpl));
	for (uint32_t i = 0; i < n; i++) {
		uint32_t e = insert(&l, line_key(1 + i % 3, i / 3));

		cr_assert_neq(e, LINE_NONE);
		cr_assert_eq(line_valid(&l, e) | line_dirty(&l, e) | line_fresh(&l, e), 0);
	}
	cr_assert_eq(l.nfree, 0);
	cr_assert_eq(insert(&l, line_key(9, 9)), LINE_NONE, "a full table gave an entry");
	cr_assert_eq(find(&l, line_key(9, 9)), LINE_NONE);
	for (uint32_t i = 0; i < n; i++) {
		uint32_t e = find(&l, line_key(1 + i % 3, i / 3));

		cr_assert_neq(e, LINE_NONE);
		cr_assert_eq(lines_word(&l, e) & LINE_KEY_MASK, line_key(1 + i % 3, i / 3));
		for (unsigned b = 0; b < bpl; b++)
			line_block(&l, e, b)->slot = i * bpl + b;
	}
	for (uint32_t i = 0; i < n; i++) /* entries share no blocks */
		for (unsigned b = 0; b < bpl; b++)
			cr_assert_eq(line_block(&l, find(&l, line_key(1 + i % 3, i / 3)), b)->slot, i * bpl + b);
	for (uint32_t i = 0; i < n; i += 2)
		take_out(&l, line_key(1 + i % 3, i / 3));
	cr_assert_eq(l.nfree, (n + 1) / 2);
	for (uint32_t i = 0; i < n; i++)
		cr_assert_eq(find(&l, line_key(1 + i % 3, i / 3)) == LINE_NONE, i % 2 == 0);
	for (uint32_t i = 0; i < n; i += 2)
		cr_assert_neq(insert(&l, line_key(1 + i % 3, i / 3)), LINE_NONE);
	cr_assert_eq(l.nfree, 0);
	lines_destroy(&l);
}

Test(lines, fill_and_empty)
{
	static const uint32_t sizes[] = { 1, 2, 16, 31, 257, 5000 };

	for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
		for (uint32_t bpl = 1; bpl <= 16; bpl *= 2)
			fill_and_empty(sizes[i], bpl);
}

static void masks(uint32_t bpl, uint16_t all)
{
	uint64_t key = line_key(5, (1ull << LINE_BITS) - 1); /* the highest line */
	struct lines l;
	uint32_t e;

	cr_assert_eq(lines_init(&l, 8, bpl), 0);
	e = insert(&l, key);
	for (unsigned m = 0; m < 64; m++) {
		uint16_t valid = (uint16_t)(m * 2654435761u >> 8) & all, dirty = valid & (uint16_t)(m * 40503u >> 3),
			 fresh = valid & (uint16_t)(m * 69069u >> 5);

		lines_set_word(&l, e, lines_word(&l, e) | LINE_CHANGED | LINE_CLEANING | LINE_FREQ_MASK);
		line_set_masks(&l, e, valid, dirty, fresh);
		cr_assert_eq(line_valid(&l, e), valid);
		cr_assert_eq(line_dirty(&l, e), dirty);
		cr_assert_eq(line_fresh(&l, e), fresh);
		/* what scans see without the lock, and what must not be touched */
		cr_assert_eq(!!(lines_word(&l, e) & LINE_VALID0), !!valid);
		cr_assert_eq(!!(lines_word(&l, e) & LINE_DIRTY0), !!dirty);
		cr_assert_eq(lines_word(&l, e) & LINE_KEY_MASK, key);
		cr_assert_eq(lines_word(&l, e) & (LINE_CHANGED | LINE_CLEANING | LINE_FREQ_MASK),
			     LINE_CHANGED | LINE_CLEANING | LINE_FREQ_MASK);
	}
	/* a free entry keeps nothing but that its record is owed */
	take_out(&l, key);
	cr_assert_eq(lines_word(&l, e), LINE_CHANGED);
	e = insert(&l, line_key(1, 1));
	cr_assert_eq(lines_word(&l, e), line_key(1, 1) | LINE_CHANGED, "the entry freed last is given first");
	cr_assert_eq(line_valid(&l, e) | line_dirty(&l, e) | line_fresh(&l, e), 0);
	lines_destroy(&l);
}

Test(lines, masks_of_one_block)
{
	masks(1, 1);
}

Test(lines, masks_of_sixteen_blocks)
{
	masks(16, 0xffff);
}

Test(lines, count_of_bits)
{
	for (unsigned m = 0; m <= UINT16_MAX; m++)
		cr_assert_eq(mask_count((uint16_t)m), (unsigned)__builtin_popcount(m), "%x", m);
}

Test(lines, chains_hold_many_keys_of_a_bucket)
{
	uint64_t keys[20];
	unsigned n = 0;
	struct lines l;

	cr_assert_eq(lines_init(&l, 64, 1), 0);
	for (uint64_t line = 0; n < 20; line++)
		if (lines_bucket(&l, line_key(1, line)) == lines_bucket(&l, line_key(1, 0)))
			keys[n++] = line_key(1, line);
	for (unsigned i = 0; i < n; i++)
		cr_assert_neq(insert(&l, keys[i]), LINE_NONE);
	/* from the middle, the head, the tail */
	take_out(&l, keys[10]);
	take_out(&l, keys[19]);
	take_out(&l, keys[0]);
	for (unsigned i = 0; i < n; i++)
		cr_assert_eq(find(&l, keys[i]) == LINE_NONE, i == 10 || i == 19 || i == 0, "key %u", i);
	lines_destroy(&l);
}

Test(lines, recovery_places_entries) /* lines_insert_at, lines_rebuild_free */
{
	struct lines l;

	cr_assert_eq(lines_init(&l, 100, 4), 0);
	for (uint32_t e = 3; e < 100; e += 7) {
		struct line_chain ch = lines_lock(&l, line_key(2, e * 10));

		lines_insert_at(&ch, e);
		lines_unlock(&ch);
	}
	lines_rebuild_free(&l);
	cr_assert_eq(l.nfree, 100 - 14);
	for (uint32_t e = 3; e < 100; e += 7)
		cr_assert_eq(find(&l, line_key(2, e * 10)), e);
	for (uint32_t e = 0; e < 100; e++) /* the rest, in ascending order */
		if (e % 7 != 3)
			cr_assert_eq(insert(&l, line_key(3, e)), e);
	cr_assert_eq(insert(&l, line_key(4, 0)), LINE_NONE);
	lines_destroy(&l);
}

struct hammer {
	struct lines *l;
	unsigned number;
};

#define ROUNDS 20000u

/* Own keys in shared buckets. */
static void *hammer(void *arg)
{
	struct hammer *h = arg;
	uint32_t state = h->number + 1;

	for (unsigned i = 0; i < ROUNDS; i++) {
		uint64_t line = (uint64_t)(state = state * 1664525u + 1013904223u) % 60,
			 key = line_key(h->number + 1, line);
		struct line_chain ch = lines_lock(h->l, key);
		uint32_t e = lines_find(&ch);

		if (e != LINE_NONE) {
			if (line_block(h->l, e, 0)->crc != (uint32_t)key)
				abort();
			lines_remove(&ch, e);
		} else {
			e = lines_insert(&ch);
			if (e == LINE_NONE)
				abort(); /* there is room for all */
			line_block(h->l, e, 0)->crc = (uint32_t)key;
		}
		lines_unlock(&ch);
	}
	return NULL;
}

Test(lines, many_threads)
{
	struct hammer h[4];
	pthread_t t[4];
	struct lines l;
	uint32_t used = 0;

	cr_assert_eq(lines_init(&l, 240, 1), 0);
	for (unsigned i = 0; i < 4; i++) {
		h[i] = (struct hammer){ .l = &l, .number = i };
		cr_assert_eq(pthread_create(&t[i], NULL, hammer, &h[i]), 0);
	}
	for (unsigned i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	for (unsigned i = 0; i < 4; i++)
		for (uint64_t line = 0; line < 60; line++)
			used += find(&l, line_key(i + 1, line)) != LINE_NONE;
	cr_assert_eq(l.nfree, 240 - used);
	lines_destroy(&l);
}

/* ---- looks without the lock ---- */

#define PEEK_LINES 64u
#define PEEK_OPS 100000u

struct shaker {
	struct lines l;
	_Atomic bool stop;
	_Atomic uint64_t seen, wrong, busy;
};

/* Lines come and go and change their slots. All slots of a line are the same at any moment, and tell the line. */
static void *shake(void *arg)
{
	struct shaker *s = arg;
	uint32_t state = 1;

	for (unsigned i = 0; i < PEEK_OPS || s->seen < PEEK_OPS; i++) {
		uint32_t line = (state = state * 1664525u + 1013904223u) >> 16 & (PEEK_LINES - 1);
		struct line_chain ch = lines_lock(&s->l, line_key(1, line));
		uint32_t e = lines_find(&ch);

		if (e != LINE_NONE && state >> 30 == 0) {
			lines_remove(&ch, e);
		} else {
			if (e == LINE_NONE)
				e = lines_insert(&ch);
			if (e == LINE_NONE)
				abort();
			for (unsigned b = 0; b < s->l.bpl; b++)
				__atomic_store_n(&line_block(&s->l, e, b)->slot, line << 24 | (i & 0xffffff),
						 __ATOMIC_RELAXED);
			line_set_masks(&s->l, e, (uint16_t)((1u << s->l.bpl) - 1), 0, 0);
		}
		lines_unlock(&ch);
	}
	s->stop = true;
	return NULL;
}

static void *peek(void *arg)
{
	struct shaker *s = arg;
	uint32_t state = 7;

	while (!s->stop) {
		uint32_t line = (state = state * 1664525u + 1013904223u) >> 16 & (PEEK_LINES - 1), first, last;
		struct line_peek p;
		uint16_t valid;

		if (!lines_peek(&s->l, line_key(1, line), &p)) {
			s->busy++;
			continue;
		}
		if (p.e == LINE_NONE)
			continue;
		valid = line_peek_valid(&s->l, &p);
		first = line_peek_slot(&s->l, &p, 0);
		last = line_peek_slot(&s->l, &p, s->l.bpl - 1);
		if (!line_peek_is_true(&p))
			continue;
		s->seen++;
		if (!valid || first != last || first >> 24 != line)
			s->wrong++;
	}
	return NULL;
}

Test(lines, looks_without_the_lock, .timeout = 60)
{
	for (uint32_t bpl = 1; bpl <= 16; bpl *= 16) {
		static struct shaker s;
		pthread_t t[3];

		memset(&s, 0, sizeof s);
		cr_assert_eq(lines_init(&s.l, PEEK_LINES, bpl), 0);
		cr_assert_eq(pthread_create(&t[0], NULL, shake, &s), 0);
		for (unsigned i = 1; i < 3; i++)
			cr_assert_eq(pthread_create(&t[i], NULL, peek, &s), 0);
		for (unsigned i = 0; i < 3; i++)
			pthread_join(t[i], NULL);
		cr_assert_eq(s.wrong, 0, "%llu of %llu looks saw what never was", (unsigned long long)s.wrong,
			     (unsigned long long)s.seen);
		lines_destroy(&s.l);
	}
}

Test(lines, a_look_fails_while_somebody_has_the_lock)
{
	struct line_peek p, before;
	struct line_chain ch;
	struct lines l;

	cr_assert_eq(lines_init(&l, 16, 1), 0);
	insert(&l, line_key(1, 3));
	cr_assert(lines_peek(&l, line_key(1, 3), &before));
	cr_assert_neq(before.e, LINE_NONE);
	cr_assert(line_peek_is_true(&before));
	ch = lines_lock(&l, line_key(1, 3));
	cr_assert_not(lines_peek(&l, line_key(1, 3), &p));
	cr_assert_not(line_peek_is_true(&before));
	lines_unlock(&ch);
	cr_assert_not(line_peek_is_true(&before), "it may have been changed");
	cr_assert(lines_peek(&l, line_key(1, 3), &p));
	cr_assert(lines_peek(&l, line_key(1, 4), &p) && p.e == LINE_NONE);
	lines_destroy(&l);
}
