/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * activity.c - how much clients ask for, and whether that is so little that background work may go on (idle.c).
 */
#include "engine/work/work.h"

/* In a second: a machine on a volume that does nothing writes a log now and then. */
#define QUIET_BYTES (1u << 20)
#define QUIET_REQUESTS 64u

static int add_activity(struct volume *v, void *ctx)
{
	struct activity *a = ctx;
	const struct volume_counters *n = &v->n;

	a->read += ctr_get(n->volume_read);
	a->written += ctr_get(n->volume_written);
	a->requests += ctr_get(n->read_hits) + ctr_get(n->read_partial_misses) + ctr_get(n->read_misses) +
		       ctr_get(n->write_hits) + ctr_get(n->write_partial_misses) + ctr_get(n->write_misses) +
		       ctr_get(n->pass_through_reads) + ctr_get(n->pass_through_writes) + ctr_get(n->flushes) +
		       ctr_get(n->discards);
	return 0;
}

struct activity activity_of(struct cache *c)
{
	struct activity a = { 0 };

	cache_volume_foreach(c, add_activity, &a);
	return a;
}

/* Of what came since the last look. A volume that is removed takes its share away: that is no quiet moment either. */
bool activity_is_quiet(struct cache *c, const struct activity *a, uint64_t seconds)
{
	return a->read + a->written - ctr_get(c->idle.bytes) <= QUIET_BYTES * seconds &&
	       a->requests - ctr_get(c->idle.requests) <= QUIET_REQUESTS * seconds;
}

bool idle_is_wanted(struct cache *c)
{
	return !c->failed && !ctr_get(c->stopping) && !ctr_get(c->writing_back) && ctr_get(c->tunables.tidy_bytes);
}

bool idle_over(struct cache *c)
{
	struct activity a;

	if (!idle_is_wanted(c) || !ctr_get(c->idle.quiet))
		return true;
	a = activity_of(c);
	return !activity_is_quiet(c, &a, 1);
}
