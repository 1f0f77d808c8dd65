/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * stop.c - blkcache stop: flush, unmount, end. The work is the daemon's; this waits until its process has ended.
 */
#include <stdio.h>
#include <stdlib.h>

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
		return parse_dir_arg(key, arg, state, &a->dir, NULL, NULL);
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
	"interrupted.",
	NULL,
	NULL,
	NULL,
};

static int tell_end(const struct args *a, const json_t *result)
{
	uint64_t done = jcount(result, "done_bytes"), dirty = jcount(result, "dirty_bytes");

	if (*jtext(result, "close_error"))
		return fail(
			"%s; the daemon has ended, and all that a flush had reported as done is kept; see the system "
			"log and 'dmesg', repair the disk, then load the cache again",
			jtext(result, "close_error"));
	printf("%s: stopped", a->dir);
	if (done)
		printf(", %s flushed", size_text(done));
	if (dirty)
		printf(", %s of dirty data left in the cache", size_text(dirty));
	printf("\n");
	if (dirty && !a->no_flush)
		warn("what was written last could not be flushed; see the system log, then load the cache and flush "
		     "it");
	return dirty ? CMD_LEFT : CMD_OK;
}

int cmd_stop(int argc, char **argv)
{
	struct args a = { 0 };
	struct progress p;
	json_t *result;
	bool stopped = false;
	int code = CMD_OK;

	argp_parse(&argp, argc, argv, 0, NULL, &a);
	interrupts_catch();
	progress_init(&p, "flushing");
	result = call_daemon(a.dir, json_pack("{s:s,s:b}", "cmd", "stop", "no_flush", a.no_flush), progress_from_daemon,
			     &p, NULL, &code);
	progress_clear(&p);
	if (stopped)
		code = fail("%s: the cache is not loaded: there is nothing to stop", a.dir);
	if (code == CMD_INTERRUPTED && interrupted())
		fail("%s: interrupted; the volumes go on working, what was flushed stays so", a.dir);
	if (result)
		code = tell_end(&a, result);
	json_decref(result);
	free(a.dir);
	return code;
}
