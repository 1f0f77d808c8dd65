/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * epoch.c - which changes become durable together (P1, P2, P6).
 *
 * Changes of line metadata are made inside the epoch's gate (shared). They belong to the *open* epoch, which keeps a
 * list of the entries that changed and of the slots that are no longer used. Sealing takes the gate exclusively for as
 * long as it takes to copy the entries' state (no I/O), so an epoch is a cut: whoever left the gate before is in it
 * with everything, whoever enters later is in the next one.
 *
 * Why a crash at any moment leaves whole epochs in order:
 *
 * Rule 1. A block that is written gets a slot that nothing durable refers to, unless its slot was already given in this
 * same open epoch (the `fresh` mask). So writing data never damages what an earlier epoch refers to.
 *
 * Rule 2. A slot given up in an epoch returns to the free slots only when that epoch is durable, metadata and data. So
 * rule 1's "nothing durable refers to" holds for every free slot.
 *
 * Rule 3. A sealed epoch is written in one of two ways. *Full*: its blocks go to the data file, then the data file's
 * flush and the commit of the row run side by side; the epoch is durable when both are done. If only the row survived,
 * recovery finds a block whose crc does not fit and drops the epoch and all after it; by rule 2 the state before is
 * intact. *Inline* (few blocks): the row carries the blocks themselves, so the commit is the only sync. Recovery writes
 * them to their slots again if the final state still refers to them.
 *
 * Rule 4. Each row says up to which epoch everything is durable in the data file; later ones are checked at recovery.
 *
 * A failed commit or flush is final (P6): the cache is failed, and no later flush reports success.
 *
 * Leader: whoever needs durability and finds nobody at it does the work, for everybody who waits.
 */
#include "engine/durable/durable.h"

#include "engine/durable/takeover_log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Bytes of records; beyond, writers commit before they go on. The journal has reserved more: those who are in the gate
 * then still add theirs. */
#define EPOCH_MAX_BYTES (JOURNAL_EPOCH_BYTES / 8 * 7)
#define INLINE_MAX_BLOCKS 16u /* in one row: up to 64 KiB, about where a second sync costs the same */
#define INLINE_MAX_TOTAL 4096u /* in rows not yet superseded by a full epoch: bounds recovery and the WAL */

#define PREFETCH 8u /* how far ahead a loop over entries or slots has memory loaded: all of them lie here and there */

static int vec_push(struct u32vec *v, uint32_t x)
{
	if (v->n == v->cap) {
		uint32_t cap = v->cap ? v->cap * 2 : 4096;
		uint32_t *p = realloc(v->v, cap * sizeof *p);

		if (!p)
			return -ENOMEM;
		v->v = p;
		v->cap = cap;
	}
	v->v[v->n++] = x;
	return 0;
}

static void vec_swap(struct u32vec *a, struct u32vec *b)
{
	struct u32vec t = *a;

	*a = *b;
	*b = t;
}

int epoch_init(struct epoch *ep, struct cache *c)
{
	pthread_rwlockattr_t attr;

	memset(ep, 0, sizeof *ep);
	pthread_rwlockattr_init(&attr);
	/* a sealer must not starve behind a stream of writers */
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&ep->gate, &attr);
	pthread_rwlockattr_destroy(&attr);
	pthread_mutex_init(&ep->lock, NULL);
	pthread_cond_init(&ep->durable_cond, NULL);
	ep->max_changes = EPOCH_MAX_BYTES / (c->lines.bpl > 1 ? 18 + 8 * c->lines.bpl : 24);
	ep->inline_data = aligned_alloc(CACHE_BLOCK, INLINE_MAX_BLOCKS * CACHE_BLOCK);
	ep->flush_ch = bdev_channel_open(c->data, BUFFER_WRITE_DEPTH);
	return ep->inline_data && ep->flush_ch ? 0 : -ENOMEM;
}

void epoch_destroy(struct epoch *ep)
{
	bdev_channel_close(ep->flush_ch);
	free(ep->inline_data);
	free(ep->records);
	free(ep->changed.v);
	free(ep->freed.v);
	free(ep->sealed_changed.v);
	free(ep->sealed_freed.v);
	free(ep->discards);
	pthread_rwlock_destroy(&ep->gate);
	pthread_mutex_destroy(&ep->lock);
	pthread_cond_destroy(&ep->durable_cond);
}

