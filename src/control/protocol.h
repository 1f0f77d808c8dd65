/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * protocol.h - what both ends of the control socket share: its address and one JSON object per line. Only src/control
 * includes this.
 *
 * A `struct line_reader` belongs to one thread. Descriptors stay the caller's.
 */
#ifndef CONTROL_PROTOCOL_H
#define CONTROL_PROTOCOL_H

#include <jansson.h>
#include <stddef.h>
#include <sys/un.h>

#define REQUEST_MAX (1u << 20) /* bytes of a request line */
#define ANSWER_MAX (64u << 20) /* bytes of an answer line: statistics of CACHE_MAX_VOLUMES volumes take about 2 MiB */

/* A sign of life: {"progress": {HEARTBEAT_KEY: true}}, sent while a command runs and has nothing else to say. */
#define HEARTBEAT_KEY "alive"

/* What a client sends that wants its command to end, and then waits for the answer. */
#define CANCEL_LINE "{\"cancel\":true}\n"

/*
 * The address of DIR/control, given an open descriptor of DIR. Through /proc, since a path may be longer than sun_path
 * and since the folder that was opened is then the one that is used.
 */
void protocol_address(struct sockaddr_un *addr, int dirfd);

struct line_reader {
	int fd;
	size_t max; /* longest line accepted */
	char *buf;
	size_t len, size; /* bytes held, bytes allocated */
	size_t scanned; /* bytes known to hold no newline */
};

void line_reader_init(struct line_reader *r, int fd, size_t max);
void line_reader_free(struct line_reader *r);

/*
 * Takes the next line, without its newline, as a NUL-terminated string that the caller frees. Never blocks. 0; -EAGAIN
 * when there is no whole line yet (poll for POLLIN); -EPIPE at the end; -EMSGSIZE when the line is too long; -errno.
 */
int line_reader_next(struct line_reader *r, char **line);

/* Parses one line into an object, its {"hex": ...} made strings again; NULL with `why` filled. */
json_t *protocol_parse(const char *line, char *why, size_t len);

/* One line without its newline, to be freed; strings that are not UTF-8 as {"hex": ...}. */
char *protocol_text(const json_t *msg);

/* A copy, in which each string that is not UTF-8 is what convert() makes of it. NULL: out of memory. */
json_t *protocol_convert(const json_t *v, json_t *(*convert)(const char *text, size_t len));

/* Sends an object (borrowed) and a newline, raising no SIGPIPE. Waits at most timeout_ms in all; -EAGAIN then. 0 or
 * -errno. */
int protocol_send(int fd, const json_t *msg, int timeout_ms);

/* Milliseconds of the monotonic clock, for deadlines. */
long long protocol_now_ms(void);

#endif
