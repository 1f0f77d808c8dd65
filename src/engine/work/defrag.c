/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * defrag.c - blocks that are read together and lie scattered over the data file are moved together.
 *
 * A block that is written goes to another slot, so what was written here and there lies here and there, and a large
 * read of it is many small ones. Whoever has just done such a read has all the data in hand, verified. After the reply
 * is out, it becomes dirty RAM buffers for slots side by side, which the writer sends out in one piece. Sequential
 * readers thus put in order what they pass, and pay for it with one write; nothing is moved that nobody reads in
 * sequence. Where there is no room for it at the moment, the range is remembered for when nobody asks for anything
 * (idle.c).
 *
 * For the journal this is a write of the same data: a new slot, `fresh`, the old one free when the epoch is durable
 * (rules 1 and 2 in epoch.c). Only that what was clean stays clean.
 *
 * The data was read under a range lock that is gone by now. It is still the block's data if the block has the slot that
 * it was read from, that slot was not given to anything else meanwhile, and was not written in place. The former takes
 * the end of an epoch (rule 2), so it is the same open epoch as before the read, or nothing is done. The latter happens
 * to blocks of the open epoch only (rule 1), so they are left alone: equal checksums would not prove equality.
 *
 * A line that the cleaner is at is left alone, too: it would have to be cleaned again, and otherwise a full write-back
 * would never see the cache clean.
 */
#include "engine/work/work.h"

#include "engine/durable/takeover_log.h"

#include <string.h>

static bool movable(const struct block_plan *p)
{
	return p->cached && (p->source == FROM_SLOT || (p->source == FROM_RAM && !buffer_is_dirty(p->buf)));
}

/* Range locked. */
static enum tidied move_all(struct thread_ctx *t, struct volume *v, uint64_t first, unsigned n,
			    struct drop_behind *cold)
{
	struct cache *c = v->cache;
	unsigned want = 0, used = 0;
	uint16_t which[MAX_BLOCKS]; /* decided once: the writer makes dirty buffers clean meanwhile */

	for (unsigned i = 0; i < n; i++)
		if (movable(&t->plan[i]))
			which[want++] = (uint16_t)i;
	if (!want)
		return TIDIED;
	if (want > c->space.alloc_max)
		return TIDY_NO_BUFFERS;
	/* all or nothing, and not where writers are short of slots */
	if (epoch_holds_much(c))
		job_kick(c, JOB_MAINTAIN);
	if (!space_is_settled(ctr_get(c->slots.nfree), ctr_get(c->epoch.npending)))
		return TIDY_IN_USE;
	if (!space_may_move(&c->space, ctr_get(c->slots.nfree), want))
		return TIDY_FULL;
	if (!slots_take_run(&c->slots, t->slots, want))
		return TIDY_NO_RUN;
	if (buffer_alloc(c->buffers, t->bufs, want, false)) {
		slots_give(&c->slots, t->slots, want);
		return TIDY_NO_BUFFERS;
	}
	for (unsigned k = 0; k < want; k++)
		memcpy(buffer_data(t->bufs[k]), t->plan[which[k]].data, CACHE_BLOCK);
	epoch_enter(c);
	if (!c->failed && epoch_open_id(c) == t->tidy_epoch)
		for (unsigned k = 0; k < want; k++) {
			const struct block_plan *p = &t->plan[which[k]];

			if (!block_move(c, v, first + which[k], p, t->bufs[k], t->slots[used]))
				continue;
			if (cold)
				drop_behind_add(cold, t->slots[used], p->source == FROM_RAM);
			used++;
		}
	epoch_leave(c);
	slots_give(&c->slots, t->slots + used, want - used);
	buffer_release_many(t->bufs, want);
	ctr_add(v->n.cache_written, (uint64_t)used * CACHE_BLOCK);
	return used == want ? TIDIED : TIDY_IN_USE;
}

/* The blocks of t's plan, if nobody else wants them at the moment. */
static enum tidied move_plan(struct thread_ctx *t, struct volume *v, struct drop_behind *cold)
{
	struct cache *c = v->cache;
	enum tidied done = TIDY_IN_USE;
	struct range_lock rl;

	t->tidy = false;
	if (c->failed)
		return done;
	/* WRITE: nobody else is reading from the old slots */
	if (range_trylock(&c->ranges, &rl, v->id, t->tidy_first, t->nplan, RANGE_WRITE)) {
		done = move_all(t, v, t->tidy_first, t->nplan, cold);
		range_unlock(&c->ranges, &rl);
	}
	return done;
}

void tidy_after_read(struct thread_ctx *t, struct volume *v)
{
	enum tidied done = move_plan(t, v, NULL);

	if (done == TIDY_NO_RUN)
		compact_ask(v->cache);
	if (done != TIDIED && done != TIDY_FULL)
		idle_tidy_later(v, t->tidy_first, t->nplan);
}

/* Only what lies in slots, only if that is most of it, and only if they are scattered. */
static bool worth_reading(struct thread_ctx *t, unsigned n)
{
	const struct block_plan *last = NULL;
	unsigned pieces = 0, have = 0;

	for (unsigned i = 0; i < n; i++) {
		struct block_plan *p = &t->plan[i];

		if (!p->cached)
			p->source = NOT_WANTED;
		else if (++have && (!last || p->slot != last->slot + 1))
			pieces++;
		last = p->cached ? p : NULL;
	}
	return have >= n / 2 && plan_is_scattered(have, pieces);
}

enum tidied tidy_range(struct thread_ctx *t, struct volume *v, uint64_t first, unsigned n, struct drop_behind *cold)
{
	struct cache *c = v->cache;
	struct range_lock rl;
	enum tidied done = TIDIED;
	bool go;

	/* before anything is read */
	if (!space_may_move(&c->space, ctr_get(c->slots.nfree), n))
		return TIDY_FULL;
	if (!slots_has_run(&c->slots, n))
		return TIDY_NO_RUN;
	range_lock(&c->ranges, &rl, v->id, first, n, RANGE_READ);
	t->tidy_first = first;
	t->tidy_epoch = epoch_open_id(c);
	t->nplan = n;
	plan_lookup(t, v, first, n);
	go = mode_traits[ctr_get(v->mode)].fills && !c->failed && worth_reading(t, n);
	if (go) {
		t->no_promotion = true;
		go = !plan_read(t, v, first, n);
		t->no_promotion = false;
	}
	range_unlock(&c->ranges, &rl);
	if (go)
		done = move_plan(t, v, cold);
	plan_release(t, n);
	t->nplan = 0;
	return done;
}
