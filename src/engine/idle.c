/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * idle.c - what is done while hardly anybody asks for anything, on the thread JOB_COMPACT.
 *
 * - Free space is put together (compact.c). Random writes leave free slots here and there; the next writes then go to
 *   the SSD in pieces of a block or two, and nothing can be tidied. Put together, a burst of writes finds room for
 * large ones again.
 * - What sequential readers met scattered and found no room for, or no time, is tidied (tidy.c).
 *
 * It wears the SSD, so it is bounded. Compaction begins when less than half of the free slots lie in free words and at
 * least a quarter as many have come free since it last got as far as it could; it moves at most three blocks for four
 * slots it gains, mostly one for two. So a block is moved for each one or two that clients wrote at most. Tidying
 * writes each block once that a client has read in sequence. The tunable `tidy` switches off both.
 *
 * Work stops within some milliseconds when requests come (QUIET_BYTES), and goes on in the next quiet period.
 */
#include "internal.h"

#define QUIET_BYTES                                                                                                    \
	(1u << 20) /* in a maintenance period: a machine on a volume that does nothing writes a log now and then */
#define PIECE 256u /* blocks tidied at once: reads enough to keep the SSD busy, and over soon */
#define NEAR 256u /* blocks: ranges of a reader with some requests in flight arrive in any order */

int idle_init(struct cache *c)
{
	return -pthread_mutex_init(&c->idle.lock, NULL);
}

void idle_destroy(struct cache *c)
{
	pthread_mutex_destroy(&c->idle.lock);
}

static int add_bytes(struct volume *v, void *sum)
{
	*(uint64_t *)sum += GET(v->n.volume_read) + GET(v->n.volume_written);
	return 0;
}

static uint64_t bytes_so_far(struct cache *c)
{
	uint64_t sum = 0;

	cache_volume_foreach(c, add_bytes, &sum);
	return sum;
}

bool idle_over(struct cache *c)
{
	return bytes_so_far(c) - GET(c->idle.seen) > QUIET_BYTES;
}

static bool fragmented(struct cache *c)
{
	uint32_t nfree = GET(c->slots.nfree);

	return slots_free_words(&c->slots) < nfree / 64 / 2 && GET(c->slots_given) - GET(c->idle.compacted) > nfree / 4;
}

void idle_look(struct cache *c)
{
	bool quiet = !idle_over(c);

	atomic_store(&c->idle.seen, bytes_so_far(c));
	if (!quiet || c->failed || !GET(c->tunables.tidy_bytes) || !(fragmented(c) || GET(c->idle.nranges)))
		return;
	atomic_store(&c->idle.wanted, true);
	if (compact_in_background)
		background_kick(c, JOB_COMPACT);
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
	uint64_t most = PIECE < c->alloc_max ? PIECE : c->alloc_max;
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

static enum tidied tidy_piece(struct cache *c, struct io_thread *t, const struct idle_range *r)
{
	struct volume *v = volume_use(c, r->volume);
	enum tidied done = TIDIED;

	/* it may be another volume by now, and a smaller one */
	if (v && r->end <= v->nblocks)
		done = tidy_range(t, v, r->first, (unsigned)(r->end - r->first));
	if (v)
		volume_unuse(v);
	return done;
}

static void compact_all(struct cache *c)
{
	compact_run(c, true);
	if (!idle_over(c))
		atomic_store(&c->idle.compacted, GET(c->slots_given));
}

void idle_run(struct cache *c)
{
	struct io_thread *t = io_thread_get(c);
	struct idle_range r;

	if (fragmented(c))
		compact_all(c);
	while (t && !c->failed && !GET(c->stopping) && !idle_over(c) && take_piece(c, &r)) {
		enum tidied done = tidy_piece(c, t, &r);

		if (done == TIDY_NO_BUFFERS && !epoch_write_data(c)) {
			done = tidy_piece(c, t, &r);
		} else if (done == TIDY_NO_SLOTS && !epoch_commit(c, false)) {
			/* what was moved so far has given slots back */
			compact_all(c);
			done = tidy_piece(c, t, &r);
			if (done == TIDY_NO_SLOTS) /* then not before others are given back */
				forget_all(c);
		}
	}
}
