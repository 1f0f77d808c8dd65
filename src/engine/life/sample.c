/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * sample.c - at load, blocks of the backing devices are read and compared with the checksums that the cache has of them
 * (P10): of witnesses (witness.c), and of clean blocks outside marked regions and unended discards, which are what
 * backing holds after any crash (P4). One that differs was written by somebody else, or the device is another one or an
 * older state of it.
 *
 * Read first, always: the witnesses. Then, as long as there is time: the first and last blocks of the device, where
 * file systems and partition tables note that they were used; some blocks spread over it; and all others in the order
 * of the device from some place on, neighbours in one piece. Of a small cache that is every block. There is less time
 * where the times and counts of the device say that nobody wrote there.
 */
#include "engine/durable/identity.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/life/life.h"

uint32_t sample_ns = 500000000; /* for all volumes together; a fifth, if there is no reason to doubt any of them */
#define MANY 16384u /* entries of a volume that are candidates; of more, so many at random */
#define SPREAD 48u
#define ENDS 32u /* blocks at either end of the device */
#define PIECE 64u /* blocks read at once */
#define DEPTH 16u /* pieces under way */

struct wanted {
	uint64_t block;
	uint32_t crc;
};

struct reader {
	struct sample *s;
	struct bdev_channel *ch;
	char *mem;
	uint64_t until;
};

static uint64_t next_random(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x;
}

/* ---- which ---- */

static int add_entry(struct sample *s, uint32_t e, uint64_t *seed)
{
	uint64_t at = s->seen++;

	if (at >= s->size) {
		at = next_random(seed) % s->seen;
		if (at < s->size)
			s->entry[at] = e;
		return 0;
	}
	if (!s->entry) {
		s->entry = malloc(s->size * sizeof s->entry[0]);
		if (!s->entry)
			return -ENOMEM;
	}
	s->entry[s->nentries++] = e;
	return 0;
}

static bool under_discard(const struct sample *s, uint64_t block)
{
	for (uint32_t i = 0; i < s->ndiscards; i++)
		if (s->discards[i].volume == s->v->id &&
		    block * CACHE_BLOCK - s->discards[i].offset < s->discards[i].length)
			return true;
	return false;
}

static uint16_t comparable(const struct sample *s, uint32_t e)
{
	const struct lines *l = &s->v->cache->lines;
	uint64_t first = line_key_line(lines_word(l, e) & LINE_KEY_MASK) << l->bpl_shift;
	uint16_t clean = line_valid(l, e) & (uint16_t)~line_dirty(l, e), out = 0;

	if (intent_is_marked(s->v, first))
		return 0;
	for (unsigned m = clean; m; m &= m - 1) {
		unsigned b = (unsigned)__builtin_ctz(m);

		if (!under_discard(s, first + b))
			out |= (uint16_t)(1u << b);
	}
	return out;
}

/* One pass over the table, for all volumes. */
static int collect_entries(struct cache *c, struct sample **of, uint64_t seed)
{
	struct lines *l = &c->lines;
	int rc = 0;

	for (uint32_t e = 0; e < l->n && !rc; e++) {
		uint64_t key = lines_word(l, e) & LINE_KEY_MASK;
		struct sample *s = key ? of[line_key_volume(key)] : NULL;

		if (s && comparable(s, e))
			rc = add_entry(s, e, &seed);
	}
	return rc;
}

static int by_block(const void *a, const void *b)
{
	const struct wanted *x = a, *y = b;

	return x->block < y->block ? -1 : x->block > y->block;
}

static uint32_t add_blocks(const struct sample *s, uint32_t e, struct wanted *w)
{
	const struct lines *l = &s->v->cache->lines;
	uint64_t line = line_key_line(lines_word(l, e) & LINE_KEY_MASK);
	uint32_t n = 0;

	for (unsigned m = comparable(s, e); m; m &= m - 1) {
		unsigned b = (unsigned)__builtin_ctz(m);

		w[n++] = (struct wanted){ (line << l->bpl_shift) + b,
					  line_block((struct lines *)(uintptr_t)l, e, b)->crc };
	}
	return n;
}

/* ---- reading ---- */

static void compare(struct reader *r, const struct wanted *w, uint32_t n, const char *mem)
{
	for (uint32_t i = 0; i < n; i++, r->s->looked_at++) {
		if (crc32c(mem + (size_t)i * CACHE_BLOCK, CACHE_BLOCK) == w[i].crc)
			continue;
		if (!r->s->differs)
			r->s->block = w[i].block;
		r->s->differs = true;
	}
}

