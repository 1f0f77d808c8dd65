/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * add.c - blkcache add: registers a volume, by the daemon if the cache is loaded.
 */
#include <stdio.h>
#include <stdlib.h>

#include "common.h"

enum { OPT_MODE = 256 };

static const struct argp_option options[] = {
	{ "mode", OPT_MODE, "MODE", 0, "wt, wb, wa, wi, wo or pt (default: the cache's)", 0 },
	{ 0 },
};

struct args {
	char *dir, *name, *backing;
	const char *mode;
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct args *a = state->input;

	switch (key) {
	case OPT_MODE:
		a->mode = cache_mode_name(parse_mode_arg(arg));
		break;
	case ARGP_KEY_ARG:
		if (!a->dir)
			a->dir = parse_path_arg("DIR", arg);
		else if (!a->name)
			parse_volume_arg(arg, &a->name, &a->backing);
		else
			usage_error("unexpected argument '%s'", arg);
		break;
	case ARGP_KEY_END:
		if (!a->dir || !a->name)
			usage_error("%s is missing", a->dir ? "NAME=BACKING" : "DIR");
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

static const struct argp argp = {
	options,
	parse,
	"DIR NAME=BACKING",
	"Register a volume: BACKING (a file, a block device, or a device spec) becomes the file NAME in the mount "
	"point. On a loaded cache "
	"it can be used at once."
	"\v"
	"Example: blkcache add /ssd/cache db=/dev/disk/by-id/ata-EXAMPLE --mode wb",
	NULL,
	NULL,
	NULL,
};

int cmd_add(int argc, char **argv)
{
	struct args a = { 0 };
	int code = CMD_OK;
	json_t *result;

	parse_args(&argp, argc, argv, &a);
	result = manage(a.dir,
			json_pack("{s:s,s:o,s:o,s:s*}", "cmd", "add", "name", text(a.name), "backing", text(a.backing),
				  "mode", a.mode),
			CACHE_OPEN_NO_VOLUMES, &code);
	if (result) {
		const char *path = jtext(result, "path");

		say("added %s: %s of %s, mode %s%s%s", a.name, size_text(jcount(result, "size_bytes")),
		    jtext(result, "backing"), jtext(result, "mode"), *path ? ", at " : "", path);
	}
	json_decref(result);
	free(a.dir);
	free(a.name);
	free(a.backing);
	return code;
}
