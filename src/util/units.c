/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * units.c - numbers, sizes and times as text. Any thread; touches only what it is given.
 *
 * Strict on purpose: these parse command lines, where a size that is silently taken for another one destroys data. No
 * sign, no white space, no fraction, no octal or hexadecimal, nothing left over, no wrap-around.
 */
#include "blkcache/units.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* Reads digits from *text and moves it past them. */
static int parse_digits(const char **text, uint64_t *value)
{
	const char *p = *text;
	uint64_t v = 0;

	if (*p < '0' || *p > '9')
		return -EINVAL;
	for (; *p >= '0' && *p <= '9'; p++)
		if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, (uint64_t)(*p - '0'), &v))
			return -ERANGE;
	*text = p;
	*value = v;
	return 0;
}

int units_parse_u64(const char *text, uint64_t *value)
{
	uint64_t v;
	int r = parse_digits(&text, &v);

	if (r)
		return r;
	if (*text)
		return -EINVAL;
	*value = v;
	return 0;
}

int units_parse_size(const char *text, uint64_t *bytes)
{
	static const char letters[] = "KMGT";
	const char *letter;
	uint64_t v;
	int upper, r = parse_digits(&text, &v);

	if (r)
		return r;
	upper = *text & ~0x20; /* either case: "64m" has no other meaning for a size */
	letter = upper ? strchr(letters, upper) : NULL;
	if (letter) {
		text++;
		if (__builtin_mul_overflow(v, UINT64_C(1) << (10 * (letter - letters + 1)), &v))
			r = -ERANGE;
		if (text[0] == 'i' && text[1] == 'B')
			text++;
	}
	if (*text == 'B')
		text++;
	if (*text)
		return -EINVAL;
	if (!r)
		*bytes = v;
	return r;
}

int units_parse_time(const char *text, uint64_t *us)
{
	uint64_t v, factor;
	int r = parse_digits(&text, &v);

	if (r)
		return r;
	if (!strcmp(text, "us"))
		factor = 1;
	else if (!strcmp(text, "ms"))
		factor = 1000;
	else if (!strcmp(text, "s"))
		factor = 1000000;
	else if (!*text && !v)
		factor = 0;
	else
		return -EINVAL;
	if (__builtin_mul_overflow(v, factor, &v))
		return -ERANGE;
	*us = v;
	return 0;
}

const char *units_format_size(char *buf, size_t len, uint64_t bytes)
{
	static const char *const names[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	double v = (double)bytes;
	unsigned i = 0;

	/* 1023.95 and above would be printed as "1024.0": the next unit reads better. */
	while (v >= (i ? 1023.95 : 1024) && i < 6) {
		v /= 1024;
		i++;
	}
	snprintf(buf, len, i ? "%.1f %s" : "%.0f %s", v, names[i]);
	return buf;
}
