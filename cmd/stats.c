/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * stats.c - blkcache stats: the counters since load, as a table, JSON or Prometheus text (prometheus.c).
 */
#include "stats.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "table.h"

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
			argp_error(state, "--format is table, json or prometheus, not '%s'", arg);
		a->format = (enum format)i;
		break;
	default:
		return parse_dir_arg(key, arg, state, &a->dir, &a->name, NULL);
	}
	return 0;
}

static const struct argp argp = {
	options,
	parse,
	"DIR [NAME]",
	"Show what the cache, or the volume NAME, has done since it was loaded. Times are microseconds, amounts bytes."
	"\v"
	"The JSON keys and the metric names are stable: scripts may rely on them.",
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

static json_t *column(const json_t *stats, size_t i)
{
	json_t *volumes = json_object_get(stats, "volumes");

	return i < json_array_size(volumes) ? json_array_get(volumes, i) : json_object_get(stats, "totals");
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
			cell_value(t, json_object_get(json_object_get(column(stats, i), group), key));
	}
}

static double hit_percent(const json_t *requests, const char *hits, const char *partial, const char *misses)
{
	double h = (double)jcount(requests, hits),
	       all = h + (double)jcount(requests, partial) + (double)jcount(requests, misses);

	return all > 0 ? 100 * h / all : 0;
}

static void add_ratios(struct table *t, const json_t *stats, size_t columns)
{
	table_cell(t, "hit ratio");
	for (size_t i = 0; i < columns; i++)
		table_cell(t, "%s", "");
	table_cell(t, "  read");
	for (size_t i = 0; i < columns; i++)
		table_cell(t, "%.1f %%",
			   hit_percent(json_object_get(column(stats, i), "requests"), "read_hits",
				       "read_partial_misses", "read_misses"));
	table_cell(t, "  write");
	for (size_t i = 0; i < columns; i++)
		table_cell(t, "%.1f %%",
			   hit_percent(json_object_get(column(stats, i), "requests"), "write_hits",
				       "write_partial_misses", "write_misses"));
}

static void print_table(const json_t *stats)
{
	size_t volumes = json_array_size(json_object_get(stats, "volumes"));
	size_t columns = volumes == 1 ? 1 : volumes + 1; /* the totals of one volume are the same */
	struct table t;

	table_init(&t, columns + 1, ~1ull);
	table_cell(&t, "%s", "");
	for (size_t i = 0; i < columns; i++)
		table_cell(&t, "%s", i < volumes ? jtext(column(stats, i), "name") : "TOTAL");
	add_group(&t, stats, columns, "usage", "lines");
	add_group(&t, stats, columns, "requests", "requests");
	add_ratios(&t, stats, columns);
	add_group(&t, stats, columns, "bytes", "bytes");
	add_group(&t, stats, columns, "errors", "errors");
	add_group(&t, stats, columns, "latency_us", "latency, us: p50 / p99 / max");
	table_print(&t);
}

int cmd_stats(int argc, char **argv)
{
	struct args a = { 0 };
	int code = CMD_OK;
	json_t *stats;

	argp_parse(&argp, argc, argv, 0, NULL, &a);
	stats = call_daemon(a.dir, json_pack("{s:s,s:b}", "cmd", "stats", "buckets", a.format == FORMAT_PROMETHEUS),
			    NULL, NULL, NULL, &code);
	if (stats && a.name)
		code = keep_one(stats, a.name);
	if (stats && !code) {
		if (a.format == FORMAT_TABLE) {
			print_table(stats);
		} else if (a.format == FORMAT_PROMETHEUS) {
			prometheus_print(stats);
		} else {
			json_dumpf(stats, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
			printf("\n");
		}
	}
	json_decref(stats);
	free(a.dir);
	return code;
}
