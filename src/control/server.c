/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * server.c - the daemon's end of the control socket (contract: control.h).
 *
 * One thread accepts; each client gets a thread that takes its requests one after the other. Handlers may therefore
 * block (a flush) without keeping other clients waiting (P11).
 *
 * Client slots (`slots`, guarded by `lock`):
 *     FREE -> RUNNING   the accepting thread starts the client's thread
 *     RUNNING -> DONE   the client's thread, as its last act; the socket is closed by then
 *     DONE -> FREE      the accepting thread, or control_server_stop(), joins it
 *
 * A client is not trusted to be sane, only to be allowed (the socket is 0600): lines are bounded, a request has to
 * arrive within IDLE_MS, an answer has to be taken within SEND_MS, and there are at most MAX_CLIENTS at once.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "blkcache/control.h"
#include "control/protocol.h"
#include "util/log.h"

#define MAX_CLIENTS 64
#define IDLE_MS 30000
#define SEND_MS 10000
#define FULL_MS 500 /* how long a new client waits for a slot: those that are just ending get the time to */
#define EXIT_FAILED 1

enum slot_state { SLOT_FREE, SLOT_RUNNING, SLOT_DONE };

struct client {
	struct control_server *server;
	pthread_t thread;
	enum slot_state state;
	int fd;
};

struct control_server {
	const struct control_handler *handlers;
	size_t nhandlers;
	void *ctx;
	int dirfd, listen_fd, wake_fd;
	ino_t inode; /* of our socket: another's is never removed */
	pthread_t acceptor;
	atomic_bool stopping;
	pthread_mutex_t lock;
	pthread_cond_t slot_done;
	struct client slots[MAX_CLIENTS];
};

struct control_request {
	struct control_server *server;
	int fd;
	bool gone; /* a send failed; only the request's thread looks at it */
	int fail_code; /* 0: control_fail() was not called */
	char fail_msg[sizeof(((struct bc_error *)0)->msg)];
};

/* ---- what handlers call ---- */

void control_fail(struct control_request *req, int exit_code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(req->fail_msg, sizeof(req->fail_msg), fmt, ap);
	va_end(ap);
	req->fail_code = exit_code ? exit_code : EXIT_FAILED;
}

bool control_client_gone(struct control_request *req)
{
	struct pollfd p = { .fd = req->fd };

	/* POLLHUP only: a client may well shut down its sending half once its request is out (as `nc -N` does). */
	if (!req->gone && poll(&p, 1, 0) > 0 && (p.revents & (POLLHUP | POLLERR)))
		req->gone = true;
	return req->gone || atomic_load(&req->server->stopping);
}

int control_progress(struct control_request *req, json_t *p)
{
	json_t *msg = json_pack("{s:o}", "progress", p);

	if (control_client_gone(req)) {
		json_decref(msg);
		return 1;
	}
	if (msg && protocol_send(req->fd, msg, SEND_MS))
		req->gone = true;
	json_decref(msg);
	return req->gone;
}

/* ---- one client ---- */

/* Text of any bytes as a JSON string: what is not UTF-8 is shown as '?'. */
static json_t *message_text(char *text)
{
	json_t *s = json_string(text);

	if (!s) {
		for (char *p = text; *p; p++)
			if ((unsigned char)*p >= 0x80)
				*p = '?';
		s = json_string(text);
	}
	return s;
}

static json_t *refusal(int exit_code, char *text)
{
	return json_pack("{s:b,s:o,s:i}", "ok", 0, "error", message_text(text), "code", exit_code);
}

static const struct control_handler *find_handler(struct control_server *s, const char *cmd)
{
	for (size_t i = 0; cmd && i < s->nhandlers; i++)
		if (!strcmp(s->handlers[i].cmd, cmd))
			return &s->handlers[i];
	return NULL;
}

static json_t *run_request(struct control_server *s, struct control_request *req, json_t *args)
{
	const char *cmd = json_string_value(json_object_get(args, "cmd"));
	const struct control_handler *h = find_handler(s, cmd);
	json_t *answer, *result;

	if (!h) {
		control_fail(req, EXIT_FAILED, "unknown command '%.60s'; is the daemon of another version?",
			     cmd ? cmd : "");
		return refusal(req->fail_code, req->fail_msg);
	}
	result = h->run(req, args, s->ctx);
	if (!result) {
		if (!req->fail_code)
			control_fail(req, EXIT_FAILED, "%s: out of memory", cmd);
		return refusal(req->fail_code, req->fail_msg);
	}
	answer = json_pack("{s:b}", "ok", 1); /* first, for people who read it */
	if (answer)
		json_object_update(answer, result);
	json_decref(result);
	return answer;
}

