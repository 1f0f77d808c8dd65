/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * remove.c - blkcache remove: writes a volume's dirty data to its backing device and forgets it.
 *
 * On a stopped cache the backing device is only needed if the volume has dirty data; the daemon has it open anyway.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"

enum { OPT_DISCARD = 256 };

static const struct argp_option options[] = {
	{ "discard-dirty", OPT_DISCARD, NULL, 0,
	  "Throw dirty data away instead of writing it to the backing device: IT IS LOST", 0 },
	{ 0 },
};

struct args {
	char *dir, *name;
	bool discard;
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct args *a = state->input;

	switch (key) {
	case OPT_DISCARD:
		a->discard = true;
		break;
	default:
		return parse_dir_arg(key, arg, &a->dir, &a->name, "NAME");
	}
	return 0;
}

static const struct argp argp = {
	options,
	parse,
	"DIR NAME",
	"Forget a volume after writing its dirty data to the backing device. Nobody may have its file open. The "
	"backing device is left with "
	"everything that was written to the volume.",
	NULL,
	NULL,
	NULL,
};

/* Does the volume of a stopped cache have dirty data? Then its backing device has to be opened. */
static int stopped_flags(const char *dir, const char *name, unsigned *flags)
{
	int code = CMD_OK;
	struct cache *c = open_stopped(dir, CACHE_OPEN_NO_VOLUMES, &code);
	struct volume_stats s;
	struct volume *v;

	*flags = CACHE_OPEN_NO_VOLUMES;
	if (!c)
		return code;
	v = cache_volume_get(c, name);
	if (v) {
		memset(&s, 0, sizeof(s));
		volume_get_stats(v, &s);
		if (s.dirty_bytes)
			*flags = 0;
		volume_put(v);
	}
	return close_stopped(c, CMD_OK);
}

int cmd_remove(int argc, char **argv)
{
	struct args a = { 0 };
	json_t *request, *result;
	bool stopped = false;
	unsigned flags = 0;
	int code = CMD_OK;

	parse_args(&argp, argc, argv, &a);
	request = json_pack("{s:s,s:o,s:b}", "cmd", "remove", "name", text(a.name), "discard_dirty", a.discard);
	result = call_daemon(a.dir, json_incref(request), NULL, NULL, &stopped, &code);
	if (stopped) {
		flags = CACHE_OPEN_NO_VOLUMES;
		if (!a.discard)
			code = stopped_flags(a.dir, a.name, &flags);
		if (!code)
			result = manage(a.dir, json_incref(request), flags, &code);
	}
	json_decref(request);
	if (result && json_is_true(json_object_get(result, "discarded")))
		say("removed %s; %s of dirty data was discarded", a.name, size_text(jcount(result, "dirty_bytes")));
	else if (result)
		say("removed %s", a.name);
	json_decref(result);
	free(a.dir);
	return code;
}
