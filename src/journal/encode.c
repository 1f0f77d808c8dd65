/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * encode.c - the bytes of epoch and snapshot rows. Pure functions: no lock, any thread. Small rows are in rows.c.
 *
 * Everything is little-endian and unaligned. bpl = blocks per line (1..16), fixed for a journal.
 *
 * Epoch row (rowid = id):
 *
 *      0  u32 magic "BCE1"
 *      4  u32 meta_len: bytes up to and including the crc; inline data follows
 *      8  u64 id                     (= rowid)
 *     16  u64 durable_upto
 *     24  u32 nlines   28 u32 ndiscards   32 u32 ninlines   36 u32 bpl
 *     40  nlines records
 *         ndiscards of {u64 id, u64 offset, u64 length, u16 volume, u16 done}
 *         ninlines of {u32 slot, u32 crc32c of the 4096 bytes}
 *         u32 crc32c of all before
 *     meta_len  ninlines * 4096 bytes of data
 *
 * The crc does not cover the data, because each block of it has its own: a flush computes no checksum twice, and
 * folding and recovery read the front of a row without dragging its data through the page cache.
 *
 * Record, bpl = 1 (20 bytes, 12 if the block is not valid or the entry is free):
 *
 *     u32 entry
 *     u64 where: line (bits 0-47), volume (48-59), valid (60), dirty (61), fresh (62)
 *     if valid: u32 slot, u32 crc
 *
 * Record, bpl > 1:
 *
 *     u32 entry
 *     u64 where: line, volume
 *     u16 valid, u16 dirty, u16 fresh
 *     per valid block, lowest first: u32 slot, u32 crc
 *
 * A free entry has where = 0 and no bits.
 *
 * Snapshot row k (rowid = k): entries [k*R, (k+1)*R), R = as many as fit SNAPSHOT_BODY_MAX. All rows have the same
 * size, so that changing one overwrites it where it lies: one page in the WAL, nothing allocated. The last row's
 * surplus entries are free.
 *
 *      0  u32 magic "BCS1"
 *      4  u32 k
 *      8  R entries of
 *             u64 where (as above, without fresh)
 *             if bpl > 1: u16 valid, u16 dirty
 *             bpl * {u32 slot, u32 crc}, 0 if not valid
 *         u32 crc32c of all before
 */
#include "journal/encode.h"

#include <errno.h>
#include <stdlib.h>

#include "util/crc.h"

#define EPOCH_MAGIC 0x31454342u
#define SNAPSHOT_MAGIC 0x31534342u

#define WHERE_VALID (1ull << 60)
#define WHERE_DIRTY (1ull << 61)
#define WHERE_FRESH (1ull << 62)

const char *line_check(const struct journal_geometry *geo, const struct journal_line *l)
{
	uint32_t all = (1u << geo->blocks_per_line) - 1;

	if (l->entry >= geo->nlines)
		return "entry beyond the line table";
	if (!l->volume)
		return NULL;
	if (l->volume > JOURNAL_MAX_VOLUME)
		return "volume id out of range";
	if (l->line > JOURNAL_MAX_LINE)
		return "line number out of range";
	if (l->valid & ~all)
		return "valid bits beyond the line";
	if ((l->dirty | l->fresh) & ~l->valid)
		return "dirty or fresh block that is not valid";
	for (uint32_t m = l->valid; m; m &= m - 1) {
		if (l->blk[__builtin_ctz(m)].slot >= geo->nslots)
			return "slot beyond the data file";
	}
	return NULL;
}

static inline uint64_t where_pack(unsigned bpl, const struct journal_line *l, bool fresh)
{
	uint64_t w = l->line | (uint64_t)l->volume << 48;

	if (bpl == 1) {
		w |= l->valid ? WHERE_VALID : 0;
		w |= l->dirty ? WHERE_DIRTY : 0;
		w |= fresh && l->fresh ? WHERE_FRESH : 0;
	}
	return w;
}

static inline void where_unpack(unsigned bpl, uint64_t w, struct journal_line *l)
{
	l->line = w & JOURNAL_MAX_LINE;
	l->volume = w >> 48 & JOURNAL_MAX_VOLUME;
	if (bpl == 1) {
		l->valid = !!(w & WHERE_VALID);
		l->dirty = !!(w & WHERE_DIRTY);
		l->fresh = !!(w & WHERE_FRESH);
	}
}

