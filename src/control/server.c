/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * server.c - the daemon's end of the control socket (contract: control.h).
 *
 * One thread accepts; each client gets a thread that takes its requests one after the other. Handlers may therefore
 * block (a flush) without keeping other clients waiting (P11).
 *
 * Client slots (`slots`, guarded by `lock`):
 *     FREE -> IDLE      the accepting thread starts the client's thread
 *     IDLE -> BUSY      the client's thread has read a request; false if the slot was taken away meanwhile
 *     BUSY -> IDLE      it has sent the answer
 *     IDLE -> DROPPED   the accepting thread needs the slot and shuts the connection down
 *     any  -> DONE      the client's thread, as its last act; the socket is closed by then
 *     DONE -> FREE      the accepting thread, or control_server_stop(), joins it
 *
 * A client is not trusted to be sane, only to be allowed (the socket is 0600): lines are bounded, a request has to
 * arrive within IDLE_MS, an answer has to be taken within SEND_MS, and there are at most SLOTS at once. Nobody can lock
 * others out: when all slots are taken, the client that has been idle the longest loses its own, and when MAX_CLIENTS
 * commands run, only those are begun that show what goes on or end it (control_handler.always).
 *
 * A request is only begun while its client is there. A client that was interrupted, or gave up on a daemon that was
 * stopped for a while, has told its user that nothing happens: what it left in the socket must not be carried out
 * later.
 *
 * While a command runs the accepting thread sends its client a sign of life every HEARTBEAT_MS, so that the client can
 * tell work that takes long from a daemon that does not answer. Commands that never take long (control_handler.quick)
 * get none: there, silence is what the client has to hear.
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
#include "util/deadline.h"
#include "util/log.h"

#define MAX_CLIENTS 64
#define RESERVED 8
#define SLOTS (MAX_CLIENTS + RESERVED)
#define IDLE_MS 30000
#define SEND_MS 10000
#define FULL_MS 500 /* how long a new client waits for a slot: those that are just ending get the time to */
#define DROP_IDLE_MS 250 /* idle for less: its request may just be on its way */
#define HEARTBEAT_MS 1000
#define EXIT_FAILED 1
#define EXIT_INTERRUPTED 130
#define TOO_MANY "too many control clients at once; try again"

enum slot_state { SLOT_FREE, SLOT_IDLE, SLOT_BUSY, SLOT_DROPPED, SLOT_DONE };

struct client {
	struct control_server *server;
	pthread_t thread;
	enum slot_state state;
	bool late; /* BUSY when MAX_CLIENTS others were already */
	bool heartbeat; /* BUSY with a command that may take long */
	long long since_ms; /* IDLE: since when; BUSY: the last sign of life */
	pthread_mutex_t sending; /* one line at a time: the client's thread, and the accepting one's signs of life */
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
	struct client slots[SLOTS];
};

struct control_request {
	struct control_server *server;
	struct client *client;
	const struct line_reader *reader;
	bool gone; /* a send failed, or the client said so; only the request's thread looks at it */
	bool ending; /* control_fail_ending() */
	int fail_code; /* 0: control_fail() was not called */
	struct bc_error fail;
};

/* ---- what handlers call ---- */

void control_fail(struct control_request *req, int exit_code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	bc_vfail(&req->fail, -EPROTO, fmt, ap);
	va_end(ap);
	req->fail_code = exit_code ? exit_code : EXIT_FAILED;
}

void control_fail_ending(struct control_request *req, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	bc_vfail(&req->fail, -EPROTO, fmt, ap);
	va_end(ap);
	req->fail_code = EXIT_FAILED;
	req->ending = true;
}

/* Has the client asked for the end of its command? It waits for the answer, to tell its user what became of it. */
static bool is_cancelled(const struct control_request *req)
{
	static const char word[] = CANCEL_LINE;
	char next[sizeof(word) - 1];

	if (req->reader->len)
		return req->reader->len >= sizeof(next) && !memcmp(req->reader->buf, word, sizeof(next));
	return recv(req->client->fd, next, sizeof(next), MSG_PEEK | MSG_DONTWAIT) == sizeof(next) &&
	       !memcmp(next, word, sizeof(next));
}

bool control_client_gone(struct control_request *req)
{
	struct pollfd p = { .fd = req->client->fd };

	/* POLLHUP only: a client may well shut down its sending half once its request is out (as `nc -N` does). */
	if (!req->gone && poll(&p, 1, 0) > 0 && (p.revents & (POLLHUP | POLLERR)))
		req->gone = true;
	if (!req->gone && is_cancelled(req))
		req->gone = true;
	return req->gone || atomic_load(&req->server->stopping);
}

static int send_line(struct client *c, const json_t *msg)
{
	int ret;

	pthread_mutex_lock(&c->sending);
	ret = protocol_send(c->fd, msg, SEND_MS);
	pthread_mutex_unlock(&c->sending);
	return ret;
}

