/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * start.c - turning the calling process, or a child of it, into the daemon. Called from the main thread of a process
 * that has one.
 *
 * The child is forked before anything is opened: locks, rings and threads do not survive a fork. It sends one JSON line
 * through a pipe,
 * {"ok": true, "report": {...}} or {"ok": false, "error": TEXT, "code": -ERRNO}, and the parent returns only then. If
 * the parent goes away before (Ctrl-C), the report cannot be delivered and the child ends in order.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "blkcache/control.h"
#include "daemon/daemon.h"

#define REPORT_MAX (64u << 20)

struct foreground {
	void (*ready)(json_t *report, void *ctx);
	void *ctx;
};

static int ready_foreground(json_t *report, void *ctx)
{
	struct foreground *f = ctx;

	f->ready(report, f->ctx);
	fflush(stdout);
	return 0;
}

/* A daemon that takes over: nobody waits for a report. */
static int ready_again(json_t *report, void *ctx)
{
	(void)report;
	(void)ctx;
	return 0;
}

static void __attribute__((noreturn)) take_over(const struct daemon_params *params)
{
	struct bc_error err = { 0 };
	int ret = daemon_run(params, ready_again, NULL, &err);

	if (ret && err.code)
		log_error("%s: %s", params->dir, err.msg);
	exit(ret ? EXIT_FAILURE : EXIT_SUCCESS);
}

/* ---- the child ---- */

/* Descriptors a script had open would stay open as long as the daemon lives. */
static int enter_background(int report_fd)
{
	int null;

	setsid();
	if (dup2(report_fd, 3) < 0)
		return -errno;
	fcntl(3, F_SETFD, FD_CLOEXEC);
	close_range(4, ~0u, 0);
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null < 0 || dup2(null, STDIN_FILENO) < 0 || chdir("/") < 0)
		return -errno;
	close(null);
	return 3;
}

static int send_report(int fd, json_t *msg)
{
	char *text = msg ? control_text(msg) : NULL;
	size_t len = text ? strlen(text) : 0;
	int ret = text ? 0 : -ENOMEM;

	for (size_t n = 0; !ret && n < len;) {
		ssize_t w = write(fd, text + n, len - n);

		if (w >= 0)
			n += (size_t)w;
		else if (errno != EINTR)
			ret = -errno;
	}
	free(text);
	json_decref(msg);
	return ret;
}

/* From here on nobody sees stderr. The streams are given up before the report: a caller that reads them through a pipe
 * waits for their end. */
static int ready_background(json_t *report, void *ctx)
{
	int *fd = ctx, null = open("/dev/null", O_RDWR | O_CLOEXEC), ret;

	log_to_syslog("blkcache");
	if (null >= 0) {
		dup2(null, STDOUT_FILENO);
		dup2(null, STDERR_FILENO);
		close(null);
	}
	ret = send_report(*fd, json_pack("{s:b,s:O}", "ok", 1, "report", report));
	close(*fd);
	*fd = -1;
	return ret;
}

static void __attribute__((noreturn)) child(const struct daemon_params *params, int report_fd)
{
	struct daemon_params mine = *params;
	struct daemon_survive survive;
	struct bc_error err = { 0 };
	int fd = enter_background(report_fd), ret = 0;

	if (fd < 0) {
		ret = bc_fail(&err, fd, "cannot detach: %s", strerror(-fd));
		fd = report_fd;
	}
	if (!ret && params->config.survive)
		ret = daemon_supervise(&mine, &survive, fd, &err);
	if (!ret && mine.survive && mine.survive->takeover)
		take_over(&mine);
	if (!ret)
		ret = daemon_run(&mine, ready_background, &fd, &err);
	if (ret && fd >= 0)
		send_report(fd, json_pack("{s:b,s:o,s:i}", "ok", 0, "error", json_text(err.msg), "code", ret));
	exit(ret ? EXIT_FAILURE : EXIT_SUCCESS);
}

/* ---- the parent ---- */

/* All that comes through the pipe. -EINTR if a signal came that the caller handles. */
static int read_report(int fd, char **text, size_t *len)
{
	size_t size = 0;

	for (*len = 0;;) {
		ssize_t n;

		if (size - *len < 4096) {
			char *more = size < REPORT_MAX ? realloc(*text, size + 65536) : NULL;

			if (!more)
				return -ENOMEM;
			*text = more;
			size += 65536;
		}
		n = read(fd, *text + *len, size - *len - 1);
		(*text)[*len + (size_t)(n > 0 ? n : 0)] = '\0';
		if (n <= 0)
			return n < 0 ? -errno : 0;
		*len += (size_t)n;
	}
}

static int reap(pid_t pid)
{
	int status = 0;

	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return status;
}

/* The daemon died before it could say anything. */
static int explain_death(int status, struct bc_error *err)
{
	if (WIFSIGNALED(status))
		return bc_fail(err, -EIO,
			       "the daemon was killed by signal %d (%s) while it started; see the system log",
			       WTERMSIG(status), strsignal(WTERMSIG(status)));
	return bc_fail(err, -EIO, "the daemon ended with status %d while it started; see the system log",
		       WEXITSTATUS(status));
}

static int start_background(const struct daemon_params *params, json_t **report, struct bc_error *err)
{
	json_t *msg = NULL;
	char *text = NULL;
	size_t len = 0;
	int fds[2], ret, status;
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC) < 0)
		return bc_fail(err, -errno, "cannot make a pipe: %s", strerror(errno));
	fflush(NULL); /* or the child would print it again */
	pid = fork();
	if (pid < 0) {
		ret = bc_fail(err, -errno, "cannot fork: %s", strerror(errno));
		close(fds[0]);
		close(fds[1]);
		return ret;
	}
	if (!pid)
		child(params, fds[1]);
	close(fds[1]);
	ret = read_report(fds[0], &text, &len);
	close(fds[0]);
	if (ret == -EINTR)
		bc_fail(err, -EINTR, "interrupted; nothing was started");
	else if (ret)
		bc_fail(err, ret, "cannot read the daemon's report: %s", strerror(-ret));
	else
		msg = control_parse(text);
	free(text);
	if (json_is_true(json_object_get(msg, "ok"))) {
		*report = json_incref(json_object_get(msg, "report"));
		json_decref(msg);
		return 0;
	}
	/* Its lock is free and its mount gone when this returns. */
	status = reap(pid);
	if (!ret && msg)
		ret = bc_fail(err, (int)json_integer_value(json_object_get(msg, "code")), "%s",
			      json_string_value(json_object_get(msg, "error")));
	else if (!ret)
		ret = explain_death(status, err);
	json_decref(msg);
	return ret;
}

int daemon_start(const struct daemon_params *params, void (*ready)(json_t *report, void *ctx), void *ctx,
		 struct bc_error *err)
{
	struct foreground f = { .ready = ready, .ctx = ctx };
	struct daemon_params mine = *params;
	struct daemon_survive survive;
	json_t *report = NULL;
	int ret;

	if (params->foreground) {
		ret = params->config.survive ? daemon_supervise(&mine, &survive, -1, err) : 0;
		if (ret)
			return ret;
		if (mine.survive && mine.survive->takeover)
			take_over(&mine);
		return daemon_run(&mine, ready_foreground, &f, err);
	}
	ret = start_background(params, &report, err);
	if (!ret)
		ready(report, ctx);
	json_decref(report);
	return ret;
}