/* ---- epochs ---- */

static size_t record_size(unsigned bpl, const struct journal_line *l)
{
	return 12u + (bpl > 1 ? 6u : 0u) + (l->volume ? 8u * (unsigned)__builtin_popcount(l->valid) : 0u);
}

static const struct journal_line *line_at(const struct journal_epoch *e, unsigned bpl, uint32_t i)
{
	return (const void *)((const uint8_t *)e->lines + i * journal_line_stride(bpl));
}

int epoch_measure(const struct journal_geometry *geo, const struct journal_epoch *e, size_t *meta, size_t *body)
{
	unsigned bpl = geo->blocks_per_line;
	size_t n = EPOCH_HEADER + 4;

	if (e->durable_upto > e->id)
		return -EINVAL;
	for (uint32_t i = 0; i < e->nlines; i++) {
		const struct journal_line *l = line_at(e, bpl, i);

		if (line_check(geo, l))
			return -EINVAL;
		n += record_size(bpl, l);
	}
	for (uint32_t i = 0; i < e->ndiscards; i++) {
		if (!e->discards[i].volume || e->discards[i].volume > JOURNAL_MAX_VOLUME ||
		    e->discards[i].id > INT64_MAX)
			return -EINVAL;
	}
	for (uint32_t i = 0; i < e->ninlines; i++) {
		if (e->inlines[i].slot >= geo->nslots)
			return -EINVAL;
	}
	n += (size_t)e->ndiscards * EPOCH_DISCARD + (size_t)e->ninlines * EPOCH_INLINE;
	*meta = n;
	*body = n + (size_t)e->ninlines * JOURNAL_PAGE;
	return *body > JOURNAL_BODY_MAX ? -E2BIG : 0;
}

static uint8_t *record_encode(unsigned bpl, const struct journal_line *l, uint8_t *p)
{
	p = put32(p, l->entry);
	if (!l->volume) {
		size_t n = bpl > 1 ? 14 : 8;

		memset(p, 0, n);
		return p + n;
	}
	p = put64(p, where_pack(bpl, l, true));
	if (bpl > 1) {
		p = put16(p, l->valid);
		p = put16(p, l->dirty);
		p = put16(p, l->fresh);
	}
	for (uint32_t m = l->valid; m; m &= m - 1) {
		const struct journal_block *b = &l->blk[__builtin_ctz(m)];

		p = put32(p, b->slot);
		p = put32(p, b->crc);
	}
	return p;
}

void epoch_encode(const struct journal_geometry *geo, const struct journal_epoch *e, size_t meta, uint8_t *out)
{
	unsigned bpl = geo->blocks_per_line;
	uint8_t *p = out;

	p = put32(p, EPOCH_MAGIC);
	p = put32(p, (uint32_t)meta);
	p = put64(p, e->id);
	p = put64(p, e->durable_upto);
	p = put32(p, e->nlines);
	p = put32(p, e->ndiscards);
	p = put32(p, e->ninlines);
	p = put32(p, bpl);
	for (uint32_t i = 0; i < e->nlines; i++)
		p = record_encode(bpl, line_at(e, bpl, i), p);
	for (uint32_t i = 0; i < e->ndiscards; i++, p += EPOCH_DISCARD)
		discard_encode(&e->discards[i], p);
	for (uint32_t i = 0; i < e->ninlines; i++) {
		p = put32(p, e->inlines[i].slot);
		p = put32(p, e->inlines[i].crc);
	}
	p = put32(p, crc32c(out, meta - 4));
	for (uint32_t i = 0; i < e->ninlines; i++, p += JOURNAL_PAGE)
		memcpy(p, e->inlines[i].data, JOURNAL_PAGE);
}

size_t epoch_meta_len(const uint8_t *h, size_t body)
{
	uint64_t meta = get32(h + 4), data = (uint64_t)get32(h + 32) * JOURNAL_PAGE;

	if (get32(h) != EPOCH_MAGIC || meta < EPOCH_HEADER + 4 || meta + data != body)
		return 0;
	return meta;
}

