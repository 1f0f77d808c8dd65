/* SPDX-License-Identifier: BSD-3-Clause */
/* recover.h - building the cache's state from the journal at load. Single-threaded; called by cache_open only. */
#ifndef ENGINE_RECOVER_H
#define ENGINE_RECOVER_H

#include "engine/life/life.h"

#define CLEAN_STOP_KEY "clean-stop" /* setting: "yes" between a stop in order and the next load */

/* Seam for tests: entries whose drop is recorded in one epoch, more or less. Set before any cache is opened. */
extern uint32_t recover_piece;
/* And: called when the reasons to drop lines are durable, and none has gone yet. */
extern void (*recover_noted)(void);

/* Fills volumes, tunables, lines and slots; sets the epoch ids; repeats unfinished discards; makes what it dropped
 * durable. */
int recover(struct cache *c, struct cache_open_report *report, struct bc_error *err);

#endif
