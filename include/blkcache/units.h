/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * units.h - sizes and times as users write them. Sizes take K M G T (binary, optional "iB"/"B" tail), times take
 * us ms s. Thread-safe, nothing is allocated.
 */
#ifndef BLKCACHE_UNITS_H
#define BLKCACHE_UNITS_H

#include <stddef.h>
#include <stdint.h>

/* "64M" -> 67108864. Whole numbers only ("1.5G" is refused), no sign, no white space; -EINVAL or -ERANGE. */
int units_parse_size(const char *text, uint64_t *bytes);

/* "5ms" -> 5000 (microseconds). A number without a unit is refused unless it is 0. -EINVAL or -ERANGE. */
int units_parse_time(const char *text, uint64_t *us);

/* A whole number in base 10 (no sign). -EINVAL or -ERANGE. */
int units_parse_u64(const char *text, uint64_t *value);

/* "64.0 MiB"; returns buf. */
const char *units_format_size(char *buf, size_t len, uint64_t bytes);

#endif
