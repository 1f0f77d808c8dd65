/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * rows.c - the bytes of the journal's small rows. Pure functions: no lock, any thread.
 *
 * Little-endian, unaligned; `crc` is a u32 crc32c of all bytes before it.
 *
 *   geometry:  u32 magic "BCG1", uuid[16], u64 size_bytes, u32 line_size, u32 blocks_per_line, u32 nlines, u32 nslots,
 *              crc
 *
 *   discard:   u32 magic "BCD1", then as in an epoch row (encode.c), crc; rowid = id
 *
 *   volume:    u32 magic "BCV1", u16 id (= rowid), u16 in_use, mode[4], u64 size, u64 id[2], i64 mtime_ns,
 *              u32 length of name, u32 length of backing, name, backing (both without NUL), crc
 *
 *   identity:  u32 magic "BCI1", u32 the crc at the end of the volume's row, i64 noted_ns, u32 length of label,
 *              u32 number of witnesses, label, witnesses of {u64 block, u32 crc}, crc; rowid = id of the volume
 *
 * An identity that does not name the volume's row as it is was written beside another one (by a release that does not
 * know of it, say): it counts as not there, since whoever wrote the row may have written to the backing device.
 *
 * Settings, marks and the state row are plain columns with a crc column over them: a flipped bit in a mark would make
 * stale lines look good.
 */
#include <errno.h>
#include <stdlib.h>

#include "journal/encode.h"
#include "util/crc.h"

#define GEOMETRY_MAGIC 0x31474342u
#define DISCARD_MAGIC 0x31444342u
#define VOLUME_MAGIC 0x31564342u
#define VOLUME_FIXED 52u
#define IDENTITY_MAGIC 0x31494342u
#define IDENTITY_FIXED 24u
#define IDENTITY_WITNESS 12u

static uint8_t *put_bytes(uint8_t *p, const void *from, size_t n)
{
	memcpy(p, from, n);
	return p + n;
}

static bool crc_ok(const uint8_t *p, size_t len)
{
	return crc32c(p, len - 4) == get32(p + len - 4);
}

const char *geometry_check(const struct journal_geometry *geo)
{
	if (geo->blocks_per_line < 1 || geo->blocks_per_line > JOURNAL_MAX_BLOCKS)
		return "blocks per line out of range";
	if (geo->line_size != geo->blocks_per_line * JOURNAL_PAGE)
		return "line size does not fit the blocks per line";
	if (!geo->nlines || !geo->nslots || geo->size_bytes != (uint64_t)geo->nslots * JOURNAL_PAGE)
		return "size does not fit the number of slots";
	return NULL;
}

void geometry_encode(const struct journal_geometry *geo, uint8_t *out)
{
	uint8_t *p = out;

	p = put32(p, GEOMETRY_MAGIC);
	p = put_bytes(p, geo->uuid, 16);
	p = put64(p, geo->size_bytes);
	p = put32(p, geo->line_size);
	p = put32(p, geo->blocks_per_line);
	p = put32(p, geo->nlines);
	p = put32(p, geo->nslots);
	put32(p, crc32c(out, (size_t)(p - out)));
}

const char *geometry_decode(const uint8_t *p, size_t len, struct journal_geometry *geo)
{
	if (!p || len != GEOMETRY_SIZE || get32(p) != GEOMETRY_MAGIC || !crc_ok(p, len))
		return "checksum mismatch";
	memset(geo, 0, sizeof(*geo));
	memcpy(geo->uuid, p + 4, 16);
	geo->size_bytes = get64(p + 20);
	geo->line_size = get32(p + 28);
	geo->blocks_per_line = get32(p + 32);
	geo->nlines = get32(p + 36);
	geo->nslots = get32(p + 40);
	return geometry_check(geo);
}

void discard_row_encode(const struct journal_discard *d, uint8_t *p)
{
	put32(p, DISCARD_MAGIC);
	discard_encode(d, p + 4);
	put32(p + 4 + EPOCH_DISCARD, crc32c(p, 4 + EPOCH_DISCARD));
}

const char *discard_row_decode(uint64_t rowid, const uint8_t *p, size_t len, struct journal_discard *d)
{
	if (!p || len != DISCARD_SIZE || get32(p) != DISCARD_MAGIC || !crc_ok(p, len))
		return "checksum mismatch";
	discard_decode(p + 4, d);
	return d->id == rowid ? NULL : "id mismatch";
}

size_t volume_size_encoded(const struct journal_volume *v)
{
	return VOLUME_FIXED + strnlen(v->name, sizeof(v->name) - 1) + strlen(v->backing) + 4;
}

