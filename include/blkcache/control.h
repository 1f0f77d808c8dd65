/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * control.h - JSON over a Unix socket (DIR/control, mode 0600): how cmd/ talks to a daemon.
 *
 * A message is one JSON object on one line. A request is {"cmd": NAME, ...arguments}. The answer is a stream of lines:
 * any number of {"progress": {...}}, then exactly one {"ok": true, ...result} or {"ok": false, "error": TEXT, "code":
 * EXIT-CODE}. A client that closes its socket interrupts its command, and a request whose client has gone is not begun.
 * A client that wants to know what became of it sends {"cancel": true} and waits for the answer.
 *
 * While a command runs the daemon says {"progress": {"alive": true}} every second, but for those that answer at once or
 * not at all. A client to which nothing is said for CONTROL_PATIENCE_MS gives up.
 *
 * Texts are bytes: one that is not UTF-8 travels as {"hex": "..."} and is a plain json string (of any bytes) at either
 * end. Such a string must not be given to json_dumps(): see control_printable().
 *
 * Paths may be longer than sun_path: both sides go through /proc/self/fd/N of the opened folder.
 */
#ifndef BLKCACHE_CONTROL_H
#define BLKCACHE_CONTROL_H

#include <jansson.h>
#include <stdbool.h>

#include "blkcache/error.h"

#define CONTROL_SOCKET "control"
#define CONTROL_PATIENCE_MS 10000

/* A copy in which what is not UTF-8 is U+FFFD, for output. NULL: out of memory. */
json_t *control_printable(const json_t *v);

/* A message as it travels, one line without newline, to be freed; and back, NULL if it is none. */
char *control_text(const json_t *msg);
json_t *control_parse(const char *text);

/* ---- client (cmd/) ---- */

/* Sends `request` (stolen) to the daemon of cache folder `dir` and returns its final answer (to be json_decref'd), or
 * NULL with *err: -ENOENT no such folder or no cache in it, -ECONNREFUSED no daemon runs there (no socket, or one
 * nobody listens on), -ETIMEDOUT nothing was heard of it for CONTROL_PATIENCE_MS (the message names the process and its
 * state), -EPROTO. progress (may be NULL) gets each progress object, and NULL a few times a second while nothing but
 * signs of life arrives; nonzero from it asks the daemon to end the command and waits a moment for its answer, which is
 * then returned; without one, NULL with -EINTR. A negative answer is not an error here. */
json_t *control_call(const char *dir, json_t *request, int (*progress)(json_t *progress, void *ctx), void *ctx,
		     struct bc_error *err);

/* The same for a command that ends the daemon: if the answer holds "ending": true, returns only when the daemon process
 * has ended; -ETIMEDOUT if it does not within a minute. */
json_t *control_call_until_end(const char *dir, json_t *request, int (*progress)(json_t *progress, void *ctx),
			       void *ctx, struct bc_error *err);

/* ---- server (daemon) ---- */

struct control_server;
struct control_request; /* one client's command under way */

struct control_handler {
	const char *cmd;
	/* Runs on a thread of its own per request; returns the result object (stolen; "ok" is added) or NULL after
	 * control_fail(). */
	json_t *(*run)(struct control_request *req, json_t *args, void *ctx);
	bool quick; /* answers at once: no signs of life, so that the client notices if it does not */
	bool always; /* is run when there are too many clients, too */
};

int control_server_start(const char *dir, const struct control_handler *handlers, size_t n, void *ctx,
			 struct control_server **out, struct bc_error *err);
/* Closes the socket, removes it, interrupts running handlers (control_client_gone() becomes true; their answers are
 * still sent) and joins them. Not from a handler's thread. NULL is allowed. */
void control_server_stop(struct control_server *s);

void control_fail(struct control_request *req, int exit_code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* The same, when the daemon is ending: the client waits for its end and asks again. */
void control_fail_ending(struct control_request *req, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Sends {"progress": p} (stolen). Nonzero if the client has gone: stop what you do. */
int control_progress(struct control_request *req, json_t *p);
/* The client has closed the connection, or asked for the end. To be looked at before a step that cannot be undone. */
bool control_client_gone(struct control_request *req);

#endif