/* Until the slots that are pending come back (space_writer_waits). */
static void wait_for_slots(struct cache *c)
{
	struct epoch *ep = &c->epoch;
	bool committing;

	about_to_wait();
	pthread_mutex_lock(&ep->lock);
	committing = ep->committing;
	if (committing) /* that epoch's slots may be enough */
		pthread_cond_wait(&ep->durable_cond, &ep->lock);
	pthread_mutex_unlock(&ep->lock);
	if (!committing)
		epoch_commit(c, false);
}

bool epoch_ends_early(struct cache *c)
{
	const struct epoch *ep = &c->epoch;
	uint64_t age = (now_ns() - ctr_get(ep->opened_ns)) / 1000;

	return space_ends_early(ctr_get(c->slots.nfree), ctr_get(ep->npending), ctr_get(ep->nfreed), age,
				ctr_get(c->tunables.epoch_interval_us));
}

void epoch_enter(struct cache *c)
{
	struct epoch *ep = &c->epoch;

	while ((ctr_get(ep->nchanged) > ep->max_changes || takeover_log_full(c)) && !c->failed)
		epoch_commit(c, false);
	while (space_writer_waits(&c->space, ctr_get(c->slots.nfree), ctr_get(ep->npending)) && !c->failed)
		wait_for_slots(c);
	if (pthread_rwlock_tryrdlock(&ep->gate)) {
		about_to_wait(); /* for a seal */
		pthread_rwlock_rdlock(&ep->gate);
	}
}

void epoch_leave(struct cache *c)
{
	pthread_rwlock_unlock(&c->epoch.gate);
}

/* A record that cannot be kept would be lost without a word: better no promise at all. */
static void push_or_fail(struct cache *c, struct u32vec *v, _Atomic uint32_t *n, uint32_t x)
{
	int rc;

	pthread_mutex_lock(&c->epoch.lock);
	rc = vec_push(v, x);
	atomic_store_explicit(n, v->n, memory_order_relaxed);
	pthread_mutex_unlock(&c->epoch.lock);
	if (rc)
		cache_fail(c, "out of memory for metadata changes");
}

void epoch_note_change(struct cache *c, uint32_t e)
{
	push_or_fail(c, &c->epoch.changed, &c->epoch.nchanged, e);
}

void epoch_free_slot(struct cache *c, uint32_t slot)
{
	if (MUTATE(SLOT_REUSE))
		slots_give(&c->slots, &slot, 1);
	else {
		ctr_add(c->epoch.npending, 1);
		push_or_fail(c, &c->epoch.freed, &c->epoch.nfreed, slot);
	}
}

int epoch_add_discard(struct cache *c, const struct journal_discard *d)
{
	struct epoch *ep = &c->epoch;
	int rc = 0;

	pthread_mutex_lock(&ep->lock);
	if (ep->ndiscards == ep->discards_cap) {
		uint32_t cap = ep->discards_cap ? ep->discards_cap * 2 : 16;
		struct journal_discard *p = realloc(ep->discards, cap * sizeof *p);

		if (p) {
			ep->discards = p;
			ep->discards_cap = cap;
		} else {
			rc = -ENOMEM;
		}
	}
	if (!rc)
		ep->discards[ep->ndiscards++] = *d;
	pthread_mutex_unlock(&ep->lock);
	return rc;
}

/* What a seal took out of the open epoch. */
struct sealed {
	uint64_t id;
	uint32_t nlines, nfresh, ninlines, ndiscards;
	struct journal_discard *discards;
	struct journal_inline inlines[INLINE_MAX_BLOCKS];
};

static int grow_records(struct epoch *ep, size_t need)
{
	char *p = realloc(ep->records, need + need / 2);

	if (!p)
		return -ENOMEM;
	ep->records = p;
	ep->records_cap = need + need / 2;
	return 0;
}

#define MEMORY_TRIES 100 /* of 10 ms */

/*
 * Takes the gate exclusively with room for the records of all that has changed. Room is made before the gate is taken,
 * and again if more has changed by then. Others do not go on without this epoch, so memory that cannot be had now is
 * asked for again; in the end it is a failure like that of a device, or everybody would come back to try for ever.
 */
