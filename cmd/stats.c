/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * stats.c - blkcache stats: the counters since load, as a table, JSON or Prometheus text (prometheus.c).
 */
#include "stats.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "table.h"

#define MAX_COLUMNS 6 /* more volumes are told in a row each */

enum { OPT_FORMAT = 256 };
enum format { FORMAT_TABLE, FORMAT_JSON, FORMAT_PROMETHEUS };

static const struct argp_option options[] = {
	{ "format", OPT_FORMAT, "FORMAT", 0, "table (default), json or prometheus", 0 },
	{ 0 },
};

struct args {
	char *dir, *name; /* name NULL: all */
	enum format format;
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	static const char *const formats[] = { "table", "json", "prometheus" };
	struct args *a = state->input;
	int i;

	switch (key) {
	case OPT_FORMAT:
		for (i = 0; i < 3 && strcmp(arg, formats[i]); i++)
			;
		if (i == 3)
			usage_error("--format is table, json or prometheus, not '%s'", arg);
		a->format = (enum format)i;
		break;
	default:
		return parse_dir_arg(key, arg, &a->dir, &a->name, NULL);
	}
	return 0;
}

static const struct argp argp = {
	options,
	parse,
	"DIR [NAME]",
	"Show what the cache, or the volume NAME, has done since it was loaded. Times are microseconds, amounts bytes."
	"\v"
	"The JSON keys and the metric names are stable: scripts may rely on them. Of a cache that is not loaded, or "
	"whose daemon does not answer, prometheus says just that, with exit code 0: a collector must not go on with "
	"old figures.",
	NULL,
	NULL,
	NULL,
};

/* Leaves one volume; the totals are then its own. */
static int keep_one(json_t *stats, const char *name)
{
	static const char *const groups[] = { "usage", "requests", "bytes", "errors", "latency_us" };
	json_t *volumes = json_object_get(stats, "volumes"), *only = NULL, *v;
	json_t *totals = json_object_get(stats, "totals");
	size_t i;

	json_array_foreach(volumes, i, v)
		if (!strcmp(jtext(v, "name"), name))
			only = v;
	if (!only)
		return fail("there is no volume '%s'; 'blkcache status' lists the volumes", name);
	for (i = 0; i < sizeof(groups) / sizeof(groups[0]); i++)
		json_object_set(totals, groups[i], json_object_get(only, groups[i]));
	json_incref(only);
	json_array_clear(volumes);
	json_array_append_new(volumes, only);
	return CMD_OK;
}

/* ---- table: a row per counter, a column per volume and one for the totals ---- */

static json_t *column(const json_t *stats, size_t i, size_t columns)
{
	json_t *volumes = json_object_get(stats, "volumes");

	return i < json_array_size(volumes) && (columns > 1 || json_array_size(volumes) == 1)
		       ? json_array_get(volumes, i)
		       : json_object_get(stats, "totals");
}

