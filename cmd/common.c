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

#define NOTE_AFTER_S 15
#define MODE_LIST                                                                                                      \
	"wt (write-through), wb (write-back), wa (write-around), wi (write-invalidate), wo (write-only), "             \
	"pt (pass-through)"

static const char *command_name = "";
static volatile sig_atomic_t got_signal;
static FILE *real_stderr; /* while parse_args() keeps it from argp */

/* ---- messages ---- */

void command_set_name(const char *name)
{
	command_name = name;
}

/* One line whatever is in it: paths may hold newlines, and escape sequences a terminal obeys. */
static void format_line(char *line, size_t len, const char *fmt, va_list ap)
{
	vsnprintf(line, len, fmt, ap);
	for (char *p = line; *p; p++)
		if (iscntrl((unsigned char)*p))
			*p = '?';
}

static void print_line(const char *kind, const char *fmt, va_list ap)
{
	char line[4 * PATH_MAX];

	format_line(line, sizeof(line), fmt, ap);
	fprintf(real_stderr ? real_stderr : stderr, "blkcache: %s%s%s%s\n", command_name, *command_name ? ": " : "",
		kind, line);
}

void say(const char *fmt, ...)
{
	char line[4 * PATH_MAX];
	va_list ap;

	va_start(ap, fmt);
	format_line(line, sizeof(line), fmt, ap);
	va_end(ap);
	puts(line);
}