static int gate_with_room(struct cache *c, size_t stride)
{
	struct epoch *ep = &c->epoch;

	for (int tries = 0; tries < MEMORY_TRIES;) {
		size_t need = (size_t)ctr_get(ep->nchanged) * stride;

		if (need > ep->records_cap && grow_records(ep, need)) {
			tries++;
			nanosleep(&(struct timespec){ .tv_nsec = 10000000 }, NULL);
			continue;
		}
		pthread_rwlock_wrlock(&ep->gate);
		if (ep->changed.n * stride <= ep->records_cap)
			return 0;
		pthread_rwlock_unlock(&ep->gate);
	}
	cache_fail(c, "out of memory for the records of an epoch");
	return -EIO;
}

/* Gate held exclusively: copies an entry's state, and what was owed is paid. Returns the number of fresh blocks. */
static unsigned record_entry(struct cache *c, uint32_t e, struct journal_line *r)
{
	struct lines *l = &c->lines;
	uint64_t w = lines_word(l, e);

	r->entry = e;
	r->volume = (uint16_t)line_key_volume(w);
	r->reserved = 0;
	if (!r->volume) {
		r->line = 0;
		r->valid = r->dirty = r->fresh = 0;
		lines_set_word(l, e, w & ~LINE_CHANGED);
		return 0;
	}
	/* a hit may be counting in the word: it holds the chain, not the gate */
	struct line_chain ch = lines_lock(l, w & LINE_KEY_MASK);

	r->line = line_key_line(w);
	r->valid = line_valid(l, e);
	r->dirty = line_dirty(l, e);
	r->fresh = line_fresh(l, e);
	memcpy(r->blk, line_block(l, e, 0), l->bpl * sizeof r->blk[0]);
	line_set_masks(l, e, r->valid, r->dirty, 0);
	lines_set_word(l, e, lines_word(l, e) & ~LINE_CHANGED);
	lines_unlock(&ch);
	return mask_count(r->fresh);
}

/* Copies the epoch's fresh blocks out of the RAM buffers. False if one is not there (written and evicted already). */
static bool gather_inlines(struct cache *c, struct sealed *s, size_t stride)
{
	struct epoch *ep = &c->epoch;

	for (uint32_t i = 0; i < s->nlines; i++) {
		const struct journal_line *r = (void *)(ep->records + i * stride);

		for (unsigned b = 0; b < c->lines.bpl; b++) {
			struct journal_inline *in;
			struct buffer *buf;

			if (!(r->fresh >> b & 1))
				continue;
			buf = buffer_get(c->buffers, r->blk[b].slot);
			if (!buf)
				return false;
			in = &s->inlines[s->ninlines];
			in->slot = r->blk[b].slot;
			in->crc = r->blk[b].crc;
			in->data = memcpy(ep->inline_data + s->ninlines * CACHE_BLOCK, buffer_data(buf), CACHE_BLOCK);
			s->ninlines++;
			buffer_release(buf);
		}
	}
	return true;
}

/* Leader only. Takes the open epoch out and opens the next one. 0, or -EIO: the cache has failed. */
static int seal(struct cache *c, struct sealed *s, bool full)
{
	struct epoch *ep = &c->epoch;
	size_t stride = journal_line_stride(c->lines.bpl);
	int rc = gate_with_room(c, stride);

	if (rc)
		return rc;
	memset(s, 0, sizeof *s);
	vec_swap(&ep->changed, &ep->sealed_changed);
	vec_swap(&ep->freed, &ep->sealed_freed);
	ep->changed.n = ep->freed.n = 0;
	ep->nchanged = ep->nfreed = 0;
	atomic_store_explicit(&c->unsent, 0, memory_order_relaxed);
	atomic_store_explicit(&ep->opened_ns, now_ns(), memory_order_relaxed);
	s->discards = ep->discards;
	s->ndiscards = ep->ndiscards;
	ep->discards = NULL;
	ep->ndiscards = ep->discards_cap = 0;
	s->nlines = ep->sealed_changed.n;
	for (uint32_t i = 0; i < s->nlines; i++) {
		if (i + PREFETCH < s->nlines)
			lines_prefetch_entry(&c->lines, ep->sealed_changed.v[i + PREFETCH]);
		s->nfresh += record_entry(c, ep->sealed_changed.v[i], (void *)(ep->records + i * stride));
	}
	if (!full && s->nfresh && s->nfresh <= INLINE_MAX_BLOCKS && ep->inline_blocks + s->nfresh <= INLINE_MAX_TOTAL &&
	    !gather_inlines(c, s, stride))
		s->ninlines = 0;
	s->id = ctr_get(ep->open_id);
	if (c->log)
		writelog_next(c->log, s->id + 1);
	atomic_store_explicit(&ep->open_id, s->id + 1, memory_order_release);
	pthread_rwlock_unlock(&ep->gate);
	return 0;
}

