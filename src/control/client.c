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
#include "util/process.h"

#define TICK_MS 250 /* how soon a caller that wants to stop is heard while nothing arrives */
#define CONNECT_TICK_MS 50
#define CANCEL_MS 3000 /* how long to wait for the answer to a cancelled command */
#define END_MS 60000 /* of a daemon that has closed its cache; freeing its memory takes time */

typedef int (*progress_fn)(json_t *progress, void *ctx);

/* One command under way. */
struct talk {
	const char *dir;
	progress_fn progress;
	void *ctx;
	struct bc_error *err;
	int fd, pidfd; /* pidfd -1: unknown, or not wanted */
	int pid; /* of the daemon; 0: unknown */
	long long heard_ms; /* the last sign of life */
	long long cancelled_ms; /* when the daemon was asked to end the command; 0: it was not */
};

static int no_daemon(const char *dir, int dirfd, struct bc_error *err)
{
	if (faccessat(dirfd, JOURNAL_FILE, F_OK, 0) < 0 && errno == ENOENT)
		return bc_fail(err, -ENOENT, "%s: there is no cache in this folder; make one with 'blkcache create'",
			       dir);
	return bc_fail(err, -ECONNREFUSED, "%s: the cache is not loaded; load it with 'blkcache load %s MOUNTPOINT'",
		       dir, dir);
}

/* The process that holds the cache, as far as its lock file tells: a daemon whose queue of connections is full. */
static int lock_pid(int dirfd)
{
	int fd = openat(dirfd, "lock", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	char text[32] = "";
	ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);

	if (fd >= 0)
		close(fd);
	return n > 0 ? atoi(text) : 0;
}

static int no_answer(const struct talk *t)
{
	char why[300];

	process_explain(t->pid, why, sizeof(why));
	return bc_fail(t->err, -ETIMEDOUT, "%s: the daemon does not answer: %s (the system log may have more)", t->dir,
		       why);
}

static int no_confirmation(const struct talk *t)
{
	char why[300];

	process_explain(t->pid, why, sizeof(why));
	return bc_fail(
		t->err, -EINTR,
		"%s: interrupted; the daemon has not answered to that yet (%s): it drops the command, or ends it at "
		"its next step",
		t->dir, why);
}

static int cannot_connect(const struct talk *t, int dirfd, int error)
{
	if (error == ENOENT || error == ECONNREFUSED || error == ENOTSOCK)
		return no_daemon(t->dir, dirfd, t->err);
	if (error == EACCES || error == EPERM)
		return bc_fail(t->err, -EACCES,
			       "%s/" CONTROL_SOCKET ": %s; run this as the user who loaded the cache, or as root",
			       t->dir, strerror(error));
	return bc_fail(t->err, -error, "%s/" CONTROL_SOCKET ": cannot connect: %s", t->dir, strerror(error));
}

