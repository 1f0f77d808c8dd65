/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * undo.h - taking back a cache that this command has just made, when a later step of the command fails. One thread.
 */
#ifndef CMD_UNDO_H
#define CMD_UNDO_H

#include <stdbool.h>
#include <sys/types.h>

#define UNDO_FILES 4

struct undo {
	const char *dir; /* the caller's */
	bool had_dir; /* it existed before: it stays */
	int dirfd; /* of the folder that was made or used; -1: nothing was made */
	struct {
		dev_t dev;
		ino_t ino; /* 0: not there */
	} made[UNDO_FILES];
};

void undo_prepare(struct undo *u, const char *dir); /* before cache_create() */
void undo_made(struct undo *u); /* after it: from now on there is something to take back */
void undo_create(struct undo *u); /* removes the cache; it must be closed and hold nothing */
void undo_forget(struct undo *u); /* it stays; also after undo_create() */

#endif
