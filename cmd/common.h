/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * common.h - what the subcommands share. One thread; every function may print to stderr, none exits.
 *
 * A subcommand is a function in a file of its own. It returns the exit code. Failing means one line on stderr:
 * "blkcache: COMMAND: object: reason; remedy".
 */
#ifndef CMD_COMMON_H
#define CMD_COMMON_H

#include <argp.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "blkcache/control.h"
#include "blkcache/engine.h"
#include "blkcache/error.h"
#include "daemon/daemon.h"

/* Exit codes: promised to scripts. */
#define CMD_OK 0
#define CMD_FAILED 1
#define CMD_LEFT 3 /* done, but dirty data is left in the cache; or damage that costs no data */
#define CMD_USAGE 64
#define CMD_INTERRUPTED 130

struct command {
	const char *name, *args, *summary;
	int (*run)(int argc, char **argv); /* argv[0] is "blkcache NAME" */
};

int cmd_create(int argc, char **argv);
int cmd_add(int argc, char **argv);
int cmd_remove(int argc, char **argv);
int cmd_load(int argc, char **argv);
int cmd_mount(int argc, char **argv);
int cmd_flush(int argc, char **argv);
int cmd_stop(int argc, char **argv);
int cmd_status(int argc, char **argv);
int cmd_stats(int argc, char **argv);
int cmd_set(int argc, char **argv);
int cmd_get(int argc, char **argv);
int cmd_check(int argc, char **argv);

void command_set_name(const char *name); /* for messages */

/* Print the line; return CMD_FAILED, or CMD_INTERRUPTED for -EINTR. */
int fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
int fail_err(const struct bc_error *err);
void warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* One line on stdout; whatever is in a name or a path, it stays one. */
void say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* A JSON object, indented, valid whatever bytes are in it. */
void print_json(const json_t *o);

/* Parses the command line; wrong usage is one line on stderr and ends the program with CMD_USAGE. */
void parse_args(const struct argp *argp, int argc, char **argv, void *input);
/* For parsers: prints the line and ends the program with CMD_USAGE. */
void usage_error(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

/* argp helpers: the option's value, or a usage error that ends the program with CMD_USAGE. */
uint64_t parse_size_arg(const char *what, const char *text); /* not 0 */
uint32_t parse_line_size_arg(const char *text);
enum cache_mode parse_mode_arg(const char *text);
/* A path as absolute_path(); not the empty text that an unset variable of a script leaves. To be freed. */
char *parse_path_arg(const char *what, const char *text);
/* The text itself, not empty. */
char *parse_text_arg(const char *what, char *text);

/* NAME=BACKING -> both parts, BACKING made absolute; to be freed. Usage error otherwise. */
void parse_volume_arg(const char *text, char **name, char **backing);

/*
 * For the argp parser of a command that takes "DIR", "DIR NAME" or "DIR [NAME]": what it does with every key that is
 * not an option. *dir is made absolute, to be freed; *name is the argument itself. `name` NULL: there is none;
 * `required`: what to call it if it must not be missing, else NULL.
 */
error_t parse_dir_arg(int key, char *arg, char **dir, char **name, const char *required);

/* Absolute path, links resolved as far as it exists; to be freed. Daemons have another working folder. */
char *absolute_path(const char *path);
/* The same for a device spec whose last part is a path. */
char *absolute_backing(const char *spec);

/* SIGINT and SIGTERM set a flag, once; a second one ends the process. */
void interrupts_catch(void);
bool interrupted(void);

/*
 * Calls the daemon. A result, or NULL with *exit_code set and the message printed. With `stopped` not NULL: if no
 * daemon runs, *stopped is set and nothing is printed. A daemon that is on its way out is waited for. On a long silence
 * of a command that has no progress to tell of, a note is printed.
 */
json_t *call_daemon(const char *dir, json_t *request, int (*progress)(json_t *p, void *ctx), void *ctx, bool *stopped,
		    int *exit_code);

/* Is the cache loaded? Its status, or NULL: it is not (*exit_code 0), or that could not be told (message printed). */
json_t *loaded_status(const char *dir, int *exit_code);

/* A string of any bytes, for requests. */
json_t *text(const char *bytes);

/*
 * What json_status() or json_stats() says of a stopped cache. NULL with *err. *report (if not NULL) is what was found.
 * -EBUSY: another command has it, or a daemon has been started meanwhile.
 */
json_t *describe_stopped(const char *dir, json_t *(*describe)(struct cache *c, const struct json_daemon_view *view),
			 struct cache_open_report *report, struct bc_error *err);

/* How long commands on a stopped cache wait for a backing device to answer: as configured for the daemon's. */
const struct patience *stopped_patience(void);
/* Opens a stopped cache for one command; NULL: message printed. */
struct cache *open_stopped(const char *dir, unsigned flags, int *exit_code);
/* Closes it; returns `code`, or CMD_FAILED with a message. */
int close_stopped(struct cache *c, int code);

/* add, remove, set, get (see manage_run()): by the daemon, or on the stopped cache. Like call_daemon(). */
json_t *manage(const char *dir, json_t *request, unsigned open_flags, int *exit_code);

/* Members of an object, with a neutral value when missing. */
const char *jtext(const json_t *o, const char *key);
uint64_t jcount(const json_t *o, const char *key);

/* "1.5 GiB" in one of a few rotating buffers: at most 8 per printf. */
const char *size_text(uint64_t bytes);

#endif
