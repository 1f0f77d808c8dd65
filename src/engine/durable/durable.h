/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * durable.h - what is durable when: epochs, write-intent marks and the volume's row, changes of the map, and the one
 * place that writes to and flushes backing devices. bypass.h, identity.h, writelog.h and takeover_log.h stand apart.
 */
#ifndef DURABLE_DURABLE_H
#define DURABLE_DURABLE_H

#include "engine/cache.h"
#include "engine/durable/identity.h"

/* ---- mapping.c: changing a line's state; chain locked, in epoch.gate (shared). Keeps the counters and owes the
 * record.
 * ---- */

/* Sets the masks of an entry of volume v and does everything that follows from it. */
void line_update(struct cache *c, struct volume *v, uint32_t e, uint16_t valid, uint16_t dirty, uint16_t fresh);
/* Drops the blocks of `mask` (slots go to the epoch); removes the entry if nothing is left. */
void line_drop(struct cache *c, struct volume *v, struct line_chain *ch, uint32_t e, uint16_t mask);
/* Points block b to a new slot (its old one, if valid, goes to the epoch). The masks are the caller's to set. */
void line_move_block(struct cache *c, uint32_t e, unsigned b, uint32_t slot, uint32_t crc);
/*
 * Finds or inserts the line of a block and points the block to a slot. In the gate; takes the chain itself, the block's
 * range is the caller's. Nobody else does this, so none of what goes with it is forgotten: policy, takeover log,
 * buffer, counters, the record that is owed.
 */
struct mapping {
	uint64_t block;
	uint32_t slot, crc;
	struct buffer *buf; /* has the data, and is published for the slot; NULL: the data is in the slot */
	enum {
		MAPPING_FILL, /* clean; not if there is a copy already */
		MAPPING_CLEAN, /* clean: backing has it; replaces what is there */
		MAPPING_DIRTY /* replaces what is there; in its own slot if that was given in the open epoch */
	} as;
	bool was_cached; /* out */
};
/* 1: placed; 0: placed in its own slot, or not at all (MAPPING_FILL): `slot` was not used; -EAGAIN: the table is full.
 */
int mapping_place(struct cache *c, struct volume *v, struct mapping *m);
/* Drops n blocks from `first` on, whatever their state. Takes gate and locks itself; the range is locked by the caller.
 */
void blocks_drop(struct cache *c, struct volume *v, uint64_t first, uint64_t n);
void blocks_drop_clean(struct cache *c, struct volume *v, uint64_t first, uint64_t n); /* those that are not dirty */

/* ---- epoch.c ---- */
int epoch_init(struct epoch *ep, struct cache *c);
void epoch_destroy(struct epoch *ep);
void epoch_enter(struct cache *c); /* before changing metadata; waits if the open epoch is full */
void epoch_leave(struct cache *c);
void epoch_note_change(struct cache *c, uint32_t e); /* in the gate, chain locked, CHANGED just set */
void epoch_free_slot(struct cache *c, uint32_t slot); /* in the gate */
int epoch_add_discard(struct cache *c, const struct journal_discard *d); /* in the gate */
/* The epoch that changes made now belong to; stable while in the gate. */
static inline uint64_t epoch_open_id(struct cache *c)
{
	return atomic_load_explicit(&c->epoch.open_id, memory_order_acquire);
}
/* A third of the slots for writing is pending in epochs that are not durable: commit early enough that these slots are
 * free again before the next third is used up (epoch_enter). */
static inline bool epoch_holds_much(struct cache *c)
{
	return space_is_pending(ctr_get(c->slots.nfree), ctr_get(c->epoch.npending));
}
/* True if, at its current rate of change, the open epoch will run out of slots before its interval ends. */
bool epoch_ends_early(struct cache *c);
/* Changes made up to this epoch are durable: the open one's id if there are none in it. */
uint64_t epoch_durable_upto(struct cache *c);
/* Returns when epoch `id` and all before are durable; the caller may do the work for others. 0 or -EIO. */
int epoch_commit_to(struct cache *c, uint64_t id);
/* Makes every change whose caller has left the gate durable. full: also the data that rows carry reaches the data file.
 * 0 or -EIO. */
int epoch_commit(struct cache *c, bool full);
/* Writes what is dirty in RAM to the data file, and neither flushes nor commits. 0 or -EIO. */
int epoch_write_data(struct cache *c);

/* ---- intent.c ---- */
int intent_init(struct volume *v);
void intent_destroy(struct volume *v);
/* Before writing to backing: the regions are marked, and the row says `in use`, durably on return. No lock that is held
 * over I/O if they are already. 0, or -errno and nothing to end. */
int intent_begin(struct volume *v, uint64_t off, uint64_t len);
/* `epoch` holds the cache's side of it, or a later one does. */
void intent_end(struct volume *v, uint64_t off, uint64_t len, uint64_t epoch);
/* The same without marks, for callers that have another way to tell recovery (clean.c, request/discard.c): the row says
 * `in use` until intent_release() and a flush. 0, or -errno and nothing to release. */
int intent_hold(struct volume *v);
/* By a holder with these blocks' ranges locked, right before it writes them: no witness is left among them, and the row
 * is young (identity.c). 0 or -EIO. */
int intent_forget(struct volume *v, uint64_t first, uint64_t n);
void intent_release(struct volume *v);
/* With a hold: the blocks are nothing to know the backing device by any more (witness.c), durably. 0 or -errno. */
int intent_forget(struct volume *v, uint64_t first, uint64_t n);
/* Takes marks away where that may be done. Flushes backing first if anything was written since the last flush; `all`:
 * a flush that failed earlier is an error also if nothing was. 0 or -errno. */
int intent_clear_idle(struct volume *v, bool all);
/* Nothing was written for a while: the row gets the backing device's present identity, exact until the next write
 * (P10). */
int intent_settle(struct volume *v);
bool intent_is_marked(const struct volume *v, uint64_t block);

/* ---- row.c: the volume's row in the journal ---- */
/* Asks the backing device who it is; sync: what it says stays so over a power loss. label: BDEV_LABEL_MAX bytes. */
int row_identify(struct volume *v, bool sync, struct bdev_identity *id, char *label, struct bc_error *err);
int row_put_locked(struct volume *v, struct bc_error *err); /* row_lock held: as the volume is */
/* Writes its row with the backing device's present identity: waits for that device. */
int volume_record(struct volume *v, bool in_use, struct bc_error *err);
/* Switches the mode and writes the row with it; what the row says of the backing device stays. */
int volume_record_mode(struct volume *v, enum cache_mode mode, struct bc_error *err);

/* ---- backing.c ---- */
int backing_flush(struct thread_ctx *t, struct volume *v); /* if anything was written there since the last */
int backing_flush_on(struct bdev_channel *ch, struct volume *v); /* likewise, on a channel to its backing device */
/* Writes n whole blocks, and counts. 0 or -errno: then what they hold is undefined. */
int backing_write(struct thread_ctx *t, struct volume *v, uint64_t first, unsigned n, char **data);
/* Zeroes a range; punch: the device may give the space back. */
int backing_zero(struct thread_ctx *t, struct volume *v, uint64_t off, uint64_t len, bool punch);

#endif
