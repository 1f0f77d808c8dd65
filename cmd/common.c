/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * common.c - see common.h.
 */
#include "common.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "blkcache/units.h"
#include "daemon/daemon.h"

static const char *command_name = "";
static volatile sig_atomic_t got_signal;

/* ---- messages ---- */

void command_set_name(const char *name)
{
	command_name = name;
}

/* One line whatever is in it: paths may hold newlines, and escape sequences a terminal obeys. */
static void print_line(const char *kind, const char *fmt, va_list ap)
{
	char text[2 * PATH_MAX];

	vsnprintf(text, sizeof(text), fmt, ap);
	for (char *p = text; *p; p++)
		if (iscntrl((unsigned char)*p))
			*p = '?';
	fprintf(stderr, "blkcache: %s%s%s%s\n", command_name, *command_name ? ": " : "", kind, text);
}

int fail(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	print_line("", fmt, ap);
	va_end(ap);
	return CMD_FAILED;
}

int fail_err(const struct bc_error *err)
{
	fail("%s", err->msg);
	return err->code == -EINTR ? CMD_INTERRUPTED : CMD_FAILED;
}

void warn(const char *fmt, ...)
{
	va_list ap;

	fflush(stdout);
	va_start(ap, fmt);
	print_line("note: ", fmt, ap);
	va_end(ap);
}

/* ---- arguments ---- */

uint64_t parse_size_arg(const char *what, const char *text, struct argp_state *state)
{
	uint64_t size = 0;

	if (units_parse_size(text, &size))
		argp_error(state, "%s: '%s' is not a size; write a whole number with K, M, G or T, such as 10G", what,
			   text);
	return size;
}

uint32_t parse_line_size_arg(const char *text, struct argp_state *state)
{
	uint64_t size = parse_size_arg("--line-size", text, state);

	if (size < CACHE_BLOCK || size > 65536 || size & (size - 1))
		argp_error(state, "--line-size is 4K, 8K, 16K, 32K or 64K, not '%s'", text);
	return (uint32_t)size;
}

enum cache_mode parse_mode_arg(const char *text, struct argp_state *state)
{
	enum cache_mode mode = MODE_WT;

	if (cache_mode_parse(text, &mode))
		argp_error(state, "unknown mode '%s'; modes are wt, wb, wa, wi, wo, pt", text);
	return mode;
}

static void *checked(void *p)
{
	if (!p) {
		fail("out of memory");
		exit(CMD_FAILED);
	}
	return p;
}

void parse_volume_arg(const char *text, char **name, char **backing, struct argp_state *state)
{
	const char *sep = strchr(text, '=');

	if (!sep || sep == text || !sep[1])
		argp_error(state, "'%s' is not NAME=BACKING", text);
	else {
		*name = checked(strndup(text, (size_t)(sep - text)));
		*backing = absolute_backing(sep + 1);
	}
}

