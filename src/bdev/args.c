/* SPDX-License-Identifier: BSD-3-Clause */
/* args.c - cuts the "key=value,key=value" lists of device specs. Any thread; no state of its own. */
#include "bdev/args.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blkcache/units.h"

/* Larger sizes than this do not fit off_t. */
#define MAX_SIZE (UINT64_C(1) << 62)

int args_next(struct args *a, const char *module, struct bc_error *err)
{
	char *eq;

	if (!a->rest || !*a->rest)
		return 0;
	a->key = strsep(&a->rest, ",");
	if (a->rest && !*a->rest)
		return bc_fail(err, -EINVAL, "%s: the option list ends with a comma", module);
	eq = strchr(a->key, '=');
	if (!*a->key || eq == a->key)
		return bc_fail(err, -EINVAL, "%s: an option without a name; write key=value,key=value", module);
	a->value = eq ? eq + 1 : a->key + strlen(a->key);
	if (eq)
		*eq = 0;
	return 1;
}

int args_only_size(const char *text, const char *module, uint64_t *size, struct bc_error *err)
{
	struct args a = { .rest = strdup(text) };
	char *copy = a.rest;
	int r;

	if (!copy)
		return bc_fail(err, -ENOMEM, "%s: out of memory", module);
	*size = 0;
	while ((r = args_next(&a, module, err)) > 0) {
		if (strcmp(a.key, "size")) {
			r = bc_fail(err, -EINVAL, "%s: unknown option '%s'; write %s:size=SIZE", module, a.key, module);
			break;
		}
		r = units_parse_size(a.value, size);
		if (r) {
			bc_fail(err, r, "%s: bad size '%s'; write a whole number with K, M, G or T, such as 64M",
				module, a.value);
			break;
		}
	}
	if (!r && !*size)
		r = bc_fail(err, -EINVAL, "%s: the size is missing or 0; write %s:size=SIZE", module, module);
	if (!r && *size > MAX_SIZE)
		r = bc_fail(err, -ERANGE, "%s: size too large", module);
	free(copy);
	return r;
}
