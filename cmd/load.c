/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * load.c - blkcache load: starts the daemon of a cache.
 */
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "loading.h"

enum { OPT_ACCEPT = 256, OPT_SURVIVE };

static const struct argp_option options[] = {
	{ "accept-changed", OPT_ACCEPT, "NAME", 0,
	  "The backing device of volume NAME was changed behind the cache (or only touched), and is the right one: "
	  "keep "
	  "the volume's dirty data, which will overwrite what is there, and drop its clean lines. Not for a device "
	  "whose size has changed. May be given several times",
	  0 },
	{ "survive", OPT_SURVIVE, NULL, 0,
	  "The death of the daemon (a crash, kill -9) costs neither the mount nor anything answered: a small process "
	  "holds both until another daemon takes over. Takes root and Linux 6.9",
	  0 },
	{ "foreground", 'f', NULL, 0, "Stay in the foreground and log to stderr; ends with Ctrl-C", 0 },
	{ 0 },
};

struct args {
	char *dir, *mountpoint; /* the latter as given */
	bool foreground, survive;
	const char *accepted[CACHE_MAX_VOLUMES + 1]; /* ended by NULL */
	size_t naccepted;
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct args *a = state->input;

	switch (key) {
	case OPT_ACCEPT:
		if (a->naccepted == CACHE_MAX_VOLUMES)
			usage_error("--accept-changed is given more often than there can be volumes");
		a->accepted[a->naccepted++] = arg;
		break;
	case OPT_SURVIVE:
		a->survive = true;
		break;
	case 'f':
		a->foreground = true;
		break;
	default:
		return parse_dir_arg(key, arg, &a->dir, &a->mountpoint, "MOUNTPOINT");
	}
	return 0;
}

static const struct argp argp = {
	options,
	parse,
	"DIR MOUNTPOINT",
	"Recover the cache in DIR, start its daemon, and mount its volumes as files below MOUNTPOINT. Returns when "
	"they can be used, and says "
	"what was recovered. Doing it again is harmless."
	"\v"
	"The daemon ends with 'blkcache stop', with 'umount MOUNTPOINT', or with SIGTERM. The latter two make "
	"everything durable in the cache "
	"but do not write dirty data to the backing device; it is there at the next load. Options of the daemon are in "
	"/etc/blkcache.conf "
	"(or the file $BLKCACHE_CONF).",
	NULL,
	NULL,
	NULL,
};

/*
 * The cache is loaded. That is all a plain `load` for the same mount point wants, as with `mount`: done. What else is
 * asked for cannot be had from the daemon that runs.
 */
static int loaded_already(const struct args *a, const char *mountpoint, const json_t *cache)
{
	const char *at = jtext(cache, "mountpoint"), *state = jtext(cache, "state");

	if (strcmp(at, mountpoint) || !strcmp(state, "stopping"))
		return fail("%s: is loaded already, at %s%s; see 'blkcache status %s'", a->dir, at,
			    strcmp(state, "stopping") ? "" : ", and is being stopped", a->dir);
	if (a->foreground)
		return fail("%s: is loaded already, at %s, by a daemon of its own; leave out -f", a->dir, at);
	if (a->naccepted)
		return fail("%s: is loaded already, at %s; --accept-changed is for a cache that is not: 'blkcache stop "
			    "%s --no-flush' first",
			    a->dir, at, a->dir);
	if (a->survive && !json_is_true(json_object_get(cache, "survive")))
		return fail("%s: is loaded already, at %s, without --survive; 'blkcache stop %s' first", a->dir, at,
			    a->dir);
	if (!strcmp(state, "failed"))
		return fail("%s: is loaded already, at %s, but has failed: %s", a->dir, at, jtext(cache, "why"));
	say("%s: is loaded already, at %s", a->dir, at);
	return CMD_OK;
}

int cmd_load(int argc, char **argv)
{
	struct args a = { 0 };
	struct bc_error err = { 0 };
	struct daemon_params params = { 0 };
	json_t *loaded = NULL;
	char *mountpoint;
	int code = CMD_OK;

	parse_args(&argp, argc, argv, &a);
	mountpoint = loading_mountpoint(a.mountpoint);
	if (loading_hides_cache(mountpoint, a.dir)) {
		code = CMD_FAILED;
		goto out;
	}
	params.dir = a.dir;
	params.mountpoint = mountpoint;
	params.foreground = a.foreground;
	params.accepted = a.accepted;
	if (config_load(&params.config, &err)) {
		code = fail_err(&err);
		goto out;
	}
	params.config.survive |= a.survive;
	/* before a child is forked: the lock's message would name a pid, not what to do */
	loaded = loaded_status(a.dir, &code);
	if (loaded) {
		code = loaded_already(&a, mountpoint, json_object_get(loaded, "cache"));
	} else if (!code) {
		if (!a.foreground)
			interrupts_catch();
		code = loading_start(&params, NULL);
	}
out:
	json_decref(loaded);
	free(a.dir);
	free(mountpoint);
	return code;
}
