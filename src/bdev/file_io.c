/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * file_io.c - synchronous I/O on a file or kernel block device: the fast path of a single I/O (pread is cheaper than
 * io_uring at depth 1), the rest of short transfers, zeroing, and all I/O where the kernel has no io_uring for us. Any
 * thread; the shared state is atomic flags.
 */
#include <errno.h>
#include <linux/falloc.h>
#include <string.h>
#include <sys/param.h>
#include <unistd.h>

#include <fcntl.h>

#include "bdev/file.h"
#include "util/log.h"

#define PIECES 64 /* of an iovec list, handled at once: bounds the stack */

int file_pick_fd(struct file_bdev *fb, uint64_t off, uint64_t len, const struct iovec *iov, int iovcnt)
{
	uint64_t mem = 0, lens = 0;

	if (!atomic_load_explicit(&fb->direct, memory_order_relaxed) || ((off | len) & (FILE_GRAIN - 1)))
		return fb->buf_fd;
	for (int i = 0; i < iovcnt; i++) {
		mem |= (uintptr_t)iov[i].iov_base;
		lens |= iov[i].iov_len;
	}
	return (mem & (fb->mem_align - 1)) || (lens & (fb->len_align - 1)) ? fb->buf_fd : fb->fd;
}

static void give_up_direct(struct file_bdev *fb)
{
	if (atomic_exchange(&fb->direct, false))
		log_warn("%s: direct I/O is refused here; going through the page cache", fb->path);
}

/* Copies at most PIECES pieces of the list, from byte `done` on; returns how many, and their bytes in *bytes. */
static int slice(const struct bdev_io *io, uint64_t done, struct iovec *out, uint64_t *bytes)
{
	int n = 0;

	*bytes = 0;
	for (int i = 0; i < io->iovcnt && n < PIECES; i++) {
		size_t len = io->iov[i].iov_len;

		if (done >= len) {
			done -= len;
			continue;
		}
		out[n].iov_base = (char *)io->iov[i].iov_base + done;
		out[n].iov_len = len - done;
		*bytes += out[n++].iov_len;
		done = 0;
	}
	return n;
}

/* Transfers what follows the first `done` bytes. */
static int rw_from(struct file_bdev *fb, struct bdev_io *io, uint64_t done)
{
	struct iovec iov[PIECES];

	while (done < io->length) {
		uint64_t bytes, off = io->offset + done;
		int n = slice(io, done, iov, &bytes);
		int fd = file_pick_fd(fb, off, bytes, iov, n);
		ssize_t r = io->type == BDEV_READ ? preadv(fd, iov, n, (off_t)off) : pwritev(fd, iov, n, (off_t)off);

		if (r > 0)
			done += (uint64_t)r;
		else if (r == 0)
			return -EIO; /* inside the size seen at open: the device shrank */
		else if (errno == EINVAL && fd != fb->buf_fd)
			give_up_direct(fb);
		else if (errno != EINTR)
			return -errno;
	}
	return 0;
}

int file_finish_rw(struct file_bdev *fb, struct bdev_io *io, int fd, ssize_t res)
{
	if (res == (ssize_t)io->length)
		return 0;
	if (res == -EINVAL && fd != fb->buf_fd)
		give_up_direct(fb);
	else if (res < 0 && res != -EINTR && res != -EAGAIN)
		return (int)res;
	return rw_from(fb, io, res < 0 ? 0 : (uint64_t)res);
}

static int rw(struct file_bdev *fb, struct bdev_io *io)
{
	int fd = file_pick_fd(fb, io->offset, io->length, io->iov, io->iovcnt);
	off_t off = (off_t)io->offset;
	ssize_t r;

	if (io->iovcnt == 1)
		r = io->type == BDEV_READ ? pread(fd, io->iov->iov_base, io->iov->iov_len, off)
					  : pwrite(fd, io->iov->iov_base, io->iov->iov_len, off);
	else
		r = io->type == BDEV_READ ? preadv(fd, io->iov, io->iovcnt, off)
					  : pwritev(fd, io->iov, io->iovcnt, off);
	return file_finish_rw(fb, io, fd, r < 0 ? -errno : r);
}

/* ---- zeroing ---- */

static int write_zeros(struct file_bdev *fb, uint64_t off, uint64_t len)
{
	static char zeros[64 << 10] __attribute__((aligned(4096)));
	struct iovec iov[16];
	int r = 0;

	while (len && !r) {
		uint64_t edge = off % FILE_GRAIN, n = MIN(len, sizeof(zeros) * 16), left;
		struct bdev_io io = { .type = BDEV_WRITE, .offset = off, .iov = iov };

		/* Unaligned edges apart, so that what lies between them can be written directly. */
		if (edge)
			n = MIN(len, FILE_GRAIN - edge);
		else if (n > FILE_GRAIN)
			n -= n % FILE_GRAIN;
		for (left = n; left; left -= iov[io.iovcnt++].iov_len)
			iov[io.iovcnt] = (struct iovec){ zeros, MIN(left, sizeof(zeros)) };
		io.length = n;
		r = rw(fb, &io);
		off += n;
		len -= n;
	}
	return r;
}

/* 0, -errno, or -EOPNOTSUPP if zeros have to be written instead. */
static int try_fallocate(struct file_bdev *fb, int mode, atomic_bool *unsupported, uint64_t off, uint64_t len)
{
	int r;

	if (atomic_load_explicit(unsupported, memory_order_relaxed))
		return -EOPNOTSUPP;
	do
		/* buf_fd, as a kernel block device claimed by one descriptor refuses this on the other. */
		r = fallocate(fb->buf_fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len) ? -errno : 0;
	while (r == -EINTR);
	switch (r) {
	case -EOPNOTSUPP:
	case -ENOSYS:
		atomic_store(unsupported, true);
		return -EOPNOTSUPP;
	case -EINVAL: /* not for this range */
	case -EBUSY: /* a kernel block device that somebody else holds */
	case -ENODEV:
		return -EOPNOTSUPP;
	default:
		return r;
	}
}

static int zero(struct file_bdev *fb, uint64_t off, uint64_t len, bool punch)
{
	uint64_t head = 0, mid = len;
	int r = -EOPNOTSUPP;

	if (fb->block) { /* takes whole logical blocks only */
		head = MIN(-off % FILE_GRAIN, len);
		mid = (len - head) / FILE_GRAIN * FILE_GRAIN;
	}
	if (!mid)
		return write_zeros(fb, off, len);
	if (punch)
		r = try_fallocate(fb, FALLOC_FL_PUNCH_HOLE, &fb->no_punch, off + head, mid);
	if (r == -EOPNOTSUPP)
		r = try_fallocate(fb, FALLOC_FL_ZERO_RANGE, &fb->no_zero, off + head, mid);
	if (r == -EOPNOTSUPP)
		return write_zeros(fb, off, len);
	if (!r)
		r = write_zeros(fb, off, head);
	if (!r)
		r = write_zeros(fb, off + head + mid, len - head - mid);
	return r;
}

int file_sync(struct file_bdev *fb, struct bdev_io *io)
{
	switch (io->type) {
	case BDEV_READ:
	case BDEV_WRITE:
		return rw(fb, io);
	case BDEV_FLUSH:
		return file_flush_sync(fb, false);
	case BDEV_UNMAP:
		return zero(fb, io->offset, io->length, true);
	case BDEV_WRITE_ZEROES:
		return zero(fb, io->offset, io->length, false);
	default:
		return -EOPNOTSUPP;
	}
}