/* Reads blocks in ascending order; stops at one that differs, and when the time is up, unless `all`. */
static void read_blocks(struct reader *r, const struct wanted *w, uint32_t n, bool all)
{
	const struct volume *v = r->s->v;

	for (uint32_t at = 0; at < n && !r->s->differs && (all || now_ns() < r->until);) {
		struct bdev_io io[DEPTH];
		struct iovec iov[DEPTH];
		uint32_t first[DEPTH], blocks[DEPTH], k = 0;

		for (; k < DEPTH && at < n; k++) {
			uint64_t bytes = 0;
			char *mem = r->mem + (size_t)k * PIECE * CACHE_BLOCK;

			first[k] = at;
			blocks[k] = 0;
			do {
				bytes += block_bytes(v, w[at].block);
				blocks[k]++;
				at++;
			} while (at < n && blocks[k] < PIECE && w[at].block == w[at - 1].block + 1);
			if (bytes % CACHE_BLOCK) /* the end of an odd size counts as filled up with zeros */
				memset(mem + bytes, 0, CACHE_BLOCK - bytes % CACHE_BLOCK);
			iov[k] = (struct iovec){ .iov_base = mem, .iov_len = bytes };
			io[k] = (struct bdev_io){ .type = BDEV_READ,
						  .offset = w[first[k]].block * CACHE_BLOCK,
						  .length = bytes,
						  .iov = &iov[k],
						  .iovcnt = 1 };
		}
		bdev_rw_wait(r->ch, io, k);
		for (uint32_t i = 0; i < k; i++)
			if (!io[i].result)
				compare(r, w + first[i], blocks[i], iov[i].iov_base);
	}
}

static void read_witnesses(struct reader *r)
{
	const struct known *k = &r->s->v->known;
	struct wanted w[JOURNAL_MAX_WITNESSES];
	uint32_t n = 0;

	for (uint32_t i = 0; i < ctr_get(k->nwitness); i++)
		if (k->witness[i].block < r->s->v->nblocks)
			w[n++] = (struct wanted){ k->witness[i].block, k->witness[i].crc };
	read_blocks(r, w, n, true);
}

/* Those of the ends that are cached, and some of the others. */
static void read_some(struct reader *r, const struct wanted *w, uint32_t n)
{
	const struct volume *v = r->s->v;
	struct lines *l = &v->cache->lines;
	struct wanted some[2 * ENDS + SPREAD + 2 * JOURNAL_MAX_BLOCKS];
	uint64_t last = v->nblocks > ENDS ? v->nblocks - ENDS : 0;
	uint32_t k = 0;

	for (int end = 0; end < 2; end++) {
		uint64_t from = end ? last : 0, to = end || v->nblocks < ENDS ? v->nblocks : ENDS;

		for (uint64_t line = from >> l->bpl_shift; line << l->bpl_shift < to; line++) {
			struct line_chain ch = lines_lock(l, line_key(v->id, line));
			uint32_t e = lines_find(&ch);

			if (e != LINE_NONE && k + JOURNAL_MAX_BLOCKS <= 2 * ENDS + 2 * JOURNAL_MAX_BLOCKS)
				k += add_blocks(r->s, e, some + k);
			lines_unlock(&ch);
		}
	}
	for (uint32_t i = 0; i < SPREAD && i < n; i++)
		some[k++] = w[(uint64_t)i * n / (n < SPREAD ? n : SPREAD)];
	qsort(some, k, sizeof some[0], by_block);
	read_blocks(r, some, k, false);
}

static int sample_one(struct sample *s, struct reader *r, uint64_t seed)
{
	struct wanted *w = malloc(((size_t)s->nentries * s->v->cache->lines.bpl + 1) * sizeof *w);
	uint32_t n = 0, from;

	r->s = s;
	r->ch = bdev_channel_open(s->v->bdev, DEPTH);
	if (!w || !r->ch) {
		free(w);
		bdev_channel_close(r->ch);
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < s->nentries; i++)
		n += add_blocks(s, s->entry[i], w + n);
	qsort(w, n, sizeof *w, by_block);
	read_witnesses(r);
	read_some(r, w, n);
	if (n) {
		from = (uint32_t)(next_random(&seed) % n);
		read_blocks(r, w + from, n - from, false);
		read_blocks(r, w, from, false);
	}
	bdev_channel_close(r->ch);
	free(w);
	return 0;
}

int sample_backings(struct cache *c, struct sample *s, unsigned n, uint64_t seed)
{
	struct sample *of[CACHE_MAX_VOLUMES + 1] = { 0 };
	struct reader r = { .mem = aligned_alloc(CACHE_BLOCK, DEPTH * PIECE * CACHE_BLOCK) };
	int rc = r.mem ? 0 : -ENOMEM;

	seed = (seed + 1) * UINT64_C(0x9e3779b97f4a7c15) | 1;
	for (unsigned i = 0; i < n; i++) {
		of[s[i].v->id] = &s[i];
		s[i].size = MANY / n > 64 ? MANY / n : 64;
	}
	if (!rc)
		rc = collect_entries(c, of, seed);
	r.until = now_ns();
	for (unsigned i = 0; i < n && !rc; i++) {
		r.until += (s[i].proven ? sample_ns / 5 : sample_ns) / n;
		rc = sample_one(&s[i], &r, seed);
	}
	for (unsigned i = 0; i < n; i++)
		free(s[i].entry);
	free(r.mem);
	return rc;
}
