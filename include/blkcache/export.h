/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * export.h - volumes as files under a FUSE mount. Knows the engine's contract (engine.h) and nothing below it.
 */
#ifndef BLKCACHE_EXPORT_H
#define BLKCACHE_EXPORT_H

#include <stdbool.h>

#include "blkcache/engine.h"
#include "blkcache/error.h"

struct export;

/* What outlives the process that serves a mount, for another one to go on (src/export/survive.c). */
struct export_survive {
	int fuse_fd; /* from export_open_device() */
	int memory_fd; /* a memfd, empty at first */
	bool takeover; /* of a mount whose daemon died: its requests are answered, its open files stay open */
};

/* /dev/fuse, for export_survive. */
int export_open_device(int *fd, struct bc_error *err);

struct export_params {
	unsigned threads; /* workers at most; 0 = 256 */
	unsigned max_background; /* 0: seven eighths of threads */
	unsigned patience_ms; /* how long the end waits for requests whose device does not answer; 0: no limit */
	bool allow_other; /* let other users in (default off: only root and the owner) */
	const struct export_survive
		*survive; /* NULL: the mount ends with the process. -EOPNOTSUPP where it cannot be had */
};

/* Mounts and starts the worker threads; returns when the volumes can be used (INIT was answered and a stat of the mount
 * works). The message tells a mount point that is missing, not a folder, a stale mount ("Transport endpoint is not
 * connected": umount it), or lacks permission apart. */
int export_start(struct cache *c, const char *mountpoint, const struct export_params *params, struct export **out,
		 struct bc_error *err);

/* Can this be mounted on? 0, or the message that export_start would give: for looking before what takes long. */
int export_check_mountpoint(const char *mountpoint, struct bc_error *err);

/* Blocks until the mount has ended (umount by somebody, or export_stop from another thread). */
void export_wait(struct export *e);

/* Has the mount ended, though perhaps not all workers have seen it? Never blocks; any thread. */
bool export_unmounted(struct export *e);

/* Could the mount end in order now? -EBUSY if somebody uses it, -ENOTEMPTY if another file system lies on it or hides
 * it, both with a message; 0 too where we are not allowed to know. Disturbs nobody, looks at no open files. */
int export_busy(struct export *e, struct bc_error *err);

/* Unmounts what is ours, wherever it is by now, and nothing else. -EBUSY with a message if files are open or a loop
 * device sits on the mount, -ENOTEMPTY as export_busy; then nothing has ended. force: ends all the same: detaches the
 * mount lazily, or leaves it behind below what somebody else mounted over it. Afterwards no request is under way,
 * unless export_abandoned(). */
int export_stop(struct export *e, bool force, struct bc_error *err);
/* The mount has ended, but requests are under way that wait for a device which does not answer: neither the export nor
 * its cache can be freed. */
bool export_abandoned(struct export *e);
/* Makes export_wait return; async-signal-unsafe; any thread. */
void export_free(struct export *e);

const char *export_mountpoint(const struct export *e);

/* st_dev of the mount's files; 0 if it is not known (a session that was taken over: who made the mount knows). */
dev_t export_device(const struct export *e);

#endif
