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
	"what was recovered."
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

/* A daemon that runs already is told of before a child is forked: the lock's message would name a pid, not what to do.
 */
static int refuse_if_loaded(const char *dir)
{
	int code = CMD_OK;
	json_t *status = loaded_status(dir, &code);

	if (status)
		code = fail("%s: is loaded already, at %s%s; see 'blkcache status %s'", dir,
			    jtext(json_object_get(status, "cache"), "mountpoint"),
			    strcmp(jtext(json_object_get(status, "cache"), "state"), "stopping")
				    ? ""
				    : ", and is being stopped",
			    dir);
	json_decref(status);
	return code;
}

int cmd_load(int argc, char **argv)
{
	struct args a = { 0 };
	struct bc_error err = { 0 };
	struct daemon_params params = { 0 };
	char *mountpoint;
	int code;

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
	code = config_load(&params.config, &err) ? fail_err(&err) : refuse_if_loaded(a.dir);
	params.config.survive |= a.survive;
	if (!code) {
		if (!a.foreground)
			interrupts_catch();
		code = loading_start(&params, NULL);
	}
out:
	free(a.dir);
	free(mountpoint);
	return code;
}
