/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * health.c - what happens when the cache fails (P6) or degrades (P7): a flag that everybody looks at, a reason for the
 * user, a line in the log. Any thread, with any lock held: only the leaf why_lock is taken.
 */
#include "engine/cache.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void say(struct cache *c, const char *fmt, va_list ap)
{
	char text[sizeof c->why];

	vsnprintf(text, sizeof text, fmt, ap);
	pthread_mutex_lock(&c->why_lock);
	memcpy(c->why, text, sizeof text);
	pthread_mutex_unlock(&c->why_lock);
	log_error("%s: %s", c->dir, text);
}

/* Final (P6): the first reason is kept. Waiters are woken so that they see it. */
void cache_fail(struct cache *c, const char *fmt, ...)
{
	va_list ap;

	if (atomic_exchange(&c->failed, true))
		return;
	va_start(ap, fmt);
	say(c, fmt, ap);
	va_end(ap);
	if (c->on_failed)
		c->on_failed(c);
	slots_abort(&c->slots);
}

void cache_degrade(struct cache *c, const char *fmt, ...)
{
	bool was = atomic_exchange(&c->degraded, true);
	va_list ap;

	va_start(ap, fmt);
	if (!was && !c->failed) {
		say(c, fmt, ap);
	} else if (now_ns() - ctr_get(c->last_log) < 1000000000) { /* one a second says enough */
		ctr_add(c->unlogged, 1);
	} else {
		uint64_t more = atomic_exchange(&c->unlogged, 0);
		char text[sizeof c->why];

		vsnprintf(text, sizeof text, fmt, ap);
		log_error("%s: %s%s", c->dir, text, more ? " (and more)" : "");
		atomic_store(&c->last_log, now_ns());
	}
	va_end(ap);
}
