/* SPDX-License-Identifier: BSD-3-Clause */
/* process.c - see process.h. Any thread. */
#include "util/process.h"

#include <stdio.h>
#include <unistd.h>

#define PF_EXITING 0x4u /* include/linux/sched.h; the `flags` of /proc/PID/stat */

bool process_lives(int pid)
{
	char path[64], state = 0;
	unsigned flags = 0;
	int n;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	f = fopen(path, "re");
	if (!f)
		return access("/proc/self/stat", R_OK) != 0;
	/* pid (comm) state ppid pgrp session tty tpgid flags */
	n = fscanf(f, "%*d (%*[^)]) %c %*d %*d %*d %*d %*d %u", &state, &flags);
	fclose(f);
	return n == 2 && state != 'Z' && state != 'X' && !(flags & PF_EXITING);
}
