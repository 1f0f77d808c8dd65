/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_hits.c - a hit in RAM takes no lock (P11): with every lock of the tables held by somebody else it is answered
 * all the same.
 */
#include <criterion/criterion.h>

#include "buffer/internal.h"
#include "engine_util.h"

#define BLOCKS 64u

static struct rig r;
static char buf[16 * CACHE_BLOCK] __attribute__((aligned(4096)));

static void *hits(void *arg)
{
	(void)arg;
	for (uint32_t b = 0; b < BLOCKS; b++) {
		must(!volume_pread(r.v[0], buf, CACHE_BLOCK, (uint64_t)b * CACHE_BLOCK), "read");
		must(stamp_read(buf, b) > 0, "block %u", b);
	}
	must(!volume_pread(r.v[0], buf, 16 * CACHE_BLOCK, 5 * CACHE_BLOCK), "read");
	for (uint32_t b = 5; b < 5 + 16; b++)
		must(stamp_read(buf + (size_t)(b - 5) * CACHE_BLOCK, b) > 0, "block %u", b);
	return NULL;
}

Test(hits, take_no_lock, .timeout = 30)
{
	for (uint32_t line = 4096; line <= 65536; line *= 16) {
		struct volume_stats before, after;
		pthread_t t;

		rig_create(&r, 8 << 20, line, 4 << 20, CACHE_MODE_WB);
		rig_open(&r);
		rig_add(&r, "", BLOCKS * CACHE_BLOCK, CACHE_MODE_WB);
		rig_set(&r, "epoch-interval", "60s"); /* nobody else at work */
		for (uint32_t b = 0; b < BLOCKS; b++) {
			stamp(buf, b, 1);
			must(!volume_write(r.v[0], buf, CACHE_BLOCK, (uint64_t)b * CACHE_BLOCK, false), "write");
		}
		must(!epoch_commit(r.c, true), "commit");
		volume_get_stats(r.v[0], &before);

		for (uint32_t i = 0; i < r.c->lines.nstripes; i++)
			pthread_mutex_lock(&r.c->lines.stripes[i].lock);
		for (uint32_t i = 0; i < r.c->buffers->ngroups; i++)
			group_lock(&r.c->buffers->groups[i]);
		for (unsigned i = 0; i < RANGE_STRIPES; i++)
			pthread_mutex_lock(&r.c->ranges.stripe[i].lock);
		pthread_mutex_lock(&r.c->pool->lock);
		pthread_mutex_lock(&r.c->slots.lock);
		pthread_mutex_lock(&r.c->epoch.lock);
		pthread_rwlock_wrlock(&r.c->epoch.gate);
		pthread_mutex_lock(&r.v[0]->row_lock);

		must(!pthread_create(&t, NULL, hits, NULL), "pthread_create");
		pthread_join(t, NULL); /* or the test's time limit */

		pthread_mutex_unlock(&r.v[0]->row_lock);
		pthread_rwlock_unlock(&r.c->epoch.gate);
		pthread_mutex_unlock(&r.c->epoch.lock);
		pthread_mutex_unlock(&r.c->slots.lock);
		pthread_mutex_unlock(&r.c->pool->lock);
		for (unsigned i = 0; i < RANGE_STRIPES; i++)
			pthread_mutex_unlock(&r.c->ranges.stripe[i].lock);
		for (uint32_t i = 0; i < r.c->buffers->ngroups; i++)
			group_unlock(&r.c->buffers->groups[i]);
		for (uint32_t i = 0; i < r.c->lines.nstripes; i++)
			pthread_mutex_unlock(&r.c->lines.stripes[i].lock);

		volume_get_stats(r.v[0], &after);
		cr_assert_eq(after.requests.read_hits - before.requests.read_hits, BLOCKS + 1);
		rig_close(&r);
		rig_destroy(&r);
	}
}
