/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * create.c - blkcache create: makes a cache and registers its first volumes; all or nothing.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "daemon/daemon.h"
#include "undo.h"

#define MAX_VOLUMES 256

enum { OPT_SIZE = 256, OPT_LINE_SIZE, OPT_MODE, OPT_RAM, OPT_VOLUME, OPT_FORCE };

static const struct argp_option options[] = {
	{ "size", OPT_SIZE, "SIZE", 0, "Size of the data file, for example 10G. It is allocated at once", 0 },
	{ "line-size", OPT_LINE_SIZE, "SIZE", 0,
	  "Unit of indexing and eviction: 4K (default), 8K, 16K, 32K or 64K. Larger lines need less memory for "
	  "metadata; "
	  "what is fetched and written is 4K blocks all the same",
	  0 },
	{ "mode", OPT_MODE, "MODE", 0,
	  "Mode of volumes added without one: wt write-through (default), wb write-back, wa write-around, wi "
	  "write-invalidate, wo "
	  "write-only, pt pass-through",
	  0 },
	{ "ram", OPT_RAM, "SIZE", 0, "Memory for the hottest blocks and delayed writes (default 64M)", 0 },
	{ "volume", OPT_VOLUME, "NAME=BACKING", 0, "Register a volume too; may be given several times", 0 },
	{ "force", OPT_FORCE, NULL, 0,
	  "Replace an existing cache: its volumes and tunables are forgotten. Refused if it is loaded or holds dirty "
	  "data",
	  0 },
	{ 0 },
};

struct args {
	char *dir;
	struct cache_create_params params;
	char *names[MAX_VOLUMES], *backings[MAX_VOLUMES];
	struct bdev_identity ids[MAX_VOLUMES];
	size_t nvolumes;
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct args *a = state->input;

	switch (key) {
	case OPT_SIZE:
		a->params.size_bytes = parse_size_arg("--size", arg);
		break;
	case OPT_LINE_SIZE:
		a->params.line_size = parse_line_size_arg(arg);
		break;
	case OPT_MODE:
		a->params.mode = parse_mode_arg(arg);
		break;
	case OPT_RAM:
		a->params.ram_bytes = parse_size_arg("--ram", arg);
		break;
	case OPT_VOLUME:
		if (a->nvolumes == MAX_VOLUMES)
			usage_error("at most %d volumes here; add the others with 'blkcache add'", MAX_VOLUMES);
		parse_volume_arg(arg, &a->names[a->nvolumes], &a->backings[a->nvolumes]);
		a->nvolumes++;
		break;
	case OPT_FORCE:
		a->params.force = true;
		break;
	case ARGP_KEY_ARG:
		if (a->dir)
			usage_error("unexpected argument '%s'", arg);
		a->dir = parse_path_arg("DIR", arg);
		break;
	case ARGP_KEY_END:
		if (!a->dir)
			usage_error("DIR is missing: the folder to make");
		if (!a->params.size_bytes)
			usage_error("--size is missing: how large should the cache be?");
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

static const struct argp argp = {
	options,
	parse,
	"DIR --size SIZE",
	"Make a cache in the folder DIR: a preallocated data file and its journal. DIR is made if it is missing. Put "
	"it on the fast disk."
	"\v"
	"Defaults of size, line-size, mode and ram come from /etc/blkcache.conf (or the file $BLKCACHE_CONF) if it has "
	"them.\n\n"
	"Example: blkcache create /ssd/cache --size 20G --mode wb --volume vm.img=/data/vm.img",
	NULL,
	NULL,
	NULL,
};

static int add_volumes(struct args *a)
{
	struct bc_error err = { 0 };
	int code = CMD_OK;
	struct cache *c;

	if (!a->nvolumes)
		return CMD_OK;
	c = open_stopped(a->dir, CACHE_OPEN_NO_VOLUMES, &code);
	if (!c)
		return code;
	for (size_t i = 0; i < a->nvolumes && !code; i++)
		if (cache_volume_add_patiently(c, a->names[i], a->backings[i], CACHE_MODE_COUNT, stopped_patience(), &err))
			code = fail_err(&err);
	return close_stopped(c, code);
}

/* Files and disks have an identity, others have none. */
static bool same_device(const struct bdev_identity *x, const struct bdev_identity *y)
{
	return (x->id[0] || x->id[1]) && x->id[0] == y->id[0] && x->id[1] == y->id[1];
}

/* What can be known before anything is made, so that --force does not replace a cache and then fail at a typing
 * mistake. */
static int check_backings(struct args *a)
{
	struct bc_error err = { 0 };
	struct bdev *bdev;

	for (size_t i = 0; i < a->nvolumes; i++) {
		for (size_t k = 0; k < i; k++)
			if (!strcmp(a->names[i], a->names[k]))
				return fail("%s: the volume name is given twice; names have to differ", a->names[i]);
		if (cache_check_volume_name(a->names[i], &err))
			return fail_err(&err);
		if (bdev_open_patiently(a->backings[i], BDEV_OPEN_RDONLY, stopped_patience(), &bdev, &err))
			return fail_err(&err);
		bdev_get_identity(bdev, &a->ids[i]);
		bdev_close(bdev);
		for (size_t k = 0; k < i; k++)
			if (same_device(&a->ids[i], &a->ids[k]))
				return fail(
					"%s: is given as volume %s and as volume %s; a device can be one volume only",
					a->backings[i], a->names[k], a->names[i]);
	}
	return CMD_OK;
}

/* One that is on its way out, after an unmount: what it leaves may be replaced. One that stays is cache_create()'s to
 * refuse. */
static int wait_for_daemon(const char *dir)
{
	int code = CMD_OK;

	if (cache_exists(dir))
		json_decref(loaded_status(dir, &code));
	return code;
}

static void print_made(struct args *a)
{
	say("created %s: %s in lines of %s, mode %s", a->dir, size_text(a->params.size_bytes),
	    size_text(a->params.line_size ? a->params.line_size : CACHE_BLOCK), cache_mode_long_name(a->params.mode));
	for (size_t i = 0; i < a->nvolumes; i++)
		say("volume %s: %s", a->names[i], a->backings[i]);
}

int cmd_create(int argc, char **argv)
{
	struct args *a = calloc(1, sizeof(*a));
	struct bc_error err = { 0 };
	struct daemon_config config;
	struct undo undo;
	int code;

	if (!a)
		return fail("out of memory");
	/* --help and usage errors do not depend on the configuration being right. */
	bool config_ok = !config_load(&config, &err);

	a->params.mode = CACHE_MODE_WT;
	if (config_ok) {
		a->params.size_bytes = config.size;
		a->params.line_size = config.line_size;
		a->params.mode = config.mode;
		a->params.ram_bytes = config.ram;
	}
	parse_args(&argp, argc, argv, a);
	code = config_ok ? check_backings(a) : fail_err(&err);
	if (!code && a->params.force)
		code = wait_for_daemon(a->dir);
	if (!code) {
		undo_prepare(&undo, a->dir);
		if (cache_create(a->dir, &a->params, &err)) {
			code = fail_err(&err);
		} else {
			undo_made(&undo);
			code = add_volumes(a);
			if (code)
				undo_create(&undo);
			else
				print_made(a);
			undo_forget(&undo);
		}
	}
	for (size_t i = 0; i < a->nvolumes; i++) {
		free(a->names[i]);
		free(a->backings[i]);
	}
	free(a->dir);
	free(a);
	return code;
}
