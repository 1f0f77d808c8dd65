/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * error.h - one error, carried from where it is found to the edge that prints it.
 *
 * Functions return 0 or a negative errno. Those that can fail in ways a user has to understand also
 * take a `struct bc_error *`, which receives one sentence: the object, the reason and the remedy. The
 * pointer may be NULL. Nothing is allocated.
 */
#ifndef BLKCACHE_ERROR_H
#define BLKCACHE_ERROR_H

#include <stdarg.h>

struct bc_error {
	int code; /* the negative errno that was returned */
	char msg[500]; /* without a newline; valid if code != 0 */
};

/* Fills *err (if any; a text that is too long loses the middle of its longest path, not its end) and returns `code`, a
 * negative errno, so that `return bc_fail(...)` works. */
int bc_fail(struct bc_error *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

int bc_vfail(struct bc_error *err, int code, const char *fmt, va_list ap) __attribute__((format(printf, 3, 0)));

/* Puts "text: " before the message of *err; returns err->code. For adding the object at a higher layer. */
int bc_fail_prefix(struct bc_error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
