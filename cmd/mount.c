/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * mount.c - blkcache mount: create, add and load in one step. What it made itself is taken back if a later step fails.
 *
 *     no cache in DIR        create it (takes a size), then as below
 *     stopped cache          add the volume if it is not there, then load
 *     loaded cache           its mount point must be the same; add the volume live if it is not there
 */
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common.h"
#include "loading.h"
#include "undo.h"

enum { OPT_CACHE = 256, OPT_SIZE, OPT_LINE_SIZE, OPT_RAM, OPT_MODE, OPT_NAME, OPT_SURVIVE };

static const struct argp_option options[] = {
	{ "cache", OPT_CACHE, "DIR", 0, "The cache folder; made if it holds no cache", 0 },
	{ "size", OPT_SIZE, "SIZE", 0, "Size of the cache if it has to be made", 0 },
	{ "line-size", OPT_LINE_SIZE, "SIZE", 0, "Its unit of indexing if it has to be made: 4K (default) to 64K", 0 },
	{ "ram", OPT_RAM, "SIZE", 0, "Its memory if it has to be made (default 64M)", 0 },
	{ "mode", OPT_MODE, "MODE", 0, "Mode of the volume: wt, wb, wa, wi, wo or pt", 0 },
	{ "name", OPT_NAME, "NAME", 0, "Name of the volume (default: the last part of BACKING)", 0 },
	{ "survive", OPT_SURVIVE, NULL, 0,
	  "The death of the daemon (a crash, kill -9) costs neither the mount nor anything answered: a small process "
	  "holds both until another daemon takes over. Takes root and Linux 6.9",
	  0 },
	{ "foreground", 'f', NULL, 0, "Stay in the foreground and log to stderr; ends with Ctrl-C", 0 },
	{ 0 },
};

struct args {
	char *backing, *mountpoint, *dir, *name;
	uint64_t size, ram; /* 0: not given */
	uint32_t line_size;
	enum cache_mode mode; /* CACHE_MODE_COUNT: not given */
	bool foreground, survive;
	struct daemon_config config;
	/* made here, to be taken back */
	struct undo undo;
	bool made_cache, made_volume;
};

