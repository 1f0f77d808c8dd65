/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * stop.c - blkcache stop: flush, unmount, end. The work is the daemon's; this waits until its process has ended.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "progress.h"

enum { OPT_NO_FLUSH = 256 };

static const struct argp_option options[] = {
	{ "no-flush", OPT_NO_FLUSH, NULL, 0,
	  "Do not write dirty data to the backing device: it stays in the cache, durable, until the next load (exit "
	  "code 3 if there is any)",
	  0 },
	{ 0 },
};

struct args {
	char *dir;
	bool no_flush;
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct args *a = state->input;

	switch (key) {
	case OPT_NO_FLUSH:
		a->no_flush = true;
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
	"Write dirty data to the backing device, unmount the volumes, and end the daemon. Returns when it has ended. "
	"Refuses while files on "
	"the mount are open or a loop device uses one: then nothing is stopped. Likewise if the flush fails or is "
	"interrupted. A cache that is not loaded is no error."
	"\v"
	"Exit code 3: dirty data is left in the cache.",
	NULL,
	NULL,
	NULL,
};

static int tell_end(const struct args *a, const json_t *result)
{
	uint64_t done = jcount(result, "done_bytes"), dirty = jcount(result, "dirty_bytes");
	bool unmounted = json_is_true(json_object_get(result, "unmounted"));
	char done_text[64] = "", dirty_text[64] = "";

	if (*jtext(result, "close_error"))
		return fail(
			"%s; the daemon has ended, and all that a flush had reported as done is kept; see the system "
			"log and 'dmesg', repair the disk, then load the cache again",
			jtext(result, "close_error"));
	if (done)
		snprintf(done_text, sizeof(done_text), ", %s flushed", size_text(done));
	if (dirty)
		snprintf(dirty_text, sizeof(dirty_text), ", %s of dirty data left in the cache", size_text(dirty));
	say("%s: %s%s%s", a->dir, unmounted ? "is not loaded any more, it was unmounted" : "stopped", done_text,
	    dirty_text);
	if (dirty && unmounted)
		warn("'blkcache flush %s' writes the dirty data to the backing device", a->dir);
	else if (dirty && !a->no_flush)
		warn("what was written last could not be flushed; see the system log, then load the cache and flush "
		     "it");
	return dirty ? CMD_LEFT : CMD_OK;
}

/* Nothing runs that could be stopped. Done, then; but who copies the backing device next must hear of dirty data. */
static int tell_stopped(const struct args *a)
{
	struct cache_info info;
	int code = CMD_OK;
	struct cache *c = open_stopped(a->dir, CACHE_OPEN_NO_VOLUMES, &code);

	if (!c)
		return code;
	memset(&info, 0, sizeof(info));
	cache_get_info(c, &info);
	code = close_stopped(c, info.dirty_bytes ? CMD_LEFT : CMD_OK);
	if (code == CMD_FAILED)
		return code;
	say("%s: is not loaded, there is nothing to stop", a->dir);
	if (info.dirty_bytes)
		warn("%s of dirty data is in the cache; 'blkcache flush %s' writes it to the backing device",
		     size_text(info.dirty_bytes), a->dir);
	return code;
}

int cmd_stop(int argc, char **argv)
{
	struct args a = { 0 };
	struct progress p;
	json_t *result;
	bool stopped = false;
	int code = CMD_OK;

	parse_args(&argp, argc, argv, &a);
	interrupts_catch();
	progress_init(&p, "flushing");
	result = call_daemon(a.dir, json_pack("{s:s,s:b}", "cmd", "stop", "no_flush", a.no_flush), progress_from_daemon,
			     &p, &stopped, &code);
	progress_clear(&p);
	if (stopped)
		code = tell_stopped(&a);
	if (result)
		code = tell_end(&a, result);
	json_decref(result);
	free(a.dir);
	return code;
}
