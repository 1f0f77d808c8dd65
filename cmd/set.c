/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * set.c - blkcache set: changes tunables, by the daemon if the cache is loaded; kept in the journal either way.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"

struct args {
	char *dir;
	const char *name; /* NULL: the cache's */
	json_t *values; /* [[key, value]...] */
};

static void add_value(struct args *a, const char *arg)
{
	const char *sep = strchr(arg, '=');
	json_t *pair;

	if (sep == arg)
		usage_error("'%s' is not KEY=VALUE", arg);
	pair = json_pack("[oo]", json_stringn_nocheck(arg, (size_t)(sep - arg)), text(sep + 1));
	json_array_append_new(a->values, pair);
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct args *a = state->input;

	switch (key) {
	case ARGP_KEY_ARG:
		if (!a->dir)
			a->dir = parse_path_arg("DIR", arg);
		else if (strchr(arg, '='))
			add_value(a, arg);
		else if (!a->name && !json_array_size(a->values))
			a->name = parse_text_arg("NAME", arg);
		else
			usage_error("'%s' is not KEY=VALUE", arg);
		break;
	case ARGP_KEY_END:
		if (!a->dir || !json_array_size(a->values))
			usage_error("%s is missing", a->dir ? "KEY=VALUE" : "DIR");
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

static const struct argp argp = {
	NULL,
	parse,
	"DIR [NAME] KEY=VALUE...",
	"Change tunables of the cache, or of the volume NAME, at once and for good. 'blkcache get DIR' lists them with "
	"their meaning."
	"\v"
	"Examples:\n"
	"  blkcache set /ssd/cache vm.img mode=wb\n"
	"  blkcache set /ssd/cache ram=256M clean-after=30s",
	NULL,
	NULL,
	NULL,
};

int cmd_set(int argc, char **argv)
{
	struct args a = { .values = json_array() };
	json_t *result, *note;
	int code = CMD_OK;
	size_t i;

	parse_args(&argp, argc, argv, &a);
	result = manage(a.dir, json_pack("{s:s,s:o*,s:o}", "cmd", "set", "volume", text(a.name), "values", a.values),
			CACHE_OPEN_NO_VOLUMES, &code);
	json_array_foreach(json_object_get(result, "notes"), i, note)
		say("%s", json_string_value(note));
	json_decref(result);
	free(a.dir);
	return code;
}
