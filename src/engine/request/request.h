/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * request.h - what clients ask for: reads, writes, discards. blkcache/engine.h has the calls; this is what the files
 * share, and what the work behind them uses.
 */
#ifndef REQUEST_REQUEST_H
#define REQUEST_REQUEST_H

#include "engine/durable/durable.h"

/* ---- plan.c ---- */
/* If all n blocks are in RAM: pins them in t->plan, without a lock unless something is changing there (lines_peek).
 * Needs no range lock: the map and the buffers change together under the chain's lock, and a buffer in memory is never
 * changed in place. */
bool plan_from_ram(struct thread_ctx *t, struct volume *v, uint64_t first, unsigned n);
/* Looks up n blocks from `first` on into t->plan: source RAM (pinned), SLOT or BACKING. Range locked. Returns how many
 * are cached. */
unsigned plan_lookup(struct thread_ctx *t, struct volume *v, uint64_t first, unsigned n);
/* Reads what is not in RAM to plan[].data, checks crcs; a clean block that is bad is dropped and read from backing
 * (P9). */
int plan_read(struct thread_ctx *t, struct volume *v, uint64_t first, unsigned n);
/* After the range was unlocked: drops the clean blocks that plan_read found bad. */
void plan_repair(struct thread_ctx *t, struct volume *v, uint64_t first, unsigned n);
void plan_release(struct thread_ctx *t, unsigned n); /* unpins all buffers of the plan */
/* Puts the n whole blocks that a write of [off, off + len) results in into block_data[]: src, and at the edges what is
 * there now. Range locked; uses t->plan. */
int plan_gather(struct thread_ctx *t, struct volume *v, const char *src, uint64_t off, uint32_t len, char **block_data);
/* Do n blocks that took so many reads from slots lie scattered? */
bool plan_is_scattered(unsigned n, unsigned pieces);

/* ---- write_to_backing.c ---- */
/* *hits: blocks that were cached before, added to. */
int write_through_blocks(struct thread_ctx *t, struct volume *v, const char *src, uint64_t off, uint32_t len, int mode,
			 unsigned *hits);

/* ---- discard.c ---- */
extern uint64_t zero_marked_max; /* bytes that are zeroed under a mark; seam for tests */

/* ---- read.c ---- */
/* Brings a range (at most VOLUME_MAX_IO) into the cache. 1 if something had to be read, 0 if all was there, -errno. */
int volume_fill(struct volume *v, uint64_t off, uint32_t len);

/* ---- streams.c ---- */
void readahead_init(struct readahead *ra);
void readahead_destroy(struct readahead *ra);
/* A read of [off, off + len) was answered; missed: not all of it from the cache. Never blocks for I/O. */
void readahead_note(struct volume *v, uint64_t off, uint32_t len, bool missed);
void readahead_note_cached(struct volume *v, uint64_t off, uint32_t len); /* a job found it cached already */

#endif
