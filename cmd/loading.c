/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * loading.c - see loading.h.
 */
#include "loading.h"

#include <stdio.h>
#include <string.h>

#include "common.h"

#define COUNT(n, one, many) (unsigned long long)(n), (n) == 1 ? one : many

static void print_recovery(const char *dir, const json_t *r)
{
	uint64_t lines = jcount(r, "lines"), replayed = jcount(r, "epochs_replayed"),
		 dropped = jcount(r, "epochs_dropped"), stale = jcount(r, "dropped_clean_lines");
	const char *notes = jtext(r, "notes");
	bool clean = json_is_true(json_object_get(r, "clean_stop"));
	char dirty[64] = "";

	if (jcount(r, "dirty_bytes"))
		snprintf(dirty, sizeof(dirty), ", %s of them dirty", size_text(jcount(r, "dirty_bytes")));
	/* A new cache looks like one that was stopped with nothing in it. */
	if (clean && !lines)
		say("%s: nothing is cached yet%s", dir, dirty);
	else
		say("%s: %s, %llu line%s cached%s", dir, clean ? "was shut down cleanly" : "recovered",
		    COUNT(lines, "", "s"), dirty);
	/* After an orderly stop epochs are read too; that is no news. */
	if ((replayed && !clean) || dropped) {
		printf("  %llu epoch%s replayed", COUNT(replayed, "", "s"));
		if (dropped)
			printf(", %llu unfinished epoch%s dropped (never flushed)", COUNT(dropped, "", "s"));
		printf("\n");
	}
	if (stale)
		printf("  %llu clean line%s dropped: the backing device may be newer\n", COUNT(stale, "", "s"));
	while (*notes) {
		size_t n = strcspn(notes, "\n");

		say("  %.*s", (int)n, notes);
		notes += n + (notes[n] == '\n');
	}
}

static void print_volumes(const json_t *report)
{
	const char *mountpoint = jtext(json_object_get(report, "cache"), "mountpoint");
	json_t *v, *volumes = json_object_get(report, "volumes");
	size_t i;

	json_array_foreach(volumes, i, v) {
		say("%s/%s  %s  %s  %s%s%s", mountpoint, jtext(v, "name"), size_text(jcount(v, "size_bytes")),
		    jtext(v, "mode"), jtext(v, "backing"), strcmp(jtext(v, "state"), "running") ? "  " : "",
		    strcmp(jtext(v, "state"), "running") ? jtext(v, "state") : "");
	}
	if (!json_array_size(volumes))
		say("%s: no volumes yet; add one with 'blkcache add'", mountpoint);
}

static void on_ready(json_t *report, void *ctx)
{
	const json_t *cache = json_object_get(report, "cache");

	*(bool *)ctx = true;
	print_recovery(jtext(cache, "dir"), json_object_get(report, "recovery"));
	print_volumes(report);
	fflush(stdout);
	if (*jtext(cache, "why"))
		warn("%s is %s: %s", jtext(cache, "dir"), jtext(cache, "state"), jtext(cache, "why"));
}

int loading_start(const struct daemon_params *params, bool *served)
{
	struct bc_error err = { 0 };
	bool ready = false;
	int ret = daemon_start(params, on_ready, &ready, &err);

	if (served)
		*served = ready;
	return ret ? fail_err(&err) : CMD_OK;
}

bool loading_hides_cache(const char *mountpoint, const char *dir)
{
	size_t n = strlen(mountpoint);

	if (strncmp(dir, mountpoint, n) || (dir[n] && dir[n] != '/' && n > 1))
		return false;
	fail("%s: the mount would hide the cache folder %s; mount it somewhere else", mountpoint, dir);
	return true;
}

char *loading_mountpoint(const char *path)
{
	char *absolute = absolute_path(path);
	size_t n = strlen(absolute);

	while (n > 1 && absolute[n - 1] == '/')
		absolute[--n] = '\0';
	return absolute;
}
