/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * data.c - READ and WRITE, taken straight from the request as it came from /dev/fuse.
 *
 * libfuse's own dispatch allocates and frees a request, takes the session's lock twice and, for a reply in pieces,
 * allocates an array; at some 100,000 requests a second that is the largest part of a hit. Both requests and both
 * replies have not changed since protocol 7.9, so they are handled here and nothing else is. Runs on worker threads, no
 * lock held.
 *
 * The kernel takes a short read inside the file for its end: a read is answered in full or with an error.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "internal.h"
#include "util/log.h"

/* ENOENT: the client was killed meanwhile; ENODEV: the mount has ended. Both are no concern of ours. */
static void check_sent(ssize_t sent, const char *what)
{
	if (sent < 0 && errno != ENOENT && errno != ENODEV)
		log_warn("cannot answer a %s request: %s", what, strerror(errno));
}

void data_reply_error(struct export *e, uint64_t unique, int error)
{
	struct fuse_out_header out = { .len = sizeof(out), .error = error, .unique = unique };

	check_sent(write(e->fd, &out, sizeof(out)), "failed");
}

void data_read(struct worker *w, const struct fuse_in_header *in)
{
	const struct fuse_read_in *arg = (const void *)(in + 1);
	struct fuse_out_header out = { .len = sizeof(out), .unique = in->unique };
	struct volume_reply *reply = &w->reply;
	struct volume *v;
	uint64_t size;
	uint32_t len;
	int rc;

	if (in->len < sizeof(*in) + sizeof(*arg)) {
		data_reply_error(w->export, in->unique, -EINVAL);
		return;
	}
	v = node_handle(&w->export->nodes, arg->fh);
	if (!v) {
		data_reply_error(w->export, in->unique, -EBADF);
		return;
	}
	size = volume_size(v);
	len = arg->size;
	if (arg->offset >= size)
		len = 0;
	else if (len > size - arg->offset)
		len = (uint32_t)(size - arg->offset);
	if (len == 0) {
		check_sent(write(w->export->fd, &out, sizeof(out)), "read");
		return;
	}
	rc = len > VOLUME_MAX_IO ? -EINVAL : volume_read(v, arg->offset, len, reply);
	if (rc != 0) {
		data_reply_error(w->export, in->unique, rc);
		return;
	}
	out.len += len;
	reply->iov[0] = (struct iovec){ .iov_base = &out, .iov_len = sizeof(out) };
	check_sent(writev(w->export->fd, reply->iov, reply->iovcnt + 1), "read");
	volume_read_done(v, reply);
}

void data_write(struct worker *w, const struct fuse_in_header *in)
{
	const struct fuse_write_in *arg = (const void *)(in + 1);
	struct {
		struct fuse_out_header header;
		struct fuse_write_out write;
	} out = { .header = { .len = sizeof(out), .unique = in->unique } };
	struct volume *v;
	uint64_t size;
	uint32_t len;
	int rc;

	if (in->len < sizeof(*in) + sizeof(*arg) || in->len - sizeof(*in) - sizeof(*arg) < arg->size) {
		data_reply_error(w->export, in->unique, -EINVAL);
		return;
	}
	v = node_handle(&w->export->nodes, arg->fh);
	if (!v) {
		data_reply_error(w->export, in->unique, -EBADF);
		return;
	}
	size = volume_size(v);
	len = arg->size;
	/* As on a block device: up to the end is written, beyond it there is no space. */
	if (arg->offset >= size && len > 0) {
		data_reply_error(w->export, in->unique, -ENOSPC);
		return;
	}
	if (len > size - arg->offset)
		len = (uint32_t)(size - arg->offset);
	/* P1: no FSYNC follows an O_DSYNC or O_SYNC write, its flags are all there is. */
	rc = len == 0 ? 0 : volume_write(v, arg + 1, len, arg->offset, (arg->flags & (O_DSYNC | O_SYNC)) != 0);
	if (rc != 0) {
		data_reply_error(w->export, in->unique, rc);
		return;
	}
	out.write.size = len;
	check_sent(write(w->export->fd, &out, sizeof(out)), "write");
}
