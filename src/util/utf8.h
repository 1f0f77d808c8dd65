/* SPDX-License-Identifier: BSD-3-Clause */
/* utf8.h - is it UTF-8? File names may be anything; JSON, Prometheus and terminals want UTF-8. */
#ifndef UTIL_UTF8_H
#define UTIL_UTF8_H

#include <stdbool.h>
#include <stddef.h>

/* Length of the character at s, of which `left` (> 0) bytes may be read; 0 if it is none: overlong forms, surrogates
 * and what lies above U+10FFFF are none. */
static inline size_t utf8_length(const char *s, size_t left)
{
	const unsigned char *u = (const unsigned char *)s;
	size_t n = u[0] < 0x80                   ? 1
		   : u[0] >= 0xc2 && u[0] < 0xe0 ? 2
		   : (u[0] & 0xf0) == 0xe0       ? 3
		   : u[0] >= 0xf0 && u[0] < 0xf5 ? 4
						 : 0;

	if (!n || n > left)
		return 0;
	for (size_t i = 1; i < n; i++)
		if ((u[i] & 0xc0) != 0x80)
			return 0;
	if ((u[0] == 0xe0 && u[1] < 0xa0) || (u[0] == 0xed && u[1] > 0x9f) || (u[0] == 0xf0 && u[1] < 0x90) ||
	    (u[0] == 0xf4 && u[1] > 0x8f))
		return 0;
	return n;
}

static inline bool utf8_valid(const char *s, size_t len)
{
	for (size_t n; len; s += n, len -= n) {
		n = utf8_length(s, len);
		if (!n)
			return false;
	}
	return true;
}

#endif
