/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * encode.h - the bytes of journal rows. Pure functions over memory: no lock, any thread. The formats are described in
 * encode.c.
 */
#ifndef JOURNAL_ENCODE_H
#define JOURNAL_ENCODE_H

#include <endian.h>
#include <string.h>

#include "blkcache/journal.h"

#define JOURNAL_PAGE 4096u
#define JOURNAL_MAX_VOLUME 4095u
#define JOURNAL_MAX_LINE ((1ull << 48) - 1)
/* A row (INTEGER PRIMARY KEY, BLOB) stays on one 4096-byte page up to 4061 bytes of payload, 4 of which are SQLite's
 * record header. */
#define SNAPSHOT_BODY_MAX 4056u
/* A row of the ring, see ring.c: two pages, room for one block and its records. */
#define RING_ROW 8192u
#define RING_HEAD 32u
#define RING_ROOM (RING_ROW - 2 * RING_HEAD) /* bytes of an epoch */
#define RING_META 512u /* of its front: kept in memory, so folding reads no rows */
#define RING_SUFFIX "-ring" /* of the file's name, after the journal's */
#define JOURNAL_BODY_MAX 900000000u /* SQLite's limit for a blob is 10^9 */

static inline uint16_t get16(const uint8_t *p)
{
	uint16_t v;

	memcpy(&v, p, sizeof(v));
	return le16toh(v);
}

static inline uint32_t get32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return le32toh(v);
}

static inline uint64_t get64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return le64toh(v);
}

static inline uint8_t *put16(uint8_t *p, uint16_t v)
{
	v = htole16(v);
	memcpy(p, &v, sizeof(v));
	return p + sizeof(v);
}

static inline uint8_t *put32(uint8_t *p, uint32_t v)
{
	v = htole32(v);
	memcpy(p, &v, sizeof(v));
	return p + sizeof(v);
}

static inline uint8_t *put64(uint8_t *p, uint64_t v)
{
	v = htole64(v);
	memcpy(p, &v, sizeof(v));
	return p + sizeof(v);
}

/* One journal_line with room for the largest line. */
union line_buf {
	struct journal_line line;
	uint8_t room[sizeof(struct journal_line) + JOURNAL_MAX_BLOCKS * sizeof(struct journal_block)];
};

/* ---- epochs ---- */

struct epoch_view {
	uint64_t id, durable_upto;
	uint32_t nlines, ndiscards, ninlines;
	uint32_t meta_len;
	const uint8_t *records, *discards, *inlines; /* encoded */
};

#define EPOCH_HEADER 40u
#define EPOCH_DISCARD 28u
#define EPOCH_INLINE 8u

/* 0, or -EINVAL if the epoch breaks a rule that would make its row unreadable, -E2BIG. Fills *meta and *body with the
 * encoded sizes. */
int epoch_measure(const struct journal_geometry *geo, const struct journal_epoch *e, size_t *meta, size_t *body);
void epoch_encode(const struct journal_geometry *geo, const struct journal_epoch *e, size_t meta, uint8_t *out);
/* Size of the part before the inline data, from the first EPOCH_HEADER bytes; 0 if they make no sense for a row of
 * `body` bytes. */
size_t epoch_meta_len(const uint8_t *header, size_t body);
/* p: meta_len bytes. NULL, or why the row cannot be used. Every record is decoded once here, so that later decoding
 * cannot fail. */
const char *epoch_decode(const struct journal_geometry *geo, uint64_t rowid, const uint8_t *p, size_t len,
			 struct epoch_view *ep);
/* Decodes the record at p of a row that passed epoch_decode(); returns the next record. */
const uint8_t *record_decode(unsigned bpl, const uint8_t *p, struct journal_line *l);
void discard_decode(const uint8_t *p, struct journal_discard *d);
void discard_encode(const struct journal_discard *d, uint8_t *p); /* EPOCH_DISCARD bytes */

