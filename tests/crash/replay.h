/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * replay.h - from a log to what a power loss may leave. For a crash point p (the first p events happened) a change is
 * *durable* if a sync of its file began after it was done and ended before p; all others are *unsure*: each on its own
 * may be there, missing or (a write) there in part, sector by sector. Changes of names are a file of their own, the
 * folder. A file's modification time is unsure until a sync that includes it, and goes its own way too.
 */
#ifndef CRASH_REPLAY_H
#define CRASH_REPLAY_H

#include "world.h"

struct rng {
	uint64_t s;
};

static inline uint64_t rng_next(struct rng *r)
{
	uint64_t z = (r->s += 0x9e3779b97f4a7c15ull);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

static inline uint32_t rng_below(struct rng *r, uint32_t n)
{
	return (uint32_t)(rng_next(r) % n);
}

struct pending {
	uint32_t event;
	bool durable;
};

struct sweep {
	const struct log *log;
	struct world *base; /* everything durable, as far as nothing unsure lies before it in its file */
	uint32_t pos;
	struct pending *pending; /* the rest, in order */
	uint32_t npending, cap, nunsure;
	int64_t mtime[MAX_FILES], durable_mtime[MAX_FILES];
};

/* start: the world in which the log begins; not changed. */
void sweep_begin(struct sweep *s, const struct world *start, const struct log *log);
void sweep_to(struct sweep *s, uint32_t pos); /* forward only */
void sweep_end(struct sweep *s);

/* One byte per unsure change: 0 missing, 1 there, others: torn, in a way that the number decides. */
enum { CHOICE_DROP, CHOICE_KEEP, CHOICE_TORN };

/* Fills choice[nunsure]. style: how; 0 .. STYLES-1. */
#define STYLES 9
#define STYLE_NONE 1 /* nothing of what is unsure is left */
void choose(const struct sweep *s, unsigned style, struct rng *r, uint8_t *choice);
/* The world after the power loss; the caller's. */
struct world *crash(const struct sweep *s, const uint8_t *choice);
/* For people: what the choice is about. */
void explain(const struct sweep *s, const uint8_t *choice);

#endif
