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

	a->read += GET(n->volume_read);
	a->written += GET(n->volume_written);
	a->requests += GET(n->read_hits) + GET(n->read_partial_misses) + GET(n->read_misses) + GET(n->write_hits) +
		       GET(n->write_partial_misses) + GET(n->write_misses) + GET(n->pass_through_reads) +
		       GET(n->pass_through_writes) + GET(n->flushes) + GET(n->discards);
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
	return a->read + a->written - GET(c->idle.bytes) <= QUIET_BYTES * seconds &&
	       a->requests - GET(c->idle.requests) <= QUIET_REQUESTS * seconds;
}

bool idle_is_wanted(struct cache *c)
{
	return !c->failed && !GET(c->stopping) && !GET(c->flushing) && GET(c->tunables.tidy_bytes);
}

bool idle_over(struct cache *c)
{
	struct activity a;

	if (!idle_is_wanted(c) || !GET(c->idle.quiet))
		return true;
	a = activity_of(c);
	return !activity_is_quiet(c, &a, 1);
}