static void cell_value(struct table *t, const json_t *value)
{
	if (json_is_object(value)) /* a latency */
		table_cell(t, "%.0f / %.0f / %.0f", json_number_value(json_object_get(value, "p50")),
			   json_number_value(json_object_get(value, "p99")),
			   json_number_value(json_object_get(value, "max")));
	else
		table_cell(t, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
}

static void add_group(struct table *t, const json_t *stats, size_t columns, const char *group, const char *title)
{
	json_t *keys = json_object_get(json_object_get(stats, "totals"), group), *value;
	const char *key;

	table_cell(t, "%s", title);
	for (size_t i = 0; i < columns; i++)
		table_cell(t, "%s", "");
	json_object_foreach(keys, key, value) {
		char name[64];

		snprintf(name, sizeof(name), "  %s", key);
		for (char *p = name; *p; p++)
			if (*p == '_')
				*p = ' ';
		table_cell(t, "%s", name);
		for (size_t i = 0; i < columns; i++)
			cell_value(t, json_object_get(json_object_get(column(stats, i, columns), group), key));
	}
}

/* "-": nothing was asked for. */
static void cell_ratio(struct table *t, const json_t *requests, const char *hits, const char *partial,
		       const char *misses)
{
	double h = (double)jcount(requests, hits),
	       all = h + (double)jcount(requests, partial) + (double)jcount(requests, misses);

	if (all > 0)
		table_cell(t, "%.1f %%", 100 * h / all);
	else
		table_cell(t, "-");
}

static void add_ratios(struct table *t, const json_t *stats, size_t columns)
{
	table_cell(t, "hit ratio");
	for (size_t i = 0; i < columns; i++)
		table_cell(t, "%s", "");
	table_cell(t, "  read");
	for (size_t i = 0; i < columns; i++)
		cell_ratio(t, json_object_get(column(stats, i, columns), "requests"), "read_hits",
			   "read_partial_misses", "read_misses");
	table_cell(t, "  write");
	for (size_t i = 0; i < columns; i++)
		cell_ratio(t, json_object_get(column(stats, i, columns), "requests"), "write_hits",
			   "write_partial_misses", "write_misses");
}

static uint64_t sum(const json_t *o)
{
	const char *key;
	uint64_t n = 0;
	json_t *value;

	json_object_foreach((json_t *)o, key, value)
		n += (uint64_t)json_integer_value(value);
	return n;
}

/* The main figures, a row per volume: for so many volumes that columns would not fit on a screen. */
static void print_rows(const json_t *volumes)
{
	static const char *const heads[] = { "VOLUME", "READ", "HITS", "WRITTEN", "HITS", "LINES", "DIRTY", "ERRORS" };
	const size_t n = sizeof(heads) / sizeof(heads[0]);
	struct table t;
	json_t *v;
	size_t i;

	table_init(&t, n, ~1ull);
	for (i = 0; i < n; i++)
		table_cell(&t, "%s", heads[i]);
	json_array_foreach((json_t *)volumes, i, v) {
		const json_t *requests = json_object_get(v, "requests"), *bytes = json_object_get(v, "bytes");

		table_cell(&t, "%s", jtext(v, "name"));
		table_cell(&t, "%s", size_text(jcount(bytes, "volume_read")));
		cell_ratio(&t, requests, "read_hits", "read_partial_misses", "read_misses");
		table_cell(&t, "%s", size_text(jcount(bytes, "volume_written")));
		cell_ratio(&t, requests, "write_hits", "write_partial_misses", "write_misses");
		table_cell(&t, "%" PRIu64, jcount(json_object_get(v, "usage"), "occupied_lines"));
		table_cell(&t, "%" PRIu64, jcount(json_object_get(v, "usage"), "dirty_lines"));
		table_cell(&t, "%" PRIu64, sum(json_object_get(v, "errors")));
	}
	printf("\n");
	table_print(&t);
}

static void print_table(const json_t *stats)
{
	size_t all = json_array_size(json_object_get(stats, "volumes")), volumes = all > MAX_COLUMNS ? 0 : all;
	size_t columns = volumes == 1 ? 1 : volumes + 1; /* the totals of one volume are the same */
	struct table t;

	table_init(&t, columns + 1, ~1ull);
	table_cell(&t, "%s", "");
	for (size_t i = 0; i < columns; i++)
		table_cell(&t, "%s", i < volumes ? jtext(column(stats, i, columns), "name") : "TOTAL");
	add_group(&t, stats, columns, "usage", "lines");
	add_group(&t, stats, columns, "requests", "requests");
	add_ratios(&t, stats, columns);
	add_group(&t, stats, columns, "bytes", "bytes");
	add_group(&t, stats, columns, "errors", "errors");
	add_group(&t, stats, columns, "latency_us", "latency, us: p50 / p99 / max");
	table_print(&t);
	if (all > volumes)
		print_rows(json_object_get(stats, "volumes"));
}

/* Counters are the daemon's. What a stopped cache has is its size and its dirty data, which programs may want. */
static json_t *stats_of_stopped(const struct args *a, int *code)
{
	struct bc_error err = { 0 };
	json_t *stats;

	if (a->format == FORMAT_TABLE) {
		*code = fail("%s: the cache is not loaded, so nothing is counted; 'blkcache status %s' tells about it",
			     a->dir, a->dir);
		return NULL;
	}
	stats = describe_stopped(a->dir, json_stats, NULL, &err);
	if (!stats)
		*code = fail_err(&err);
	return stats;
}

/*
 * Whoever collects metrics must not go on with the last ones: where nothing can be learnt of the cache, that it is not
 * running is said all the same, and is no failure as long as there is a cache. Why is on stderr by now.
 */
static json_t *stats_of_unknown(const struct args *a, bool stopped, int *code)
{
	*code = cache_exists(a->dir) ? CMD_OK : CMD_FAILED;
	return json_pack("{s:{s:o,s:s}}", "cache", "dir", text(a->dir), "state", stopped ? "stopped" : "unknown");
}

static int print_stats(const struct args *a, json_t *stats, bool loaded)
{
	int code = a->name && json_object_get(stats, "totals") ? keep_one(stats, a->name) : CMD_OK;

	if (code)
		return code;
	if (a->format == FORMAT_TABLE)
		print_table(stats);
	else if (a->format == FORMAT_PROMETHEUS)
		prometheus_print(stats, loaded);
	else
		print_json(stats);
	return CMD_OK;
}

int cmd_stats(int argc, char **argv)
{
	struct args a = { 0 };
	bool stopped = false, loaded;
	int code = CMD_OK, ret;
	json_t *stats;

	parse_args(&argp, argc, argv, &a);
	stats = call_daemon(a.dir, json_pack("{s:s,s:b}", "cmd", "stats", "buckets", a.format == FORMAT_PROMETHEUS),
			    NULL, NULL, &stopped, &code);
	loaded = stats != NULL;
	if (stopped)
		stats = stats_of_stopped(&a, &code);
	if (!stats && a.format == FORMAT_PROMETHEUS)
		stats = stats_of_unknown(&a, stopped, &code);
	ret = stats ? print_stats(&a, stats, loaded) : code;
	code = code ? code : ret;
	json_decref(stats);
	free(a.dir);
	return code;
}
