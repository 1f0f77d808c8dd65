/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * lines.h - the line table: which lines of which volumes are cached, and in which slots their blocks lie.
 *
 * An *entry* describes one cached line. Its blocks (one for a 4 KiB line, up to 16) each have a slot of the data file
 * and a crc32c. Slots belong to blocks, not to lines: a block that is written again goes to another slot, whatever the
 * line size, so that what an earlier epoch refers to stays untouched (see epoch.h). A line is only the unit of indexing
 * and eviction.
 *
 * RAM per entry: key and state 8, hash chain 4, bucket head 2, and per block slot 4 + crc 4; entries of more than one
 * block have three 16-bit masks in addition. A 4 KiB line thus costs 22 bytes, a 64 KiB line 148.
 *
 * Locks: a chain and everything about the entries in it are guarded by the chain's stripe (lines_lock). Entries that
 * are in no chain are guarded by the free list's lock. key[] may be read without a lock as a hint (scans) and is
 * checked again under it.
 *
 * Hits in RAM look without the lock (lines_peek): a stripe's sequence number is odd while somebody has its lock, and
 * another one afterwards. What was read between two looks at the same even number is as if read under the lock. What is
 * read so (head, next, key, slots, the mask of valid blocks) is stored atomically.
 *
 * The state's 12 bits share the word of the key:
 *      63..59 policy   58..57 freq   56 cleaning   55 changed   54..52 fresh, dirty, valid of a one-block line
 *      51..40 volume   39..0 line
 */
#ifndef ENGINE_LINES_H
#define ENGINE_LINES_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "blkcache/journal.h"

#define LINE_NONE UINT32_MAX
#define LINE_BITS 40
#define LINE_KEY_MASK ((1ull << 52) - 1)

#define LINE_VALID0 (1ull << 52)
#define LINE_DIRTY0 (1ull << 53)
#define LINE_FRESH0 (1ull << 54)
#define LINE_CHANGED (1ull << 55) /* its record is owed to the open epoch */
#define LINE_CLEANING                                                                                                  \
	(1ull << 56) /* the cleaner is writing what is dirty; cleared by whoever changes the line meanwhile */
#define LINE_FREQ_SHIFT 57
#define LINE_FREQ_MASK (3ull << LINE_FREQ_SHIFT)
#define LINE_POLICY_SHIFT 59

struct lines_stripe {
	pthread_mutex_t lock;
	_Atomic uint64_t seq;
} __attribute__((aligned(64)));

struct lines {
	uint32_t n; /* entries */
	uint32_t bpl; /* blocks per line, 1..16 */
	uint32_t bpl_shift;
	uint32_t ngroups; /* of 16 buckets */
	uint32_t nstripes; /* power of two */
	_Atomic uint64_t *key;
	uint32_t *next; /* chain, or free list */
	uint32_t *head; /* ngroups * 16 */
	struct journal_block *blk; /* n * bpl */
	uint16_t (*mask)[3]; /* valid, dirty, fresh; NULL for one-block lines */
	struct lines_stripe *stripes;
	pthread_mutex_t free_lock;
	uint32_t free_head;
	_Atomic uint32_t nfree;
	uint64_t bytes; /* RAM of all the above */
};

/* A chain, locked. */
struct line_chain {
	struct lines *l;
	uint64_t key;
	uint32_t bucket;
	struct lines_stripe *stripe;
};

int lines_init(struct lines *l, uint32_t n, uint32_t bpl);
void lines_destroy(struct lines *l);
/* Bytes lines_init would take. */
uint64_t lines_bytes(uint32_t n, uint32_t bpl);

static inline uint64_t line_key(unsigned volume, uint64_t line)
{
	return (uint64_t)volume << LINE_BITS | line;
}
static inline unsigned line_key_volume(uint64_t key)
{
	return (key & LINE_KEY_MASK) >> LINE_BITS;
}
static inline uint64_t line_key_line(uint64_t key)
{
	return key & ((1ull << LINE_BITS) - 1);
}

