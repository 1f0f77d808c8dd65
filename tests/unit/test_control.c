/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_control.c - the control socket, both ends in one process: what cmd/ relies on, and that no client can harm the
 * daemon.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "blkcache/control.h"
#include "blkcache/journal.h"

static char dir[128];
static struct control_server *server;
static atomic_int interrupted, started, counted;

static json_t *run_echo(struct control_request *req, json_t *args, void *ctx)
{
	(void)req;
	(void)ctx;
	return json_pack("{s:O}", "text", json_object_get(args, "text"));
}

static json_t *run_refuse(struct control_request *req, json_t *args, void *ctx)
{
	(void)args;
	(void)ctx;
	control_fail(req, 3, "no: %s", "because");
	return NULL;
}

/* Reports progress until the client has gone; "n" bounds it. */
static json_t *run_work(struct control_request *req, json_t *args, void *ctx)
{
	json_int_t n = json_integer_value(json_object_get(args, "n"));

	(void)ctx;
	atomic_fetch_add(&started, 1);
	for (json_int_t i = 0; i < n; i++) {
		if (control_progress(req, json_pack("{s:I}", "i", i))) {
			atomic_fetch_add(&interrupted, 1);
			control_fail(req, 1, "interrupted");
			return NULL;
		}
		if (n > 100)
			usleep(2000);
	}
	return json_pack("{s:I}", "n", n);
}

/* Says nothing, only looks whether the client is still there. */
static json_t *run_quiet(struct control_request *req, json_t *args, void *ctx)
{
	(void)args;
	(void)ctx;
	atomic_fetch_add(&started, 1);
	while (!control_client_gone(req))
		usleep(2000);
	atomic_fetch_add(&interrupted, 1);
	return json_pack("{s:b}", "was_interrupted", 1);
}

/* Looks at nothing for a while. */
static json_t *run_deaf(struct control_request *req, json_t *args, void *ctx)
{
	(void)req;
	(void)ctx;
	atomic_fetch_add(&started, 1);
	usleep((useconds_t)json_integer_value(json_object_get(args, "ms")) * 1000);
	return json_object();
}

static json_t *run_count(struct control_request *req, json_t *args, void *ctx)
{
	(void)req;
	(void)args;
	(void)ctx;
	atomic_fetch_add(&counted, 1);
	return json_object();
}

static const struct control_handler handlers[] = {
	{ "echo", run_echo, .always = true },
	{ "refuse", run_refuse },
	{ "work", run_work },
	{ "quiet", run_quiet },
	{ "deaf", run_deaf },
	{ "stuck", run_deaf, .quick = true },
	{ "count", run_count },
};

static void start_in(const char *path)
{
	struct bc_error err = { 0 };

	cr_assert_eq(control_server_start(path, handlers, sizeof(handlers) / sizeof(handlers[0]), NULL, &server, &err),
		     0, "%s", err.msg);
}

static void setup(void)
{
	const char *tmp = getenv("TMPDIR");

	snprintf(dir, sizeof(dir), "%s/test_control.XXXXXX", tmp ? tmp : "/tmp");
	cr_assert(mkdtemp(dir));
	start_in(dir);
}

static void remove_tree(const char *path)
{
	char cmd[6000];

	snprintf(cmd, sizeof(cmd), "rm -rf -- '%s'", path);
	cr_assert_eq(system(cmd), 0);
}

static void teardown(void)
{
	control_server_stop(server);
	remove_tree(dir);
}

TestSuite(control, .init = setup, .fini = teardown, .timeout = 20);

static int raw_connect(void)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%.90s/control", dir);
	cr_assert_eq(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	return fd;
}

/* Everything until the server closes the connection. */
static size_t raw_read_all(int fd, char *buf, size_t size)
{
	size_t len = 0;
	ssize_t n;

	while (len < size - 1 && (n = recv(fd, buf + len, size - 1 - len, 0)) > 0)
		len += (size_t)n;
	buf[len] = '\0';
	return len;
}

static void assert_alive(void)
{
	struct bc_error err = { 0 };
	json_t *answer = control_call(dir, json_pack("{s:s,s:s}", "cmd", "echo", "text", "alive"), NULL, NULL, &err);

	cr_assert(answer, "%s", err.msg);
	cr_assert_str_eq(json_string_value(json_object_get(answer, "text")), "alive");
	json_decref(answer);
}

static void wait_for(atomic_int *what, int value)
{
	for (int i = 0; i < 2500 && atomic_load(what) < value; i++)
		usleep(2000);
	cr_assert_geq(atomic_load(what), value);
}

