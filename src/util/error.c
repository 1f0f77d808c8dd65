/* SPDX-License-Identifier: BSD-3-Clause */
/* error.c - fills struct bc_error. Any thread; touches only what it is given. Must stay usable when memory has run out:
 * no allocation. */
#include "blkcache/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define TEXT_MAX 9000 /* two paths and what is said about them; on the stack, since memory may have run out */

/* A message is one line at the edge, so whatever came in through a path or a spec must not break it into two. */
static void one_line(char *s)
{
	for (; *s; s++)
		if ((unsigned char)*s < ' ' || *s == 0x7f)
			*s = '?';
}

/*
 * A message that is too long is long because of a path. What has to stay is the rest, the reason and the remedy: so the
 * longest word loses its middle, and the next longest, until all fits. Paths of PATH_MAX bytes fit into `text`.
 */
static void fit(char *out, size_t size, char *text)
{
	static const char dots[] = "...";
	size_t len = strlen(text), keep = sizeof(dots) - 1 + 40;

	while (len >= size) {
		size_t longest = 0, n, cut;
		char *word = text, *p, *middle;

		for (p = text + strspn(text, " "); *p; p += n + strspn(p + n, " ")) {
			n = strcspn(p, " ");
			if (n > longest) {
				longest = n;
				word = p;
			}
		}
		if (longest <= keep)
			break; /* many words: the end is lost */
		cut = len - size + 1 + sizeof(dots) - 1;
		if (cut > longest - 40)
			cut = longest - 40;
		middle = word + (longest - cut) / 2;
		memcpy(middle, dots, sizeof(dots) - 1);
		memmove(middle + sizeof(dots) - 1, middle + cut, strlen(middle + cut) + 1);
		len = strlen(text);
	}
	snprintf(out, size, "%s", text);
	one_line(out);
}

int bc_vfail(struct bc_error *err, int code, const char *fmt, va_list ap)
{
	char text[TEXT_MAX];

	if (!err)
		return code;
	vsnprintf(text, sizeof(text), fmt, ap);
	err->code = code;
	fit(err->msg, sizeof(err->msg), text);
	return code;
}

int bc_fail(struct bc_error *err, int code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	bc_vfail(err, code, fmt, ap);
	va_end(ap);
	return code;
}

int bc_fail_prefix(struct bc_error *err, const char *fmt, ...)
{
	char text[TEXT_MAX];
	va_list ap;
	int n;

	if (!err)
		return 0;
	va_start(ap, fmt);
	n = vsnprintf(text, sizeof(text) - sizeof(err->msg) - 2, fmt, ap);
	va_end(ap);
	if (n < 0)
		return err->code;
	n = (int)strlen(text);
	snprintf(text + n, sizeof(text) - (size_t)n, ": %s", err->msg);
	fit(err->msg, sizeof(err->msg), text);
	return err->code;
}
