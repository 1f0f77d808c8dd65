/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * log.c - messages of the daemon. Any thread, no lock: a line is formatted on the caller's stack and leaves in one
 * write(2) (or one syslog(3) call), so lines of several threads do not mix. log_to_syslog() is called once, while one
 * thread runs, when the daemon has detached.
 */
#include "util/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <syslog.h>
#include <unistd.h>

static atomic_bool use_syslog;
static _Atomic int max_level = LOG_LEVEL_INFO;

void log_to_syslog(const char *ident)
{
	openlog(ident, LOG_PID, LOG_DAEMON);
	atomic_store(&use_syslog, true);
}

void log_set_level(enum log_level level)
{
	atomic_store(&max_level, (int)level);
}

void log_msg(enum log_level level, const char *fmt, ...)
{
	static const int priority[] = { LOG_ERR, LOG_WARNING, LOG_INFO, LOG_DEBUG };
	static const char *const label[] = { "error: ", "warning: ", "", "debug: " };
	int saved = errno; /* callers log between a failing call and their look at errno */
	char line[1200];
	int n, head;
	va_list ap;

	if ((int)level > atomic_load_explicit(&max_level, memory_order_relaxed))
		return;
	head = snprintf(line, sizeof(line), "blkcache: %s", label[level]);
	va_start(ap, fmt);
	n = vsnprintf(line + head, sizeof(line) - (size_t)head - 1, fmt, ap);
	va_end(ap);
	if (n < 0)
		n = 0;
	n = (int)strlen(line);
	if (atomic_load_explicit(&use_syslog, memory_order_relaxed)) {
		syslog(priority[level], "%s", line + head);
	} else {
		line[n++] = '\n';
		/* Nobody to tell if stderr is gone. */
		if (write(STDERR_FILENO, line, (size_t)n) < 0)
			n = 0;
	}
	errno = saved;
}