Test(control, round_trip_keeps_odd_characters)
{
	const char *text = "new\nline, quote \", tab\t, \xc3\xa4, \x01";
	struct bc_error err = { 0 };
	json_t *answer = control_call(dir, json_pack("{s:s,s:s}", "cmd", "echo", "text", text), NULL, NULL, &err);

	cr_assert(answer, "%s", err.msg);
	cr_assert(json_is_true(json_object_get(answer, "ok")));
	cr_assert_str_eq(json_string_value(json_object_get(answer, "text")), text);
	json_decref(answer);
}

Test(control, refusal_carries_text_and_exit_code)
{
	struct bc_error err = { 0 };
	json_t *answer = control_call(dir, json_pack("{s:s}", "cmd", "refuse"), NULL, NULL, &err);

	cr_assert(answer, "%s", err.msg);
	cr_assert(json_is_false(json_object_get(answer, "ok")));
	cr_assert_str_eq(json_string_value(json_object_get(answer, "error")), "no: because");
	cr_assert_eq(json_integer_value(json_object_get(answer, "code")), 3);
	json_decref(answer);
	answer = control_call(dir, json_pack("{s:s}", "cmd", "nonsense"), NULL, NULL, &err);
	cr_assert(answer && json_is_false(json_object_get(answer, "ok")));
	cr_assert(strstr(json_string_value(json_object_get(answer, "error")), "nonsense"));
	json_decref(answer);
}

Test(control, socket_is_private_and_goes_away)
{
	char path[160];
	struct stat st;

	snprintf(path, sizeof(path), "%s/control", dir);
	cr_assert_eq(lstat(path, &st), 0);
	cr_assert(S_ISSOCK(st.st_mode));
	cr_assert_eq(st.st_mode & 07777, 0600);
	control_server_stop(server);
	server = NULL;
	cr_assert_neq(lstat(path, &st), 0);
}

Test(control, works_below_a_path_longer_than_sun_path)
{
	char deep[4000];
	struct bc_error err = { 0 };
	struct control_server *first = server;
	json_t *answer;
	size_t len = (size_t)snprintf(deep, sizeof(deep), "%s", dir);

	for (int i = 0; i < 10; i++) {
		len += (size_t)snprintf(deep + len, sizeof(deep) - len, "/%s",
					"a-folder-with-a-rather-long-name-in-it");
		cr_assert_eq(mkdir(deep, 0700), 0);
	}
	cr_assert_gt(len, 300);
	start_in(deep);
	answer = control_call(deep, json_pack("{s:s,s:i}", "cmd", "echo", "text", 5), NULL, NULL, &err);
	cr_assert(answer, "%s", err.msg);
	cr_assert_eq(json_integer_value(json_object_get(answer, "text")), 5);
	json_decref(answer);
	control_server_stop(server);
	server = first;
}

