/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * status.c - blkcache status. A stopped cache is opened for it, without its backing devices: that takes its lock for a
 * moment, so the journal still has one reader, and recovers it if it crashed, which does no harm.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common.h"
#include "daemon/daemon.h"
#include "table.h"

enum { OPT_JSON = 256 };

static const struct argp_option options[] = {
	{ "json", OPT_JSON, NULL, 0, "Print one JSON object", 0 },
	{ 0 },
};

struct args {
	char *dir;
	bool json;
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct args *a = state->input;

	switch (key) {
	case OPT_JSON:
		a->json = true;
		break;
	default:
		return parse_dir_arg(key, arg, &a->dir, NULL, NULL);
	}
	return 0;
}

static const struct argp argp = {
	options,
	parse,
	"DIR",
	"Show the state of a cache, its volumes, how much dirty data there is, and what is wrong if anything is."
	"\v"
	"States: running; flushing; degraded (volumes work, without the cache or with something broken: if the cache "
	"disk fails while nothing is dirty, reads and writes go straight to the backing devices, and the next load "
	"starts empty); failed (the cache disk failed while data was dirty: that data is kept, writes and flushes "
	"fail, clean data can be read); stopping; stopped. What is wrong stands beside the state.",
	NULL,
	NULL,
	NULL,
};

/* The daemon died, or the machine did: said beside the state, with what to do. */
static void add_clean_stop(json_t *status, const struct cache_open_report *report)
{
	json_t *cache = json_object_get(status, "cache");
	uint64_t dirty = jcount(cache, "dirty_bytes");
	char why[200];

	json_object_set_new(cache, "clean_stop", json_boolean(report->clean_stop));
	if (report->clean_stop || *jtext(cache, "why"))
		return;
	if (dirty)
		snprintf(why, sizeof(why),
			 "not cleanly; %s of dirty data is kept in it: load it, then flush or stop it",
			 size_text(dirty));
	else
		snprintf(why, sizeof(why), "not cleanly; no dirty data");
	json_object_set_new(cache, "why", json_string(why));
}

/* The daemon's word, or the stopped cache's. It may be loaded or taken over just between the two: asked again. */
static json_t *find_status(const char *dir, int *code)
{
	struct cache_open_report report;
	json_t *status;

	for (int tries = 0;; tries++) {
		struct bc_error err = { 0 };
		bool stopped = false;

		status = call_daemon(dir, json_pack("{s:s}", "cmd", "status"), NULL, NULL, &stopped, code);
		if (!stopped)
			return status;
		status = describe_stopped(dir, json_status, &report, &err);
		if (status)
			break;
		if (err.code != -EBUSY || tries == 20) {
			*code = fail_err(&err);
			return NULL;
		}
		nanosleep(&(struct timespec){ .tv_nsec = 100000000 }, NULL);
	}
	add_clean_stop(status, &report);
	return status;
}

static void print_memory(struct table *t, const json_t *cache)
{
	uint64_t ram = jcount(cache, "ram_bytes"), set = jcount(cache, "ram_set_bytes");
	const char *locked = jtext(cache, "locked_memory");
	char less[64] = "";

	if (set && set != ram && jcount(cache, "pid"))
		snprintf(less, sizeof(less), " (ram is set to %s)", size_text(set));
	table_cell(t, "%s of buffers%s, %s of metadata%s", size_text(ram), less,
		   size_text(jcount(cache, "metadata_bytes")),
		   !strcmp(locked, "part")   ? "; partly locked (ulimit -l)"
		   : !strcmp(locked, "none") ? "; not locked (ulimit -l)"
					     : "");
}

static void print_cache(const json_t *status)
{
	const json_t *cache = json_object_get(status, "cache"), *usage = json_object_get(status, "usage");
	const char *mountpoint = jtext(cache, "mountpoint"), *why = jtext(cache, "why");
	double lines = (double)jcount(cache, "lines");
	bool aside = !strcmp(jtext(cache, "state"), "stopped");
	enum cache_mode mode = CACHE_MODE_WT;
	struct table t;

	table_init(&t, 2, 0);
	table_cell(&t, "cache");
	table_cell(&t, "%s", jtext(cache, "dir"));
	table_cell(&t, "uuid");
	table_cell(&t, "%s", jtext(cache, "uuid"));
	table_cell(&t, "state");
	table_cell(&t, "%s%s%s%s", jtext(cache, "state"), *why ? aside ? " (" : ": " : "", why,
		   *why && aside ? ")" : "");
	table_cell(&t, "mounted at");
	table_cell(&t, "%s", *mountpoint ? mountpoint : "-");
	if (jcount(cache, "pid")) {
		table_cell(&t, "daemon");
		table_cell(&t, "pid %llu", (unsigned long long)jcount(cache, "pid"));
	}
	table_cell(&t, "mode");
	if (cache_mode_parse(jtext(cache, "mode"), &mode))
		table_cell(&t, "%s", jtext(cache, "mode"));
	else
		table_cell(&t, "%s (%s)", jtext(cache, "mode"), cache_mode_long_name(mode));
	table_cell(&t, "size");
	table_cell(&t, "%s in lines of %s", size_text(jcount(cache, "size_bytes")),
		   size_text(jcount(cache, "line_size")));
	table_cell(&t, "memory");
	print_memory(&t, cache);
	table_cell(&t, "occupied");
	table_cell(&t, "%.1f %%", lines > 0 ? 100 * (double)jcount(usage, "occupied_lines") / lines : 0.0);
	table_cell(&t, "dirty");
	table_cell(&t, "%s", size_text(jcount(cache, "dirty_bytes")));
	table_print(&t);
}

static void print_volumes(const json_t *status)
{
	static const char *const heads[] = { "VOLUME", "SIZE", "MODE", "STATE", "CACHED LINES", "DIRTY", "BACKING" };
	json_t *volumes = json_object_get(status, "volumes"), *v;
	struct table t;
	size_t i;

	if (!json_array_size(volumes)) {
		printf("\nno volumes; add one with 'blkcache add'\n");
		return;
	}
	printf("\n");
	table_init(&t, 7, 1 << 1 | 1 << 4 | 1 << 5);
	for (i = 0; i < 7; i++)
		table_cell(&t, "%s", heads[i]);
	json_array_foreach(volumes, i, v) {
		table_cell(&t, "%s", jtext(v, "name"));
		table_cell(&t, "%s", size_text(jcount(v, "size_bytes")));
		table_cell(&t, "%s", jtext(v, "mode"));
		table_cell(&t, "%s", jtext(v, "state"));
		table_cell(&t, "%llu", (unsigned long long)jcount(json_object_get(v, "usage"), "occupied_lines"));
		table_cell(&t, "%s", size_text(jcount(v, "dirty_bytes")));
		table_cell(&t, "%s", jtext(v, "backing"));
	}
	table_print(&t);
}

int cmd_status(int argc, char **argv)
{
	struct args a = { 0 };
	int code = CMD_OK;
	json_t *status;

	parse_args(&argp, argc, argv, &a);
	status = find_status(a.dir, &code);
	if (status && a.json) {
		print_json(status);
	} else if (status) {
		print_cache(status);
		print_volumes(status);
	}
	json_decref(status);
	free(a.dir);
	return code;
}