/* 16 neighbouring lines share a cache line of bucket heads, and a stripe. */
static inline uint32_t lines_bucket(const struct lines *l, uint64_t key)
{
	uint64_t h = (key >> 4) * 0x9e3779b97f4a7c15ull;

	return (uint32_t)((h >> 32) * l->ngroups >> 32) << 4 | (key & 15);
}

static inline struct lines_stripe *lines_stripe(const struct lines *l, uint32_t bucket)
{
	return &l->stripes[(bucket >> 4) & (l->nstripes - 1)];
}

static inline struct line_chain lines_lock(struct lines *l, uint64_t key)
{
	struct line_chain ch = { .l = l, .key = key, .bucket = lines_bucket(l, key) };
	uint64_t seq;

	ch.stripe = lines_stripe(l, ch.bucket);
	pthread_mutex_lock(&ch.stripe->lock);
	seq = atomic_load_explicit(&ch.stripe->seq, memory_order_relaxed);
	atomic_store_explicit(&ch.stripe->seq, seq + 1, memory_order_relaxed);
	atomic_thread_fence(memory_order_release); /* odd before anything changes */
	return ch;
}
static inline void lines_unlock(struct line_chain *ch)
{
	uint64_t seq = atomic_load_explicit(&ch->stripe->seq, memory_order_relaxed);

	atomic_store_explicit(&ch->stripe->seq, seq + 1, memory_order_release);
	pthread_mutex_unlock(&ch->stripe->lock);
}

static inline uint64_t lines_word(const struct lines *l, uint32_t e)
{
	return atomic_load_explicit(&l->key[e], memory_order_relaxed);
}
static inline void lines_set_word(struct lines *l, uint32_t e, uint64_t w)
{
	atomic_store_explicit(&l->key[e], w, memory_order_relaxed);
}

/* Starts loading what a look at an entry needs into the processor's caches. Any thread, no lock. */
static inline void lines_prefetch_entry(const struct lines *l, uint32_t e)
{
	__builtin_prefetch(&l->key[e], 1);
	__builtin_prefetch(&l->blk[(size_t)e * l->bpl], 1);
	if (l->mask)
		__builtin_prefetch(&l->mask[e], 1);
}

/* The same for all lines of n blocks that will be looked up. Mostly a line is the first of its chain; that may change
 * meanwhile. */
static inline void lines_prefetch(const struct lines *l, unsigned volume, uint64_t first, unsigned n)
{
	uint64_t line = first >> l->bpl_shift, last = (first + n - 1) >> l->bpl_shift;

	for (; line <= last; line++) {
		uint32_t bucket = lines_bucket(l, line_key(volume, line));
		uint32_t e = __atomic_load_n(&l->head[bucket], __ATOMIC_RELAXED);

		__builtin_prefetch(lines_stripe(l, bucket), 1);
		if (e != LINE_NONE)
			lines_prefetch_entry(l, e);
	}
}

/* The entry of the chain's key, or LINE_NONE. */
static inline uint32_t lines_find(const struct line_chain *ch)
{
	uint32_t e = ch->l->head[ch->bucket];

	while (e != LINE_NONE && (lines_word(ch->l, e) & LINE_KEY_MASK) != ch->key)
		e = ch->l->next[e];
	return e;
}

/* A look without the lock. */
struct line_peek {
	const struct lines_stripe *stripe;
	uint64_t seq;
	uint32_t e; /* the key's entry, or LINE_NONE */
	uint64_t word; /* its word */
};

#define PEEK_STEPS 64 /* of a chain; while it changes, it might lead around in circles */

/* False: somebody has the lock. */
static inline bool lines_peek(const struct lines *l, uint64_t key, struct line_peek *p)
{
	uint32_t bucket = lines_bucket(l, key), e;

	p->stripe = lines_stripe(l, bucket);
	p->e = LINE_NONE;
	p->seq = atomic_load_explicit(&p->stripe->seq, memory_order_acquire);
	if (p->seq & 1)
		return false;
	e = __atomic_load_n(&l->head[bucket], __ATOMIC_ACQUIRE);
	for (unsigned steps = 0; e != LINE_NONE && steps < PEEK_STEPS; steps++) {
		p->word = atomic_load_explicit(&l->key[e], memory_order_acquire);
		if ((p->word & LINE_KEY_MASK) == key) {
			p->e = e;
			break;
		}
		e = __atomic_load_n(&l->next[e], __ATOMIC_ACQUIRE);
	}
	return true;
}