Test(control, client_tells_apart_why_nobody_answers)
{
	struct bc_error err = { 0 };
	char path[300], file[340];
	int fd;

	snprintf(path, sizeof(path), "%s/missing", dir);
	cr_assert_null(control_call(path, json_pack("{s:s}", "cmd", "echo"), NULL, NULL, &err));
	cr_assert_eq(err.code, -ENOENT);
	cr_assert(strstr(err.msg, path));

	cr_assert_eq(mkdir(path, 0700), 0);
	cr_assert_null(control_call(path, json_pack("{s:s}", "cmd", "echo"), NULL, NULL, &err));
	cr_assert_eq(err.code, -ENOENT);
	cr_assert(strstr(err.msg, "no cache"));

	snprintf(file, sizeof(file), "%s/" JOURNAL_FILE, path);
	fd = open(file, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	cr_assert_geq(fd, 0);
	close(fd);
	cr_assert_null(control_call(path, json_pack("{s:s}", "cmd", "echo"), NULL, NULL, &err));
	cr_assert_eq(err.code, -ECONNREFUSED);

	/* A file is no folder. */
	cr_assert_null(control_call(file, json_pack("{s:s}", "cmd", "echo"), NULL, NULL, &err));
	cr_assert_eq(err.code, -ENOENT);
}

Test(control, stale_socket_is_refused_then_replaced)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct bc_error err = { 0 };
	char sub[160], file[200];
	struct control_server *first = server;
	int fd;

	snprintf(sub, sizeof(sub), "%s/c", dir);
	cr_assert_eq(mkdir(sub, 0700), 0);
	snprintf(file, sizeof(file), "%s/" JOURNAL_FILE, sub);
	close(open(file, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
	/* What a daemon that was killed leaves behind: a bound socket without a listener. */
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%.90s/control", sub);
	cr_assert_eq(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	close(fd);
	cr_assert_null(control_call(sub, json_pack("{s:s}", "cmd", "echo"), NULL, NULL, &err));
	cr_assert_eq(err.code, -ECONNREFUSED);
	start_in(sub);
	json_decref(control_call(sub, json_pack("{s:s}", "cmd", "echo"), NULL, NULL, &err));
	control_server_stop(server);
	server = first;
}

Test(control, garbage_is_answered_and_harms_nobody)
{
	static const char *const bad[] = { "garbage\n", "{\"cmd\":\n",        "[]\n", "\n", "{\"cmd\":5}\n",
					   "\"x\"\n",   "{\"a\":1,\"a\":2}\n" };
	char buf[2000];

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		int fd = raw_connect();

		cr_assert_gt(send(fd, bad[i], strlen(bad[i]), MSG_NOSIGNAL), 0);
		shutdown(fd, SHUT_WR);
		raw_read_all(fd, buf, sizeof(buf));
		cr_assert(strstr(buf, "\"ok\":false"), "%s was answered by: %s", bad[i], buf);
		close(fd);
	}
	/* A NUL inside, binary, and deep nesting. */
	for (int i = 0; i < 2; i++) {
		char text[5000];
		int fd = raw_connect();

		memset(text, i ? '[' : '\0', sizeof(text));
		text[sizeof(text) - 1] = '\n';
		cr_assert_gt(send(fd, text, sizeof(text), MSG_NOSIGNAL), 0);
		raw_read_all(fd, buf, sizeof(buf));
		cr_assert(strstr(buf, "\"ok\":false"));
		close(fd);
	}
	assert_alive();
}

Test(control, request_in_pieces_and_several_on_one_connection)
{
	static const char text[] = "{\"cmd\":\"echo\",\"text\":1}\n{\"cmd\":\"echo\",\"text\":2}\n";
	char buf[2000];
	int fd = raw_connect();

	for (size_t i = 0; i < sizeof(text) - 1; i++)
		cr_assert_eq(send(fd, text + i, 1, MSG_NOSIGNAL), 1);
	shutdown(fd, SHUT_WR);
	raw_read_all(fd, buf, sizeof(buf));
	cr_assert_str_eq(buf, "{\"ok\":true,\"text\":1}\n{\"ok\":true,\"text\":2}\n");
	close(fd);
}

Test(control, big_messages_pass_and_bigger_ones_are_refused)
{
	size_t n = 1000000;
	char *text = malloc(3 * n), buf[2000];
	struct bc_error err = { 0 };
	size_t sent = 0;
	json_t *answer;
	ssize_t got;
	int fd;

	memset(text, 'x', 3 * n);
	text[n] = '\0';
	answer = control_call(dir, json_pack("{s:s,s:s}", "cmd", "echo", "text", text), NULL, NULL, &err);
	cr_assert(answer, "%s", err.msg);
	cr_assert_eq(json_string_length(json_object_get(answer, "text")), n);
	json_decref(answer);

	text[n] = 'x';
	fd = raw_connect();
	while (sent < 3 * n && (got = send(fd, text + sent, 3 * n - sent, MSG_NOSIGNAL)) > 0)
		sent += (size_t)got;
	cr_assert_lt(sent, 3 * n, "the server took a line without end");
	raw_read_all(fd, buf, sizeof(buf));
	cr_assert(strstr(buf, "longer than"), "%s", buf);
	close(fd);
	free(text);
	assert_alive();
}

static int count_progress(json_t *p, void *ctx)
{
	if (p)
		cr_assert_eq(json_integer_value(json_object_get(p, "i")), (*(int *)ctx)++);
	return 0;
}

static int give_up_at_3(json_t *p, void *ctx)
{
	(void)ctx;
	return p && json_integer_value(json_object_get(p, "i")) >= 3;
}

Test(control, progress_arrives_in_order_before_the_answer)
{
	struct bc_error err = { 0 };
	int n = 0;
	json_t *answer = control_call(dir, json_pack("{s:s,s:i}", "cmd", "work", "n", 50), count_progress, &n, &err);

	cr_assert(answer, "%s", err.msg);
	cr_assert_eq(n, 50);
	cr_assert_eq(json_integer_value(json_object_get(answer, "n")), 50);
	json_decref(answer);
	/* A client that does not care gets the answer all the same. */
	answer = control_call(dir, json_pack("{s:s,s:i}", "cmd", "work", "n", 50), NULL, NULL, &err);
	cr_assert(answer, "%s", err.msg);
	json_decref(answer);
}

Test(control, client_that_gives_up_interrupts_the_command_and_hears_of_it)
{
	struct bc_error err = { 0 };
	json_t *answer =
		control_call(dir, json_pack("{s:s,s:i}", "cmd", "work", "n", 1000000), give_up_at_3, NULL, &err);

	cr_assert(answer, "%s", err.msg);
	cr_assert_str_eq(json_string_value(json_object_get(answer, "error")), "interrupted");
	json_decref(answer);
	wait_for(&interrupted, 1);
	assert_alive();
}

static int give_up_at_once(json_t *p, void *ctx)
{
	(void)p;
	(void)ctx;
	return 1;
}

/* A handler that never looks: the client does not wait for it, and says what it knows. */
Test(control, client_that_gives_up_does_not_wait_for_ever)
{
	struct bc_error err = { 0 };

	cr_assert_null(
		control_call(dir, json_pack("{s:s,s:i}", "cmd", "deaf", "ms", 8000), give_up_at_once, NULL, &err));
	cr_assert_eq(err.code, -EINTR);
	cr_assert(strstr(err.msg, "has not answered to that yet"), "%s", err.msg);
}

/* The request waits in the socket while nobody reads it; its client goes; then the daemon comes back to it. */
Test(control, request_of_a_client_that_has_gone_is_not_begun)
{
	static const char text[] = "{\"cmd\":\"deaf\",\"ms\":300}\n{\"cmd\":\"count\"}\n";
	int fd = raw_connect();

	cr_assert_gt(send(fd, text, sizeof(text) - 1, MSG_NOSIGNAL), 0);
	wait_for(&started, 1); /* the first one runs, the second one is queued behind it */
	close(fd);
	usleep(600000);
	cr_assert_eq(atomic_load(&counted), 0);
	/* With its client there it is. */
	fd = raw_connect();
	cr_assert_gt(send(fd, text, sizeof(text) - 1, MSG_NOSIGNAL), 0);
	wait_for(&counted, 1);
	close(fd);
}

Test(control, cancelled_before_it_began_is_answered_and_not_begun)
{
	static const char text[] = "{\"cmd\":\"deaf\",\"ms\":300}\n{\"cmd\":\"count\"}\n{\"cancel\":true}\n";
	char buf[2000];
	int fd = raw_connect();

	cr_assert_gt(send(fd, text, sizeof(text) - 1, MSG_NOSIGNAL), 0);
	shutdown(fd, SHUT_WR);
	raw_read_all(fd, buf, sizeof(buf));
	cr_assert(strstr(buf, "not begun"), "%s", buf);
	cr_assert_eq(atomic_load(&counted), 0);
	close(fd);
}

/* Work that is silent for longer than a client's patience: it is told that the daemon lives. */
Test(control, signs_of_life_keep_a_client_waiting, .timeout = 40)
{
	struct bc_error err = { 0 };
	json_t *answer = control_call(dir, json_pack("{s:s,s:i}", "cmd", "deaf", "ms", CONTROL_PATIENCE_MS + 2000),
				      NULL, NULL, &err);

	cr_assert(answer, "%s", err.msg);
	json_decref(answer);
}

/* What should answer at once and does not is given up, with the name of the process. */
Test(control, silence_is_given_up, .timeout = 40)
{
	struct bc_error err = { 0 };
	char pid[32];

	snprintf(pid, sizeof(pid), "process %d ", (int)getpid());
	cr_assert_null(control_call(dir, json_pack("{s:s,s:i}", "cmd", "stuck", "ms", CONTROL_PATIENCE_MS + 3000), NULL,
				    NULL, &err));
	cr_assert_eq(err.code, -ETIMEDOUT);
	cr_assert(strstr(err.msg, pid), "%s", err.msg);
}

Test(control, texts_of_any_bytes_travel)
{
	static const char raw[] = "stra\337e \xff\x80 \xc3\xa4";
	struct bc_error err = { 0 };
	json_t *answer =
		control_call(dir, json_pack("{s:s,s:[o,s]}", "cmd", "echo", "text", json_string_nocheck(raw), "x"),
			     NULL, NULL, &err);
	json_t *shown, *list;
	char *out;

	cr_assert(answer, "%s", err.msg);
	list = json_object_get(answer, "text");
	cr_assert_str_eq(json_string_value(json_array_get(list, 0)), raw);
	shown = control_printable(answer);
	out = json_dumps(shown, 0);
	cr_assert(out, "not valid JSON");
	cr_assert(strstr(out, "stra\xef\xbf\xbd"
			      "e"),
		  "%s", out);
	free(out);
	json_decref(shown);
	json_decref(answer);
}

Test(control, client_that_vanishes_is_noticed_by_a_silent_command)
{
	int fd = raw_connect();
	static const char text[] = "{\"cmd\":\"quiet\"}\n";

	cr_assert_gt(send(fd, text, sizeof(text) - 1, MSG_NOSIGNAL), 0);
	wait_for(&started, 1);
	/* Half a close is no good-bye: `echo ... | nc -N` does it. */
	shutdown(fd, SHUT_WR);
	usleep(50000);
	cr_assert_eq(atomic_load(&interrupted), 0);
	close(fd);
	wait_for(&interrupted, 1);
	assert_alive();
}

/* Connections that ask for nothing keep nobody out: the oldest has to go. */
Test(control, idle_clients_make_room)
{
	int fds[90];
	char buf[300];
	ssize_t n;

	for (int i = 0; i < 72; i++)
		fds[i] = raw_connect();
	usleep(400000);
	for (int i = 72; i < 90; i++) {
		fds[i] = raw_connect();
		assert_alive();
	}
	n = recv(fds[0], buf, sizeof(buf) - 1, MSG_DONTWAIT);
	buf[n > 0 ? n : 0] = '\0';
	cr_assert(strstr(buf, "too many"), "%s", buf);
	for (int i = 0; i < 90; i++)
		close(fds[i]);
}

/* With as many commands under way as may be, ordinary ones are refused, and those that show and end things are not. */
Test(control, busy_clients_leave_room_for_what_matters)
{
	static const char text[] = "{\"cmd\":\"quiet\"}\n";
	struct bc_error err = { 0 };
	json_t *answer;
	int fds[64];

	for (int i = 0; i < 64; i++) {
		fds[i] = raw_connect();
		cr_assert_gt(send(fds[i], text, sizeof(text) - 1, MSG_NOSIGNAL), 0);
	}
	wait_for(&started, 64);
	answer = control_call(dir, json_pack("{s:s,s:i}", "cmd", "work", "n", 1), NULL, NULL, &err);
	cr_assert(answer && json_is_false(json_object_get(answer, "ok")));
	cr_assert(strstr(json_string_value(json_object_get(answer, "error")), "too many"));
	json_decref(answer);
	for (int i = 0; i < 20; i++)
		assert_alive();
	for (int i = 0; i < 64; i++)
		close(fds[i]);
	wait_for(&interrupted, 64);
	answer = control_call(dir, json_pack("{s:s,s:i}", "cmd", "work", "n", 1), NULL, NULL, &err);
	cr_assert(answer && json_is_true(json_object_get(answer, "ok")), "the slots of closed clients are not reused");
	json_decref(answer);
}

static void *call_quiet(void *arg)
{
	struct bc_error err = { 0 };

	(void)arg;
	return control_call(dir, json_pack("{s:s}", "cmd", "quiet"), NULL, NULL, &err);
}

Test(control, stop_interrupts_handlers_but_delivers_their_answers)
{
	pthread_t thread;
	void *answer;
	int idle = raw_connect();

	pthread_create(&thread, NULL, call_quiet, NULL);
	wait_for(&started, 1);
	control_server_stop(server);
	server = NULL;
	pthread_join(thread, &answer);
	cr_assert(answer, "the answer got lost");
	cr_assert(json_is_true(json_object_get(answer, "was_interrupted")));
	json_decref(answer);
	close(idle);
}

static void *hammer(void *arg)
{
	for (int i = 0; i < 100; i++) {
		struct bc_error err = { 0 };
		json_t *answer = control_call(dir, json_pack("{s:s,s:i}", "cmd", "echo", "text", i), NULL, NULL, &err);

		if (json_integer_value(json_object_get(answer, "text")) != i)
			atomic_fetch_add((atomic_int *)arg, 1);
		json_decref(answer);
	}
	return NULL;
}

Test(control, many_clients_at_once)
{
	pthread_t thread[8];
	atomic_int wrong = 0;

	for (int i = 0; i < 8; i++)
		pthread_create(&thread[i], NULL, hammer, &wrong);
	for (int i = 0; i < 8; i++)
		pthread_join(thread[i], NULL);
	cr_assert_eq(wrong, 0);
}