/* Decodes with bounds; NULL if the record does not fit before `end`. */
static const uint8_t *record_decode_checked(unsigned bpl, const uint8_t *p, const uint8_t *end, struct journal_line *l)
{
	size_t fixed = bpl > 1 ? 18 : 12;

	if ((size_t)(end - p) < fixed)
		return NULL;
	l->entry = get32(p);
	l->reserved = 0;
	where_unpack(bpl, get64(p + 4), l);
	if (bpl > 1) {
		l->valid = get16(p + 12);
		l->dirty = get16(p + 14);
		l->fresh = get16(p + 16);
	}
	p += fixed;
	memset(l->blk, 0, bpl * sizeof(l->blk[0]));
	if ((!l->volume && l->valid) || (uint32_t)l->valid >> bpl ||
	    (size_t)(end - p) < 8u * (unsigned)__builtin_popcount(l->valid))
		return NULL;
	for (uint32_t m = l->valid; m; m &= m - 1, p += 8) {
		struct journal_block *b = &l->blk[__builtin_ctz(m)];

		b->slot = get32(p);
		b->crc = get32(p + 4);
	}
	return p;
}

const uint8_t *record_decode(unsigned bpl, const uint8_t *p, struct journal_line *l)
{
	return record_decode_checked(bpl, p, p + 18 + 8 * JOURNAL_MAX_BLOCKS, l);
}

void discard_encode(const struct journal_discard *d, uint8_t *p)
{
	p = put64(p, d->id);
	p = put64(p, d->offset);
	p = put64(p, d->length);
	p = put16(p, d->volume);
	put16(p, d->done);
}

void discard_decode(const uint8_t *p, struct journal_discard *d)
{
	*d = (struct journal_discard){ .id = get64(p),
				       .offset = get64(p + 8),
				       .length = get64(p + 16),
				       .volume = get16(p + 24),
				       .done = get16(p + 26) != 0 };
}

const char *epoch_decode(const struct journal_geometry *geo, uint64_t rowid, const uint8_t *p, size_t len,
			 struct epoch_view *ep)
{
	unsigned bpl = geo->blocks_per_line;
	union line_buf lb;
	const uint8_t *end, *q;
	uint64_t tail;

	if (len < EPOCH_HEADER + 4 || get32(p) != EPOCH_MAGIC || get32(p + 4) != len)
		return "not an epoch";
	if (crc32c(p, len - 4) != get32(p + len - 4))
		return "checksum mismatch";
	*ep = (struct epoch_view){ .id = get64(p + 8),
				   .durable_upto = get64(p + 16),
				   .nlines = get32(p + 24),
				   .ndiscards = get32(p + 28),
				   .ninlines = get32(p + 32),
				   .meta_len = (uint32_t)len,
				   .records = p + EPOCH_HEADER };
	if (ep->id != rowid || ep->durable_upto > ep->id || get32(p + 36) != bpl)
		return "header out of range";
	tail = (uint64_t)ep->ndiscards * EPOCH_DISCARD + (uint64_t)ep->ninlines * EPOCH_INLINE + 4;
	if (tail > len - EPOCH_HEADER)
		return "counts out of range";
	end = p + len - tail;
	q = ep->records;
	for (uint32_t i = 0; i < ep->nlines; i++) {
		q = record_decode_checked(bpl, q, end, &lb.line);
		if (!q)
			return "record out of range";
		if (line_check(geo, &lb.line))
			return line_check(geo, &lb.line);
	}
	if (q != end)
		return "counts out of range";
	ep->discards = end;
	ep->inlines = end + (size_t)ep->ndiscards * EPOCH_DISCARD;
	for (uint32_t i = 0; i < ep->ninlines; i++) {
		if (get32(ep->inlines + (size_t)i * EPOCH_INLINE) >= geo->nslots)
			return "slot of inline data beyond the data file";
	}
	return NULL;
}

