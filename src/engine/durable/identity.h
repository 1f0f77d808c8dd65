/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * identity.h - is a volume's backing device the one that the cache knows, and unchanged (P10)? What is known of it lies
 * in `struct known`, is guarded by row_lock like the row that it is written with (nobody else is there at load and
 * add), and outlives the load in the journal, beside the volume's row.
 */
#ifndef DURABLE_IDENTITY_H
#define DURABLE_IDENTITY_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/cache.h"

#define NAME_PATIENCE_MS 2000 /* for a name to be looked up, by commands that somebody waits for */

#define NAME_SHORT_MS 100 /* by the cleaner */

/* ---- identity.c ---- */
void identity_load(struct volume *v, const struct journal_volume *jv); /* from the journal */
/* The device's present label, BDEV_LABEL_MAX bytes: may wait for the device, so it is asked for with no lock held. */
void identity_look(struct volume *v, char *label);
void identity_note(struct volume *v,
		   const char *label); /* what is known becomes that; row_lock, before it is written */
void identity_put(struct volume *v, struct journal_volume *jv); /* jv borrows it */
/* Is the row in use and what it says of the time too old? Then it has to be written again before backing is. */
bool identity_is_old(const struct volume *v);
/* How the backing device differs from what is known: a sentence, the caller's to free; NULL: not as far as can be told
 * from outside. *proven: nobody has written to it since, for certain. */
char *identity_difference(struct volume *v, bool was_in_use, bool *proven);
/* A kernel name (/dev/sdb) belongs to another device now, or to none: the path of the one that is known, the caller's
 * to free, and a sentence about it. NULL: the name is right, or is not the kernel's to give, or it is not there. */
char *identity_find(const struct journal_volume *jv, char *said, size_t len);
/* 0, or -ESTALE with a message if the name of its backing file leads elsewhere. Waits up to `ms`; no answer is no news.
 */
int identity_check_name(struct volume *v, unsigned ms, struct bc_error *err);

/* ---- witness.c ---- */
/* At add: flushes the backing device and reads some blocks of it. What cannot be read is left out. */
void witness_read(struct bdev *bdev, struct known *k);
/* Some clean blocks become witnesses, if there are few. The row is about to be written; nobody writes to backing, and
 * what was written there is durable. */
void witness_refill(struct volume *v);
#define NO_WITNESS UINT64_MAX /* the place of one that was taken out */
bool witness_in(const struct volume *v, uint64_t first, uint64_t n); /* is one among these blocks? No lock */
/* Takes those in a range out of memory; true if there were any: then the row is written before backing. intent.lock,
 * and the blocks' ranges, are the caller's. */
bool witness_drop(struct volume *v, uint64_t first, uint64_t n);
/* Those that are left, into an array for all, which may be their own; returns how many. row_lock. */
uint32_t witness_copy(const struct known *k, struct journal_witness *out);

/* ---- sample.c ---- */
struct sample {
	struct volume *v;
	bool proven; /* that nobody wrote to it, as far as times and counts can be believed */
	/* The caller's; discards that had begun, of any volume. What is cached there is as it was before, or not (a
	 * block that the cleaner had written becomes clean while backing is zeroed), so it is not looked at. */
	const struct journal_discard *discards;
	uint32_t ndiscards;
	/* out: */
	uint32_t looked_at;
	bool differs;
	uint64_t block; /* the first one that was seen to differ */
	/* sample.c's */
	uint32_t *entry, nentries, size;
	uint64_t seen;
};
/* At load, before anything is dropped: compares blocks of these volumes' backing devices with what the cache knows of
 * them. Takes half a second at most, however many there are; more only where even the first few blocks take longer. 0
 * or -ENOMEM; a device that cannot be read does not differ. */
extern uint32_t sample_ns; /* seam for tests: 0: no time for anything but witnesses */
int sample_backings(struct cache *c, struct sample *s, unsigned n, uint64_t seed);

#endif
