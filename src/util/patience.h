/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * patience.h - doing what may never end (opening a device of a dead server, writing to a disk that hangs) without being
 * held up by it: it runs on a thread of its own, and its caller can stop waiting.
 */
#ifndef UTIL_PATIENCE_H
#define UTIL_PATIENCE_H

#include <stdbool.h>

struct patience {
	unsigned ms; /* longest wait; 0: no limit */
	bool (*give_up)(void *ctx); /* asked some ten times a second, on the waiting thread; may be NULL */
	void *ctx;
};

/*
 * Calls fn(arg) and returns 0 when it has returned. p NULL: on the calling thread. Else on another one, and the caller
 * may have enough of it before: -ETIMEDOUT, or -EINTR if give_up said so. Then `arg` is no longer the caller's:
 * whenever fn returns, late(arg) is called on its thread, to undo and free. -EAGAIN: there is no thread to be had, or
 * PATIENCE_MAX_LEFT earlier calls still have not returned; fn was not called.
 */
int run_patiently(void (*fn)(void *arg), void *arg, void (*late)(void *arg), const struct patience *p);

#define PATIENCE_MAX_LEFT 64
unsigned patience_left(void); /* calls that nobody waits for any more and that have not returned */

#endif
