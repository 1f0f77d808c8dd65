/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * client.c - one command to the daemon of a cache folder (contract: control.h). Called by cmd/ and by tests, from any
 * thread; keeps no state between calls.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "blkcache/control.h"
#include "blkcache/journal.h"
#include "control/protocol.h"

#define SEND_TIMEOUT_MS 10000
#define TICK_MS 250 /* how soon a caller that wants to stop is heard while nothing arrives */

typedef int (*progress_fn)(json_t *progress, void *ctx);

static int no_daemon(const char *dir, int dirfd, struct bc_error *err)
{
	if (faccessat(dirfd, JOURNAL_FILE, F_OK, 0) < 0 && errno == ENOENT)
		return bc_fail(err, -ENOENT, "%s: there is no cache in this folder; make one with 'blkcache create'",
			       dir);
	return bc_fail(err, -ECONNREFUSED, "%s: the cache is not loaded; load it with 'blkcache load %s MOUNTPOINT'",
		       dir, dir);
}

/* A connected socket, or -errno with its message. */
static int connect_to(const char *dir, struct bc_error *err)
{
	struct sockaddr_un addr;
	int dirfd, fd = -1, ret;

	dirfd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (dirfd < 0) {
		ret = errno == ENOTDIR ? -ENOENT : -errno;
		return bc_fail(err, ret, "%s: %s%s", dir, strerror(errno),
			       ret == -ENOENT ? "; give the folder that was given to 'blkcache create'"
			       : ret == -EMFILE || ret == -ENFILE || ret == -ENOMEM || ret == -EACCES
				       ? ""
				       : "; the disk that it lies on cannot be read: see the kernel's log (dmesg)");
	}
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0) {
		ret = bc_fail(err, -errno, "cannot make a socket: %s", strerror(errno));
		goto out;
	}
	protocol_address(&addr, dirfd);
	while (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
		if (errno == EINTR)
			continue;
		if (errno == ENOENT || errno == ECONNREFUSED || errno == ENOTSOCK)
			ret = no_daemon(dir, dirfd, err);
		else if (errno == EACCES || errno == EPERM)
			ret = bc_fail(err, -EACCES,
				      "%s/" CONTROL_SOCKET
				      ": %s; run this as the user who loaded the cache, or as root",
				      dir, strerror(errno));
		else
			ret = bc_fail(err, -errno, "%s/" CONTROL_SOCKET ": cannot connect: %s", dir, strerror(errno));
		goto out;
	}
	close(dirfd);
	return fd;
out:
	if (fd >= 0)
		close(fd);
	close(dirfd);
	return ret;
}

/* Waits for the next line; calls progress(NULL) now and then, so that a signal is heard. */
static int next_line(struct line_reader *r, progress_fn progress, void *ctx, char **line)
{
	for (;;) {
		int ret = line_reader_next(r, line);

		if (ret != -EAGAIN)
			return ret;
		poll(&(struct pollfd){ .fd = r->fd, .events = POLLIN }, 1, TICK_MS);
		if (progress && progress(NULL, ctx))
			return -EINTR;
	}
}

/* The final answer; progress objects on the way go to the caller. */
static json_t *receive(const char *dir, int fd, progress_fn progress, void *ctx, struct bc_error *err)
{
	struct line_reader reader;
	json_t *answer = NULL, *p;
	char why[160];

	line_reader_init(&reader, fd, ANSWER_MAX);
	while (!answer) {
		char *line;
		int ret = next_line(&reader, progress, ctx, &line);

		if (ret == -EINTR)
			bc_fail(err, -EINTR, "%s: interrupted", dir);
		else if (ret == -EPIPE)
			bc_fail(err, -EPROTO,
				"%s: the daemon ended before it answered; see the system log, then 'blkcache status "
				"%s'",
				dir, dir);
		else if (ret)
			bc_fail(err, -EPROTO, "%s: no answer from the daemon: %s", dir, strerror(-ret));
		if (ret)
			break;
		answer = protocol_parse(line, why, sizeof(why));
		free(line);
		if (!answer) {
			bc_fail(err, -EPROTO, "%s: what answered is no blkcache daemon of this version (%s)", dir, why);
			break;
		}
		p = json_object_get(answer, "progress");
		if (!p)
			break;
		ret = progress ? progress(p, ctx) : 0;
		json_decref(answer);
		answer = NULL;
		if (ret) {
			bc_fail(err, -EINTR, "%s: interrupted", dir);
			break;
		}
	}
	if (answer && !json_is_boolean(json_object_get(answer, "ok"))) {
		bc_fail(err, -EPROTO, "%s: what answered is no blkcache daemon of this version", dir);
		json_decref(answer);
		answer = NULL;
	}
	line_reader_free(&reader);
	return answer;
}

/*
 * Returns when the process at the other end has ended: by its pidfd where the kernel can say which process it is, else
 * when it closes the connection, which is the last thing it does.
 */
static void wait_for_end(int fd, int pidfd)
{
	char c;

	if (pidfd >= 0) {
		while (poll(&(struct pollfd){ .fd = pidfd, .events = POLLIN }, 1, -1) < 0 && errno == EINTR)
			;
		return;
	}
	for (;;) {
		ssize_t n = recv(fd, &c, 1, 0);

		if (n == 0 || (n < 0 && errno != EINTR))
			return;
	}
}

static int peer_pidfd(int fd)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	/* pid 0: it lives in a pid namespace we cannot see. Ourselves: a test. */
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0 || cred.pid <= 0 || cred.pid == getpid())
		return -1;
	return (int)syscall(SYS_pidfd_open, cred.pid, 0);
}

static json_t *call(const char *dir, json_t *request, bool until_end, progress_fn progress, void *ctx,
		    struct bc_error *err)
{
	json_t *answer = NULL;
	int fd, pidfd = -1, ret;

	if (!request) {
		bc_fail(err, -ENOMEM, "out of memory, or text that is not UTF-8");
		return NULL;
	}
	fd = connect_to(dir, err);
	if (fd < 0)
		goto out;
	/* Taken while the daemon is certainly alive, so the number cannot have been given to another process. */
	if (until_end)
		pidfd = peer_pidfd(fd);
	ret = protocol_send(fd, request, SEND_TIMEOUT_MS);
	/* The daemon may refuse and close before it has read everything: it has said why, or the read tells that it has
	 * gone. */
	if (ret && ret != -EPIPE && ret != -ECONNRESET) {
		bc_fail(err, -EPROTO, "%s: cannot send to the daemon: %s", dir, strerror(-ret));
		goto out;
	}
	answer = receive(dir, fd, progress, ctx, err);
	if (answer && until_end && json_is_true(json_object_get(answer, "ending")))
		wait_for_end(fd, pidfd);
out:
	if (pidfd >= 0)
		close(pidfd);
	if (fd >= 0)
		close(fd);
	json_decref(request);
	return answer;
}

json_t *control_call(const char *dir, json_t *request, int (*progress)(json_t *progress, void *ctx), void *ctx,
		     struct bc_error *err)
{
	return call(dir, request, false, progress, ctx, err);
}

json_t *control_call_until_end(const char *dir, json_t *request, int (*progress)(json_t *progress, void *ctx),
			       void *ctx, struct bc_error *err)
{
	return call(dir, request, true, progress, ctx, err);
}
