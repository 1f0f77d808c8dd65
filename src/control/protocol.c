/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * protocol.c - lines of JSON over a stream socket. No state of its own; any thread, see protocol.h.
 *
 * Sockets are used without blocking and with deadlines, so that a peer that stops half-way through a line, or never
 * reads, costs a bounded time.
 */
#include "control/protocol.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "blkcache/control.h"

#define READ_STEP 16384u

void protocol_address(struct sockaddr_un *addr, int dirfd)
{
	memset(addr, 0, sizeof(*addr));
	addr->sun_family = AF_UNIX;
	snprintf(addr->sun_path, sizeof(addr->sun_path), "/proc/self/fd/%d/" CONTROL_SOCKET, dirfd);
}

long long protocol_now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (long long)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

void line_reader_init(struct line_reader *r, int fd, size_t max)
{
	*r = (struct line_reader){ .fd = fd, .max = max };
}

void line_reader_free(struct line_reader *r)
{
	free(r->buf);
	r->buf = NULL;
}

static int take_line(struct line_reader *r, char *newline, char **line)
{
	size_t n = (size_t)(newline - r->buf);

	*line = malloc(n + 1);
	if (!*line)
		return -ENOMEM;
	memcpy(*line, r->buf, n);
	(*line)[n] = '\0';
	r->len -= n + 1;
	r->scanned = 0;
	memmove(r->buf, newline + 1, r->len);
	return 0;
}

int line_reader_next(struct line_reader *r, char **line)
{
	for (;;) {
		char *newline = r->len > r->scanned ? memchr(r->buf + r->scanned, '\n', r->len - r->scanned) : NULL;
		ssize_t n;

		if (newline)
			return (size_t)(newline - r->buf) > r->max ? -EMSGSIZE : take_line(r, newline, line);
		r->scanned = r->len;
		if (r->len > r->max)
			return -EMSGSIZE;
		if (r->size - r->len < READ_STEP) {
			/* Doubling keeps a long line linear; it is bounded by max. */
			size_t size = r->size ? r->size * 2 : READ_STEP * 2;
			char *buf = realloc(r->buf, size);

			if (!buf)
				return -ENOMEM;
			r->buf = buf;
			r->size = size;
		}
		n = recv(r->fd, r->buf + r->len, r->size - r->len, MSG_DONTWAIT);
		if (n == 0)
			return -EPIPE;
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EWOULDBLOCK || errno == EAGAIN ? -EAGAIN
			       : errno == ECONNRESET                   ? -EPIPE
								       : -errno;
		r->len += (size_t)n;
	}
}

/* ---- texts that are not UTF-8 ---- */

static int hex_digit(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* {"hex": "6162"} as a string of those bytes, NULL if it is something else. A zero byte would end the text early. */
static json_t *from_hex(const json_t *o)
{
	const char *hex = json_object_size(o) == 1 ? json_string_value(json_object_get(o, "hex")) : NULL;
	size_t n = hex ? strlen(hex) / 2 : 0;
	char *bytes = n && strlen(hex) == 2 * n ? malloc(n) : NULL;
	json_t *s = NULL;

	for (size_t i = 0; bytes && i < n; i++) {
		int high = hex_digit(hex[2 * i]), low = hex_digit(hex[2 * i + 1]);

		if (high < 0 || low < 0 || !(high | low)) {
			free(bytes);
			return NULL;
		}
		bytes[i] = (char)(high << 4 | low);
	}
	if (bytes)
		s = json_stringn_nocheck(bytes, n);
	free(bytes);
	return s;
}

static json_t *to_hex(const char *text, size_t len)
{
	char *hex = malloc(2 * len + 1);
	json_t *o = NULL;

	for (size_t i = 0; hex && i < len; i++)
		snprintf(hex + 2 * i, 3, "%02x", (unsigned char)text[i]);
	if (hex)
		o = json_pack("{s:s}", "hex", hex);
	free(hex);
	return o;
}

static json_t *convert_string(const json_t *s, json_t *(*convert)(const char *text, size_t len))
{
	json_t *plain = json_stringn(json_string_value(s), json_string_length(s));

	return plain ? plain : convert(json_string_value(s), json_string_length(s));
}

json_t *protocol_convert(const json_t *v, json_t *(*convert)(const char *text, size_t len))
{
	json_t *out, *e;
	const char *key;
	size_t i;

	if (json_is_string(v))
		return convert_string(v, convert);
	if (json_is_array(v)) {
		out = json_array();
		json_array_foreach(v, i, e) {
			if (json_array_append_new(out, protocol_convert(e, convert)))
				goto failed;
		}
		return out;
	}
	if (!json_is_object(v))
		return json_deep_copy(v);
	out = json_object();
	json_object_foreach((json_t *)v, key, e) {
		if (json_object_set_new(out, key, protocol_convert(e, convert)))
			goto failed;
	}
	return out;
failed:
	json_decref(out);
	return NULL;
}

/* Puts the bytes back, in place. */
static void unpack(json_t *v)
{
	json_t *e, *s;
	const char *key;
	size_t i;

	json_array_foreach(v, i, e) {
		s = from_hex(e);
		if (s)
			json_array_set_new(v, i, s);
		else
			unpack(e);
	}
	json_object_foreach(v, key, e) {
		s = from_hex(e);
		if (s)
			json_object_set_new(v, key, s);
		else
			unpack(e);
	}
}

json_t *protocol_parse(const char *line, char *why, size_t len)
{
	json_error_t error;
	/* jansson bounds nesting itself (2048 levels). Duplicate keys would let two readers see two messages. */
	json_t *msg = json_loads(line, JSON_REJECT_DUPLICATES, &error);

	if (msg && json_is_object(msg)) {
		unpack(msg);
		return msg;
	}
	snprintf(why, len, "%s", msg ? "not a JSON object" : error.text);
	json_decref(msg);
	return NULL;
}

char *protocol_text(const json_t *msg)
{
	char *text = json_dumps(msg, JSON_COMPACT);
	json_t *packed;

	if (text)
		return text;
	packed = protocol_convert(msg, to_hex);
	text = packed ? json_dumps(packed, JSON_COMPACT) : NULL;
	json_decref(packed);
	return text;
}

static int send_all(int fd, const char *data, size_t len, int timeout_ms)
{
	long long deadline = protocol_now_ms() + timeout_ms;

	while (len) {
		ssize_t n = send(fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);
		long long left;

		if (n >= 0) {
			data += n;
			len -= (size_t)n;
			continue;
		}
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN && errno != EWOULDBLOCK)
			return -errno;
		left = deadline - protocol_now_ms();
		if (left <= 0)
			return -EAGAIN;
		poll(&(struct pollfd){ .fd = fd, .events = POLLOUT }, 1, (int)left);
	}
	return 0;
}

int protocol_send(int fd, const json_t *msg, int timeout_ms)
{
	char *text = protocol_text(msg);
	size_t len;
	int ret;

	if (!text)
		return -ENOMEM;
	len = strlen(text);
	text[len] = '\n'; /* in the place of the NUL: one send, one line */
	ret = send_all(fd, text, len + 1, timeout_ms);
	free(text);
	return ret;
}
