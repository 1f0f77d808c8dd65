/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * file.c - PATH or file:PATH: a regular file or a kernel block device.
 *
 * The device has two descriptors: one with O_DIRECT, for whole aligned grains, and one through the page cache for all
 * other I/O. Where direct I/O does not work (tmpfs of older kernels, some FUSE and network file systems) there is only
 * the second.
 *
 * A channel owns one io_uring, made at its first use. Each I/O passes through one of two lists of the channel on its
 * way:
 *
 *   submit --> ring_list --> in the ring (`active` of them, at most `depth`) --> completed
 *         `--> sync_list --> done by poll, with a plain system call          --> completed
 *
 * sync_list takes zeroing (it may fall back to several writes), and everything where there is no io_uring (containers
 * whose seccomp filter forbids it, old kernels, no memory for another ring). A flush that came out of the ring with
 * success may have to wait on a third list, `settling`, until that may be told (flush.c).
 *
 * Threads: a device any; a channel one at a time. The ring is first made for the thread that uses it (SINGLE_ISSUER,
 * DEFER_TASKRUN: cheapest completions), as the kernel lets no other thread in. A channel that turns up on a second
 * thread gets a ring without these instead, and keeps it. The ring's descriptor is not registered: registrations belong
 * to a thread as well, there are 16 of them, and closing from elsewhere would undo another's.
 */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/param.h>
#include <time.h>
#include <unistd.h>

#include "bdev/file.h"
#include "bdev/label.h"
#include "bdev/own_mount.h"
#include "util/limits.h"
#include "util/log.h"

#define MAX_DEPTH 4096
#define RETRY_NS 1000000000u
#define MAX_SQE_LEN (1u << 30) /* a read or write of one piece takes a 32-bit length */

/* ---- device ---- */

static int fail_open(const char *path, int r, struct bc_error *err)
{
	const char *colon = strchr(path, ':');

	switch (r) {
	case -ENOENT:
		if (colon && path[0] != '/' && path[0] != '.')
			return bc_fail(err, r,
				       "%s: no such file, and there is no device module '%.*s'; check the spelling, or "
				       "write ./%s for a file",
				       path, (int)(colon - path), path, path);
		return bc_fail(err, r, "%s: no such file; check the path, or create it with: truncate -s SIZE %s", path,
			       path);
	case -EACCES:
	case -EPERM:
		return bc_fail(err, r, "%s: permission denied; run as a user who may read and write it", path);
	case -EROFS:
		return bc_fail(err, r, "%s: lies on a read-only file system", path);
	case -EMFILE:
	case -ENFILE:
		return bc_fail(
			err, r,
			"%s: cannot open: too many open files; raise the limit (ulimit -n, LimitNOFILE=), a volume "
			"takes two and a worker one more for each volume it serves",
			path);
	case -ENXIO:
	case -ENODEV:
	case -ENOMEDIUM:
		return bc_fail(err, r, "%s: there is no device behind this name (%s)", path, strerror(-r));
	default:
		return bc_fail(err, r, "%s: cannot open: %s", path, strerror(-r));
	}
}

static int check_type(const struct stat *st, const char *path, struct bc_error *err)
{
	const char *what = "not a regular file";

	if (S_ISREG(st->st_mode) || S_ISBLK(st->st_mode))
		return 0;
	if (S_ISDIR(st->st_mode))
		return bc_fail(err, -EISDIR, "%s is a directory; name a file or a block device", path);
	if (S_ISFIFO(st->st_mode))
		what = "a pipe";
	else if (S_ISSOCK(st->st_mode))
		what = "a socket";
	else if (S_ISCHR(st->st_mode))
		what = "a character device";
	return bc_fail(err, -EINVAL, "%s is %s; name a regular file or a block device", path, what);
}

/* path: that of the device, or another way to it. */
static int open_by(struct file_bdev *fb, const char *path, struct stat *st, struct bc_error *err)
{
	int flags = O_CLOEXEC | (fb->b.flags & BDEV_OPEN_RDONLY ? O_RDONLY : O_RDWR);
	int r, read_only = 0;

	/* Before open, which would wait on a pipe. */
	if (stat(path, st))
		return fail_open(fb->path, -errno, err);
	r = check_type(st, fb->path, err);
	if (r)
		return r;
	if (S_ISBLK(st->st_mode) && (fb->b.flags & BDEV_OPEN_CLAIM))
		flags |= O_EXCL;
	fb->buf_fd = open(path, flags);
	if (fb->buf_fd < 0 && errno == EBUSY && (flags & O_EXCL))
		return claim_fail_block(st, fb->path, err);
	if (fb->buf_fd < 0 || fstat(fb->buf_fd, st))
		return fail_open(fb->path, -errno, err);
	fb->block = S_ISBLK(st->st_mode);
	fb->inodes_last = label_inodes_last(fb->buf_fd);
	fb->times_last = label_times_last(fb->buf_fd);
	/* a read-only device can be opened for writing: only the writes fail */
	if (fb->block && !(fb->b.flags & BDEV_OPEN_RDONLY) && !ioctl(fb->buf_fd, BLKROGET, &read_only) && read_only)
		return fail_open(fb->path, -EROFS, err);
	return check_type(st, fb->path, err); /* it may have been replaced meanwhile */
}

/* In a daemon the path is followed by hand: what lies on its own mount is refused (own_mount.h). */
static int open_buffered(struct file_bdev *fb, struct stat *st, struct bc_error *err)
{
	char by_fd[40];
	int fd, r;

	r = own_mount_resolve(fb->path, own_mount_is_loading(), &fd, err);
	if (r)
		return r == -EDEADLK ? r : fail_open(fb->path, r, err);
	if (fd < 0)
		return open_by(fb, fb->path, st, err);
	snprintf(by_fd, sizeof(by_fd), "/proc/self/fd/%d", fd);
	r = open_by(fb, by_fd, st, err);
	close(fd);
	return r;
}

/* The size as of now, or -errno. */
static int read_size(struct file_bdev *fb, uint64_t *size)
{
	struct stat st;

	if (fb->block)
		return ioctl(fb->buf_fd, BLKGETSIZE64, size) ? -errno : 0;
	if (fstat(fb->buf_fd, &st))
		return -errno;
	*size = (uint64_t)st.st_size;
	return 0;
}

/* What direct I/O asks for; false if it is not possible. */
static bool find_alignment(struct file_bdev *fb)
{
	struct statx sx;
	uint32_t offset_align = FILE_GRAIN;
	int sector;

	fb->mem_align = FILE_GRAIN;
#ifdef STATX_DIOALIGN
	if (!statx(fb->buf_fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) && (sx.stx_mask & STATX_DIOALIGN)) {
		offset_align = sx.stx_dio_offset_align;
		fb->mem_align = sx.stx_dio_mem_align;
	} else
#endif
		if (fb->block && !ioctl(fb->buf_fd, BLKSSZGET, &sector)) {
		offset_align = (uint32_t)sector;
		fb->mem_align = (uint32_t)sector;
	}
	fb->len_align = offset_align;
	/* 0: no direct I/O. More than a grain, or no power of two: none that this module could use. */
	return offset_align && fb->mem_align && FILE_GRAIN % offset_align == 0 && FILE_GRAIN % fb->mem_align == 0;
}

/* A second description of the same inode. Through /proc, as the path may lead elsewhere by now; without /proc by path,
 * if it does not. */
static int open_direct(struct file_bdev *fb, const struct stat *st)
{
	int flags = O_CLOEXEC | O_DIRECT | (fb->b.flags & BDEV_OPEN_RDONLY ? O_RDONLY : O_RDWR);
	char proc[40];
	struct stat now;
	int fd;

	snprintf(proc, sizeof(proc), "/proc/self/fd/%d", fb->buf_fd);
	fd = open(proc, flags);
	if (fd < 0 && errno == ENOENT) {
		fd = open(fb->path, flags);
		if (fd >= 0 && (fstat(fd, &now) || now.st_dev != st->st_dev || now.st_ino != st->st_ino)) {
			close(fd);
			fd = -1;
		}
	}
	return fd;
}

static void file_destruct(struct bdev *b)
{
	struct file_bdev *fb = (struct file_bdev *)b;

	claim_drop(&fb->claim);
	file_flushes_destroy(&fb->flushes);
	name_check_free(fb->name);
	if (fb->fd >= 0 && fb->fd != fb->buf_fd)
		close(fb->fd);
	if (fb->buf_fd >= 0)
		close(fb->buf_fd);
}

static int file_construct(struct bdev *b, const char *args, struct bc_error *err)
{
	struct file_bdev *fb = (struct file_bdev *)b;
	struct stat st;
	int r;

	fb->fd = fb->buf_fd = -1;
	file_flushes_init(&fb->flushes);
	fb->path = b->spec + strlen(b->spec) - strlen(args); /* args is the tail of the spec, and a copy that will go */
	if (!*fb->path)
		return bc_fail(err, -EINVAL, "file: no path; write file:PATH");
	r = open_buffered(fb, &st, err);
	if (r)
		goto out;
	r = read_size(fb, &b->size);
	if (r) {
		bc_fail(err, r, "%s: cannot read its size: %s", fb->path, strerror(-r));
		goto out;
	}
	if (!b->size) {
		r = bc_fail(err, -EINVAL, "%s is empty (size 0); give it a size first: truncate -s SIZE %s", fb->path,
			    fb->path);
		goto out;
	}
	if (find_alignment(fb))
		fb->fd = open_direct(fb, &st);
	if (b->flags & BDEV_OPEN_CLAIM) {
		/* The descriptor that asynchronous I/O goes through: what a killed process had in flight keeps its
		 * file open, and with that the claim, until the last of it has landed. */
		r = claim_take(&fb->claim, fb->fd >= 0 ? fb->fd : fb->buf_fd, &st, fb->path, err);
		if (r)
			goto out;
	}
	if (!fb->block)
		fb->name = name_check_new(fb->buf_fd, fb->path);
	atomic_init(&fb->direct, fb->fd >= 0);
	if (fb->fd >= 0) {
		b->alignment = FILE_GRAIN;
		/* Read-ahead would bring in pages next to a buffered edge that direct writes then have to throw out
		 * again. */
		posix_fadvise(fb->buf_fd, 0, 0, POSIX_FADV_RANDOM);
	} else {
		fb->fd = fb->buf_fd;
	}
out:
	if (r)
		file_destruct(b);
	return r;
}

static bool file_io_type_supported(struct bdev *b, enum bdev_io_type type)
{
	struct file_bdev *fb = (struct file_bdev *)b;

	if (type == BDEV_UNMAP)
		return !atomic_load(&fb->no_punch);
	return type != BDEV_WRITE_ZEROES || !atomic_load(&fb->no_zero);
}

/* A flush is an fdatasync, which leaves the modification time to the file system's next commit. */
static int file_sync_identity(struct bdev *b)
{
	struct file_bdev *fb = (struct file_bdev *)b;
	int r;

	if (fb->block)
		return 0;
	r = file_flush_sync(fb, true);
	return r == -EOPNOTSUPP ? 0 : r;
}

static void file_get_identity(struct bdev *b, struct bdev_identity *id)
{
	struct file_bdev *fb = (struct file_bdev *)b;
	struct stat st;

	if (read_size(fb, &id->size) || fstat(fb->buf_fd, &st)) {
		id->size = 0; /* gone: differs from what it was */
		return;
	}
	if (fb->block) {
		id->id[0] = st.st_rdev;
		id->mtime_ns = label_loop_mtime(st.st_rdev);
		return;
	}
	id->id[0] = st.st_dev;
	id->id[1] = fb->inodes_last ? st.st_ino : 0;
	if (fb->times_last)
		id->mtime_ns = st.st_mtim.tv_sec * INT64_C(1000000000) + st.st_mtim.tv_nsec;
}

static void file_get_label(struct bdev *b, char *label, size_t len)
{
	struct file_bdev *fb = (struct file_bdev *)b;
	struct stat st;

	if (!fb->block)
		label_of_file(fb->buf_fd, label, len);
	else if (!fstat(fb->buf_fd, &st))
		label_of_block(st.st_rdev, label, len);
}

static int file_check_name(struct bdev *b, unsigned ms, char *why, size_t len)
{
	struct file_bdev *fb = (struct file_bdev *)b;

	return fb->name ? name_check(fb->name, ms, why, len) : 0;
}

static bool file_is_deleted(struct bdev *b)
{
	struct file_bdev *fb = (struct file_bdev *)b;
	struct stat st;

	return !fb->block && !fstat(fb->buf_fd, &st) && !st.st_nlink;
}

static void file_dump_info(struct bdev *b, FILE *out)
{
	struct file_bdev *fb = (struct file_bdev *)b;

	fprintf(out, " path=%s type=%s direct=%s", fb->path, fb->block ? "block" : "file",
		atomic_load(&fb->direct) ? "yes" : "no");
}

/* ---- channel ---- */

struct io_list {
	struct bdev_io *first, **last;
};

struct file_channel {
	struct bdev_channel ch;
	struct io_uring ring;
	enum { RING_NONE, RING_OWNED, RING_SHARED, RING_UNAVAILABLE } state;
	uint64_t owner; /* RING_OWNED: thread_serial() of its thread */
	uint64_t retry_ns; /* RING_NONE: it could not be had; to be tried again from then on */
	unsigned depth;
	unsigned active; /* in the ring, completion not seen yet */
	struct io_list ring_list, sync_list, settling;
};

/* While this module holds a flush. */
static struct file_flush *io_flush(struct bdev_io *io)
{
	_Static_assert(sizeof(struct file_flush) <= sizeof io->priv - sizeof io->priv[0], "no room in bdev_io");
	return (struct file_flush *)&io->priv[1];
}

/* While this module holds another I/O: the descriptor it went to. */
static void set_io_fd(struct bdev_io *io, int fd)
{
	io->priv[1] = (uint64_t)fd;
}

static int io_fd(const struct bdev_io *io)
{
	return (int)io->priv[1];
}

static void list_add(struct io_list *l, struct bdev_io *io)
{
	io->next = NULL;
	*l->last = io;
	l->last = &io->next;
}

static struct bdev_io *list_pop(struct io_list *l)
{
	struct bdev_io *io = l->first;

	l->first = io->next;
	if (!l->first)
		l->last = &l->first;
	return io;
}

/* A number of this thread that no other ever has (thread ids and addresses of thread-local variables come back). */
static uint64_t thread_serial(void)
{
	static _Atomic uint64_t last;
	static _Thread_local uint64_t mine;

	if (!mine)
		mine = atomic_fetch_add(&last, 1) + 1;
	return mine;
}

static int file_get_channel(struct bdev_channel *ch, unsigned depth)
{
	struct file_channel *fc = (struct file_channel *)ch;

	fc->depth = MIN(depth, MAX_DEPTH);
	fc->ring_list.last = &fc->ring_list.first;
	fc->sync_list.last = &fc->sync_list.first;
	fc->settling.last = &fc->settling.first;
	return 0;
}

static void ring_close(struct file_channel *fc)
{
	if (fc->state == RING_OWNED || fc->state == RING_SHARED)
		io_uring_queue_exit(&fc->ring);
	fc->state = RING_NONE;
}

static void file_put_channel(struct bdev_channel *ch)
{
	ring_close((struct file_channel *)ch);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* Without a ring the channel makes plain system calls, one after the other. The last descriptors of the process are not
 * for rings (limits.h).
 * Tries the best set of flags first; kernels that do not know one say EINVAL. */
static void ring_open(struct file_channel *fc, bool owned)
{
	static const unsigned flags[] = { IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
					  IORING_SETUP_COOP_TASKRUN, 0 };
	static atomic_bool told;
	int r = -EINVAL;

	for (unsigned i = owned ? 0 : 1; i < 3 && r == -EINVAL; i++) {
		r = io_uring_queue_init(fc->depth, &fc->ring, flags[i]);
		if (!r && limits_is_spare_file(fc->ring.ring_fd)) {
			io_uring_queue_exit(&fc->ring);
			r = -EMFILE;
		}
		if (!r) {
			fc->state = i == 0 ? RING_OWNED : RING_SHARED;
			fc->owner = thread_serial();
			return;
		}
	}
	/* What is short now may not be later. */
	if (r == -EMFILE || r == -ENFILE || r == -ENOMEM || r == -EAGAIN)
		fc->retry_ns = now_ns() + RETRY_NS;
	else
		fc->state = RING_UNAVAILABLE;
	if (!atomic_exchange(&told, true))
		log_info("io_uring is not available (%s); using plain system calls", strerror(-r));
}

/* Makes sure of a ring that this thread may use; false if there is none. */
static bool ring_ready(struct file_channel *fc)
{
	bool moved = fc->state == RING_OWNED && fc->owner != thread_serial();

	/* With I/O in the ring only its owner can reap it. That is outside the contract; leave it to io_uring's error.
	 */
	if (moved && !fc->active)
		ring_close(fc);
	if (fc->state == RING_NONE && (!fc->retry_ns || now_ns() >= fc->retry_ns))
		ring_open(fc, !moved);
	return fc->state == RING_OWNED || fc->state == RING_SHARED;
}

static void file_submit(struct bdev_channel *ch, struct bdev_io *io)
{
	struct file_channel *fc = (struct file_channel *)ch;
	bool sync = io->type == BDEV_UNMAP || io->type == BDEV_WRITE_ZEROES || !ring_ready(fc);
	int r;

	if (!sync && io->type == BDEV_FLUSH) {
		r = file_flush_begin((struct file_bdev *)ch->bdev, io_flush(io));
		if (r) {
			bdev_io_complete(ch, io, r);
			return;
		}
	}
	list_add(sync ? &fc->sync_list : &fc->ring_list, io);
}

static void prepare(struct file_bdev *fb, struct io_uring_sqe *sqe, struct bdev_io *io)
{
	int fd = fb->fd;

	if (io->type == BDEV_FLUSH) {
		io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
	} else {
		fd = file_pick_fd(fb, io->offset, io->length, io->iov, io->iovcnt);
		if (io->iovcnt == 1 && io->length <= MAX_SQE_LEN && io->type == BDEV_READ)
			io_uring_prep_read(sqe, fd, io->iov->iov_base, (unsigned)io->length, io->offset);
		else if (io->iovcnt == 1 && io->length <= MAX_SQE_LEN)
			io_uring_prep_write(sqe, fd, io->iov->iov_base, (unsigned)io->length, io->offset);
		else if (io->type == BDEV_READ)
			io_uring_prep_readv(sqe, fd, io->iov, (unsigned)io->iovcnt, io->offset);
		else
			io_uring_prep_writev(sqe, fd, io->iov, (unsigned)io->iovcnt, io->offset);
	}
	if (io->type != BDEV_FLUSH)
		set_io_fd(io, fd);
	io_uring_sqe_set_data(sqe, io);
}

static void stage(struct file_channel *fc)
{
	while (fc->ring_list.first && fc->active < fc->depth) {
		struct io_uring_sqe *sqe = io_uring_get_sqe(&fc->ring);

		if (!sqe) /* the kernel has not taken the last batch */
			return;
		prepare((struct file_bdev *)fc->ch.bdev, sqe, list_pop(&fc->ring_list));
		fc->active++;
	}
}

/* Sends what is staged and waits for `want` completions (0: only collects those that are there). */
static void enter(struct file_channel *fc, unsigned want)
{
	static atomic_bool told;
	int r;

	if (want)
		r = io_uring_submit_and_wait(&fc->ring, want);
	else
		r = io_uring_submit_and_get_events(&fc->ring);
	/* EAGAIN, EBUSY: short of memory or of room for completions, passes when some are reaped. The caller comes back
	 * in any case. */
	if (r >= 0 || r == -EINTR || r == -EAGAIN || r == -EBUSY)
		return;
	if (!atomic_exchange(&told, true))
		log_error("io_uring_enter: %s; I/O hangs until it works again", strerror(-r));
	usleep(1000);
}

/* A flush came out of the ring. */
static void end_flush(struct file_channel *fc, struct bdev_io *io, int res)
{
	struct file_bdev *fb = (struct file_bdev *)fc->ch.bdev;

	while (res == -EINTR || res == -EAGAIN) /* not begun */
		res = fdatasync(fb->fd) ? -errno : 0;
	res = file_flush_end(fb, io_flush(io), res);
	if (res == FLUSH_UNSETTLED)
		list_add(&fc->settling, io);
	else
		bdev_io_complete(&fc->ch, io, res);
}

/* Flushes whose answer is known by now are completed. */
static void settle(struct file_channel *fc, bool wait)
{
	struct file_bdev *fb = (struct file_bdev *)fc->ch.bdev;
	struct io_list waiting = fc->settling;

	fc->settling = (struct io_list){ NULL, &fc->settling.first };
	while (waiting.first) {
		struct bdev_io *io = waiting.first;
		int res = wait ? file_flush_wait(fb, io_flush(io)) : file_flush_settle(fb, io_flush(io), 0);

		waiting.first = io->next;
		wait = false;
		if (res == FLUSH_UNSETTLED)
			list_add(&fc->settling, io);
		else
			bdev_io_complete(&fc->ch, io, res);
	}
}

static void reap(struct file_channel *fc)
{
	struct file_bdev *fb = (struct file_bdev *)fc->ch.bdev;
	struct io_uring_cqe *cqe;
	unsigned head, n = 0;

	io_uring_for_each_cqe(&fc->ring, head, cqe)
	{
		struct bdev_io *io = io_uring_cqe_get_data(cqe);
		int res = cqe->res;

		n++;
		if (io->type == BDEV_FLUSH)
			end_flush(fc, io, res);
		else
			bdev_io_complete(&fc->ch, io, file_finish_rw(fb, io, io_fd(io), res));
	}
	io_uring_cq_advance(&fc->ring, n);
	fc->active -= n;
}

static void file_poll(struct bdev_channel *ch, unsigned want)
{
	struct file_channel *fc = (struct file_channel *)ch;
	bool sync_work = fc->sync_list.first;

	if (fc->active || fc->ring_list.first) {
		stage(fc);
		/* System calls follow: get the ring going, and wait for nobody. */
		enter(fc, sync_work ? 0 : MIN(want, fc->active));
		reap(fc);
	}
	/* with more in the ring, something else completes first; the caller comes back */
	if (fc->settling.first)
		settle(fc, want && !sync_work && !fc->active && !fc->ring_list.first);
	while (fc->sync_list.first) {
		struct bdev_io *io = list_pop(&fc->sync_list);

		bdev_io_complete(ch, io, file_sync((struct file_bdev *)ch->bdev, io));
	}
}

static int file_rw_sync(struct bdev_channel *ch, struct bdev_io *io)
{
	return file_sync((struct file_bdev *)ch->bdev, io);
}

static struct bdev_module file_module = {
	.name = "file",
	.usage = "PATH",
	.bdev_size = sizeof(struct file_bdev),
	.channel_size = sizeof(struct file_channel),
	.construct = file_construct,
	.destruct = file_destruct,
	.io_type_supported = file_io_type_supported,
	.get_channel = file_get_channel,
	.put_channel = file_put_channel,
	.submit = file_submit,
	.poll = file_poll,
	.rw_sync = file_rw_sync,
	.get_identity = file_get_identity,
	.sync_identity = file_sync_identity,
	.get_label = file_get_label,
	.is_deleted = file_is_deleted,
	.check_name = file_check_name,
	.dump_info = file_dump_info,
};
BDEV_MODULE_REGISTER(file_module)
