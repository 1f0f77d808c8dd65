/* SPDX-License-Identifier: BSD-3-Clause */
/* mode.c - names of modes and states. */
#include "internal.h"

#include <errno.h>
#include <string.h>

static const struct {
	const char *name, *long_name;
} modes[MODE_COUNT] = {
	[MODE_WT] = { "wt", "write-through" }, [MODE_WB] = { "wb", "write-back" },
	[MODE_WA] = { "wa", "write-around" },  [MODE_WI] = { "wi", "write-invalidate" },
	[MODE_WO] = { "wo", "write-only" },    [MODE_PT] = { "pt", "pass-through" },
};

int cache_mode_parse(const char *text, enum cache_mode *mode)
{
	for (int i = 0; i < MODE_COUNT; i++) {
		if (!strcmp(text, modes[i].name) || !strcmp(text, modes[i].long_name)) {
			*mode = (enum cache_mode)i;
			return 0;
		}
	}
	return -EINVAL;
}

const char *cache_mode_name(enum cache_mode mode)
{
	return modes[mode].name;
}

const char *cache_mode_long_name(enum cache_mode mode)
{
	return modes[mode].long_name;
}

const char *cache_state_name(enum cache_state state)
{
	static const char *const names[] = { "running", "degraded", "failed", "flushing", "stopping", "stopped" };

	return names[state];
}