/* Its blocks: which are valid, and their slots. Anything, if it is not true any more. */
static inline uint16_t line_peek_valid(const struct lines *l, const struct line_peek *p)
{
	return l->mask ? __atomic_load_n(&l->mask[p->e][0], __ATOMIC_ACQUIRE) : (p->word & LINE_VALID0) != 0;
}
static inline uint32_t line_peek_slot(const struct lines *l, const struct line_peek *p, unsigned b)
{
	return __atomic_load_n(&l->blk[((uint64_t)p->e << l->bpl_shift) + b].slot, __ATOMIC_ACQUIRE);
}

/* All that was seen since lines_peek was true at one moment, when it was seen. All loads before are acquiring ones, so
 * this one comes last. */
static inline bool line_peek_is_true(const struct line_peek *p)
{
	return atomic_load_explicit(&p->stripe->seq, memory_order_relaxed) == p->seq;
}

/* Takes a free entry and links it under the chain's key, with nothing valid. LINE_NONE if none is free. */
uint32_t lines_insert(struct line_chain *ch);
/* Recovery, before anything else runs: links entry e, which must not be in use. */
void lines_insert_at(struct line_chain *ch, uint32_t e);
/* Recovery: makes the free list anew of all entries that are not linked, in ascending order. */
void lines_rebuild_free(struct lines *l);
/* Unlinks and frees. The CHANGED bit stays with the entry. */
void lines_remove(struct line_chain *ch, uint32_t e);

/* Set bits of a mask; in line, as the baseline instruction set has no instruction for it and a library call costs more.
 */
static inline unsigned mask_count(uint16_t m)
{
	unsigned x = m;

	if (x < 2)
		return x;
	x -= x >> 1 & 0x5555;
	x = (x & 0x3333) + (x >> 2 & 0x3333);
	x = (x + (x >> 4)) & 0x0f0f;
	return (x + (x >> 8)) & 0x1f;
}

static inline uint16_t line_valid(const struct lines *l, uint32_t e)
{
	return l->mask ? l->mask[e][0] : (lines_word(l, e) & LINE_VALID0) != 0;
}
static inline uint16_t line_dirty(const struct lines *l, uint32_t e)
{
	return l->mask ? l->mask[e][1] : (lines_word(l, e) & LINE_DIRTY0) != 0;
}
static inline uint16_t line_fresh(const struct lines *l, uint32_t e)
{
	return l->mask ? l->mask[e][2] : (lines_word(l, e) & LINE_FRESH0) != 0;
}
static inline struct journal_block *line_block(const struct lines *l, uint32_t e, unsigned b)
{
	return &l->blk[((uint64_t)e << l->bpl_shift) + b];
}

static inline void line_set_masks(struct lines *l, uint32_t e, uint16_t valid, uint16_t dirty, uint16_t fresh)
{
	if (l->mask) {
		__atomic_store_n(&l->mask[e][0], valid, __ATOMIC_RELAXED);
		l->mask[e][1] = dirty;
		l->mask[e][2] = fresh;
		/* a scan without the lock sees from the word alone whether the line is worth a look */
		lines_set_word(l, e,
			       (lines_word(l, e) & ~(LINE_VALID0 | LINE_DIRTY0)) | (valid ? LINE_VALID0 : 0) |
				       (dirty ? LINE_DIRTY0 : 0));
	} else {
		lines_set_word(l, e,
			       (lines_word(l, e) & ~(LINE_VALID0 | LINE_DIRTY0 | LINE_FRESH0)) |
				       (valid ? LINE_VALID0 : 0) | (dirty ? LINE_DIRTY0 : 0) |
				       (fresh ? LINE_FRESH0 : 0));
	}
}

#endif