/* Reads and answers one request; false when the connection is to be closed. */
static bool serve_one(struct client *c, struct line_reader *reader)
{
	struct control_request req = { .server = c->server, .fd = c->fd };
	long long deadline = protocol_now_ms() + IDLE_MS;
	json_t *args, *answer;
	char why[160], *line;
	bool more = true;
	int ret;

	while ((ret = line_reader_next(reader, &line)) == -EAGAIN) {
		long long left = deadline - protocol_now_ms();

		if (left <= 0 || atomic_load(&c->server->stopping))
			return false;
		poll(&(struct pollfd){ .fd = c->fd, .events = POLLIN }, 1, (int)left);
	}
	if (ret == -EMSGSIZE) {
		control_fail(&req, EXIT_FAILED, "the request is longer than %u bytes", REQUEST_MAX);
		answer = refusal(req.fail_code, req.fail_msg);
		more = false;
	} else if (ret) {
		return false;
	} else {
		args = protocol_parse(line, why, sizeof(why));
		free(line);
		if (args) {
			answer = run_request(c->server, &req, args);
			json_decref(args);
		} else {
			control_fail(&req, EXIT_FAILED, "malformed request: %s", why);
			answer = refusal(req.fail_code, req.fail_msg);
			more = false;
		}
	}
	if (!answer || protocol_send(c->fd, answer, SEND_MS))
		more = false;
	json_decref(answer);
	return more;
}

static void *client_main(void *arg)
{
	struct client *c = arg;
	struct line_reader reader;

	line_reader_init(&reader, c->fd, REQUEST_MAX);
	while (!atomic_load(&c->server->stopping) && serve_one(c, &reader))
		;
	line_reader_free(&reader);
	pthread_mutex_lock(&c->server->lock);
	close(c->fd);
	c->fd = -1;
	c->state = SLOT_DONE;
	pthread_cond_signal(&c->server->slot_done);
	pthread_mutex_unlock(&c->server->lock);
	return NULL;
}

/* ---- accepting ---- */

static struct client *__free_slot(struct control_server *s)
{
	for (size_t i = 0; i < MAX_CLIENTS; i++) {
		struct client *c = &s->slots[i];

		if (c->state == SLOT_DONE) {
			pthread_join(c->thread, NULL); /* it has left the lock, so this is short */
			c->thread = 0;
			c->state = SLOT_FREE;
		}
		if (c->state == SLOT_FREE)
			return c;
	}
	return NULL;
}

static struct client *__wait_for_slot(struct control_server *s)
{
	struct client *c = __free_slot(s);
	struct timespec until;

	if (c)
		return c;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_nsec += FULL_MS * 1000000L;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	while (!(c = __free_slot(s)) && !pthread_cond_timedwait(&s->slot_done, &s->lock, &until))
		;
	return c;
}

static void start_client(struct control_server *s, int fd)
{
	char text[] = "too many control clients at once; try again";
	struct client *c;
	bool started = false;

	pthread_mutex_lock(&s->lock);
	c = __wait_for_slot(s);
	if (c) {
		c->server = s;
		c->fd = fd;
		c->state = SLOT_RUNNING;
		started = !pthread_create(&c->thread, NULL, client_main, c);
		if (!started) {
			c->thread = 0;
			c->state = SLOT_FREE;
		}
	}
	pthread_mutex_unlock(&s->lock);
	if (!started) {
		json_t *answer = refusal(EXIT_FAILED, text);

		/* No waiting here: the accepting thread serves everyone. A fresh socket takes this much. */
		if (answer)
			protocol_send(fd, answer, 0);
		json_decref(answer);
		close(fd);
	}
}

static void *accept_main(void *arg)
{
	struct control_server *s = arg;

	for (;;) {
		struct pollfd p[2] = { { .fd = s->listen_fd, .events = POLLIN },
				       { .fd = s->wake_fd, .events = POLLIN } };
		int fd;

		if (poll(p, 2, -1) < 0 && errno != EINTR)
			break;
		if (atomic_load(&s->stopping))
			break;
		if (!(p[0].revents & POLLIN))
			continue;
		fd = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC);
		if (fd >= 0) {
			start_client(s, fd);
		} else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
			log_warn("control socket: %s", strerror(errno));
			poll(&p[1], 1, 200); /* the connection stays queued: do not spin on it */
		}
	}
	return NULL;
}

