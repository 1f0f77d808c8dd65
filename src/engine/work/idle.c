/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * idle.c - what is done while hardly anybody asks for anything, on the thread JOB_COMPACT.
 *
 * - Free space is put together (compact.c). Random writes leave free slots here and there; the next writes then go to
 *   the SSD in pieces of a block or two, and nothing can be tidied. Put together, a burst of writes finds room for
 * large ones again.
 * - What sequential readers met scattered and found no room for, or no time, is tidied (defrag.c).
 *
 * It wears the SSD, so it is bounded. Compaction begins when less than half of the free slots lie in free words, and
 * clients have written at least a quarter as much as is free since it last got as far as it could; it moves at most
 * three blocks for four slots it gains, mostly one for two. Tidying writes what a client has read in sequence once. The
 * tunable `tidy` switches off both.
 *
 * Work stops within some milliseconds when requests come (QUIET_*), and goes on in a quiet period after that. Each
 * interruption makes it wait for a longer one, so that what cannot be done in the pauses of a busy client is not begun
 * all the time.
 */
#include "engine/work/work.h"

#include <stdlib.h>

#define PATIENCE_MAX 64u /* looks */
#define PIECE 256u /* blocks tidied at once: reads enough to keep the SSD busy, and over soon */
#define NEAR 64u /* blocks: ranges of a reader with some requests in flight arrive in any order */

int idle_init(struct cache *c)
{
	atomic_store(&c->idle.patience, 1);
	return -pthread_mutex_init(&c->idle.lock, NULL);
}

void idle_destroy(struct cache *c)
{
	pthread_mutex_destroy(&c->idle.lock);
}

static bool fragmented(struct cache *c, const struct activity *a)
{
	return space_is_fragmented(ctr_get(c->slots.nfree), slots_free_words(&c->slots),
				   (a->written - ctr_get(c->idle.compacted)) / CACHE_BLOCK);
}

void idle_look(struct cache *c, uint64_t ns)
{
	struct idle *idle = &c->idle;
	struct activity a = activity_of(c);
	bool quiet = activity_is_quiet(c, &a, ns < 1000000000 ? 1 : ns / 1000000000);

	atomic_store(&idle->bytes, a.read + a.written);
	atomic_store(&idle->requests, a.requests);
	atomic_store(&idle->quiet, quiet);
	idle->looks = quiet ? idle->looks + 1 : 0;
	if (idle->looks < ctr_get(idle->patience) || !idle_is_wanted(c) ||
	    !(fragmented(c, &a) || ctr_get(idle->nranges)))
		return;
	idle->looks = 0;
	atomic_store(&idle->wanted, true);
	if (compact_in_background)
		job_kick(c, JOB_COMPACT);
}

void idle_tidy_later(struct volume *v, uint64_t first, unsigned n)
{
	struct idle *idle = &v->cache->idle;
	uint64_t end = first + n;
	unsigned i = 0;

	if (pthread_mutex_trylock(&idle->lock))
		return;
	while (i < idle->nranges && (idle->range[i].volume != v->id || first > idle->range[i].end + NEAR ||
				     end + NEAR < idle->range[i].first))
		i++;
	if (i == idle->nranges && i < IDLE_RANGES)
		idle->range[idle->nranges++] = (struct idle_range){ .volume = v->id, .first = first, .end = end };
	if (i < IDLE_RANGES) {
		struct idle_range *r = &idle->range[i];

		r->first = first < r->first ? first : r->first;
		r->end = end > r->end ? end : r->end;
	}
	pthread_mutex_unlock(&idle->lock);
}

/* The next piece of what is to be tidied. */
static bool take_piece(struct cache *c, struct idle_range *out)
{
	struct idle *idle = &c->idle;
	uint64_t most = PIECE < c->space.alloc_max ? PIECE : c->space.alloc_max;
	bool any;

	pthread_mutex_lock(&idle->lock);
	any = idle->nranges;
	if (any) {
		struct idle_range *r = &idle->range[idle->nranges - 1];

		*out = *r;
		if (out->end - out->first > most)
			r->first = out->end = out->first + most;
		else
			idle->nranges--;
	}
	pthread_mutex_unlock(&idle->lock);
	return any;
}

static void forget_all(struct cache *c)
{
	pthread_mutex_lock(&c->idle.lock);
	c->idle.nranges = 0;
	pthread_mutex_unlock(&c->idle.lock);
}

static enum tidied tidy_piece(struct cache *c, struct thread_ctx *t, const struct idle_range *r,
			      struct drop_behind *cold)
{
	struct volume *v = volume_use(c, r->volume);
	enum tidied done = TIDIED;

	/* it may be another volume by now, and a smaller one */
	if (v && r->end <= v->nblocks)
		done = tidy_range(t, v, r->first, (unsigned)(r->end - r->first), cold);
	if (v)
		volume_unuse(v);
	return done;
}

static void put_back(struct cache *c, const struct idle_range *r)
{
	struct volume *v = volume_use(c, r->volume);

	if (!v)
		return;
	idle_tidy_later(v, r->first, (unsigned)(r->end - r->first));
	volume_unuse(v);
}

/* False: interrupted. */
static bool compact_all(struct cache *c)
{
	uint64_t written = activity_of(c).written;

	if (!compact_run(c, true))
		return false;
	atomic_store(&c->idle.compacted, written);
	return true;
}

/* False: interrupted. */
static bool tidy_all(struct cache *c, struct thread_ctx *t, struct drop_behind *cold)
{
	struct idle_range r;

	while (!idle_over(c)) {
		enum tidied done;

		if (!take_piece(c, &r))
			return true;
		done = tidy_piece(c, t, &r, cold);
		if (done == TIDY_NO_BUFFERS && !epoch_write_data(c)) {
			done = tidy_piece(c, t, &r, cold);
		} else if (done == TIDY_NO_RUN && !drop_behind_settle(c, cold, true)) {
			/* what was moved so far has given slots back */
			if (!compact_all(c)) {
				put_back(c, &r);
				return false;
			}
			done = tidy_piece(c, t, &r, cold);
		}
		if (done == TIDY_NO_RUN || done == TIDY_FULL) { /* then not before clients leave more room */
			forget_all(c);
			return true;
		}
		if (drop_behind_settle(c, cold, false))
			return false;
	}
	return false;
}

void idle_run(struct cache *c)
{
	struct thread_ctx *t = thread_ctx_get(c);
	struct drop_behind *cold = malloc(sizeof *cold);
	struct activity a = activity_of(c);
	unsigned patience = ctr_get(c->idle.patience);
	bool done = true;

	if (t && cold) {
		cold->n = cold->moved = 0;
		done = (!fragmented(c, &a) || compact_all(c)) && tidy_all(c, t, cold);
		drop_behind_settle(c, cold, true);
	}
	free(cold);
	atomic_store(&c->idle.patience, done ? 1 : patience < PATIENCE_MAX ? patience * 2 : patience);
}
