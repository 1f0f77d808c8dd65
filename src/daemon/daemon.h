/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * daemon.h - the daemon of one cache, and what cmd/ shares with it.
 *
 *     config.c     blkcache.conf
 *     start.c      fork, detach, report to the waiting parent
 *     supervise.c  a process that holds the mount while one daemon follows another
 *     protect.c    what a process has to do that serves pages of its own machine
 *     lifecycle.c  order of start and end, signals
 *     handlers.c   commands on the control socket that need the daemon: flush, stop, status
 *     manage.c     commands that need only a cache, loaded or not: add, remove, set, get
 *     json.c       cache and volume statistics as JSON objects
 *
 * cmd/ runs manage.c and json.c on a stopped cache that it opened itself, so that a command does the same either way.
 */
#ifndef DAEMON_DAEMON_H
#define DAEMON_DAEMON_H

#include <jansson.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "blkcache/engine.h"
#include "blkcache/error.h"
#include "blkcache/export.h"
#include "util/log.h"
#include "util/patience.h"

/* ---- config.c ---- */

#define CONFIG_FILE "/etc/blkcache.conf"
#define CONFIG_ENV "BLKCACHE_CONF"

#define PATIENCE_MS 30000 /* a disk that retries a bad sector may take as long */

struct daemon_config {
	/* [cache]: defaults of `create` and `mount` */
	uint64_t size; /* bytes; 0: none, must be given */
	uint32_t line_size; /* bytes; 0: the engine's default */
	enum cache_mode mode;
	uint64_t ram; /* bytes; 0: the engine's default */
	/* [daemon]: how `load` and `mount` run it */
	unsigned threads, max_background; /* 0: the export's default */
	bool allow_other, survive;
	unsigned patience_ms; /* how long a command waits for a device that does not answer; 0: PATIENCE_MS */
	enum log_level log_level;
};

/*
 * Reads the file named by $BLKCACHE_CONF, or else CONFIG_FILE. A missing file is fine: the defaults. -EINVAL with
 * FILE:LINE and what would be accepted; -EACCES and the like. Any thread.
 */
int config_load(struct daemon_config *cfg, struct bc_error *err);

/* The same for a given file; -ENOENT when it is missing. */
int config_load_file(const char *path, struct daemon_config *cfg, struct bc_error *err);

/* ---- protect.c ---- */

/* Before any thread exists. Best effort: what is refused is logged, nothing fails. */
void protect_process(void);

/* Is all memory of this process locked, whatever it maps? (protect_process() has seen to it where that is allowed.) */
bool protect_locked_all(void);

/*
 * What a process inherits from who started it may be wrong for it: an ignored SIGCHLD (children cannot be waited for:
 * fusermount3, the supervised daemon), blocked signals, and SIGXFSZ, by which a limit of file sizes kills instead of
 * failing one write with EFBIG. First thing in main().
 */
void protect_signals(void);

/* ---- supervise.c ---- */

/* What outlives a daemon. */
struct daemon_survive {
	int fuse_fd, frames_fd, log_fd, session_fd, lock_fd;
	int below_fd; /* the folder that is mounted on, opened before that (O_PATH); -1: none */
	bool takeover; /* the one before died */
	struct daemon_shared *shared; /* with the supervisor and the daemons to come */
};

struct daemon_shared {
	_Atomic unsigned served; /* daemons that came to serve */
	_Atomic uint64_t mount_dev; /* st_dev of the mount's files; 0: there is none yet */
};

struct daemon_params;

/*
 * The calling process becomes the supervisor. It returns 0 in each daemon it forks, with params->survive set, and
 * -errno if there is none; as the supervisor it does not return. report_fd: closed by the supervisor (it detaches from
 * the streams too); -1 in the foreground. Call it while the process has one thread.
 */
int daemon_supervise(struct daemon_params *params, struct daemon_survive *s, int report_fd, struct bc_error *err);

/* ---- start.c ---- */

struct daemon_params {
	const char *dir, *mountpoint; /* absolute */
	bool foreground;
	const char *const *accepted; /* names for cache_open_accepting(); may be NULL */
	struct daemon_config config;
	const struct daemon_survive *survive; /* daemon_supervise()'s; NULL: none */
};

/*
 * Starts the daemon and returns once the volumes can be used (0), or it is known why not. `ready` gets the report
 * (borrowed; see daemon_report()) in the calling process. foreground: the calling process becomes the daemon: ready()
 * is called when the volumes can be used, and the return is the end of the daemon. Call it while the process has one
 * thread.
 */
int daemon_start(const struct daemon_params *params, void (*ready)(json_t *report, void *ctx), void *ctx,
		 struct bc_error *err);

/* ---- lifecycle.c ---- */

/* Runs a daemon in this process, from protect_process() to the end. `ready` may refuse with nonzero: nobody waits any
 * more. */
int daemon_run(const struct daemon_params *params, int (*ready)(json_t *report, void *ctx), void *ctx,
	       struct bc_error *err);

/* ---- manage.c ---- */

/*
 * add {name, backing, mode?}, remove {name, discard_dirty?}, set {volume?, values: [[key, value]...]}, get {names:
 * [...]}: the result, or NULL with *err (-ENOSYS: no such command). Any thread. The mount point (or NULL) is for
 * messages only. patience: for backing devices that do not answer; its time limit is for add alone. NULL: endless.
 */
json_t *manage_run(struct cache *c, const char *mountpoint, json_t *args, const struct patience *patience,
		   struct bc_error *err);

/* Did manage_run() fail since it was asked for what cannot be, such as a value that a tunable does not take? */
bool manage_is_usage(const json_t *args, const struct bc_error *err);

/* A referenced volume; NULL with a message that lists the names there are. */
struct volume *manage_find_volume(struct cache *c, const char *name, struct bc_error *err);

/* ---- json.c ---- */

/* What the engine does not know. */
struct json_daemon_view {
	const char *mountpoint; /* NULL: not mounted */
	pid_t pid; /* 0: no daemon */
	time_t start_time; /* of the daemon */
	bool survive; /* has the daemon a supervisor? */
	const char *locked; /* how much of its memory cannot be swapped out, in a word; NULL: no daemon */
	/* The state to show for a cache (v NULL) or a volume that the engine says is in `state`; NULL: as the engine
	 * says. */
	enum cache_state (*state)(enum cache_state state, struct volume *v, void *ctx);
	void *ctx;
	bool buckets; /* stats: latencies with their histograms */
};

/* Keys and order: the README's table of the command line. NULL: out of memory. Never waits for I/O (P11). */
json_t *json_stats(struct cache *c, const struct json_daemon_view *view);
json_t *json_status(struct cache *c, const struct json_daemon_view *view);
json_t *json_open_report(const struct cache_open_report *r);

/* Text of any bytes as a JSON string: see control.h. */
json_t *json_text(const char *text);

#endif
