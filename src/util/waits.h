/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * waits.h - a thread that is about to wait, for a device or for another thread, says so to whoever set it to work: an
 * export's worker then sees to it that somebody else receives requests meanwhile (export/workers.c). Locks that are
 * held for moments only do not count.
 */
#ifndef UTIL_WAITS_H
#define UTIL_WAITS_H

struct waits {
	void (*begin)(struct waits *w); /* may be called any number of times while one piece of work is done */
};

extern _Thread_local struct waits *thread_waits; /* NULL: nobody wants to know */

static inline void about_to_wait(void)
{
	struct waits *w = thread_waits;

	if (w)
		w->begin(w);
}

#endif
