/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * survive.c - a FUSE session that outlives the process that serves it.
 *
 * Somebody else (src/daemon/supervise.c) holds /dev/fuse open too, so the connection does not end with the process, and
 * the clients wait. The next process reads on from the same descriptor. Three things it needs:
 *
 *   - The requests that the dead process had read. With FUSE_HAS_RESEND (kernel 6.9), which has to be agreed upon at
 * INIT and which libfuse 3.14 does not know, the notification FUSE_NOTIFY_RESEND makes the kernel queue them again,
 * with bit 63 of `unique` set. It belongs to the request's number from then on: a reply without it is to no request.
 *   - What INIT agreed upon. The kernel sends it once. The request is kept in the session's memory and played to a new
 * libfuse session, whose reply is thrown away; the same program answers the same.
 *   - The open files: nodes.c.
 *
 * libfuse lets its user do the reading and writing (fuse_session_custom_io), which is where all this is done. Requests
 * may be carried out twice: reads, writes, flushes and discards do no harm then, since nobody could rely on their order
 * among requests that were not answered. Lookup counts (FORGET) are kept by nobody here.
 *
 * The kernel has one hole: it ends a request with EIO if it cannot copy it to or from a process that is being killed,
 * which is so where a page has to be faulted in first. So workers receive into memory that is touched before its use
 * (some 1 MiB each), and replies come from memory that is in use.
 *
 * Without `survive`, nothing of this file runs.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "internal.h"
#include "util/log.h"

/* Newer than the kernel headers of Debian 12. */
#define NOTIFY_RESEND 7
#define UNIQUE_RESEND (1ull << 63)
#define INIT_EXT (1u << 30)
#define RECEIVE_BYTES ((size_t)VOLUME_MAX_IO + 2 * 4096) /* the largest write, and a page for headers */
#define HAS_RESEND2 (1u << (39 - 32)) /* in flags2 */

_Thread_local uint64_t request_unique;
_Thread_local bool request_again;

static void record_init(struct export *e, const struct fuse_in_header *in)
{
	struct session_memory *m = e->nodes.memory;
	const struct fuse_init_in *arg = (const void *)(in + 1);

	if (in->len < sizeof(*in) + sizeof(*arg) || in->len > sizeof(m->init))
		return; /* a kernel from before 5.17, or from after us: no resend */
	memcpy(m->init, in, in->len);
	m->init_len = in->len;
	if (arg->flags & INIT_EXT && arg->flags2 & HAS_RESEND2)
		e->init_unique = in->unique;
}

static ssize_t survive_read(int fd, void *buf, size_t len, void *user)
{
	ssize_t n = read(fd, buf, len < RECEIVE_BYTES ? len : RECEIVE_BYTES);
	struct fuse_in_header *in = buf;

	if (n < (ssize_t)sizeof(*in))
		return n;
	request_unique = in->unique & ~UNIQUE_RESEND;
	request_again = in->unique & UNIQUE_RESEND;
	if (in->opcode == FUSE_INIT)
		record_init(user, in);
	return n;
}

/* The reply to INIT says that we know how requests come again. */
static ssize_t send_init(struct export *e, int fd, const struct iovec *iov)
{
	struct fuse_init_out out;
	struct iovec extended[2] = { iov[0], iov[1] };
	ssize_t n;

	memcpy(&out, iov[1].iov_base, sizeof(out));
	out.flags2 = (out.flags & INIT_EXT ? out.flags2 : 0) | HAS_RESEND2;
	out.flags |= INIT_EXT;
	extended[1].iov_base = &out;
	e->init_unique = 0;
	e->nodes.memory->resend = true; /* before anybody can wait for us */
	n = writev(fd, extended, 2);
	if (n < 0)
		e->nodes.memory->resend = false;
	return n;
}

static ssize_t survive_writev(int fd, struct iovec *iov, int count, void *user)
{
	const struct fuse_out_header *out = iov[0].iov_base;
	struct export *e = user;
	ssize_t sum = 0;

	if (e->swallow) {
		for (int i = 0; i < count; i++)
			sum += (ssize_t)iov[i].iov_len;
		return sum;
	}
	if (e->init_unique && out->unique == e->init_unique && !out->error && count == 2 &&
	    iov[1].iov_len == sizeof(struct fuse_init_out))
		return send_init(e, fd, iov);
	return writev(fd, iov, count);
}

