/* SPDX-License-Identifier: BSD-3-Clause */
/* limits.h - what this process may have, of memory and of descriptors. Any thread; no state. */
#ifndef UTIL_LIMITS_H
#define UTIL_LIMITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The most memory in bytes that this process can ever have: the least of what the machine has, its control groups
 * allow and its resource limits allow. *what (may be NULL): static text that says whose limit that is. */
uint64_t limits_memory(const char **what);

/* Of it, what can be had now without driving anybody out, as the kernel estimates it. */
uint64_t limits_memory_available(void);

/* Can `bytes` more of address space be had, as the limits and the kernel's counts say? Nothing is taken, not even for a
 * moment: another thread's allocation would fail meanwhile. */
bool limits_room_for(size_t bytes);

/* Descriptors that workers do not take, however many would like one: they stay for control clients, for volumes that
 * are added, and for what is opened when something fails. */
unsigned limits_spare_files(void);

/* Is this descriptor one of the spare ones? Descriptors are given out from the lowest number on, so a high number says
 * that nearly all are in use. */
bool limits_is_spare_file(int fd);

#endif
