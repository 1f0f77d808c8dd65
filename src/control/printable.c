/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * printable.c - JSON that holds texts of any bytes, as JSON for others: what is not UTF-8 becomes U+FFFD. Any thread;
 * no state.
 */
#include <stdlib.h>
#include <string.h>

#include "blkcache/control.h"
#include "control/protocol.h"

/* Length of the UTF-8 sequence at s, 0 if it is none. Overlong forms and surrogates are left to jansson to refuse. */
static size_t utf8_length(const unsigned char *s, size_t left)
{
	size_t n = s[0] < 0x80                   ? 1
		   : s[0] >= 0xc2 && s[0] < 0xe0 ? 2
		   : (s[0] & 0xf0) == 0xe0       ? 3
		   : s[0] >= 0xf0 && s[0] < 0xf5 ? 4
						 : 0;

	if (n > left)
		return 0;
	for (size_t i = 1; i < n; i++)
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	return n;
}

static json_t *replace(const char *text, size_t len)
{
	char *copy = malloc(3 * len + 1);
	size_t n = 0;
	json_t *s;

	if (!copy)
		return NULL;
	for (size_t i = 0; i < len;) {
		size_t step = utf8_length((const unsigned char *)text + i, len - i);
		json_t *piece = step ? json_stringn(text + i, step) : NULL;

		memcpy(copy + n, piece ? text + i : "\xef\xbf\xbd", piece ? step : 3);
		n += piece ? step : 3;
		i += piece ? step : 1;
		json_decref(piece);
	}
	s = json_stringn(copy, n);
	free(copy);
	return s;
}

json_t *control_printable(const json_t *v)
{
	return protocol_convert(v, replace);
}

char *control_text(const json_t *msg)
{
	return protocol_text(msg);
}

json_t *control_parse(const char *text)
{
	char why[160];

	return protocol_parse(text, why, sizeof(why));
}