static const struct fuse_custom_io custom_io = { .read = survive_read, .writev = survive_writev };

void *survive_receive_buffer(void)
{
	volatile char *mem = aligned_alloc(4096, RECEIVE_BYTES);

	for (size_t i = 0; mem && i < RECEIVE_BYTES; i += 4096)
		mem[i] = 1;
	return (void *)(uintptr_t)mem;
}

int export_open_device(int *fd, struct bc_error *err)
{
	return mount_open_device(fd, err);
}

/* libfuse closes the descriptor at the session's end. */
static int attach(struct export *e, struct bc_error *err)
{
	int fd = dup(e->survive->fuse_fd);

	if (fd < 0 || fuse_session_custom_io(e->session, &custom_io, fd) != 0) {
		if (fd >= 0)
			close(fd);
		return bc_fail(err, -EIO, "libfuse refuses to work on a descriptor of ours");
	}
	e->fd = fd;
	return 0;
}

int survive_mount(struct export *e, bool allow_other, struct bc_error *err)
{
	struct cache_info info;
	int rc;

	cache_get_info(e->cache, &info);
	rc = mount_on(e->mountpoint, info.dir, allow_other, e->survive->fuse_fd, err);

	if (rc == -EPERM)
		return bc_fail(err, rc,
			       "%s: no permission to mount, and a mount made by fusermount3 cannot survive its daemon: "
			       "run as root, or leave out --survive",
			       e->mountpoint);
	if (rc == 0)
		rc = mount_identify(e->mountpoint, &e->mount, err);
	if (rc == 0) {
		rc = attach(e, err);
		if (rc != 0)
			mount_end(&e->mount, true, false, NULL);
	}
	return rc;
}

int survive_check(struct export *e, struct bc_error *err)
{
	struct session_memory *m = e->nodes.memory;

	if (!m->resend)
		return bc_fail(err, -EOPNOTSUPP,
			       "the mount cannot survive its daemon here: the kernel does not offer to send requests "
			       "again (FUSE_HAS_RESEND, Linux 6.9 and later); leave out --survive");
	snprintf(m->mountpoint, sizeof(m->mountpoint), "%s", e->mountpoint);
	m->mount = e->mount;
	return 0;
}

/* The old request to the new session. */
static int play_init(struct export *e, struct bc_error *err)
{
	struct session_memory *m = e->nodes.memory;
	struct fuse_buf buf = { .size = m->init_len, .mem = malloc(sizeof(m->init)) };

	if (!buf.mem)
		return bc_fail(err, -ENOMEM, "out of memory");
	memcpy(buf.mem, m->init, sizeof(m->init));
	e->swallow = true;
	fuse_session_process_buf(e->session, &buf);
	e->swallow = false;
	free(buf.mem);
	if (fuse_session_exited(e->session))
		return bc_fail(err, -EIO, "%s: libfuse does not accept the mount's first request again", e->mountpoint);
	return 0;
}

int survive_take_over(struct export *e, struct bc_error *err)
{
	const struct fuse_out_header resend = { .len = sizeof(resend), .error = NOTIFY_RESEND };
	struct session_memory *m = e->nodes.memory;
	int rc;

	m->mountpoint[sizeof(m->mountpoint) - 1] = '\0';
	e->mountpoint = strdup(m->mountpoint);
	e->mount = m->mount;
	if (!e->mountpoint)
		return bc_fail(err, -ENOMEM, "out of memory");
	if (!m->resend || m->init_len < sizeof(struct fuse_in_header) || m->init_len > sizeof(m->init))
		return bc_fail(err, -EUCLEAN, "%s: what the dead daemon left of its mount cannot be read",
			       e->mountpoint);
	rc = attach(e, err);
	if (rc == 0)
		rc = play_init(e, err);
	/* ENODEV: the mount has ended meanwhile; the workers will see it too */
	if (rc == 0 && write(e->fd, &resend, sizeof(resend)) < 0 && errno != ENODEV)
		rc = bc_fail(err, -errno, "%s: the kernel does not send the dead daemon's requests again: %s",
			     e->mountpoint, strerror(errno));
	return rc;
}
