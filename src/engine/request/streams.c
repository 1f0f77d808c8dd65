/* SPDX-License-Identifier: BSD-3-Clause */
/* streams.c - tells sequential readers from others (readahead.h). Streams are guarded by the volume's readahead lock.
 */
#include "engine/request/request.h"

#include <string.h>

#define PIECE (512u << 10) /* of a window, one thread's job */

void readahead_init(struct readahead *ra)
{
	memset(ra, 0, sizeof *ra);
	pthread_mutex_init(&ra->lock, NULL);
}

void readahead_destroy(struct readahead *ra)
{
	pthread_mutex_destroy(&ra->lock);
}

/* False if the queue is full: then there is more to read than the device can give anyway. */
static bool push(struct cache *c, struct volume *v, uint64_t off, uint32_t len)
{
	struct readahead_pool *p = &c->readahead;
	bool ok = false;

	pthread_mutex_lock(&p->lock);
	if (p->n < READAHEAD_QUEUE && p->started && !p->stop) {
		p->queue[(p->head + p->n++) % READAHEAD_QUEUE] =
			(struct readahead_job){ .v = volume_ref(v), .off = off, .len = len };
		v->readahead.jobs++;
		pthread_cond_signal(&p->wake);
		ok = true;
	}
	pthread_mutex_unlock(&p->lock);
	return ok;
}

/* Asks for the stream's next window. Lock held. */
static void extend(struct volume *v, struct readahead_stream *s)
{
	uint64_t from = s->ahead > s->next ? s->ahead : s->next, end = s->next + s->window;

	if (end > v->size)
		end = v->size;
	while (from < end) {
		uint32_t len = PIECE - (uint32_t)(from % PIECE);

		if (len > end - from)
			len = (uint32_t)(end - from);
		if (!push(v->cache, v, from, len))
			break;
		from += len;
	}
	s->ahead = from;
	s->window = s->window * 2 <= ctr_get(v->cache->tunables.read_ahead) ? s->window * 2 : s->window;
}

static struct readahead_stream *find(struct readahead *ra, uint64_t off)
{
	for (int i = 0; i < READAHEAD_STREAMS; i++)
		if (ra->stream[i].used && ra->stream[i].next == off)
			return &ra->stream[i];
	return NULL;
}

static void end_stream(struct readahead *ra, struct readahead_stream *s)
{
	if (s->ahead)
		atomic_fetch_sub_explicit(&ra->active, 1, memory_order_relaxed);
	*s = (struct readahead_stream){ 0 };
}

static void new_candidate(struct readahead *ra, uint64_t next)
{
	struct readahead_stream *old = &ra->stream[0];

	for (int i = 1; i < READAHEAD_STREAMS; i++)
		if (ra->stream[i].used < old->used)
			old = &ra->stream[i];
	end_stream(ra, old);
	*old = (struct readahead_stream){ .next = next, .used = ++ra->clock };
}

void readahead_note(struct volume *v, uint64_t off, uint32_t len, bool missed)
{
	struct readahead *ra = &v->readahead;
	struct readahead_stream *s;

	/* several readers of one volume may meet here; none waits for another */
	if (!ctr_get(v->cache->tunables.read_ahead) || (!missed && !ctr_get(ra->active)) ||
	    pthread_mutex_trylock(&ra->lock))
		return;
	s = find(ra, off);
	if (s) {
		s->next = off + len;
		s->used = ++ra->clock;
		if (!s->ahead && missed) {
			s->ahead = s->next;
			s->window = READAHEAD_MIN;
			atomic_fetch_add_explicit(&ra->active, 1, memory_order_relaxed);
		}
		if (s->ahead && s->ahead < s->next + s->window / 2)
			extend(v, s);
	} else if (missed) {
		new_candidate(ra, off + len);
	}
	pthread_mutex_unlock(&ra->lock);
}

/* Everything was there: the stream reads what is cached, and needs no help until it misses again. */
void readahead_note_cached(struct volume *v, uint64_t off, uint32_t len)
{
	struct readahead *ra = &v->readahead;

	pthread_mutex_lock(&ra->lock);
	for (int i = 0; i < READAHEAD_STREAMS; i++) {
		struct readahead_stream *s = &ra->stream[i];

		if (s->ahead && off >= s->next && off + len <= s->ahead)
			end_stream(ra, s);
	}
	pthread_mutex_unlock(&ra->lock);
}
