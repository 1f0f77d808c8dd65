/* SPDX-License-Identifier: BSD-3-Clause */
/* error.c - fills struct bc_error. Any thread; touches only what it is given. Must stay usable when memory has run out:
 * no allocation. */
#include "blkcache/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* A message is one line at the edge, so whatever came in through a path or a spec must not break it into two. */
static void one_line(char *s)
{
	for (; *s; s++)
		if ((unsigned char)*s < ' ' || *s == 0x7f)
			*s = '?';
}

int bc_fail(struct bc_error *err, int code, const char *fmt, ...)
{
	va_list ap;

	if (!err)
		return code;
	err->code = code;
	va_start(ap, fmt);
	vsnprintf(err->msg, sizeof(err->msg), fmt, ap);
	va_end(ap);
	one_line(err->msg);
	return code;
}

int bc_fail_prefix(struct bc_error *err, const char *fmt, ...)
{
	char old[sizeof(err->msg)];
	va_list ap;
	int n;

	if (!err)
		return 0;
	memcpy(old, err->msg, sizeof(old));
	va_start(ap, fmt);
	n = vsnprintf(err->msg, sizeof(err->msg), fmt, ap);
	va_end(ap);
	/* Too long for one message: the end is lost, which is the older, more detailed part. */
	if (n >= 0 && (size_t)n < sizeof(err->msg) &&
	    snprintf(err->msg + n, sizeof(err->msg) - (size_t)n, ": %s", old) < 0)
		err->msg[n] = 0;
	one_line(err->msg);
	return err->code;
}
