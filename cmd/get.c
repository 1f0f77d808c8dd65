/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * get.c - blkcache get: shows tunables. With one KEY named, only its value, for scripts.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "table.h"

enum { OPT_JSON = 256 };

static const struct argp_option options[] = {
	{ "json", OPT_JSON, NULL, 0, "Print one JSON object of keys and values", 0 },
	{ 0 },
};

struct args {
	char *dir;
	bool json;
	json_t *names; /* perhaps a volume, then keys: the daemon knows which */
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct args *a = state->input;

	switch (key) {
	case OPT_JSON:
		a->json = true;
		break;
	case ARGP_KEY_ARG:
		if (!a->dir)
			a->dir = parse_path_arg("DIR", arg);
		else
			json_array_append_new(a->names, text(parse_text_arg("NAME or KEY", arg)));
		break;
	case ARGP_KEY_END:
		if (!a->dir)
			usage_error("DIR is missing");
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

static const struct argp argp = {
	options,
	parse,
	"DIR [NAME] [KEY...]",
	"Show the tunables of the cache, or of the volume NAME, with their meaning. With one KEY, print its value "
	"only.",
	NULL,
	NULL,
	NULL,
};

static void print_values(const json_t *tunables)
{
	json_t *o = json_object(), *t;
	size_t i;

	json_array_foreach(tunables, i, t)
		json_object_set(o, jtext(t, "key"), json_object_get(t, "value"));
	print_json(o);
	json_decref(o);
}

static void print_table(const json_t *tunables)
{
	struct table table;
	json_t *t;
	size_t i;

	table_init(&table, 3, 0);
	json_array_foreach(tunables, i, t) {
		table_cell(&table, "%s", jtext(t, "key"));
		table_cell(&table, "%s", jtext(t, "value"));
		table_cell(&table, "%s", jtext(t, "help"));
	}
	table_print(&table);
}

int cmd_get(int argc, char **argv)
{
	struct args a = { .names = json_array() };
	json_t *result, *tunables;
	bool only_value;
	int code = CMD_OK;

	parse_args(&argp, argc, argv, &a);
	result = manage(a.dir, json_pack("{s:s,s:O}", "cmd", "get", "names", a.names), CACHE_OPEN_NO_VOLUMES, &code);
	tunables = json_object_get(result, "tunables");
	/* One key was asked for by name: the names are that key, perhaps after the volume. */
	only_value = json_array_size(tunables) == 1 &&
		     json_array_size(a.names) == (json_is_string(json_object_get(result, "volume")) ? 2 : 1);
	if (tunables && a.json)
		print_values(tunables);
	else if (tunables && only_value)
		printf("%s\n", jtext(json_array_get(tunables, 0), "value"));
	else if (tunables)
		print_table(tunables);
	json_decref(result);
	json_decref(a.names);
	free(a.dir);
	return code;
}
