/* SPDX-License-Identifier: BSD-3-Clause */
/* process.h - is a process alive, for waiting on the remains of one that was killed. */
#ifndef UTIL_PROCESS_H
#define UTIL_PROCESS_H

#include <stdbool.h>

/* False if there is no such process, or it is a zombie, or on its way out: its locks and open files go by themselves.
 * Without /proc: true. */
bool process_lives(int pid);

#endif
