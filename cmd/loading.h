/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * loading.h - what `load` and `mount` share: starting the daemon and telling what it recovered. One thread.
 */
#ifndef CMD_LOADING_H
#define CMD_LOADING_H

#include "daemon/daemon.h"

/* Starts it (foreground: runs it to its end) and prints the report; an exit code, its message printed. *served (if not
 * NULL): volumes could be used, so there may be data in the cache. */
int loading_start(const struct daemon_params *params, bool *served);

/* The path of a mount point, absolute even if a dead daemon's mount lies there; to be freed. */
char *loading_mountpoint(const char *path);

/* Would the mount hide the cache folder, with the socket that commands go through? True: the message is printed. */
bool loading_hides_cache(const char *mountpoint, const char *dir);

#endif