error_t parse_dir_arg(int key, char *arg, struct argp_state *state, char **dir, char **name, const char *required)
{
	switch (key) {
	case ARGP_KEY_ARG:
		if (!*dir)
			*dir = absolute_path(arg);
		else if (name && !*name)
			*name = arg;
		else
			argp_error(state, "unexpected argument '%s'", arg);
		break;
	case ARGP_KEY_END:
		if (!*dir)
			argp_error(state, "DIR is missing");
		else if (required && !*name)
			argp_error(state, "%s is missing", required);
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

/* cwd + "/" + path, as it stands: for what does not exist yet, or cannot be looked at. */
static char *join_cwd(const char *path)
{
	char *cwd, *joined = NULL;

	if (*path == '/')
		return checked(strdup(path));
	cwd = getcwd(NULL, 0);
	if (!cwd)
		return checked(strdup(path));
	while (path[0] == '.' && path[1] == '/')
		path += 2;
	if (asprintf(&joined, "%s/%s", strcmp(cwd, "/") ? cwd : "", path) < 0)
		joined = NULL;
	free(cwd);
	return checked(joined);
}

char *absolute_path(const char *path)
{
	char *real = realpath(path, NULL);

	return real ? real : join_cwd(path);
}

/*
 * Which part of a spec is a path only the device modules know; here the first part, from the left, that names something
 * in the working folder is taken. A spec without any ':' that has a '/' or '.' can only be a path: made absolute even
 * if missing, so that the message names it in full.
 */
char *absolute_backing(const char *spec)
{
	const char *part = spec;
	char *path, *out = NULL;

	for (;;) {
		if (*part && *part != '/' && !access(part, F_OK))
			break;
		if (!strchr(part, ':')) {
			if (part == spec && *part != '/' && strpbrk(part, "/."))
				break;
			return checked(strdup(spec));
		}
		if (*part == '/')
			return checked(strdup(spec));
		part = strchr(part, ':') + 1;
	}
	path = join_cwd(part);
	if (asprintf(&out, "%.*s%s", (int)(part - spec), spec, path) < 0)
		out = NULL;
	free(path);
	return checked(out);
}

/* ---- signals ---- */

static void on_signal(int sig)
{
	(void)sig;
	got_signal = 1;
}

void interrupts_catch(void)
{
	/* No SA_RESTART: what blocks has to notice. RESETHAND: a second Ctrl-C gets through whatever happens. */
	struct sigaction sa = { .sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND };

	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
}

bool interrupted(void)
{
	return got_signal;
}

/* ---- the daemon, or the stopped cache ---- */

/* A final answer: itself if positive, else NULL after its message. */
static json_t *accept_answer(json_t *answer, int *exit_code)
{
	if (json_is_true(json_object_get(answer, "ok"))) {
		json_object_del(answer, "ok");
		return answer;
	}
	fail("%s", jtext(answer, "error"));
	*exit_code = (int)jcount(answer, "code");
	if (!*exit_code)
		*exit_code = CMD_FAILED;
	json_decref(answer);
	return NULL;
}

/* May be asked again if there was no answer. */
static bool is_question(const json_t *request)
{
	const char *cmd = jtext(request, "cmd");

	return !strcmp(cmd, "status") || !strcmp(cmd, "stats") || !strcmp(cmd, "get");
}

json_t *call_daemon(const char *dir, json_t *request, int (*progress)(json_t *p, void *ctx), void *ctx, bool *stopped,
		    int *exit_code)
{
	struct bc_error err = { 0 };
	bool question = is_question(request);
	json_t *answer;

	for (int tries = 0;; tries++) {
		answer = control_call_until_end(dir, json_incref(request), progress, ctx, &err);
		if (answer || !question || err.code != -EPROTO || tries == 40)
			break;
		/* it was killed or is ending: a moment later it is gone, or has a successor */
		nanosleep(&(struct timespec){ .tv_nsec = 50000000 }, NULL);
	}
	json_decref(request);
	if (answer)
		return accept_answer(answer, exit_code);
	if (stopped && err.code == -ECONNREFUSED)
		*stopped = true;
	else if (err.code == -EINTR)
		*exit_code = CMD_INTERRUPTED;
	else
		*exit_code = fail_err(&err);
	return NULL;
}

struct cache *open_stopped(const char *dir, unsigned flags, int *exit_code)
{
	struct cache_open_report report;
	struct bc_error err = { 0 };
	struct cache *c = NULL;

	memset(&report, 0, sizeof(report));
	if (cache_open(dir, flags, &c, &report, &err)) {
		*exit_code = fail_err(&err);
		return NULL;
	}
	return c;
}

int close_stopped(struct cache *c, int code)
{
	struct bc_error err = { 0 };

	if (cache_close(c, &err) && code != CMD_FAILED)
		return fail_err(&err);
	return code;
}

static json_t *manage_stopped(const char *dir, json_t *request, unsigned flags, int *exit_code)
{
	struct bc_error err = { 0 };
	struct cache *c = open_stopped(dir, flags, exit_code);
	json_t *result;

	if (!c)
		return NULL;
	result = manage_run(c, NULL, request, NULL, &err);
	*exit_code = close_stopped(c, result ? CMD_OK : fail_err(&err));
	if (result && *exit_code) {
		json_decref(result);
		result = NULL;
	}
	return result;
}

json_t *manage(const char *dir, json_t *request, unsigned open_flags, int *exit_code)
{
	bool stopped = false;
	json_t *result = call_daemon(dir, json_incref(request), NULL, NULL, &stopped, exit_code);

	if (stopped)
		result = manage_stopped(dir, request, open_flags, exit_code);
	json_decref(request);
	return result;
}

/* ---- small things ---- */

const char *jtext(const json_t *o, const char *key)
{
	const char *s = json_string_value(json_object_get(o, key));

	return s ? s : "";
}

uint64_t jcount(const json_t *o, const char *key)
{
	return (uint64_t)json_integer_value(json_object_get(o, key));
}

const char *size_text(uint64_t bytes)
{
	static char bufs[8][32];
	static unsigned next;
	char *buf = bufs[next++ % 8];

	return units_format_size(buf, sizeof(bufs[0]), bytes);
}
