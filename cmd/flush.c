/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * flush.c - blkcache flush: writes dirty data back, by the daemon, or on a stopped cache that is opened with its
 * devices.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "common.h"
#include "daemon/daemon.h"
#include "progress.h"

struct args {
	char *dir, *name; /* name NULL: all */
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct args *a = state->input;

	return parse_dir_arg(key, arg, &a->dir, &a->name, NULL);
}

static const struct argp argp = {
	NULL,
	parse,
	"DIR [NAME]",
	"Write all dirty data of the cache, or of the volume NAME, to the backing device, and flush that. Volumes go "
	"on working in their "
	"mode. Shows progress on a terminal. Ctrl-C interrupts it: what was written stays written, and the next flush "
	"goes on from there."
	"\v"
	"A stopped cache can be flushed too.",
	NULL,
	NULL,
	NULL,
};

static int flush_stopped(struct args *a, struct progress *p, uint64_t *done)
{
	struct bc_error err = { 0 };
	struct volume *v = NULL;
	struct cache_info before, after;
	int code = CMD_OK;
	struct cache *c = open_stopped(a->dir, 0, &code);

	if (!c)
		return code;
	if (a->name) {
		v = manage_find_volume(c, a->name, &err);
		if (!v)
			return close_stopped(c, fail_err(&err));
	}
	cache_get_info(c, &before);
	switch (cache_write_back(c, v, progress_from_engine, p, &err)) {
	case 0:
		break;
	case -EINTR:
		progress_clear(p);
		fail("interrupted; nothing is lost, 'blkcache flush %s' goes on from here", a->dir);
		code = CMD_INTERRUPTED;
		break;
	default:
		progress_clear(p);
		code = fail_err(&err);
	}
	cache_get_info(c, &after);
	*done = before.dirty_bytes > after.dirty_bytes ? before.dirty_bytes - after.dirty_bytes : 0;
	if (v)
		volume_put(v);
	return close_stopped(c, code);
}

static int flush_loaded(struct args *a, struct progress *p, uint64_t *done, bool *stopped)
{
	int code = CMD_OK;
	json_t *result = call_daemon(a->dir, json_pack("{s:s,s:o*}", "cmd", "flush", "volume", text(a->name)),
				     progress_from_daemon, p, stopped, &code);

	if (result)
		*done = jcount(result, "done_bytes");
	json_decref(result);
	return code;
}

int cmd_flush(int argc, char **argv)
{
	struct args a = { 0 };
	struct progress p;
	bool stopped = false;
	uint64_t done = 0;
	double seconds;
	int code;

	parse_args(&argp, argc, argv, &a);
	interrupts_catch();
	progress_init(&p, "flushing");
	code = flush_loaded(&a, &p, &done, &stopped);
	if (stopped)
		code = flush_stopped(&a, &p, &done);
	seconds = progress_seconds(&p);
	progress_clear(&p);
	if (!code)
		say("%s%s%s: flushed, %s written in %.1f s (%s/s)", a.dir, a.name ? " " : "", a.name ? a.name : "",
		    size_text(done), seconds, size_text(seconds > 0 ? (uint64_t)((double)done / seconds) : 0));
	free(a.dir);
	return code;
}
