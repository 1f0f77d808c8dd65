/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * printable.c - JSON that holds texts of any bytes, as JSON for others: what is not UTF-8 becomes U+FFFD. Any thread;
 * no state.
 */
#include <stdlib.h>
#include <string.h>

#include "blkcache/control.h"
#include "control/protocol.h"
#include "util/utf8.h"

static json_t *replace(const char *text, size_t len)
{
	char *copy = malloc(3 * len + 1);
	size_t n = 0;
	json_t *s;

	if (!copy)
		return NULL;
	for (size_t i = 0; i < len;) {
		size_t step = utf8_length(text + i, len - i);

		memcpy(copy + n, step ? text + i : "\xef\xbf\xbd", step ? step : 3);
		n += step ? step : 3;
		i += step ? step : 1;
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
