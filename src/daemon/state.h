/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * state.h - the running daemon, shared by lifecycle.c (main and signal thread) and handlers.c (control threads).
 *
 * - RUNNING -> STOPPING: a `stop` command or a signal has begun; volumes still work.
 * - STOPPING -> RUNNING: it was refused, failed or was interrupted; nothing has ended.
 * - RUNNING, STOPPING -> ENDING: the mount has ended, by us or by somebody's umount. No way back; commands are refused.
 * - ENDING -> CLOSED: the cache is closed (main thread, once nobody uses it any more).
 */
#ifndef DAEMON_STATE_H
#define DAEMON_STATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "blkcache/control.h"
#include "daemon/daemon.h"

enum daemon_phase { PHASE_RUNNING, PHASE_STOPPING, PHASE_ENDING, PHASE_CLOSED };

/* A write-back under way, on the stack of the thread that runs it. */
struct flush_job {
	unsigned volume; /* id; 0: all */
	struct flush_job *next;
};

struct daemon {
	const struct daemon_params *params;
	struct cache *cache;
	struct export *export;
	struct control_server *control;
	pthread_t signal_thread;
	int below_fd; /* the folder that is mounted on, opened before that (O_PATH); -1: none */
	atomic_bool quit; /* the signal thread is to end */

	pthread_mutex_t lock; /* guards what follows; a leaf: never held across a call into another layer */
	pthread_cond_t cond; /* phase, users or last_status changed; its clock is monotonic */
	enum daemon_phase phase;
	unsigned users; /* threads that use cache and export; both are freed only at 0 */
	bool hurry; /* a signal asked for the end: flushes give up */
	bool abandoned; /* something of ours waits for a device that does not answer: the process ends with it */
	struct flush_job *jobs;
	json_t *last_status, *last_stats; /* as it was when the mount had ended; NULL before */
	time_t start_time;
	uint64_t dirty_left; /* bytes; valid from CLOSED on, like the next */
	struct bc_error close_err; /* code 0: closed in order */
};

/* false: the daemon is ending, do not touch cache or export. */
bool daemon_enter(struct daemon *d);
void daemon_leave(struct daemon *d);

/* RUNNING -> STOPPING, or false if a stop is under way and does not end in a moment. The caller has entered. */
bool daemon_stop_begin(struct daemon *d);
/* Back to RUNNING; false if somebody's umount has ended it meanwhile. */
bool daemon_stop_undo(struct daemon *d);
/* The mount has ended: leaves, and waits until the cache is closed. */
void daemon_stop_finish(struct daemon *d);

/* Has a stop begun, or is a signal waiting? What changes the cache and takes long gives way. */
bool daemon_stopping(struct daemon *d);

unsigned daemon_patience_ms(const struct daemon *d);
/* Has the mount ended? From then on the daemon is on its way out, even if the main thread has not seen it yet. The
 * caller has entered. */
bool daemon_unmounted(struct daemon *d);
/* For one that could not enter, or has left: waits until the cache is closed. */
void daemon_wait_closed(struct daemon *d);
/* For one that could not enter: what there was to say when the mount had ended. NULL if that is not known in time. */
json_t *daemon_last(struct daemon *d, bool stats);

/* Is a signal waiting for the end, or is it under way? What takes long looks here. */
bool daemon_in_a_hurry(struct daemon *d);

/* handlers.c */
extern const struct control_handler daemon_handlers[];
extern const size_t daemon_nhandlers;
json_t *daemon_status(struct daemon *d);
json_t *daemon_stats(struct daemon *d, bool buckets); /* latencies with their histograms? */

#endif
