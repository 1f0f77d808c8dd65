/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * ram.c - how much memory the RAM buffers get.
 *
 * The setting `ram` is a wish. What is accepted by `set` and `create` is what this machine could give; what a load then
 * takes is the setting or what is to be had, whichever is less: a cache that was moved to a smaller machine, or one
 * whose machine is short of memory, opens all the same, and says so.
 *
 * A command that opens a stopped cache for a moment (add, set, status, flush) takes a small pool whatever the setting
 * says. A process that takes over takes what the dead one had, which is in the memory that it left: a setting that was
 * changed meanwhile is for the next load.
 */
#include "engine/life/life.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "blkcache/units.h"
#include "util/limits.h"

#define BRIEF_RAM (8u << 20)
#define UNIT ((uint64_t)1 << 20)

uint64_t ram_limit(uint64_t metadata, const char **what, uint64_t *all)
{
	uint64_t limit;

	*all = limits_memory(what);
	/* A quarter is for the buffers' own metadata, the threads, and everybody else on the machine. */
	limit = *all / 4 * 3;
	limit = limit > metadata ? limit - metadata : 0;
	return limit > CACHE_MIN_RAM ? limit / UNIT * UNIT : CACHE_MIN_RAM;
}

int ram_check(uint64_t ram, uint64_t metadata, struct bc_error *err)
{
	char a[32], b[32], c[32];
	const char *what;
	uint64_t all, limit = ram_limit(metadata, &what, &all);

	if (ram <= limit)
		return 0;
	return bc_fail(err, -EINVAL, "ram %s is too much: %s %s, of which buffers may take %s; give less",
		       units_format_size(a, sizeof a, ram), what, units_format_size(b, sizeof b, all),
		       units_format_size(c, sizeof c, limit));
}

/* What the dead process had; 0: it had not come to that. */
static uint64_t inherited(const struct cache *c)
{
	struct stat st;

	if (!c->shared || !c->shared->takeover || fstat(c->shared->frames_fd, &st))
		return 0;
	return (uint64_t)st.st_size;
}

uint64_t ram_to_take(struct cache *c)
{
	uint64_t want = ctr_get(c->tunables.ram_bytes), metadata = c->lines.bytes + c->slots.bytes, all, limit, now;
	const char *what;

	if (inherited(c))
		return inherited(c);
	if (c->open_flags & (CACHE_OPEN_NO_VOLUMES | CACHE_OPEN_BRIEF))
		return want < BRIEF_RAM ? want : BRIEF_RAM;
	limit = ram_limit(metadata, &what, &all);
	now = limits_memory_available() / 8 * 7 / UNIT * UNIT;
	if (limit > now)
		limit = now > BRIEF_RAM ? now : BRIEF_RAM;
	return want < limit ? want : limit;
}

int ram_setup(struct cache *c, struct bc_error *err)
{
	struct buffer_pool_params pp = { .memory = ram_to_take(c),
					 .block_size = CACHE_BLOCK,
					 .shared_fd = c->shared ? c->shared->frames_fd : 0 };
	struct bc_error own = { 0 };
	int rc;

	/* What could not be had may be there in part. What is inherited has to be there as a whole. */
	while ((rc = buffer_pool_create(&pp, &c->pool, &own)) == -ENOMEM && pp.memory / 2 >= CACHE_MIN_RAM &&
	       !inherited(c))
		pp.memory = pp.memory / 2 / CACHE_BLOCK * CACHE_BLOCK;
	if (rc)
		return bc_fail(err, rc, "cache %s: %s", c->dir, own.msg);
	c->ram_bytes = pp.memory;
	return 0;
}

void cache_lock_memory(struct cache *c, uint64_t *locked, uint64_t *all)
{
	const struct lines *l = &c->lines;
	uint64_t n = l->n, blocks = n * l->bpl;
	const struct {
		const void *p;
		size_t len;
	} areas[] = {
		{ l->head, (size_t)l->ngroups * 16 * sizeof *l->head },
		{ l->key, n * sizeof *l->key },
		{ l->next, n * sizeof *l->next },
		{ l->blk, blocks * sizeof *l->blk },
		{ l->mask, l->mask ? n * sizeof *l->mask : 0 },
	};

	*locked = buffer_pool_lock(c->pool, all);
	for (size_t i = 0; i < sizeof areas / sizeof areas[0]; i++) {
		*all += areas[i].len;
		if (areas[i].len && !mlock2(areas[i].p, areas[i].len, MLOCK_ONFAULT))
			*locked += areas[i].len;
	}
}
