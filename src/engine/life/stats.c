/* SPDX-License-Identifier: BSD-3-Clause */
/* stats.c - what the counters say, for people and dashboards. Reads atomics only: never waits for I/O (P11). */
#include "engine/life/life.h"

#include "engine/durable/bypass.h"

#include <stdlib.h>
#include <string.h>

static void usage(struct volume *v, struct volume_stats *s)
{
	s->usage.occupied_lines = ctr_get(v->lines);
	s->usage.dirty_lines = ctr_get(v->dirty_lines);
	if (s->usage.dirty_lines > s->usage.occupied_lines)
		s->usage.dirty_lines = s->usage.occupied_lines; /* read one after the other */
	s->usage.clean_lines = s->usage.occupied_lines - s->usage.dirty_lines;
	s->dirty_bytes = ctr_get(v->dirty_blocks) * CACHE_BLOCK;
}

static void add_counts(struct volume *v, struct volume_stats *s)
{
	struct volume_counters *n = &v->n;

#define ADD_REQUESTS(name, help) s->requests.name += ctr_get(n->name);
#define ADD_BYTES(name, help) s->bytes.name += ctr_get(n->name);
#define ADD_ERRORS(name, help) s->errors.name += ctr_get(n->err_##name);
	REQUEST_COUNTERS(ADD_REQUESTS)
	BYTE_COUNTERS(ADD_BYTES)
	ERROR_COUNTERS(ADD_ERRORS)
}

static struct latency_summary summary(const struct hist *h)
{
	struct latency_summary s = {
		.p50 = (double)hist_quantile(h, 0.5) / 1000,
		.p99 = (double)hist_quantile(h, 0.99) / 1000,
		.max = (double)ctr_get(((struct hist *)(uintptr_t)h)->max) / 1000,
		.sum = hist_sum(h) / 1000,
	};

	for (unsigned i = 0; i < LATENCY_BUCKETS; i++)
		s.bucket[i] = hist_count_below(h, i + LATENCY_FIRST_SHIFT);
	s.count = hist_count(h); /* last: the total is not smaller than a bucket */
	return s;
}

uint64_t volume_changes(struct volume *v)
{
	return ctr_get(v->n.volume_written) + ctr_get(v->n.discards);
}

void volume_get_stats(struct volume *v, struct volume_stats *s)
{
	memset(s, 0, sizeof *s);
	usage(v, s);
	add_counts(v, s);
#define SUMMARY_OF_VOLUME(name, help) s->latency.name = summary(&v->n.name);
	LATENCY_HISTOGRAMS(SUMMARY_OF_VOLUME)
}

struct total {
	struct volume_stats *s;
	LATENCY_HISTOGRAMS(COUNTER_HIST)
};

static int add_volume(struct volume *v, void *ctx)
{
	struct total *t = ctx;
	struct volume_stats one = { 0 };

	usage(v, &one);
	t->s->usage.occupied_lines += one.usage.occupied_lines;
	t->s->usage.clean_lines += one.usage.clean_lines;
	t->s->usage.dirty_lines += one.usage.dirty_lines;
	t->s->dirty_bytes += one.dirty_bytes;
	add_counts(v, t->s);
#define MERGE(name, help) hist_merge(&t->name, &v->n.name);
	LATENCY_HISTOGRAMS(MERGE)
	return 0;
}

void cache_get_totals(struct cache *c, struct volume_stats *s)
{
	struct total *t = calloc(1, sizeof *t); /* four histograms: too much for a small stack */

	memset(s, 0, sizeof *s);
	if (!t)
		return;
	t->s = s;
	cache_volume_foreach(c, add_volume, t);
	s->errors.cache_write += ctr_get(c->err_cache_write);
#define SUMMARY_OF_ALL(name, help) s->latency.name = summary(&t->name);
	LATENCY_HISTOGRAMS(SUMMARY_OF_ALL)
	free(t);
}

struct lost_name {
	char *why;
	size_t len;
};

static int find_lost(struct volume *v, void *ctx)
{
	const struct lost_name *l = ctx;

	if (!ctr_get(v->known.name_lost))
		return 0;
	snprintf(l->why, l->len, "volume %s: its backing file was moved or deleted; 'blkcache flush' says what to do",
		 v->name);
	return 1;
}

/* Something has lost its name (identity.c): says what. */
static bool name_lost(struct cache *c, char *why, size_t len)
{
	struct lost_name l = { why, len };

	if (ctr_get(c->deleted)) {
		snprintf(why, len, "its data file was deleted while it is loaded; flush it");
		return true;
	}
	return cache_volume_foreach(c, find_lost, &l) != 0;
}

static enum cache_state state_of(struct cache *c)
{
	if (c->failed && !cache_bypassed(c))
		return CACHE_STATE_FAILED;
	if (c->stopping)
		return CACHE_STATE_STOPPING;
	if (c->writing_back)
		return CACHE_STATE_FLUSHING;
	return c->degraded || c->failed ? CACHE_STATE_DEGRADED : CACHE_STATE_RUNNING;
}

enum cache_state volume_state(struct volume *v)
{
	enum cache_state s = state_of(v->cache);

	if (s == CACHE_STATE_RUNNING && (atomic_load(&v->backing_failed) || ctr_get(v->known.name_lost)))
		s = CACHE_STATE_DEGRADED;
	return s;
}

void cache_get_info(struct cache *c, struct cache_info *info)
{
	const uint8_t *u = c->geo.uuid;

	memset(info, 0, sizeof *info);
	info->dir = c->dir;
	snprintf(info->uuid, sizeof info->uuid, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
		 u[0], u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
	info->state = state_of(c);
	pthread_mutex_lock(&c->why_lock);
	memcpy(info->why, c->why, sizeof info->why);
	pthread_mutex_unlock(&c->why_lock);
	if ((!info->why[0] || info->state == CACHE_STATE_RUNNING) && name_lost(c, info->why, sizeof info->why) &&
	    info->state == CACHE_STATE_RUNNING)
		info->state = CACHE_STATE_DEGRADED;
	info->default_mode = (enum cache_mode)ctr_get(c->default_mode);
	info->size_bytes = c->geo.size_bytes;
	info->line_size = c->geo.line_size;
	info->lines = c->geo.nlines;
	info->ram_set_bytes = ctr_get(c->tunables.ram_bytes);
	/* of a stopped cache: what a load would take */
	info->ram_bytes =
		c->open_flags & (CACHE_OPEN_NO_VOLUMES | CACHE_OPEN_BRIEF) ? info->ram_set_bytes : c->ram_bytes;
	info->metadata_bytes = c->lines.bytes + c->slots.bytes;
	info->occupied_lines = info->lines - ctr_get(c->lines.nfree);
	info->dirty_lines = ctr_get(c->dirty_lines);
	if (info->dirty_lines > info->occupied_lines)
		info->dirty_lines = info->occupied_lines;
	info->clean_lines = info->occupied_lines - info->dirty_lines;
	info->free_lines = info->lines - info->occupied_lines;
	info->dirty_bytes = ctr_get(c->dirty_blocks) * CACHE_BLOCK;
	info->volumes = c->nvolumes;
}
