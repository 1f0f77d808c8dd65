/* SPDX-License-Identifier: BSD-3-Clause */
/* test_engine_torture.c - see engine_torture.h: many threads on caches that are much too small, and on roomy ones. */
#include "engine_torture.h"

Test(engine_torture, small_lines_and_no_room, .timeout = 60)
{
	torture_run(2 * MIB, 4096, CACHE_MIN_RAM, false, 0.7);
}

Test(engine_torture, large_lines_and_no_room, .timeout = 60)
{
	torture_run(2 * MIB, 65536, CACHE_MIN_RAM, false, 0.7);
}

Test(engine_torture, managed_meanwhile, .timeout = 60)
{
	torture_run(4 * MIB, 4096, CACHE_MIN_RAM, true, 1);
}

Test(engine_torture, managed_meanwhile_8k_lines, .timeout = 60)
{
	torture_run(32 * MIB, 8192, 4 * MIB, true, 1);
}

/* More writers than the cache has lines, each at two of them: nobody may hold what another one's room has to be made
 * of. A deadlock ends in the time limit. */
static void *crowd_writer(void *arg)
{
	struct torturer *w = arg;

	for (unsigned i = 0; i < 40; i++) {
		unsigned line = (unsigned)rnd(&w->rng, 40);
		uint64_t off = line * 65536ull + CACHE_BLOCK * (1 + rnd(&w->rng, 15));

		memset(w->buf, (int)i + 1, 16 * CACHE_BLOCK);
		must(!volume_write(w->t->own, w->buf, 16 * CACHE_BLOCK, off, false), "write");
	}
	return NULL;
}

/* All of it again and again, while the cache is full of what is dirty in it. */
static void *crowd_discarder(void *arg)
{
	struct torturer *w = arg;

	for (unsigned i = 0; i < 10; i++)
		must(!volume_zero(w->t->own, 0, volume_size(w->t->own), true), "zero");
	return NULL;
}

Test(engine_torture, more_writers_than_lines, .timeout = 30)
{
	struct torture *t = calloc(1, sizeof *t);
	struct torturer w[33];
	uint64_t seed = engine_seed();

	rig_create(&t->r, MIB, 65536, CACHE_MIN_RAM, CACHE_MODE_WB);
	rig_open(&t->r);
	rig_set(&t->r, "clean-after", "86400s");
	t->own = rig_add(&t->r, "", 4 * MIB, CACHE_MODE_WB);
	for (unsigned i = 0; i < 33; i++)
		t_start(t, &w[i], i, seed + i, i < 32 ? crowd_writer : crowd_discarder);
	for (unsigned i = 0; i < 33; i++) {
		pthread_join(w[i].thread, NULL);
		free(w[i].buf);
	}
	rig_destroy(&t->r);
	free(t);
}