/* Records of many epochs, to be ordered by entry. `seq` ascends with epochs and, within one, with the order of its
 * records. */
struct record_ref {
	uint32_t entry;
	uint32_t seq;
	const uint8_t *p;
};

struct record_list {
	struct record_ref *ref;
	size_t n, size;
};

int record_list_add(struct record_list *rl, const struct epoch_view *ep, unsigned bpl); /* 0 or -ENOMEM */
void record_list_sort(struct record_list *rl);

/* ---- snapshot rows ---- */

unsigned snapshot_stride(unsigned bpl); /* bytes per entry */
unsigned snapshot_entries(unsigned bpl); /* entries per row */
unsigned snapshot_size(unsigned bpl); /* bytes of a row */
uint64_t snapshot_rows(const struct journal_geometry *geo);
void snapshot_init(unsigned bpl, uint32_t row, uint8_t *p);
void snapshot_seal(unsigned bpl, uint8_t *p); /* after changes: new crc */
const char *snapshot_verify(unsigned bpl, uint64_t row, const uint8_t *p, size_t len); /* NULL or what is wrong */
void snapshot_put(unsigned bpl, uint8_t *p, unsigned index, const struct journal_line *l);
/* False: the entry is free. l->entry is left alone. */
bool snapshot_get(unsigned bpl, const uint8_t *p, unsigned index, struct journal_line *l);

/* ---- ring rows ---- */

unsigned ring_rows(const struct journal_geometry *geo);
/* row: RING_ROW bytes, len of them from RING_HEAD on filled in by the caller. */
void ring_encode(uint32_t k, uint64_t id, uint64_t prev, size_t len, uint8_t *row);

/* ---- small rows ---- */

#define GEOMETRY_SIZE 48u
#define DISCARD_SIZE (4u + EPOCH_DISCARD + 4u)

void geometry_encode(const struct journal_geometry *geo, uint8_t *p);
const char *geometry_decode(const uint8_t *p, size_t len, struct journal_geometry *geo);
const char *geometry_check(const struct journal_geometry *geo); /* NULL or what is wrong */
void discard_row_encode(const struct journal_discard *d, uint8_t *p);
const char *discard_row_decode(uint64_t rowid, const uint8_t *p, size_t len, struct journal_discard *d);
size_t volume_size_encoded(const struct journal_volume *v);
void volume_encode(const struct journal_volume *v, uint8_t *p);
/* *backing: malloc'ed, v->backing points to it. NULL, or what is wrong with the row; with a good row *backing is NULL
 * if there is no memory for it. */
const char *volume_decode(uint64_t rowid, const uint8_t *p, size_t len, struct journal_volume *v, char **backing);
/* Room for what identity_decode() makes v point to. */
struct identity_mem {
	char label[BDEV_LABEL_MAX];
	struct journal_witness witness[JOURNAL_MAX_WITNESSES];
};
/* v->label is not NULL. row_crc: volume_row_crc() of the row it belongs to. */
size_t identity_size_encoded(const struct journal_volume *v);
void identity_encode(const struct journal_volume *v, uint32_t row_crc, uint8_t *p);
/* p NULL, or of another row: leaves v as it is. */
const char *identity_decode(const uint8_t *p, size_t len, uint32_t row_crc, struct journal_volume *v,
			    struct identity_mem *mem);
static inline uint32_t volume_row_crc(const uint8_t *p, size_t len)
{
	return len < 4 ? 0 : get32(p + len - 4);
}
uint32_t setting_crc(const char *key, const char *value);
uint32_t mark_crc(uint64_t key);
#define STATE_VALUES 6u
uint32_t state_crc(const uint64_t *values, unsigned n); /* n <= STATE_VALUES */

/* Rules every entry in use must keep, from disk or from a caller. NULL or what is wrong. */
const char *line_check(const struct journal_geometry *geo, const struct journal_line *l);

#endif
