/* SPDX-License-Identifier: BSD-3-Clause */
/* load.h - what the two halves of recovery share: load.c (which epochs count) and load_lines.c (what they amount to).
 * Lock held. */
#ifndef JOURNAL_LOAD_H
#define JOURNAL_LOAD_H

#include "journal/db.h"

struct loaded_epoch {
	uint64_t id;
	uint8_t *mem;
	struct epoch_view v;
	uint32_t first_seq; /* of its records in the list */
	const char *bad; /* why it cannot be decoded or kept, or NULL */
};

/* A block whose data a kept epoch > durable carries. */
struct redo {
	uint32_t slot, crc, entry;
	uint32_t epoch, index; /* in load.ep; in that epoch's inline table */
	bool wanted;
};

struct load {
	struct journal *j;
	const struct journal_load_ops *ops;
	void *ctx;
	struct journal_load_report *report;
	struct bc_error *err;
	struct loaded_epoch *ep;
	size_t nep;
	size_t first_unsure; /* epochs from here on are newer than `durable` */
	size_t keep; /* epochs from here on are dropped */
	uint64_t durable;
	struct record_list records; /* of all epochs that decode, sorted by entry */
	struct epoch_blobs blobs;
};

static inline bool load_volume_known(const struct load *ld, unsigned id)
{
	return id <= JOURNAL_MAX_VOLUME && ld->j->since[id];
}

size_t load_epoch_of(const struct load *ld, uint32_t seq);
/* 0; -EBADMSG: it does not have its crc. */
int load_inline(struct load *ld, size_t epoch, uint32_t index, uint8_t *data);
/* Index of (slot, crc) among the epoch's inline blocks, or -1. Linear: these epochs are small. */
int64_t load_find_inline(const struct epoch_view *v, const struct journal_block *b);

int load_judge(struct load *ld); /* load.c: sets keep */
int load_lines(struct load *ld); /* load_lines.c: lines, then redo */
int load_discards(struct load *ld); /* load_lines.c */

#endif
