/* SPDX-License-Identifier: BSD-3-Clause */
/* stats.c - what the counters say, for people and dashboards. Reads atomics only: never waits for I/O (P11). */
#include "bypass.h"

#include <stdlib.h>
#include <string.h>

static void usage(struct volume *v, struct volume_stats *s)
{
	s->usage.occupied_lines = GET(v->lines);
	s->usage.dirty_lines = GET(v->dirty_lines);
	if (s->usage.dirty_lines > s->usage.occupied_lines)
		s->usage.dirty_lines = s->usage.occupied_lines; /* read one after the other */
	s->usage.clean_lines = s->usage.occupied_lines - s->usage.dirty_lines;
	s->dirty_bytes = GET(v->dirty_blocks) * CACHE_BLOCK;
}

static void add_counts(struct volume *v, struct volume_stats *s)
{
	struct volume_counters *n = &v->n;

	s->requests.read_hits += GET(n->read_hits);
	s->requests.read_partial_misses += GET(n->read_partial_misses);
	s->requests.read_misses += GET(n->read_misses);
	s->requests.write_hits += GET(n->write_hits);
	s->requests.write_partial_misses += GET(n->write_partial_misses);
	s->requests.write_misses += GET(n->write_misses);
	s->requests.pass_through_reads += GET(n->pass_through_reads);
	s->requests.pass_through_writes += GET(n->pass_through_writes);
	s->requests.flushes += GET(n->flushes);
	s->requests.discards += GET(n->discards);
	s->bytes.volume_read += GET(n->volume_read);
	s->bytes.volume_written += GET(n->volume_written);
	s->bytes.ram_read += GET(n->ram_read);
	s->bytes.cache_read += GET(n->cache_read);
	s->bytes.cache_written += GET(n->cache_written);
	s->bytes.backing_read += GET(n->backing_read);
	s->bytes.backing_written += GET(n->backing_written);
	s->errors.cache_read += GET(n->err_cache_read);
	s->errors.cache_write += GET(n->err_cache_write);
	s->errors.backing_read += GET(n->err_backing_read);
	s->errors.backing_write += GET(n->err_backing_write);
	s->errors.checksum += GET(n->err_checksum);
}

static struct latency_summary summary(const struct hist *h)
{
	return (struct latency_summary){
		.count = hist_count(h),
		.p50 = (double)hist_quantile(h, 0.5) / 1000,
		.p99 = (double)hist_quantile(h, 0.99) / 1000,
		.max = (double)GET(((struct hist *)(uintptr_t)h)->max) / 1000,
	};
}

void volume_get_stats(struct volume *v, struct volume_stats *s)
{
	memset(s, 0, sizeof *s);
	usage(v, s);
	add_counts(v, s);
	s->latency_us.read_hit = summary(&v->n.read_hit);
	s->latency_us.read_miss = summary(&v->n.read_miss);
	s->latency_us.write = summary(&v->n.write);
	s->latency_us.flush = summary(&v->n.flush);
}

struct total {
	struct volume_stats *s;
	struct hist read_hit, read_miss, write, flush;
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
	hist_merge(&t->read_hit, &v->n.read_hit);
	hist_merge(&t->read_miss, &v->n.read_miss);
	hist_merge(&t->write, &v->n.write);
	hist_merge(&t->flush, &v->n.flush);
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
	s->latency_us.read_hit = summary(&t->read_hit);
	s->latency_us.read_miss = summary(&t->read_miss);
	s->latency_us.write = summary(&t->write);
	s->latency_us.flush = summary(&t->flush);
	free(t);
}

static enum cache_state state_of(struct cache *c)
{
	if (c->failed && !cache_bypassed(c))
		return STATE_FAILED;
	if (c->stopping)
		return STATE_STOPPING;
	if (c->flushing)
		return STATE_FLUSHING;
	return c->degraded || c->failed ? STATE_DEGRADED : STATE_RUNNING;
}

enum cache_state volume_state(struct volume *v)
{
	enum cache_state s = state_of(v->cache);

	if (s == STATE_RUNNING && atomic_load(&v->backing_failed))
		s = STATE_DEGRADED;
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
	info->default_mode = (enum cache_mode)GET(c->default_mode);
	info->size_bytes = c->geo.size_bytes;
	info->line_size = c->geo.line_size;
	info->lines = c->geo.nlines;
	info->ram_set_bytes = GET(c->tunables.ram_bytes);
	/* of a stopped cache: what a load would take */
	info->ram_bytes =
		c->open_flags & (CACHE_OPEN_NO_VOLUMES | CACHE_OPEN_BRIEF) ? info->ram_set_bytes : c->ram_bytes;
	info->metadata_bytes = c->lines.bytes + c->slots.bytes;
	info->occupied_lines = GET(c->occupied_lines);
	info->dirty_lines = GET(c->dirty_lines);
	if (info->dirty_lines > info->occupied_lines)
		info->dirty_lines = info->occupied_lines;
	info->clean_lines = info->occupied_lines - info->dirty_lines;
	info->free_lines = info->lines - info->occupied_lines;
	info->dirty_bytes = GET(c->dirty_blocks) * CACHE_BLOCK;
	info->volumes = c->nvolumes;
}