int control_progress(struct control_request *req, json_t *p)
{
	json_t *msg = json_pack("{s:o}", "progress", p);

	if (control_client_gone(req)) {
		json_decref(msg);
		return 1;
	}
	if (msg && send_line(req->client, msg))
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

/* IDLE -> BUSY; false: the slot was needed for somebody else, and the client has been told. */
static bool begin_request(struct client *c)
{
	unsigned busy = 0;
	bool ok;

	pthread_mutex_lock(&c->server->lock);
	for (size_t i = 0; i < SLOTS; i++)
		busy += c->server->slots[i].state == SLOT_BUSY;
	ok = c->state == SLOT_IDLE;
	if (ok) {
		c->late = busy >= MAX_CLIENTS;
		c->state = SLOT_BUSY;
		c->heartbeat = false;
		c->since_ms = protocol_now_ms();
	}
	pthread_mutex_unlock(&c->server->lock);
	return ok;
}

static void end_request(struct client *c)
{
	pthread_mutex_lock(&c->server->lock);
	c->state = SLOT_IDLE;
	c->since_ms = protocol_now_ms();
	pthread_mutex_unlock(&c->server->lock);
}

static void set_heartbeat(struct client *c, bool on)
{
	pthread_mutex_lock(&c->server->lock);
	c->heartbeat = on;
	pthread_mutex_unlock(&c->server->lock);
}

static json_t *run_request(struct control_server *s, struct control_request *req, json_t *args)
{
	const char *cmd = json_string_value(json_object_get(args, "cmd"));
	const struct control_handler *h = find_handler(s, cmd);
	json_t *answer, *result = NULL;

	if (!h) {
		control_fail(req, EXIT_FAILED, "unknown command '%.60s'; is the daemon of another version?",
			     cmd ? cmd : "");
	} else if (req->client->late && !h->always) {
		control_fail(req, EXIT_FAILED, "%s", TOO_MANY);
	} else if (control_client_gone(req)) {
		control_fail(req, EXIT_INTERRUPTED, "interrupted; the request was not begun");
	} else {
		set_heartbeat(req->client, !h->quick);
		result = h->run(req, args, s->ctx);
		set_heartbeat(req->client, false);
		if (!result && !req->fail_code)
			control_fail(req, EXIT_FAILED, "%s: out of memory", cmd);
	}
	if (!result) {
		answer = refusal(req->fail_code, req->fail.msg);
		if (answer && req->ending)
			json_object_set_new(answer, "ending", json_true());
		return answer;
	}
	answer = json_pack("{s:b}", "ok", 1); /* first, for people who read it */
	if (answer)
		json_object_update(answer, result);
	json_decref(result);
	return answer;
}

/* The answer to one line; NULL: there is none to give. *more: whether another line may follow it. */
static json_t *answer_line(struct client *c, struct control_request *req, char *line, bool *more)
{
	json_t *args, *answer;
	char why[160];

	args = protocol_parse(line, why, sizeof(why));
	free(line);
	if (!args) {
		*more = false;
		control_fail(req, EXIT_FAILED, "malformed request: %s", why);
		return refusal(req->fail_code, req->fail.msg);
	}
	/* The command it was meant for has ended by itself. */
	answer = json_object_get(args, "cancel") ? NULL : run_request(c->server, req, args);
	*more = answer || json_object_get(args, "cancel");
	json_decref(args);
	return answer;
}

/* Reads and answers one request; false when the connection is to be closed. */
static bool serve_one(struct client *c, struct line_reader *reader)
{
	struct control_request req = { .server = c->server, .client = c, .reader = reader };
	long long deadline = protocol_now_ms() + IDLE_MS;
	json_t *answer;
	bool more = false;
	char *line = NULL;
	int ret;

	while ((ret = line_reader_next(reader, &line)) == -EAGAIN) {
		long long left = deadline - protocol_now_ms();

		if (left <= 0 || atomic_load(&c->server->stopping))
			return false;
		poll(&(struct pollfd){ .fd = c->fd, .events = POLLIN }, 1, (int)left);
	}
	if (ret && ret != -EMSGSIZE)
		return false;
	if (!begin_request(c)) {
		free(line);
		return false;
	}
	if (ret) {
		control_fail(&req, EXIT_FAILED, "the request is longer than %u bytes", REQUEST_MAX);
		answer = refusal(req.fail_code, req.fail.msg);
	} else {
		answer = answer_line(c, &req, line, &more);
	}
	if (answer && send_line(c, answer))
		more = false;
	json_decref(answer);
	end_request(c);
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

static struct client *free_slot_locked(struct control_server *s)
{
	for (size_t i = 0; i < SLOTS; i++) {
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

/* No waiting: the accepting thread serves everyone. A line this short goes out whole or not at all. */
static void say_too_many(int fd)
{
	char text[] = TOO_MANY;
	json_t *answer = refusal(EXIT_FAILED, text);

	if (answer)
		protocol_send(fd, answer, 0);
	json_decref(answer);
}

/* Tells the client that has been idle the longest to go; its thread ends in a moment. */
static void drop_idle_locked(struct control_server *s)
{
	long long now = protocol_now_ms();
	struct client *oldest = NULL;

	for (size_t i = 0; i < SLOTS; i++) {
		struct client *c = &s->slots[i];

		if (c->state == SLOT_IDLE && now - c->since_ms >= DROP_IDLE_MS &&
		    (!oldest || c->since_ms < oldest->since_ms))
			oldest = c;
	}
	if (!oldest)
		return;
	oldest->state = SLOT_DROPPED;
	say_too_many(oldest->fd);
	shutdown(oldest->fd, SHUT_RD);
}

static struct client *wait_for_slot_locked(struct control_server *s)
{
	struct timespec until = deadline_us(FULL_MS * 1000u);
	struct client *c = free_slot_locked(s);

	if (!c)
		drop_idle_locked(s);
	while (!(c = free_slot_locked(s)) && !pthread_cond_timedwait(&s->slot_done, &s->lock, &until))
		;
	return c;
}

static void start_client(struct control_server *s, int fd)
{
	struct client *c;
	bool started = false;

	pthread_mutex_lock(&s->lock);
	c = wait_for_slot_locked(s);
	if (c) {
		c->server = s;
		c->fd = fd;
		c->state = SLOT_IDLE;
		c->since_ms = protocol_now_ms();
		started = !pthread_create(&c->thread, NULL, client_main, c);
		if (!started) {
			c->thread = 0;
			c->state = SLOT_FREE;
		}
	}
	pthread_mutex_unlock(&s->lock);
	if (!started) {
		say_too_many(fd);
		close(fd);
	}
}

/* Signs of life for those whose command takes long; returns how many milliseconds later to come again, -1: not at all.
 */
static int send_heartbeats(struct control_server *s)
{
	json_t *msg = json_pack("{s:{s:b}}", "progress", HEARTBEAT_KEY, 1);
	long long now = protocol_now_ms();
	int again = -1;

	pthread_mutex_lock(&s->lock);
	for (size_t i = 0; i < SLOTS; i++) {
		struct client *c = &s->slots[i];

		if (c->state == SLOT_FREE)
			continue;
		again = HEARTBEAT_MS;
		if (c->state != SLOT_BUSY || !c->heartbeat || now - c->since_ms < HEARTBEAT_MS)
			continue;
		/* Else its own thread is sending, which is a sign of life, too. */
		if (msg && !pthread_mutex_trylock(&c->sending)) {
			protocol_send(c->fd, msg, 0);
			pthread_mutex_unlock(&c->sending);
		}
		c->since_ms = now;
	}
	pthread_mutex_unlock(&s->lock);
	json_decref(msg);
	return again;
}

static void *accept_main(void *arg)
{
	struct control_server *s = arg;

	for (;;) {
		struct pollfd p[2] = { { .fd = s->listen_fd, .events = POLLIN },
				       { .fd = s->wake_fd, .events = POLLIN } };
		int fd, wait_ms = send_heartbeats(s);

		if (poll(p, 2, wait_ms) < 0 && errno != EINTR)
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
	if (listen(s->listen_fd, SLOTS) < 0)
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
	for (size_t i = 0; i < SLOTS; i++)
		pthread_mutex_destroy(&s->slots[i].sending);
	pthread_cond_destroy(&s->slot_done);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

int control_server_start(const char *dir, const struct control_handler *handlers, size_t n, void *ctx,
			 struct control_server **out, struct bc_error *err)
{
	struct control_server *s = calloc(1, sizeof(*s));
	pthread_condattr_t attr;
	int ret;

	if (!s)
		return bc_fail(err, -ENOMEM, "out of memory");
	s->handlers = handlers;
	s->nhandlers = n;
	s->ctx = ctx;
	s->dirfd = s->listen_fd = s->wake_fd = -1;
	pthread_mutex_init(&s->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&s->slot_done, &attr);
	pthread_condattr_destroy(&attr);
	for (size_t i = 0; i < SLOTS; i++)
		pthread_mutex_init(&s->slots[i].sending, NULL);
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
	for (size_t i = 0; i < SLOTS; i++)
		/* The reading half only: an answer under way still gets through. */
		if (s->slots[i].state == SLOT_IDLE || s->slots[i].state == SLOT_BUSY)
			shutdown(s->slots[i].fd, SHUT_RD);
	pthread_mutex_unlock(&s->lock);
	for (size_t i = 0; i < SLOTS; i++)
		/* No lock: only the acceptor made slots non-free, and it has ended. All others turn to DONE and are
		 * joined. */
		if (s->slots[i].thread)
			pthread_join(s->slots[i].thread, NULL);
	destroy(s);
}