void print_json(const json_t *o)
{
	json_t *copy = control_printable(o);

	if (copy)
		json_dumpf(copy, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
	printf("\n");
	json_decref(copy);
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

/*
 * argp and getopt write what is wrong with an option to stderr, as several lines in a form of their own, and exit.
 * While they parse, stderr is a buffer; what they left in it is told when the program ends.
 */
static char *said;
static size_t said_len;

static void give_stderr_back(void)
{
	if (!real_stderr)
		return;
	fclose(stderr);
	stderr = real_stderr;
	real_stderr = NULL;
}

void usage_error(const char *fmt, ...)
{
	char line[4 * PATH_MAX];
	va_list ap;

	give_stderr_back();
	va_start(ap, fmt);
	format_line(line, sizeof(line), fmt, ap);
	va_end(ap);
	fail("%s; 'blkcache %s --help' tells more", line, command_name);
	exit(CMD_USAGE);
}

/* "blkcache create: unrecognized option '--x'" and more lines: the first, without the name. */
static void tell_what_argp_said(void)
{
	char *what;

	if (!real_stderr)
		return;
	give_stderr_back();
	if (said && *said) {
		said[strcspn(said, "\n")] = 0;
		what = strstr(said, ": ");
		fail("%s; 'blkcache %s --help' tells more", what ? what + 2 : said, command_name);
	} else if (fflush(stdout) || ferror(stdout)) {
		/* --help ends in here, too */
		_exit(fail("cannot write the output: %s", strerror(errno)));
	}
}

void parse_args(const struct argp *argp, int argc, char **argv, void *input)
{
	FILE *buffer = open_memstream(&said, &said_len);

	if (buffer && !atexit(tell_what_argp_said)) {
		real_stderr = stderr;
		stderr = buffer;
	}
	argp_parse(argp, argc, argv, 0, NULL, input);
	give_stderr_back();
}

uint64_t parse_size_arg(const char *what, const char *text)
{
	uint64_t size = 0;
	size_t n = strlen(text);
	int ret = units_parse_size(text, &size);

	if (ret == -ERANGE)
		usage_error("%s: '%s' is larger than anything can be here", what, text);
	if (ret)
		usage_error("%s: '%s' is not a size; write a whole number with K, M, G or T, such as 10G", what, text);
	if (!size)
		usage_error("%s: '%s' is too small; a size such as 64M is needed", what, text);
	if (n > 1 && text[n - 1] == 'B' && strchr("KMGTkmgt", text[n - 2]))
		warn("%s: %s is taken as %.*s, in powers of 1024", what, text, (int)(n - 1), text);
	return size;
}

uint32_t parse_line_size_arg(const char *text)
{
	uint64_t size = 0;

	if (units_parse_size(text, &size) || size < CACHE_BLOCK || size > 65536 || size & (size - 1))
		usage_error("--line-size is 4K, 8K, 16K, 32K or 64K, not '%s'", text);
	return (uint32_t)size;
}

enum cache_mode parse_mode_arg(const char *text)
{
	enum cache_mode mode = CACHE_MODE_WT;

	if (cache_mode_parse(text, &mode))
		usage_error("unknown mode '%s'; modes are " MODE_LIST, text);
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

char *parse_text_arg(const char *what, char *text)
{
	if (!*text)
		usage_error("%s is empty", what);
	return text;
}

char *parse_path_arg(const char *what, const char *text)
{
	if (!*text)
		usage_error("%s is empty", what);
	return absolute_path(text);
}

void parse_volume_arg(const char *text, char **name, char **backing)
{
	const char *sep = strchr(text, '=');

	if (!sep || sep == text || !sep[1])
		usage_error("'%s' is not NAME=BACKING", text);
	*name = checked(strndup(text, (size_t)(sep - text)));
	*backing = absolute_backing(sep + 1);
}

error_t parse_dir_arg(int key, char *arg, char **dir, char **name, const char *required)
{
	switch (key) {
	case ARGP_KEY_ARG:
		if (!*dir)
			*dir = parse_path_arg("DIR", arg);
		else if (name && !*name)
			*name = parse_text_arg(required ? required : "NAME", arg);
		else
			usage_error("unexpected argument '%s'", arg);
		break;
	case ARGP_KEY_END:
		if (!*dir)
			usage_error("DIR is missing");
		else if (required && !*name)
			usage_error("%s is missing", required);
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
	char *real = realpath(path, NULL), *joined;
	size_t n;

	if (real)
		return real;
	joined = join_cwd(path);
	for (n = strlen(joined); n > 1 && joined[n - 1] == '/'; n--)
		joined[n - 1] = '\0';
	return joined;
}

/*
 * Which part of a spec is a path only the device modules know; here the first part, from the left, that names something
 * in the working folder is taken. A spec without any ':' is a path: made absolute even if missing, so that the message
 * names it in full.
 */
char *absolute_backing(const char *spec)
{
	const char *part = spec;
	char *path, *out = NULL;

	for (;;) {
		if (*part && *part != '/' && !access(part, F_OK))
			break;
		if (!strchr(part, ':')) {
			if (part == spec && *part != '/')
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

/* Says once that a command takes long, if nothing has shown that for a while. */
struct waiting {
	int (*progress)(json_t *p, void *ctx);
	void *ctx;
	const char *dir;
	struct timespec last; /* progress, or the start */
	bool told;
};

static int wait_patiently(json_t *p, void *ctx)
{
	struct waiting *w = ctx;
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	if (p)
		w->last = now;
	if (!w->told && now.tv_sec - w->last.tv_sec >= NOTE_AFTER_S) {
		w->told = true;
		warn("%s: the daemon is alive and at it, but for %d s nothing has moved: a device is slow, or hangs "
		     "(see "
		     "'dmesg')",
		     w->dir, NOTE_AFTER_S);
	}
	return w->progress ? w->progress(p, w->ctx) : 0;
}

json_t *call_daemon(const char *dir, json_t *request, int (*progress)(json_t *p, void *ctx), void *ctx, bool *stopped,
		    int *exit_code)
{
	struct waiting patience = { .progress = progress, .ctx = ctx, .dir = dir };
	struct bc_error err = { 0 };
	bool question = is_question(request);
	json_t *answer;

	clock_gettime(CLOCK_MONOTONIC, &patience.last);
	patience.told = question; /* it ends by itself */
	for (int tries = 0;; tries++) {
		answer = control_call_until_end(dir, json_incref(request), wait_patiently, &patience, &err);
		if (tries == 40 || (!answer && (!question || err.code != -EPROTO)))
			break;
		/* A refusal with "ending": the daemon has ended by now, and may have a successor. */
		if (answer &&
		    (json_is_true(json_object_get(answer, "ok")) || !json_is_true(json_object_get(answer, "ending"))))
			break;
		/* No answer: it was killed. A moment later it is gone, or has a successor. */
		json_decref(answer);
		nanosleep(&(struct timespec){ .tv_nsec = 50000000 }, NULL);
	}
	json_decref(request);
	if (answer)
		return accept_answer(answer, exit_code);
	if (stopped && err.code == -ECONNREFUSED)
		*stopped = true;
	else
		*exit_code = fail_err(&err);
	return NULL;
}

json_t *loaded_status(const char *dir, int *exit_code)
{
	bool stopped = false;

	return call_daemon(dir, json_pack("{s:s,s:b}", "cmd", "status", "wait", 1), NULL, NULL, &stopped, exit_code);
}

json_t *text(const char *bytes)
{
	return bytes ? json_string_nocheck(bytes) : NULL;
}

static enum cache_state stopped_state(enum cache_state state, struct volume *v, void *ctx)
{
	(void)v;
	(void)ctx;
	return state == CACHE_STATE_FAILED || state == CACHE_STATE_DEGRADED ? state : CACHE_STATE_STOPPED;
}

json_t *describe_stopped(const char *dir, json_t *(*describe)(struct cache *c, const struct json_daemon_view *view),
			 struct cache_open_report *report, struct bc_error *err)
{
	struct json_daemon_view view = { .state = stopped_state };
	struct cache_open_report dummy;
	struct cache *c = NULL;
	json_t *result;

	if (!report)
		report = &dummy;
	memset(report, 0, sizeof(*report));
	if (cache_open(dir, CACHE_OPEN_NO_VOLUMES, &c, report, err))
		return NULL;
	result = describe(c, &view);
	if (!result)
		bc_fail(err, -ENOMEM, "%s: out of memory", dir);
	if (cache_close(c, result ? err : NULL)) {
		json_decref(result);
		result = NULL;
	}
	return result;
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

const struct patience *stopped_patience(void)
{
	static struct patience patience;
	struct daemon_config config = { 0 };
	struct bc_error err = { 0 };

	if (!patience.ms)
		patience.ms = !config_load(&config, &err) && config.patience_ms ? config.patience_ms : PATIENCE_MS;
	return &patience;
}

static json_t *manage_stopped(const char *dir, json_t *request, unsigned flags, int *exit_code)
{
	struct bc_error err = { 0 };
	struct cache *c = open_stopped(dir, flags, exit_code);
	json_t *result;

	if (!c)
		return NULL;
	result = manage_run(c, NULL, request, stopped_patience(), &err);
	*exit_code = close_stopped(c, result ? CMD_OK : fail_err(&err));
	if (!result && manage_is_usage(request, &err))
		*exit_code = CMD_USAGE;
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
