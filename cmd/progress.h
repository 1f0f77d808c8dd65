/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * progress.h - a bar with rate and ETA, on a terminal only. One thread.
 */
#ifndef CMD_PROGRESS_H
#define CMD_PROGRESS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "blkcache/engine.h"

struct progress {
	const char *verb; /* "flushing" */
	bool shown, tty;
	struct timespec start;
};

void progress_init(struct progress *p, const char *verb);
void progress_show(struct progress *p, uint64_t done, uint64_t total);
/* Removes the bar, so that the next line starts clean. */
void progress_clear(struct progress *p);
double progress_seconds(const struct progress *p);

/* Callbacks of control_call() and of cache_write_back() or cache_check(); ctx is the struct progress. Nonzero after
 * Ctrl-C. */
int progress_from_daemon(json_t *msg, void *ctx);
int progress_from_engine(const struct cache_progress *cp, void *ctx);

#endif