/* "/data/disk.img", "delay:read=5ms:/data/disk.img" -> "disk.img"; a spec without a path gives its module's name. */
static char *default_name(const char *backing)
{
	const char *slash = strrchr(backing, '/');

	return slash ? strdup(slash + 1) : strndup(backing, strcspn(backing, ":"));
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct args *a = state->input;

	switch (key) {
	case OPT_CACHE:
		free(a->dir);
		a->dir = parse_path_arg("--cache", arg);
		break;
	case OPT_SIZE:
		a->size = parse_size_arg("--size", arg);
		break;
	case OPT_LINE_SIZE:
		a->line_size = parse_line_size_arg(arg);
		break;
	case OPT_RAM:
		a->ram = parse_size_arg("--ram", arg);
		break;
	case OPT_MODE:
		a->mode = parse_mode_arg(arg);
		break;
	case OPT_NAME:
		free(a->name);
		a->name = strdup(parse_text_arg("--name", arg));
		break;
	case OPT_SURVIVE:
		a->survive = true;
		break;
	case 'f':
		a->foreground = true;
		break;
	case ARGP_KEY_ARG:
		if (!a->backing)
			a->backing = absolute_backing(parse_text_arg("BACKING", arg));
		else if (!a->mountpoint)
			a->mountpoint = loading_mountpoint(parse_text_arg("MOUNTPOINT", arg));
		else
			usage_error("unexpected argument '%s'", arg);
		break;
	case ARGP_KEY_END:
		if (!a->backing || !a->mountpoint)
			usage_error("%s is missing", a->backing ? "MOUNTPOINT" : "BACKING");
		if (!a->dir)
			usage_error("--cache is missing: the folder on the fast disk");
		if (!a->name)
			a->name = default_name(a->backing);
		if (!a->name || !*a->name)
			usage_error("'%s' gives no name for the volume; give one with --name", a->backing);
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

static const struct argp argp = {
	options,
	parse,
	"BACKING MOUNTPOINT --cache DIR",
	"Serve BACKING (a file, a block device, or a device spec) through the cache in DIR, as the file "
	"MOUNTPOINT/NAME: makes the cache if "
	"there is none, registers the volume if it is new, and loads the cache. Doing it again is harmless."
	"\v"
	"Example: blkcache mount /data/vm.img /mnt --cache /ssd/cache --size 20G --mode wb",
	NULL,
	NULL,
	NULL,
};

/* The same device under two spellings? */
static bool same_backing(const char *x, const char *y)
{
	struct stat sx, sy;

	if (!strcmp(x, y))
		return true;
	if (stat(x, &sx) || stat(y, &sy))
		return false;
	return S_ISBLK(sx.st_mode) && S_ISBLK(sy.st_mode) ? sx.st_rdev == sy.st_rdev
							  : sx.st_dev == sy.st_dev && sx.st_ino == sy.st_ino;
}

static int other_backing(const struct args *a, const char *backing)
{
	return fail("%s: the volume '%s' of %s has another backing device (%s); choose another --name", a->backing,
		    a->name, a->dir, backing);
}

/* What is of no use on a cache that exists, if it says something else than the cache is. */
static void warn_unused(const struct args *a, uint64_t size, uint64_t line_size)
{
	if (a->size && line_size && a->size / line_size * line_size != size)
		warn("%s: there is a cache of %s already; --size is not used", a->dir, size_text(size));
	if (a->line_size && a->line_size != line_size)
		warn("%s: there is a cache with lines of %s already; --line-size is not used", a->dir,
		     size_text(line_size));
	if (a->ram)
		warn("%s: there is a cache already; --ram is not used ('blkcache set %s ram=SIZE' changes it)", a->dir,
		     a->dir);
}

static void say_mode(const struct args *a, const char *old)
{
	say("%s: mode of the volume %s changed from %s to %s", a->dir, a->name, old, cache_mode_name(a->mode));
}

/* ---- a loaded cache ---- */

static json_t *find_volume(const json_t *status, const char *name)
{
	json_t *v;
	size_t i;

	json_array_foreach(json_object_get(status, "volumes"), i, v)
		if (!strcmp(jtext(v, "name"), name))
			return v;
	return NULL;
}

static int set_mode_live(struct args *a)
{
	int code = CMD_OK;

	json_decref(call_daemon(a->dir,
				json_pack("{s:s,s:o,s:[[ss]]}", "cmd", "set", "volume", text(a->name), "values", "mode",
					  cache_mode_name(a->mode)),
				NULL, NULL, NULL, &code));
	return code;
}

static int mount_loaded(struct args *a, const json_t *status)
{
	const char *mountpoint = jtext(json_object_get(status, "cache"), "mountpoint");
	json_t *v = find_volume(status, a->name), *result;
	int code = CMD_OK;

	if (strcmp(mountpoint, a->mountpoint))
		return fail("%s: the cache is loaded at %s already; use that mount point, or stop it first",
			    a->mountpoint, mountpoint);
	if (a->foreground)
		return fail("%s: the cache is loaded already, by a daemon of its own; leave out -f", a->dir);
	warn_unused(a, jcount(json_object_get(status, "cache"), "size_bytes"),
		    jcount(json_object_get(status, "cache"), "line_size"));
	if (v) {
		if (!same_backing(jtext(v, "backing"), a->backing))
			return other_backing(a, jtext(v, "backing"));
		if (a->mode != CACHE_MODE_COUNT && strcmp(jtext(v, "mode"), cache_mode_name(a->mode))) {
			code = set_mode_live(a);
			if (!code)
				say_mode(a, jtext(v, "mode"));
		}
		if (!code)
			say("%s/%s: is mounted already", mountpoint, a->name);
		return code;
	}
	result = call_daemon(a->dir,
			     json_pack("{s:s,s:o,s:o,s:s*}", "cmd", "add", "name", text(a->name), "backing",
				       text(a->backing), "mode",
				       a->mode == CACHE_MODE_COUNT ? NULL : cache_mode_name(a->mode)),
			     NULL, NULL, NULL, &code);
	if (result)
		say("%s  %s  %s  %s", jtext(result, "path"), size_text(jcount(result, "size_bytes")),
		    jtext(result, "mode"), jtext(result, "backing"));
	json_decref(result);
	return code;
}

/* ---- a stopped or a new cache ---- */

static int make_cache(struct args *a)
{
	struct cache_create_params params = { .size_bytes = a->size ? a->size : a->config.size,
					      .line_size = a->line_size ? a->line_size : a->config.line_size,
					      .mode = a->config.mode,
					      .ram_bytes = a->ram ? a->ram : a->config.ram };
	struct bc_error err = { 0 };

	if (!params.size_bytes)
		return fail("%s: there is no cache yet, and its size is not given; add --size SIZE", a->dir);
	if (cache_check_volume_name(a->name, &err))
		return fail_err(&err);
	undo_prepare(&a->undo, a->dir);
	if (cache_create(a->dir, &params, &err))
		return fail_err(&err);
	undo_made(&a->undo);
	a->made_cache = true;
	return CMD_OK;
}

static int add_if_needed(struct args *a, struct cache *c)
{
	struct bc_error err = { 0 };
	struct volume *v = cache_volume_get(c, a->name);
	int code = CMD_OK;

	if (!v) {
		if (cache_volume_add_patiently(c, a->name, a->backing, a->mode, stopped_patience(), &err))
			return fail_err(&err);
		a->made_volume = true;
		return CMD_OK;
	}
	if (!same_backing(volume_backing(v), a->backing)) {
		code = other_backing(a, volume_backing(v));
	} else if (a->mode != CACHE_MODE_COUNT && a->mode != volume_mode(v)) {
		const char *old = cache_mode_name(volume_mode(v));

		if (volume_set_mode(v, a->mode, &err))
			code = fail_err(&err);
		else
			say_mode(a, old);
	}
	volume_put(v);
	return code;
}

static int prepare(struct args *a)
{
	struct cache_info info;
	struct cache *c;
	int code = CMD_OK;

	if (!cache_exists(a->dir))
		code = make_cache(a);
	if (code)
		return code;
	c = open_stopped(a->dir, CACHE_OPEN_NO_VOLUMES, &code);
	if (!c)
		return code;
	memset(&info, 0, sizeof(info));
	cache_get_info(c, &info);
	if (!a->made_cache)
		warn_unused(a, info.size_bytes, info.line_size);
	return close_stopped(c, add_if_needed(a, c));
}

/*
 * Between the mount and a failure after it somebody may have written to the volume, and a cache with dirty data is
 * never removed (P8): so it is looked at first.
 */
static void take_back(struct args *a)
{
	struct bc_error err = { 0 };
	struct cache_info info;
	int code = CMD_OK;
	struct cache *c;

	if (!a->made_cache && !a->made_volume)
		return;
	c = open_stopped(a->dir, CACHE_OPEN_NO_VOLUMES, &code);
	if (!c)
		return;
	memset(&info, 0, sizeof(info));
	cache_get_info(c, &info);
	if (!a->made_cache && !info.dirty_bytes && cache_volume_remove(c, a->name, false, &err))
		fail_err(&err);
	code = close_stopped(c, CMD_OK);
	if (info.dirty_bytes)
		warn("%s: holds %s of dirty data and is kept; load it with 'blkcache load'", a->dir,
		     size_text(info.dirty_bytes));
	else if (a->made_cache && !code)
		undo_create(&a->undo);
}

static int mount_stopped(struct args *a)
{
	struct daemon_params params = {
		.dir = a->dir, .mountpoint = a->mountpoint, .foreground = a->foreground, .config = a->config
	};
	bool served = false;
	int code;

	if (!a->foreground)
		interrupts_catch();
	code = prepare(a);
	if (!code)
		code = loading_start(&params, &served);
	if (code && !served)
		take_back(a);
	if (a->made_cache)
		undo_forget(&a->undo);
	return code;
}

static int run(struct args *a)
{
	struct bc_error err = { 0 };
	int code = CMD_OK;
	json_t *status;

	if (loading_hides_cache(a->mountpoint, a->dir))
		return CMD_FAILED;
	if (config_load(&a->config, &err))
		return fail_err(&err);
	a->config.survive |= a->survive;
	if (!cache_exists(a->dir))
		return mount_stopped(a);
	status = loaded_status(a->dir, &code);
	if (status)
		code = mount_loaded(a, status);
	else if (!code)
		code = mount_stopped(a);
	json_decref(status);
	return code;
}

int cmd_mount(int argc, char **argv)
{
	struct args a = { .mode = CACHE_MODE_COUNT };
	int code;

	parse_args(&argp, argc, argv, &a);
	code = run(&a);
	free(a.backing);
	free(a.mountpoint);
	free(a.dir);
	free(a.name);
	return code;
}
