/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * json.c - what a cache is and does, as JSON objects. The keys are promised to scripts: do not rename them; add freely.
 * Any thread; reads the engine's counters only, so it never waits for I/O (P11).
 *
 * Counters are tables of {key, offset}: the same table writes a volume's group and the totals.
 */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/daemon.h"

struct field {
	const char *key;
	size_t offset; /* of a uint64_t in struct volume_stats */
};

#define FIELD(group, name)                                                                                             \
	{                                                                                                              \
#name, offsetof(struct volume_stats, group.name)                                                       \
	}
#define END                                                                                                            \
	{                                                                                                              \
		NULL, 0                                                                                                \
	}

static const struct field usage_fields[] = {
	FIELD(usage, occupied_lines),
	FIELD(usage, clean_lines),
	FIELD(usage, dirty_lines),
	END,
};

#define REQUEST_FIELD(name, help) FIELD(requests, name),
#define BYTE_FIELD(name, help) FIELD(bytes, name),
#define ERROR_FIELD(name, help) FIELD(errors, name),
static const struct field request_fields[] = { REQUEST_COUNTERS(REQUEST_FIELD) END };
static const struct field byte_fields[] = { BYTE_COUNTERS(BYTE_FIELD) END };
static const struct field error_fields[] = { ERROR_COUNTERS(ERROR_FIELD) END };

static const struct group {
	const char *key;
	const struct field *fields;
} groups[] = {
	{ "usage", usage_fields },
	{ "requests", request_fields },
	{ "bytes", byte_fields },
	{ "errors", error_fields },
};

json_t *json_text(const char *text)
{
	return json_string_nocheck(text);
}

static json_t *count(uint64_t n)
{
	return json_integer((json_int_t)n);
}

static json_t *fields_object(const struct field *f, const struct volume_stats *s)
{
	json_t *o = json_object();

	for (; f->key; f++)
		json_object_set_new(o, f->key, count(*(const uint64_t *)((const char *)s + f->offset)));
	return o;
}

static json_t *latency_object(const struct latency_summary *l, bool buckets)
{
	json_t *o = json_pack("{s:o,s:f,s:f,s:f,s:f}", "count", count(l->count), "p50", l->p50, "p99", l->p99, "max",
			      l->max, "sum", l->sum),
	       *a;

	if (!o || !buckets)
		return o;
	a = json_array();
	for (unsigned i = 0; i < LATENCY_BUCKETS; i++)
		json_array_append_new(
			a, json_pack("[f,o]", (double)(1ull << (i + LATENCY_FIRST_SHIFT)) / 1000, count(l->bucket[i])));
	json_object_set_new(o, "buckets", a);
	return o;
}

/* The groups that a volume and the totals have in common. */
static void add_groups(json_t *o, const struct volume_stats *s, bool buckets)
{
	json_t *latency = json_object();

	for (size_t i = 0; i < sizeof(groups) / sizeof(groups[0]); i++)
		json_object_set_new(o, groups[i].key, fields_object(groups[i].fields, s));
#define LATENCY_FIELD(name, help) json_object_set_new(latency, #name, latency_object(&s->latency.name, buckets));
	LATENCY_HISTOGRAMS(LATENCY_FIELD)
	json_object_set_new(o, "latency_us", latency);
}

static const char *state_name(const struct json_daemon_view *view, enum cache_state state, struct volume *v)
{
	return cache_state_name(view->state ? view->state(state, v, view->ctx) : state);
}

static json_t *volume_object(struct volume *v, const struct json_daemon_view *view)
{
	struct volume_stats s;
	json_t *o;

	memset(&s, 0, sizeof(s));
	volume_get_stats(v, &s);
	o = json_pack("{s:o,s:o,s:o,s:s,s:s,s:o}", "name", json_text(volume_name(v)), "backing",
		      json_text(volume_backing(v)), "size_bytes", count(volume_size(v)), "mode",
		      cache_mode_name(volume_mode(v)), "state", state_name(view, volume_state(v), v), "dirty_bytes",
		      count(s.dirty_bytes));
	if (o)
		add_groups(o, &s, view->buckets);
	return o;
}

