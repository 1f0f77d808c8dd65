/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * undo.h - taking back a cache that this command has just made, when a later step of the command fails. One thread.
 */
#ifndef CMD_UNDO_H
#define CMD_UNDO_H

#include <stdbool.h>

struct undo {
	const char *dir; /* the caller's */
	bool had_dir; /* it existed before: only what cache_create() put into it is removed */
};

void undo_prepare(struct undo *u, const char *dir); /* before cache_create() */
void undo_create(struct undo *u); /* removes the cache; it must be closed and hold nothing */

#endif