/* ---- start and stop ---- */

/*
 * Binds DIR/control. The caller owns the cache (it holds its lock), so a socket that is there already is a dead
 * daemon's. The mode is set on the socket before bind() makes the file from it: no moment in which others could
 * connect, and no change of the process's umask.
 */
static int bind_socket(struct control_server *s, const char *dir, struct bc_error *err)
{
	struct sockaddr_un addr;
	struct stat st;

	s->dirfd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (s->dirfd < 0)
		return bc_fail(err, -errno, "%s: cannot open the cache folder: %s", dir, strerror(errno));
	s->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (s->listen_fd < 0)
		return bc_fail(err, -errno, "cannot make a socket: %s", strerror(errno));
	if (unlinkat(s->dirfd, CONTROL_SOCKET, 0) < 0 && errno != ENOENT)
		return bc_fail(err, -errno, "%s/" CONTROL_SOCKET ": cannot remove the old socket: %s", dir,
			       strerror(errno));
	protocol_address(&addr, s->dirfd);
	if (fchmod(s->listen_fd, 0600) < 0 || bind(s->listen_fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		return bc_fail(err, -errno, "%s/" CONTROL_SOCKET ": cannot make the control socket: %s", dir,
			       strerror(errno));
	if (!fstatat(s->dirfd, CONTROL_SOCKET, &st, AT_SYMLINK_NOFOLLOW))
		s->inode = st.st_ino;
	if (listen(s->listen_fd, MAX_CLIENTS) < 0)
		return bc_fail(err, -errno, "%s/" CONTROL_SOCKET ": cannot listen: %s", dir, strerror(errno));
	return 0;
}

static void remove_socket(struct control_server *s)
{
	struct stat st;

	if (s->inode && !fstatat(s->dirfd, CONTROL_SOCKET, &st, AT_SYMLINK_NOFOLLOW) && st.st_ino == s->inode)
		unlinkat(s->dirfd, CONTROL_SOCKET, 0);
}

static void destroy(struct control_server *s)
{
	remove_socket(s);
	if (s->listen_fd >= 0)
		close(s->listen_fd);
	if (s->wake_fd >= 0)
		close(s->wake_fd);
	if (s->dirfd >= 0)
		close(s->dirfd);
	pthread_cond_destroy(&s->slot_done);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

int control_server_start(const char *dir, const struct control_handler *handlers, size_t n, void *ctx,
			 struct control_server **out, struct bc_error *err)
{
	struct control_server *s = calloc(1, sizeof(*s));
	int ret;

	if (!s)
		return bc_fail(err, -ENOMEM, "out of memory");
	s->handlers = handlers;
	s->nhandlers = n;
	s->ctx = ctx;
	s->dirfd = s->listen_fd = s->wake_fd = -1;
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->slot_done, NULL);
	s->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	ret = s->wake_fd < 0 ? bc_fail(err, -errno, "cannot make an eventfd: %s", strerror(errno))
			     : bind_socket(s, dir, err);
	if (ret)
		goto out;
	ret = -pthread_create(&s->acceptor, NULL, accept_main, s);
	if (ret) {
		bc_fail(err, ret, "cannot start a thread: %s", strerror(-ret));
		goto out;
	}
	*out = s;
	return 0;
out:
	destroy(s);
	return ret;
}

void control_server_stop(struct control_server *s)
{
	if (!s)
		return;
	atomic_store(&s->stopping, true);
	/* eventfd: can only fail when its count is full, and then it is readable anyway. */
	if (write(s->wake_fd, &(uint64_t){ 1 }, sizeof(uint64_t)) < 0)
		log_debug("control socket: %s", strerror(errno));
	pthread_join(s->acceptor, NULL);
	/* Later clients find no socket instead of one that nobody serves. */
	remove_socket(s);
	s->inode = 0;
	pthread_mutex_lock(&s->lock);
	for (size_t i = 0; i < MAX_CLIENTS; i++)
		/* The reading half only: an answer under way still gets through. */
		if (s->slots[i].state == SLOT_RUNNING)
			shutdown(s->slots[i].fd, SHUT_RD);
	pthread_mutex_unlock(&s->lock);
	for (size_t i = 0; i < MAX_CLIENTS; i++)
		/* No lock: only the acceptor made slots non-free, and it has ended. RUNNING turns to DONE, both are
		 * joined. */
		if (s->slots[i].thread)
			pthread_join(s->slots[i].thread, NULL);
	destroy(s);
}
