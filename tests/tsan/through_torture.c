/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * through_torture.c - what goes to the backing device, under the thread sanitizer: writes through and durable ones,
 * flushes, write-intent marks that are set and cleared all the time, mode switches, cleaning runs, and a volume that
 * comes and goes while others use it. (engine_torture.c does mostly writing back.) Writers own their blocks; what they
 * wrote last has to be there in the end. Ends with 0, or is aborted.
 */
#define ENGINE_PLAIN
#include "../unit/engine_util.h"
#include "tsan.h"

#include <errno.h>

#define WRITERS 3u
#define BLOCKS 48u /* of each writer */
#define SECONDS 3

static struct {
	struct rig r;
	_Atomic bool stop;
	_Atomic uint64_t ops;
	uint64_t version[WRITERS][BLOCKS];
} t;

struct worker {
	unsigned number;
	uint64_t rng;
	pthread_t thread;
	char *buf;
};

static void write_some(struct worker *w)
{
	unsigned at = (unsigned)rnd(&w->rng, BLOCKS), n = 1 + (unsigned)rnd(&w->rng, 4), first;

	if (n > BLOCKS - at)
		n = BLOCKS - at;
	first = w->number * BLOCKS + at;
	for (unsigned i = 0; i < n; i++)
		stamp(w->buf + (size_t)i * CACHE_BLOCK, first + i, ++t.version[w->number][at + i]);
	must(!volume_write(t.r.v[0], w->buf, n * CACHE_BLOCK, (uint64_t)first * CACHE_BLOCK, rnd(&w->rng, 3) == 0),
	     "write");
}

static void check_block(struct worker *w, unsigned at)
{
	unsigned block = w->number * BLOCKS + at;
	int64_t version;

	must(!volume_pread(t.r.v[0], w->buf, CACHE_BLOCK, (uint64_t)block * CACHE_BLOCK), "read");
	version = stamp_read(w->buf, block);
	must(t.version[w->number][at] ? version == (int64_t)t.version[w->number][at] : version == STAMP_ZERO,
	     "block %u has version %lld and not %llu", block, (long long)version,
	     (unsigned long long)t.version[w->number][at]);
}

/* The volume that comes and goes: whoever gets hold of it may use it. */
static void use_guest(struct worker *w)
{
	struct volume *v = cache_volume_get(t.r.c, "guest");

	if (!v)
		return;
	memset(w->buf, (int)w->number, CACHE_BLOCK);
	must(!volume_write(v, w->buf, CACHE_BLOCK, rnd(&w->rng, 64) * CACHE_BLOCK, rnd(&w->rng, 2)), "guest");
	must(!volume_flush(v), "guest's flush");
	volume_put(v);
}

static void *writer(void *arg)
{
	struct worker *w = arg;

	while (!t.stop) {
		unsigned what = (unsigned)rnd(&w->rng, 16);

		t.ops++;
		if (what < 9)
			write_some(w);
		else if (what < 12)
			check_block(w, (unsigned)rnd(&w->rng, BLOCKS));
		else if (what < 15)
			must(!volume_flush(t.r.v[0]), "flush");
		else
			use_guest(w);
	}
	return NULL;
}

static void come_and_go(struct worker *w)
{
	struct bc_error err = { 0 };
	int rc = cache_volume_add(t.r.c, "guest", "malloc:size=1M", rnd(&w->rng, 2) ? CACHE_MODE_WT : CACHE_MODE_WB,
				  &err);

	must(!rc || rc == -EEXIST, "add: %s", err.msg);
	usleep(2000);
	rc = cache_volume_remove(t.r.c, "guest", rnd(&w->rng, 2), &err);
	must(!rc || rc == -EBUSY, "remove: %s", err.msg);
}

static void *manager(void *arg)
{
	static const enum cache_mode modes[] = { CACHE_MODE_WT, CACHE_MODE_WT, CACHE_MODE_WA,
						 CACHE_MODE_WI, CACHE_MODE_PT, CACHE_MODE_WB };
	struct worker *w = arg;
	struct bc_error err = { 0 };
	struct cache_info info;

	while (!t.stop) {
		usleep(1000 * (useconds_t)rnd(&w->rng, 5));
		switch (rnd(&w->rng, 5)) {
		case 0:
		case 1:
			rig_mode(t.r.v[0], modes[rnd(&w->rng, sizeof modes / sizeof modes[0])]);
			break;
		case 2:
			must(!cache_write_back(t.r.c, rnd(&w->rng, 2) ? t.r.v[0] : NULL, NULL, NULL, &err), "%s",
			     err.msg);
			break;
		case 3:
			cache_get_info(t.r.c, &info);
			must(info.state != CACHE_STATE_FAILED && info.state != CACHE_STATE_DEGRADED, "%s", info.why);
			break;
		default:
			come_and_go(w);
		}
	}
	return NULL;
}

int main(void)
{
	struct worker w[WRITERS + 1] = { 0 };
	uint64_t seed = engine_seed();

	rig_create(&t.r, 2 * MIB, 8192, CACHE_MIN_RAM, CACHE_MODE_WT);
	rig_open(&t.r);
	rig_set(&t.r, "epoch-interval", "10ms"); /* marks are cleared as often */
	rig_set(&t.r, "clean-after", "5ms");
	rig_add(&t.r, "", WRITERS * BLOCKS * CACHE_BLOCK, CACHE_MODE_WT);
	for (unsigned i = 0; i <= WRITERS; i++) {
		w[i] = (struct worker){ .number = i, .rng = seed + i, .buf = aligned_alloc(4096, 4 * CACHE_BLOCK) };
		must(!pthread_create(&w[i].thread, NULL, i < WRITERS ? writer : manager, &w[i]), "pthread_create");
	}
	usleep(SECONDS * 1000000);
	t.stop = true;
	for (unsigned i = 0; i <= WRITERS; i++)
		pthread_join(w[i].thread, NULL);
	fprintf(stderr, "%llu requests\n", (unsigned long long)t.ops);
	rig_close(&t.r);
	rig_open(&t.r);
	for (unsigned i = 0; i < WRITERS; i++)
		for (unsigned b = 0; b < BLOCKS; b++)
			check_block(&w[i], b);
	rig_destroy(&t.r);
	for (unsigned i = 0; i <= WRITERS; i++)
		free(w[i].buf);
	puts("ok");
	return 0;
}
