/* SPDX-License-Identifier: BSD-3-Clause */
/* process.h - what another process does, for waiting on the remains of one that was killed, and for messages. */
#ifndef UTIL_PROCESS_H
#define UTIL_PROCESS_H

#include <stdbool.h>
#include <stddef.h>

/* False if there is no such process, or it is a zombie, or on its way out: its locks and open files go by themselves.
 * Without /proc: true. */
bool process_lives(int pid);

/* State letter and flags out of the text of /proc/PID/stat, whatever the process is called. */
bool process_parse_stat(const char *text, char *state, unsigned *flags);

/* Why it may not answer, and what to do: "process 12 (blkcache) was stopped by a signal; 'kill -CONT 12' lets it go
 * on". pid 0: unknown. At most some 250 bytes. */
void process_explain(int pid, char *buf, size_t len);

#endif