int record_list_add(struct record_list *rl, const struct epoch_view *ep, unsigned bpl)
{
	const uint8_t *p = ep->records;
	union line_buf lb;

	if (rl->n + ep->nlines > UINT32_MAX)
		return -ENOMEM;
	if (rl->n + ep->nlines > rl->size) {
		size_t size = (rl->n + ep->nlines) * 2;
		void *mem = realloc(rl->ref, size * sizeof(rl->ref[0]));

		if (!mem)
			return -ENOMEM;
		rl->ref = mem;
		rl->size = size;
	}
	for (uint32_t i = 0; i < ep->nlines; i++) {
		struct record_ref *r = &rl->ref[rl->n];

		r->p = p;
		r->seq = (uint32_t)rl->n++;
		p = record_decode(bpl, p, &lb.line);
		r->entry = lb.line.entry;
	}
	return 0;
}

static int record_ref_cmp(const void *pa, const void *pb)
{
	const struct record_ref *a = pa, *b = pb;

	if (a->entry != b->entry)
		return a->entry < b->entry ? -1 : 1;
	return a->seq < b->seq ? -1 : a->seq > b->seq;
}

void record_list_sort(struct record_list *rl)
{
	if (rl->n)
		qsort(rl->ref, rl->n, sizeof(rl->ref[0]), record_ref_cmp);
}

/* ---- snapshot rows ---- */

unsigned snapshot_stride(unsigned bpl)
{
	return 8u + (bpl > 1 ? 4u : 0u) + 8u * bpl;
}

unsigned snapshot_entries(unsigned bpl)
{
	return (SNAPSHOT_BODY_MAX - 12) / snapshot_stride(bpl);
}

unsigned snapshot_size(unsigned bpl)
{
	return 12 + snapshot_entries(bpl) * snapshot_stride(bpl);
}

uint64_t snapshot_rows(const struct journal_geometry *geo)
{
	unsigned r = snapshot_entries(geo->blocks_per_line);

	return ((uint64_t)geo->nlines + r - 1) / r;
}

void snapshot_init(unsigned bpl, uint32_t row, uint8_t *p)
{
	memset(p, 0, snapshot_size(bpl));
	put32(p, SNAPSHOT_MAGIC);
	put32(p + 4, row);
	snapshot_seal(bpl, p);
}

void snapshot_seal(unsigned bpl, uint8_t *p)
{
	size_t n = snapshot_size(bpl) - 4;

	put32(p + n, crc32c(p, n));
}

const char *snapshot_verify(unsigned bpl, uint64_t row, const uint8_t *p, size_t len)
{
	if (!p || len != snapshot_size(bpl) || get32(p) != SNAPSHOT_MAGIC)
		return "not a snapshot row";
	if (crc32c(p, len - 4) != get32(p + len - 4))
		return "checksum mismatch";
	if (get32(p + 4) != row)
		return "row number mismatch";
	return NULL;
}

void snapshot_put(unsigned bpl, uint8_t *p, unsigned index, const struct journal_line *l)
{
	unsigned stride = snapshot_stride(bpl);
	uint8_t *q = p + 8 + (size_t)index * stride;

	memset(q, 0, stride);
	if (!l->volume)
		return;
	q = put64(q, where_pack(bpl, l, false));
	if (bpl > 1) {
		q = put16(q, l->valid);
		q = put16(q, l->dirty);
	}
	for (uint32_t m = l->valid; m; m &= m - 1) {
		unsigned b = (unsigned)__builtin_ctz(m);

		put32(q + b * 8, l->blk[b].slot);
		put32(q + b * 8 + 4, l->blk[b].crc);
	}
}

bool snapshot_get(unsigned bpl, const uint8_t *p, unsigned index, struct journal_line *l)
{
	const uint8_t *q = p + 8 + (size_t)index * snapshot_stride(bpl);
	uint64_t w = get64(q);

	if (!w)
		return false;
	where_unpack(bpl, w, l);
	q += 8;
	if (bpl > 1) {
		l->valid = get16(q);
		l->dirty = get16(q + 2);
		q += 4;
	}
	l->fresh = 0;
	l->reserved = 0;
	for (unsigned b = 0; b < bpl; b++, q += 8) {
		l->blk[b].slot = get32(q);
		l->blk[b].crc = get32(q + 4);
	}
	return true;
}
