/* SPDX-License-Identifier: BSD-3-Clause */
/* clean_batch.h - lines that are cleaned together: shared by the cleaner (clean.c) and write-back runs (write_back.c).
 */
#ifndef WORK_CLEAN_BATCH_H
#define WORK_CLEAN_BATCH_H

#include "engine/work/work.h"

#define BATCH_LINES 4096u /* per flush of the backing device */
#define WAVE_LINES 256u
#define WAVE_BLOCKS 1024u
#define RUN_BLOCKS 256u /* merged into one write */
#define CLEAN_DEPTH 128u

struct clean_line {
	uint64_t key;
	uint32_t e;
	uint16_t mask; /* captured */
	uint16_t written; /* of them, on the backing device */
	bool locked;
	bool passed; /* is in `again` */
};

struct clean_block {
	uint64_t block;
	uint32_t slot, crc;
	uint32_t line; /* index in the batch */
	struct buffer *buf;
	char *data;
	bool skip;
};

struct clean_batch {
	struct clean_batch *next; /* free ones */
	struct clean_line line[BATCH_LINES];
	uint32_t nlines;
	struct clean_line again[BATCH_LINES]; /* passed over */
	uint32_t nagain;
	struct range_lock range[WAVE_LINES];
	struct clean_block block[WAVE_BLOCKS];
	uint32_t nblocks, nranges;
	struct bdev_io io[WAVE_BLOCKS];
	struct iovec iov[WAVE_BLOCKS];
	uint32_t io_first[WAVE_BLOCKS]; /* block index an I/O starts with */
	struct bdev_channel *data_ch;
	struct bdev_channel *backing_ch; /* of the run's volume */
	char *memory; /* for reading what is not in RAM */
};

/* Where another one would take memory that commits need, waits for one that is in use. */
struct clean_batch *clean_batch_get(struct cache *c);

void clean_batch_put(struct cache *c, struct clean_batch *w);

/* Fills the batch with dirty lines of volume `id` from entry *hand on, up to `limit`. False at the end of the table. */
bool clean_collect(struct cache *c, struct clean_batch *w, unsigned id, uint32_t *hand, uint32_t limit);

/* Cleans the batch in w->line, all of volume v. Its clean_lock is held. *blocks: cleaned. Lines that have to be tried
 * again are in w->again, unless the backing device fails. The first error. */
int clean_batch(struct cache *c, struct volume *v, struct clean_batch *w, bool insist, uint64_t *blocks);

#endif