void volume_encode(const struct journal_volume *v, uint8_t *out)
{
	size_t name = strnlen(v->name, sizeof(v->name) - 1), backing = strlen(v->backing);
	uint8_t *p = out;

	p = put32(p, VOLUME_MAGIC);
	p = put16(p, v->id);
	p = put16(p, v->in_use);
	p = put_bytes(p, v->mode, 4);
	p = put64(p, v->identity.size);
	p = put64(p, v->identity.id[0]);
	p = put64(p, v->identity.id[1]);
	p = put64(p, (uint64_t)v->identity.mtime_ns);
	p = put32(p, (uint32_t)name);
	p = put32(p, (uint32_t)backing);
	p = put_bytes(p, v->name, name);
	p = put_bytes(p, v->backing, backing);
	put32(p, crc32c(out, (size_t)(p - out)));
}

const char *volume_decode(uint64_t rowid, const uint8_t *p, size_t len, struct journal_volume *v, char **backing)
{
	uint64_t nname, nbacking;

	if (!p || len < VOLUME_FIXED + 4 || get32(p) != VOLUME_MAGIC || !crc_ok(p, len))
		return "checksum mismatch";
	nname = get32(p + 44);
	nbacking = get32(p + 48);
	if (nname >= JOURNAL_NAME_MAX || VOLUME_FIXED + nname + nbacking + 4 != len)
		return "lengths out of range";
	memset(v, 0, sizeof(*v));
	v->id = get16(p + 4);
	v->in_use = get16(p + 6) != 0;
	memcpy(v->mode, p + 8, 4);
	v->mode[3] = 0;
	v->identity.size = get64(p + 12);
	v->identity.id[0] = get64(p + 20);
	v->identity.id[1] = get64(p + 28);
	v->identity.mtime_ns = (int64_t)get64(p + 36);
	memcpy(v->name, p + VOLUME_FIXED, nname);
	if (v->id != rowid || !v->id || v->id > JOURNAL_MAX_VOLUME)
		return "id out of range";
	*backing = strndup((const char *)p + VOLUME_FIXED + nname, nbacking);
	v->backing = *backing;
	return NULL; /* without memory *backing is NULL: that is no damage */
}

size_t identity_size_encoded(const struct journal_volume *v)
{
	return IDENTITY_FIXED + strlen(v->label) + (size_t)v->nwitness * IDENTITY_WITNESS + 4;
}

void identity_encode(const struct journal_volume *v, uint32_t row_crc, uint8_t *out)
{
	uint8_t *p = out;
	size_t label = strlen(v->label);

	p = put32(p, IDENTITY_MAGIC);
	p = put32(p, row_crc);
	p = put64(p, (uint64_t)v->noted_ns);
	p = put32(p, (uint32_t)label);
	p = put32(p, v->nwitness);
	p = put_bytes(p, (const uint8_t *)v->label, label);
	for (uint32_t i = 0; i < v->nwitness; i++) {
		p = put64(p, v->witness[i].block);
		p = put32(p, v->witness[i].crc);
	}
	put32(p, crc32c(out, (size_t)(p - out)));
}

const char *identity_decode(const uint8_t *p, size_t len, uint32_t row_crc, struct journal_volume *v,
			    struct identity_mem *mem)
{
	uint64_t nlabel, n;

	if (!p) /* there is none */
		return NULL;
	if (len < IDENTITY_FIXED + 4 || get32(p) != IDENTITY_MAGIC || !crc_ok(p, len))
		return "identity: checksum mismatch";
	nlabel = get32(p + 16);
	n = get32(p + 20);
	if (nlabel >= sizeof(mem->label) || n > JOURNAL_MAX_WITNESSES ||
	    IDENTITY_FIXED + nlabel + n * IDENTITY_WITNESS + 4 != len)
		return "identity: lengths out of range";
	if (get32(p + 4) != row_crc)
		return NULL;
	memcpy(mem->label, p + IDENTITY_FIXED, nlabel);
	mem->label[nlabel] = 0;
	v->label = mem->label;
	v->noted_ns = (int64_t)get64(p + 8);
	p += IDENTITY_FIXED + nlabel;
	for (uint32_t i = 0; i < n; i++, p += IDENTITY_WITNESS)
		mem->witness[i] = (struct journal_witness){ .block = get64(p), .crc = get32(p + 8) };
	v->witness = mem->witness;
	v->nwitness = (uint32_t)n;
	return NULL;
}

uint32_t setting_crc(const char *key, const char *value)
{
	/* The length of the key keeps "ab"+"c" and "a"+"bc" apart. */
	return crc32c(key, strlen(key)) ^ (crc32c(value, strlen(value)) * 31u + (uint32_t)strlen(key));
}

uint32_t mark_crc(uint64_t key)
{
	uint8_t b[8];

	put64(b, key);
	return crc32c(b, sizeof(b));
}

uint32_t state_crc(const uint64_t *values, unsigned n)
{
	uint8_t b[8 * STATE_VALUES];

	for (unsigned i = 0; i < n; i++)
		put64(b + 8 * i, values[i]);
	return crc32c(b, 8 * n);
}
