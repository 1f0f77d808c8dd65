/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * table.c - see table.h.
 */
#include "table.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

void table_init(struct table *t, size_t columns, uint64_t right)
{
	*t = (struct table){ .columns = columns, .right = right };
}

void table_cell(struct table *t, const char *fmt, ...)
{
	char *text = NULL;
	va_list ap;

	if (t->n == t->size) {
		size_t size = t->size ? t->size * 2 : 64;
		char **cells = realloc(t->cells, size * sizeof(*cells));

		if (!cells)
			return;
		t->cells = cells;
		t->size = size;
	}
	va_start(ap, fmt);
	if (vasprintf(&text, fmt, ap) < 0)
		text = NULL;
	va_end(ap);
	for (char *p = text; p && *p; p++)
		if (iscntrl((unsigned char)*p))
			*p = '?'; /* it would break the columns, or drive the terminal */
	t->cells[t->n++] = text;
}

/* Characters, not bytes: UTF-8 continuation bytes take no room. */
static size_t width(const char *s)
{
	size_t n = 0;

	for (; s && *s; s++)
		n += ((unsigned char)*s & 0xc0) != 0x80;
	return n;
}

static size_t column_width(const struct table *t, size_t column)
{
	size_t most = 0;

	for (size_t i = column; i < t->n; i += t->columns)
		if (width(t->cells[i]) > most)
			most = width(t->cells[i]);
	return most;
}

static void pad(size_t n)
{
	printf("%*s", (int)n, "");
}

void table_print(struct table *t)
{
	size_t *widths = calloc(t->columns, sizeof(*widths));

	for (size_t c = 0; widths && c < t->columns; c++)
		widths[c] = column_width(t, c);
	for (size_t i = 0; i < t->n; i++) {
		size_t c = i % t->columns, space = widths ? widths[c] - width(t->cells[i]) : 0;
		int is_last = c + 1 == t->columns || i + 1 == t->n, to_right = c < 64 && (t->right >> c & 1);

		if (to_right)
			pad(space);
		fputs(t->cells[i] ? t->cells[i] : "", stdout);
		if (!to_right && !is_last)
			pad(space);
		fputs(is_last ? "\n" : "  ", stdout);
		free(t->cells[i]);
	}
	free(t->cells);
	free(widths);
	*t = (struct table){ .columns = t->columns };
}