struct collect {
	json_t *list;
	const struct json_daemon_view *view;
};

static int collect_volume(struct volume *v, void *ctx)
{
	struct collect *c = ctx;

	return json_array_append_new(c->list, volume_object(v, c->view));
}

static json_t *cache_object(const struct cache_info *i, const struct json_daemon_view *view)
{
	return json_pack("{s:o,s:s,s:s,s:o,s:I,s:o,s:o,s:o,s:o,s:o,s:o}", "dir", json_text(i->dir), "uuid", i->uuid,
			 "state", state_name(view, i->state, NULL), "size_bytes", count(i->size_bytes), "line_size",
			 (json_int_t)i->line_size, "lines", count(i->lines), "ram_bytes", count(i->ram_bytes),
			 "metadata_bytes", count(i->metadata_bytes), "dirty_bytes", count(i->dirty_bytes), "start_time",
			 view->start_time ? json_integer(view->start_time) : json_null(), "why", json_text(i->why));
}

/* What stats and status share: "cache", "usage", "volumes". */
static json_t *common_object(struct cache *c, const struct cache_info *i, const struct json_daemon_view *view)
{
	struct collect collect = { .list = json_array(), .view = view };
	json_t *o;

	if (cache_volume_foreach(c, collect_volume, &collect)) {
		json_decref(collect.list);
		return NULL;
	}
	o = json_pack("{s:o,s:{s:o,s:o,s:o,s:o},s:o}", "cache", cache_object(i, view), "usage", "occupied_lines",
		      count(i->occupied_lines), "free_lines", count(i->free_lines), "clean_lines",
		      count(i->clean_lines), "dirty_lines", count(i->dirty_lines), "volumes", collect.list);
	return o;
}

json_t *json_stats(struct cache *c, const struct json_daemon_view *view)
{
	struct cache_info info;
	struct volume_stats s;
	json_t *o, *totals;

	memset(&info, 0, sizeof(info));
	memset(&s, 0, sizeof(s));
	cache_get_info(c, &info);
	o = common_object(c, &info, view);
	if (!o)
		return NULL;
	cache_get_totals(c, &s);
	totals = json_object();
	add_groups(totals, &s, view->buckets);
	json_object_set_new(o, "totals", totals);
	return o;
}

json_t *json_status(struct cache *c, const struct json_daemon_view *view)
{
	struct cache_info info;
	json_t *o, *cache;

	memset(&info, 0, sizeof(info));
	cache_get_info(c, &info);
	o = common_object(c, &info, view);
	cache = json_object_get(o, "cache");
	if (!cache)
		return o;
	json_object_set_new(cache, "mode", json_string(cache_mode_name(info.default_mode)));
	json_object_set_new(cache, "mountpoint", view->mountpoint ? json_text(view->mountpoint) : json_null());
	json_object_set_new(cache, "pid", view->pid ? json_integer(view->pid) : json_null());
	json_object_set_new(cache, "survive", view->pid ? json_boolean(view->survive) : json_null());
	json_object_set_new(cache, "ram_set_bytes", count(info.ram_set_bytes));
	json_object_set_new(cache, "locked_memory", view->locked ? json_string(view->locked) : json_null());
	return o;
}

json_t *json_open_report(const struct cache_open_report *r)
{
	return json_pack("{s:b,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "clean_stop", r->clean_stop, "lines", count(r->lines),
			 "dirty_lines", count(r->dirty_lines), "dirty_bytes", count(r->dirty_bytes), "epochs_replayed",
			 count(r->epochs_replayed), "epochs_dropped", count(r->epochs_dropped), "redo_blocks",
			 count(r->redo_blocks), "dropped_clean_lines", count(r->dropped_clean_lines), "notes",
			 json_text(r->notes));
}
