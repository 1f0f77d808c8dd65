/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * control.h - JSON over a Unix socket (DIR/control, mode 0600): how cmd/ talks to a daemon.
 *
 * A message is one JSON object on one line. A request is {"cmd": NAME, ...arguments}. The answer is a stream of lines:
 * any number of {"progress": {...}}, then exactly one {"ok": true, ...result} or {"ok": false, "error": TEXT, "code":
 * EXIT-CODE}. A client that closes its socket during a long command interrupts it.
 *
 * Paths may be longer than sun_path: both sides go through /proc/self/fd/N of the opened folder.
 */
#ifndef BLKCACHE_CONTROL_H
#define BLKCACHE_CONTROL_H

#include <jansson.h>
#include <stdbool.h>

#include "blkcache/error.h"

#define CONTROL_SOCKET "control"

/* ---- client (cmd/) ---- */

/* Sends `request` (stolen) to the daemon of cache folder `dir` and returns its final answer (to be json_decref'd), or
 * NULL with *err: -ENOENT no such folder or no cache in it, -ECONNREFUSED no daemon runs there (no socket, or one
 * nobody listens on), -EPROTO. progress (may be NULL) gets each progress object, and NULL a few times a second while
 * nothing arrives; nonzero from it closes the connection and returns NULL with -EINTR. A negative answer is not an
 * error here. */
json_t *control_call(const char *dir, json_t *request, int (*progress)(json_t *progress, void *ctx), void *ctx,
		     struct bc_error *err);

/* The same for a command that ends the daemon: if the answer holds "ending": true, returns only when the daemon process
 * has ended. */
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
};

int control_server_start(const char *dir, const struct control_handler *handlers, size_t n, void *ctx,
			 struct control_server **out, struct bc_error *err);
/* Closes the socket, removes it, interrupts running handlers (control_client_gone() becomes true; their answers are
 * still sent) and joins them. Not from a handler's thread. NULL is allowed. */
void control_server_stop(struct control_server *s);

void control_fail(struct control_request *req, int exit_code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* Sends {"progress": p} (stolen). Nonzero if the client has gone: stop what you do. */
int control_progress(struct control_request *req, json_t *p);
bool control_client_gone(struct control_request *req);

#endif