struct volume_set {
	uint64_t bits[CACHE_MAX_VOLUMES / 64 + 1];
};

static void set_add(struct volume_set *set, unsigned id)
{
	set->bits[id / 64] |= 1ull << id % 64;
}

/* A write to the cache's device failed: an error for each volume it was for, or for the cache if it was for none. */
static void count_write_error(struct cache *c, const struct volume_set *set)
{
	bool any = false;

	for (unsigned id = 1; id <= CACHE_MAX_VOLUMES; id++) {
		struct volume *v = set->bits[id / 64] >> id % 64 & 1 ? volume_use(c, id) : NULL;

		if (!v)
			continue;
		ctr_add(v->n.err_cache_write, 1);
		volume_unuse(v);
		any = true;
	}
	if (!any)
		ctr_add(c->err_cache_write, 1);
}

static void count_sealed_error(struct cache *c, const struct sealed *s)
{
	size_t stride = journal_line_stride(c->lines.bpl);
	struct volume_set set = { 0 };

	for (uint32_t i = 0; i < s->nlines; i++)
		set_add(&set, ((const struct journal_line *)(void *)(c->epoch.records + i * stride))->volume);
	for (uint32_t i = 0; i < s->ndiscards; i++)
		set_add(&set, s->discards[i].volume);
	count_write_error(c, &set);
}

/* What of the open epoch was to be written. */
static void count_open_error(struct cache *c)
{
	struct epoch *ep = &c->epoch;
	struct volume_set set = { 0 };

	pthread_mutex_lock(&ep->lock);
	for (uint32_t i = 0; i < ep->changed.n; i++)
		set_add(&set, line_key_volume(lines_word(&c->lines, ep->changed.v[i])));
	pthread_mutex_unlock(&ep->lock);
	count_write_error(c, &set);
}

/* ch: NULL for the writer thread's. */
static int write_data(struct cache *c, struct bdev_channel *ch)
{
	int rc = MUTATE(DATA_WRITE) ? 0 : buffer_write_dirty_on(c->buffers, ch);

	if (!rc)
		return 0;
	cache_fail(c, "writing the data file failed: %s", strerror(-rc));
	return -EIO;
}

int epoch_write_data(struct cache *c)
{
	int rc;

	if (c->failed)
		return -EIO;
	rc = write_data(c, NULL);
	if (rc)
		count_open_error(c);
	return rc;
}

/* Makes the sealed epoch durable. Leader only. */
static int write_epoch(struct cache *c, struct sealed *s, bool sync_data)
{
	struct epoch *ep = &c->epoch;
	struct bdev_io flush = { .type = BDEV_FLUSH, .result = 0 };
	struct bc_error err = { 0 };
	int jrc = 0;

	if (sync_data) {
		if (write_data(c, ep->flush_ch)) {
			count_sealed_error(c, s);
			return -EIO;
		}
		/* beside the commit: the epoch counts only when both are done */
		if (!MUTATE(DATA_FLUSH))
			bdev_submit(ep->flush_ch, &flush);
		bdev_poll(ep->flush_ch, 0);
	}
	if (s->nlines || s->ndiscards) {
		struct journal_epoch je = {
			.id = s->id,
			.durable_upto = ep->data_upto,
			.lines = (void *)ep->records,
			.nlines = s->nlines,
			.inlines = s->inlines,
			.ninlines = s->ninlines,
			.discards = s->discards,
			.ndiscards = s->ndiscards,
		};
		jrc = journal_commit(c->journal, &je, &err);
	}
	while (bdev_in_flight(ep->flush_ch))
		bdev_poll(ep->flush_ch, 1);
	if (jrc || flush.result)
		count_sealed_error(c, s);
	if (jrc) {
		cache_fail(c, "the journal cannot be written: %s", err.code ? err.msg : strerror(-jrc));
		return -EIO;
	}
	if (flush.result) {
		cache_fail(c, "flushing the data file failed: %s", strerror(-flush.result));
		return -EIO;
	}
	return 0;
}

