/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * table.h - aligned columns on stdout. One thread. Cells are copied; running out of memory shows as missing cells.
 */
#ifndef CMD_TABLE_H
#define CMD_TABLE_H

#include <stddef.h>
#include <stdint.h>

struct table {
	size_t columns, n, size; /* cells in use, allocated; a row is `columns` cells */
	char **cells;
	uint64_t right; /* a bit per column: align right */
};

void table_init(struct table *t, size_t columns, uint64_t right);
/* Appends the next cell, row by row. */
void table_cell(struct table *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Prints with two spaces between columns, and frees. */
void table_print(struct table *t);

#endif