/* The connection is queued by the kernel even if the daemon does not run; a full queue is waited for. */
static int connect_fd(struct talk *t, int dirfd)
{
	struct sockaddr_un addr;

	protocol_address(&addr, dirfd);
	while (connect(t->fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return cannot_connect(t, dirfd, errno);
		if (protocol_now_ms() - t->heard_ms >= CONTROL_PATIENCE_MS) {
			t->pid = lock_pid(dirfd);
			return no_answer(t);
		}
		if (t->progress && t->progress(NULL, t->ctx))
			return bc_fail(t->err, -EINTR, "%s: interrupted; nothing was begun", t->dir);
		poll(NULL, 0, CONNECT_TICK_MS);
	}
	return 0;
}

/* 0 with t->fd connected, or -errno with its message. */
static int connect_to(struct talk *t)
{
	int dirfd, ret;

	dirfd = open(t->dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (dirfd < 0) {
		ret = errno == ENOTDIR ? -ENOENT : -errno;
		return bc_fail(t->err, ret, "%s: %s%s", t->dir, strerror(errno),
			       ret == -ENOENT ? "; give the folder that was given to 'blkcache create'"
			       : ret == -EMFILE || ret == -ENFILE || ret == -ENOMEM || ret == -EACCES
				       ? ""
				       : "; the disk that it lies on cannot be read: see the kernel's log (dmesg)");
	}
	t->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (t->fd < 0)
		ret = bc_fail(t->err, -errno, "cannot make a socket: %s", strerror(errno));
	else
		ret = connect_fd(t, dirfd);
	close(dirfd);
	return ret;
}

/* Asks the daemon to end the command. What became of it is in its answer, so that is waited for. */
static void cancel(struct talk *t)
{
	json_t *msg = json_pack("{s:b}", "cancel", 1);

	if (msg)
		protocol_send(t->fd, msg, 0);
	json_decref(msg);
	t->cancelled_ms = protocol_now_ms();
}

/* Waits for the next line; calls progress(NULL) now and then, so that a signal is heard. */
static int next_line(struct talk *t, struct line_reader *r, char **line)
{
	for (;;) {
		size_t had = r->len;
		int ret = line_reader_next(r, line);
		long long now = protocol_now_ms();

		if (ret != -EAGAIN)
			return ret;
		if (r->len != had)
			t->heard_ms = now;
		if (t->cancelled_ms && now - t->cancelled_ms >= CANCEL_MS)
			return no_confirmation(t);
		if (now - t->heard_ms >= CONTROL_PATIENCE_MS)
			return no_answer(t);
		poll(&(struct pollfd){ .fd = r->fd, .events = POLLIN }, 1, TICK_MS);
		if (t->progress && !t->cancelled_ms && t->progress(NULL, t->ctx))
			cancel(t);
	}
}

static void hand_over_progress(struct talk *t, json_t *p)
{
	if (json_object_get(p, HEARTBEAT_KEY))
		p = NULL;
	if (t->progress && !t->cancelled_ms && t->progress(p, t->ctx))
		cancel(t);
}

/* The final answer; progress objects on the way go to the caller. */
static json_t *receive(struct talk *t)
{
	struct line_reader reader;
	json_t *answer = NULL, *p;
	char why[160];

	line_reader_init(&reader, t->fd, ANSWER_MAX);
	while (!answer) {
		char *line;
		int ret = next_line(t, &reader, &line);

		if (ret == -EPIPE)
			bc_fail(t->err, -EPROTO,
				"%s: the daemon ended before it answered; see the system log, then 'blkcache status "
				"%s'",
				t->dir, t->dir);
		else if (ret && ret != -EINTR && ret != -ETIMEDOUT)
			bc_fail(t->err, -EPROTO, "%s: no answer from the daemon: %s", t->dir, strerror(-ret));
		if (ret)
			break;
		t->heard_ms = protocol_now_ms();
		answer = protocol_parse(line, why, sizeof(why));
		free(line);
		if (!answer) {
			bc_fail(t->err, -EPROTO, "%s: what answered is no blkcache daemon of this version (%s)", t->dir,
				why);
			break;
		}
		p = json_object_get(answer, "progress");
		if (!p)
			break;
		hand_over_progress(t, p);
		json_decref(answer);
		answer = NULL;
	}
	if (answer && !json_is_boolean(json_object_get(answer, "ok"))) {
		bc_fail(t->err, -EPROTO, "%s: what answered is no blkcache daemon of this version", t->dir);
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
static int wait_for_end(const struct talk *t)
{
	long long deadline = protocol_now_ms() + END_MS, left;
	struct pollfd p = { .fd = t->pidfd >= 0 ? t->pidfd : t->fd, .events = POLLIN };
	char c, why[300];

	while ((left = deadline - protocol_now_ms()) > 0) {
		ssize_t n;

		if (poll(&p, 1, (int)left) <= 0)
			continue;
		if (t->pidfd >= 0)
			return 0;
		n = recv(t->fd, &c, 1, MSG_DONTWAIT);
		if (n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN))
			return 0;
	}
	process_explain(t->pid, why, sizeof(why));
	return bc_fail(t->err, -ETIMEDOUT, "%s: the daemon was to end, and has not for a minute: %s", t->dir, why);
}

/* pid 0: it lives in a pid namespace we cannot see. */
static void identify_peer(struct talk *t, bool with_pidfd)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	if (getsockopt(t->fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0 || cred.pid <= 0)
		return;
	t->pid = cred.pid;
	if (with_pidfd && cred.pid != getpid()) /* ourselves: a test */
		t->pidfd = (int)syscall(SYS_pidfd_open, cred.pid, 0);
}

static int send_request(struct talk *t, const json_t *request)
{
	int ret = protocol_send(t->fd, request, CONTROL_PATIENCE_MS);

	if (ret == -EAGAIN)
		return no_answer(t);
	/* The daemon may refuse and close before it has read everything: it has said why, or the read tells that it has
	 * gone. */
	if (!ret || ret == -EPIPE || ret == -ECONNRESET)
		return 0;
	return bc_fail(t->err, -EPROTO, "%s: cannot send to the daemon: %s", t->dir, strerror(-ret));
}

static json_t *call(const char *dir, json_t *request, bool until_end, progress_fn progress, void *ctx,
		    struct bc_error *err)
{
	struct bc_error dummy;
	struct talk t = { .dir = dir,
			  .progress = progress,
			  .ctx = ctx,
			  .err = err ? err : &dummy,
			  .fd = -1,
			  .pidfd = -1,
			  .heard_ms = protocol_now_ms() };
	json_t *answer = NULL;

	if (!request) {
		bc_fail(err, -ENOMEM, "out of memory");
		return NULL;
	}
	if (connect_to(&t))
		goto out;
	/* Taken while the daemon is certainly alive, so the number cannot have been given to another process. */
	identify_peer(&t, until_end);
	if (send_request(&t, request))
		goto out;
	answer = receive(&t);
	if (answer && until_end && json_is_true(json_object_get(answer, "ending")) && wait_for_end(&t)) {
		json_decref(answer);
		answer = NULL;
	}
out:
	if (t.pidfd >= 0)
		close(t.pidfd);
	if (t.fd >= 0)
		close(t.fd);
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