static int commit_one(struct cache *c, bool full)
{
	struct epoch *ep = &c->epoch;
	struct sealed s;
	uint32_t before = ep->inline_blocks;
	bool sync_data;
	int rc;

	full |= journal_is_low(c->journal);
	rc = c->failed ? -EIO : seal(c, &s, full);
	if (rc)
		return rc;
	/* nothing to sync if no block's data is waiting to become durable in the data file */
	sync_data = s.nfresh > s.ninlines || (full && ep->inline_blocks);
	rc = write_epoch(c, &s, sync_data);
	free(s.discards);
	if (rc)
		return rc;
	if (sync_data)
		ep->inline_blocks = 0;
	else
		ep->inline_blocks += s.ninlines;
	if (!ep->inline_blocks || MUTATE(DURABLE_UPTO))
		ep->data_upto = s.id;
	atomic_store_explicit(&ep->durable_id, s.id, memory_order_release);
	/* a full one is maintenance's own, or more of them are coming. Well before their number forces a full one here,
	 * with all the data to write while flushes wait. */
	if (!full && ((before <= INLINE_MAX_TOTAL / 2 && ep->inline_blocks > INLINE_MAX_TOTAL / 2) ||
		      journal_fold_wanted(c->journal)))
		job_kick(c, JOB_MAINTAIN);
	if (c->log)
		writelog_durable(c->log, s.id);
	/* rule 2: only now may the slots be used again */
	for (uint32_t i = 0; i < ep->sealed_freed.n; i++) {
		if (i + PREFETCH < ep->sealed_freed.n)
			buffer_get_soon(c->buffers, ep->sealed_freed.v[i + PREFETCH]);
		buffer_forget(c->buffers, ep->sealed_freed.v[i], 1);
	}
	slots_give(&c->slots, ep->sealed_freed.v, ep->sealed_freed.n);
	ctr_sub(ep->npending, ep->sealed_freed.n);
	ctr_add(c->slots_given, ep->sealed_freed.n);
	ep->sealed_freed.n = ep->sealed_changed.n = 0;
	return 0;
}

static int commit_until(struct cache *c, uint64_t id, bool full)
{
	struct epoch *ep = &c->epoch;
	int rc = 0;

	about_to_wait();
	pthread_mutex_lock(&ep->lock);
	while (!rc && (ctr_get(ep->durable_id) < id || (full && ep->data_upto < id))) {
		if (c->failed) {
			rc = -EIO;
		} else if (ep->committing) {
			pthread_cond_wait(&ep->durable_cond, &ep->lock);
		} else {
			ep->committing = true;
			pthread_mutex_unlock(&ep->lock);
			rc = commit_one(c, full);
			pthread_mutex_lock(&ep->lock);
			ep->committing = false;
			pthread_cond_broadcast(&ep->durable_cond);
		}
	}
	if (c->failed)
		rc = -EIO;
	pthread_mutex_unlock(&ep->lock);
	return rc;
}

int epoch_commit_to(struct cache *c, uint64_t id)
{
	return commit_until(c, id, false);
}

int epoch_commit(struct cache *c, bool full)
{
	struct epoch *ep = &c->epoch;
	uint64_t id;

	/* not while one is being sealed: its changes are out of the lists before its id counts as used */
	pthread_rwlock_rdlock(&ep->gate);
	pthread_mutex_lock(&ep->lock);
	id = ctr_get(ep->open_id);
	if (!ep->changed.n && !ep->freed.n && !ep->ndiscards)
		id--;
	pthread_mutex_unlock(&ep->lock);
	pthread_rwlock_unlock(&ep->gate);
	return commit_until(c, id, full);
}

uint64_t epoch_durable_upto(struct cache *c)
{
	struct epoch *ep = &c->epoch;
	uint64_t id, open;

	pthread_mutex_lock(&ep->lock);
	id = ctr_get(ep->durable_id);
	open = ctr_get(ep->open_id);
	if (id == open - 1 && (!ep->committing || MUTATE(DURABLE_SEALING)) && !ep->changed.n && !ep->freed.n &&
	    !ep->ndiscards)
		id = open;
	pthread_mutex_unlock(&ep->lock);
	return id;
}
