/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * witness.c - checksums of some blocks of the backing device, remembered beside the volume's row, so that another
 * device or an older state of it is noticed even if everything in the cache is dirty (P10).
 *
 * Our own writes must never make a witness wrong, whatever crash comes. So it is durably forgotten before the first
 * write of ours to its block: by intent_begin() for writes through and discards, by the cleaner for what was dirty. A
 * crash before that finds the block as it was; a crash after it finds no witness. Blocks become witnesses only when
 * what is there is durable, and nobody of us is writing: at add after a sync of the device, and when a volume has
 * settled, from lines that are clean then (so no read is needed). Whether the block is cached later, clean or dirty,
 * makes no difference.
 */
#include "engine/durable/identity.h"

#include <stdlib.h>
#include <string.h>

#include "engine/durable/durable.h"

#define CANDIDATES 48u
#define FEW (JOURNAL_MAX_WITNESSES / 2)
#define TRIES 512u

/* Keeps them ascending. */
static void insert(struct known *k, uint64_t block, uint32_t crc)
{
	uint32_t n = ctr_get(k->nwitness), i = n;

	if (n == JOURNAL_MAX_WITNESSES)
		return;
	while (i && k->witness[i - 1].block > block)
		i--;
	if (i && k->witness[i - 1].block == block)
		return;
	memmove(&k->witness[i + 1], &k->witness[i], (n - i) * sizeof k->witness[0]);
	k->witness[i] = (struct journal_witness){ .block = block, .crc = crc };
	atomic_store(&k->nwitness, n + 1);
}

/* Where labels and superblocks of file systems and partition tables lie, and the rest spread. */
static uint64_t candidate(uint64_t nblocks, unsigned i)
{
	static const uint64_t known[] = { 0, 1, 16 };
	uint64_t stretch = nblocks / CANDIDATES;

	if (i < 3)
		return known[i];
	if (i == 3)
		return nblocks - 1;
	return i * stretch + (stretch ? (i * UINT64_C(0x9e3779b97f4a7c15) >> 20) % stretch : 0);
}

/* Nobody waits for it if it takes long, so it is no sign of a device that hangs (bdev_find_hung). */
static int flush_unwatched(struct bdev_channel *ch)
{
	struct bdev_io io = { .type = BDEV_FLUSH };

	bdev_submit(ch, &io);
	while (bdev_in_flight(ch))
		bdev_poll(ch, 1);
	return io.result;
}

void witness_read(struct bdev *bdev, struct known *k)
{
	uint64_t size = bdev_size(bdev), nblocks = (size + CACHE_BLOCK - 1) / CACHE_BLOCK;
	struct bdev_channel *ch = bdev_channel_open(bdev, 0);
	char *mem = aligned_alloc(CACHE_BLOCK, CANDIDATES * CACHE_BLOCK);
	struct bdev_io io[CANDIDATES];
	struct iovec iov[CANDIDATES];
	unsigned n = 0;

	/* what does not survive a power loss is no witness */
	if (!ch || !mem || flush_unwatched(ch))
		goto out;
	for (unsigned i = 0; i < CANDIDATES; i++) {
		uint64_t block = candidate(nblocks, i), left = size - block * CACHE_BLOCK;

		if (block >= nblocks)
			continue;
		memset(mem + n * CACHE_BLOCK, 0, CACHE_BLOCK);
		iov[n] = (struct iovec){ .iov_base = mem + n * CACHE_BLOCK,
					 .iov_len = left < CACHE_BLOCK ? left : CACHE_BLOCK };
		io[n] = (struct bdev_io){ .type = BDEV_READ,
					  .offset = block * CACHE_BLOCK,
					  .length = iov[n].iov_len,
					  .iov = &iov[n],
					  .iovcnt = 1 };
		n++;
	}
	bdev_rw_wait(ch, io, n);
	/* empty blocks look the same everywhere: only if there is nothing better */
	for (int zeros = 0; zeros < 2; zeros++) {
		for (unsigned i = 0; i < n; i++) {
			const char *data = mem + i * CACHE_BLOCK;
			bool zero = !data[0] && !memcmp(data, data + 1, CACHE_BLOCK - 1);

			if (!io[i].result && zero == zeros)
				insert(k, io[i].offset / CACHE_BLOCK, crc32c(data, CACHE_BLOCK));
		}
	}
out:
	bdev_channel_close(ch);
	free(mem);
}

void witness_refill(struct volume *v)
{
	struct lines *l = &v->cache->lines;
	struct known *k = &v->known;
	uint64_t at = epoch_open_id(v->cache) * UINT64_C(0x9e3779b97f4a7c15);

	/* the row may be written for another mode meanwhile */
	pthread_mutex_lock(&v->row_lock);
	atomic_store(&k->nwitness, witness_copy(k, k->witness));
	if (ctr_get(k->nwitness) >= FEW || !v->identity.id[0] || !ctr_get(v->lines))
		goto out;
	for (unsigned i = 0; i < TRIES && ctr_get(k->nwitness) < JOURNAL_MAX_WITNESSES; i++) {
		uint32_t e = (uint32_t)((at += UINT64_C(0x9e3779b97f4a7c15)) >> 32) % l->n;
		uint64_t key = lines_word(l, e) & LINE_KEY_MASK;
		struct line_chain ch;
		unsigned clean;

		if (!key || line_key_volume(key) != v->id)
			continue;
		ch = lines_lock(l, key);
		if ((lines_word(l, e) & LINE_KEY_MASK) == key) {
			clean = line_valid(l, e) & (unsigned)~line_dirty(l, e);
			if (clean) {
				unsigned b = (unsigned)__builtin_ctz(clean);

				insert(k, (line_key_line(key) << l->bpl_shift) + b, line_block(l, e, b)->crc);
			}
		}
		lines_unlock(&ch);
	}
out:
	pthread_mutex_unlock(&v->row_lock);
}

/* Also while others take some out; by callers for whose blocks nobody else does. */
bool witness_in(const struct volume *v, uint64_t first, uint64_t n)
{
	const struct known *k = &v->known;

	for (uint32_t i = 0; i < ctr_get(k->nwitness); i++)
		if (__atomic_load_n(&k->witness[i].block, __ATOMIC_RELAXED) - first < n)
			return true;
	return false;
}

bool witness_drop(struct volume *v, uint64_t first, uint64_t n)
{
	struct known *k = &v->known;
	bool any = false;

	if (MUTATE(WITNESS_DROP))
		return false;
	for (uint32_t i = 0; i < ctr_get(k->nwitness); i++) {
		if (__atomic_load_n(&k->witness[i].block, __ATOMIC_RELAXED) - first >= n)
			continue;
		/* in its place: others look without a lock */
		__atomic_store_n(&k->witness[i].block, NO_WITNESS, __ATOMIC_RELAXED);
		any = true;
	}
	return any;
}

uint32_t witness_copy(const struct known *k, struct journal_witness *out)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < ctr_get(k->nwitness); i++) {
		out[n].crc = k->witness[i].crc;
		out[n].block = __atomic_load_n(&k->witness[i].block, __ATOMIC_RELAXED);
		n += out[n].block != NO_WITNESS;
	}
	return n;
}
