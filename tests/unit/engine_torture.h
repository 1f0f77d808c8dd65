/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * engine_torture.h - many threads on one cache: writers that own their blocks (versions have an order, so that a read
 * has to show one between the last answered before it and the last started by its end), writers that fight over the
 * same blocks (never torn, never another block's), readers, and in between mode switches, cleaning runs, tunables,
 * discards, volumes that come and go. Used by the unit test and by the thread sanitizer's program. ENGINE_SEED,
 * ENGINE_SECONDS.
 */
#ifndef TESTS_ENGINE_TORTURE_H
#define TESTS_ENGINE_TORTURE_H

#include <errno.h>

#include "engine_util.h"

#define T_BLOCKS 2048u /* of the owned volume, 8 MiB */
#define T_SHARED 96u /* blocks that are fought over */
#define T_WRITERS 4u
#define T_FIGHTERS 3u
#define T_READERS 3u
#define T_RUN 24u /* blocks of one request at most */

struct torture {
	struct rig r;
	struct volume *own, *shared;
	_Atomic uint64_t started[T_BLOCKS], answered[T_BLOCKS];
	_Atomic uint64_t zero_from[T_BLOCKS], zero_to[T_BLOCKS]; /* the last two versions that were zeroings */
	_Atomic uint64_t next_shared; /* version */
	_Atomic bool stop;
	_Atomic uint64_t ops;
	bool management;
};

struct torturer {
	struct torture *t;
	uint64_t rng;
	unsigned number;
	pthread_t thread;
	char *buf;
};

/* Owned: writer i has the blocks of every T_WRITERS-th group of T_RUN. */
static inline unsigned t_pick(struct torturer *w, unsigned *n)
{
	unsigned groups = T_BLOCKS / T_RUN, mine = groups / T_WRITERS;
	unsigned g = (unsigned)rnd(&w->rng, mine) * T_WRITERS + w->number, at = (unsigned)rnd(&w->rng, T_RUN);

	*n = 1 + (unsigned)rnd(&w->rng, T_RUN - at);
	return g * T_RUN + at;
}

static inline void t_zero(struct torturer *w, unsigned first, unsigned n)
{
	struct torture *t = w->t;

	for (unsigned b = first; b < first + n; b++) {
		t->started[b]++;
		t->zero_to[b] = t->zero_from[b];
		t->zero_from[b] = t->started[b];
	}
	must(!volume_zero(t->own, (uint64_t)first * CACHE_BLOCK, (uint64_t)n * CACHE_BLOCK, w->rng & 1), "zero");
	for (unsigned b = first; b < first + n; b++)
		t->answered[b] = t->started[b];
}

static void *t_writer(void *arg)
{
	struct torturer *w = arg;
	struct torture *t = w->t;

	while (!t->stop) {
		unsigned n, first = t_pick(w, &n), what = (unsigned)rnd(&w->rng, 100);
		bool zero = what < 4;

		t->ops++;
		if (what == 99) {
			must(!volume_flush(t->own), "flush");
			continue;
		}
		if (zero) {
			t_zero(w, first, n);
			continue;
		}
		for (unsigned b = first; b < first + n; b++)
			stamp(w->buf + (size_t)(b - first) * CACHE_BLOCK, b, ++t->started[b]);
		must(!volume_write(t->own, w->buf, n * CACHE_BLOCK, (uint64_t)first * CACHE_BLOCK, what == 98),
		     "write");
		for (unsigned b = first; b < first + n; b++)
			t->answered[b] = t->started[b];
	}
	return NULL;
}

static inline void t_check(struct torturer *w, unsigned b, uint64_t lo, const char *data)
{
	struct torture *t = w->t;
	int64_t version = stamp_read(data, b);
	uint64_t hi = t->started[b], z0 = t->zero_from[b], z1 = t->zero_to[b];

	must(version >= STAMP_ZERO, "block %u is %s", b, version == STAMP_TORN ? "torn" : "another block's");
	if (version == STAMP_ZERO) /* more than two zeroings during one read: cannot be judged */
		must(!lo || z0 >= lo || z1 >= lo, "block %u is zero; answered %llu, started %llu, zeroed %llu, %llu", b,
		     (unsigned long long)lo, (unsigned long long)hi, (unsigned long long)z0, (unsigned long long)z1);
	else
		must((uint64_t)version >= lo && (uint64_t)version <= hi,
		     "block %u has version %lld; answered before %llu, started after %llu", b, (long long)version,
		     (unsigned long long)lo, (unsigned long long)hi);
}

static void *t_reader(void *arg)
{
	struct torturer *w = arg;
	struct torture *t = w->t;

	while (!t->stop) {
		unsigned n = 1 + (unsigned)rnd(&w->rng, T_RUN), first = (unsigned)rnd(&w->rng, T_BLOCKS - n);
		uint64_t lo[T_RUN];

		t->ops++;
		for (unsigned i = 0; i < n; i++)
			lo[i] = t->answered[first + i];
		must(!volume_pread(t->own, w->buf, n * CACHE_BLOCK, (uint64_t)first * CACHE_BLOCK), "read");
		for (unsigned i = 0; i < n; i++)
			t_check(w, first + i, lo[i], w->buf + (size_t)i * CACHE_BLOCK);
	}
	return NULL;
}

/* Each keeps the highest version it has seen of a block: older ones must not come back but for a writer that was on its
 * way, whose version is at least the lowest under way. Writers hold one version for all blocks of a request. */
static void *t_fighter(void *arg)
{
	struct torturer *w = arg;
	struct torture *t = w->t;

	while (!t->stop) {
		unsigned n = 1 + (unsigned)rnd(&w->rng, T_RUN), first = (unsigned)rnd(&w->rng, T_SHARED - n);
		uint64_t version = ++t->next_shared;

		t->ops++;
		for (unsigned i = 0; i < n; i++)
			stamp(w->buf + (size_t)i * CACHE_BLOCK, first + i, version);
		must(!volume_write(t->shared, w->buf, n * CACHE_BLOCK, (uint64_t)first * CACHE_BLOCK, false), "write");
		must(!volume_pread(t->shared, w->buf, n * CACHE_BLOCK, (uint64_t)first * CACHE_BLOCK), "read");
		for (unsigned i = 0; i < n; i++) {
			int64_t got = stamp_read(w->buf + (size_t)i * CACHE_BLOCK, first + i);

			must(got > 0 && (uint64_t)got <= t->next_shared, "shared block %u: %lld", first + i,
			     (long long)got);
		}
	}
	return NULL;
}

/* Adds a volume, uses it, removes it: with what is dirty written back, or dropped on request. */
static inline void t_come_and_go(struct torturer *w)
{
	struct torture *t = w->t;
	struct bc_error err = { 0 };
	bool drop = rnd(&w->rng, 2);
	struct volume *v;
	int rc;

	must(!cache_volume_add(t->r.c, "guest", "malloc:size=2M", (enum cache_mode)rnd(&w->rng, CACHE_MODE_COUNT),
			       &err),
	     "%s", err.msg);
	v = cache_volume_get(t->r.c, "guest");
	must(v, "guest");
	for (unsigned i = 0; i < 20; i++) {
		unsigned b = (unsigned)rnd(&w->rng, 512);

		stamp(w->buf, b, i + 1);
		must(!volume_write(v, w->buf, CACHE_BLOCK, (uint64_t)b * CACHE_BLOCK, false), "write");
		must(!volume_pread(v, w->buf, CACHE_BLOCK, (uint64_t)b * CACHE_BLOCK), "read");
		must(stamp_read(w->buf, b) == i + 1, "guest's block");
	}
	must(cache_volume_remove(t->r.c, "guest", drop, &err) == -EBUSY, "removed while it was in use");
	volume_put(v);
	rc = cache_volume_remove(t->r.c, "guest", drop, &err);
	must(!rc, "remove: %s", err.msg);
}

static void *t_manager(void *arg)
{
	struct torturer *w = arg;
	struct torture *t = w->t;
	struct bc_error err = { 0 };
	struct volume_stats s;
	struct cache_info info;

	while (!t->stop) {
		usleep(1000 * (useconds_t)rnd(&w->rng, 5));
		switch (rnd(&w->rng, 7)) {
		case 0:
			rig_mode(rnd(&w->rng, 2) ? t->own : t->shared, (enum cache_mode)rnd(&w->rng, CACHE_MODE_COUNT));
			break;
		case 1:
			rig_set(&t->r, "clean-after", rnd(&w->rng, 2) ? "0s" : "5ms");
			break;
		case 2:
			rig_set(&t->r, "dirty-high", rnd(&w->rng, 2) ? "10" : "90");
			break;
		case 6:
			rig_set(&t->r, "read-ahead", rnd(&w->rng, 2) ? "0" : "128K");
			break;
		case 3:
			cache_get_totals(t->r.c, &s);
			volume_get_stats(t->own, &s);
			cache_get_info(t->r.c, &info);
			must(info.occupied_lines <= info.lines, "lines");
			break;
		case 4:
			must(!cache_write_back(t->r.c, rnd(&w->rng, 2) ? t->own : NULL, NULL, NULL, &err), "%s",
			     err.msg);
			break;
		default:
			t_come_and_go(w);
		}
	}
	return NULL;
}

/* Zeroes what lies past the owned blocks: ranges too large for one range lock. */
static void *t_discarder(void *arg)
{
	struct torturer *w = arg;
	struct torture *t = w->t;
	uint64_t base = (uint64_t)T_BLOCKS * CACHE_BLOCK, room = volume_size(t->own) - base;

	while (!t->stop) {
		uint64_t len = VOLUME_MAX_IO + rnd(&w->rng, room - VOLUME_MAX_IO),
			 off = base + rnd(&w->rng, room - len + 1);

		memset(w->buf, 0x5a, 3 * CACHE_BLOCK);
		must(!volume_write(t->own, w->buf, 3 * CACHE_BLOCK, off, false), "write");
		must(!volume_zero(t->own, off, len, true), "zero");
		must(!volume_pread(t->own, w->buf, 3 * CACHE_BLOCK, off), "read");
		for (unsigned i = 0; i < 3 * CACHE_BLOCK; i++)
			must(!w->buf[i], "byte %u after a discard", i);
		usleep(2000);
	}
	return NULL;
}

static inline void t_start(struct torture *t, struct torturer *w, unsigned number, uint64_t seed, void *(*fn)(void *))
{
	*w = (struct torturer){ .t = t, .rng = seed, .number = number };
	w->buf = aligned_alloc(4096, T_RUN * CACHE_BLOCK);
	must(!pthread_create(&w->thread, NULL, fn, w), "pthread_create");
}

/* What is on the backing files in the end is what was last answered. */
static inline void t_verify(struct torture *t)
{
	struct torturer w = { .t = t };
	char *buf = aligned_alloc(4096, CACHE_BLOCK);

	rig_write_back(&t->r, NULL);
	for (unsigned b = 0; b < T_BLOCKS; b++) {
		rig_backing(&t->r, 0, buf, CACHE_BLOCK, (uint64_t)b * CACHE_BLOCK);
		t_check(&w, b, t->answered[b], buf);
		must(!volume_pread(t->own, buf, CACHE_BLOCK, (uint64_t)b * CACHE_BLOCK), "read");
		t_check(&w, b, t->answered[b], buf);
	}
	free(buf);
}

static inline void torture_run(uint64_t size, uint32_t line, uint64_t ram, bool management, double seconds)
{
	struct torture *t = calloc(1, sizeof *t);
	struct torturer w[T_WRITERS + T_FIGHTERS + T_READERS + 3];
	uint64_t seed = engine_seed();
	unsigned n = 0;
	struct cache_info info;

	seconds = (double)env_number("ENGINE_SECONDS", 0) > 0 ? (double)env_number("ENGINE_SECONDS", 0) : seconds;
	rig_create(&t->r, size, line, ram, CACHE_MODE_WB);
	rig_open(&t->r);
	rig_set(&t->r, "clean-after", "5ms");
	rig_set(&t->r, "epoch-interval", "10ms");
	rig_set(&t->r, "tidy", "8K"); /* blocks move around under everything else */
	t->own = rig_add(&t->r, "", T_BLOCKS * CACHE_BLOCK + 6 * MIB, CACHE_MODE_WB);
	t->shared = rig_add(&t->r, "", T_SHARED * CACHE_BLOCK, CACHE_MODE_WB);
	for (unsigned i = 0; i < T_WRITERS; i++, n++)
		t_start(t, &w[n], i, seed + n, t_writer);
	for (unsigned i = 0; i < T_FIGHTERS; i++, n++)
		t_start(t, &w[n], i, seed + n, t_fighter);
	for (unsigned i = 0; i < T_READERS; i++, n++)
		t_start(t, &w[n], i, seed + n, t_reader);
	t_start(t, &w[n], 0, seed + n, t_discarder), n++;
	if (management)
		t_start(t, &w[n], 0, seed + n, t_manager), n++;
	usleep((useconds_t)(seconds * 1e6));
	t->stop = true;
	for (unsigned i = 0; i < n; i++) {
		pthread_join(w[i].thread, NULL);
		free(w[i].buf);
	}
	cache_get_info(t->r.c, &info);
	must(info.state != CACHE_STATE_FAILED && info.state != CACHE_STATE_DEGRADED, "%s", info.why);
	fprintf(stderr, "%llu requests\n", (unsigned long long)t->ops);
	must(t->ops > 100, "%llu requests in %g s: stuck?", (unsigned long long)t->ops, seconds);
	t_verify(t);
	rig_close(&t->r);
	rig_open(&t->r);
	t->own = t->r.v[0];
	t->shared = t->r.v[1];
	t_verify(t);
	rig_destroy(&t->r);
	free(t);
}

#endif
